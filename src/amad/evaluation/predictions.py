"""Texts in files that are written one by one, so that an evaluation that was killed goes on, and several share it.

    FOLDER/run.json       what the texts are of: model, data, decoding, number of items
    FOLDER/00000.jsonl    a shard: {"item": 0, "text": "two"}, one line per item

A shard is written whole or not at all. Shards are multiples of the batch, so that whoever writes them decodes the
same batches.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amad.data.paths import write_whole
from amad.data.waiting import Wait
from amad.errors import DataError
from amad.evaluation.evaluate import in_batches
from amad.models.checkpoint import located
from amad.records import claimed

SHARDS = 64
"""At most so many: of an evaluation that is killed, about this part of each process's work is lost."""

_RUN_FILE = "run.json"


class Shards:
    """The texts of a set, of which some shards may be there already.

    Args:
        folder: Where; made if it is not there.
        run: What the texts are of, as JSON has it: whatever changes a text must change it.
        n_items: Items of the set.
        batch_size: Items that are decoded together; shards that are there keep the size they have.

    Raises:
        DataError: if shards of something else are there, or ``run.json`` cannot be read.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], n_items: int, batch_size: int) -> None:
        self.folder = folder
        self.n_items = n_items
        file = folder / _RUN_FILE
        if file.is_file():
            self.size = self._checked(file, dict(run) | {"items": n_items})
            return
        self.size = batch_size * max(1, math.ceil(n_items / (SHARDS * batch_size)))
        folder.mkdir(parents=True, exist_ok=True)
        described = dict(run) | {"items": n_items, "items_per_shard": self.size}
        write_whole(file, json.dumps(described, indent=2, ensure_ascii=False) + "\n")

    def __len__(self) -> int:
        return math.ceil(self.n_items / self.size)

    def items(self, shard: int) -> range:
        """Numbers of the items of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n_items))

    def missing(self) -> list[int]:
        """Shards that are not there, or not whole."""
        return [shard for shard in range(len(self)) if self._read(shard) is None]

    def write(self, shard: int, texts: Sequence[str]) -> None:
        """Write a shard: one text per item."""
        lines = [
            json.dumps({"item": item, "text": text}, ensure_ascii=False)
            for item, text in zip(self.items(shard), texts, strict=True)
        ]
        write_whole(self._file(shard), "".join(f"{line}\n" for line in lines))

    def texts(self) -> list[str]:
        """The texts of all items, in order.

        Raises:
            DataError: if a shard is missing.
        """
        texts: list[str] = []
        for shard in range(len(self)):
            said = self._read(shard)
            if said is None:
                raise DataError(
                    f"{self._file(shard)} is missing or not whole. Every process must see the same folder; run the "
                    "command again to decode what is missing."
                )
            texts += said
        return texts

    def remove(self) -> None:
        """Delete the shards; the folder too, unless something else is in it."""
        for path in [*map(self._file, range(len(self))), self.folder / _RUN_FILE]:
            path.unlink(missing_ok=True)
            # What a kill left half-written.
            for half in self.folder.glob(f".{path.name}.*.new"):
                half.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _checked(self, file: Path, run: dict[str, Any]) -> int:
        """Items per shard of what is there."""
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            size = int(stored.pop("items_per_shard"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: what is predicted there cannot be told ({error!r}). Remove {self.folder} to start anew."
            ) from None
        for key in dict.fromkeys([*run, *stored]):
            if run.get(key) != stored.get(key):
                raise DataError(
                    f"{self.folder} has predictions of an evaluation that was interrupted, with {key} = "
                    f"{stored.get(key)!r}, and now it is {run.get(key)!r}. Remove that folder to start anew, or write "
                    "elsewhere with --results FILE."
                )
        return size

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.jsonl"

    def _read(self, shard: int) -> list[str] | None:
        try:
            rows = [json.loads(line) for line in self._file(shard).read_bytes().splitlines()]
            if [row["item"] for row in rows] != list(self.items(shard)):
                return None
            return [str(row["text"]) for row in rows]
        except (OSError, ValueError, KeyError, TypeError):
            return None


def decode_shards(
    state: Any,
    shards: Shards,
    generate: Callable[[list[list[int]]], Iterable[list[str]]],
    batch_size: int,
    doing: str,
    wait: Wait,
) -> int:
    """Decode this process's part of the shards that are missing, and wait until all processes have done theirs.

    Args:
        state: accelerate's ``PartialState``: which process of how many this is.
        shards: Each is written as soon as it is whole.
        generate: Gives the texts of one batch of items after another; no batch is of two shards.
        batch_size: Items per batch.
        doing: What is being done, in a word.
        wait: Shows how far this process is.

    Returns:
        Items that all processes decoded.
    """
    missing = shards.missing()
    # Nobody writes before everybody has looked.
    state.wait_for_everyone()
    mine = missing[state.process_index :: state.num_processes]
    sizes = {shard: len(shards.items(shard)) for shard in missing}
    batches = {shard: in_batches(shards.items(shard), batch_size) for shard in mine}
    here, decoded = sum(sizes[shard] for shard in mine), sum(sizes.values())
    if decoded < shards.n_items:
        doing += f", {shards.n_items - decoded:,} were there"
    if state.num_processes > 1:
        doing += f", process {state.process_index + 1} of {state.num_processes}"
    said = iter(generate([batch for shard in mine for batch in batches[shard]]))
    done = 0
    with wait(doing, here) as advance:
        for shard in mine:
            texts: list[str] = []
            for _ in batches[shard]:
                texts += next(said)
                advance(done + len(texts), here)
            done += len(texts)
            shards.write(shard, texts)
    state.wait_for_everyone()
    return decoded


@contextmanager
def kept_to_one(folder: Path) -> Iterator[None]:
    """Keep the predictions in a folder to this evaluation.

    Raises:
        DataError: if another one is at them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with claimed(path) as mine:
        if not mine:
            raise DataError(
                f"{folder} is being written by another evaluation. Wait for it, or name another file with --results."
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def digest_of_model(place: str | Path) -> str:
    """A digest of the files of a checkpoint folder; of a model on the hub, its name.

    Raises:
        CheckpointError: if it is neither.
    """
    home = Path(located(place))
    return digest_of_folder(home) if home.is_dir() else str(home)


def digest_of_folder(folder: Path) -> str:
    """A digest of the names and bytes of the files in a folder, without those of folders in it."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def digest_of_items(dataset: Any) -> str:
    """A digest of what a model reads of each item: its text, and the name of its image.

    Where images are regions, of the names and sizes of their files too.
    """
    digest = hashlib.sha256()
    for index, example in enumerate(dataset.examples):
        image = example.stem if example.image is None else example.image.name
        digest.update(f"{json.dumps([dataset.text(index), image])}\n".encode())
    regions = getattr(dataset, "regions", None)
    for path in [] if regions is None else regions.paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def digest_of_files(dataset: Any) -> str:
    """A digest of which files a model's items are of: places, sizes and times of images or of files of regions."""
    regions = getattr(dataset, "regions", None)
    paths = dict.fromkeys([] if regions is None else regions.paths)
    paths |= dict.fromkeys(example.image for example in dataset.examples if example.image is not None)
    told = [str(len(dataset.examples))]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            told.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def digest_of_texts(texts: Iterable[str]) -> str:
    """A digest of texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
