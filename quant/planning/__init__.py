"""Which layer takes which format, and why."""
