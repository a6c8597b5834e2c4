"""Scenes of coloured shapes on a 3 x 3 grid, drawn by lot."""

from typing import NamedTuple

import numpy as np

GRID = 3
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "turquoise", "brown")
SHAPES = ("circle", "square", "triangle")
FEWEST, MOST = 3, 5
# Without repeats "how many" would nearly always be one.
_REPEATED_COLOUR = 0.4


class Thing(NamedTuple):
    """One shape: indices into ``COLOURS`` and ``SHAPES``, its size, and its place from the top left."""

    colour: int
    shape: int
    large: bool
    row: int
    column: int


class Scene(NamedTuple):
    """Three to five things in different cells, and the grey value behind them."""

    things: tuple[Thing, ...]
    ground: int

    def cells(self) -> dict[tuple[int, int], Thing]:
        """What stands where: things by (row, column)."""
        return {(thing.row, thing.column): thing for thing in self.things}


def draw_scenes(n_scenes: int, random: np.random.Generator) -> list[Scene]:
    """Independent scenes: number, cells, shapes and sizes are uniform; colours are, but for repeats."""
    counts = random.integers(FEWEST, MOST + 1, n_scenes).tolist()
    cells = random.random((n_scenes, GRID * GRID)).argsort(axis=1)[:, :MOST].tolist()
    shapes = random.integers(len(SHAPES), size=(n_scenes, MOST)).tolist()
    large = (random.random((n_scenes, MOST)) < 0.5).tolist()
    colours = random.integers(len(COLOURS), size=(n_scenes, MOST))
    repeats = random.random((n_scenes, MOST)) < _REPEATED_COLOUR
    for later in range(1, MOST):
        colours[:, later] = np.where(repeats[:, later], colours[:, later - 1], colours[:, later])
    grounds = random.integers(215, 241, n_scenes).tolist()
    return [
        Scene(
            tuple(
                Thing(colour, shape, size, *divmod(cell, GRID))
                for colour, shape, size, cell, _ in zip(*columns, range(count), strict=False)
            ),
            ground,
        )
        for count, ground, *columns in zip(
            counts, grounds, colours.tolist(), shapes, large, cells, strict=True
        )
    ]
