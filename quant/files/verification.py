"""Whether a file is what was planned and what ComfyUI runs: asked of the file itself, before it takes its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import CheckpointError
from ..formats import FORMATS
from ..formats.marker import SUFFIX, Marker, from_header
from .checks import layer_problem, scale_problem
from .quantized import StoredLayer, header_problem, quantized_layers, read_marker
from .sources import Source
from .strict_json import quoted
from .tensors import Layout

WRITTEN = frozenset(fmt.comfyui_name for fmt in FORMATS.values())
"""Formats that this pack writes. Layers in others come with a loaded model, and ComfyUI answers for them."""
STATIC_INPUTS = frozenset(fmt.comfyui_name for fmt in FORMATS.values() if fmt.static_input)
FULL_PRECISION = frozenset(fmt.comfyui_name for fmt in FORMATS.values() if fmt.needs_full_precision)


def verify_planned(written: Source, layout: Layout, markers: Mapping[str, Marker]) -> None:
    """Check a file against its plan and ComfyUI's rules; reads the markers and the scales, no weights.

    Args:
        written: the file.
        layout: dtype and shape of every planned tensor.
        markers: of every planned layer, by full name.

    Raises:
        CheckpointError: something is different.
    """
    _refuse_first(_planned_problems(written, layout, markers))


def verify_layers(written: Source) -> None:
    """Check the quantized layers of a file without a plan; as `verify_planned` in all else."""
    _refuse_first(_layer_problems(written))


def _refuse_first(problems: Iterator[str]) -> None:
    problem = next(problems, None)
    if problem is not None:
        raise CheckpointError(
            f"Nothing was written, as the file would not be what ComfyUI loads: {problem}; try again, and report it if "
            "it happens twice."
        )


def _planned_problems(written: Source, layout: Layout, markers: Mapping[str, Marker]) -> Iterator[str]:
    for name in {**layout, **written.tensors}:
        spec = written.tensors.get(name)
        here = None if spec is None else (spec.dtype, tuple(spec.shape))
        if here != layout.get(name):
            yield f"tensor {quoted(name)} is {_describe(here)}, not {_describe(layout.get(name))}"
    for layer in {**markers, **dict.fromkeys(_marked(written))}:
        if layer not in markers or layer + SUFFIX not in written.tensors:
            yield f"layer {quoted(layer)} has a marker where none was planned, or none where one was"
        elif _read(written, layer) != markers[layer]:
            yield f"layer {quoted(layer)} has another marker than planned"
    yield from _layer_problems(written)
    for stored in quantized_layers(written).values():
        problem = _rule_problem(stored)
        if stored.name in markers and problem:
            yield f"layer {quoted(stored.name)} {problem}"


def _layer_problems(written: Source) -> Iterator[str]:
    problem = header_problem(written.metadata)
    if problem:
        yield problem
        return
    header, marked = from_header(written.metadata), _marked(written)
    for layer in {**header, **dict.fromkeys(marked)} if header else ():
        if layer not in header or layer not in marked or _read(written, layer) != header[layer]:
            yield f"the header and the marker of layer {quoted(layer)} do not agree"
    for stored in quantized_layers(written).values():
        if stored.marked and stored.marker.format in WRITTEN:
            problem = layer_problem(stored) or scale_problem(written, stored)
            if problem:
                yield problem


def _rule_problem(layer: StoredLayer) -> str:
    """Why ComfyUI would not run a layer that it loads; empty: it would."""
    stored = layer.stored
    if stored is not None and len(layer.tensors[stored.scale].shape) == 1:
        return "has a scale of one dimension, which ComfyUI cannot replace when it applies a LoRA"
    if layer.marker.format in FULL_PRECISION and not layer.marker.full_precision_matrix_mult:
        return "is not marked to be multiplied in 16 bits, and CUDA has no product in its format"
    if "input_scale" in layer.tensors and layer.marker.format not in STATIC_INPUTS:
        return "has an input scale, which its format does not use"
    return ""


def _marked(written: Source) -> list[str]:
    return [name.removesuffix(SUFFIX) for name in written.tensors if name.endswith(SUFFIX)]


def _read(written: Source, layer: str) -> Marker | None:
    """The marker in a layer's own tensor; None where it cannot be read."""
    marker, fault = read_marker(written, layer)
    return None if fault else marker


def _describe(spec: tuple[object, tuple[int, ...]] | None) -> str:
    return "missing" if spec is None else f"{str(spec[0]).removeprefix('torch.')} {list(spec[1])}"
