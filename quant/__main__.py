"""``python -m calibrated_rounding.quant``, and ``python -m quant`` in a checkout: the command line of `cli`."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

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


PACKAGE = load_checkout() if __package__ == "quant" else __package__

if __name__ == "__main__":
    sys.exit(import_module(".cli", PACKAGE).main())
