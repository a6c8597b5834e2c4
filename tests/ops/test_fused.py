"""Losses made of the operators, with their gradients made at once."""

import dataclasses
import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.ops import fused, sweep
from amad.ops.alignment import alignment_weights
from amad.ops.backends import operator_backend
from amad.ops.fused import fused_loss
from amad.ops.rows import TRAINED

sys.path.insert(0, str(Path(__file__).parent))
import plain

WEIGHTS = torch.tensor([[0.5, 1.0, -2.0]], dtype=torch.float64)


def both(operators):
    """Something that needs each operator, more than once, and differs from head to head."""
    gram = operators.gram()
    alignment = alignment_weights(gram, 0.5)
    fixed = torch.full_like(alignment, 0.5)
    return (operators.kl(alignment) * WEIGHTS + operators.kl(fixed)).sum(-1) + gram.student.square().sum(
        (1, 2)
    )


def products(operators):
    return operators.gram().cross.sum((1, 2))


def divergence(operators):
    fixed = torch.eye(3, 2, dtype=torch.float64).softmax(-1)[None]
    return operators.kl(fixed).sum(-1)


def results(loss, student, teacher, weights):
    tensors = [tensor for name in TRAINED if (tensor := getattr(student, name)) is not None]
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    values = fused_loss(student, teacher, loss)
    return [values, *torch.autograd.grad((values * weights).sum(), tensors)]


def a_pair(mask, extra, seed=0, dtype=torch.float64):
    student = plain.make_record(2, mask=mask, extra=extra, seed=seed, grad=True, dtype=dtype)
    if student.sinks is not None:
        student.sinks.requires_grad_()
    return student, plain.make_record(3, mask=mask, extra=extra, seed=seed + 1, dtype=dtype)


@given(
    loss=st.sampled_from([both, products, divergence]),
    mask=st.sampled_from(plain.MASKS),
    extra=st.sampled_from(plain.EXTRAS),
    keep_bytes=st.sampled_from([0, 5 * 5 * 5 * 8, 1 << 20]),
    group_bytes=st.sampled_from([0, 1 << 20]),
    weights=st.sampled_from([(1.0, 1.0), (2.0, -0.5)]),
)
def test_values_and_gradients_are_those_of_the_definition(
    loss, mask, extra, keep_bytes, group_bytes, weights
):
    student, teacher = a_pair(mask, extra)
    weights = torch.tensor(weights, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch, operator_backend("chunked"):
        patch.setattr(sweep, "MOST_ROWS", 2)
        patch.setattr(sweep, "LEAST_ROWS", 1)
        # No map is kept; or those of one sample at a time; or all.
        patch.setattr(fused, "KEEP_BYTES", keep_bytes)
        # Each sample has tiles of its own, or both share theirs.
        patch.setattr(sweep, "GROUP_BYTES", group_bytes)
        found = results(loss, student, teacher, weights)
    with operator_backend("reference"):
        expected = results(loss, student, teacher, weights)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("extra", plain.EXTRAS)
@pytest.mark.parametrize("mask", plain.MASKS)
def test_samples_share_tiles_and_change_nothing_for_one_another(mask, extra, monkeypatch):
    student = plain.make_record(2, mask=mask, extra=extra, grad=True, n_batch=5)
    teacher = plain.make_record(3, mask=mask, extra=extra, seed=1, n_batch=5)
    if student.sinks is not None:
        student.sinks.requires_grad_()
    weights = torch.tensor([1.0, 2.0, -0.5, 0.0, 3.0], dtype=torch.float64)
    # Two samples to a tile, and one in the last; room to keep the first two tiles.
    monkeypatch.setattr(sweep, "GROUP_BYTES", 2 * 5 * 5 * 5 * 8)
    monkeypatch.setattr(fused, "KEEP_BYTES", 4 * 5 * 5 * 5 * 8)
    found = results(both, student, teacher, weights)
    monkeypatch.setattr(sweep, "GROUP_BYTES", 0)
    alone = results(both, student, teacher, weights)
    torch.testing.assert_close(found, alone)


def test_every_run_gives_the_same_bits():
    student, teacher = a_pair("float", "bias", dtype=torch.float32)
    first = results(both, student, teacher, torch.ones(2))
    for _ in range(3):
        again = results(both, student, teacher, torch.ones(2))
        assert all(one.equal(other) for one, other in zip(first, again, strict=True))


def test_a_second_backward_pass_gives_the_same_gradient():
    student, teacher = a_pair("none", "plain")
    loss = fused_loss(student, teacher, both).sum()
    first, second = (torch.autograd.grad(loss, student.query, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second)


def test_queries_that_changed_before_the_backward_pass_are_refused():
    student, teacher = a_pair("none", "plain")
    changed = student.query * 1.0
    loss = fused_loss(dataclasses.replace(student, query=changed), teacher, both).sum()
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_there_is_the_value_alone():
    student, teacher = a_pair("keep", "plain")
    with_gradients = fused_loss(student, teacher, both)
    with torch.no_grad():
        without = fused_loss(student, teacher, both)
    assert not without.requires_grad
    assert without.equal(with_gradients.detach())
    assert not fused_loss(student.detach(), teacher, both).requires_grad


def test_the_loss_scale_reaches_half_precision_before_it_is_rounded():
    """A gradient of 1e-9 is zero in float16; times a loss scale of 65,536 it is not."""
    student, teacher = a_pair("none", "plain", dtype=torch.float16)

    def tiny(operators):
        return products(operators) * 1e-9

    gradients = {}
    for scale in (1.0, 65536.0):
        loss = (fused_loss(student, teacher, tiny) * scale).sum()
        gradients[scale] = torch.autograd.grad(loss, student.query)[0]
    assert (gradients[1.0] == 0).all()
    assert gradients[65536.0].dtype == torch.float16
    assert (gradients[65536.0] != 0).any()


def test_a_gradient_to_something_else_is_not_left_behind():
    student, teacher = a_pair("none", "plain")
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    fused_loss(student, teacher, lambda operators: products(operators) * weight).sum().backward()
    assert weight.grad is None
    assert student.query.grad is not None


@pytest.mark.parametrize(
    ("n_students", "n_teachers", "width"), [(5, 3, 8), (4, 12, 96), (7, 1, 256), (1, 1, 1)]
)
@pytest.mark.parametrize("mask", ["causal", "float"])
def test_any_number_of_heads_and_any_width(n_students, n_teachers, width, mask):
    sizes = {"n_queries": 6, "n_keys": 9, "mask": mask, "sharpness": 0.5}
    student = plain.make_record(n_students, seed=1, width=width, grad=True, **sizes)
    teacher = plain.make_record(n_teachers, seed=2, width=width + 3, **sizes)

    def loss(operators):
        gram = operators.gram()
        return operators.kl(alignment_weights(gram)).sum(-1) + gram.cross.sum((1, 2))

    found = results(loss, student, teacher, torch.ones(2))
    with operator_backend("reference"):
        torch.testing.assert_close(found, results(loss, student, teacher, torch.ones(2)))


def test_nothing_of_a_loss_outlives_it():
    """Autograd's nodes and what they note down must not hold one another: their cycle is never collected."""
    student, teacher = a_pair("none", "plain")
    alive = []

    def watched(operators):
        alive.append(weakref.ref(operators))
        return both(operators)

    def failing(operators):
        watched(operators)
        raise ValueError

    gc.disable()
    try:
        fused_loss(student, teacher, watched).sum().backward()
        (fused_loss(student, teacher, watched) * torch.tensor([1.0, 2.0])).sum().backward()
        with pytest.raises(ValueError):
            fused_loss(student, teacher, failing)
        assert len(alive) == 4
        assert [reference() for reference in alive] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_second_derivatives_and_changed_tensors_are_refused(whose):
    student, teacher = a_pair("none", "plain")
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(fused_loss(student, teacher, both).sum(), student.query, create_graph=True)
    changed = {"student": student, "teacher": teacher}
    changed[whose] = dataclasses.replace(changed[whose], key=changed[whose].key * 1.0)
    loss = fused_loss(*changed.values(), both).sum()
    with torch.no_grad():
        changed[whose].key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_around_the_backward_pass_changes_nothing():
    student, teacher = a_pair("none", "plain", dtype=torch.float32)
    weights = torch.tensor([1.0, 2.0])
    expected = results(both, student, teacher, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(both, student, teacher, weights)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
