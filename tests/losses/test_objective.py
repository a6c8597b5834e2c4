"""Terms, weights and counts."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amad.axes import SiteKey, SitePair
from amad.errors import CaptureError, RecipeError, ShapeError
from amad.losses.amad import AttentionAlignment
from amad.losses.logits import LogitsDistillation
from amad.losses.objective import Captured, Counts, Objective, Targets, Term, TermValue
from amad.losses.task import TaskLoss

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)


def batch(n=4, n_tokens=5, vocab=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocab, (n, n_tokens), generator=generator)
    for sample in range(n):
        labels[sample, sample + 1 :] = -100
    logits = [torch.randn(n, n_tokens, vocab, generator=generator) for _ in range(2)]
    return logits[0].requires_grad_(), logits[1], Targets(labels, torch.rand(n, generator=generator))


def slice_record(record, samples):
    changed = {"query": record.query[samples], "key": record.key[samples]}
    return type(record)(**{**vars(record), **changed, "query_keep": record.query_keep[samples]})


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("variant", ["kl", "mse", "token", "projected"])
def test_micro_batches_with_the_counts_of_the_whole_add_up_to_one_batch(reduction, variant):
    """Unequal padding in the parts: their own means would not add up."""
    logits, soft, targets = batch()
    student = plain.make_record(2, mask="keep", n_batch=4, seed=1, dtype=torch.float32, grad=True)
    teacher = plain.make_record(3, mask="keep", n_batch=4, seed=2, dtype=torch.float32)
    attention = AttentionAlignment([PAIR], variant=variant, projection="factored")
    attention.prepare({plain.SITE: student})
    objective = Objective(
        {
            "task": (1.0, TaskLoss(reduction)),
            "logits": (0.5, LogitsDistillation(2.0)),
            "attention": (3.0, attention),
        }
    )

    def value(samples, counts):
        return objective(
            Captured(logits[samples], {plain.SITE: slice_record(student, samples)}),
            Captured(soft[samples], {plain.SITE: slice_record(teacher, samples)}),
            Targets(targets.labels[samples], targets.weights[samples]),
            counts,
        )

    inputs = [logits, student.query, student.key, *objective.parameters()]
    counts = Counts.of(targets)
    assert counts == Counts(1 + 2 + 3 + 4, 4)
    whole = value(slice(0, 4), counts)
    parts = [value(samples, counts) for samples in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name in whole.parts:
        torch.testing.assert_close(sum(part.parts[name] for part in parts), whole.parts[name])
    expected = torch.autograd.grad(whole.loss, inputs, retain_graph=True)
    found = torch.autograd.grad(sum(part.loss for part in parts), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    tensors = Counts(*torch.tensor([10.0, 4.0]))
    torch.testing.assert_close(value(slice(0, 4), tensors).loss, whole.loss)


ROWS = torch.tensor([2, 1, 3])


def several_rows(reduction):
    """Three questions with six answers: the record of a vision stack has three samples, a decoder's six."""
    logits, soft, targets = batch(6, vocab=7)
    stacks = [SiteKey("vision.self", 0), SiteKey("decoder.self", 0)]
    pairs = [SitePair(key, key, weight) for key, weight in zip(stacks, (1.0, 2.0), strict=True)]
    records = {
        who: {
            key: plain.make_record(3, mask="keep", n_batch=n, seed=seed + n, dtype=torch.float32)
            for key, n in zip(stacks, (3, 6), strict=True)
        }
        for who, seed in (("student", 1), ("teacher", 20))
    }
    attention = AttentionAlignment(pairs)
    terms = {"task": TaskLoss(reduction), "logits": LogitsDistillation(2.0), "attention": attention}
    objective = Objective({name: (1.0, term) for name, term in terms.items()})

    def parts(samples, counts=None):
        rows = torch.arange(6).split(ROWS.tolist())
        chosen = torch.cat([rows[sample] for sample in samples])
        some = Targets(targets.labels[chosen], targets.weights[chosen], row_counts=ROWS[samples])
        of = {stacks[0]: samples, stacks[1]: chosen}
        captured = [
            Captured(
                scores[chosen], {key: slice_record(record, of[key]) for key, record in records[who].items()}
            )
            for who, scores in (("student", logits), ("teacher", soft))
        ]
        return objective(*captured, some, counts or Counts.of(some))

    losses = {
        key: attention.pair_loss(pair, records["student"][key], records["teacher"][key])
        for key, pair in zip(stacks, pairs, strict=True)
    }
    return parts, losses, targets


def test_a_sample_with_several_rows_counts_once():
    parts, losses, targets = several_rows("sum")
    whole = parts(torch.arange(3)).parts
    vision, decoder = losses.values()
    of_questions = torch.stack([rows.mean() for rows in decoder.split(ROWS.tolist())])
    torch.testing.assert_close(whole["attention"], (vision.mean() + 2 * of_questions.mean()) / 2)
    logits, _, _ = batch(6, vocab=7)
    each = [
        nn.functional.cross_entropy(scores, labels, reduction="sum")
        for scores, labels in zip(logits, targets.labels, strict=True)
    ]
    torch.testing.assert_close(whole["task"], (torch.stack(each) * targets.weights).sum().detach() / 3)


@pytest.mark.parametrize("reduction", ["sum", "sample", "token"])
def test_micro_batches_of_samples_with_several_rows_add_up_to_one_batch(reduction):
    parts, _, _ = several_rows(reduction)
    whole = parts(torch.arange(3))
    counts = Counts(1 + 2 + 3 + 4 + 5 + 5, 3)
    first, second = parts(torch.tensor([0]), counts), parts(torch.tensor([1, 2]), counts)
    torch.testing.assert_close(first.loss + second.loss, whole.loss)


def test_losses_of_neither_samples_nor_rows_are_refused():
    targets = Targets(torch.zeros(6, 2, dtype=torch.long), row_counts=ROWS)
    assert targets.n_samples == 3
    with pytest.raises(
        ShapeError, match="4 losses belong neither to the 3 samples of a batch nor to its 6 rows"
    ):
        targets.sum_over_samples(torch.ones(4))


class Fixed(Term):
    """A term whose total is a parameter times a number."""

    def __init__(self, total, unit="sample"):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.total, self.unit = total, unit

    def forward(self, student, teacher, targets):
        return TermValue(self.scale * self.total, self.unit)


LOGITS = Captured(torch.zeros(1, 2, 3))
TARGETS = Targets(torch.zeros(1, 2, dtype=torch.long))


def test_the_loss_is_the_weighted_sum_of_totals_over_their_counts():
    objective = Objective({"a": (2.0, Fixed(12.0)), "b": (0.25, Fixed(12.0, "token"))})
    value = objective(LOGITS, None, TARGETS, Counts(tokens=6, samples=3))
    assert value.loss.item() == pytest.approx(2.0 * 4 + 0.25 * 2)
    assert {name: part.item() for name, part in value.parts.items()} == {"a": 4.0, "b": 2.0}
    assert not any(part.requires_grad for part in value.parts.values())


def test_a_term_of_weight_zero_stays_in_the_graph_and_moves_nothing():
    objective = Objective({"a": (1.0, Fixed(2.0)), "b": (0.0, Fixed(5.0))})
    value = objective(LOGITS, None, TARGETS, Counts(1, 1))
    value.loss.backward()
    assert value.loss.item() == 2.0
    assert value.parts["b"].item() == 5.0
    assert objective.terms["b"].scale.grad.item() == 0.0


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_term_of_weight_zero_that_is_not_finite_leaves_the_loss_alone(broken):
    objective = Objective({"a": (1.0, Fixed(2.0)), "b": (0.0, Fixed(broken))})
    value = objective(LOGITS, None, TARGETS, Counts(1, 1))
    value.loss.backward()
    assert value.loss.item() == 2.0


def test_a_batch_without_any_target_has_a_loss_of_zero():
    logits, soft, _ = batch()
    objective = Objective({"task": (1.0, TaskLoss()), "logits": (1.0, LogitsDistillation())})
    targets = Targets(torch.full((4, 5), -100))
    value = objective(Captured(logits), Captured(soft), targets, Counts.of(targets))
    value.loss.backward()
    assert value.loss.item() == 0
    assert (logits.grad == 0).all()


def test_it_knows_what_it_needs():
    other = SitePair(SiteKey("decoder.self", 0), SiteKey("decoder.self", 1))
    task = Objective({"task": (1.0, TaskLoss())})
    assert not task.needs_teacher
    assert task.needs == {"logits"}
    assert task.pairs == ()
    both = Objective(
        {
            "task": (1.0, TaskLoss()),
            "one": (1.0, AttentionAlignment([PAIR, other])),
            "two": (1.0, AttentionAlignment([PAIR])),
        }
    )
    assert both.needs_teacher
    assert both.needs == {"logits", "records"}
    assert both.pairs == (PAIR, other)


def test_a_missing_teacher_or_capture_is_named():
    logits, _, targets = batch()
    distil = Objective({"soft": (1.0, LogitsDistillation())})
    with pytest.raises(RecipeError, match="'soft' compares with a teacher"):
        distil(Captured(logits), None, targets, Counts(1, 1))
    with pytest.raises(CaptureError, match="'soft' needs logits of the teacher"):
        distil(Captured(logits), Captured(), targets, Counts(1, 1))
    attention = Objective({"attention": (1.0, AttentionAlignment([PAIR]))})
    with pytest.raises(CaptureError, match="'attention' needs records of the student"):
        attention(Captured(logits), Captured(logits), targets, Counts(1, 1))


def test_weights_and_terms_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="at least one term"):
        Objective({})
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(RecipeError, match="weight of term 'task'"):
            Objective({"task": (weight, TaskLoss())})


def test_counts_leave_the_first_label_out_where_labels_are_shifted():
    targets = Targets(torch.tensor([[1, 2, -100], [3, -100, -100]]))
    assert Counts.of(targets) == (3, 2)
    assert Counts.of(targets, targets, shift_labels=True) == (2, 4)


def test_windows_of_a_sample_count_as_one():
    targets = Targets(torch.zeros(2, 1, dtype=torch.long))
    assert targets.sum_over_samples(torch.tensor([1.0, 2.0])) == 3
    assert targets.sum_over_samples(torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])) == 22
    with pytest.raises(ShapeError, match="3 losses belong neither to the 2 samples"):
        targets.sum_over_samples(torch.ones(3))
