"""Caption scores, from the reference scorers (pycocoevalcap): BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE."""

import contextlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amad.errors import DataError
from amad.metrics.documents import field, index_by, read_head, read_rows, refuse_unmatched
from amad.metrics.ptb import INSTALL_JAVA, has_java, on_one_line, tokenize, tokenize_in_java

ImageId = int | str
_Captions = Mapping[int, list[str]]
IN_JAVA = ("METEOR", "SPICE")

INSTALL_SCORERS = "pip install 'amad[metrics]'"
INSTALL_SPICE = (
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()"'
)


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one caption per image against the captions that people wrote, as the scorers give them.

    All are from 0 to 1 but CIDEr, which is from 0 to 10.

    Attributes:
        corpus: ``Bleu_1`` to ``Bleu_4``, ``METEOR``, ``ROUGE_L``, ``CIDEr``, ``SPICE``; METEOR and SPICE
            where they were computed.
        per_image: The same of each image by its id, in the order of the references.
        bleu_counts: From which BLEU follows: ``testlen``, ``reflen``, and n-grams of each order in the
            candidates, ``guess``, and those of them in the references, ``correct``.
        signature: How captions became tokens, and the scorers' version.
    """

    corpus: Mapping[str, float]
    per_image: Mapping[ImageId, Mapping[str, float]]
    bleu_counts: Mapping[str, Any]
    signature: str

    def summary(self) -> dict[str, Any]:
        """What is published: everything but the single images."""
        return {**self.corpus, "n_images": len(self.per_image), "signature": self.signature}


def score_captions(
    references: Mapping[ImageId, Sequence[str]],
    candidates: Mapping[ImageId, str],
    *,
    pretokenized: bool = False,
    meteor: bool | None = None,
    spice: bool = False,
    java: bool | None = None,
) -> CaptionScores:
    """Score one caption per image with the reference scorers.

    CIDEr is CIDEr-D (Vedantam et al. 2015, section 6: clipped counts and a length penalty, sigma 6, mean over
    n = 1..4, times 10). Its document frequencies are those of the references given, so a part of a test set
    scores differently from the whole; of one image alone it is 0. ROUGE-L takes the highest precision and the
    highest recall over references, beta 1.2. BLEU takes the closest reference length.

    Captions become tokens by the scorers' own tokenizer, which runs in Java. Without Java ours takes its
    place, and the signature says so. Measured on distinct English captions and questions of COCO, Flickr8k,
    Multi30K and VQA v2: the same tokens for all 57,044 that it was made with and for all but one of 30,835 kept
    aside, which was mended since. Rare marks in other text may still part differently.

    Args:
        references: Captions by image.
        candidates: The caption to score by image, of the same images.
        pretokenized: Captions are tokens already, parted by single spaces; they are scored as they stand.
        meteor: Whether to compute METEOR (some minutes for 5,000 images); if Java is there when None.
        spice: Whether to compute SPICE, which needs Java 8 and models that its package fetches.
        java: Whether captions become tokens in Java; if it is there when None. False starts no process, unless
            ``meteor`` or ``spice`` is true.

    Raises:
        DataError: if images differ, there are none, a caption is no string, an image has no reference or no
            reference has a word; pycocoevalcap is not installed; METEOR or SPICE is wanted and Java or the
            models are missing; or Java fails.
    """
    _refuse_misfits(references, candidates)
    refuse_missing(meteor, spice)
    java = has_java() if java is None else java
    texts = [[on_one_line(one) for one in several] for several in references.values()]
    texts += [[on_one_line(candidates[image])] for image in references]
    if not pretokenized:
        flat = [one for several in texts for one in several]
        tokens = iter(tokenize_in_java(flat) if java else [" ".join(tokenize(one)) for one in flat])
        texts = [[next(tokens) for _ in several] for several in texts]
    # Scorers know images by their place: SPICE sorts them.
    n_images = len(references)
    gts, res = dict(enumerate(texts[:n_images])), dict(enumerate(texts[n_images:]))
    if not any(one.split() for several in gts.values() for one in several):
        raise DataError("references need words and none has one when punctuation is dropped. Check them.")

    columns, corpus, counts = _bleu(gts, res)
    for name, compute_score in _scorers(meteor or (meteor is None and java), spice).items():
        with _java(name) if name in IN_JAVA else contextlib.nullcontext():
            score, single = compute_score(gts, res)
        corpus[name] = float(score)
        columns[name] = [_number(one) for one in single]
    per_image = {
        image: {name: column[i] for name, column in columns.items()} for i, image in enumerate(references)
    }
    return CaptionScores(corpus, per_image, counts, _signature(pretokenized, java))


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Captions by image, from the official COCO form, plain or .gz, in the order of its ``images``.

    A document without ``images`` has the images of its ``annotations``.

    Raises:
        DataError: if the file is missing, truncated or malformed; an image is listed twice, is not listed or
            has no caption; or a caption is no string.
    """
    rows = read_rows(path, "annotations")
    listed = index_by(read_rows(path, "images"), "id", path) if "images" in read_head(path) else None
    captions: dict[ImageId, list[str]] = {image: [] for image in listed or ()}
    for i, row in enumerate(rows):
        where = f"{path}, annotations item {i}"
        image = field(row, "image_id", (int, str), where)
        caption = field(row, "caption", str, where)
        if listed is not None and image not in listed:
            raise DataError(
                f"{where}: its image {image} is not among 'images'. Remove the caption or list the image."
            )
        captions.setdefault(image, []).append(caption)
    bare = [image for image, said in captions.items() if not said]
    if bare:
        raise DataError(
            f"{path}: every image needs a caption to score against but {bare[0]} has none "
            f"({len(bare)} such). Remove the image or caption it."
        )
    if not captions:
        raise DataError(f"{path}: has no caption, so there is nothing to score against. Check the file.")
    return captions


def read_candidates(path: Path) -> dict[ImageId, str]:
    """The caption of each image from a result file: ``[{"image_id": .., "caption": ".."}]``, plain or .gz.

    Raises:
        DataError: if the file is missing, truncated or malformed, an image occurs twice or a caption is no
            string.
    """
    rows = index_by(read_rows(path), "image_id", path)
    return {image: field(row, "caption", str, f"{path}, image {image}") for image, row in rows.items()}


def score_caption_files(
    references: Path,
    results: Path,
    *,
    written: Mapping[ImageId, Sequence[str]] | None = None,
    pretokenized: bool = False,
    meteor: bool | None = None,
    spice: bool = False,
) -> CaptionScores:
    """``score_captions`` of the official files.

    Args:
        references: COCO captions.
        results: COCO results.
        written: What ``references`` holds, where it was read already because it has another form.
        pretokenized: As ``score_captions``; likewise the others.
        meteor: Likewise.
        spice: Likewise.

    Raises:
        DataError: as ``read_references``, ``read_candidates`` and ``score_captions``, naming the file.
    """
    written = read_references(references) if written is None else written
    given = read_candidates(results)
    refuse_unmatched(given, written, lambda one: f"{results}: image {one} is not in {references}")
    refuse_unmatched(written, given, lambda one: f"{results}: has no caption of image {one}")
    return score_captions(written, given, pretokenized=pretokenized, meteor=meteor, spice=spice)


def _scorers(meteor: bool, spice: bool) -> dict[str, Callable[[_Captions, _Captions], Any]]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice

    scorers = {"METEOR": _meteor} if meteor else {}
    scorers |= {"ROUGE_L": Rouge().compute_score, "CIDEr": Cider().compute_score}
    return scorers | ({"SPICE": Spice().compute_score} if spice else {})


def _meteor(gts: _Captions, res: _Captions) -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return scorer.compute_score(gts, res)
    except BaseException:
        # It still holds the lock for which its destructor would wait for ever.
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()
        if scorer.lock.locked():
            scorer.lock.release()
        raise


@contextlib.contextmanager
def _java(name: str) -> Iterator[None]:
    """A failure of Java is one error, and what it writes to standard output goes to standard error."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise DataError(
            f"{name} runs in Java, which failed ({error}). Try `java -version`; a working one comes by "
            f"{INSTALL_JAVA}. METEOR takes 2 GiB of memory; SPICE takes 8 GiB and Java 8."
        ) from None
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _bleu(gts: _Captions, res: _Captions) -> tuple[dict[str, list[float]], dict[str, float], dict[str, Any]]:
    """BLEU of each image, of all, and its counts, which the scorer's own wrapper only prints."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for place, several in gts.items():
        scorer += (res[place][0], several)
    score, single = scorer.compute_score(option="closest")
    names = [f"Bleu_{n}" for n in range(1, 5)]
    counts: dict[str, Any] = {
        "testlen": scorer.testlen(option="closest"),
        "reflen": scorer.reflen(option="closest"),
    }
    for kind in ("guess", "correct"):
        counts[kind] = [sum(one[kind][n] for one in scorer.ctest) for n in range(4)]
    return dict(zip(names, single, strict=True)), dict(zip(names, score, strict=True)), counts


def _refuse_misfits(references: Mapping[ImageId, Sequence[str]], candidates: Mapping[ImageId, str]) -> None:
    refuse_unmatched(candidates, references, lambda one: f"image {one} has a caption but no reference")
    refuse_unmatched(references, candidates, lambda one: f"image {one} has references but no caption")
    if not references:
        raise DataError("there are no captions to score. Check that the set is not empty.")
    for image, several in references.items():
        if isinstance(several, str) or not several:
            raise DataError(f"image {image}: needs a list of references but has {several!r:.80}. Add them.")
        for one in (*several, candidates[image]):
            _refuse_other_than_text(one, image)


def _refuse_other_than_text(caption: object, image: ImageId) -> None:
    if not isinstance(caption, str):
        raise DataError(f"image {image}: a caption must be a string but is {caption!r:.80}. Mend it.")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"image {image}: a caption must be Unicode text but {caption!r:.80} has half a surrogate pair. Mend it."
        ) from None


def refuse_missing(meteor: bool | None = False, spice: bool = False) -> None:
    """Everything that is wanted is installed.

    Raises:
        DataError: naming what is not and how to get it.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise DataError(f"scoring captions needs pycocoevalcap. Run {INSTALL_SCORERS}.")
    wanted = " and ".join(name for name, want in (("METEOR", meteor), ("SPICE", spice)) if want)
    if wanted and not has_java():
        raise DataError(
            f"{wanted} cannot be computed without Java, and there is no `java` on the path. Run {INSTALL_JAVA}; or "
            "leave it out."
        )
    models = Path(package.submodule_search_locations[0], "spice", "lib").glob("stanford-corenlp-3.6.0*.jar")
    if spice and len(list(models)) < 2:
        raise DataError(
            f"SPICE needs the models of Stanford CoreNLP 3.6.0, 400 MB that are not there. Run {INSTALL_SPICE}."
        )


def _number(score: Any) -> float:
    """Of one image; SPICE gives an object of which "All" is the score."""
    return float(score["All"]["f"] if isinstance(score, dict) else score)


def _signature(pretokenized: bool, java: bool) -> str:
    tokenizer = "none" if pretokenized else "ptb" if java else "amad-ptb"
    version = importlib.metadata.version("pycocoevalcap")
    return f"tokenizer:{tokenizer}|java:{'yes' if java else 'no'}|pycocoevalcap:{version}"
