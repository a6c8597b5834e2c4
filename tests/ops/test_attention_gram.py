"""Inner products of maps."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from amad.errors import ShapeError
from amad.ops.attention_gram import attention_gram, attention_row_grams

sys.path.insert(0, str(Path(__file__).parent))
import plain


def expected_gram(student, teacher):
    """Three stacks of inner products, sample by sample over the rows that count."""
    found = [], [], []
    for sample in range(student.n_batch):
        rows = plain.kept_rows(student, teacher, sample)
        s = plain.plain_maps(student, sample, rows).flatten(1)
        t = plain.plain_maps(teacher, sample, rows).flatten(1)
        for values, value in zip(found, (t @ s.T, s @ s.T, (t * t).sum(1)), strict=True):
            values.append(value)
    return [torch.stack(values) for values in found]


@pytest.mark.parametrize("mask", plain.MASKS)
@pytest.mark.parametrize("extra", plain.EXTRAS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(5, 5), (3, 6)])
def test_it_is_the_inner_products_of_the_dense_maps(mask, extra, n_queries, n_keys, form):
    student = plain.make_record(2, n_queries, n_keys, mask, extra, seed=1)
    teacher = plain.make_record(4, n_queries, n_keys, mask, extra, seed=2, width=2)
    found = attention_gram(student, teacher)
    for value, expected in zip(found, expected_gram(student, teacher), strict=True):
        torch.testing.assert_close(value, expected)


def test_rows_that_only_one_model_keeps_do_not_count(form):
    student = plain.make_record(2, mask="keep", seed=1)
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[:, 0] = False
    teacher = dataclasses.replace(plain.make_record(3, seed=2), query_keep=keep)
    expected = expected_gram(student, teacher)
    torch.testing.assert_close(attention_gram(student, teacher).cross, expected[0])
    assert plain.kept_rows(student, teacher, 0) == [1]


def test_row_grams_are_those_of_single_rows_and_add_up(form):
    student, teacher = plain.make_record(2, mask="keep", seed=1), plain.make_record(3, mask="keep", seed=2)
    rows = attention_row_grams(student, teacher)
    assert rows.cross.shape == (10, 3, 2)
    s, t = student.rows(dtype=torch.float64), teacher.rows(dtype=torch.float64)
    torch.testing.assert_close(rows.cross[6], t[1, :, 1] @ s[1, :, 1].T)
    torch.testing.assert_close(rows.teacher_norm[6], t[1, :, 1].square().sum(-1))
    assert (rows.cross[2:5] == 0).all()
    whole = attention_gram(student, teacher)
    for value, row_value in zip(whole, rows, strict=True):
        torch.testing.assert_close(row_value.unflatten(0, (2, 5)).sum(1), value)


def test_gradients_are_right(form):
    student = plain.make_record(2, 3, 4, "float", "bias", seed=1, width=2)
    teacher = plain.make_record(3, 3, 4, "keep", seed=2)

    def gram(query, key, bias):
        return attention_gram(
            dataclasses.replace(student, query=query, key=key, position_bias=bias), teacher
        )[:2]

    inputs = [x.clone().requires_grad_() for x in (student.query, student.key, student.position_bias)]
    assert torch.autograd.gradcheck(gram, inputs)


def test_a_long_map_in_float32_agrees_with_float64(form):
    """Within 2e-6 on a million numbers; one float32 product over the flattened maps was off by 1.7e-4 here."""
    student, teacher = (
        plain.make_record(1, 1024, 1024, seed=h, n_batch=1, dtype=torch.float32) for h in (1, 2)
    )
    found = attention_gram(student, teacher)
    exact = [dataclasses.replace(r, query=r.query.double(), key=r.key.double()) for r in (student, teacher)]
    expected = attention_gram(*exact)
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), right, rtol=2e-6, atol=0)


def test_half_precision_records_are_compared_in_float32(form):
    student, teacher = (plain.make_record(h, seed=h, dtype=torch.bfloat16, grad=h == 2) for h in (2, 3))
    gram = attention_gram(student, teacher)
    assert gram.cross.dtype == torch.float32
    wide = [dataclasses.replace(r, query=r.query.float(), key=r.key.float()) for r in (student, teacher)]
    torch.testing.assert_close(gram.cross, attention_gram(*wide).cross)
    gram.cross.sum().backward()
    assert student.query.grad.dtype == torch.bfloat16


def test_one_query_for_a_whole_batch_is_broadcast(form):
    student = plain.make_record(2, seed=1)
    shared = dataclasses.replace(student, query=student.query[:1])
    spelt_out = dataclasses.replace(student, query=student.query[:1].expand(2, -1, -1, -1))
    teacher = plain.make_record(3, seed=2)
    torch.testing.assert_close(attention_gram(shared, teacher), attention_gram(spelt_out, teacher))


def test_other_batches_are_refused():
    with pytest.raises(ShapeError, match="2 and 3 samples"):
        attention_gram(plain.make_record(2), plain.make_record(2, n_batch=3))
