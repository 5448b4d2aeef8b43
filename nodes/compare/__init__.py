"""Comparing two models by their latents: figures, pictures and seeds. Knows no ComfyUI."""
