"""The page: one HTML file that needs nothing beside it."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from amad import __version__
from amad.errors import DataError

PAGE_FILE = "index.html"
GENERATOR = "amad report"

SCRIPTS = (
    "dom.js",
    "axes.js",
    "lines.js",
    "scatter.js",
    "flows.js",
    "heads.js",
    "attention.js",
    "answers.js",
    "main.js",
)

SECTIONS = (
    ("score", "Score"),
    ("frontier", "Size and latency"),
    ("losses", "Losses"),
    ("flows", "Who teaches whom"),
    ("heads", "Heads"),
    ("attention", "Where heads look"),
    ("answers", "Answers"),
    ("runs", "Runs"),
)

METHOD_COLUMNS = ("method", "runs", "score", "of the teacher", "parameters", "latency", "examples to 90 %")


def render(document: Mapping[str, Any]) -> str:
    """The page of a document of :func:`amad.report.document.build_document`.

    Whatever comes from a run is escaped: by the template where it stands in it, as JSON inside the page otherwise.
    """
    templates = files("amad.report") / "templates"
    environment = Environment(
        loader=DictLoader({"page.html": (templates / "page.html").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
    )
    own = {name: (templates / name).read_text(encoding="utf-8") for name in ("style.css", *SCRIPTS)}
    return environment.get_template("page.html").render(
        title=document["title"],
        heading="What the student kept" if document["teacher"] else "What the model learned",
        generator=GENERATOR,
        style=Markup(own["style.css"]),
        script=Markup("\n".join(own[name] for name in SCRIPTS)),
        document=_shown(document),
        sections=SECTIONS,
        lead=_lead(document),
        notices=_notices(document),
        method_columns=METHOD_COLUMNS,
        method_rows=[_method_row(group, document) for group in document["groups"]],
        differences=_about_scores(document) + _differences(document) + _hints(document),
        n_runs=len(document["runs"]),
        runs=[_run_facts(run, document) for run in document["runs"]],
        footer=f"Made by amad {__version__} from the records of {_many(len(document['runs']), 'run')}. "
        "Nothing is loaded from the network.",
    )


_NOT_DRAWN = {
    "runs": ("recipe", "environment", "models", "scores"),
    "groups": ("reached", "share"),
}
"""What the tables say and no chart needs."""


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    return dict(document) | {
        name: [{key: value for key, value in one.items() if key not in keys} for one in document[name]]
        for name, keys in _NOT_DRAWN.items()
    }


def write_page(document: Mapping[str, Any], out: Path) -> Path:
    """Write the page into a folder, over an earlier one of ours, and return its path.

    Raises:
        DataError: if the folder holds an ``index.html`` of something else, or is a file.
    """
    path = out / PAGE_FILE
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, and a report needs a folder. Give another with --out FOLDER.")
    if (
        path.exists()
        and f'content="{GENERATOR}"' not in path.read_text(encoding="utf-8", errors="replace")[:2000]
    ):
        raise DataError(
            f"{path} is no report of amad, and nothing is overwritten. Give another with --out FOLDER."
        )
    page = render(document)
    out.mkdir(parents=True, exist_ok=True)
    # Half a page would be taken for something else's.
    part = out / f".{PAGE_FILE}.{os.getpid()}"
    try:
        # Names may hold what is no character, such as half a surrogate pair.
        part.write_bytes(page.encode("utf-8", "replace"))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _score(value: float | None, document: Mapping[str, Any]) -> str:
    score = document["score"]
    if value is None:
        return "–"
    return f"{value:.{score['digits']}f}{' ' + score['unit'] if score['unit'] else ''}"


def _interval(found: Mapping[str, Any] | None, document: Mapping[str, Any]) -> str:
    if found is None:
        return "–"
    if found["low"] is None:
        return _score(found["mean"], document)
    digits = document["score"]["digits"]
    return f"{_score(found['mean'], document)} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _lead(document: Mapping[str, Any]) -> list[str]:
    """What came out, in a sentence per method."""
    teacher = document["teacher"] or {}
    lines = []
    for group in document["groups"]:
        if group["score"] is None or (group["is_teacher"] and len(document["groups"]) > 1):
            continue
        size = f" with {group['parameters']:,} parameters" if group["parameters"] else ""
        score = f"{_score(group['score']['mean'], document)} {document['score']['name']}"
        line = f"{_capital(group, 'name')}: {score}{size}"
        if group["share"] is not None:
            sample = teacher.get("sample")
            where = f"; on {sample} examples that both answered" if sample else ""
            line += f"{where}, {group['share']:.1f} % of the teacher's {_score(teacher['score'], document)}"
            if teacher.get("parameters") and group["parameters"]:
                line += f", at {100 * group['parameters'] / teacher['parameters']:.0f} % of its size"
        lines.append((group["score"]["mean"], line + "."))
    # Of many, the first and the best three, in the order in which they were named.
    best = sorted((score for score, _ in lines[1:]), reverse=True)[:3]
    return [line for number, (score, line) in enumerate(lines) if number == 0 or score in best]


def _capital(named: Mapping[str, Any], key: str) -> str:
    """Words begin with a capital; the label of an arm stays as it is."""
    text = str(named[key])
    return text if named["is_arm"] else text[:1].upper() + text[1:]


def _notices(document: Mapping[str, Any]) -> list[str]:
    lines = []
    if not document["same_data"]:
        lines.append(
            "These runs did not all learn from and validate on the same data, so their scores do not compare."
        )
    for run in document["runs"]:
        if not run["ended"]:
            lines.append(f"{run['name']} has not ended: what is shown of it is what it has recorded so far.")
        elif run["score"] is None and document["groups"][run["group"]]["is_arm"]:
            lines.append(
                f"{run['name']} has not been evaluated: amad compare does that, and then it has a score."
            )
        if run["not_finite"]:
            lines.append(
                f"{run['name']}: the loss was not a finite number at {_many(run['not_finite'], 'logged step')}."
            )
    return lines


def _hints(document: Mapping[str, Any]) -> list[str]:
    """What would be needed for a share of the teacher."""
    teacher = document["teacher"]
    if teacher is None or teacher.get("score") is not None:
        return []
    return [
        "The teacher's score is not known. Name the run that trained it as well: amad report TEACHER_RUN RUN ..."
    ]


def _method_row(group: Mapping[str, Any], document: Mapping[str, Any]) -> Sequence[str]:
    latency = group["latency_seconds"]
    return (
        group["name"],
        f"{group['n_runs']}",
        _interval(group["score"], document),
        "–" if group["share"] is None else f"{group['share']:.1f} %",
        "–" if group["parameters"] is None else f"{group['parameters']:,}",
        "–" if latency is None else f"{1000 * latency['median']:.1f} ms",
        _examples(group),
    )


def _examples(group: Mapping[str, Any]) -> str:
    """As amad compare writes it."""
    reached = group["reached"]
    if reached is None:
        return "–"
    if not reached["n"]:
        return "not reached"
    count = "" if reached["n"] == reached["of"] else f"{reached['n']} of {reached['of']} reached"
    if reached["examples"] is None:
        return count
    return f"{reached['examples']:,}" + (f" ({count})" if count else "")


def _differences(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each method but the first; one for all of them where none has more than one seed."""
    found = document["differences"]
    if len(found) > 1 and all(difference["low"] is None for difference in found):
        return ["One seed of each method: their differences say nothing of chance."]
    return [_difference(difference, document) for difference in found]


def _about_scores(document: Mapping[str, Any]) -> list[str]:
    if not document["reported"]:
        return []
    return [
        "Scores are those that amad compare reports; the curves are of evaluations while training, which may be on "
        "fewer examples."
    ]


def _difference(found: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    digits = document["score"]["digits"]
    said = f"{_capital(found, 'of')} less {found['less']}, at equal seeds: {found['mean']:+.{digits}f}"
    if found["low"] is None:
        seeds = "one seed, which" if found["n"] == 1 else f"{found['n']} seeds that differ alike, which"
        return said + f" from {seeds} says nothing of chance."
    many = len(document["differences"])
    kind = "95 % interval" if many == 1 else f"interval (95 % for all {many} together)"
    return (
        said + f", {kind} {found['low']:+.{digits}f} to {found['high']:+.{digits}f}, from {found['n']} seeds."
    )


def _run_facts(run: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    environment = run["environment"]
    facts = [
        ("method", document["groups"][run["group"]]["name"]),
        ("seed", run["seed"]),
        ("score", _score(run["score"], document)),
        *(
            (name, f"{value:.4g}")
            for name, value in run["scores"].items()
            if name != document["score"]["name"]
        ),
        ("training", _training(run)),
        *(
            (name, environment[name])
            for name in ("commit", "amad", "torch", "transformers", "platform", "device")
            if environment.get(name)
        ),
    ]
    recipe = json.loads(json.dumps(run["recipe"]))
    return {
        "name": run["name"],
        "facts": facts,
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    }


def _training(run: Mapping[str, Any]) -> str:
    if run["train_seconds"] is None:
        return "not ended"
    since = f" since {run['resumed_from']}" if run["resumed_from"] else ""
    return f"{run['train_seconds']:,.0f} s{since}"
