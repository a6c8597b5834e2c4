"""Examples that break a rule: refused at the first, or left out, counted and listed."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from amad.data.paths import write_lines
from amad.errors import DataError

Policy = Literal["raise", "skip"]
_REMEDY = "Or leave such examples out: data.on_bad_example=skip."


class Pictured(Protocol):
    """An example that may have an image."""

    @property
    def image(self) -> Path | None:
        """The image file."""

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""

    @property
    def entry(self) -> str:
        """Where the example stands in its data file."""


PicturedExample = TypeVar("PicturedExample", bound=Pictured)


@dataclass(frozen=True, slots=True)
class BadExample:
    """An example that was left out.

    Attributes:
        file: The data file it stands in.
        entry: Where in the file: a line, counted from 1, or an item, counted from 0, or an id.
        message: What is wrong, in one sentence, and what to do.
    """

    file: str
    entry: str
    message: str


class Problems:
    """What happens to examples that break a rule.

    Only single examples can be left out. A file that is missing, truncated or of another form, files whose
    lines do not correspond and a split without any good example are refused under either policy: there,
    nothing says which examples are good.

    Args:
        policy: ``raise`` refuses the first bad example; ``skip`` leaves bad examples out and remembers them.
    """

    def __init__(self, policy: Policy = "raise") -> None:
        self.policy = policy
        # A file that is read twice, as one for two splits, has its bad examples once.
        self._found: dict[BadExample, None] = {}

    @property
    def n_bad(self) -> int:
        """How many examples were left out."""
        return len(self._found)

    def __iter__(self) -> Iterator[BadExample]:
        return iter(self._found)

    @property
    def skips(self) -> bool:
        """Whether bad examples are left out."""
        return self.policy == "skip"

    @contextmanager
    def at(self, file: Path, entry: str) -> Iterator[None]:
        """Treat a ``DataError`` inside the block by the policy.

        Raises:
            DataError: what the block raised, under ``raise``.
        """
        try:
            yield
        except DataError as error:
            if not self.skips:
                # An entry within an entry says it once.
                raise (error if str(error).endswith(_REMEDY) else DataError(f"{error} {_REMEDY}")) from None
            self._found[BadExample(str(file), entry, str(error))] = None

    def counts(self) -> dict[str, int]:
        """Number of examples left out, by file."""
        return dict(Counter(example.file for example in self._found))

    def write(self, path: Path) -> None:
        """Write one JSON object per example left out, with ``file``, ``entry`` and ``message``."""
        write_lines(path, map(asdict, self._found))


def iter_present(
    examples: Iterable[PicturedExample], source: Path, problems: Problems
) -> Iterator[PicturedExample]:
    """The examples whose image is there, or that have none, one after another: one directory listing per folder.

    Args:
        examples: What was read from ``source``.
        source: The file that names the images.
        problems: What to do about a missing image.

    Raises:
        DataError: naming the first missing file and how many are missing, when all examples were read, under
            ``raise``; if a folder cannot be read, always.
    """
    listings: dict[Path, set[str]] = {}
    missing: dict[Path, str] = {}
    for example in examples:
        path = example.image
        if path is not None:
            where = f"{source}, {example.entry}"
            if path.parent not in listings:
                listings[path.parent] = _listed(path, where)
            if path.name not in listings[path.parent]:
                if not problems.skips:
                    missing.setdefault(path, where)
                else:
                    with problems.at(source, example.entry):
                        raise DataError(f"{path}: no such image, needed by {where}.")
                continue
        if not missing:
            yield example
    if missing:
        path, where = next(iter(missing.items()))
        raise DataError(
            f"{path}: no such image, needed by {where} ({len(missing)} missing in all). "
            "Check the image folder and the file name template, fetch the images, or leave such examples out: "
            "data.on_bad_example=skip."
        )


def _listed(path: Path, where: str) -> set[str]:
    try:
        return set(os.listdir(path.parent))
    except OSError as error:
        raise DataError(
            f"{path.parent}: the folder of images cannot be read ({error.strerror}); {where} needs "
            f"{path.name} in it. Check the image folder and the file name template."
        ) from None
