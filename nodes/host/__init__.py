"""What touches ComfyUI's internals: its models, text encoders, loaders and runs, behind functions of our own."""
