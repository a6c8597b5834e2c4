"""Scenes as pictures of 36 x 36 pixels: cells of 12 pixels, so patches of 6 or 12 fit the grid."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from amad.data.shapes_scene import GRID, SHAPES, Scene

CELL_PIXELS = 12
IMAGE_PIXELS = GRID * CELL_PIXELS
_SMALL_RADIUS, _LARGE_RADIUS = 3.2, 5.2

# In the order of COLOURS, far apart from each other and from the grey ground.
_RGB = np.array(
    [
        (220, 40, 40),
        (40, 180, 60),
        (40, 70, 220),
        (230, 210, 40),
        (150, 50, 190),
        (240, 140, 30),
        (40, 200, 210),
        (130, 80, 40),
    ],
    dtype=np.uint8,
)


def _stamp(shape: str, radius: float) -> Bool[np.ndarray, "row column"]:
    """Which pixels of a cell a shape covers."""
    centre = (CELL_PIXELS - 1) / 2
    down, right = np.mgrid[:CELL_PIXELS, :CELL_PIXELS] - centre
    if shape == "circle":
        return np.asarray(down**2 + right**2 <= radius**2)
    if shape == "square":
        return np.asarray(np.maximum(abs(down), abs(right)) <= 0.85 * radius)
    return np.asarray((abs(right) <= 0.6 * (down + radius)) & (down >= -radius) & (down <= 0.8 * radius))


# (shape, large, row, column)
_STAMPS = np.array([[_stamp(shape, radius) for radius in (_SMALL_RADIUS, _LARGE_RADIUS)] for shape in SHAPES])


def render(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "scene row column 3"]:
    """One picture per scene, without anti-aliasing."""
    grounds = np.array([scene.ground for scene in scenes], dtype=np.uint8)
    # (scene, grid row, pixel row, grid column, pixel column, channel)
    canvas = np.empty((len(scenes), GRID, CELL_PIXELS, GRID, CELL_PIXELS, 3), dtype=np.uint8)
    canvas[:] = grounds[:, None, None, None, None, None]
    things = np.array(
        [(index, *thing) for index, scene in enumerate(scenes) for thing in scene.things], dtype=np.int64
    ).reshape(-1, 6)
    scene, colour, shape, large, row, column = things.T
    covered = _STAMPS[shape, large][..., None]
    ground = grounds[scene][:, None, None, None]
    canvas[scene, row, :, column] = np.where(covered, _RGB[colour][:, None, None], ground)
    return canvas.reshape(len(scenes), IMAGE_PIXELS, IMAGE_PIXELS, 3)
