"""Runs one job of `Host.run` in the host's interpreter: ``runner.py HOST JOB``. Imports torch and the host only."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(host: str, job: Path) -> None:
    sys.path.insert(0, host)
    sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(job)]
    from comfy import options

    options.enable_args_parsing()
    import inside

    names = json.loads((job / "inputs" / "values.json").read_text(encoding="utf-8"))
    names |= load_file(job / "inputs" / "tensors.safetensors")
    outputs: dict[str, object] = {}
    code = compile((job / "code.py").read_text(encoding="utf-8"), "code given to Host.run", "exec")
    with torch.inference_mode():
        exec(code, {**names, "outputs": outputs, "inside": inside, "torch": torch})
    tensors = {name: value.contiguous() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    (job / "outputs").mkdir()
    save_file(tensors, job / "outputs" / "tensors.safetensors")
    others = {name: value for name, value in outputs.items() if name not in tensors}
    (job / "outputs" / "values.json").write_text(json.dumps(others), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
