"""Divergence of teacher maps from mixtures of student maps."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from amad.errors import RecipeError, ShapeError
from amad.ops import sweep
from amad.ops.aligned_kl import MASS_FLOOR, aligned_kl, row_aligned_kl
from amad.ops.backends import operator_backend
from amad.ops.rows import TRAINED

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
def test_it_is_the_divergence_of_the_dense_maps(mask, extra, n_queries, n_keys, form):
    student = plain.make_record(2, n_queries, n_keys, mask, extra, seed=1)
    teacher = plain.make_record(4, n_queries, n_keys, mask, extra, seed=2, width=2)
    alignment = random_alignment(4, 2)
    torch.testing.assert_close(
        aligned_kl(student, teacher, alignment), expected_kl(student, teacher, alignment)
    )


def test_row_by_row_it_equals_the_flattened_maps_divided_by_their_sums(form):
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    alignment = random_alignment(3, 2)
    s, t = (r.rows(dtype=torch.float64).flatten(2) for r in (student, teacher))
    mixture = torch.bmm(alignment, s) / 5
    expected = ((t / 5) * ((t / 5) / mixture).log()).sum(-1)
    torch.testing.assert_close(aligned_kl(student, teacher, alignment), expected)


def all_gradients(student, teacher, alignment, weights):
    """Values and gradients of both forms of the divergence, weighed head by head, to everything that wants one."""
    alignment = alignment.clone().requires_grad_()
    tensors = {name: getattr(student, name) for name in TRAINED}
    tensors = {
        name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad
    }
    found = []
    for value, names in (
        (aligned_kl(student, teacher, alignment), (*tensors, "alignment")),
        (row_aligned_kl(student, teacher, 0.3), tuple(tensors)),
    ):
        inputs = [alignment if name == "alignment" else tensors[name] for name in names]
        gradients = torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True)
        found += [value, *gradients]
    return [torch.zeros(()) if tensor is None else tensor for tensor in found]


@given(
    mask=st.sampled_from(plain.MASKS),
    extra=st.sampled_from(plain.EXTRAS),
    seed=st.integers(0, 99),
    sharpness=st.sampled_from([0.0, 1.0, 30.0]),
    rows=st.sampled_from([1, 2, 64]),
    even=st.booleans(),
    together=st.booleans(),
)
def test_the_chunked_form_is_the_definition_with_its_gradients(
    mask, extra, seed, sharpness, rows, even, together
):
    # Where a sink takes all that float64 can tell, the definition has a row of zeros, and the other form the exact row.
    assume(extra != "sinks" or sharpness < 30)
    student = plain.make_record(2, mask=mask, extra=extra, seed=seed, sharpness=sharpness, grad=True)
    if student.sinks is not None:
        student.sinks.requires_grad_()
    teacher = plain.make_record(3, mask=mask, extra=extra, seed=seed + 1, sharpness=sharpness)
    weights = torch.ones(2, 3) if even else torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 1.0]])
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "MOST_ROWS", rows)
        patch.setattr(sweep, "LEAST_ROWS", 1)
        patch.setattr(sweep, "GROUP_BYTES", together << 20)
        for name in ("reference", "chunked"):
            with operator_backend(name):
                found[name] = all_gradients(student, teacher, random_alignment(3, 2), weights.double())
    torch.testing.assert_close(found["chunked"], found["reference"], check_dtype=False)


def test_gradients_are_right(form):
    student = plain.make_record(2, 3, 4, "float", "bias", seed=1, width=2)
    teacher = plain.make_record(3, 3, 4, "keep", seed=2)

    def kl(query, key, bias, alignment):
        record = dataclasses.replace(student, query=query, key=key, position_bias=bias)
        return aligned_kl(record, teacher, alignment)

    tensors = student.query, student.key, student.position_bias, random_alignment(3, 2)
    assert torch.autograd.gradcheck(kl, [tensor.clone().requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("extra", plain.EXTRAS)
def test_gradients_of_the_form_per_row_are_right(extra, form):
    student = plain.make_record(2, 3, 4, "float", extra, seed=1, width=2)
    teacher = plain.make_record(3, 3, 4, "keep", seed=2)

    def kl(query, key):
        return row_aligned_kl(dataclasses.replace(student, query=query, key=key), teacher, 0.5)

    tensors = student.query, student.key
    assert torch.autograd.gradcheck(kl, [tensor.clone().requires_grad_() for tensor in tensors])


def test_a_key_that_only_the_teacher_may_attend_costs_a_finite_amount(form):
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


def test_a_student_with_no_mass_at_all_is_finite(form):
    empty = plain.make_record(1, 1, 2, n_batch=1, width=0, dtype=torch.float32)
    nothing = torch.zeros(1, 1, 1, 2)
    teacher = dataclasses.replace(empty, probabilities=torch.tensor([[[[0.3, 0.7]]]]))
    # A row with no mass at all does not count; with one key of the smallest mass it does.
    student = dataclasses.replace(empty, probabilities=(nothing + 1e-38).requires_grad_())
    alignment = torch.ones(1, 1, 1, requires_grad=True)
    value = aligned_kl(student, teacher, alignment)
    assert torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), (student.probabilities, alignment)):
        assert torch.isfinite(gradient).all()
    assert aligned_kl(dataclasses.replace(student, probabilities=nothing), teacher, alignment).item() == 0


def test_equal_maps_cost_exactly_nothing(form):
    record = plain.make_record(3, seed=1, dtype=torch.float32)
    same = torch.eye(3).expand(2, -1, -1).contiguous()
    torch.testing.assert_close(
        aligned_kl(record, dataclasses.replace(record), same), torch.zeros(2, 3), atol=1e-6, rtol=0
    )


def test_what_a_sink_takes_is_left_out_of_the_divergence(form):
    """With and without sinks the rows divided by their sums are the same."""
    student, teacher = (
        plain.make_record(2, extra="sinks", seed=1),
        plain.make_record(3, extra="sinks", seed=2),
    )
    bare = [dataclasses.replace(record, sinks=None) for record in (student, teacher)]
    alignment = random_alignment(3, 2)
    torch.testing.assert_close(aligned_kl(student, teacher, alignment), aligned_kl(*bare, alignment))
    torch.testing.assert_close(row_aligned_kl(student, teacher), row_aligned_kl(*bare))


def test_the_form_per_row_takes_an_alignment_for_each_row(form):
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


def test_an_alignment_of_other_heads_is_refused(form):
    with pytest.raises(ShapeError, match=r"\(2, 2, 3\), but the records have .* = \(2, 3, 2\)"):
        aligned_kl(plain.make_record(2), plain.make_record(3), random_alignment(2, 3))
    with pytest.raises(RecipeError, match=r"temperature = -1.0"):
        row_aligned_kl(plain.make_record(2), plain.make_record(3), -1.0)
