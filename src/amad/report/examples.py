"""Examples that teacher and student answered, as a run's folder has them."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amad.errors import DataError

EXAMPLES_FOLDER = "examples"
EXAMPLES_FILE = "examples.jsonl"

MOST_LISTED = 12
"""Examples of each kind of difference on the page."""

KINDS = ("teacher", "student", "neither")
"""Who is better where the two differ."""


def read_examples(folder: Path, images: dict[str, str]) -> dict[str, Any] | None:
    """What the page shows of a run's examples; None if there are none.

    Args:
        folder: Of the run.
        images: Takes every image that is shown, as a ``data:`` address by the digest of the file: runs share them.

    Returns:
        ``n``; ``same`` (examples answered alike); ``scored`` (examples whose answers are); ``table``, if there are
        such: how many of them both, only the teacher, only the student or neither answered right (with a score of one
        half or more); ``differ``: by
        kind the number ``n`` and the first examples in ``rows``; and ``seen``, the examples with attention.

    Raises:
        DataError: if the file is no list of examples, or an image is missing.
    """
    path = folder / EXAMPLES_FOLDER / EXAMPLES_FILE
    if not path.is_file():
        return None
    rows = _rows(path)
    scored = [
        row for row in rows if row.get("student_score") is not None and row.get("teacher_score") is not None
    ]
    found: dict[str, Any] = {
        "n": len(rows),
        "same": sum(_kind(row) == "same" for row in rows),
        "scored": len(scored),
        "table": _table(scored) if scored else None,
        "differ": {},
    }
    for kind in KINDS:
        of = [row for row in rows if _kind(row) == kind]
        # Those with a picture say most.
        shown = sorted(of, key=lambda row: row.get("image") is None)[:MOST_LISTED]
        found["differ"][kind] = {"n": len(of), "rows": [_shown(row, path.parent, images) for row in shown]}
    found["seen"] = [
        _shown(row, path.parent, images) | {"attention": row["attention"]}
        for row in rows
        if row.get("attention") and row.get("image")
    ]
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        # Other characters at which Python breaks lines may stand within a text.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        for number, line in enumerate(lines if lines != [""] else [], 1):
            strange: list[str] = []
            row = json.loads(line, parse_constant=strange.append)
            if strange and isinstance(row, dict):
                # Of a model that diverged: there is no attention to show.
                row["attention"] = None
            if not isinstance(row, dict) or not {"text", "expected", "student", "teacher"} <= row.keys():
                raise DataError(f"line {number} of {path} is no example. Remove the file and make it anew.")
            rows.append(row)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove the file and make it anew.") from None
    return rows


def _kind(row: Mapping[str, Any]) -> str:
    if row["student"] == row["teacher"]:
        return "same"
    mine, its = row.get("student_score") or 0.0, row.get("teacher_score") or 0.0
    return "teacher" if its > mine else "student" if mine > its else "neither"


def _table(rows: list[dict[str, Any]]) -> dict[str, int]:
    right = [(row["teacher_score"] >= 0.5, row["student_score"] >= 0.5) for row in rows]
    return {
        "both": right.count((True, True)),
        "teacher": right.count((True, False)),
        "student": right.count((False, True)),
        "neither": right.count((False, False)),
    }


def _shown(row: Mapping[str, Any], folder: Path, images: dict[str, str]) -> dict[str, Any]:
    return {key: row[key] for key in ("text", "expected", "student", "teacher")} | {
        "student_score": row.get("student_score"),
        "teacher_score": row.get("teacher_score"),
        "image": _image(row.get("image"), folder, images),
    }


def _image(name: str | None, folder: Path, images: dict[str, str]) -> str | None:
    if name is None:
        return None
    path = folder / name
    # A file of examples names files beside it and no others.
    if path.parent != folder or not path.is_file():
        raise DataError(f"{path}: no such image. Remove {folder / EXAMPLES_FILE} and make the examples anew.")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    images[digest] = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    return digest
