"""Translation scores, from the reference scorer (sacreBLEU): BLEU and chrF."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amad.errors import DataError
from amad.metrics.documents import read_bytes

TOKENIZERS = ("13a", "intl", "char", "none")
"""What may stand between raw text and n-grams: sacreBLEU's tokenizers that need no further package."""


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a corpus, from 0 to 100.

    Attributes:
        bleu: BLEU.
        chrf: chrF2, of characters without spaces; the tokenizer has no part in it.
        counts: Matched n-grams of the orders 1 to 4.
        totals: All n-grams of the hypotheses.
        brevity_penalty: From 0 to 1.
        hypothesis_length: In tokens.
        reference_length: In tokens, of the closest references.
        signatures: How each score was computed, in sacreBLEU's form, by the name of the score.
    """

    bleu: float
    chrf: float
    counts: Sequence[int]
    totals: Sequence[int]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int
    signatures: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """The scores under sacreBLEU's names, with their signatures."""
        return {"BLEU": self.bleu, "chrF": self.chrf, "signature": dict(self.signatures)}


def score_translations(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> TranslationScores:
    """Corpus BLEU (Papineni et al. 2002, section 2.3) and chrF2 (Popović 2015, section 2) of raw text.

    Args:
        references: One or more sets of references, each with a sentence for every hypothesis.
        hypotheses: Sentences as they would be read, not tokenised.
        lowercase: Compare without case, as VL-T5 scores Multi30K; BLEU and chrF alike.
        tokenize: One of ``TOKENIZERS``, for BLEU.

    Raises:
        DataError: if there is no sentence or no reference; their numbers differ; the tokenizer is none of
            those; or sacreBLEU is not installed.
    """
    if tokenize not in TOKENIZERS:
        raise DataError(
            f"a tokenizer must be one of {', '.join(TOKENIZERS)} but is {tokenize!r}. Choose one."
        )
    if not references:
        raise DataError(
            "a translation is scored against references and there are none. Give at least one set."
        )
    for number, one in enumerate(references, start=1):
        refuse_unequal(f"references {number}", one, "the hypotheses", hypotheses)
    if not hypotheses:
        raise DataError("there are no translations to score. Check that the files are not empty.")
    refuse_missing()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # Without force it logs a warning where text looks tokenised; the score is the same.
    bleu = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    chrf = CHRF(lowercase=lowercase)
    found = bleu.corpus_score(hypotheses, references)
    return TranslationScores(
        bleu=found.score,
        chrf=chrf.corpus_score(hypotheses, references).score,
        counts=tuple(found.counts),
        totals=tuple(found.totals),
        brevity_penalty=found.bp,
        hypothesis_length=found.sys_len,
        reference_length=found.ref_len,
        signatures={"BLEU": str(bleu.get_signature()), "chrF": str(chrf.get_signature())},
    )


def score_translation_files(
    references: Sequence[Path], hypotheses: Path, *, lowercase: bool = False, tokenize: str = "13a"
) -> TranslationScores:
    """``score_translations`` of files with one sentence per line.

    Raises:
        DataError: as ``read_sentences`` and ``score_translations``, naming the files.
    """
    given = read_sentences(hypotheses)
    written = [read_sentences(path) for path in references]
    for path, sentences in zip(references, written, strict=True):
        refuse_unequal(str(path), sentences, str(hypotheses), given)
    if not given:
        raise DataError(f"{hypotheses}: has no line, so there is nothing to score. Check the file.")
    return score_translations(written, given, lowercase=lowercase, tokenize=tokenize)


def read_sentences(path: Path) -> list[str]:
    """The lines of a file in UTF-8, plain or .gz; only a line feed ends a line.

    Other characters at which Python breaks lines stand within the sentences of some corpora. A carriage
    return before the line feed belongs to the line's end. A line may be empty: a model may say nothing.

    Raises:
        DataError: if the file is missing, is truncated or is not UTF-8.
    """
    try:
        text = read_bytes(path, "text").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: must be UTF-8 but has the byte 0x{error.object[error.start]:02x} "
            f"({error.reason}). Convert the file to UTF-8."
        ) from None
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def refuse_missing() -> None:
    """The scorer is installed.

    Raises:
        DataError: if it is not.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise DataError("scoring translations needs sacrebleu. Run pip install 'amad[metrics]'.")


def refuse_unequal(name: str, sentences: Sequence[str], other: str, others: Sequence[str]) -> None:
    """Two sets have as many sentences.

    Raises:
        DataError: naming both and their numbers.
    """
    if len(sentences) != len(others):
        raise DataError(
            f"{name} must have as many lines as {other}, but has {len(sentences)} against {len(others)}. Check "
            "that both are whole and of the same set."
        )
