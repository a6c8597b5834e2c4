"""What a run leaves behind: newline-delimited JSON, one event per line.

    {"schema": 1, "event": "step", "time": 1767225600.0, "step": 10, "loss": 2.5}

Every line carries the version of the schema, the name of the event and the time in seconds since 1970 (UTC).
The rest belongs to the event. Numbers that are not finite are written as the strings "nan", "inf" and "-inf",
so that every line is valid JSON. A report needs nothing else, and reading needs neither torch nor
transformers.
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

from amad.errors import DataError

if sys.platform != "win32":
    import fcntl

SCHEMA = 1
"""Version of the lines that this module writes, and the newest that it reads."""

EVENTS = (
    "recipe",
    "environment",
    "seeds",
    "model",
    "step",
    "metrics",
    "alignment",
    "timing",
    "comparison",
    "note",
)
"""What a line can be about."""

_RESERVED = ("schema", "event", "time")


class RunRecords:
    """The records of one run, open for writing. An existing file is continued, never rewritten.

    A last line that an interruption left half-written is cut off when the file is opened. Each line is
    flushed. While they are open no other process can open them; the system sees to that, also when this one is
    killed. (Not on Windows, nor where the file system knows no locks.)

    Args:
        path: The file, usually ``records.jsonl`` in the folder of the run; its folder is made.

    Raises:
        DataError: the path is not a file that can be written, an existing file holds something else, or another
            run is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "ab+", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise DataError(f"Records cannot be written to {path}: {error}. Name another file.") from error
        try:
            if not _locked(self._file, wait_seconds=_LOOKING_SECONDS):
                raise DataError(
                    f"{path} is being written by another run. Wait for it, stop it, or name another file."
                )
            self._cut_half_line()
        except BaseException:
            self._file.close()
            raise

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Scalars and arrays of torch and numpy are written as numbers and lists, paths as text.

        Raises:
            DataError: an event that is not in :data:`EVENTS`, a field with a reserved name, or a value that
                is neither a number, text, a truth value, None, nor a mapping or sequence of those.
        """
        if event not in EVENTS:
            raise DataError(
                f"There is no event {event!r}; there are {', '.join(EVENTS)}. Use 'note' for others."
            )
        for name in _RESERVED:
            if name in fields:
                raise DataError(f"The field {name!r} of a record is reserved. Name it otherwise.")
        line = {"schema": SCHEMA, "event": event, "time": round(time.time(), 3)}
        line |= {name: _plain(value, f"{event}.{name}") for name, value in fields.items()}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        data = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file. What was written is there already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_half_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole > 0:
            # A file of somebody else's is not touched: its first line must be one of ours.
            _parsed(content[: content.index(b"\n")], self.path, 1)
        elif content and not content.startswith(b'{"schema"'[: len(content)]):
            raise DataError(f"{self.path} holds no records: its first line is not ours. Name another file.")
        if whole < len(content):
            self._file.truncate(whole)


def is_written(path: str | os.PathLike[str]) -> bool:
    """Whether a run has these records open, here or on another machine that shares the file system's locks."""
    try:
        with open(path, "rb") as file:
            return not _locked(file)
    except FileNotFoundError:
        return False


@contextmanager
def claimed(path: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Hold a file against other processes, as a run holds its records; False while another one has it.

    Args:
        path: Made if it is not there.
        wait_seconds: How long to try.
    """
    with open(path, "ab") as file:
        yield _locked(file, wait_seconds)


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a run, in the order in which they were written.

    "nan", "inf" and "-inf" stay strings. A last line without its newline was never finished and is left out.

    Raises:
        DataError: no such file, a line that is not a record, or a schema newer than :data:`SCHEMA`.
    """
    return list(iter_records(path))


def iter_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """As :func:`read_records`, one event at a time: the records of a long run need not fit into memory.

    Raises:
        DataError: as :func:`read_records`, when the line is reached.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _parsed(line, path, number)
    except OSError as error:
        raise DataError(f"Records cannot be read from {path}: {error}. Check the path.") from error


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on besides the recipe: versions, commit, platform, cores and device.

    No path, host or user name of the machine is in it. ``commit`` is the short hash of the checkout that amad
    is imported from, with ``+`` if tracked files differ from it; None outside a checkout.

    Args:
        device: The device that the run uses, in words.
    """
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is not None and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    return {
        "python": platform.python_version(),
        "amad": _version("amad"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "commit": commit,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "device": device,
    }


# is_written holds the lock for a moment, and must not keep a run from starting.
_LOOKING_SECONDS = 0.5


def _locked(file: IO[bytes], wait_seconds: float = 0.0) -> bool:
    """Lock the file until it is closed; False if somebody else holds it."""
    if sys.platform == "win32":
        return True
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError:
            # A file system without locks.
            return True
        else:
            return True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """The answer of git about this package's own checkout; None if it is not in one."""
    package = Path(__file__).resolve().parent
    root = package.parents[1]
    # An installed copy may lie inside some other repository, whose commit would be a lie.
    if not (root / ".git").exists() or package != root / "src" / "amad":
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"Line {number} of {path} is no JSON ({error}). Restore the file, or remove it."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int) or "event" not in record:
        raise DataError(
            f"Line {number} of {path} has no schema and event, so it is no record. Check the path."
        )
    if record["schema"] > SCHEMA:
        raise DataError(
            f"Line {number} of {path} is of schema {record['schema']}, and this version of amad reads up to "
            f"{SCHEMA}. Install a newer amad."
        )
    return record


def _plain(value: Any, name: str) -> Any:
    """The value as JSON has it. Tensors and arrays are known by their ``tolist``: neither is imported."""
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name)
    if isinstance(value, set | frozenset):
        return [_plain(entry, name) for entry in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [_plain(entry, name) for entry in value]
    raise DataError(
        f"A record holds numbers, text, lists and mappings, and {name} is a {type(value).__name__}."
    )
