"""INT8 kernels, each beside its eager PyTorch reference, and the QuantizedTensor layouts over them. Imports no ComfyUI.

`ops` has the functions and what they promise, `backend` chooses between implementations.
"""

from __future__ import annotations

from . import layouts

layouts.register()
