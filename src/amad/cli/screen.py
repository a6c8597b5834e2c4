"""What every command shares: where it draws, how it ends, how it prints one JSON document."""

import contextlib
import errno
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from amad.errors import AmadError, RecipeError

console = Console(stderr=True)
"""Progress and messages; standard output is for results."""

output = Console()
"""Results for people."""

FIGURE_TITLES = {
    "accuracy": "VQA accuracy (0 to 100 %, higher is better)",
    "CIDEr": "CIDEr-D (0 to 10, higher is better)",
    "Bleu_4": "BLEU-4 (0 to 1, higher is better)",
    "BLEU": "BLEU (0 to 100, higher is better)",
}
"""Scores of the tasks by their keys, with scale and direction."""

_WIDEST = 400
_SECONDS_FOR_THE_FIRST = 10
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """End with the message alone and status 2 where the user can mend the cause."""
    try:
        yield
    except AmadError as error:
        _refuse(_message(error))
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        _refuse(
            f"{error.filename2 or error.filename}: {error.strerror}. Choose a place that you may write to."
        )
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        _refuse(
            f"{error.filename or 'a file'} cannot be written: {error.strerror}. Make room, or choose another place."
        )
    except SafetensorError as error:
        _refuse(
            f"weights cannot be read or written ({error}). See that the disk has room and the file is whole."
        )
    except KeyboardInterrupt:
        console.print("interrupted.")
        raise typer.Exit(130) from None


def check_alone(instead: str) -> None:
    """See that a command which several processes cannot share was not launched several times.

    Raises:
        RecipeError: with what to do instead.
    """
    n_processes = os.environ.get("WORLD_SIZE", "1")
    if int(n_processes) > 1:
        raise RecipeError(
            f"processes cannot share this command, and {n_processes} of it were launched. Start it alone, {instead}."
        )


def _refuse(message: str) -> NoReturn:
    if int(os.environ.get("RANK", "0")) > 0:
        # What every process finds, the first one says; its end ends the others meanwhile.
        time.sleep(_SECONDS_FOR_THE_FIRST)
    console.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2) from None


def _message(error: AmadError) -> str:
    """The message alone, also where a data loader's worker put its traceback before it."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        return text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def print_json(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command called with ``--json``."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = ""
) -> None:
    """A table on standard output, as wide as it needs where no terminal limits it; numbers are right-aligned."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    # A pipe or a file has no edge to fold at.
    screen = output if output.is_terminal else Console(width=_WIDEST)
    screen.print(table)
    if caption:
        screen.print(escape(caption), style="dim", highlight=False)


def quiet_libraries() -> None:
    """Keep the libraries' own warnings and bars from writing between ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # For the processes that are started from here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _is_number(cell: object) -> bool:
    """Whether a cell is a number, maybe with a unit: ``12``, ``1,000``, ``98.5 %``, ``3.1 ms``, or a dash for none."""
    return isinstance(cell, int | float) or re.fullmatch(r"–|[-+]?[\d,.]+( %| ms)?", str(cell)) is not None
