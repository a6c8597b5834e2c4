"""Divergence of teacher maps from mixtures of student maps."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import RecipeError, ShapeError
from amad.ops import maps
from amad.ops.aligned_kl import MASS_FLOOR, aligned_kl, dense, reference, row_aligned_kl

sys.path.insert(0, str(Path(__file__).parent))
import plain


def random_alignment(n_teachers, n_students, n_batch=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n_batch, n_teachers, n_students, generator=generator, dtype=torch.float64).softmax(-1)


def expected_kl(student, teacher, alignment):
    values = []
    for sample in range(student.n_batch):
        rows = plain.kept_rows(student, teacher, sample)
        s = plain.normalised(plain.plain_maps(student, sample, rows))
        t = plain.normalised(plain.plain_maps(teacher, sample, rows))
        for i in range(len(t)):
            mixture = sum(alignment[sample, i, j] * s[j] for j in range(len(s)))
            values.append(sum(plain.plain_kl(t[i, q], mixture[q]) for q in range(len(rows))) / len(rows))
    return torch.stack(values).view(student.n_batch, -1)


@pytest.mark.parametrize("mask", plain.MASKS)
@pytest.mark.parametrize("extra", plain.EXTRAS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(5, 5), (3, 6)])
def test_it_is_the_divergence_of_the_dense_maps(mask, extra, n_queries, n_keys):
    student = plain.make_record(2, n_queries, n_keys, mask, extra, seed=1)
    teacher = plain.make_record(4, n_queries, n_keys, mask, extra, seed=2, width=2)
    alignment = random_alignment(4, 2)
    torch.testing.assert_close(
        aligned_kl(student, teacher, alignment), expected_kl(student, teacher, alignment)
    )


def test_row_by_row_it_equals_the_flattened_maps_divided_by_their_sums():
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    alignment = random_alignment(3, 2)
    s, t = (r.rows(dtype=torch.float64).flatten(2) for r in (student, teacher))
    mixture = torch.bmm(alignment, s) / 5
    expected = ((t / 5) * ((t / 5) / mixture).log()).sum(-1)
    torch.testing.assert_close(aligned_kl(student, teacher, alignment), expected)


@given(
    mask=st.sampled_from(plain.MASKS),
    extra=st.sampled_from(plain.EXTRAS),
    seed=st.integers(0, 99),
    sharpness=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_the_fast_form_is_the_definition_with_its_gradients(mask, extra, seed, sharpness):
    student = plain.make_record(2, mask=mask, extra=extra, seed=seed, sharpness=sharpness)
    teacher = plain.make_record(3, mask=mask, extra=extra, seed=seed + 1, sharpness=sharpness)
    (block,) = maps.map_blocks(student, teacher)
    block = reference.whole_rows(block)
    s, t = block.student.flatten(2).requires_grad_(), block.teacher.flatten(2)
    a = random_alignment(3, 2).requires_grad_()
    fast, defined = dense.mixture_kl(s, t, a), reference.mixture_kl(s, t, a)
    torch.testing.assert_close(fast, defined)
    weights = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((fast * weights).sum(), (s, a)),
        torch.autograd.grad((defined * weights).sum(), (s, a)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_are_right():
    student = plain.make_record(2, 3, 4, "float", "bias", seed=1, width=2)
    teacher = plain.make_record(3, 3, 4, "keep", seed=2)

    def kl(query, key, bias, alignment):
        record = dataclasses.replace(student, query=query, key=key, position_bias=bias)
        return aligned_kl(record, teacher, alignment)

    tensors = student.query, student.key, student.position_bias, random_alignment(3, 2)
    assert torch.autograd.gradcheck(kl, [tensor.clone().requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("extra", plain.EXTRAS)
def test_gradients_of_the_form_per_row_are_right(extra):
    student = plain.make_record(2, 3, 4, "float", extra, seed=1, width=2)
    teacher = plain.make_record(3, 3, 4, "keep", seed=2)

    def kl(query, key):
        return row_aligned_kl(dataclasses.replace(student, query=query, key=key), teacher, 0.5)

    tensors = student.query, student.key
    assert torch.autograd.gradcheck(kl, [tensor.clone().requires_grad_() for tensor in tensors])


def test_blocks_of_rows_change_nothing(monkeypatch):
    student, teacher = (plain.make_record(h, 7, 5, "keep", seed=h, grad=h == 2) for h in (2, 3))
    alignment = random_alignment(3, 2)
    whole = [aligned_kl(student, teacher, alignment), row_aligned_kl(student, teacher)]
    gradients = [torch.autograd.grad(value.sum(), student.query)[0] for value in whole]
    monkeypatch.setattr(maps, "BLOCK_NUMBERS", 2 * 5 * 5 * 3)
    parts = [aligned_kl(student, teacher, alignment), row_aligned_kl(student, teacher)]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        [torch.autograd.grad(value.sum(), student.query)[0] for value in parts], gradients
    )


def test_a_key_that_only_the_teacher_may_attend_costs_a_finite_amount():
    """Half of the teacher's mass lies on a key that the student's mask hides: half of log(0.5 / 1e-30)."""
    zeros = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    student = dataclasses.replace(
        plain.make_record(1, 1, 2, n_batch=1, width=2, grad=True),
        mask=torch.tensor([[[[True, False]]]]),
    )
    teacher = dataclasses.replace(plain.make_record(1, 1, 2, n_batch=1, width=2), query=zeros)
    found = aligned_kl(student, teacher, torch.ones(1, 1, 1, dtype=torch.float64))
    expected = 0.5 * math.log(0.5 / 1.0) + 0.5 * math.log(0.5 / MASS_FLOOR)
    assert found.item() == pytest.approx(expected)
    found.sum().backward()
    assert torch.isfinite(student.query.grad).all()


def test_a_student_with_no_mass_at_all_is_finite():
    teacher = torch.tensor([[[0.3, 0.7]]])
    student = torch.zeros(1, 1, 2, requires_grad=True)
    alignment = torch.ones(1, 1, 1, requires_grad=True)
    for form in (dense, reference):
        value = form.mixture_kl(student, teacher, alignment)
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), (student, alignment)):
            assert (gradient == 0).all()


def test_equal_maps_cost_exactly_nothing():
    record = plain.make_record(3, seed=1, dtype=torch.float32)
    same = torch.eye(3).expand(2, -1, -1).contiguous()
    torch.testing.assert_close(
        aligned_kl(record, dataclasses.replace(record), same), torch.zeros(2, 3), atol=1e-6, rtol=0
    )


def test_what_a_sink_takes_is_left_out_of_the_divergence():
    """With and without sinks the rows divided by their sums are the same."""
    student, teacher = (
        plain.make_record(2, extra="sinks", seed=1),
        plain.make_record(3, extra="sinks", seed=2),
    )
    bare = [dataclasses.replace(record, sinks=None) for record in (student, teacher)]
    alignment = random_alignment(3, 2)
    torch.testing.assert_close(aligned_kl(student, teacher, alignment), aligned_kl(*bare, alignment))
    torch.testing.assert_close(row_aligned_kl(student, teacher), row_aligned_kl(*bare))


def test_the_form_per_row_takes_an_alignment_for_each_row():
    """Two heads that swap roles from row to row are matched in each row, and are not on the whole map."""
    sharp = torch.tensor([[[0.99, 0.01], [0.01, 0.99]], [[0.01, 0.99], [0.99, 0.01]]], dtype=torch.float64)
    swapped = sharp.clone()
    swapped[:, 1] = sharp.flip(0)[:, 1]
    empty = plain.make_record(2, 2, 2, n_batch=1, width=0)
    student = dataclasses.replace(empty, probabilities=sharp[None])
    teacher = dataclasses.replace(empty, probabilities=swapped[None])
    assert row_aligned_kl(student, teacher, 0.01).max() < 1e-6
    same = torch.eye(2, dtype=torch.float64)[None]
    assert aligned_kl(student, teacher, same).min() > 1


def test_an_alignment_of_other_heads_is_refused():
    with pytest.raises(ShapeError, match=r"\(2, 2, 3\), but the records have .* = \(2, 3, 2\)"):
        aligned_kl(plain.make_record(2), plain.make_record(3), random_alignment(2, 3))
    with pytest.raises(RecipeError, match=r"temperature = -1.0"):
        row_aligned_kl(plain.make_record(2), plain.make_record(3), -1.0)
