"""Who computes: the devices of this process, and the processes that work on one file together."""
