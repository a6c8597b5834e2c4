"""Sentences with their translation and their image, read from the files of Multi30K, task 1."""

import codecs
import contextlib
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from amad.data.paths import inside
from amad.data.problems import Problems, iter_present
from amad.errors import DataError


@dataclass(frozen=True, slots=True)
class TranslationExample:
    """A sentence, its translation and the image that both describe.

    Attributes:
        source: Without surrounding white space, otherwise as written.
        target: Likewise.
        image: The file; None if the set was read without images.
        line: Where it stands in every file of the split, counted from 1.
        image_name: The file's name in the list of images; None if the set was read without one.
    """

    source: str
    target: str
    image: Path | None
    line: int
    image_name: str | None = None

    @property
    def stem(self) -> str:
        """The image's file name without folders and ending, by which region features are filed; "" without one."""
        return PurePosixPath(self.image_name or "").stem

    @property
    def entry(self) -> str:
        """Where it stands in every file of the split."""
        return f"line {self.line}"

    @property
    def targets(self) -> tuple[str, ...]:
        """The translation."""
        return (self.target,)


def read_multi30k(
    source: Path,
    target: Path,
    image_names: Path | None = None,
    images: Path | None = None,
    problems: Problems | None = None,
) -> list[TranslationExample]:
    """One split: a text file per language and a list of images, aligned line by line, in their order.

    Files are plain or .gz, in UTF-8. Only a line feed ends a line, as in the published files; other characters
    at which Python breaks lines may stand within a sentence. What follows a ``#`` in the list of images (the
    number of a caption, in the MSCOCO test set) is no part of the name.

    Args:
        source: The sentences to translate, such as ``raw/train.en.gz``.
        target: Their translations, such as ``raw/train.de.gz``.
        image_names: The list, such as ``image_splits/train.txt``.
        images: Folder of the images; without it examples have none.
        problems: What to do about bad examples; refuse the first when absent.

    Raises:
        DataError: if a file is missing or truncated; files differ in their number of lines; a line is not
            UTF-8 or is empty; an image is listed twice or is missing; the split is empty; or there is a folder
            of images without a list.
    """
    problems = problems or Problems()
    if images is not None and image_names is None:
        raise DataError(
            f"{images}: images need a list of their names, line by line. Give the list, such as "
            "image_splits/train.txt."
        )
    paths = [source, target] + ([image_names] if image_names is not None else [])
    files = [read_lines(path) for path in paths]
    for path, lines in zip(paths, files, strict=True):
        if len(lines) != len(files[0]):
            shorter, longer = sorted((source, path), key=lambda one: len(files[paths.index(one)]))
            n_lines = sorted((len(files[0]), len(lines)))
            raise DataError(
                f"{shorter}, line {n_lines[0] + 1}: is missing, while {longer} has {n_lines[1]} lines. Lines of a "
                "split must correspond; check that the files are whole and of the same split."
            )

    examples = []
    listed: dict[str, int] = {}
    for line, row in enumerate(zip(*files, strict=True), start=1):
        texts: list[str] = []
        for raw, path in zip(row, paths, strict=True):
            with problems.at(path, f"line {line}"):
                texts.append(_text(raw, path, line))
        if len(texts) < len(paths):
            continue
        name = None
        with problems.at(paths[-1], f"line {line}"):
            if image_names is not None:
                where = f"{image_names}, line {line}"
                if texts[2] in listed:
                    raise DataError(
                        f"{where}: every image must be listed once but {texts[2]} is in line "
                        f"{listed[texts[2]]} too. Remove one of them in every file of the split."
                    )
                listed[texts[2]] = line
                name = texts[2].partition("#")[0]
            image = inside(images, name, where) if images is not None and name is not None else None
            examples.append(TranslationExample(texts[0], texts[1], image, line, name))
    if image_names is not None:
        examples = list(iter_present(examples, image_names, problems))
    if not examples:
        raise DataError(
            f"{source}: a split must have a sentence and has none ({len(files[0])} lines, {problems.n_bad} bad "
            "examples left out). Check the file."
        )
    return examples


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file, plain or .gz, without the line feeds that end them.

    Raises:
        DataError: if the file is missing or cannot be read, or a .gz is truncated, naming the line at which it
            breaks off.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give the path of a text file, plain or .gz.") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from None
    if path.suffix == ".gz":
        raw = _unzip(raw, path)
    # A mark that some editors put before the text is not of it.
    raw = raw.removeprefix(codecs.BOM_UTF8)
    lines = raw.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _unzip(raw: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: not a whole gzip file: it breaks off in line {_whole_lines(raw) + 1} ({error}). Fetch it "
            "again; a plain file must not be named .gz."
        ) from None


def _whole_lines(raw: bytes) -> int:
    """How many lines can be unzipped."""
    decoder = zlib.decompressobj(wbits=31)
    n_lines = 0
    with contextlib.suppress(zlib.error):
        for start in range(0, len(raw), 4096):
            n_lines += decoder.decompress(raw[start : start + 4096]).count(b"\n")
    return n_lines


def _text(raw: bytes, path: Path, line: int) -> str:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {line}: must be UTF-8 but byte {error.start + 1} of the line, "
            f"0x{raw[error.start]:02x}, is not ({error.reason}). Convert the file to UTF-8."
        ) from None
    if not text:
        raise DataError(
            f"{path}, line {line}: must have text but is empty. Remove the line in every file of the split."
        )
    return text
