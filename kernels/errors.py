"""The exception of the kernels. Its text is one sentence that can be shown to a user as it is."""


class KernelError(ValueError):
    """Operands do not fit each other, or a selected backend is unknown or cannot run here."""
