"""The pipeline of a loaded model: quantized tensors from its weights, the disk cache, saved files and their names."""
