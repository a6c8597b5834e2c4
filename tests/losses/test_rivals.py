"""The laws of the alignments that are rivals of AMAD's."""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SitePair
from amad.errors import RecipeError, ShapeError
from amad.losses.methods import attention_term
from amad.losses.objective import Captured
from amad.losses.variants import VARIANTS
from amad.ops.backends import operator_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
METHODS = ("one_to_one", "mean", "nearest", "assigned")
OF_ANY_ORDER = ("mean", "nearest", "assigned")

methods = st.sampled_from(METHODS)
variants = st.sampled_from(("kl", "mse"))
masks = st.sampled_from(plain.MASKS)
extras = st.sampled_from(plain.EXTRAS)
heads = st.integers(1, 4)
seeds = st.integers(0, 99)


def losses(method, variant, student, teacher, **arguments):
    return attention_term([PAIR], method, variant, **arguments).pair_loss(PAIR, student, teacher)


def plain_weights(method, student, teacher):
    """a_ij of one sample from dense maps, by trying every assignment."""
    n_teachers, n_students = len(teacher), len(student)
    cosines = [[float(plain.cosine(t, s)) for s in student] for t in teacher]
    if method == "mean":
        return torch.full((n_teachers, n_students), 1 / n_students, dtype=torch.float64)
    if method == "nearest":
        chosen = [(i, row.index(max(row))) for i, row in enumerate(cosines)]
    elif method == "one_to_one":
        chosen = [(k, k) for k in range(min(n_teachers, n_students))]
    else:
        n = min(n_teachers, n_students)
        candidates = [
            list(zip(rows, columns, strict=True))
            for rows in itertools.permutations(range(n_teachers), n)
            for columns in itertools.combinations(range(n_students), n)
        ]
        chosen = max(candidates, key=lambda pairs: sum(cosines[i][j] for i, j in pairs))
    weights = torch.zeros(n_teachers, n_students, dtype=torch.float64)
    for i, j in chosen:
        weights[i, j] = 1.0
    return weights


def plain_losses(method, variant, student, teacher):
    """The loss of each sample head by head, from dense maps."""
    found = []
    for sample in range(student.n_batch):
        rows = plain.kept_rows(student, teacher, sample)
        total = torch.zeros((), dtype=torch.float64)
        if rows:
            s, t = (plain.plain_maps(record, sample, rows) for record in (student, teacher))
            weights = plain_weights(method, s, t)
            whole_s, whole_t = plain.normalised(s), plain.normalised(t)
            for i in range(len(t)):
                if not weights[i].any():
                    continue
                if variant == "mse":
                    mixture = sum(weights[i, j] * s[j] / s[j].norm() for j in range(len(s)))
                    total = total + (t[i] / t[i].norm() - mixture).square().sum()
                else:
                    mixture = sum(weights[i, j] * whole_s[j] for j in range(len(s)))
                    total = total + sum(
                        plain.plain_kl(whole_t[i, q], mixture[q]) for q in range(len(rows))
                    ) / len(rows)
        found.append(total)
    return torch.stack(found)


def test_a_case_worked_by_hand():
    """One row, two keys. Teacher heads (1/2, 1/2), (1, 0), (1/4, 3/4); student heads (9/10, 1/10) and (1/5, 4/5).

    By order only the first two pairs count: 1/2 log(25/9) and log 5. The mean of the student's heads is
    (11/20, 9/20). Head 1 is nearest to student head 1 (cosine 0.857 against 0.781), head 2 to student head 0, head 3
    to student head 1. The best assignment is 1 to 0 and 2 to 1, with the first head left over.
    """
    teacher = plain.from_maps(
        torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]], [[0.25, 0.75]]]], dtype=torch.float64)
    )
    student = plain.from_maps(torch.tensor([[[[0.9, 0.1]], [[0.2, 0.8]]]], dtype=torch.float64))

    def kl(t, s):
        return sum(p * math.log(p / q) for p, q in zip(t, s, strict=True) if p)

    first, second, third = (0.5, 0.5), (1.0, 0.0), (0.25, 0.75)
    one, two, mean = (0.9, 0.1), (0.2, 0.8), (0.55, 0.45)
    expected = {
        "one_to_one": kl(first, one) + kl(second, two),
        "mean": kl(first, mean) + kl(second, mean) + kl(third, mean),
        "nearest": kl(first, two) + kl(second, one) + kl(third, two),
        "assigned": kl(second, one) + kl(third, two),
    }
    for method, value in expected.items():
        assert losses(method, "kl", student, teacher).item() == pytest.approx(value, abs=1e-12), method


@given(
    method=methods, variant=variants, mask=masks, extra=extras, n_students=heads, n_teachers=heads, seed=seeds
)
@settings(max_examples=15)
def test_the_value_is_that_of_dense_maps(method, variant, mask, extra, n_students, n_teachers, seed):
    student = plain.make_record(n_students, mask=mask, extra=extra, seed=seed)
    teacher = plain.make_record(n_teachers, mask=mask, extra=extra, seed=seed + 1, width=2)
    expected = plain_losses(method, variant, student, teacher)
    torch.testing.assert_close(losses(method, variant, student, teacher), expected, rtol=1e-9, atol=1e-9)


@given(method=methods, variant=variants, mask=masks, extra=extras, seed=seeds)
@settings(max_examples=15)
def test_a_few_rows_at_a_time_give_what_whole_maps_give(method, variant, mask, extra, seed):
    student = plain.make_record(2, mask=mask, extra=extra, seed=seed, grad=True)
    teacher = plain.make_record(3, mask=mask, extra=extra, seed=seed + 1)
    found = []
    for form in ("reference", "chunked"):
        with operator_backend(form):
            value = losses(method, variant, student, teacher)
            found.append([value, *torch.autograd.grad(value.sum(), (student.query, student.key))])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "variant"), [*((method, "kl") for method in METHODS), ("assigned", "mse")]
)
def test_gradients_are_right(method, variant):
    student = plain.make_record(2, 3, 3, mask="float", seed=5, width=2, n_batch=1)
    teacher = plain.make_record(3, 3, 3, mask="keep", seed=6, width=2, n_batch=1)

    def loss(query, key):
        record = dataclasses.replace(student, query=query, key=key)
        return losses(method, variant, record, teacher).sum()

    inputs = [x.detach().clone().requires_grad_() for x in (student.query, student.key)]
    assert torch.autograd.gradcheck(loss, inputs)


@given(
    method=st.sampled_from(OF_ANY_ORDER),
    variant=variants,
    mask=masks,
    n_students=heads,
    n_teachers=heads,
    seed=seeds,
)
@settings(max_examples=15)
def test_the_order_of_heads_does_not_matter(method, variant, mask, n_students, n_teachers, seed):
    student = plain.make_record(n_students, mask=mask, seed=seed, grad=True)
    teacher = plain.make_record(n_teachers, mask=mask, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    of_teacher = torch.randperm(n_teachers, generator=generator)
    of_student = torch.randperm(n_students, generator=generator)
    loss = losses(method, variant, student, teacher)
    torch.testing.assert_close(losses(method, variant, student, plain.with_heads(teacher, of_teacher)), loss)
    moved = plain.with_heads(student, of_student)
    moved = dataclasses.replace(moved, query=moved.query.detach().requires_grad_())
    moved_loss = losses(method, variant, moved, teacher)
    torch.testing.assert_close(moved_loss, loss)
    (gradient,) = torch.autograd.grad(loss.sum(), student.query)
    (moved_gradient,) = torch.autograd.grad(moved_loss.sum(), moved.query)
    torch.testing.assert_close(moved_gradient, gradient[:, of_student], atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("variant", ["kl", "mse"])
def test_one_to_one_depends_on_the_order_of_heads(variant):
    student, teacher = plain.make_record(3, seed=1), plain.make_record(3, seed=2)
    turned = plain.with_heads(teacher, [1, 2, 0])
    one, other = (losses("one_to_one", variant, student, record).sum() for record in (teacher, turned))
    assert abs(one - other) > 0.01
    both = plain.with_heads(student, [1, 2, 0])
    torch.testing.assert_close(losses("one_to_one", variant, both, turned).sum(), one)


@given(method=methods, variant=variants, seed=seeds, n_students=heads)
@settings(max_examples=15)
def test_more_padding_changes_nothing(method, variant, seed, n_students):
    student = plain.make_record(n_students, 4, 4, mask="bool", seed=seed, dtype=torch.float32, grad=True)
    teacher = plain.make_record(3, 4, 4, mask="bool", seed=seed + 1, dtype=torch.float32)
    loss = losses(method, variant, student, teacher)
    longer = losses(method, variant, plain.padded(student, 3), plain.padded(teacher, 3))
    torch.testing.assert_close(longer, loss, atol=1e-6, rtol=1e-6)
    one, other = (torch.autograd.grad(x.sum(), (student.query, student.key)) for x in (loss, longer))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@given(
    method=st.sampled_from(("one_to_one", "nearest", "assigned")),
    variant=variants,
    mask=masks,
    extra=extras,
    seed=seeds,
)
def test_equal_heads_cost_nothing(method, variant, mask, extra, seed):
    student = plain.make_record(4, mask=mask, extra=extra, seed=seed)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(losses(method, variant, student, student.detach()), zero, atol=1e-9, rtol=0)


@given(variant=variants, mask=masks, extra=extras, seed=seeds)
@settings(max_examples=15)
def test_amad_ends_at_mean_and_at_nearest(variant, mask, extra, seed):
    """As its temperature goes to infinity and to zero, value and gradient."""
    student = plain.make_record(3, mask=mask, extra=extra, seed=seed, grad=True)
    teacher = plain.make_record(4, mask=mask, extra=extra, seed=seed + 1)
    for method, temperature in (("mean", 1e9), ("nearest", 1e-7)):
        found = [
            losses(method, variant, student, teacher),
            losses("amad", variant, student, teacher, temperature=temperature),
        ]
        torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)
        gradients = [torch.autograd.grad(value.sum(), student.query) for value in found]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("variant", ["kl", "mse"])
def test_the_best_assignment_is_no_farther_than_the_order_as_it_comes(variant):
    """Of mse, where the loss falls with the cosine; and what it picks is the same for kl."""
    student, teacher = plain.make_record(3, seed=3), plain.make_record(3, seed=4)
    assert (
        losses("assigned", "mse", student, teacher) <= losses("one_to_one", "mse", student, teacher) + 1e-12
    ).all()
    hidden = plain.with_heads(student, [2, 0, 1])
    assert losses("assigned", variant, hidden, student.detach()).abs().max() < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["kl", "mse"])
def test_a_sample_without_a_real_row_gives_zero_and_zero_gradient(method, variant):
    student, teacher = plain.make_record(2, seed=1, grad=True), plain.make_record(3, seed=2)
    keep = torch.tensor([[True] * 5, [False] * 5])
    loss = losses(method, variant, dataclasses.replace(student, query_keep=keep), teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student.query)
    assert loss[1] == 0
    assert (gradient[1] == 0).all()
    assert loss[0] > 0


@pytest.mark.parametrize("method", METHODS)
def test_maps_that_are_no_numbers_do_not_stop_the_run(method):
    student = plain.make_record(2, seed=1)
    student = dataclasses.replace(student, query=student.query * float("nan"))
    assert losses(method, "kl", student, plain.make_record(3, seed=2)).isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_who_teaches_whom_is_shown(method):
    """Of five teacher heads and three student heads; heads that teach nobody have a row of zeros and do not count."""
    student, teacher = plain.make_record(3, seed=1), plain.make_record(5, seed=2)
    term = attention_term([PAIR], method)
    both = (Captured(None, {plain.SITE: record}) for record in (student, teacher))
    found = term.diagnose(*both)[PAIR]
    weights = torch.tensor(found.weights, dtype=torch.float64)
    expected = torch.stack(
        [
            plain_weights(method, *(plain.plain_maps(record, b, range(5)) for record in (student, teacher)))
            for b in range(2)
        ]
    ).mean(0)
    torch.testing.assert_close(weights, expected)
    assert found.entropy == pytest.approx(1.0 if method == "mean" else 0.0)
    assert found.largest == pytest.approx(1 / 3 if method == "mean" else 1.0)
    assert 0 < found.collapse < 1
    assert found.coverage > 0


@pytest.mark.parametrize(
    ("method", "variant", "message"),
    [
        ("one2one", "kl", "method 'one2one' is none of amad, one_to_one,"),
        ("mean", "token", "variant of method 'mean', 'token' is none of kl, mse"),
    ],
)
def test_unknown_methods_and_variants_are_refused(method, variant, message):
    with pytest.raises(RecipeError, match=message):
        attention_term([PAIR], method, variant)


def test_every_method_and_variant_that_a_recipe_may_name_has_its_term():
    for method, known in VARIANTS.items():
        for variant in known:
            assert attention_term([PAIR], method, variant).pairs == (PAIR,)


@pytest.mark.parametrize(("n_student", "n_teacher"), [(2, 3), (3, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize(("method", "variant"), [(m, v) for m, known in VARIANTS.items() for v in known])
def test_other_samples_than_the_teachers_are_refused(method, variant, n_student, n_teacher):
    student, teacher = plain.make_record(2, n_batch=n_student), plain.make_record(3, n_batch=n_teacher)
    with pytest.raises(ShapeError, match=f"different batches: {n_student} and {n_teacher} samples"):
        losses(method, variant, student, teacher)
