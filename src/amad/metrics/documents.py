"""JSON documents from other hands: plain or gzipped, refused with one sentence when they are not whole."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from amad.errors import DataError


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


def read_rows(path: Path, key: str | None = None) -> list[Mapping[str, Any]]:
    """The list of objects that a document is, or holds under ``key``.

    Raises:
        DataError: as ``read_json``, and if the document has another form.
    """
    return rows_of(read_json(path), path, key)


def rows_of(document: Any, path: Path, key: str | None = None) -> list[Mapping[str, Any]]:
    """``read_rows`` of a document that was read from ``path`` already."""
    if key is not None:
        if not isinstance(document, dict) or key not in document:
            found = f"an object with {sorted(document)}" if isinstance(document, dict) else _kind(document)
            raise DataError(
                f"{path}: must be a JSON object with a list {key!r} but is {found}. "
                "Check that questions, annotations and results are not exchanged."
            )
        document = document[key]
    if not isinstance(document, list):
        raise DataError(f"{path}: must hold a list of objects but holds {_kind(document)}. Check the format.")
    for position, row in enumerate(document):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: item {position} must be an object but is {_kind(row)}. Check the format."
            )
    return document


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
