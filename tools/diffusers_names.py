"""Write the tensor names of diffusers' own models, built on the meta device: ``python tools/diffusers_names.py``.

Run it where diffusers is installed; the pack does not need it. Numbers between dots are written as ``#``. Models that
cannot be built without a configuration are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from calibrated_rounding.quant.planning.names import generalize
from diffusers.models import autoencoders, controlnets, transformers, unets

OUT = Path(__file__).parents[1] / "tests" / "data" / "diffusers.json"


def classes() -> Iterator[type]:
    for module in (transformers, unets, controlnets, autoencoders):
        for name in sorted(dir(module)):
            found = getattr(module, name)
            if isclass(found) and issubclass(found, diffusers.ModelMixin):
                yield found


def tensor_names(model: Any) -> list[str]:
    return sorted({generalize(name) for name in model.state_dict()})


def main() -> None:
    models = {}
    for kind in classes():
        try:
            with torch.device("meta"):
                models[kind.__name__] = tensor_names(kind())
        except Exception as error:  # whatever a class raises that needs more than its defaults
            print(f"{kind.__name__} is left out: {error}")
    rows = [f"{json.dumps(name)}: {json.dumps(names)}" for name, names in models.items()]
    OUT.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(f"{len(models)} models of diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
