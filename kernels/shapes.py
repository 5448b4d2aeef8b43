"""Shapes of the large linear layers of supported models: ``(N, K)`` by model and layer."""

from __future__ import annotations

SHAPES: dict[str, dict[str, tuple[int, int]]] = {
    "Flux.1": {
        "qkv": (9216, 3072),
        "proj": (3072, 3072),
        "mlp in": (12_288, 3072),
        "mlp out": (3072, 12_288),
        "linear1": (21_504, 3072),
        "linear2": (3072, 15_360),
    },
    "Flux.2": {
        "qkv": (18_432, 6144),
        "proj": (6144, 6144),
        "mlp in": (36_864, 6144),
        "mlp out": (6144, 18_432),
        "linear1": (55_296, 6144),
        "linear2": (6144, 24_576),
    },
    "Qwen-Image": {
        "attention": (3072, 3072),
        "mlp in": (12_288, 3072),
        "mlp out": (3072, 12_288),
        "modulation": (18_432, 3072),
    },
    "WAN 14B": {"attention": (5120, 5120), "ffn in": (13_824, 5120), "ffn out": (5120, 13_824)},
    "Z-Image": {"qkv": (11_520, 3840), "ffn in": (10_240, 3840), "ffn out": (3840, 10_240)},
    "T5-XXL": {"attention": (4096, 4096), "ffn in": (10_240, 4096), "ffn out": (4096, 10_240)},
}

ROWS = (1, 77, 512, 4608, 32_760)
"""Values of M: a modulation, two prompts, a 1024 x 1024 image with its prompt, a WAN video of 81 frames at 480p."""


def list_unique_shapes() -> list[tuple[int, int]]:
    """Return every ``(N, K)`` once."""
    return list(dict.fromkeys(shape for layers in SHAPES.values() for shape in layers.values()))
