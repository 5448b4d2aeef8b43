"""Device code: Triton functions only. Their arguments in capitals are known when they are compiled."""
