"""JSON documents from other hands: plain or gzipped, refused with one sentence when they are not whole."""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amad.errors import DataError


def read_json(path: Path) -> Any:
    """The value of a JSON file; a name that ends in ``.gz`` is unzipped.

    Raises:
        DataError: if the file is missing, cannot be read, or is truncated or otherwise no JSON.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give the path of a JSON file, plain or .gz.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: not a whole gzip file ({error}). Fetch it again; a plain file must not be named .gz."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from None
    try:
        return json.loads(raw)
    except RecursionError:
        raise DataError(
            f"{path}: nested too deeply to be a data file. Check that it is the right one."
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}). The file may be truncated or of another kind; fetch it again."
        ) from None


def read_rows(path: Path, key: str | None = None) -> list[Mapping[str, Any]]:
    """The list of objects that a document is, or holds under ``key``.

    Raises:
        DataError: as ``read_json``, and if the document has another form.
    """
    document = read_json(path)
    if key is not None:
        if not isinstance(document, dict) or key not in document:
            found = (
                f"an object with {sorted(document)}" if isinstance(document, dict) else f"a {_kind(document)}"
            )
            raise DataError(
                f"{path}: must be a JSON object with a list {key!r} but is {found}. "
                "Check that questions, annotations and results are not exchanged."
            )
        document = document[key]
    if not isinstance(document, list):
        raise DataError(
            f"{path}: must hold a list of objects but holds a {_kind(document)}. Check the format."
        )
    for position, row in enumerate(document):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: item {position} must be an object but is a {_kind(row)}. Check the format."
            )
    return document


def field(row: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """``row[name]``, which must be there and be one of ``kinds``; a boolean is never taken for a number.

    Raises:
        DataError: naming ``where``, the key, and what stands there instead.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    expected = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
    if name not in row:
        raise DataError(f"{where}: has no {name!r}, which must be a {expected}. It has {sorted(row)}.")
    value = row[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where}: {name!r} must be a {expected} but is a {_kind(value)}. Mend the file.")
    return value


_NAMES: dict[type, str] = {str: "string", int: "whole number", float: "number", list: "list", dict: "object"}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)
