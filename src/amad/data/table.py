"""Examples in memory-mapped files: read and checked once, then shared by all processes that train on them."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pyarrow as pa
from filelock import FileLock

from amad.data.paths import ImageFolders, new_folder
from amad.data.problems import BadExample, Problems
from amad.data.rows import Example, RowForm
from amad.data.waiting import Wait, unseen
from amad.errors import DataError
from amad.metrics.json_stream import watched

_PORTION = 1000
_ROWS = "rows.arrow"
_BAD = "bad_examples.jsonl"


class Table(Sequence[Example]):
    """Examples of one source, each made when it is asked for.

    Args:
        rows: The rows, memory-mapped.
        form: What the rows are.
        source: The data file that the examples stand in.
        folders: Where their images are; no folder for none.
    """

    def __init__(
        self, rows: datasets.Dataset, form: RowForm[Example], source: Path, folders: ImageFolders
    ) -> None:
        self._rows = rows
        self._form = form
        self.source = source
        self.folders = folders

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "Table[Example]": ...

    def __getitem__(self, index: int | slice) -> "Example | Table[Example]":
        """An example, or a table of several."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._example(self._rows[index])

    def __iter__(self) -> Iterator[Example]:
        for portion in self._rows.iter(_PORTION):
            for values in zip(*portion.values(), strict=True):
                yield self._example(dict(zip(portion, values, strict=True)))

    def select(self, indices: Sequence[int]) -> "Table[Example]":
        """The examples of these numbers, in this order."""
        return Table(self._rows.select(indices, keep_in_memory=True), self._form, self.source, self.folders)

    def image_names(self) -> list[str]:
        """The name of every image, once, in the order of the examples."""
        return [name for name in dict.fromkeys(self.names()) if name is not None]

    def names(self) -> list[str | None]:
        """The name of each example's image; None for none."""
        return list(self._rows["image_name"][:])

    def without(self, wrong: Mapping[str, str], problems: Problems) -> "Table[Example]":
        """The examples whose image has nothing wrong with it.

        Args:
            wrong: What is wrong with an image, by its name.
            problems: What to do about examples of such images.

        Raises:
            DataError: naming the first such example, under ``raise``; if no example is left, always.
        """
        if not wrong:
            return self
        kept = []
        for position, name in enumerate(self.names()):
            if name is None or name not in wrong:
                kept.append(position)
                continue
            # Without its image, which is what is wrong.
            entry = self._form.example(self._rows[position], None).entry
            more = f" ({len(wrong) - 1} more such images)" if len(wrong) > 1 else ""
            with problems.at(self.source, entry):
                raise DataError(f"{wrong[name]} Needed by {self.source}, {entry}{more}.")
        if not kept:
            raise DataError(
                f"{self.source}: none of its {len(self)} examples has a good image; the first: "
                f"{next(iter(wrong.values()))}"
            )
        return self.select(kept)

    def _example(self, row: Mapping[str, Any]) -> Example:
        name = row["image_name"]
        image = None if name is None else self.folders.find(name, str(self.source))
        return self._form.example(row, image)


class Joined(Sequence[Example]):
    """Several tables, one after another."""

    def __init__(self, parts: Sequence[Table[Example]]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """An example, or those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, position, side="right"))
        return self.parts[part][position - (int(self._ends[part - 1]) if part else 0)]

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            yield from part

    def names(self) -> list[str | None]:
        """The name of each example's image; None for none."""
        return [name for part in self.parts for name in part.names()]

    def select(self, indices: Sequence[int]) -> "Joined[Example]":
        """The examples of these numbers, which ascend."""
        bounds = np.searchsorted(np.asarray(indices, dtype=np.int64), self._ends)
        parts, first, start = [], 0, 0
        for part, bound, end in zip(self.parts, bounds, self._ends, strict=True):
            parts.append(part.select([index - start for index in indices[first:bound]]))
            first, start = int(bound), int(end)
        return Joined(parts)


def stored_table(
    form: RowForm[Example],
    sources: Sequence[Path],
    how: Sequence[Any],
    read: Callable[[Problems], Iterable[Example]],
    folders: ImageFolders,
    problems: Problems,
    wait: Wait = unseen,
) -> Table[Example]:
    """The examples that ``read`` gives, from the store if the same files were read in the same way before.

    The store is the folder ``amad`` in that of Hugging Face's data sets (``HF_DATASETS_CACHE``). What it holds is
    found by the names and the contents of the files and by the code that reads them: what changed is read again.

    Args:
        form: What is read.
        sources: The data files, the first of which the examples stand in.
        how: Whatever else decides what is read of them.
        read: Reads them; images are no business of its.
        folders: Where the images are.
        problems: What to do about bad examples.
        wait: Shows that reading takes its time.

    Raises:
        DataError: if a file cannot be read or breaks a rule; if the store cannot be written.
    """
    try:
        # What a file is called stands in the messages about it.
        contents = [(str(path), _digest(path)) for path in sources]
    except OSError:
        # Its reader says it best.
        for _ in read(Problems()):
            pass
        raise
    key = json.dumps([_rules(), sorted(form.features), contents, list(how)])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "amad" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # The processes of one run come here together: one reads, the others wait and find it.
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    # What a process left that was killed.
                    for left in folder.parent.glob(f".{folder.name}.*.part"):
                        shutil.rmtree(left, ignore_errors=True)
                    fresh = Problems(problems.policy)
                    with _shown(sources, wait):
                        _store(folder, form, read(fresh), sources[0], fresh)
        except OSError as error:
            raise DataError(
                f"{folder}: what was read of the data cannot be kept there ({error.strerror or error}). Set "
                "HF_DATASETS_CACHE to a folder that you may write to."
            ) from None
    for line in (folder / _BAD).read_text(encoding="utf-8").splitlines():
        bad = BadExample(**json.loads(line))
        with problems.at(Path(bad.file), bad.entry):
            raise DataError(bad.message)
    return Table(datasets.Dataset.from_file(str(folder / _ROWS)), form, sources[0], folders)


@contextmanager
def _shown(sources: Sequence[Path], wait: Wait) -> Iterator[None]:
    """A wait for as long as it takes to read the files, by the bytes of them."""
    total, done = sum(path.stat().st_size for path in sources), 0
    with wait(f"reading {sources[0].name}", total) as advance:

        def count(n_bytes: int) -> None:
            nonlocal done
            # A file may be read more than once.
            done = min(done + n_bytes, total)
            advance(done, total)

        with watched(count):
            yield


def _store(
    folder: Path, form: RowForm[Example], examples: Iterable[Example], source: Path, problems: Problems
) -> None:
    """Write under another name and rename: what an interruption leaves is never taken for a whole.

    Only a portion of the examples is held at a time.
    """
    schema = form.features.arrow_schema
    with new_folder(folder) as temporary:
        empty = True
        with pa.OSFile(str(temporary / _ROWS), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for portion in _portions(examples):
                try:
                    rows = pa.RecordBatch.from_pylist(list(map(form.row, portion)), schema=schema)
                except UnicodeEncodeError:
                    portion = _of_characters(form, portion, source, problems)
                    rows = pa.RecordBatch.from_pylist(list(map(form.row, portion)), schema=schema)
                empty = empty and not portion
                writer.write_batch(rows)
        if empty:
            raise DataError(f"{source}: no example is left whose texts are of characters. Mend the file.")
        problems.write(temporary / _BAD)


def _portions(examples: Iterable[Example]) -> Iterator[list[Example]]:
    remaining = iter(examples)
    while portion := list(itertools.islice(remaining, _PORTION)):
        yield portion


def _of_characters(
    form: RowForm[Example], examples: Sequence[Example], source: Path, problems: Problems
) -> list[Example]:
    """The examples whose texts are characters: JSON can also write half of a surrogate pair, which is none."""
    kept = []
    for example in examples:
        with problems.at(source, example.entry):
            try:
                json.dumps(form.row(example), ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                strange = ascii(error.object[error.start])
                raise DataError(
                    f"{source}, {example.entry}: texts must be of characters, and {strange} is half of a surrogate "
                    "pair. Write the whole character."
                ) from None
            kept.append(example)
    return kept


@cache
def _rules() -> str:
    """A digest of the code that decides what is read of a file."""
    package = Path(__file__).parents[1]
    code = [
        file.read_bytes() for room in ("data", "metrics") for file in sorted((package / room).glob("*.py"))
    ]
    return hashlib.sha256(b"".join(code)).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
