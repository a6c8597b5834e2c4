"""Captions of images, read from the forms in which they are published."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from amad.data.paths import inside
from amad.data.problems import Problems, iter_present
from amad.errors import DataError
from amad.metrics.documents import field, iter_members, iter_rows, read_head


@dataclass(frozen=True, slots=True)
class CaptionExample:
    """An image and what people said of it.

    Attributes:
        image: The file; None if the set was read without images.
        image_id: Unique within its set; what a COCO results file calls the image.
        captions: Without surrounding white space, in the order of the file; empty for a test split.
        split: As the file says, with ``restval`` counted as ``train``; None where it says nothing.
        image_name: The file's name as the set gives it, with folders where the set has them.
    """

    image: Path | None
    image_id: int | str
    captions: tuple[str, ...]
    split: str | None
    image_name: str

    @property
    def stem(self) -> str:
        """The image's file name without folders and ending, by which region features are filed."""
        return PurePosixPath(self.image_name).stem

    @property
    def entry(self) -> str:
        """Where it stands in its file."""
        return f"image {self.image_name}"

    @property
    def targets(self) -> tuple[str, ...]:
        """The captions."""
        return self.captions


def read_coco_captions(
    path: Path, images: Path | None = None, split: str | None = None, problems: Problems | None = None
) -> Iterator[CaptionExample]:
    """The official COCO form, plain or .gz: ``images`` and ``annotations``, in the order of the images.

    Examples come one after another; of the file only names and captions are held.

    A file without ``annotations`` is a test split: its examples have no captions.

    Args:
        path: The file.
        images: Folder that every ``file_name`` is in; without it examples have no image.
        split: Read only images whose ``split`` is this; official files have one split and no such key.
        problems: What to do about bad examples; refuse the first when absent.

    Raises:
        DataError: if the file is missing, truncated or malformed; an image is listed twice, is missing or has
            no caption; a caption is empty or its image is not listed; or the split is empty.
    """
    problems = problems or Problems()
    found: set[str] = set()
    return _checked(_coco(path, images, split, found, problems), path, split, found, problems)


def _coco(
    path: Path, images: Path | None, split: str | None, found: set[str], problems: Problems
) -> Iterator[CaptionExample]:
    listed: dict[int | str, Mapping[str, Any]] = {}
    # Lists may come in any order.
    said: list[tuple[str, int | str, str]] = []
    has_captions = "annotations" in read_head(path)
    counts = {"images": 0, "annotations": 0}
    for key, row in iter_members(path, ("images",), optional=("annotations",)):
        i, counts[key] = counts[key], counts[key] + 1
        entry = f"images item {i}" if key == "images" else f"annotation {row.get('id', f'item {i}')}"
        where = f"{path}, {entry}"
        with problems.at(path, entry):
            if key == "images":
                image_id = field(row, "id", (int, str), where)
                _refuse_twice(image_id, listed, where)
                listed[image_id] = {name: row[name] for name in _OF_AN_IMAGE if name in row}
            else:
                image_id = field(row, "image_id", (int, str), where)
                said.append((entry, image_id, _caption(row.get("caption"), where)))
    found |= {row["split"] for row in listed.values() if isinstance(row.get("split"), str)}
    if split is not None and listed and not found:
        raise DataError(
            f"{path}: no image has a 'split', so {split!r} cannot be picked. Leave the split out: the file is one."
        )
    captions: dict[int | str, list[str]] = {}
    for entry, image_id, text in said:
        with problems.at(path, entry):
            if image_id not in listed:
                raise DataError(
                    f"{path}, {entry}: a caption needs an image, but image {image_id} is not listed under 'images'. "
                    "Remove the caption or list the image."
                )
            captions.setdefault(image_id, []).append(text)
    for image_id, row in listed.items():
        if split is not None and row.get("split") != split:
            continue
        example = None
        with problems.at(path, f"image {image_id}"):
            where = f"{path}, image {image_id}"
            own_captions = captions.get(image_id, [])
            if has_captions:
                _refuse_none(own_captions, where)
            name = field(row, "file_name", str, where)
            own = field(row, "split", str, where) if "split" in row else None
            example = _example(name, images, image_id, own_captions, own, where)
        if example is not None:
            yield example


_OF_AN_IMAGE = ("file_name", "split")


def read_karpathy(
    path: Path, split: str, images: Path | None = None, problems: Problems | None = None
) -> Iterator[CaptionExample]:
    """Karpathy's form, ``dataset_coco.json``: ``images``, each with ``filename``, ``split`` and ``sentences``.

    Examples come one after another. The image's id is ``cocoid`` where there is one, else ``imgid``, else the file
    name without its ending.

    Args:
        path: The file, plain or .gz.
        split: ``train``, which includes ``restval`` as in VL-T5 and BLIP; ``val`` or ``test``.
        images: Folder that every ``filepath/filename`` is in (``filename`` where there is no ``filepath``).
        problems: What to do about bad examples; refuse the first when absent.

    Raises:
        DataError: as ``read_coco_captions``.
    """
    problems = problems or Problems()
    found: set[str] = set()
    return _checked(_karpathy(path, split, images, found, problems), path, split, found, problems)


def _karpathy(
    path: Path, split: str, images: Path | None, found: set[str], problems: Problems
) -> Iterator[CaptionExample]:
    seen: set[int | str] = set()
    for i, row in enumerate(iter_rows(path, "images")):
        example = None
        where = f"{path}, images item {i}"
        with problems.at(path, f"images item {i}"):
            own = field(row, "split", str, where)
            own = "train" if own == "restval" else own
            name = field(row, "filename", str, where)
            if "filepath" in row:
                name = f"{field(row, 'filepath', str, where)}/{name}"
            ids = [field(row, key, (int, str), where) for key in ("cocoid", "imgid") if key in row]
            image_id = ids[0] if ids else PurePosixPath(name).stem
            _refuse_twice(image_id, seen, where)
            seen.add(image_id)
            found.add(own)
            if own != split:
                continue
            said = []
            for j, sentence in enumerate(field(row, "sentences", list, where)):
                with problems.at(path, f"images item {i}, sentence {j}"):
                    raw = sentence.get("raw") if isinstance(sentence, dict) else None
                    said.append(_caption(raw, f"{where}, sentence {j}"))
            _refuse_none(said, where)
            example = _example(name, images, image_id, said, own, where)
        if example is not None:
            yield example


def read_blip_captions(
    path: Path, images: Path | None = None, split: str | None = None, problems: Problems | None = None
) -> Iterator[CaptionExample]:
    """BLIP's form: one list with ``image`` (a path below ``images``) and ``caption``, one string or several.

    Examples come one after another, when the file was read to its end; only names and captions are held. Rows of one
    string, as in the training file, are gathered by image, in the order of each image's first
    row. The image's id is the number in its COCO file name, or of which its name consists, as BLIP takes it;
    else the file name without its ending.

    Args:
        path: The file, plain or .gz.
        images: Folder that every ``image`` is in; without it examples have no image.
        split: What the examples' ``split`` is; the file itself does not say.
        problems: What to do about bad examples; refuse the first when absent.

    Raises:
        DataError: as ``read_coco_captions``; rows of several captions may list an image only once.
    """
    problems = problems or Problems()
    return _checked(_blip(path, images, split, problems), path, split, (), problems)


def _blip(path: Path, images: Path | None, split: str | None, problems: Problems) -> Iterator[CaptionExample]:
    gathered: dict[str, list[str]] = {}
    whole: set[str] = set()
    for i, row in enumerate(iter_rows(path)):
        where = f"{path}, item {i}"
        with problems.at(path, f"item {i}"):
            name = field(row, "image", str, where)
            caption = field(row, "caption", (str, list), where)
            if name in whole or (isinstance(caption, list) and name in gathered):
                _refuse_twice(name, {name}, where)
            if isinstance(caption, str):
                text = _caption(caption, where)
                gathered.setdefault(name, []).append(text)
                continue
            said = []
            for j, text in enumerate(caption):
                with problems.at(path, f"item {i}, caption {j}"):
                    said.append(_caption(text, f"{where}, caption {j}"))
            _refuse_none(said, where)
            gathered[name] = said
            whole.add(name)

    names: dict[int | str, str] = {}
    for name, said in gathered.items():
        example = None
        entry = f"image {name}"
        with problems.at(path, entry):
            image_id = _blip_id(name)
            if image_id in names:
                raise DataError(
                    f"{path}: {names[image_id]} and {name} have the same image id {image_id}. Rename one of them."
                )
            names[image_id] = name
            example = _example(name, images, image_id, said, split, f"{path}, {entry}")
        if example is not None:
            yield example


_COCO_NUMBER = re.compile(r"(?:COCO_\w+_)?(\d+)")


def _blip_id(name: str) -> int | str:
    stem = PurePosixPath(name).stem
    match = _COCO_NUMBER.fullmatch(stem)
    return int(match[1]) if match else stem


def _example(
    name: str, images: Path | None, image_id: int | str, said: list[str], split: str | None, where: str
) -> CaptionExample:
    path = inside(images, name, where) if images is not None else None
    return CaptionExample(path, image_id, tuple(said), split, name)


def _caption(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{where}: a caption must be a string with text but is {text!r:.80}. Mend or remove it."
        )
    return text.strip()


def _refuse_twice(image: int | str, seen: Iterable[int | str], where: str) -> None:
    if image in seen:
        raise DataError(
            f"{where}: every image must be listed once but {image} was listed before. Remove one."
        )


def _refuse_none(said: list[str], where: str) -> None:
    if not said:
        raise DataError(f"{where}: an image needs a caption and has none. Remove it or caption it.")


def _checked(
    examples: Iterable[CaptionExample],
    path: Path,
    split: str | None,
    found: Iterable[str],
    problems: Problems,
) -> Iterator[CaptionExample]:
    """The examples whose image is there, or that have none; ``found`` has the splits of the file at the end."""
    empty = True
    for example in iter_present(examples, path, problems):
        empty = False
        yield example
    if empty:
        which = f"split {split!r}" if split is not None else "the file"
        bad = problems.counts().get(str(path), 0)
        raise DataError(
            f"{path}: {which} must have an image with captions and has none (splits found: {sorted(found)}, "
            f"bad examples left out: {bad}). Check the file and the split."
        )
