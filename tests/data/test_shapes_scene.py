from collections import Counter

import numpy as np

from amad.data.shapes_scene import COLOURS, FEWEST, GRID, MOST, SHAPES, draw_scenes


def scenes(n=400, seed=0):
    return draw_scenes(n, np.random.default_rng(seed))


def test_things_stand_in_different_cells_of_the_grid():
    for scene in scenes():
        assert FEWEST <= len(scene.things) <= MOST
        assert len(scene.cells()) == len(scene.things)
        for thing in scene.things:
            assert 0 <= thing.row < GRID
            assert 0 <= thing.column < GRID
            assert 0 <= thing.colour < len(COLOURS)
            assert 0 <= thing.shape < len(SHAPES)


def test_everything_there_is_occurs_about_equally_often():
    things = [thing for scene in scenes(2000) for thing in scene.things]
    for of, n_kinds in (
        (lambda thing: thing.colour, 8),
        (lambda thing: thing.shape, 3),
        (lambda thing: thing.large, 2),
        (lambda thing: (thing.row, thing.column), 9),
    ):
        counts = Counter(map(of, things))
        assert len(counts) == n_kinds
        assert max(counts.values()) < 1.2 * min(counts.values())


def test_a_seed_gives_the_same_scenes():
    assert scenes(20, 3) == scenes(20, 3)
    assert scenes(20, 3) != scenes(20, 4)
