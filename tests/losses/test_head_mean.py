"""The means over heads, and what they have in common with the mean as an alignment."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SitePair
from amad.capture.record import TokenLayout
from amad.losses import head_mean as module
from amad.losses.methods import attention_term

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)

masks = st.sampled_from(plain.MASKS)
extras = st.sampled_from(plain.EXTRAS)
heads = st.integers(1, 4)
seeds = st.integers(0, 99)


def losses(student, teacher, method="head_mean"):
    return attention_term([PAIR], method).pair_loss(PAIR, student, teacher)


def plain_losses(student, teacher):
    found = []
    for sample in range(student.n_batch):
        rows = plain.kept_rows(student, teacher, sample)
        total = torch.zeros((), dtype=torch.float64)
        if rows:
            s, t = (
                plain.normalised(plain.plain_maps(record, sample, rows)).mean(0)
                for record in (student, teacher)
            )
            total = sum(plain.plain_kl(t[q], s[q]) for q in range(len(rows))) / len(rows)
        found.append(teacher.n_heads * total)
    return torch.stack(found)


def test_a_case_worked_by_hand():
    """Teacher heads (1, 0) and (1/2, 1/2), mean (3/4, 1/4); student mean (1/2, 1/2); two heads."""
    teacher = plain.from_maps(torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]], dtype=torch.float64))
    student = plain.from_maps(torch.tensor([[[[0.9, 0.1]], [[0.1, 0.9]]]], dtype=torch.float64))
    expected = 2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert losses(student, teacher).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=15)
@given(mask=masks, extra=extras, n_students=heads, n_teachers=heads, seed=seeds)
def test_it_is_the_divergence_of_dense_means(mask, extra, n_students, n_teachers, seed):
    student = plain.make_record(n_students, mask=mask, extra=extra, seed=seed)
    teacher = plain.make_record(n_teachers, mask=mask, extra=extra, seed=seed + 1, width=2)
    expected = plain_losses(student, teacher)
    torch.testing.assert_close(losses(student, teacher), expected, rtol=1e-9, atol=1e-9)


@given(mask=masks, extra=extras, seed=seeds)
@settings(max_examples=10)
def test_its_gradient_is_that_of_the_mean_as_an_alignment(mask, extra, seed):
    student = plain.make_record(2, mask=mask, extra=extra, seed=seed, grad=True)
    teacher = plain.make_record(3, mask=mask, extra=extra, seed=seed + 1)
    one, other = losses(student, teacher), losses(student, teacher, "mean")
    assert (one <= other + 1e-12).all()
    gradients = [torch.autograd.grad(value.sum(), (student.query, student.key)) for value in (one, other)]
    torch.testing.assert_close(*gradients)


@given(mask=masks, seed=seeds)
@settings(max_examples=10)
def test_equal_means_cost_nothing_in_any_order(mask, seed):
    """The same heads in another order have the same mean."""
    teacher = plain.make_record(4, mask=mask if mask != "per_head" else "bool", seed=seed)
    student = plain.with_heads(teacher, [2, 0, 3, 1])
    torch.testing.assert_close(
        losses(student, teacher), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_more_padding_changes_nothing():
    student, teacher = (plain.make_record(h, 4, 4, mask="bool", seed=h, dtype=torch.float32) for h in (2, 3))
    longer = losses(plain.padded(student, 3), plain.padded(teacher, 3))
    torch.testing.assert_close(longer, losses(student, teacher), atol=1e-6, rtol=1e-6)


def test_rows_in_blocks_give_what_all_at_once_give(monkeypatch):
    student, teacher = plain.make_record(2, 7, 5, "keep", seed=1), plain.make_record(3, 7, 5, "keep", seed=2)
    whole = losses(student, teacher)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 2 * 3 * 5 * 2)
    torch.testing.assert_close(losses(student, teacher), whole)


def test_a_teacher_with_finer_patches_is_compared_on_the_students():
    student_layout, teacher_layout = TokenLayout(0, 2, 2), TokenLayout(1, 4, 4)
    student = dataclasses.replace(
        plain.make_record(2, 4, 4, seed=1), query_layout=student_layout, key_layout=student_layout
    )
    teacher = dataclasses.replace(
        plain.make_record(3, 17, 17, seed=2), query_layout=teacher_layout, key_layout=teacher_layout
    )
    one = dataclasses.replace(teacher, query=teacher.query[:, :1], key=teacher.key[:, :1])
    assert (losses(student, teacher) > 0).all()
    # One head is its own mean.
    torch.testing.assert_close(losses(student, one), losses(student, one, "mean"))
