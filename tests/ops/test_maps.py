"""Blocks of dense maps, and keeping them between operators."""

import dataclasses
import sys
from pathlib import Path

import torch

from amad.ops.aligned_kl import aligned_kl
from amad.ops.attention_gram import attention_gram
from amad.ops.maps import map_blocks, shared_maps, whole_map

sys.path.insert(0, str(Path(__file__).parent))
import plain

ALIGNMENT = torch.full((2, 3, 2), 0.5, dtype=torch.float64)


def records():
    return plain.make_record(2, mask="keep", seed=1, grad=True), plain.make_record(3, mask="keep", seed=2)


def test_within_shared_maps_the_operators_see_the_same_maps():
    student, teacher = records()
    with shared_maps():
        (first,), (second,) = map_blocks(student, teacher), map_blocks(student, teacher)
        assert first is second
        (other,) = map_blocks(dataclasses.replace(student), teacher)
        assert other is not first
    (later,) = map_blocks(student, teacher)
    assert later is not first


def test_sharing_changes_no_value_and_no_gradient():
    student, teacher = records()

    def loss():
        return attention_gram(student, teacher).cross.sum() + aligned_kl(student, teacher, ALIGNMENT).sum()

    apart = loss()
    with shared_maps():
        together = loss()
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, (student.query, student.key)) for value in (together, apart))
    )


def test_rows_that_do_not_count_are_zero_even_if_the_model_left_nonsense_there():
    student, teacher = records()
    nonsense = teacher.rows(dtype=torch.float64).clone()
    nonsense[0, :, 3:] = torch.nan
    teacher = dataclasses.replace(teacher, probabilities=nonsense)
    block = whole_map(student, teacher)
    assert block.keep.tolist() == [[True, True, False, False, False], [True] * 5]
    assert (block.teacher[0, :, 2:] == 0).all()
    assert (block.student[0, :, 2:] == 0).all()
    assert torch.isfinite(aligned_kl(student, teacher, ALIGNMENT)).all()


def test_nothing_is_built_for_the_gradient_of_the_teacher():
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2, grad=True)
    block = whole_map(student, teacher)
    assert not block.teacher.requires_grad
    assert not block.student.requires_grad
