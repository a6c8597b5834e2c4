"""Distillation of predictions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amad.errors import RecipeError, ShapeError
from amad.losses.logits import LogitsDistillation
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


def test_equal_logits_cost_nothing_and_a_constant_added_changes_nothing():
    logits = random(0, 2, 3, 5)
    assert total(logits, logits.clone()).item() == 0
    other = random(1, 2, 3, 5)
    torch.testing.assert_close(total(logits + 5, other - 3), total(logits, other))


def test_at_a_high_temperature_it_is_half_the_squared_distance_of_centred_logits_over_the_words():
    """Hinton et al. 2015, section 2.1, equation 4."""
    student, teacher = random(0, 2, 3, 5), random(1, 2, 3, 5)
    difference = student - teacher
    centred = (difference - difference.mean(-1, keepdim=True))[LABELS != -100]
    torch.testing.assert_close(
        total(student, teacher, 1e3), centred.square().sum() / 2 / 5, rtol=1e-2, atol=0
    )


def test_gradients_are_right_and_the_teacher_has_none():
    student, teacher = random(0, 2, 3, 5).requires_grad_(), random(1, 2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: total(logits, teacher.detach(), 2.0), [student])
    total(student, teacher).backward()
    assert teacher.grad is None
    assert (student.grad[LABELS == -100] == 0).all()


def test_words_that_both_rule_out_add_nothing():
    student, teacher = random(0, 2, 3, 5), random(1, 2, 3, 5)
    ruled_out = torch.full((2, 3, 1), -math.inf, dtype=torch.float64)
    padded = torch.cat([student, ruled_out], -1).requires_grad_()
    found = total(padded, torch.cat([teacher, ruled_out], -1))
    torch.testing.assert_close(found, total(student, teacher))
    found.backward()
    assert torch.isfinite(padded.grad).all()


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
