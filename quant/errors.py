"""Errors that a user's input can cause; the text of each is one sentence that is shown unchanged."""


class QuantError(Exception):
    """Base of every error that the user can cause; its text names the thing and the way out."""


class CheckpointError(QuantError):
    """A file cannot be read or written: missing, malformed, truncated, not writable, disk full."""


class AlreadyQuantizedError(CheckpointError):
    """The input holds quantized layers and the recipe does not ask to dequantize them first."""


class UnreadableLayerError(AlreadyQuantizedError):
    """A quantized layer cannot be turned back to floating point, because its format is unknown or it is damaged."""


class MarkerError(CheckpointError):
    """A layer's marker is not one that ComfyUI could read."""


class UnloadableError(QuantError):
    """ComfyUI's loaders would not read quantized layers under the source's names, or the source is no whole model."""


class ProfileError(QuantError):
    """A profile is unknown, or does not describe the model at hand."""


class RecipeError(QuantError):
    """A setting is unknown, out of range, or contradicts another."""


class LayerError(QuantError):
    """A layer's weight cannot be quantized (non-finite values, an impossible shape)."""


class Cancelled(QuantError):
    """The caller's cancel callback asked to stop; nothing was left behind."""


class RankError(QuantError):
    """A rank of a run in several processes failed."""

    def __init__(self, text: str, *, reported: bool = False, interrupted: bool = False) -> None:
        super().__init__(text)
        self.reported = reported
        """Another rank reports it."""
        self.interrupted = interrupted
        """The rank was asked to stop."""
