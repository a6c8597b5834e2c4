"""Relations of queries, keys and values."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amad.axes import SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, RecipeError
from amad.losses.relations import Relations, attended_keys
from amad.ops.backends import operator_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)


def record(n_heads=2, width=4, seed=0, grad=False, **arguments):
    made = plain.make_record(n_heads, width=width, seed=seed, grad=grad, **arguments)
    generator = torch.Generator().manual_seed(seed + 50)
    value = torch.randn(made.key.shape, generator=generator, dtype=made.key.dtype).requires_grad_(grad)
    return dataclasses.replace(made, value=value)


def losses(student, teacher, relation_heads=None):
    return Relations([PAIR], relation_heads=relation_heads).pair_loss(PAIR, student, teacher)


def relations(vectors, n_relations):
    """(relation, row, key) of the vectors (head, token, width) of one sample, one entry at a time."""
    joined = torch.cat(list(vectors), -1)
    width = joined.shape[1] // n_relations
    found = []
    for r in range(n_relations):
        part = joined[:, r * width : (r + 1) * width]
        scores = torch.stack([torch.stack([one @ other for other in part]) for one in part])
        found.append((scores / width**0.5).softmax(-1))
    return torch.stack(found)


def plain_losses(student, teacher, n_relations):
    """From dense relations over the tokens that count."""
    found = []
    for sample in range(student.n_batch):
        total = torch.zeros((), dtype=torch.float64)
        rows = plain.kept_rows(student, teacher, sample)
        seen = [
            key
            for key in range(student.n_keys)
            if all(
                any(plain.sees(r, sample, head, row, key) for head in range(r.n_heads) for row in rows)
                for r in (student, teacher)
            )
        ]
        for kind, tokens in (("query", rows), ("key", seen), ("value", seen)):
            if not tokens:
                continue
            s, t = (relations(getattr(r, kind)[sample][:, tokens], n_relations) for r in (student, teacher))
            total = total + sum(
                plain.plain_kl(t[h, q], s[h, q]) for h in range(n_relations) for q in range(len(tokens))
            ) / len(tokens)
        found.append(total / 3)
    return torch.stack(found)


@settings(max_examples=15)
@given(
    mask=st.sampled_from(["none", "bool", "float", "infinite", "causal", "keep"]),
    n_relations=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_it_is_the_divergence_of_dense_relations(mask, n_relations, seed):
    student = record(2, 4, seed=seed, mask=mask)
    teacher = record(4, 6, seed=seed + 1, mask=mask)
    expected = plain_losses(student, teacher, n_relations)
    torch.testing.assert_close(losses(student, teacher, n_relations), expected, rtol=1e-9, atol=1e-9)


def test_as_many_relation_heads_as_heads_of_the_teacher_when_none_are_given():
    """Then each relation head of the teacher is one of its heads."""
    student, teacher = record(2, 8, seed=1), record(4, 6, seed=2)
    found = losses(student, teacher)
    torch.testing.assert_close(found, losses(student, teacher, 4))
    (of_head,) = teacher.value[:1, 3] @ teacher.value[:1, 3].mT / 6**0.5
    torch.testing.assert_close(relations(teacher.value[0], 4)[3], of_head.softmax(-1))


def test_maps_of_another_length_on_the_key_axis():
    """A cross-attention: queries are related among themselves, keys and values among themselves."""
    student, teacher = (record(2, 4, seed=seed, n_queries=3, n_keys=6, mask="bool") for seed in (1, 2))
    torch.testing.assert_close(losses(student, teacher, 2), plain_losses(student, teacher, 2))


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_gradients_reach_queries_keys_and_values_and_are_right(form):
    student = record(2, 2, seed=1, n_queries=3, n_keys=3, mask="keep", n_batch=1)
    teacher = record(2, 3, seed=2, n_queries=3, n_keys=3, n_batch=1)

    def loss(*vectors):
        changed = dict(zip(("query", "key", "value"), vectors, strict=True))
        with operator_backend(form):
            return losses(dataclasses.replace(student, **changed), teacher).sum()

    inputs = [x.detach().clone().requires_grad_() for x in (student.query, student.key, student.value)]
    assert torch.autograd.gradcheck(loss, inputs, nondet_tol=1e-12)


def test_more_padding_changes_nothing():
    student, teacher = (record(2, 4, seed=s, mask="bool", n_queries=4, n_keys=4) for s in (1, 2))

    def padded(made):
        garbage = 9 * torch.ones(2, made.n_heads, 3, 4, dtype=torch.float64)
        longer = plain.padded(dataclasses.replace(made, value=None), 3)
        return dataclasses.replace(longer, value=torch.cat([made.value, garbage], 2))

    torch.testing.assert_close(losses(padded(student), padded(teacher)), losses(student, teacher))


def test_equal_vectors_cost_nothing_and_so_does_a_rotation_inside_of_relation_heads():
    student = record(2, 4, seed=1, mask="bool")
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(losses(student, student.detach()), zero, atol=1e-9, rtol=0)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned = dataclasses.replace(
        student, query=student.query @ turn, key=student.key @ turn, value=student.value @ turn
    )
    torch.testing.assert_close(losses(turned, student, 2), zero, atol=1e-9, rtol=0)
    assert (losses(plain.with_heads(student, [1, 0]), student, 2) > 1e-3).all()


def test_grouped_keys_are_cut_anew_like_any_other():
    student, teacher = record(4, 4, seed=1, extra="grouped"), record(4, 4, seed=2)
    assert student.n_kv_heads == 2
    torch.testing.assert_close(losses(student, teacher, 2), plain_losses(student, teacher, 2))


def test_a_sample_without_a_real_row_gives_zero_and_zero_gradient():
    student, teacher = record(2, 4, seed=1, grad=True), record(2, 4, seed=2)
    keep = torch.tensor([[True] * 5, [False] * 5])
    loss = losses(dataclasses.replace(student, query_keep=keep), teacher)
    gradients = torch.autograd.grad(loss.sum(), (student.query, student.key, student.value))
    assert loss[1] == 0
    assert all((gradient[1] == 0).all() and gradient[0].any() for gradient in gradients)


def test_keys_count_that_a_row_that_counts_may_attend():
    made = record(2, 4, mask="causal", n_queries=3, n_keys=3)
    keep = torch.tensor([[True, True, False], [False, True, True]])
    found = attended_keys(dataclasses.replace(made, query_keep=keep))
    assert found.tolist() == [[True, True, False], [True, True, True]]


def test_the_kind_of_vectors_that_torch_attention_calls_by_itself():
    """The relation of one kind is scaled dot-product attention of it with itself, times the identity."""
    made = record(2, 4, seed=1)
    expected = nn.functional.scaled_dot_product_attention(
        made.value, made.value, torch.eye(5, dtype=torch.float64).expand(2, 2, -1, -1)
    )
    torch.testing.assert_close(relations(made.value[0], 2), expected[0])


def test_what_cannot_be_related_is_refused():
    student, teacher = record(2, 4), record(3, 4)
    with pytest.raises(
        RecipeError, match=r"3 relation heads do not divide the 8 numbers of a query of .* the student"
    ):
        losses(student, teacher)
    with pytest.raises(RecipeError, match="relation_heads = 0"):
        Relations([PAIR], relation_heads=0)
    with pytest.raises(CaptureError, match=r"need the value vectors of encoder.self\[0\] of the student"):
        losses(dataclasses.replace(student, value=None), student)
    empty = {name: getattr(student, name)[..., :0] for name in ("query", "key")}
    maps = dataclasses.replace(student, **empty, probabilities=student.rows())
    with pytest.raises(CaptureError, match=r"need the query vectors .* of the teacher"):
        losses(student, maps)


def test_the_term_asks_for_values():
    assert "value" in Relations([PAIR]).needs
    assert AttentionRecord.__dataclass_fields__["value"].default is None


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_vectors_with_one_sample_for_all_are_those_of_each(name, backend):
    student, teacher = record(seed=1), record(4, seed=2)
    one = getattr(student, name)[:1]
    given, spelt_out = (
        dataclasses.replace(student, **{name: vectors}) for vectors in (one, one.expand(2, -1, -1, -1))
    )
    with operator_backend(backend):
        torch.testing.assert_close(losses(given, teacher), losses(spelt_out, teacher))
