"""Sizes of tiles, warps and pipeline stages of every kernel, chosen by what they compile to for an H100 (sm_90)."""

from typing import NamedTuple

CHUNK = 1024
"""Numbers of a flattened map that one program multiplies and sums: a longer float32 sum loses digits."""


class Config(NamedTuple):
    """What one kernel is compiled with.

    Attributes:
        rows: Query rows of a tile; 0 for kernels on all heads.
        numbers: Keys of a tile; for kernels on all heads, numbers of the flattened maps.
        warps: Warps of a program.
        stages: Depth of the pipeline of loads.
    """

    rows: int
    numbers: int
    warps: int
    stages: int


# The most padded width of a head, and the configuration up to there; likewise the most padded number of heads below.
# None spills, but for 128 bytes where a soft cap, a bias and a mask come together. In 16 bits the first four use wgmma
# and at most 48 KiB of shared memory at width 64, 72 at 128 and 96 at 256; kernels on all heads use at most 28 KiB for
# up to 32 heads and 128 for 64.
_ONE_HEAD = {
    ("lse", True): ((128, Config(64, 64, 4, 2)), (256, Config(64, 64, 4, 2))),
    ("probability", True): ((128, Config(64, 128, 4, 1)), (256, Config(64, 64, 4, 1))),
    ("query_gradient", True): ((128, Config(64, 64, 4, 3)), (256, Config(64, 64, 8, 2))),
    ("key_gradient", True): ((128, Config(64, 64, 4, 3)), (256, Config(64, 64, 8, 2))),
    # In float32 there are no tensor cores without loss, and registers are what is short.
    ("lse", False): ((64, Config(32, 32, 4, 1)), (256, Config(32, 32, 8, 1))),
    ("probability", False): ((64, Config(32, 32, 4, 1)), (256, Config(32, 32, 8, 1))),
    ("query_gradient", False): ((64, Config(32, 32, 4, 1)), (256, Config(32, 32, 8, 1))),
    ("key_gradient", False): ((64, Config(32, 32, 4, 1)), (256, Config(32, 32, 8, 1))),
}

_ALL_HEADS = {
    ("gram", True): ((32, Config(0, 128, 4, 2)), (64, Config(0, 64, 8, 1))),
    ("divergence", True): ((16, Config(0, 64, 2, 2)), (32, Config(0, 32, 4, 1)), (64, Config(0, 32, 8, 1))),
    ("logit_gradient", True): ((16, Config(0, 128, 4, 1)), (64, Config(0, 64, 8, 1))),
    ("gram", False): ((16, Config(0, 128, 4, 2)), (32, Config(0, 64, 8, 1)), (64, Config(0, 32, 8, 1))),
    ("divergence", False): ((16, Config(0, 64, 4, 1)), (32, Config(0, 64, 8, 1)), (64, Config(0, 32, 8, 1))),
    ("logit_gradient", False): (
        (16, Config(0, 64, 4, 1)),
        (32, Config(0, 32, 8, 1)),
        (64, Config(0, 16, 8, 1)),
    ),
}


def head_config(kernel: str, width_block: int, is_half: bool) -> Config:
    """For a kernel on one head at a time, by the padded width and whether query and key have 16 bits."""
    return _up_to(_ONE_HEAD[kernel, is_half], width_block)


def heads_config(kernel: str, n_heads_block: int, is_half: bool) -> Config:
    """For a kernel on all heads at once, by the padded number of heads and whether maps have 16 bits."""
    return _up_to(_ALL_HEADS[kernel, is_half], n_heads_block)


def padded(number: int) -> int:
    """The next power of two, and at least 16: the sides of a tile."""
    return max(16, 1 << (number - 1).bit_length())


def _up_to(table: tuple[tuple[int, Config], ...], size: int) -> Config:
    return next(config for most, config in table if size <= most)
