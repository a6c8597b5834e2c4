"""JSON documents from other hands: plain or gzipped, refused with one sentence when they are not whole."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amad.errors import DataError
from amad.metrics.json_stream import JsonStream, opened


def read_json(path: Path) -> Any:
    """The value of a JSON file; a name that ends in ``.gz`` is unzipped.

    Raises:
        DataError: if the file is missing, cannot be read, or is truncated or otherwise no JSON.
    """
    raw = read_bytes(path, "JSON")
    try:
        # Of bytes, json takes some that no character has.
        return json.loads(raw.decode(json.detect_encoding(raw)))
    except RecursionError:
        raise DataError(
            f"{path}: nested too deeply to be a data file. Check that it is the right one."
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}). The file may be truncated or of another kind; fetch it again."
        ) from None


def read_bytes(path: Path, kind: str) -> bytes:
    """What a file holds; a name that ends in ``.gz`` is unzipped. ``kind`` says of what kind it must be.

    Raises:
        DataError: if the file is missing, truncated or cannot be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give the path of a {kind} file, plain or .gz.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: not a whole gzip file ({error}). Fetch it again; a plain file must not be named .gz."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from None


def iter_rows(path: Path, key: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The objects of the list that a document is, or holds under ``key``, read one after another.

    The file is never held whole, so one of any size can be read. That it is whole is known only at its end: what was
    taken from it counts for nothing if it is refused then.

    Raises:
        DataError: as ``read_json``, and if the document has another form.
    """
    if key is not None:
        yield from (row for _, row in iter_members(path, (key,)))
        return
    try:
        with opened(path) as read:
            stream = JsonStream(read)
            if stream.peek() != "[":
                raise _other_form(_kind(stream.value()), path)
            yield from _objects(stream, path)
            stream.finish()
    except _UNREADABLE as error:
        raise _unreadable(path) from error


def iter_members(
    path: Path, keys: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of the lists that a document holds under ``keys``, with its key, in the order of the file.

    Args:
        path: The file.
        keys: Must all be there.
        optional: Need not be there.

    Raises:
        DataError: as ``iter_rows``, and if a key is missing or occurs twice.
    """
    try:
        with opened(path) as read:
            stream = JsonStream(read)
            if stream.peek() != "{":
                raise _lacks(keys[0], _kind(stream.value()), path)
            found: set[str] = set()
            for name in stream.members():
                asked = name in keys or name in optional
                if asked and name in found:
                    raise DataError(f"{path}: has {name!r} twice. Mend the file.")
                found.add(name)
                if not asked:
                    stream.skip()
                elif stream.peek() == "[":
                    yield from ((name, row) for row in _objects(stream, path))
                else:
                    raise _other_form(_kind(stream.value()), path)
            stream.finish()
    except _UNREADABLE as error:
        raise _unreadable(path) from error
    for key in keys:
        if key not in found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise _lacks(key, f"an object with {sorted(found)[:_NAMED]}{more}", path)


def read_head(path: Path) -> dict[str, Any]:
    """What a document says beside its lists: its members, an empty list for one that is a list; {} for no object.

    Raises:
        DataError: as ``read_json``.
    """
    try:
        with opened(path) as read:
            stream = JsonStream(read)
            first = stream.peek()
            if not first:
                raise ValueError("nothing in it")
            if first != "{":
                return {}
            return {name: stream.skip() for name in stream.members()}
    except _UNREADABLE as error:
        raise _unreadable(path) from error


def read_rows(path: Path, key: str | None = None) -> list[Mapping[str, Any]]:
    """``iter_rows`` at once."""
    return list(iter_rows(path, key))


_NAMED = 20
_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, RecursionError)


def _unreadable(path: Path) -> DataError:
    """What is wrong with a file that could not be read to its end: a whole reading names the place."""
    try:
        read_json(path)
    except DataError as error:
        return error
    return DataError(f"{path}: changed while it was read. Start again when nothing writes to it.")


def _objects(stream: JsonStream, path: Path) -> Iterator[Mapping[str, Any]]:
    for position, row in enumerate(stream.items()):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: item {position} must be an object but is {_kind(row)}. Check the format."
            )
        yield row


def _lacks(key: str, found: str, path: Path) -> DataError:
    return DataError(
        f"{path}: must be a JSON object with a list {key!r} but is {found}. "
        "Check that questions, annotations and results are not exchanged."
    )


def _other_form(found: str, path: Path) -> DataError:
    return DataError(f"{path}: must hold a list of objects but holds {found}. Check the format.")


def field(row: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """``row[name]``, which must be there and be one of ``kinds``; a boolean is never taken for a number.

    Raises:
        DataError: naming ``where``, the key, and what stands there instead.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if name in row:
        value = row[name]
        if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
            return value
    # Only here: this is called a million times for a large file.
    expected = " or ".join(_NAMES.get(kind, f"a {kind.__name__}") for kind in kinds)
    if name not in row:
        raise DataError(f"{where}: has no {name!r}, which must be {expected}. It has {sorted(row)}.")
    raise DataError(f"{where}: {name!r} must be {expected} but is {_kind(row[name])}. Mend the file.")


def index_by(rows: list[Mapping[str, Any]], key: str, source: Path) -> dict[int | str, Mapping[str, Any]]:
    """The rows of ``source`` by their id, in their order.

    Raises:
        DataError: if a row has no such id, or two rows have the same.
    """
    indexed = {field(row, key, (int, str), f"{source}, item {i}"): row for i, row in enumerate(rows)}
    if len(indexed) < len(rows):
        refuse_duplicates((row[key] for row in rows), key, source)
    return indexed


def iter_unique(
    rows: Iterable[Mapping[str, Any]], key: str, source: Path
) -> Iterator[tuple[int | str, Mapping[str, Any]]]:
    """The rows of ``source`` with their id, one after another.

    Raises:
        DataError: as ``index_by``; of ids that occur twice when all rows were read.
    """
    seen: set[int | str] = set()
    repeated: list[int | str] = []
    for i, row in enumerate(rows):
        one = field(row, key, (int, str), f"{source}, item {i}")
        if one in seen:
            repeated.append(one)
        elif not repeated:
            yield one, row
        seen.add(one)
    refuse_duplicates([one for one in repeated for _ in range(2)], key, source)


def refuse_duplicates(ids: Iterable[int | str], key: str, source: Path) -> None:
    """Every id occurs once.

    Raises:
        DataError: naming the first that does not, and how many do not.
    """
    repeated = [one for one, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{source}: every {key} must be unique but {repeated[0]} occurs more than once "
            f"({len(repeated)} such). Remove the repeated items."
        )


def refuse_unmatched(
    ids: Iterable[int | str], known: Container[int | str], message: Callable[[int | str], str]
) -> None:
    """Every id is known.

    Args:
        ids: What is checked.
        known: What there is.
        message: Says of the first unknown id what is wrong.

    Raises:
        DataError: with the message, how many are unknown, and where to look.
    """
    unknown = [one for one in ids if one not in known]
    if unknown:
        raise DataError(
            f"{message(unknown[0])} ({len(unknown)} such). Check that the files belong to the same split."
        )


_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), f"a {type(value).__name__}")
