"""A sample of the validation set, answered by teacher and student: where they differ and where they look."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.axes import SitePair
from amad.data.collate import Seq2SeqCollator
from amad.data.images import open_image
from amad.data.paths import write_whole
from amad.data.sheet import spread
from amad.data.vqa import VqaDataset
from amad.data.waiting import Wait, unseen
from amad.evaluation.attention_maps import attention_examples
from amad.evaluation.efficiency import compare_latency
from amad.evaluation.evaluate import Decoding, generate_batches, in_batches
from amad.metrics.fidelity import wilson_interval

EXAMPLES_FOLDER = "examples"
EXAMPLES_FILE = "examples.jsonl"

SAMPLE = 200
"""Items of the validation set that both models answer."""

SEEN = 6
"""Examples of which attention is kept."""

PICTURED = 12
"""Examples of each kind of difference of which the image is kept."""

WIDTH = 320

_BATCH = 50


class Examples(Protocol):
    """A data set with its examples, each of which may have an image."""

    @property
    def examples(self) -> Sequence[Any]:
        """What the items are made of."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def write_examples(
    folder: Path,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Examples,
    collator: Seq2SeqCollator,
    decoding: Decoding,
    pairs: Sequence[SitePair] = (),
    *,
    wait: Wait = unseen,
) -> dict[str, dict[str, Any]]:
    """Let student and teacher answer a sample of the set and write it into ``folder``.

    ``examples.jsonl`` has one line per item: ``index``, ``text`` (what the model reads), ``expected``, ``student`` and
    ``teacher`` (what they say), ``student_score`` and ``teacher_score`` (of questions alone: VQA accuracy, 0 to 1),
    ``image`` (a file in the folder; None if none was kept) and ``attention`` (None if it was not kept), as
    :func:`amad.evaluation.attention_maps.attention_examples` gives it. An earlier file is replaced.

    Args:
        folder: Usually ``examples`` in the folder of a run.
        models: ``student`` and ``teacher``.
        tokenizer: Of both.
        dataset: The validation set.
        collator: Makes batches.
        decoding: How texts are decoded.
        pairs: Sites whose attention is compared.
        wait: Shows how far it is.

    Returns:
        For ``student`` and ``teacher``: ``sample_items``, ``items`` (of the whole set), and of questions
        ``sample_score`` in percent with ``sample_low`` and ``sample_high``, Wilson's 95 % interval over items.

    Raises:
        AmadError: if items cannot be read, or attention cannot be recorded.
    """
    chosen = spread(range(len(dataset)), SAMPLE)
    said: dict[str, list[str]] = {name: [] for name in models}
    with wait("answering examples", len(models) * len(chosen)) as advance:
        for name, model in models.items():
            batches = in_batches(chosen, _BATCH)
            for texts in generate_batches(model, tokenizer, dataset, collator, decoding, batches):
                said[name] += texts
                advance(sum(map(len, said.values())), len(models) * len(chosen))
    rows = [
        _row(dataset, index, {name: said[name][position] for name in models})
        for position, index in enumerate(chosen)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    seen = _to_look_at(rows)
    transform = collator.image_transform
    # Over an image that was cropped, a map of what is left would lie.
    if pairs and getattr(transform, "image_size", None) is not None:
        batch = collator([_with_one_target(dataset[row["index"]]) for row in seen])
        found = attention_examples(models["student"], models["teacher"], pairs, batch, tokenizer)
        for row, attention in zip(seen, found, strict=True):
            row["attention"] = attention or None
    for row in [*seen, *_to_picture(rows)]:
        row["image"] = _keep_image(folder, dataset, row["index"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / EXAMPLES_FILE, lines)
    return {name: _score(rows, name, len(dataset)) for name in models}


def measure_latency(
    models: Mapping[str, PreTrainedModel], batch: Mapping[str, Any], new_tokens: int, repeats: int = 9
) -> dict[str, dict[str, float]]:
    """``median`` and the quartiles ``low`` and ``high`` of the seconds of one sample, by the names of the models."""
    found = compare_latency(models, batch, repeats=repeats, warmup=2, new_tokens=new_tokens)
    summaries = {}
    for name, latency in found.items():
        low, median, high = statistics.quantiles(latency.seconds, n=4, method="inclusive")
        summaries[name] = {"median": median, "low": low, "high": high}
    return summaries


def _row(dataset: Examples, index: int, said: Mapping[str, str]) -> dict[str, Any]:
    item = _with_one_target(dataset[index])
    expected = item["targets"][0] if "targets" in item else item["target"]
    row = {"index": index, "text": item["text"], "expected": expected, **said}
    if isinstance(dataset, VqaDataset) and dataset.examples[index].scores:
        row |= {f"{name}_score": dataset.examples[index].accuracy(text) for name, text in said.items()}
    return row | {"image": None, "attention": None}


def _with_one_target(item: dict[str, Any]) -> dict[str, Any]:
    """The item with its best target alone, where it has several: a map each for the decoder and the image."""
    if "targets" not in item:
        return item
    best = max(range(len(item["targets"])), key=lambda number: float(item["weights"][number]))
    return item | {name: (item[name][best],) for name in ("targets", "weights")}


def _kind(row: Mapping[str, Any]) -> str:
    """``same``, or who is better where the two differ: ``teacher``, ``student``, ``neither``."""
    if row["student"] == row["teacher"]:
        return "same"
    mine, its = row.get("student_score", 0.0), row.get("teacher_score", 0.0)
    return "teacher" if its > mine else "student" if mine > its else "neither"


def _to_look_at(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Half of them where the student fails and its teacher does not, as far as there are such."""
    lost = spread([row for row in rows if _kind(row) == "teacher"], SEEN // 2)
    rest = spread([row for row in rows if row not in lost], SEEN - len(lost))
    return sorted([*lost, *rest], key=lambda row: int(row["index"]))


def _to_picture(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = ("teacher", "student", "neither")
    return [row for kind in kinds for row in [row for row in rows if _kind(row) == kind][:PICTURED]]


def _keep_image(folder: Path, dataset: Examples, index: int) -> str | None:
    path = dataset.examples[index].image
    # Region features need no images, and few who use them have those.
    if path is None or not path.is_file():
        return None
    image = open_image(path)
    image.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    name = f"{index}.jpg"
    image.save(folder / name, quality=88, subsampling=0)
    return name


def _score(rows: Sequence[Mapping[str, Any]], name: str, n_items: int) -> dict[str, Any]:
    scores = [row[f"{name}_score"] for row in rows if f"{name}_score" in row]
    found: dict[str, Any] = {"sample_items": len(rows), "items": n_items}
    if scores:
        low, high = wilson_interval(sum(scores), len(scores))
        found |= {
            "sample_score": 100 * statistics.fmean(scores),
            "sample_low": 100 * low,
            "sample_high": 100 * high,
        }
    return found
