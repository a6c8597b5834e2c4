"""A teacher's map on the student's tokens."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.capture.record import TokenLayout
from amad.errors import ShapeError
from amad.ops.aligned_kl import aligned_kl
from amad.ops.attention_gram import attention_gram
from amad.ops.resampling import grid_overlap, match_tokens

sys.path.insert(0, str(Path(__file__).parent))
import plain


def laid_out(n_heads, query_layout, key_layout, seed=0, n_queries=None, n_keys=None, **arguments):
    n_queries = n_queries or query_layout.n_tokens
    n_keys = n_keys or key_layout.n_tokens
    record = plain.make_record(n_heads, n_queries, n_keys, seed=seed, **arguments)
    return dataclasses.replace(record, query_layout=query_layout, key_layout=key_layout)


def rows(record):
    return record.rows(dtype=torch.float64)


def test_overlaps_of_a_row_of_three_patches_with_one_of_two():
    """Thirds against halves: 1/3 and 0; 1/6 and 1/6; 0 and 1/3."""
    expected = torch.tensor([[2, 0], [1, 1], [0, 2]]) / 6
    torch.testing.assert_close(grid_overlap((1, 3), (1, 2)), expected.double())


@given(sizes=st.tuples(*[st.integers(1, 6)] * 4))
def test_overlaps_share_out_the_whole_image(sizes):
    overlap = grid_overlap(sizes[:2], sizes[2:])
    ones = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(overlap.sum(1), (ones / (sizes[0] * sizes[1])).expand(len(overlap)))
    torch.testing.assert_close(overlap.sum(0), (ones / (sizes[2] * sizes[3])).expand(overlap.shape[1]))


def test_records_on_the_same_tokens_are_left_alone():
    layout = TokenLayout(1, 2, 2)
    for student, teacher in (
        (plain.make_record(2), plain.make_record(3)),
        (laid_out(2, layout, layout), laid_out(3, layout, layout)),
        (plain.make_record(2), laid_out(3, layout, layout)),
    ):
        matched_student, matched_teacher = match_tokens(student, teacher)
        assert matched_student is student
        assert matched_teacher is teacher


def test_a_case_worked_by_hand():
    """A teacher of 2 x 1 patches after a class token, a student of 1 x 1 after one.

    The student's patch query is the mean of the teacher's two, and its patch key gets the sum of their probabilities.
    """
    teacher = laid_out(1, TokenLayout(1, 2, 1), TokenLayout(1, 2, 1), n_batch=1)
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]], dtype=torch.float64)
    teacher = dataclasses.replace(teacher, probabilities=probabilities[None, None])
    student = laid_out(1, TokenLayout(1, 1, 1), TokenLayout(1, 1, 1), n_batch=1)
    _, matched = match_tokens(student, teacher)
    expected = torch.tensor([[[[0.5, 0.5], [0.3, 0.7]]]], dtype=torch.float64)
    torch.testing.assert_close(rows(matched), expected)


def test_a_class_token_that_the_student_lacks_is_hidden_before_rows_are_averaged():
    """A teacher of 2 x 2 patches after a class token, a student of 1 x 2: columns of patches are joined.

    Row a gives (.5 class, .1 left, .4 right), which is (.2, .8) of the patches; row c gives (.6, .4); so the left query
    has their mean (.4, .6).
    """
    left, right = [0.5, 0.1, 0.4, 0.0, 0.0], [0.0, 0.3, 0.2, 0.3, 0.2]
    probabilities = torch.tensor([[0.2] * 5, left, right, right, left], dtype=torch.float64)
    teacher = laid_out(1, TokenLayout(1, 2, 2), TokenLayout(1, 2, 2), n_batch=1)
    teacher = dataclasses.replace(teacher, probabilities=probabilities[None, None])
    student = laid_out(1, TokenLayout(0, 1, 2), TokenLayout(0, 1, 2), n_batch=1)
    _, matched = match_tokens(student, teacher)
    expected = torch.tensor([[[[0.4, 0.6], [0.4, 0.6]]]], dtype=torch.float64)
    torch.testing.assert_close(rows(matched), expected)


def test_single_tokens_are_matched_in_their_order():
    """Two before the grid in both models, and two before it in one of them and one in the other."""
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]] * 2)[:4]
    layout = TokenLayout(2, 2, 1)
    teacher = dataclasses.replace(
        laid_out(1, layout, layout, n_batch=1), probabilities=probabilities[None, None]
    )
    coarse, one = TokenLayout(2, 1, 1), TokenLayout(1, 2, 1)
    _, both = match_tokens(laid_out(1, coarse, coarse, n_batch=1), teacher)
    torch.testing.assert_close(rows(both)[0, 0, :2].float(), torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3]]))
    _, first = match_tokens(laid_out(1, one, one, n_batch=1), teacher)
    torch.testing.assert_close(rows(first)[0, 0, 0].float(), torch.tensor([0.1, 0.3, 0.4]) / 0.8)


def test_a_finer_student_gets_equal_shares():
    student = laid_out(1, TokenLayout(0, 2, 2), TokenLayout(0, 2, 2), n_batch=1)
    teacher = laid_out(2, TokenLayout(0, 1, 1), TokenLayout(0, 1, 1), n_batch=1)
    _, matched = match_tokens(student, teacher)
    torch.testing.assert_close(rows(matched), torch.full((1, 2, 4, 4), 0.25, dtype=torch.float64))


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    before=st.sampled_from([(0, 0), (1, 1), (5, 5), (0, 1), (1, 0), (1, 2), (2, 0)]),
    after=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_rows_sum_to_one_on_any_grids(sizes, before, after, seed):
    student_layout = TokenLayout(before[0], sizes[0], sizes[1], after)
    teacher_layout = TokenLayout(before[1], sizes[2], sizes[3], after)
    student = laid_out(2, student_layout, student_layout, seed)
    teacher = laid_out(3, teacher_layout, teacher_layout, seed + 1)
    matched_student, matched = match_tokens(student, teacher)
    assert (matched.n_batch, matched.n_heads) == (2, 3)
    assert (matched.n_queries, matched.n_keys) == (student.n_queries, student.n_keys)
    pairs_of_rows = [slice(first, first + 2) for first in range(0, student.n_queries, 2)]
    torch.testing.assert_close(
        torch.cat([matched.rows(some, torch.float64) for some in pairs_of_rows], 2), rows(matched)
    )
    assert torch.cat([matched.keep(some) for some in pairs_of_rows], 1).equal(matched.keep())
    keep = matched.keep() & matched_student.keep()
    unmatched = max(before[0] - before[1], 0)
    assert keep.sum(1).tolist() == [student.n_queries - unmatched] * 2
    for record in (matched_student, matched):
        sums = rows(record).sum(-1).transpose(1, 2)[keep]
        torch.testing.assert_close(sums, torch.ones_like(sums))
    if unmatched:
        assert (rows(matched_student)[..., before[1] : before[0]] == 0).all()


def test_going_to_a_finer_grid_and_back_changes_nothing():
    coarse = TokenLayout(1, 2, 3)
    fine = TokenLayout(1, 4, 6)
    teacher = laid_out(3, coarse, coarse, 1)
    _, finer = match_tokens(laid_out(2, fine, fine), teacher)
    between = dataclasses.replace(laid_out(3, fine, fine), probabilities=rows(finer))
    _, back = match_tokens(laid_out(2, coarse, coarse), between)
    torch.testing.assert_close(rows(back), rows(teacher))


def test_one_axis_alone_is_resampled_in_a_cross_attention():
    """Text queries, of no layout, over the patches of an image."""
    student = laid_out(2, None, TokenLayout(0, 2, 2), n_queries=3)
    teacher = laid_out(2, None, TokenLayout(0, 4, 4), seed=1, n_queries=3)
    _, matched = match_tokens(student, teacher)
    fine = rows(teacher).unflatten(-1, (2, 2, 2, 2))
    torch.testing.assert_close(rows(matched), fine.sum((-1, -3)).flatten(-2))


def test_equally_many_patches_in_other_grids_are_resampled():
    student = laid_out(2, TokenLayout(0, 2, 3), TokenLayout(0, 2, 3))
    teacher = laid_out(2, TokenLayout(0, 3, 2), TokenLayout(0, 3, 2), seed=1)
    _, matched = match_tokens(student, teacher)
    assert matched is not teacher


def test_rows_of_the_teacher_that_do_not_count_are_left_out_of_the_mean(form):
    layout = TokenLayout(0, 2, 1)
    keep = torch.tensor([[True, False], [False, False]])
    teacher = dataclasses.replace(laid_out(2, layout, layout, seed=1), query_keep=keep)
    student = laid_out(2, TokenLayout(0, 1, 1), TokenLayout(0, 1, 1))
    student = dataclasses.replace(student, key=student.key.expand(-1, -1, 1, -1))
    _, matched = match_tokens(student, teacher)
    assert matched.keep().tolist() == [[True], [False]]
    torch.testing.assert_close(rows(matched)[0], torch.ones(2, 1, 1, dtype=torch.float64))
    gram = attention_gram(student, teacher)
    assert (gram.cross[1] == 0).all()


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_a_class_token_that_the_teacher_lacks_leaves_the_map_of_the_student(mask):
    """The student's other keys share its probability, as if it had been masked in the model."""
    layout = TokenLayout(1, 2, 2)
    student = laid_out(2, layout, layout, mask=mask)
    teacher = laid_out(3, TokenLayout(0, 2, 2), TokenLayout(0, 2, 2), 1)
    matched, _ = match_tokens(student, teacher)
    kept = rows(student)[..., 1:]
    torch.testing.assert_close(rows(matched)[..., 1:], kept / kept.sum(-1, keepdim=True))
    assert matched.keep()[:, 0].tolist() == [False, False]


def test_gradients_reach_a_student_on_other_tokens(form):
    layout = TokenLayout(1, 2, 1)
    student = laid_out(1, layout, layout, width=2)
    teacher = laid_out(2, TokenLayout(2, 3, 1), TokenLayout(2, 3, 1), 1, width=2)

    def gram(query, key):
        return attention_gram(dataclasses.replace(student, query=query, key=key), teacher)[:2]

    inputs = [x.clone().requires_grad_() for x in (student.query, student.key)]
    assert torch.autograd.gradcheck(gram, inputs)


@pytest.mark.parametrize(
    ("student_layout", "teacher_layout", "why"),
    [
        (None, TokenLayout(0, 3, 3), "where the patches lie is not known for both"),
        (TokenLayout(0, 2, 2, 0), TokenLayout(0, 3, 3, 1), "cannot be matched"),
        (TokenLayout(3, 2, 2), TokenLayout(0, 3, 3), "cannot be matched"),
    ],
)
def test_anything_else_is_refused_with_both_shapes(student_layout, teacher_layout, why):
    n_student = 4 if student_layout is None else student_layout.n_tokens
    student = laid_out(2, student_layout, student_layout, n_queries=n_student, n_keys=n_student)
    teacher = laid_out(2, teacher_layout, teacher_layout)
    n_teacher = teacher.n_keys
    with pytest.raises(ShapeError, match=f"{n_student} x {n_student} and {n_teacher} x {n_teacher} .*{why}"):
        match_tokens(student, teacher)


def test_a_layout_of_another_length_is_refused():
    student = laid_out(2, TokenLayout(0, 2, 2), TokenLayout(0, 2, 2), n_queries=5, n_keys=5)
    teacher = laid_out(2, TokenLayout(0, 3, 3), TokenLayout(0, 3, 3))
    with pytest.raises(ShapeError, match="of other lengths"):
        match_tokens(student, teacher)


def test_a_given_map_gets_no_gradient_where_the_teacher_has_no_token(form):
    """The class token of the student is hidden, and the others share its probability."""
    given = torch.tensor([[[[0.2, 0.3, 0.5]]]], dtype=torch.float64, requires_grad=True)
    student = laid_out(1, None, TokenLayout(1, 1, 2), n_queries=1, n_batch=1)
    teacher = laid_out(1, None, TokenLayout(0, 1, 2), n_queries=1, n_batch=1)
    student = dataclasses.replace(student, probabilities=given)
    teacher = dataclasses.replace(teacher, probabilities=torch.tensor([[[[0.3, 0.7]]]], dtype=torch.float64))
    kl = aligned_kl(student, teacher, torch.ones(1, 1, 1, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(kl.sum(), given)
    torch.testing.assert_close(gradient, torch.tensor([[[[0.0, 0.25, -0.15]]]], dtype=torch.float64))


def test_an_empty_batch_is_refused():
    nothing = torch.zeros(0, 2, 5, 3)
    records = [dataclasses.replace(plain.make_record(2), query=nothing, key=nothing) for _ in range(2)]
    with pytest.raises(ShapeError, match="each must have one at least"):
        match_tokens(*records)
