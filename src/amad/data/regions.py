"""Features of image regions: VL-T5's h5 files and LXMERT's tsv files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from amad.data.problems import Pictured
from amad.data.region_files import H5Regions, TsvRegions
from amad.data.waiting import Wait, unseen
from amad.errors import DataError

BOX_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class RegionFeatures:
    """What a detector saw in an image.

    Attributes:
        features: One row per region, float32.
        boxes: (x1, y1, x2, y2) of each region in parts of the image's width and height, from 0 to 1, float32.
        size: Width and height of the image in pixels.
    """

    features: Float[np.ndarray, "region feature"]
    boxes: Float[np.ndarray, "region 4"]
    size: tuple[int, int]


class Regions:
    """Region features by the image's file name without folders and ending.

    Files that end in ``.h5`` or ``.hdf5`` are VL-T5's: one group per image with ``features`` (region, feature),
    ``boxes`` (region, 4) in pixels, ``img_w`` and ``img_h``. Those that end in ``.tsv`` are LXMERT's: ten columns,
    arrays in base64. Both may be used from several processes, forked or spawned; nothing is kept in memory but
    the places of a tsv file's lines, which are found by reading it once.

    Args:
        paths: One or more files; an image is looked up in each in turn.
        n_regions: Regions that every image must have; any number when None.
        n_features: Length of a feature.

    Raises:
        DataError: if a file is missing, truncated or of another kind.
    """

    def __init__(
        self, paths: Path | Sequence[Path], n_regions: int | None = 36, n_features: int = 2048
    ) -> None:
        self.paths = [paths] if isinstance(paths, Path) else list(paths)
        if not self.paths:
            raise DataError("region features need a file and none is given. Give an h5 or a tsv file.")
        self.n_regions = n_regions
        self.n_features = n_features
        self._files = [_open_file(path) for path in self.paths]

    def __contains__(self, name: str) -> bool:
        return any(name in file for file in self._files)

    def check(self, name: str) -> None:
        """Look at an image's entry without reading its features.

        Raises:
            DataError: if there is none, or it has not the number or the length of features that it must have.
        """
        file = self._file(name)
        n_regions, n_features = file.size(name)
        expected = n_regions if self.n_regions is None else self.n_regions
        if (n_regions, n_features) != (expected, self.n_features) or n_regions == 0:
            raise DataError(
                f"{file.path}, {file.entry(name)}: must have {expected or 'some'} regions of {self.n_features} "
                f"features but has {n_regions} of {n_features}. Extract the features again, or say how many "
                "regions there are."
            )

    def __getitem__(self, name: str) -> RegionFeatures:
        """The regions of an image.

        Boxes may leave the image by one part in 100,000, as in VL-T5, and are cut to it.

        Raises:
            DataError: as ``check``; and if a number is not finite or a box leaves the image.
        """
        self.check(name)
        file = self._file(name)
        features, boxes, size = file.read(name)
        where = f"{file.path}, {file.entry(name)}"
        if min(size) < 1:
            raise DataError(f"{where}: an image must have a size but is {size[0]} x {size[1]} pixels.")
        boxes = boxes / np.array([*size, *size], dtype=np.float32)
        if not np.isfinite(features).all() or not np.isfinite(boxes).all():
            raise DataError(f"{where}: a feature or a box is not finite. Extract the features again.")
        if boxes.min() < -BOX_TOLERANCE or boxes.max() > 1 + BOX_TOLERANCE:
            raise DataError(
                f"{where}: a box must lie inside of the image of {size[0]} x {size[1]} pixels but reaches from "
                f"{boxes.min():.4f} to {boxes.max():.4f} of it. Check that boxes are in pixels of that image."
            )
        return RegionFeatures(features, boxes.clip(0, 1), size)

    def classes(self, name: str) -> list[tuple[int, int]]:
        """Object and attribute class of each region of an image, as the detector numbers them.

        Raises:
            DataError: as ``check``; and if the file has not one of each per region.
        """
        self.check(name)
        file = self._file(name)
        n_regions, _ = file.size(name)
        objects, attributes = file.classes(name)
        if (len(objects), len(attributes)) != (n_regions, n_regions):
            raise DataError(
                f"{file.path}, {file.entry(name)}: each of {n_regions} regions must have an object and an attribute "
                f"class, and there are {len(objects)} and {len(attributes)}. Extract the features again."
            )
        return list(zip(objects, attributes, strict=True))

    def _file(self, name: str) -> H5Regions | TsvRegions:
        for file in self._files:
            if name in file:
                return file
        raise DataError(
            f"{', '.join(map(str, self.paths))}: no features of image {name}. "
            "Check that the file belongs to the split, and that it names images by file name without ending."
        )


def lacking_regions(
    names: Sequence[str], regions: Regions, whole: bool, wait: Wait = unseen
) -> dict[str, str]:
    """What is wrong with the region features of each image that has no good ones, found before any training.

    Args:
        names: File names of the images.
        regions: The region features.
        whole: Read every feature and box. Otherwise only their number and size are looked at, the first image
            without good ones ends the search, and a number that is not finite or a box that leaves the image is
            found when it is needed.
        wait: Shows how far it is.
    """
    look = regions.__getitem__ if whole else regions.check
    wrong: dict[str, str] = {}
    with wait("reading region features", len(names)) as advance:
        for done, name in enumerate(names, start=1):
            try:
                look(PurePosixPath(name).stem)
            except DataError as error:
                wrong[name] = str(error)
                if not whole:
                    break
            advance(done, len(names))
    return wrong


def visual_inputs(
    example: Pictured, open_image: Callable[[Path], Any], regions: Regions | None
) -> dict[str, Any]:
    """What an item has of its image: ``vis_feats`` and ``boxes``, or ``image``, or nothing."""
    if regions is not None:
        found = regions[example.stem]
        return {"vis_feats": found.features, "boxes": found.boxes}
    return {} if example.image is None else {"image": open_image(example.image)}


def _open_file(path: Path) -> H5Regions | TsvRegions:
    kinds: dict[str, type[H5Regions] | type[TsvRegions]] = {
        ".h5": H5Regions,
        ".hdf5": H5Regions,
        ".tsv": TsvRegions,
    }
    if path.suffix not in kinds:
        raise DataError(
            f"{path}: region features must be in a file that ends in .h5, .hdf5 or .tsv. Rename or convert it."
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the path of an h5 or a tsv file of region features.")
    return kinds[path.suffix](path)
