"""ComfyUI's internals behind functions of our own: models, text encoders, sampling, loaders, the server."""
