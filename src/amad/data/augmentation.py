"""Another view of a training image in every epoch."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from amad.data.images import Pixels
from amad.data.sampling import uniform

_TRIES = 10
_NARROWEST, _WIDEST = math.log(3 / 4), math.log(4 / 3)


class CropAndFlip:
    """A part of the image, scaled to one size, and half of the time its mirror image.

    The part has from ``smallest`` of the image's area to all of it and sides between 3:4 and 4:3, as in the training
    of BLIP (data/__init__.py of its code: RandomResizedCrop of scale 0.5 to 1, bicubic, and RandomHorizontalFlip).
    BLIP's third step, RandAugment of two of ten operations, is left out: it needs torchvision.

    The same keys always give the same view, whatever was read before.

    Args:
        height: Of the result.
        width: Of the result.
        smallest: Least share of the area.
        seed: Of the views.
    """

    def __init__(self, height: int, width: int, smallest: float = 0.5, seed: int = 0) -> None:
        self.size = (width, height)
        self.smallest = smallest
        self.seed = seed

    def __call__(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """The view of an image that an item has in an epoch."""
        draws = self._draws(epoch, index)
        image = Image.fromarray(pixels)
        part = image.crop(self._part(image.size, draws)).resize(self.size, Image.Resampling.BICUBIC)
        if next(draws) < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(part)

    def _draws(self, *keys: int) -> Iterator[float]:
        number = 0
        while True:
            yield uniform(self.seed, *keys, number)
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
