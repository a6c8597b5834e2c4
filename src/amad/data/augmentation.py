"""Another view of a training image in every epoch."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from amad.data.images import Pixels
from amad.data.sampling import uniform

_VIEWS = int.from_bytes(b"views")
_TRIES = 10
OPERATIONS = (
    "identity",
    "brightness",
    "sharpness",
    "autocontrast",
    "equalize",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
)
"""Of BLIP's RandAugment. At its strength, 5 of 10, the factor of brightness and of sharpness is 1: nothing changes."""

_N_OPERATIONS = 2
_SHEAR, _PIXELS, _DEGREES = 0.15, 5.0, 15.0
_GREY = (128, 128, 128)
_NARROWEST, _WIDEST = math.log(3 / 4), math.log(4 / 3)


class CropAndFlip:
    """A part of the image, scaled to one size, and half of the time its mirror image.

    The part has from ``smallest`` of the image's area to all of it and sides between 3:4 and 4:3, as in the training
    of BLIP (data/__init__.py of its code: RandomResizedCrop of scale 0.5 to 1, bicubic, and RandomHorizontalFlip).
    BLIP's third step is :func:`distort`.

    The same keys always give the same view, whatever was read before.

    Args:
        height: Of the result.
        width: Of the result.
        smallest: Least share of the area.
        seed: Of the views.
        randaugment: Distort the view as well.
    """

    def __init__(
        self, height: int, width: int, smallest: float = 0.5, seed: int = 0, randaugment: bool = False
    ) -> None:
        self.size = (width, height)
        self.smallest = smallest
        self.seed = seed
        self.randaugment = randaugment

    def __call__(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """The view of an image that an item has in an epoch."""
        draws = self._draws(epoch, index)
        image = Image.fromarray(pixels)
        part = image.crop(self._part(image.size, draws)).resize(self.size, Image.Resampling.BICUBIC)
        if next(draws) < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment:
            part = distort(part, draws)
        return np.asarray(part)

    def _draws(self, *keys: int) -> Iterator[float]:
        # What is asked of an item is drawn by the same seed, epoch and index, and must not be told from its view.
        number = 0
        while True:
            yield uniform(_VIEWS, self.seed, *keys, number)
            number += 1

    def _part(self, size: tuple[int, int], draws: Iterator[float]) -> tuple[int, int, int, int]:
        """Left, upper, right, lower."""
        width, height = size
        for _ in range(_TRIES):
            area = width * height * (self.smallest + (1 - self.smallest) * next(draws))
            ratio = math.exp(_NARROWEST + (_WIDEST - _NARROWEST) * next(draws))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                left = int(next(draws) * (width - columns + 1))
                upper = int(next(draws) * (height - rows + 1))
                return left, upper, left + columns, upper + rows
        # An image far from square: the middle of it, as near to these sides as it goes.
        columns = min(width, round(height * 4 / 3))
        rows = min(height, round(width * 4 / 3))
        left, upper = (width - columns) // 2, (height - rows) // 2
        return left, upper, left + columns, upper + rows


def distort(image: Image.Image, draws: Iterator[float]) -> Image.Image:
    """Two of :data:`OPERATIONS`, drawn with replacement, each done half of the time.

    RandAugment (Cubuk et al. 2020, arXiv:1909.13719) as BLIP has it (transform/randaugment.py of its code): strength 5
    of 10, which shears by 0.15, shifts by 5 pixels, turns by 15 degrees, to either side; what comes into view is grey.

    Args:
        image: An RGB image.
        draws: Numbers in [0, 1).
    """
    for _ in range(_N_OPERATIONS):
        name = OPERATIONS[int(next(draws) * len(OPERATIONS))]
        if next(draws) < 0.5:
            image = _operate(name, image, 1 if next(draws) < 0.5 else -1)
    return image


def _operate(name: str, image: Image.Image, sign: int) -> Image.Image:
    if name == "autocontrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "rotate":
        return image.rotate(sign * _DEGREES, Image.Resampling.BILINEAR, fillcolor=_GREY)
    affine = {
        "shear-x": (1, sign * _SHEAR, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, sign * _SHEAR, 1, 0),
        "translate-x": (1, 0, sign * _PIXELS, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, sign * _PIXELS),
    }.get(name)
    if affine is None:
        return image
    return image.transform(
        image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=_GREY
    )
