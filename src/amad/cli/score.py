"""``amad score``."""

from pathlib import Path
from typing import Annotated

import typer

from amad.cli.distill import Json
from amad.cli.screen import console, print_json, print_table, user_errors

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Score result files with the official metrics."""


@app.command("vqa")
def vqa(
    questions: Annotated[Path, typer.Option(help="Official questions, plain or .gz.", show_default=False)],
    annotations: Annotated[
        Path, typer.Option(help="Official annotations, plain or .gz.", show_default=False)
    ],
    results: Annotated[Path, typer.Option(help="Official result file, plain or .gz.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Official VQA accuracy, in percent, its quirks included."""
    from amad.metrics.vqa import score_vqa

    with user_errors():
        scores = score_vqa(questions, annotations, results)
        if as_json:
            print_json(
                {
                    "overall": scores.overall,
                    "per_answer_type": scores.per_answer_type,
                    "per_question_type": scores.per_question_type,
                }
            )
            return
        rows = [("all questions", f"{scores.overall:.2f}")]
        rows += [(name, f"{value:.2f}") for name, value in sorted(scores.per_answer_type.items())]
        rows += [(f"  {name}", f"{value:.2f}") for name, value in sorted(scores.per_question_type.items())]
        print_table("VQA accuracy", ("questions", "%"), rows)


@app.command("captions")
def captions(
    references: Annotated[
        Path,
        typer.Option(
            help="COCO captions, or Karpathy's file with --split; plain or .gz.", show_default=False
        ),
    ],
    results: Annotated[Path, typer.Option(help="COCO result file, plain or .gz.", show_default=False)],
    split: Annotated[
        str | None,
        typer.Option(
            help="The references are Karpathy's dataset_coco.json; score this split of it: val, test."
        ),
    ] = None,
    pretokenized: Annotated[
        bool, typer.Option("--pretokenized", help="Captions are tokens already; score them as they stand.")
    ] = False,
    meteor: Annotated[
        bool | None,
        typer.Option(
            "--meteor/--no-meteor",
            help="METEOR, which takes Java and some minutes for 5,000 images; computed where Java is when not said.",
            show_default=False,
        ),
    ] = None,
    spice: Annotated[
        bool, typer.Option("--spice", help="SPICE, which takes Java 8 and models fetched beforehand.")
    ] = False,
    as_json: Json = False,
) -> None:
    """BLEU, METEOR, ROUGE-L and CIDEr-D of a COCO result file, as the official scorers give them."""
    from amad.data.caption_files import read_karpathy
    from amad.metrics.captions import score_caption_files
    from amad.metrics.ptb import INSTALL_JAVA, has_java

    with user_errors():
        written = {one.image_id: one.captions for one in read_karpathy(references, split)} if split else None
        if not has_java():
            console.print(
                "note: there is no Java on the path. METEOR is left out unless it is asked for, and raw captions "
                f"become tokens by our tokenizer, as the signature says. For Java: {INSTALL_JAVA}.",
                highlight=False,
                soft_wrap=True,
            )
        scores = score_caption_files(
            references, results, written=written, pretokenized=pretokenized, meteor=meteor, spice=spice
        )
        if as_json:
            print_json(scores.summary())
            return
        rows = [(name, f"{value:.4f}", 10 if name == "CIDEr" else 1) for name, value in scores.corpus.items()]
        caption = f"{len(scores.per_image)} images, {scores.signature}"
        print_table("Caption scores", ("metric", "score", "at best"), rows, caption)


@app.command("translation")
def translation(
    references: Annotated[
        list[Path],
        typer.Option(
            help="One sentence per line, plain or .gz; repeat for several references.", show_default=False
        ),
    ],
    hypotheses: Annotated[
        Path,
        typer.Option(help="The translations, line by line, not tokenised; plain or .gz.", show_default=False),
    ],
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Compare without case, as VL-T5 scores Multi30K.")
    ] = False,
    tokenize: Annotated[str, typer.Option(help="sacreBLEU's tokenizer: 13a, intl, char or none.")] = "13a",
    as_json: Json = False,
) -> None:
    """BLEU and chrF of translations, as sacreBLEU gives them, with its signatures."""
    from amad.metrics.translation import score_translation_files

    with user_errors():
        scores = score_translation_files(references, hypotheses, lowercase=lowercase, tokenize=tokenize)
        if as_json:
            print_json(scores.summary())
            return
        rows = [("BLEU", f"{scores.bleu:.2f}", 100), ("chrF", f"{scores.chrf:.2f}", 100)]
        print_table(
            "Translation scores", ("metric", "score", "at best"), rows, "\n".join(scores.signatures.values())
        )
