"""Random numbers that depend on what they are for, and not on what was drawn before."""

from collections.abc import Iterable

import torch


class Epoch:
    """The number of the epoch, shared: a loader's workers that outlive an epoch see the next one."""

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.int64)
        self._number.share_memory_()  # type: ignore[no-untyped-call]

    def set(self, number: int) -> None:
        """Announce an epoch."""
        self._number.fill_(number)

    def __int__(self) -> int:
        return int(self._number)


def shuffled(names: Iterable[int | str], seed: int) -> list[int | str]:
    """Every distinct name once, in an order that depends only on the set of names and the seed."""
    distinct = sorted(set(names), key=lambda name: (isinstance(name, str), name))
    order = sorted(range(len(distinct)), key=lambda position: uniform(seed, position))
    return [distinct[position] for position in order]


def uniform(*keys: int) -> float:
    """A number from 0 to below 1 that depends on the keys alone; nearby keys give unrelated numbers.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195), chained over the
    keys: about a microsecond, where seeding a generator per item takes ten.
    """
    state = 0
    for key in keys:
        state = (state ^ (key & _WORD)) + _GOLDEN & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
