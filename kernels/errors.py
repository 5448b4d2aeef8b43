"""What can go wrong through a caller's input, as exceptions whose text is one sentence fit to be shown as it is."""


class KernelError(ValueError):
    """Operands do not fit each other, or a backend that is asked for is unknown or cannot run here."""
