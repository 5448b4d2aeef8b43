"""Checks of quantized layers: whatever a layer's format does not define is named, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..formats import Shape, foreign
from ..formats.companions import Companion, is_finite
from ..formats.marker import Marker
from ..formats.rotation import GROUP_SIZES
from ..formats.stored import StoredFormat
from ..text import dimensions
from .quantized import BIAS, CODES, StoredLayer
from .sources import Source
from .strict_json import quoted
from .tensors import TensorSpec, dtype_name


def layer_problem(layer: StoredLayer) -> str:
    """Find out what is wrong with a layer, from names, dtypes, shapes and the marker alone.

    Returns:
        A sentence without its full stop that names the layer and the tensor or field; empty if nothing is wrong.
    """
    if layer.fault:
        return layer.fault
    fault = next(_faults(layer), "")
    return fault and f"Layer '{layer.name}' {fault}"


def scale_problem(source: Source, layer: StoredLayer, missing: Collection[str] = ()) -> str:
    """Find a scale that cannot be computed with, in a layer without a `layer_problem`. Reads the scales.

    Args:
        source: holds the layer.
        layer: the layer.
        missing: full names of tensors that cannot be read, and are not checked.

    Returns:
        A sentence without its full stop; empty if all scales can be used.
    """
    for name, companion in _scales(layer):
        if layer.names[name] not in missing and not companion.usable(source.read(layer.names[name])):
            limit = "" if companion.usable is is_finite else " and above 0"
            return f"Layer '{layer.name}' has the scale '{layer.names[name]}', which is not finite{limit}"
    return ""


def lacks_scales(layer: StoredLayer, missing: Collection[str]) -> bool:
    """Whether `scale_problem` leaves out some of a layer's scales."""
    return any(layer.names[name] in missing for name, _ in _scales(layer))


def decoding_problem(layer: StoredLayer) -> str:
    """Say why this pack cannot dequantize a layer without a `layer_problem`.

    Returns:
        A sentence without its full stop; empty if it can.
    """
    if len(layer.tensors[CODES].shape) != 2:
        return f"Layer '{layer.name}' is a bank of experts in {layer.format}, which cannot be dequantized here"
    if layer.stored is None:
        return f"Layer '{layer.name}' is quantized as {layer.format}, which cannot be dequantized here"
    return ""


def _scales(layer: StoredLayer) -> Iterator[tuple[str, Companion]]:
    """Name within the layer, and definition, of each companion that a layer of a known format holds."""
    companions = {} if layer.stored is None else layer.stored.companions
    return ((name, companion) for name, companion in companions.items() if name in layer.names)


def _faults(layer: StoredLayer) -> Iterator[str]:
    """Faults of a layer. Each check relies on the ones before it, so that only the first fault is certain."""
    if layer.other_program:
        program, tensor = layer.other_program
        yield f"is quantized by {program} (tensor '{tensor}'), which cannot be read here"
    codes = layer.tensors.get(CODES)
    if codes is None:
        alone = "holds codes beside a scale, in a scheme that is not known here"
        yield "is marked as quantized and has no weight" if layer.marked else alone
        return
    for field, value in layer.marker.unknown.items():
        yield f"has the marker field {quoted(field)} with the value {quoted(value)}, which is not understood"
    stored = layer.stored
    if stored is None:
        yield _unknown_format(layer, codes)
        return
    if codes.dtype != stored.codes:
        yield f"is marked {layer.format} and stored as {dtype_name(codes.dtype)}"
    yield from _foreign_tensors(layer, stored)
    yield from _missing_tensors(layer, stored)
    shape = stored.padded_shape(codes.shape)
    experts = codes.shape[0] if len(codes.shape) == 3 else None
    if shape is None or layer.marker.num_experts not in (None, experts):
        yield f"has {_described(codes)} as its weight, which does not fit {layer.format}"
        return
    yield from _marker_faults(layer.marker, stored, shape, experts)
    yield from _shape_faults(layer, stored, shape, experts)


def _unknown_format(layer: StoredLayer, codes: TensorSpec) -> str:
    if layer.marked:
        return f"has the format {quoted(layer.marker.format)}, which is not known here"
    beside = next((name for name in layer.names if name not in (CODES, BIAS)), None)
    other = "" if beside is None else f" beside {_tensor(layer, beside)}"
    return f"is stored as {dtype_name(codes.dtype)}{other}, in a scheme that is not known here"


def _foreign_tensors(layer: StoredLayer, stored: StoredFormat) -> Iterator[str]:
    for name in layer.names:
        if name not in (CODES, BIAS, *stored.companions):
            yield f"is {layer.format} and holds the tensor {_tensor(layer, name)}, which that format does not define"


def _missing_tensors(layer: StoredLayer, stored: StoredFormat) -> Iterator[str]:
    is_cast = not layer.marked and stored.codes.is_floating_point and layer.tensors.keys() <= {CODES, BIAS}
    missing = [name for name, companion in stored.companions.items() if companion.required]
    missing = [name for name in missing if name not in layer.tensors]
    if missing and not is_cast:
        yield f"is {layer.format} and lacks {' and '.join(missing)}"


def _marker_faults(marker: Marker, stored: StoredFormat, shape: Shape, experts: int | None) -> Iterator[str]:
    if marker.convrot and stored.rotation == "never":
        yield f"is marked as rotated, which {marker.format} cannot be"
    rotation = stored.rotation_group(marker)
    if rotation is not None and (rotation not in GROUP_SIZES or shape[1] % rotation):
        yield f"has a marker with rotation groups of {rotation}, which does not fit its {shape[1]} inputs"
    size = stored.group(marker)
    if (stored.fixed_group and size != stored.group_size) or (marker.group_size and size > max(shape)):
        yield f"has a marker with groups of {size}, which does not fit {marker.format} of {dimensions(shape)}"
    original = marker.orig_shape
    bank = () if experts is None else (experts,)
    if original is not None and (original[:-2], stored.padded(original[-2:])) != (bank, shape):
        yield f"has a marker with the shape {dimensions(original)}, which does not fit {dimensions((*bank, *shape))}"


def _shape_faults(layer: StoredLayer, stored: StoredFormat, shape: Shape, experts: int | None) -> Iterator[str]:
    for name, companion in stored.companions.items():
        spec = layer.tensors.get(name)
        if spec is None:
            continue
        sizes = companion.shapes(shape, stored.group(layer.marker))
        if experts is not None:
            sizes |= {(experts, *one) for one in sizes}
        if spec.dtype not in companion.dtypes or tuple(spec.shape) not in sizes:
            weight = f"{layer.format} of {dimensions(shape)}"
            yield f"has {_described(spec)} as '{layer.names[name]}', which does not fit {weight}"


def _tensor(layer: StoredLayer, name: str) -> str:
    """A tensor's full name, with its usual meaning if it has one."""
    meaning = foreign.MEANINGS.get(name)
    return f"'{layer.names[name]}'" + (f" ({meaning})" if meaning else "")


def _described(spec: TensorSpec) -> str:
    return f"{dtype_name(spec.dtype)} {list(spec.shape)}"
