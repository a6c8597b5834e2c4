"""Teacher heads that count by what they are worth."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SitePair
from amad.errors import RecipeError
from amad.losses.methods import attention_term

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
FORMS = [
    ("amad", "kl"),
    ("amad", "mse"),
    ("amad", "token"),
    ("mean", "kl"),
    ("nearest", "mse"),
    ("one_to_one", "kl"),
    ("assigned", "kl"),
]


def loss(form, student, teacher, worth=None):
    method, variant = form
    term = attention_term([PAIR], method, variant)
    if worth is not None:
        term.weigh_heads({plain.SITE: torch.as_tensor(worth, dtype=torch.float64)})
    return term.pair_loss(PAIR, student, teacher)


@given(form=st.sampled_from(FORMS), seed=st.integers(0, 50))
@settings(max_examples=20)
def test_one_head_that_matters_is_all_that_is_taught(form, seed):
    student = plain.make_record(2, mask="bool", seed=seed)
    teacher = plain.make_record(3, mask="bool", seed=seed + 1)
    # Of three teacher heads, as many teach as the form has places for.
    n_taught = 2 if form[0] in ("assigned", "one_to_one") else 3
    alone = [
        loss(form, student, teacher, worth=[float(i == head) for i in range(3)]) / n_taught
        for head in range(3)
    ]
    torch.testing.assert_close(sum(alone), loss(form, student, teacher), rtol=1e-9, atol=1e-9)
    if form[0] != "assigned" and form[0] != "one_to_one":
        # The alignment of a head does not depend on the other teacher heads.
        for head, value in enumerate(alone):
            single = plain.with_heads(teacher, [head])
            torch.testing.assert_close(value, loss(form, student, single), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_equal_worth_changes_nothing_and_harm_counts_as_nothing(form):
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    torch.testing.assert_close(loss(form, student, teacher, [0.2] * 3), loss(form, student, teacher))
    torch.testing.assert_close(
        loss(form, student, teacher, [0.3, -5.0, 0.1]), loss(form, student, teacher, [3.0, 0.0, 1.0])
    )


@pytest.mark.parametrize("variant", ["kl", "mse", "scores"])
def test_heads_that_teach_nobody_take_no_weight(variant):
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    one = ("one_to_one", variant)
    first, second = (loss(one, student, teacher, worth) / 2 for worth in ([1, 0, 0], [0, 1, 0]))
    torch.testing.assert_close(loss(one, student, teacher), first + second)
    # The third has no pupil, whatever it is worth.
    torch.testing.assert_close(loss(one, student, teacher, [3, 1, 96]), 1.5 * first + 0.5 * second)
    assert not loss(one, student, teacher, [0, 0, 1]).any()


def test_gradients_follow_the_weights():
    student, teacher = plain.make_record(2, seed=3, grad=True), plain.make_record(3, seed=4)
    found = []
    for worth in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], None):
        (gradient,) = torch.autograd.grad(
            loss(("amad", "kl"), student, teacher, worth).sum(), [student.query]
        )
        found.append(gradient)
    torch.testing.assert_close(sum(found[:3]) / 3, found[3], rtol=1e-9, atol=1e-9)


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(RecipeError, match="no sum over teacher heads"):
        attention_term([PAIR], "head_mean", "kl").weigh_heads({plain.SITE: torch.ones(3)})
    with pytest.raises(RecipeError, match="worth anything"):
        attention_term([PAIR]).weigh_heads({plain.SITE: -torch.ones(3)})
    with pytest.raises(RecipeError, match="worth anything"):
        attention_term([PAIR]).weigh_heads({})


def test_worth_that_is_no_number_is_refused():
    with pytest.raises(RecipeError, match=r"worth \[0\.1.*, inf, .*\], and each must be a finite number"):
        attention_term([PAIR]).weigh_heads({plain.SITE: torch.tensor([0.1, float("inf"), 0.2])})
