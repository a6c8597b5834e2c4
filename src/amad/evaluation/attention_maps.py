"""What heads look at: their attention over the patches of an image and the words beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord, TokenLayout
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import PairingError
from amad.ops.alignment import cosines
from amad.ops.attention_gram import attention_gram

LONGEST_SIDE = 32
"""Patches of a map that is kept, along its longer side; larger ones are made smaller."""

_WITH_WORDS = ("encoder", "decoder")


class Look(NamedTuple):
    """What the heads of one site look at in one sample.

    Attributes:
        patches: Mean attention of the rows that count to each patch.
        before: The same to each token before the patches.
    """

    patches: Float[Tensor, "head row column"]
    before: Float[Tensor, "head token"]


def look(record: AttentionRecord, sample: int) -> Look | None:
    """Where the heads of a site look on average; None where its keys are not the patches of an image.

    The mean is over the query rows of real tokens that are no patches (words, or a class token), or where there are
    none over all rows of real tokens. Both parts of a head sum to one together, but for tokens after the patches.
    """
    layout = record.key_layout
    if layout is None:
        return None
    one = record.samples(slice(sample, sample + 1))
    rows = _rows_that_look(one.keep()[0], one.query_layout)
    attention = one.rows()[0][:, rows].mean(1)
    end = layout.before + layout.height * layout.width
    patches = attention[:, layout.before : end].reshape(-1, layout.height, layout.width)
    return Look(_smaller(patches), attention[:, : layout.before])


@torch.no_grad()
def attention_examples(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    pairs: Sequence[SitePair],
    batch: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    """For each sample of a batch what the heads of every pair that sees an image look at.

    Args:
        student: In evaluation mode meanwhile, as the teacher.
        teacher: It.
        pairs: Of sites.
        batch: Inputs with labels: the decoder reads the true text.
        tokenizer: Says what the words are.

    Returns:
        Per sample a list of pairs that see an image: ``student`` and ``teacher``, each with its ``site``, its ``grid``
        (rows, columns) and ``heads``; the ``words`` beside the image, where keys are words too; ``cosines`` of teacher
        head i and student head j over whole maps. A head has ``largest`` (attention to one patch), ``patches`` (row by
        row, in 255ths of that), ``share`` (attention to all patches) and ``words`` (attention to each).

    Raises:
        PairingError: if a pair names a site that a model lacks.
        CaptureError: if a site cannot be recorded.
        ShapeError: if the tokens of the two differ and cannot be matched.
    """
    records = {
        "student": _records(student, [pair.student for pair in pairs], batch),
        "teacher": _records(teacher, [pair.teacher for pair in pairs], batch),
    }
    examples: list[dict[str, Any]] = [{"pairs": []} for _ in range(len(batch["input_ids"]))]
    for pair in pairs:
        mine, its = records["student"][pair.student], records["teacher"][pair.teacher]
        if mine.key_layout is None or its.key_layout is None:
            continue
        alike = cosines(attention_gram(mine, its)).cross
        for sample, example in enumerate(examples):
            sides = {
                who: _side(site, record, sample)
                for who, site, record in (("student", pair.student, mine), ("teacher", pair.teacher, its))
            }
            words = _words(pair.student, mine, batch, sample, tokenizer)
            numbers = [[round(value, 4) for value in row] for row in alike[sample].tolist()]
            example["pairs"].append({**sides, "words": words, "cosines": numbers})
    return [example["pairs"] for example in examples]


def _records(
    model: PreTrainedModel, keys: Sequence[SiteKey], batch: Mapping[str, Tensor]
) -> dict[SiteKey, AttentionRecord]:
    sites = {site.key: site for site in find_sites(model)}
    for key in keys:
        if key not in sites:
            raise PairingError(f"{key} is not an attention site of {type(model).__name__}. Pair others.")
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "label_weights"}
    was_training = model.training
    model.eval()
    try:
        with Recorder(model, [sites[key] for key in dict.fromkeys(keys)], detach=True) as recorder:
            model(**inputs)
            return recorder.take(inputs)
    finally:
        model.train(was_training)


def _rows_that_look(keep: Bool[Tensor, " query"], layout: TokenLayout | None) -> Bool[Tensor, " query"]:
    if layout is None:
        return keep
    single = torch.ones_like(keep)
    single[layout.before : layout.before + layout.height * layout.width] = False
    return keep & single if bool((keep & single).any()) else keep


def _smaller(patches: Float[Tensor, "head row column"]) -> Float[Tensor, "head row column"]:
    """Sums of neighbouring patches where there are more than are kept."""
    factor = -(-max(patches.shape[1:]) // LONGEST_SIDE)
    if factor == 1:
        return patches
    # Zeros complete the last window, so that each sums what it holds.
    padded = torch.nn.functional.pad(patches, (0, -patches.shape[2] % factor, 0, -patches.shape[1] % factor))
    return factor**2 * torch.nn.functional.avg_pool2d(padded, factor)


def _side(site: SiteKey, record: AttentionRecord, sample: int) -> dict[str, Any]:
    seen = look(record, sample)
    assert seen is not None
    largest = seen.patches.flatten(1).amax(1)
    shades = (255 * seen.patches.flatten(1) / largest.clamp_min(1e-12)[:, None]).round().int()
    return {
        "site": str(site),
        "grid": list(seen.patches.shape[1:]),
        "heads": [
            {
                "largest": round(most, 6),
                "share": round(share, 4),
                "patches": patches,
                "words": [round(a, 4) for a in before],
            }
            for most, share, patches, before in zip(
                largest.tolist(),
                seen.patches.sum((1, 2)).tolist(),
                shades.tolist(),
                seen.before.tolist(),
                strict=True,
            )
        ],
    }


def _words(
    site: SiteKey,
    record: AttentionRecord,
    batch: Mapping[str, Tensor],
    sample: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """The tokens before the patches, where those are the text; padding is empty."""
    ids = batch["input_ids"][sample]
    layout = record.key_layout
    if layout is None or layout.before != len(ids) or site.stack.split(".")[0] not in _WITH_WORDS:
        return []
    real = batch["attention_mask"][sample].bool().tolist()
    return [
        tokenizer.decode([number]) if kept else "" for number, kept in zip(ids.tolist(), real, strict=True)
    ]
