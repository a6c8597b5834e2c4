import itertools

import numpy as np
import pytest

from amad.data.shapes_render import CELL_PIXELS, IMAGE_PIXELS, render
from amad.data.shapes_scene import COLOURS, SHAPES, Scene, Thing, draw_scenes


def cell(image, row, column):
    return image[
        row * CELL_PIXELS : (row + 1) * CELL_PIXELS, column * CELL_PIXELS : (column + 1) * CELL_PIXELS
    ]


def test_an_empty_scene_is_its_ground():
    assert (render([Scene((), 230)]) == 230).all()


@pytest.mark.parametrize(("shape", "large"), itertools.product(range(len(SHAPES)), [False, True]))
def test_a_thing_fills_the_middle_of_its_cell_and_nothing_else(shape, large):
    (image,) = render([Scene((Thing(2, shape, large, row=1, column=2),), 220)])
    assert image.shape == (IMAGE_PIXELS, IMAGE_PIXELS, 3)
    here = cell(image, 1, 2)
    covered = (here != 220).any(axis=-1)
    assert covered[5:7, 5:7].all()
    assert not covered[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert len(np.unique(here[covered], axis=0)) == 1
    image = image.copy()
    cell(image, 1, 2)[:] = 220
    assert (image == 220).all()


def test_no_two_looks_are_the_same():
    looks = [
        Thing(c, s, z, 0, 0) for c, s, z in itertools.product(range(len(COLOURS)), range(3), [False, True])
    ]
    images = render([Scene((thing,), 220) for thing in looks]).reshape(len(looks), -1)
    assert len(np.unique(images, axis=0)) == len(looks)


def test_small_things_cover_less():
    for shape in range(3):
        small, large = render([Scene((Thing(0, shape, size, 0, 0),), 220) for size in (False, True)])
        assert 1.5 * (small != 220).sum() < (large != 220).sum()


def test_many_scenes_at_once_are_each_as_alone():
    scenes = draw_scenes(50, np.random.default_rng(0))
    together = render(scenes)
    for scene, image in zip(scenes, together, strict=True):
        assert (render([scene])[0] == image).all()
