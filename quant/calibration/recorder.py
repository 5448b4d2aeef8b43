"""Recording the inputs of a torch model's linear layers, whoever runs the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import QuantError
from ..text import shortened
from .calibration import Calibration
from .collector import BUDGET, ROWS, Collector
from .statistics import fingerprint

COMPILED = "_orig_mod"
"""The part of a module's name that `torch.compile` adds, and a checkpoint lacks."""

Hook = Callable[[torch.nn.Module, tuple[Tensor, ...], dict[str, Any]], None]


class Recorder:
    """Collects the inputs of linear layers while a model runs inside `watch`.

    Example:
        recorder = Recorder()
        with recorder.watch(model):
            model(...)
        recorder.calibration().save("calibration.safetensors")

    Args:
        rows: Most rows to keep of each layer.
        budget: Memory budget of all rows in bytes, as for `Collector`.
    """

    def __init__(self, rows: int = ROWS, budget: int = BUDGET) -> None:
        self._collector = Collector(rows=rows, budget=budget)
        self._watched: dict[str, None] = {}
        self._fingerprints: dict[str, str] = {}
        self._changed: list[str] = []

    @contextmanager
    def watch(self, model: torch.nn.Module, prefix: str = "", layers: Collection[str] | None = None) -> Iterator[None]:
        """Record every `torch.nn.Linear` of ``model`` that runs inside the block.

        The hooks are removed after it, also after an error, and the model computes the same values. A compiled model
        runs uncompiled inside.

        Args:
            model: The model to record.
            prefix: Comes before every module's name. A layer is named as in the checkpoint, without ``.weight``; two
                models whose layers share names need different prefixes.
            layers: Names of the layers to record; None: all.
        """
        with ExitStack() as stack:
            for path, module in model.named_modules(prefix=prefix.removesuffix(".")):
                name = layer_name(path)
                if isinstance(module, torch.nn.Linear) and (layers is None or name in layers):
                    self._watched[name] = None
                    hook = module.register_forward_pre_hook(self._make_hook(name), with_kwargs=True)
                    stack.callback(hook.remove)
            # Code that was compiled before would not call the hooks.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def calibration(self, fingerprints: Mapping[str, str] | None = None) -> Calibration:
        """The calibration of all that was recorded up to now.

        Args:
            fingerprints: `fingerprint` of each layer's original weight; None: of the weights that ran.

        Raises:
            QuantError: if nothing was recorded, or the layers of two models under one name.
        """
        calibration = self._collector.finish()
        if not calibration:
            raise QuantError("Nothing was recorded: no linear layer of the watched model has run.")
        if fingerprints is None and self._changed:
            raise QuantError(
                f"{len(self._changed)} layers were recorded with more than one weight ({shortened(self._changed)}); "
                "give watch a prefix of its own for each model."
            )
        prints = self._fingerprints if fingerprints is None else fingerprints
        return replace(
            calibration,
            fingerprints={layer: prints[layer] for layer in calibration},
            unrecorded=tuple(layer for layer in self._watched if layer not in calibration),
        )

    def _make_hook(self, layer: str) -> Hook:
        identified = False

        def add_inputs(module: torch.nn.Module, args: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            nonlocal identified
            # The model may run in inference mode: nothing that is kept of its inputs is a tensor made there.
            if not identified:
                self._identify(layer, module.get_parameter("weight"))
            self._collector.add(layer, args[0] if args else named["input"])
            identified = True

        return add_inputs

    def _identify(self, layer: str, weight: Tensor) -> None:
        now = fingerprint(weight)
        if self._fingerprints.setdefault(layer, now) != now and layer not in self._changed:
            self._changed.append(layer)


def layer_name(path: str) -> str:
    """A module's name in the checkpoint: without the parts that compiling it, or a module around it, has added."""
    return ".".join(part for part in path.split(".") if part != COMPILED)
