"""What every command shares: where it draws, how it ends, how it prints one JSON document."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from amad.errors import AmadError

console = Console(stderr=True)
"""Progress and messages; standard output is for results."""

output = Console()
"""Results for people."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """End with the message alone and status 2 where the user can mend the cause."""
    try:
        yield
    except AmadError as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; what was written so far is complete. Go on with --resume.")
        raise typer.Exit(130) from None


def print_json(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command called with ``--json``."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = ""
) -> None:
    """A table on standard output; numbers are right-aligned."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(
            isinstance(row[index], (int, float)) or _is_number(row[index]) for row in rows
        )
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_escape(str(cell)) for cell in row))
    output.print(table)


def quiet_libraries() -> None:
    """Keep the libraries' own warnings and bars from writing between ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _is_number(cell: object) -> bool:
    return (
        str(cell).strip(" %xMs±–-").replace(".", "").replace(",", "").replace(" ", "").isdigit()
        or cell == "–"
    )


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
