"""Kernels and the QuantizedTensor layouts over them, each beside its eager PyTorch reference. Imports no ComfyUI."""
