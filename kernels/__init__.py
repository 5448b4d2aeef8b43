"""INT8 kernels, each beside its eager PyTorch reference, and the QuantizedTensor layouts over them; and the one kernel
that the engine's error feedback runs. Imports no ComfyUI.

`ops` and `feedback` have the functions and what they promise, `backend` chooses between implementations.
"""

from __future__ import annotations

from . import layouts

layouts.register()
