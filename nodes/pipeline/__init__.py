"""The pipeline of a loaded model: quantized tensors from its weights, the disk cache, and saved files with their names."""
