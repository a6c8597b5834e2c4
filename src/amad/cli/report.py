"""``amad report``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from amad.cli.distill import Json
from amad.cli.screen import console, output, print_json, user_errors


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or a folder that holds some.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page; 'report' in the run, or beside several, when absent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one page of what runs recorded: scores, losses, who teaches whom, and where heads look.

    The page is one file that opens from disk, without network.
    """
    from amad.report.document import build_document
    from amad.report.page import write_page
    from amad.report.run import find_runs, read_run

    with user_errors():
        folders = find_runs(runs)
        common = Path(os.path.commonpath(folders))
        found = []
        with console.status("reading records") as status:
            for number, folder in enumerate(folders, 1):
                status.update(f"reading records of run {number} of {len(folders)}")
                found.append(read_run(folder))
        document = build_document(found, title=common.name)
        path = write_page(document, out or common / "report")
        if as_json:
            print_json(
                {
                    "page": str(path),
                    "runs": [str(folder) for folder in folders],
                    "methods": [
                        {"name": group["name"], "n_runs": group["n_runs"], "score": group["score"]}
                        for group in document["groups"]
                    ],
                }
            )
            return
        output.print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser.",
            highlight=False,
            soft_wrap=True,
        )
