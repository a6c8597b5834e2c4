"""Distillation of predictions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import nn

from amad.errors import RecipeError, ShapeError
from amad.losses.logits import DIVERGENCES, LogitsDistillation
from amad.losses.objective import Captured, Targets

LABELS = torch.tensor([[3, 1, -100], [2, -100, -100]])


def total(student, teacher, temperature=1.0, labels=LABELS, **arguments):
    term = LogitsDistillation(temperature, **arguments)
    return term(Captured(student), Captured(teacher), Targets(labels)).total


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_case_worked_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4) at three tokens: each costs log(4/3) / 2 nats."""
    student = torch.tensor([math.log(3.0), 0.0]).expand(2, 3, 2)
    found = total(student, torch.zeros(2, 3, 2), labels=LABELS.clamp(max=1))
    assert found.item() == pytest.approx(3 * 0.5 * math.log(4 / 3))


@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]))
def test_it_is_the_divergence_of_torch_over_the_kept_tokens(seed, temperature):
    student, teacher = random(seed, 2, 3, 5), random(seed + 1, 2, 3, 5)
    kept = LABELS != -100
    expected = temperature**2 * nn.functional.kl_div(
        (student[kept] / temperature).log_softmax(-1),
        (teacher[kept] / temperature).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    found = total(student, teacher, temperature)
    torch.testing.assert_close(found, expected)
    assert found >= 0


@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_reverse_and_symmetric_divergences_are_those_of_scipy(seed, temperature):
    student, teacher = random(seed, 2, 3, 5), random(seed + 1, 2, 3, 5)
    kept = LABELS != -100
    q, p = ((logits[kept] / temperature).softmax(-1).numpy() for logits in (student, teacher))
    found = {name: total(student, teacher, temperature, divergence=name).item() for name in DIVERGENCES}
    assert found["reverse_kl"] == pytest.approx(temperature**2 * entropy(q, p, axis=-1).sum())
    symmetric = (jensenshannon(q, p, axis=-1) ** 2).sum()
    assert found["jsd"] == pytest.approx(temperature**2 * symmetric)
    assert 0 <= symmetric <= 3 * math.log(2)
    assert total(teacher, student, temperature, divergence="jsd").item() == pytest.approx(found["jsd"])
    assert total(teacher, student, temperature).item() == pytest.approx(found["reverse_kl"])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_logits_cost_nothing_and_a_constant_added_changes_nothing(divergence):
    logits = random(0, 2, 3, 5)
    assert total(logits, logits.clone(), divergence=divergence).item() == pytest.approx(0, abs=1e-15)
    other = random(1, 2, 3, 5)
    torch.testing.assert_close(
        total(logits + 5, other - 3, divergence=divergence), total(logits, other, divergence=divergence)
    )


@pytest.mark.parametrize(("divergence", "share"), [("forward_kl", 1), ("reverse_kl", 1), ("jsd", 1 / 4)])
def test_at_a_high_temperature_it_is_half_the_squared_distance_of_centred_logits_over_the_words(
    divergence, share
):
    """Hinton et al. 2015, section 2.1, equation 4; of the symmetric divergence a quarter."""
    student, teacher = random(0, 2, 3, 5), random(1, 2, 3, 5)
    difference = student - teacher
    centred = (difference - difference.mean(-1, keepdim=True))[LABELS != -100]
    torch.testing.assert_close(
        total(student, teacher, 1e3, divergence=divergence),
        share * centred.square().sum() / 2 / 5,
        rtol=1e-2,
        atol=0,
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_are_right_and_the_teacher_has_none(divergence):
    student, teacher = random(0, 2, 3, 5).requires_grad_(), random(1, 2, 3, 5).requires_grad_()

    def loss(logits):
        return total(logits, teacher.detach(), 2.0, divergence=divergence)

    assert torch.autograd.gradcheck(loss, [student])
    total(student, teacher, divergence=divergence).backward()
    assert teacher.grad is None
    assert (student.grad[LABELS == -100] == 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_words_that_both_rule_out_add_nothing(divergence):
    student, teacher = random(0, 2, 3, 5), random(1, 2, 3, 5)
    ruled_out = torch.full((2, 3, 1), -math.inf, dtype=torch.float64)
    padded = torch.cat([student, ruled_out], -1).requires_grad_()
    found = total(padded, torch.cat([teacher, ruled_out], -1), divergence=divergence)
    torch.testing.assert_close(found, total(student, teacher, divergence=divergence))
    found.backward()
    assert torch.isfinite(padded.grad).all()


def test_words_that_one_rules_out_cost_what_the_divergence_says():
    """Half and half against the first word alone: log 2, infinite, and the middle of log(4/3) and half of that."""
    half, first = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -math.inf]]])
    label = torch.tensor([[0]])

    def costs(student, teacher):
        return {n: total(student, teacher, labels=label, divergence=n).item() for n in DIVERGENCES}

    wide, narrow = costs(half, first), costs(first, half)
    assert wide["forward_kl"] == narrow["reverse_kl"] == pytest.approx(math.log(2))
    assert wide["reverse_kl"] == narrow["forward_kl"] == math.inf
    assert wide["jsd"] == narrow["jsd"] == pytest.approx(0.75 * math.log(4 / 3))


def test_shifted_labels_keep_the_position_before():
    """Only label 1 of the first sample has a position before it: position 0."""
    student, teacher = random(0, 2, 3, 5), random(1, 2, 3, 5)
    labels = torch.tensor([[1, -100, -100], [-100, -100, -100]])
    torch.testing.assert_close(
        total(student, teacher, shift_labels=True), total(student, teacher, labels=labels)
    )


def test_other_vocabularies_are_refused_with_both_sizes():
    with pytest.raises(ShapeError, match="vocabularies differ: 5 != 6"):
        total(random(0, 2, 3, 5), random(1, 2, 3, 6))
    with pytest.raises(ShapeError, match=r"\(2, 4, 5\) do not have one position per label"):
        total(random(0, 2, 3, 5), random(1, 2, 4, 5))
    with pytest.raises(RecipeError, match=r"temperature = 0\.0"):
        LogitsDistillation(0.0)
