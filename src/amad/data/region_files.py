"""The files that region features are published in: VL-T5's h5, LXMERT's tsv."""

import base64
import os
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from jaxtyping import Float

from amad.errors import DataError

TSV_COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)

Arrays = tuple[Float[np.ndarray, "region feature"], Float[np.ndarray, "region 4"], tuple[int, int]]


# What h5py raises on a file whose bytes were damaged.
_DAMAGE = (KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError)


class H5Regions:
    """VL-T5's form. Each process opens the file for itself; none is open while a process forks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._group("")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None}

    def __contains__(self, name: str) -> bool:
        if not name:
            return False
        try:
            return name in self._group("")
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}: what images it has cannot be read ({error}). Fetch it again."
            ) from None

    def entry(self, name: str) -> str:
        """Where an image stands in the file."""
        return f"image {name}"

    def size(self, name: str) -> tuple[int, int]:
        """Number of regions of an image and length of a feature, found without reading the features.

        Raises:
            DataError: if its entry contradicts itself.
        """
        group = self._group(name)
        features: tuple[int, ...]
        features, boxes = (
            tuple(getattr(self._get(group, key, name), "shape", ())) for key in ("features", "boxes")
        )
        if len(features) != 2 or boxes != (features[0], 4):
            raise DataError(
                f"{self.path}, image {name}: features (region, feature) and boxes (region, 4) must agree but are "
                f"{features} and {boxes}. Extract the features again."
            )
        return int(features[0]), int(features[1])

    def read(self, name: str) -> Arrays:
        """Features, boxes in pixels, and the image's width and height.

        Raises:
            DataError: if the entry cannot be read.
        """
        group = self._group(name)
        try:
            features, boxes = (
                np.asarray(self._get(group, key, name)[()], dtype=np.float32) for key in ("features", "boxes")
            )
            width, height = (int(self._get(group, key, name)[()]) for key in ("img_w", "img_h"))
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}, image {name}: cannot be read ({error}). Fetch the file again."
            ) from None
        return features, boxes, (width, height)

    def classes(self, name: str) -> tuple[list[int], list[int]]:
        """Object and attribute classes of an image's regions.

        Raises:
            DataError: if the entry has none, or they cannot be read.
        """
        group = self._group(name)
        try:
            objects, attributes = (
                np.asarray(self._get(group, key, name)[()]).reshape(-1).tolist()
                for key in ("obj_id", "attr_id")
            )
            return [int(one) for one in objects], [int(one) for one in attributes]
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}, image {name}: classes cannot be read ({error}). Fetch the file again."
            ) from None

    def close(self) -> None:
        """Close the file until it is needed again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _get(self, group: Any, key: str, name: str) -> Any:
        try:
            if key in group:
                return group[key]
            found = list(getattr(group, "keys", list)())
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}, image {name}: cannot be read ({error}). Fetch the file again."
            ) from None
        raise DataError(f"{self.path}, image {name}: has no {key!r} but {found}.")

    def _group(self, name: str) -> Any:
        """The group of an image; the root for the empty name."""
        if self._handle is None:
            try:
                import h5py
            except ImportError:
                raise DataError(f"{self.path}: reading it needs h5py. Install amad[regions].") from None
            try:
                self._handle = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path}: not a whole h5 file ({error}). Fetch it again.") from None
            _OPEN.add(self)
        try:
            return self._handle[name] if name else self._handle
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}, image {name}: cannot be read ({error}). Fetch the file again."
            ) from None


_OPEN: WeakSet[H5Regions] = WeakSet()


def _close_all() -> None:
    for file in list(_OPEN):
        file.close()


# A forked process would share the parent's HDF5 state, file descriptors included.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all)


class TsvRegions:
    """LXMERT's form: where each image's line begins, and what is wrong with it if anything is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, tuple[int, int, int, int, str | None]] = {}
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                self._index(line, offset, number)
                offset += len(line)
        if not self._lines:
            raise DataError(f"{path}: must have a line per image but is empty. Fetch it again.")

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def entry(self, name: str) -> str:
        """Where an image stands in the file."""
        return f"line {self._lines[name][1]}"

    def size(self, name: str) -> tuple[int, int]:
        """Number of regions of an image and length of a feature, found without reading the features.

        Raises:
            DataError: if its entry contradicts itself.
        """
        _, _, n_regions, n_features, problem = self._lines[name]
        if problem is not None:
            raise DataError(problem)
        return n_regions, n_features

    def read(self, name: str) -> Arrays:
        """Features, boxes in pixels, and the image's width and height.

        Raises:
            DataError: if the entry cannot be read.
        """
        offset, number, n_regions, n_features, _ = self._lines[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            row = dict(zip(TSV_COLUMNS, file.readline().rstrip(b"\r\n").split(b"\t"), strict=False))
        try:
            features, boxes = (
                np.frombuffer(base64.b64decode(row[key], validate=True), dtype="<f4").reshape(
                    n_regions, width
                )
                for key, width in (("features", n_features), ("boxes", 4))
            )
            size = (int(row["img_w"]), int(row["img_h"]))
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{self.path}, line {number}: cannot be decoded ({error}). Fetch the file again."
            ) from None
        return features.astype(np.float32), boxes, size

    def classes(self, name: str) -> tuple[list[int], list[int]]:
        """Object and attribute classes of an image's regions.

        Raises:
            DataError: if they cannot be decoded.
        """
        offset, number, *_ = self._lines[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            row = dict(zip(TSV_COLUMNS, file.readline().rstrip(b"\r\n").split(b"\t"), strict=False))
        try:
            objects, attributes = (
                np.frombuffer(base64.b64decode(row[key], validate=True), dtype="<i8").tolist()
                for key in ("objects_id", "attrs_id")
            )
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{self.path}, line {number}: classes cannot be decoded ({error}). Fetch the file again."
            ) from None
        return objects, attributes

    def _index(self, line: bytes, offset: int, number: int) -> None:
        where = f"{self.path}, line {number}"
        columns = line.rstrip(b"\r\n").split(b"\t")
        try:
            name = columns[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: the image's name is not UTF-8 ({error}). Fetch the file again."
            ) from None
        n_regions = n_features = 0
        problem = None
        if len(columns) != len(TSV_COLUMNS):
            problem = (
                f"{where}: must have {len(TSV_COLUMNS)} columns but has {len(columns)}. Fetch the file again."
            )
        elif name in self._lines:
            problem = (
                f"{where}: image {name} was listed before, in {self.entry(name)}. Remove one of the lines."
            )
        else:
            row = dict(zip(TSV_COLUMNS, columns, strict=True))
            count = row["num_boxes"]
            n_regions = int(count) if count.isdigit() else 0
            n_boxes, n_numbers = (_decoded_bytes(row[key]) // 4 for key in ("boxes", "features"))
            n_features = n_numbers // max(n_regions, 1)
            if n_boxes != 4 * n_regions or n_numbers != n_regions * n_features:
                problem = (
                    f"{where}: num_boxes is {count.decode(errors='replace')!r:.20} but there are {n_boxes} box "
                    f"coordinates and {n_numbers} feature values. Fetch the file again."
                )
        self._lines[name] = (offset, number, n_regions, n_features, problem)


def _decoded_bytes(text: bytes) -> int:
    """How many bytes a text in base64 stands for."""
    return len(text) * 3 // 4 - text.count(b"=", max(0, len(text) - 2))
