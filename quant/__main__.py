"""``python -m calibrated_rounding.quant``, and ``python -m quant`` in a checkout: the command line of `cli`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType

PACK = "calibrated_rounding"


def load_checkout() -> str:
    """Import the checkout as the package that holds `quant` and `kernels`, whatever its folder is called.

    Returns:
        The full name of `quant` in that package.
    """
    root = Path(__file__).resolve().parents[1]
    spec = spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    sys.modules[PACK] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    return f"{PACK}.quant"


HELP = Path(__file__).parent / "cli" / "help.txt"
"""The answer to --help, which is written by tools/manual.py so that it needs no imports."""


def main() -> int:
    """Run the command line, which takes seconds to import; gives the exit code."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(HELP.read_text(encoding="utf-8"), end="")
        return 0
    # Code that is being imported may swallow KeyboardInterrupt, and nothing is written yet.
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, end_import)
    gc.disable()  # what imports create stays, and looking through it again and again takes a third of the start
    package = load_checkout() if __package__ == "quant" else __package__
    run = import_module(".cli", package).main
    gc.freeze()
    gc.enable()
    if default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code: int = run()
    return code


def end_import(number: int, frame: FrameType | None) -> None:
    """Signal handler: end the process with one line."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"error: Interrupted.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
