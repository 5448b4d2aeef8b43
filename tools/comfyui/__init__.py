"""A real ComfyUI for tests, tools and benchmarks: where it is, its interpreter, its server and its page.

    host = find_host()                                   # raises HostMissing, with the reason
    host.call("benchmarks._inside:read_versions")        # a function of this checkout, run by ComfyUI's interpreter
    with Server(host, folder) as server:                 # ComfyUI's server with the pack in custom_nodes
        server.execute({"1": {"class_type": ..., "inputs": {...}}})

`browser` opens the server's page; it needs playwright. `inside` has the modules for ComfyUI's interpreter.
"""

from .checkout import PACK, PACK_NAME, example_model
from .host import FP8_COMPUTE, Host, HostError, HostMissing, find_host
from .server import Server

__all__ = [
    "FP8_COMPUTE",
    "PACK",
    "PACK_NAME",
    "Host",
    "HostError",
    "HostMissing",
    "Server",
    "example_model",
    "find_host",
]
