"""How much each attention head of a model matters to its task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from amad.axes import SiteKey
from amad.capture.gates import GATED_BACKENDS, gated
from amad.capture.sites import Site
from amad.data.collate import FOR_THE_LOSS
from amad.errors import CaptureError
from amad.losses.objective import Captured, Counts, Targets
from amad.losses.pairs import check_choice
from amad.losses.task import TaskLoss
from amad.models.labels import predicts_next

Estimate = Literal["ablation", "gradient"]
"""Silence one head after another, or look at the loss's slope in every head's gate at once."""

Batch = Mapping[str, Any]


@runtime_checkable
class Batches(Protocol):
    """Inputs with labels; of those that are made as they are asked for, one at a time is held."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Each of them, once."""
        ...


@dataclass(frozen=True)
class HeadImportance:
    """What the heads of every site are worth, in nats per target token.

    Attributes:
        heads: Per site, the importance of each head.
        loss: The loss of the whole model on the same examples.
    """

    heads: dict[SiteKey, Float[Tensor, " head"]]
    loss: float

    def of_layers(self) -> dict[SiteKey, float]:
        """The importance of each site: the sum over its heads, where only what harms when missing counts."""
        return {key: float(heads.clamp(min=0).sum()) for key, heads in self.heads.items()}


def head_importance(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Batches,
    *,
    estimate: Estimate = "ablation",
    task: TaskLoss | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> HeadImportance:
    """Importance of every head on these batches.

    With L the cross entropy per target token, xi_h a factor on the output of head h before heads are mixed (1 in the
    model as it is), and L_b the part of sample b in L:

        ablation:   I_h = L(xi_h = 0) - L           the rise of the loss when the head is silent; below zero where the
                                                    model is better without it
        gradient:   I_h = sum_b |dL_b / dxi_h|      at xi = 1; Michel, Levy, Neubig 2019 (arXiv:1905.10650), section 4.1

    Ablation takes one forward pass per head and batch, the gradient one forward and one backward pass per batch. The
    gradient is a first-order estimate: it misses heads that stand in for one another, and heads at a plateau.

    Args:
        model: In evaluation mode while it is measured; no parameter gets a gradient.
        sites: Sites of the model; those of other back-ends than :data:`~amad.capture.gates.GATED_BACKENDS` are refused.
        batches: Inputs with labels, on the model's device.
        estimate: Which of the two.
        task: The loss, for its label shift, its weights and its smoothing; plain cross entropy when None, of the next
            label where the model predicts that.
        on_progress: Called with forward passes done and in all.

    Raises:
        RecipeError: if the estimate is unknown.
        CaptureError: if a site's heads cannot be silenced, or there is no batch.
    """
    check_choice("estimate", estimate, get_args(Estimate))
    if not len(batches):
        raise CaptureError("importance is measured on examples, and there are none. Give at least one batch.")
    for site in sites:
        if site.backend not in GATED_BACKENDS:
            raise CaptureError(
                f"{site.key} ({site.name}) is recorded by the back-end {site.backend}, where heads cannot be silenced "
                f"one by one. Leave its stack out."
            )
    if task is None:
        task = TaskLoss(shift_labels=isinstance(model, PreTrainedModel) and predicts_next(model))
    task = copy(task)
    # What is measured is per target token, however a run sums.
    task.reduction = "token"
    measure = _by_ablation if estimate == "ablation" else _by_gradient
    with _frozen(model):
        heads, loss, tokens = measure(model, sites, batches, task, on_progress)
    tokens = max(tokens, 1.0)
    return HeadImportance({key: value / tokens for key, value in heads.items()}, loss / tokens)


def _targets(batch: Batch) -> Targets:
    return Targets(_rows(batch["labels"]), batch.get("label_weights"), row_counts=batch.get("answer_counts"))


def _tokens(targets: Targets, task: TaskLoss) -> float:
    return float(Counts.of(targets, shift_labels=task.shift_labels).tokens)


def _rows(labels: Tensor) -> Tensor:
    """Labels of a classifier are rows of one."""
    return labels[:, None] if labels.ndim == 1 else labels


Measured = tuple[dict[SiteKey, Tensor], float, float]
"""What the heads are worth and the loss, both over all batches, and the target tokens."""


@torch.no_grad()
def _by_ablation(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Batches,
    task: TaskLoss,
    on_progress: Callable[[int, int], None] | None,
) -> Measured:
    by_key = {site.key: site for site in sites}
    rises = {site.key: torch.zeros(site.n_heads) for site in sites}
    whole, tokens, done = 0.0, 0.0, 0
    in_all = len(batches) * (1 + sum(site.n_heads for site in sites))
    for batch in batches:
        target = _targets(batch)
        tokens += _tokens(target, task)
        base = float(_loss(model, batch, target, task))
        whole, done = whole + base, done + 1
        for site in sites:
            for head in range(site.n_heads):
                gate = torch.ones(1, site.n_heads, device=target.labels.device)
                gate[0, head] = 0
                with gated(by_key, {site.key: gate}):
                    rises[site.key][head] += float(_loss(model, batch, target, task)) - base
                done += 1
                if on_progress is not None:
                    on_progress(done, in_all)
    return rises, whole, tokens


def _by_gradient(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Batches,
    task: TaskLoss,
    on_progress: Callable[[int, int], None] | None,
) -> Measured:
    by_key = {site.key: site for site in sites}
    slopes = {site.key: torch.zeros(site.n_heads) for site in sites}
    whole, tokens = 0.0, 0.0
    for done, batch in enumerate(batches, start=1):
        target = _targets(batch)
        tokens += _tokens(target, task)
        gates = {
            site.key: torch.ones(
                _n_rows(site, target), site.n_heads, device=target.labels.device, requires_grad=True
            )
            for site in sites
        }
        with torch.enable_grad(), gated(by_key, gates):
            total = _loss(model, batch, target, task)
        # A site of a part that this task does not run has no slope.
        found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
        for key, slope in zip(gates, found, strict=True):
            if slope is not None:
                slopes[key] += _by_sample(slope, target).abs().sum(0).cpu()
        whole += float(total.detach())
        if on_progress is not None:
            on_progress(done, len(batches))
    return slopes, whole, tokens


def _by_sample(slope: Tensor, targets: Targets) -> Tensor:
    """The slopes of the samples, of which a decoder may have several rows."""
    if targets.row_counts is None or len(slope) == targets.n_samples:
        return slope
    owners = torch.arange(targets.n_samples, device=slope.device).repeat_interleave(targets.row_counts)
    return slope.new_zeros(targets.n_samples, slope.shape[1]).index_add_(0, owners, slope)


def _n_rows(site: Site, targets: Targets) -> int:
    """Rows of a site's batch: a decoder has one per row of labels, what it looks at one per sample."""
    return len(targets.labels) if site.key.stack.startswith("decoder") else targets.n_samples


def _loss(model: nn.Module, batch: Batch, targets: Targets, task: TaskLoss) -> Tensor:
    """The total of the loss over a batch, in nats."""
    output = model(**{name: value for name, value in batch.items() if name not in FOR_THE_LOSS})
    logits = output["logits"]
    value = task(Captured(logits=logits[:, None] if logits.ndim == 2 else logits), None, targets)
    total: Tensor = value.total
    return total


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with no gradient for parameters."""
    training = [module for module in model.modules() if module.training]
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
