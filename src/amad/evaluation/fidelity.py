"""How alike a student and its teacher predict on a set, and how well each knows what it knows."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from amad.data.collate import FOR_THE_LOSS, Seq2SeqCollator
from amad.data.vqa import VqaDataset
from amad.data.waiting import Advance, Wait, unseen
from amad.errors import RecipeError, ShapeError
from amad.evaluation.evaluate import Items, blanked, in_batches
from amad.losses.logits import forward_kl
from amad.losses.objective import IGNORED_LABEL
from amad.losses.task import aligned, exact
from amad.metrics.fidelity import Calibration, agreement
from amad.models.labels import predicts_next
from amad.models.student import check_compatible

_NOT_FOR_THE_MODEL = ("labels", *FOR_THE_LOSS)
_TOKENS_AT_ONCE = 512


@dataclass
class TokenFidelity:
    """Predictions of two models for the tokens of the ground truth, each after the true ones before it.

    Attributes:
        n_tokens: Tokens of the ground truth.
        n_equal: Those at which the most probable token of both models is the same.
        kl_sum: KL(teacher || student), summed over tokens, in nats.
        student: Confidence of the student in its most probable token, and whether that was the true one.
        teacher: The teacher's.
    """

    n_tokens: int = 0
    n_equal: int = 0
    kl_sum: float = 0.0
    student: Calibration = field(default_factory=Calibration)
    teacher: Calibration = field(default_factory=Calibration)

    def add(
        self,
        student: Float[Tensor, "batch position vocab"],
        teacher: Float[Tensor, "batch position vocab"],
        labels: Int[Tensor, "batch position"],
        shift_labels: bool,
    ) -> None:
        """The tokens of one more batch, from logits at temperature 1.

        Args:
            student: Logits of the student.
            teacher: Logits of the teacher.
            labels: The true tokens; -100 where there is none.
            shift_labels: Position t predicts label t + 1, as in decoders alone; otherwise label t.

        Raises:
            ShapeError: if the vocabularies or the numbers of positions differ.
        """
        if student.shape[-1] != teacher.shape[-1]:
            raise ShapeError(
                f"student and teacher vocabularies differ: {student.shape[-1]} != {teacher.shape[-1]}. "
                "Compare models that share a tokenizer."
            )
        mine, wanted = aligned(student, labels, shift_labels)
        its, _ = aligned(teacher.to(student.device), labels, shift_labels)
        keep = wanted != IGNORED_LABEL
        # Soft-maxes of a whole batch over a large vocabulary would be gigabytes.
        parts = [torch.split(one[keep], _TOKENS_AT_ONCE) for one in (mine, its, wanted)]
        for ours, theirs, right in zip(*parts, strict=True):
            log_ours, log_theirs = (exact(logits).log_softmax(-1) for logits in (ours, theirs))
            self.n_tokens += len(right)
            self.kl_sum += forward_kl(log_ours, log_theirs).sum(dtype=torch.float64).item()
            said = []
            for log_probs, calibration in ((log_ours, self.student), (log_theirs, self.teacher)):
                top = log_probs.max(-1)
                said.append(top.indices)
                calibration.add(top.values.exp().cpu().numpy(), (top.indices == right).cpu().numpy())
            self.n_equal += int((said[0] == said[1]).sum())

    def summary(self) -> dict[str, Any]:
        """Agreement in percent, KL(teacher || student) per token in nats; None without any token."""
        n = self.n_tokens
        return {
            "n_tokens": n,
            "token_agreement_percent": 100 * self.n_equal / n if n else None,
            "kl_nats_per_token": self.kl_sum / n if n else None,
        }


@torch.inference_mode()
def compare_tokens(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    shift_labels: bool | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TokenFidelity:
    """Agreement and divergence of the next-token distributions of two models, and the calibration of each.

        mean over tokens t of [argmax q_t = argmax p_t]  and of  sum_v p_tv (log p_tv - log q_tv)

    with p_t of the teacher and q_t of the student at temperature 1, both after the true tokens before t: the top-1
    agreement and predictive KL of Stanton et al. 2021 (arXiv:2106.05945), a token in the place of an image. Samples of
    weight 0 have no ground truth and are left out. One batch of logits is held at a time.

    Args:
        student: In evaluation mode meanwhile, as the teacher.
        teacher: With the same vocabulary.
        batches: Inputs with ``labels`` (batch, token) or (batch,), and maybe ``label_weights``.
        shift_labels: Position t predicts label t + 1; None: as the class of the student has it.
        on_progress: Called with the samples that are done.

    Raises:
        ShapeError: if the vocabularies or the numbers of positions differ.
        RecipeError: if a model returns no logits or a batch has no labels.
    """
    check_compatible(student, teacher)
    shift = predicts_next(student) if shift_labels is None else shift_labels
    found, n_samples = TokenFidelity(), 0
    with _evaluating(student, teacher):
        for batch in batches:
            labels = _labels(batch)
            mine, its = _logits(student, batch, labels), _logits(teacher, batch, labels)
            weights = batch.get("label_weights")
            if weights is not None:
                labels = labels.masked_fill(weights[:, None] == 0, IGNORED_LABEL)
            found.add(mine, its, labels.to(student.device), shift)
            n_samples += len(labels)
            if on_progress is not None:
                on_progress(n_samples)
    return found


@torch.inference_mode()
def text_probabilities(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    on_progress: Callable[[int], None] | None = None,
) -> list[float]:
    """The probability that a model gives to the whole text in the labels of each sample, the end included.

        prod_t p(token t | the inputs, tokens before t)

    Of a text that the model said itself this is its confidence in it, however it was searched for.

    Args:
        model: In evaluation mode meanwhile.
        batches: Inputs with ``labels`` (batch, token), as of :func:`batched` with those texts.
        on_progress: Called with the samples that are done.

    Raises:
        RecipeError: if the model returns no logits or a batch has no labels.
    """
    found: list[float] = []
    with _evaluating(model):
        for batch in batches:
            labels = _labels(batch)
            logits, wanted = aligned(
                _logits(model, batch, labels), labels.to(model.device), predicts_next(model)
            )
            keep = wanted != IGNORED_LABEL
            log_probs = exact(logits[keep]).log_softmax(-1).gather(-1, wanted[keep][:, None])[:, 0]
            per_token = log_probs.new_zeros(wanted.shape).masked_scatter(keep, log_probs)
            found += per_token.sum(1).exp().tolist()
            if on_progress is not None:
                on_progress(len(found))
    return found


def batched(
    dataset: Items,
    collator: Seq2SeqCollator,
    batch_size: int,
    *,
    texts: Sequence[str] | None = None,
    max_length: int = 0,
    blank_images: bool = False,
    workers: int = 0,
) -> Iterable[dict[str, Tensor]]:
    """The whole set in its order, a batch at a time.

    Args:
        dataset: The items.
        collator: Makes batches.
        batch_size: Items per batch.
        texts: One target per item in the place of its own, of which none is cut.
        max_length: Most decoder tokens that the texts were generated with, where targets may be shorter.
        blank_images: As in :func:`amad.evaluation.evaluate.generate_batches`.
        workers: Likewise.
    """
    if texts is not None:
        # A text of the greatest length that was generated may lack its end, which is a token more.
        collator = copy.copy(collator)
        collator.max_target_tokens = max(collator.max_target_tokens + 1, max_length)

    def collate(numbered: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Tensor]:
        given = [item if texts is None else item | {"target": texts[index]} for index, item in numbered]
        return blanked(collator(given)) if blank_images else collator(given)

    return DataLoader(
        cast(Dataset[Any], _Numbered(dataset)),
        batch_sampler=in_batches(range(len(dataset)), batch_size),
        collate_fn=collate,
        num_workers=workers,
    )


def measure_fidelity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    dataset: Items,
    batches: Callable[[Sequence[str] | None], Iterable[Mapping[str, Tensor]]],
    said: tuple[Sequence[str], Sequence[str]],
    wait: Wait = unseen,
) -> dict[str, Any]:
    """Agreement of what both models said, their predictions compared, and how well each knows when it is right.

    Calibration ``tokens`` is of the most probable token after the true ones before it, and whether that is the true
    one. ``answers``, of questions that have answers, is of the whole answer that the model said: the probability that
    it gives it, against its VQA accuracy, which is a share and is not rounded to right or wrong.

    Args:
        student: With the teacher's vocabulary.
        teacher: Its teacher.
        dataset: The items.
        batches: Gives all items in batches, with their own targets or with these texts; see :func:`batched`.
        said: What the student and what the teacher said of each item.
        wait: Shows how far it is.

    Returns:
        ``agreement_percent`` with ``agreement_interval_percent`` (Wilson, 95 %); the figures of
        :meth:`TokenFidelity.summary`; and ``calibration`` of ``student`` and ``teacher``, each with ``tokens`` and, of
        questions, ``answers``, as :meth:`amad.metrics.fidelity.Calibration.summary` has them. Where there is no ground
        truth, what needs it is None.

    Raises:
        ShapeError, RecipeError: as :func:`compare_tokens`.
    """
    equal, n = agreement(*said), len(dataset)
    with wait("comparing predictions", n) as advance:
        tokens = compare_tokens(student, teacher, batches(None), on_progress=_of(n, advance))
    calibration: dict[str, dict[str, Any]] = {}
    by_model = (("student", student, said[0], tokens.student), ("teacher", teacher, said[1], tokens.teacher))
    for who, model, texts, known in by_model:
        calibration[who] = {"tokens": known.summary() if known.n else None}
        if isinstance(dataset, VqaDataset):
            with wait(f"confidence of the {who}", n) as advance:
                sure = text_probabilities(model, batches(texts), _of(n, advance))
            of_answers = Calibration()
            answered = [index for index, example in enumerate(dataset.examples) if example.scores]
            of_answers.add(
                [sure[index] for index in answered],
                [dataset.examples[index].accuracy(texts[index]) for index in answered],
            )
            calibration[who]["answers"] = of_answers.summary() if of_answers.n else None
    return {
        "agreement_percent": equal.percent,
        "agreement_interval_percent": list(equal.interval_percent),
        **tokens.summary(),
        "calibration": calibration,
    }


def _of(total: int, advance: Advance) -> Callable[[int], None]:
    """Tells what is done of so many."""
    return lambda done: advance(done, total)


class _Numbered:
    """Items with their numbers."""

    def __init__(self, dataset: Items) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        return index, self.dataset[index]


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    labels = batch.get("labels")
    if labels is None:
        raise RecipeError(
            f"predictions are compared at the tokens of 'labels', and a batch has {sorted(batch)}. Give labels."
        )
    return labels[:, None] if labels.ndim == 1 else labels


def _logits(model: PreTrainedModel, batch: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Logits (batch, position, vocabulary) after the true tokens; scores of classes are those of one position."""
    inputs = {name: value.to(model.device) for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = shifted(labels=labels.to(model.device))
    logits: Tensor | None = model(**inputs).get("logits")
    if logits is None:
        raise RecipeError(f"{type(model).__name__} returns no logits, so its predictions cannot be compared.")
    return logits[:, None] if logits.ndim == 2 else logits


@contextlib.contextmanager
def _evaluating(*models: PreTrainedModel) -> Iterator[None]:
    """The models in evaluation mode, and then as they were."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
