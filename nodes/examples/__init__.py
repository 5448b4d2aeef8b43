"""The models that come with the pack, and how ComfyUI finds them."""
