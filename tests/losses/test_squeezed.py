"""Teacher heads merged to as many as the student has."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SitePair
from amad.errors import CaptureError, RecipeError
from amad.losses import squeezed as module
from amad.losses.methods import attention_term
from amad.losses.objective import Captured
from amad.losses.squeezed import rounds_of_groups, squeeze
from amad.ops.backends import operator_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
FEATURES = 6

masks = st.sampled_from(plain.MASKS)
extras = st.sampled_from(plain.EXTRAS)
seeds = st.integers(0, 99)


def teacher_of(n_heads, seed=0, **arguments):
    made = plain.make_record(n_heads, seed=seed, **arguments)
    generator = torch.Generator().manual_seed(seed + 50)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=made.query.dtype)

    value = random(made.n_batch, made.n_kv_heads, made.n_keys, 3)
    return dataclasses.replace(made, value=value, mixing=random(n_heads, 3, FEATURES))


def losses(student, teacher, method="squeezed"):
    return attention_term([PAIR], method).pair_loss(PAIR, student, teacher)


def plain_merged(teacher, sample, n_students):
    """Merged maps (head, row, key) and the shares of the heads in them, head by head from dense maps."""
    rows = plain.kept_rows(teacher, teacher, sample)
    maps = list(plain.plain_maps(teacher, sample, rows))
    group = teacher.n_heads // teacher.n_kv_heads
    added = [teacher.value[sample, h // group] @ teacher.mixing[h] for h in range(teacher.n_heads)]
    shares = list(torch.eye(teacher.n_heads, dtype=torch.float64))
    while len(maps) > n_students:
        n_merged = min(len(maps) // 2, len(maps) - n_students)
        merged = []
        for p in range(0, 2 * n_merged, 2):
            both, difference = added[p] + added[p + 1], maps[p] - maps[p + 1]
            wanted = maps[p] @ added[p] + maps[p + 1] @ added[p + 1]
            # Least squares by brute force: the error is a parabola in alpha, so three points give its vertex.
            error = [
                ((a * maps[p] + (1 - a) * maps[p + 1]) @ both - wanted).square().sum()
                for a in (0.0, 0.5, 1.0)
            ]
            curve = 2 * (error[0] - 2 * error[1] + error[2])
            alpha = 0.5 - (error[2] - error[0]) / 2 / curve if curve > 0 else torch.tensor(0.5)
            alpha = float(alpha.clamp(0, 1))
            merged.append(
                (
                    maps[p + 1] + alpha * difference,
                    both,
                    alpha * shares[p] + (1 - alpha) * shares[p + 1],
                )
            )
        rest = list(zip(maps, added, shares, strict=True))[2 * n_merged :]
        maps, added, shares = (list(part) for part in zip(*merged, *rest, strict=True))
    return torch.stack(shares)


def plain_losses(student, teacher):
    found = []
    for sample in range(student.n_batch):
        rows = plain.kept_rows(student, teacher, sample)
        total = torch.zeros((), dtype=torch.float64)
        if rows:
            shares = plain_merged(teacher, sample, student.n_heads)
            s, t = (plain.normalised(plain.plain_maps(r, sample, rows)) for r in (student, teacher))
            merged = torch.einsum("mh,hqk->mqk", shares, t)
            for m, s_m in zip(merged, s, strict=False):
                total = total + sum(plain.plain_kl(m[q], s_m[q]) for q in range(len(rows))) / len(rows)
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("n_teachers", "n_students", "expected"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (4, 3, [[0, 1], [2], [3]]),
        (6, 2, [[0, 1, 2, 3], [4, 5]]),
        (5, 1, [[0, 1, 2, 3, 4]]),
        (12, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11]]),
        (2, 3, [[0], [1]]),
    ],
)
def test_neighbours_are_merged_until_no_head_is_too_many(n_teachers, n_students, expected):
    assert rounds_of_groups(n_teachers, n_students)[-1] == expected


@given(n_teachers=st.integers(1, 5), n_students=st.integers(1, 4), mask=masks, extra=extras, seed=seeds)
@settings(max_examples=20)
def test_it_is_the_divergence_of_dense_merged_maps(n_teachers, n_students, mask, extra, seed):
    student = plain.make_record(n_students, mask=mask, extra=extra, seed=seed)
    teacher = teacher_of(n_teachers, seed + 1, mask=mask, extra=extra)
    torch.testing.assert_close(losses(student, teacher), plain_losses(student, teacher), rtol=1e-7, atol=1e-8)


@given(n_teachers=st.integers(2, 6), seed=seeds, mask=masks)
@settings(max_examples=10)
def test_shares_sum_to_one_and_keep_to_their_group(n_teachers, seed, mask):
    teacher = teacher_of(n_teachers, seed, mask=mask)
    shares = squeeze(teacher, 2)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, len(shares[0]), dtype=torch.float64))
    assert (shares >= 0).all()
    for merged, heads in enumerate(rounds_of_groups(n_teachers, 2)[-1]):
        others = [head for head in range(n_teachers) if head not in heads]
        assert (shares[:, merged, others] == 0).all()


def test_a_head_that_adds_nothing_to_the_hidden_states_has_no_share():
    """With X_q = 0, what is added is A_p X_p, which is that of A_p alone: alpha is 1."""
    teacher = teacher_of(2, 1)
    mixing = teacher.mixing.clone()
    mixing[1] = 0
    shares = squeeze(dataclasses.replace(teacher, mixing=mixing), 1)
    torch.testing.assert_close(shares, torch.tensor([[[1.0, 0.0]]] * 2, dtype=torch.float64))


def test_equal_maps_share_alike_and_cost_nothing():
    student = plain.make_record(2, seed=1)
    teacher = plain.with_heads(student, [0, 0, 1, 1])
    values = teacher_of(4, 3)
    teacher = dataclasses.replace(teacher, value=values.value, mixing=values.mixing)
    torch.testing.assert_close(
        losses(student, teacher), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert squeeze(teacher, 2).count_nonzero() == 8


@pytest.mark.parametrize("n_students", [3, 4])
def test_with_no_head_too_many_it_is_one_to_one(n_students):
    student, teacher = plain.make_record(n_students, seed=1), teacher_of(3, 2)
    torch.testing.assert_close(losses(student, teacher), losses(student, teacher, "one_to_one"))


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_gradients_are_right(form):
    student = plain.make_record(2, 3, 3, mask="float", seed=5, width=2, n_batch=1)
    teacher = teacher_of(5, 6, n_queries=3, n_keys=3, mask="keep", width=2, n_batch=1)

    def loss(query, key):
        with operator_backend(form):
            return losses(dataclasses.replace(student, query=query, key=key), teacher).sum()

    inputs = [x.detach().clone().requires_grad_() for x in (student.query, student.key)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_order_of_the_teachers_heads_matters():
    student, teacher = plain.make_record(2, seed=1), teacher_of(4, 2)
    order = [0, 2, 1, 3]
    moved = dataclasses.replace(
        plain.with_heads(teacher, order), value=teacher.value[:, order], mixing=teacher.mixing[order]
    )
    assert (losses(student, teacher) - losses(student, moved)).abs().max() > 1e-3


def test_more_padding_changes_nothing():
    student = plain.make_record(2, 4, 4, mask="bool", seed=1)
    teacher = teacher_of(5, 2, n_queries=4, n_keys=4, mask="bool")
    garbage = 9 * torch.ones(2, 5, 3, 3, dtype=torch.float64)
    longer = plain.padded(dataclasses.replace(teacher, value=None), 3)
    longer = dataclasses.replace(longer, value=torch.cat([teacher.value, garbage], 2))
    torch.testing.assert_close(losses(plain.padded(student, 3), longer), losses(student, teacher))


def test_rows_in_blocks_give_what_all_at_once_give(monkeypatch):
    student = plain.make_record(2, 7, 5, "keep", seed=1)
    teacher = teacher_of(5, 2, n_queries=7, n_keys=5, mask="keep")
    whole = losses(student, teacher)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 2 * 2 * 25)
    torch.testing.assert_close(losses(student, teacher), whole)


def test_which_heads_are_merged_is_shown():
    student, teacher = plain.make_record(2, seed=1), teacher_of(3, 2)
    both = Captured(None, {plain.SITE: student}), Captured(None, {plain.SITE: teacher})
    found = attention_term([PAIR], "squeezed").diagnose(*both)[PAIR]
    assert found.weights == ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def test_without_values_or_output_projection_it_is_refused():
    student, teacher = plain.make_record(2, seed=1), teacher_of(4, 2)
    for missing in ({"value": None}, {"mixing": None}):
        with pytest.raises(
            CaptureError, match=r"squeezing heads needs the value vectors and the output projection"
        ):
            losses(student, dataclasses.replace(teacher, **missing))
    with pytest.raises(RecipeError, match="no sum over teacher heads"):
        attention_term([PAIR], "squeezed").weigh_heads({})
