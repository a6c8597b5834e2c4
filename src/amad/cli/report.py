"""``amad report``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from amad.cli.distill import Json
from amad.cli.kept import needs_kept, record_kept_later
from amad.cli.screen import console, output, print_json, quiet_libraries, user_errors


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs, a folder that holds some, or that of a comparison.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page; 'report' in the run, or beside several, when absent."),
    ] = None,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="First let the models of runs that lack examples and latencies answer: amad train and amad distill do "
            "that when they end, earlier versions did not.",
        ),
    ] = False,
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
        common = runs[0].resolve() if len(runs) == 1 else Path(os.path.commonpath(folders))
        if examples:
            quiet_libraries()
            for folder in folders:
                if needs_kept(folder):
                    record_kept_later(folder)
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
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
