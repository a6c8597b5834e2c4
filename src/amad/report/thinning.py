"""Long records in a bounded size."""

from collections.abc import Sequence
from typing import Any


class Thinned:
    """Entries of evenly spaced steps of a sequence whose length is not known beforehand, and those of the last one.

    No more than twice ``most`` steps are held at any time: each time there are so many, every other one goes.

    Args:
        most: Steps that :meth:`steps` gives at most; at least 2.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._entries: dict[int, dict[Any, Any]] = {}
        self._numbers: dict[int, int] = {}
        self._stride = 1
        self._n_seen = 0

    def add(self, step: int, key: Any, entry: Any) -> None:
        """Keep an entry of a step; steps come in their order."""
        if step not in self._numbers:
            self._drop()
            self._numbers[step] = self._n_seen
            self._entries[step] = {}
            self._n_seen += 1
        self._entries[step][key] = entry

    def forget_after(self, step: int) -> None:
        """Forget what came after this step."""
        self._keep([one for one in self._numbers if one <= step])
        self._n_seen = max(self._numbers.values(), default=-1) + 1

    def steps(self) -> dict[int, dict[Any, Any]]:
        """Entries by their keys, by their steps: the first and the last step and evenly spaced ones between."""
        found = list(self._entries)
        chosen = evenly(len(found), self.most)
        return {found[index]: self._entries[found[index]] for index in chosen}

    def _drop(self) -> None:
        last = next(reversed(self._numbers), None)
        if last is not None and self._numbers[last] % self._stride:
            self._keep([step for step in self._numbers if step != last])
        if len(self._numbers) >= 2 * self.most:
            self._stride *= 2
            self._keep([step for step, number in self._numbers.items() if number % self._stride == 0])

    def _keep(self, steps: Sequence[int]) -> None:
        self._numbers = {step: self._numbers[step] for step in steps}
        self._entries = {step: self._entries[step] for step in steps}


def evenly(n: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers from 0 to n - 1, evenly spaced, with the first and the last."""
    if n <= most:
        return list(range(n))
    return [round(position * (n - 1) / (most - 1)) for position in range(most)]


def averaged(
    rows: Sequence[tuple[int, Sequence[float | None]]], most: int
) -> list[tuple[int, list[float | None]]]:
    """At most ``most`` rows: each is the mean of consecutive ones, at the step of the last of them.

    None where none of them has a number.
    """
    size = -(-len(rows) // most) if rows else 1
    means = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        columns = zip(*(values for _, values in part), strict=True)
        means.append((part[-1][0], [_mean(column) for column in columns]))
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
