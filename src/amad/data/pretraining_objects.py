"""Objects with names in images: what grounded pre-training tasks ask for."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from amad.data.caption_files import CaptionExample
from amad.data.regions import Regions
from amad.errors import DataError
from amad.metrics.documents import field, iter_members

_MOST_PIXELS = 1e9

NamedToken = tuple[int, str]
"""The number of a visual token, which ``<vis_extra_id_number>`` names, and what is to be seen there."""


GroundedTask = Literal["describe", "find"]
"""Asking for the name at a token, and for the token of a name."""

GROUNDED: tuple[GroundedTask, ...] = ("describe", "find")


class ObjectSource(Protocol):
    """Knows the objects of images."""

    @property
    def n_tokens(self) -> int:
        """How many visual tokens an image has at most."""

    def has(self, example: CaptionExample, task: GroundedTask) -> bool:
        """Whether an image has an object to ask for; reads no file."""

    def named(self, example: CaptionExample, task: GroundedTask) -> tuple[NamedToken, ...]:
        """The objects of an image that can be asked for."""

    def phrases(self) -> list[str]:
        """Everything that a name can be made of."""


class RegionNames:
    """The objects that a detector named, as VL-T5 uses them: of every region, attribute and object, as in "red bus".

    Every region can be asked for its name and every name for its region, also where several look alike.

    Args:
        regions: Features with ``obj_id`` and ``attr_id``.
        objects: The detector's object classes, one per line; of synonyms ("a,b") the first counts.
        attributes: Its attribute classes, likewise.

    Raises:
        DataError: if a file of classes is missing, is not text or has an empty line.
    """

    def __init__(self, regions: Regions, objects: Path, attributes: Path) -> None:
        self.regions = regions
        self._objects, self._attributes = read_classes(objects), read_classes(attributes)

    @property
    def n_tokens(self) -> int:
        """As many as every image has regions; 100 where the number differs from image to image."""
        return self.regions.n_regions or 100

    def has(self, example: CaptionExample, task: GroundedTask) -> bool:
        """True: every image has regions."""
        return True

    def named(self, example: CaptionExample, task: GroundedTask) -> tuple[NamedToken, ...]:
        """The regions of an image, in their order.

        Raises:
            DataError: if it has no entry, or a class has no name.
        """
        names = []
        for number, (object_id, attribute_id) in enumerate(self.regions.classes(example.stem)):
            if not (0 <= object_id < len(self._objects) and 0 <= attribute_id < len(self._attributes)):
                raise DataError(
                    f"image {example.stem}, region {number}: classes must be below {len(self._objects)} (objects) "
                    f"and {len(self._attributes)} (attributes) but are {object_id} and {attribute_id}. Give the "
                    "detector's own lists of classes."
                )
            names.append((number, f"{self._attributes[attribute_id]} {self._objects[object_id]}"))
        return tuple(names)

    def phrases(self) -> list[str]:
        """Everything that a name can be made of."""
        return [*self._objects, *self._attributes]


class BoxNames:
    """Objects of COCO's instance annotations on a square grid of patches.

    Images are known by their file names. An object is at the patch in which the centre of its box lies. A patch can
    be asked for its name if all objects at it have the same, and a name for its patch if all objects of that name
    are at one. Crowds are left out.

    Args:
        instances: Official files, plain or .gz: ``images`` (id, file_name, width, height), ``annotations``
            (image_id, category_id, bbox in pixels as x, y, width, height) and ``categories`` (id, name).
        grid: Rows, and columns, of patches.

    Raises:
        DataError: if a file is missing or malformed, or a box is of an image or a category that is not listed.
    """

    def __init__(self, instances: Sequence[Path], grid: int) -> None:
        self.grid = grid
        self._objects = {stem: named for path in instances for stem, named in _by_image(path, grid).items()}

    @property
    def n_tokens(self) -> int:
        """The patches of an image."""
        return self.grid**2

    def has(self, example: CaptionExample, task: GroundedTask) -> bool:
        """Whether the file has an unambiguous object of the image."""
        return bool(self.named(example, task))

    def named(self, example: CaptionExample, task: GroundedTask) -> tuple[NamedToken, ...]:
        """The unambiguous objects of an image, by their patch; none where the file has none."""
        found = self._objects.get(example.stem)
        return () if found is None else found[task]

    def phrases(self) -> list[str]:
        """Every name that can be asked for."""
        tokens = (
            token for found in self._objects.values() for several in found.values() for token in several
        )
        return sorted({name for _, name in tokens})


def read_classes(path: Path) -> list[str]:
    """The names of a detector's classes, one per line, lower-cased; of synonyms ("a,b") the first.

    Raises:
        DataError: if the file is missing, is not text, or has an empty line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list of classes cannot be read ({error}). Give a text file with one class per line."
        ) from None
    names = [line.split(",")[0].strip().lower() for line in lines]
    if not names or not all(names):
        where = names.index("") + 1 if names else 1
        raise DataError(f"{path}, line {where}: a class must have a name and has none. Mend the file.")
    return names


def unambiguous(placed: Sequence[NamedToken]) -> dict[GroundedTask, tuple[NamedToken, ...]]:
    """Patches that have one name, to describe; names that have one patch, to find."""
    pairs = sorted(set(placed))
    names_at = Counter(token for token, _ in pairs)
    tokens_of = Counter(name for _, name in pairs)
    return {
        "describe": tuple(pair for pair in pairs if names_at[pair[0]] == 1),
        "find": tuple(pair for pair in pairs if tokens_of[pair[1]] == 1),
    }


def _by_image(path: Path, grid: int) -> dict[str, dict[GroundedTask, tuple[NamedToken, ...]]]:
    sizes: dict[int | str, tuple[float, float]] = {}
    stems: dict[int | str, str] = {}
    names: dict[int | str, str] = {}
    # Lists may come in any order; outlines, which are most of such a file, are not held.
    boxes: list[tuple[str, int | str, int | str, list[Any]]] = []
    counts = Counter[str]()
    for key, row in iter_members(path, ("images", "categories", "annotations")):
        where = f"{path}, {key} item {counts[key]}"
        counts[key] += 1
        if key == "images":
            width, height = (field(row, side, (int, float), where) for side in ("width", "height"))
            if not (0 < width < _MOST_PIXELS and 0 < height < _MOST_PIXELS):
                raise DataError(
                    f"{where}: an image must have a size but is {width!r:.20} x {height!r:.20} pixels. Mend the file."
                )
            image_id = field(row, "id", (int, str), where)
            sizes[image_id] = (float(width), float(height))
            stems[image_id] = PurePosixPath(field(row, "file_name", str, where)).stem
        elif key == "categories":
            names[field(row, "id", (int, str), where)] = field(row, "name", str, where)
        elif not row.get("iscrowd"):
            image_id = field(row, "image_id", (int, str), where)
            category = field(row, "category_id", (int, str), where)
            boxes.append((where, image_id, category, field(row, "bbox", list, where)))
    placed: dict[str, list[NamedToken]] = {}
    for where, image_id, category, box in boxes:
        if image_id not in sizes or category not in names:
            raise DataError(
                f"{where}: image {image_id} and category {category} must be listed in the same file. Mend the file."
            )
        token = _patch(box, sizes[image_id], grid, where)
        placed.setdefault(stems[image_id], []).append((token, names[category]))
    return {stem: unambiguous(found) for stem, found in placed.items()}


def _patch(box: list[Any], size: tuple[float, float], grid: int, where: str) -> int:
    """The patch, row by row, in which a box's centre lies."""
    if len(box) != 4 or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < _MOST_PIXELS
        for number in box
    ):
        raise DataError(
            f"{where}: bbox must be x, y, width and height in pixels but is {box!r:.80}. Mend the file."
        )
    x, y, width, height = box
    centre = (x + width / 2) / size[0], (y + height / 2) / size[1]
    if not all(0 <= part <= 1 for part in centre):
        raise DataError(
            f"{where}: the box {box} has its centre outside of the image of {size[0]:g} x {size[1]:g} pixels. Check "
            "that boxes are in pixels of that image."
        )
    column, row = (min(int(part * grid), grid - 1) for part in centre)
    return row * grid + column
