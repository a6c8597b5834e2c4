"""Sizes of tiles, warps and pipeline stages of every kernel."""

from typing import NamedTuple


class Config(NamedTuple):
    """What one kernel is compiled with.

    Attributes:
        rows: Query rows of a tile; for kernels on all heads, unused.
        numbers: Keys of a tile; for kernels on all heads, numbers of the flattened maps.
        warps: Warps of a program.
        stages: Depth of the pipeline of loads.
    """

    rows: int
    numbers: int
    warps: int
    stages: int


def head_config(kernel: str, width_block: int, is_half: bool) -> Config:
    """For a kernel on one head at a time, by the padded width and whether operands have 16 bits."""
    if not is_half:
        return Config(32, 32, 4, 1)
    return _BY_WIDTH[kernel][width_block > 64][width_block > 128]


def heads_config(kernel: str, most_heads: int, is_half: bool) -> Config:
    """For a kernel on all heads at once, by the padded number of heads and whether maps have 16 bits."""
    return Config(0, 128, 4, 2)


def padded(number: int) -> int:
    """The next power of two, and at least 16: the sides of a tile."""
    return max(16, 1 << (number - 1).bit_length())


_BY_WIDTH = {
    "lse": ((Config(64, 64, 4, 2),) * 2,) * 2,
    "probability": ((Config(64, 128, 4, 1),) * 2,) * 2,
    "query_gradient": ((Config(64, 64, 4, 3),) * 2,) * 2,
    "key_gradient": ((Config(64, 64, 4, 3),) * 2,) * 2,
}
CHUNK = 1024
