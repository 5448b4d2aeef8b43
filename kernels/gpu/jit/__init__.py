"""Device code: Triton functions only. Arguments in capitals are compile-time constants."""
