"""INT8 kernels, LDLQ rounding of a block of columns, and the QuantizedTensor layouts over the kernels. No ComfyUI.

Every kernel lies beside its eager PyTorch reference. `ops` and `ldlq` hold the functions and what they promise,
`backend` chooses between implementations, and `layouts.register` makes the layouts known to comfy-kitchen. Importing
this package imports nothing.
"""
