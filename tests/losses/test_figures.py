"""What the alignment looks like, in cases where it is known."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from amad.axes import SitePair
from amad.losses.amad import AttentionAlignment
from amad.losses.objective import Captured

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
VARIANTS = ["mse", "kl", "projected", "token"]


def figures(student, teacher, variant="kl", **arguments):
    term = AttentionAlignment([PAIR], variant=variant, **arguments)
    term.prepare({plain.SITE: student})
    return term.diagnose(Captured(None, {plain.SITE: student}), Captured(None, {plain.SITE: teacher}))[PAIR]


def heads(record, order):
    return dataclasses.replace(record, query=record.query[:, order], key=record.key[:, order])


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_student_heads_are_collapsed_and_the_alignment_is_uniform(variant):
    student = heads(plain.make_record(4, seed=1), [2, 2, 2])
    found = figures(student, plain.make_record(2, seed=2), variant)
    assert found.collapse == pytest.approx(1)
    assert found.entropy == pytest.approx(1)
    assert found.largest == pytest.approx(1 / 3)
    torch.testing.assert_close(torch.tensor(found.weights), torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_student_that_has_every_teacher_head_covers_them_all(variant):
    teacher = plain.make_record(3, seed=1)
    found = figures(heads(teacher, [2, 0, 1]), teacher, variant, temperature=1e-6)
    assert found.coverage == pytest.approx(0, abs=1e-9)
    assert found.coverage_by_head == pytest.approx([0, 0, 0], abs=1e-9)
    assert found.largest == pytest.approx(1, abs=1e-2)
    assert found.collapse < 0.9
    best = [row.index(max(row)) for row in found.weights]
    assert best == [1, 2, 0]


def test_the_coverage_of_each_head_is_the_divergence_from_its_nearest_student_head():
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    s, t = (torch.stack([plain.plain_maps(r, b, range(5)) for b in range(2)]) for r in (student, teacher))
    distances = (t[:, :, None] * (t[:, :, None].log() - s[:, None].log())).sum(-1).mean((0, -1))
    found = figures(student, teacher)
    assert found.coverage_by_head == pytest.approx(distances.amin(1).tolist())
    assert found.coverage == pytest.approx(distances.amin(1).mean().item())


def test_the_entropy_and_the_weights_are_those_of_the_alignment():
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    a = torch.stack(
        [
            plain.plain_alignment(*(plain.plain_maps(r, b, range(5)) for r in (student, teacher)), 0.1)
            for b in range(2)
        ]
    )
    found = figures(student, teacher, temperature=0.1)
    assert found.entropy == pytest.approx((-(a * a.log()).sum(-1).mean() / math.log(2)).item())
    assert found.largest == pytest.approx(a.amax(-1).mean().item())
    torch.testing.assert_close(torch.tensor(found.weights, dtype=torch.float64), a.mean(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_student_head_is_uniform_and_not_collapsed(variant):
    found = figures(plain.make_record(1, seed=1), plain.make_record(2, seed=2), variant)
    assert (found.entropy, found.largest, found.collapse) == (1.0, pytest.approx(1.0), 0.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_without_a_real_row_do_not_count(variant):
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    keep = torch.tensor([[True] * 5, [False] * 5])
    first = [dataclasses.replace(r, query=r.query[:1], key=r.key[:1]) for r in (student, teacher)]
    expected, found = (
        figures(*first, variant),
        figures(dataclasses.replace(student, query_keep=keep), teacher, variant),
    )
    for name in ("entropy", "largest", "coverage", "collapse", "coverage_by_head"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    nothing = figures(dataclasses.replace(student, query_keep=torch.zeros_like(keep)), teacher, variant)
    assert nothing.entropy == nothing.largest == nothing.coverage == nothing.collapse == 0


def test_no_gradient_is_kept():
    student = plain.make_record(2, seed=1, grad=True)
    figures(student, plain.make_record(3, seed=2))
    assert student.query.grad is None


def test_the_likeness_of_two_student_heads_is_the_cosine_of_their_maps():
    student = heads(plain.make_record(4, seed=1), [2, 0, 2])
    found = figures(student, plain.make_record(2, seed=2))
    maps = torch.stack([plain.plain_maps(student, b, range(5)) for b in range(2)]).flatten(2)
    maps = maps / maps.norm(dim=-1, keepdim=True)
    expected = (maps @ maps.transpose(1, 2)).mean(0)
    torch.testing.assert_close(torch.tensor(found.alike, dtype=torch.float64), expected.double())
    assert found.alike[0][2] == pytest.approx(1)
    assert found.collapse == pytest.approx(float(expected.sum() - expected.trace()) / 6)
