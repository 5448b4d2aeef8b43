"""From a loaded model to quantized tensors and files."""
