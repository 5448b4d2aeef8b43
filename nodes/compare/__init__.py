"""How close two models' latents are, in figures and pictures. Knows no ComfyUI."""
