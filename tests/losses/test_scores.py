"""Distance of scores before the softmax."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SitePair
from amad.capture.record import AttentionRecord, TokenLayout
from amad.errors import CaptureError, ShapeError
from amad.losses import blocks
from amad.losses.methods import attention_term

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)

masks = st.sampled_from(plain.MASKS)
extras = st.sampled_from(plain.EXTRAS)
heads = st.integers(1, 4)
seeds = st.integers(0, 99)


def losses(student, teacher):
    return attention_term([PAIR], "one_to_one", "scores").pair_loss(PAIR, student, teacher)


def plain_score(record, sample, head, query, key):
    """One score, from the fields of the record one by one."""
    group = record.n_heads // record.n_kv_heads
    score = record.scale * (record.query[sample, head, query] @ record.key[sample, head // group, key])
    if record.softcap is not None:
        score = record.softcap * torch.tanh(score / record.softcap)
    if record.position_bias is not None:
        score = score + record.position_bias[0, head, query, key]
    if record.mask is not None and record.mask.dtype != torch.bool:
        place = [min(i, n - 1) for i, n in zip((sample, head, query, key), record.mask.shape, strict=True)]
        score = score + record.mask[tuple(place)]
    return score


def plain_losses(student, teacher):
    found = []
    for sample in range(student.n_batch):
        total = torch.zeros((), dtype=torch.float64)
        for head in range(min(student.n_heads, teacher.n_heads)):
            squares = [
                (
                    plain_score(teacher, sample, head, query, key)
                    - plain_score(student, sample, head, query, key)
                ).square()
                for query in plain.kept_rows(student, teacher, sample)
                for key in range(student.n_keys)
                if all(plain.sees(record, sample, head, query, key) for record in (student, teacher))
            ]
            if squares:
                total = total + sum(squares) / len(squares)
        found.append(total)
    return torch.stack(found)


def test_a_case_worked_by_hand():
    """One row, two keys; scores (1, 2) and (4, 0): (9 + 4) / 2, and a second teacher head without a student."""
    student = AttentionRecord(plain.SITE, torch.tensor([[[[1.0, 2.0]]]]), torch.eye(2)[None, None], 1.0)
    aims = torch.tensor([[[[4.0, 0.0]], [[9.0, 9.0]]]])
    teacher = AttentionRecord(plain.SITE, aims, torch.eye(2).expand(1, 2, -1, -1), 1.0)
    assert losses(student, teacher).item() == pytest.approx(6.5)


@settings(max_examples=20)
@given(mask=masks, extra=extras, n_students=heads, n_teachers=heads, seed=seeds)
def test_the_value_is_that_of_the_scores_one_by_one(mask, extra, n_students, n_teachers, seed):
    student = plain.make_record(n_students, mask=mask, extra=extra, seed=seed)
    teacher = plain.make_record(n_teachers, mask=mask, extra=extra, seed=seed + 1, width=2)
    torch.testing.assert_close(losses(student, teacher), plain_losses(student, teacher))


def test_gradients_are_right():
    student = plain.make_record(2, 3, 4, mask="infinite", extra="bias", seed=5, width=2)
    teacher = plain.make_record(3, 3, 4, mask="keep", seed=6, width=2)

    def loss(query, key, bias):
        return losses(dataclasses.replace(student, query=query, key=key, position_bias=bias), teacher).sum()

    inputs = [
        x.detach().clone().requires_grad_() for x in (student.query, student.key, student.position_bias)
    ]
    assert torch.autograd.gradcheck(loss, inputs)


def test_blocks_of_rows_give_what_all_at_once_give(monkeypatch):
    student = plain.make_record(2, 7, 5, "float", seed=1, grad=True)
    teacher = plain.make_record(3, 7, 5, "keep", seed=2)
    found = []
    for numbers in (1 << 20, 2 * 5 * 5 * 2):
        monkeypatch.setattr(blocks, "BLOCK_NUMBERS", numbers)
        value = losses(student, teacher)
        found.append([value, *torch.autograd.grad(value.sum(), (student.query, student.key))])
    torch.testing.assert_close(*found)


def test_no_scores_are_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", 1)
    student, teacher = plain.make_record(2, 16, 16, seed=1, grad=True), plain.make_record(2, 16, 16, seed=2)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        losses(student, teacher)
    assert max(sizes, default=0) <= student.query.numel()


@given(mask=masks, extra=extras, seed=seeds)
@settings(max_examples=10)
def test_equal_scores_cost_nothing_and_the_order_of_heads_matters(mask, extra, seed):
    student = plain.make_record(3, mask=mask, extra=extra, seed=seed)
    assert (losses(student, student.detach()) == 0).all()
    assert (losses(student, plain.with_heads(student, [1, 2, 0])) > 0).all()


def test_more_padding_changes_nothing():
    student, teacher = (plain.make_record(h, 4, 4, mask="bool", seed=h, dtype=torch.float32) for h in (2, 3))
    longer = losses(plain.padded(student, 3), plain.padded(teacher, 3))
    torch.testing.assert_close(longer, losses(student, teacher), atol=1e-6, rtol=1e-6)


def test_a_sample_without_a_real_row_gives_zero_and_zero_gradient():
    student, teacher = plain.make_record(2, seed=1, grad=True), plain.make_record(3, seed=2)
    keep = torch.tensor([[True] * 5, [False] * 5])
    loss = losses(dataclasses.replace(student, query_keep=keep), teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student.query)
    assert loss[1] == 0
    assert (gradient[1] == 0).all()


def test_where_only_a_map_is_known_scores_are_refused():
    student = plain.make_record(2)
    teacher = dataclasses.replace(student, probabilities=student.rows())
    with pytest.raises(CaptureError, match=r"scores of encoder.self\[0\] of the teacher are not known"):
        losses(student, teacher)


def test_other_tokens_are_refused():
    layouts = TokenLayout(0, 2, 2), TokenLayout(0, 4, 4)
    student, teacher = (
        dataclasses.replace(plain.make_record(2, n, n), query_layout=layout, key_layout=layout)
        for n, layout in zip((4, 16), layouts, strict=True)
    )
    with pytest.raises(ShapeError, match="tokens of student and teacher differ: 4 x 4 and 16 x 16"):
        losses(student, teacher)
