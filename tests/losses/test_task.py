"""Cross entropy in every reduction."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from amad.errors import RecipeError, ShapeError
from amad.losses.objective import Captured, Targets
from amad.losses.task import TaskLoss

# Probabilities 1/2, 1/4, 1/4.
ROW = [math.log(2.0), 0.0, 0.0]
LOGITS = torch.tensor([[ROW, ROW, ROW], [ROW, ROW, ROW]])
LABELS = torch.tensor([[0, 1, -100], [2, -100, -100]])


def total(term, weights=None, logits=LOGITS, labels=LABELS):
    value = term(Captured(logits), None, Targets(labels, weights))
    return value.total.item(), value.unit


def test_token_sums_over_the_tokens_of_all_samples():
    assert total(TaskLoss()) == (pytest.approx(5 * math.log(2)), "token")


def test_sample_averages_over_the_tokens_of_each_sample_first():
    assert total(TaskLoss("sample")) == (pytest.approx(1.5 * math.log(2) + 2 * math.log(2)), "sample")


def test_weights_multiply_the_samples():
    weights = torch.tensor([1.0, 0.3])
    assert total(TaskLoss(), weights)[0] == pytest.approx((3 + 0.3 * 2) * math.log(2))
    assert total(TaskLoss("sample"), weights)[0] == pytest.approx((1.5 + 0.3 * 2) * math.log(2))


def test_sum_adds_the_tokens_of_each_sample_up():
    weights = torch.tensor([0.6, 0.2])
    assert total(TaskLoss("sum")) == (pytest.approx(5 * math.log(2)), "sample")
    assert total(TaskLoss("sum"), weights)[0] == pytest.approx((0.6 * 3 + 0.2 * 2) * math.log(2))


def test_shifted_labels_are_predicted_by_the_position_before():
    """Of labels 0 1 - and 2 - -, only the 1 has a position before it."""
    logits = torch.zeros(2, 3, 3)
    logits[0, 0] = torch.tensor(ROW)
    assert total(TaskLoss(shift_labels=True), logits=logits)[0] == pytest.approx(2 * math.log(2))


@given(seed=st.integers(0, 99), smoothing=st.sampled_from([0.0, 0.1]), shift=st.booleans())
def test_the_mean_over_tokens_is_that_of_torch(seed, smoothing, shift):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 6, generator=generator)
    labels = torch.randint(0, 6, (3, 4), generator=generator)
    labels[torch.rand(3, 4, generator=generator) < 0.4] = -100
    labels[0, -1] = 1
    first = 1 if shift else 0
    expected = nn.functional.cross_entropy(
        logits[:, : 4 - first].flatten(0, 1), labels[:, first:].flatten(), label_smoothing=smoothing
    )
    found, _ = total(TaskLoss("token", shift, smoothing), logits=logits, labels=labels)
    assert found / int((labels[:, first:] != -100).sum()) == pytest.approx(expected.item(), rel=1e-5)


def test_a_sample_without_a_target_gives_zero_and_zero_gradient():
    logits = LOGITS.clone().requires_grad_()
    labels = torch.tensor([[0, 1, 2], [-100, -100, -100]])
    total = TaskLoss("sample")(Captured(logits), None, Targets(labels)).total
    assert total.item() == pytest.approx(5 / 3 * math.log(2))
    total.backward()
    assert (logits.grad[1] == 0).all()
    assert logits.grad[0].abs().sum() > 0


def test_half_precision_is_reduced_in_float32():
    value = TaskLoss()(Captured(LOGITS.bfloat16()), None, Targets(LABELS))
    assert value.total.dtype == torch.float32


def test_refusals():
    with pytest.raises(ShapeError, match=r"\(2, 3, 3\) do not have one position per label \(2, 2\)"):
        total(TaskLoss(), labels=LABELS[:, :2])
    with pytest.raises(RecipeError, match=r"label_smoothing = 1.0"):
        TaskLoss(label_smoothing=1.0)


KINDS = torch.tensor([1, 0])


def figures(term, labels=LABELS, kinds=KINDS, weights=None):
    value = term(Captured(LOGITS), None, Targets(labels, weights, kinds))
    return {
        name: None if not count else (total / count).item() for name, (total, count) in value.figures.items()
    }


def test_each_kind_has_its_own_loss_and_share_of_exact_targets():
    # The first sample says 0 and 1 where 0 and 0 are most likely; the second says 2.
    assert figures(TaskLoss(kinds=("match", "span", "none"))) == {
        "loss_match": pytest.approx(2 * math.log(2)),
        "accuracy_match": 0.0,
        "loss_span": pytest.approx(1.5 * math.log(2)),
        "accuracy_span": 0.0,
        "loss_none": None,
        "accuracy_none": None,
    }
    right = torch.tensor([[0, 0, -100], [2, 0, -100]])
    found = figures(TaskLoss("sample", kinds=("match", "span")), right, weights=torch.tensor([1.0, 0.5]))
    assert found == {
        "loss_match": pytest.approx(0.5 * 1.5 * math.log(2)),
        "accuracy_match": 0.0,
        "loss_span": pytest.approx(math.log(2)),
        "accuracy_span": 100.0,
    }


def test_a_sample_without_a_target_is_no_exact_one():
    empty = torch.full((2, 3), -100)
    assert figures(TaskLoss("sample", kinds=("a", "b")), empty)["accuracy_a"] == 0


@given(seed=st.integers(0, 99), reduction=st.sampled_from(["token", "sample"]))
def test_losses_of_kinds_add_up_to_the_whole(seed, reduction):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, 6, generator=generator)
    labels = torch.randint(0, 6, (5, 4), generator=generator)
    labels[torch.rand(5, 4, generator=generator) < 0.4] = -100
    targets = Targets(labels, kinds=torch.randint(0, 3, (5,), generator=generator))
    value = TaskLoss(reduction, kinds=("a", "b", "c"))(Captured(logits), None, targets)
    parts = [value.figures[f"loss_{kind}"] for kind in "abc"]
    assert sum(part.total for part in parts).item() == pytest.approx(value.total.item(), rel=1e-5, abs=1e-6)
    n_tokens = int((labels != -100).sum())
    assert int(sum(part.divisor for part in parts)) == (n_tokens if reduction == "token" else 5)


def test_an_exact_target_is_what_greedy_decoding_gives():
    torch.manual_seed(1)
    sizes = {"vocab_size": 6, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    asked = torch.arange(2, 6)[:, None].repeat(1, 3)
    with torch.no_grad():
        said = model.generate(asked, max_new_tokens=3, min_new_tokens=3, do_sample=False)[:, 1:]
        labels = said.clone()
        labels[1, 2] = (labels[1, 2] + 1) % 6
        labels[2, 0] = (labels[2, 0] + 1) % 6
        logits = model(asked, labels=labels).logits
    term = TaskLoss(kinds=("all",))
    value = term(Captured(logits), None, Targets(labels, kinds=torch.zeros(4, dtype=torch.long)))
    assert value.figures["accuracy_all"] == (200, 4)
