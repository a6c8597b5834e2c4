"""Names of files in data: they stay inside their folder, and what is written appears whole or not at all."""

import json
import os
import shutil
import string
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import uuid4

from amad.errors import DataError


def inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``, where ``name`` came out of a data file and must not lead elsewhere.

    Decided by the name alone: a link that the user made inside the folder is the user's choice.

    Raises:
        DataError: naming ``where``, if ``name`` is empty, absolute, or has a ``..`` in it.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root
    if not name or "\0" in name or leaves or ".." in posix.parts or ".." in windows.parts:
        raise DataError(
            f"{where}: the file name {name!r} leaves the data folder {folder}. "
            "Names must be relative and without '..'; mend the file or the template."
        )
    return folder / name


class ImageFolders:
    """One or more folders of images, such as COCO's train2014 and val2014 or Visual Genome's two parts.

    Args:
        folders: Where to look, in this order; None for no images.
    """

    def __init__(self, folders: Path | Sequence[Path] | None) -> None:
        self.folders = [folders] if isinstance(folders, Path) else list(folders or ())
        self._listings: dict[Path, set[str]] = {}

    def find(self, name: str, where: str) -> Path | None:
        """The image of this name: in the only folder, whether it is there or not, or in the first that has it.

        None without folders.

        Raises:
            DataError: naming ``where``, if the name leads elsewhere, a folder of several cannot be read, or none
                of several has the image.
        """
        paths = [inside(folder, name, where) for folder in self.folders]
        if len(paths) < 2:
            return paths[0] if paths else None
        for path in paths:
            if path.name in self._names(path.parent, where):
                return path
        raise DataError(
            f"{where}: no image {name} in {', '.join(map(str, self.folders))}. Check the image folders and the "
            "file name template, or fetch the images."
        )

    def missing(self, names: Iterable[str], where: str) -> dict[str, str]:
        """What is wrong with each of these names: it leads elsewhere, or its image is not there.

        Raises:
            DataError: naming ``where``, if a folder cannot be read.
        """
        for folder in self.folders:
            self._names(folder, where)
        wrong = {}
        for name in names:
            try:
                path = self.find(name, where)
            except DataError as error:
                wrong[name] = str(error)
                continue
            if path is not None and path.name not in self._names(path.parent, where):
                wrong[name] = (
                    f"{path}: no such image. Check the image folder and the file name template, or fetch the images."
                )
        return wrong

    def _names(self, folder: Path, where: str) -> set[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = set(os.listdir(folder))
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | NotADirectoryError)
                if gone and folder not in self.folders:
                    # A name with a folder of its own, which another of the folders may have.
                    self._listings[folder] = set()
                    return self._listings[folder]
                raise DataError(
                    f"{folder}: the folder of images cannot be read ({error.strerror}); {where} names images in it. "
                    "Check the image folder and the file name template."
                ) from None
        return self._listings[folder]


def fill_template(template: str, where: str, **values: Any) -> str:
    """``template`` with its ``{name}`` or ``{name:012d}`` replaced; nothing else of str.format is allowed.

    Raises:
        DataError: if the template asks for another name, or a value does not fit its format.
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise DataError(f"{where}: the file name template {template!r} is malformed ({error}).") from None
    # A format inside a format could reach into the values.
    names = {name if "{" not in (spec or "") else f"{name}:{spec}" for _, name, spec, _ in fields}
    unknown = sorted(str(name) for name in names if name not in values)
    if unknown:
        raise DataError(
            f"{where}: the file name template {template!r} asks for {unknown} but may only use "
            f"{sorted(values)}."
        )
    try:
        return template.format(**values)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: the values {values} do not fit the file name template {template!r} ({error}). "
            "Give a template such as '{image_id}.png'."
        ) from None


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` when the block ends well, and disappears when it does not.

    Raises:
        DataError: if ``out`` is there already and is not an empty folder, or cannot be made.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise DataError(
            f"{out}: is there already and not empty. Give another folder, or remove this one first."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise DataError(
            f"{out}: cannot be made ({error.strerror}). Give a folder that you may write to."
        ) from None
    try:
        yield temporary
        # mkdtemp makes folders that only their owner may read.
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """``write_whole`` of one JSON document per line, in ASCII: other texts may hold what breaks a line, or nothing."""
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that it is never there in part."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write a file under, beside its place, which it takes at the end; no other process has that name."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.new")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
