"""Blocks of dense maps."""

import dataclasses
import sys
from pathlib import Path

import torch

from amad.ops import maps
from amad.ops.aligned_kl import aligned_kl
from amad.ops.maps import map_blocks, whole_map

sys.path.insert(0, str(Path(__file__).parent))
import plain

ALIGNMENT = torch.full((2, 3, 2), 0.5, dtype=torch.float64)


def records():
    return plain.make_record(2, mask="keep", seed=1, grad=True), plain.make_record(3, mask="keep", seed=2)


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


def test_blocks_of_rows_are_the_rows_of_the_whole_map(monkeypatch):
    student, teacher = (plain.make_record(h, 7, 5, "keep", seed=h) for h in (2, 3))
    whole = whole_map(student, teacher)
    monkeypatch.setattr(maps, "BLOCK_NUMBERS", 2 * 5 * 5 * 3)
    blocks = list(map_blocks(student, teacher))
    assert [block.keep.shape[1] for block in blocks] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([block.student for block in blocks], 2), whole.student)
    torch.testing.assert_close(torch.cat([block.teacher for block in blocks], 2), whole.teacher)


def test_nothing_is_built_for_the_gradient_of_the_teacher():
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2, grad=True)
    block = whole_map(student, teacher)
    assert not block.teacher.requires_grad
    assert not block.student.requires_grad
