"""A comparison as people write it: on the command line, and in the file that it goes on from."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from amad.data.paths import write_whole
from amad.errors import RecipeError
from amad.evaluation.compare_plan import Arm, Comparison
from amad.recipe import dump_yaml, first_difference, read_yaml

COMPARISON_FILE = "compare.yaml"

_DECIDED = {"seed": "--seeds", "output": "--out"}
# The arms and the number of seeds may grow, and another baseline trains nothing anew.
_MAY_CHANGE = ("arms", "n_seeds", "baseline")


def parse_arms(methods: str | None, arms: Sequence[str]) -> tuple[Arm, ...]:
    """Arms from ``--methods a,b``, each labelled by its method, and from ``--arm "LABEL: METHOD key=value ..."``.

    Raises:
        RecipeError: if an arm is malformed, or sets what the comparison decides.
    """
    named = [] if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    found = [Arm(label=name, method=name) for name in named]
    for text in arms:
        label, _, rest = text.partition(":")
        try:
            method, *overrides = shlex.split(rest)
        except ValueError:
            raise RecipeError(
                f"--arm {text!r} is not 'LABEL: METHOD key=value ...'. Write for instance "
                f"'sharp: amad objective.attention.temperature=0.1', with quotes around values that have spaces."
            ) from None
        check_overrides(overrides)
        found.append(Arm(label=label.strip(), method=method, overrides=tuple(overrides)))
    return tuple(found)


def check_overrides(overrides: Sequence[str]) -> None:
    """See that none sets what the comparison decides.

    Raises:
        RecipeError: if one does.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _DECIDED:
            raise RecipeError(f"{override}: the comparison decides {key}. Give {_DECIDED[key]} instead.")


def parse_search(searches: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Values per key from ``KEY=VALUE,VALUE``.

    Raises:
        RecipeError: if one is malformed, a key is there twice, or it is what the comparison decides.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in searches:
        key, _, values = text.partition("=")
        key = key.strip()
        try:
            parsed = read_yaml(f"[{values}]")
        except yaml.YAMLError:
            parsed = []
        if not key or not parsed:
            raise RecipeError(
                f"--search {text!r} is not KEY=VALUE,VALUE. Write for instance learning_rate=1e-3,2e-3."
            )
        if key in found:
            raise RecipeError(f"--search has {key} twice. Give all its values at once.")
        check_overrides([text])
        found[key] = tuple(parsed)
    return found


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the file that the comparison goes on from; one that is there may have grown.

    Raises:
        RecipeError: if another comparison is in the folder, or other files are.
    """
    if (folder / COMPARISON_FILE).exists():
        _check_grown(read_comparison(folder), comparison, folder)
    elif folder.exists() and not (folder.is_dir() and not _files_in(folder)):
        raise RecipeError(
            f"{folder} is there already and is no comparison, and nothing is overwritten. Give another with --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / COMPARISON_FILE, dump_yaml(comparison.model_dump(mode="json")))


def _files_in(folder: Path) -> list[Path]:
    """What is in a folder but for hidden files, which another process may be writing."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder.

    Raises:
        RecipeError: if there is none, or its file was changed and breaks a rule.
    """
    path = folder / COMPARISON_FILE
    try:
        return Comparison.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RecipeError(
            f"{folder} has no {COMPARISON_FILE}, so it is no comparison. Give a recipe."
        ) from None
    except (OSError, ValidationError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {error}. Restore it.") from None


def _check_grown(there: Comparison, given: Comparison, folder: Path) -> None:
    differing = first_difference(_fixed(there), _fixed(given))
    if differing is not None:
        key, before, after = differing
        raise RecipeError(
            f"{folder} is another comparison: its {key} is {before!r}, and {after!r} is given. Give the same, or "
            f"another folder with --out."
        )
    known = {arm.label: arm for arm in given.arms}
    for arm in there.arms:
        if known.get(arm.label) != arm:
            raise RecipeError(
                f"{folder} compares arm {arm.label!r} ({' '.join((arm.method, *arm.overrides))}), which is "
                f"{'missing' if arm.label not in known else 'another one now'}. Arms may be added, not changed: give "
                f"another folder with --out."
            )
    if given.n_seeds < there.n_seeds:
        raise RecipeError(
            f"{folder} compares {there.n_seeds} seeds, and {given.n_seeds} are asked for. Seeds may be added, not left "
            f"out: give at least as many, or another folder with --out."
        )


def _fixed(comparison: Comparison) -> dict[str, Any]:
    """What may not change; the folder of a comparison may be named otherwise another day."""
    tree = comparison.model_dump(mode="json", exclude=set(_MAY_CHANGE))
    del tree["recipe"]["output"]
    return tree
