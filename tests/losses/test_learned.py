"""Trained mixtures of student heads."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from amad.axes import SitePair
from amad.errors import CaptureError, RecipeError
from amad.losses.learned import LearnedMixture
from amad.losses.methods import attention_term
from amad.losses.objective import Captured, Targets
from amad.ops.backends import operator_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)


def term(student, teacher, variant="kl", seed=None):
    made = LearnedMixture([PAIR], variant=variant)
    made.prepare({plain.SITE: student}, {plain.SITE: teacher})
    if seed is not None:
        (scores,) = made.scores.values()
        torch.nn.init.normal_(scores, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.mark.parametrize("variant", ["kl", "mse"])
@pytest.mark.parametrize("mask", ["none", "float", "keep"])
def test_it_starts_as_mean(variant, mask):
    student, teacher = plain.make_record(2, mask=mask, seed=1), plain.make_record(3, mask=mask, seed=2)
    expected = attention_term([PAIR], "mean", variant).pair_loss(PAIR, student, teacher)
    torch.testing.assert_close(term(student, teacher, variant).pair_loss(PAIR, student, teacher), expected)


def test_weights_of_one_head_give_that_head():
    """With nearly all weight on student head k for teacher head k it is one to one."""
    student, teacher = plain.make_record(3, seed=1), plain.make_record(3, seed=2)
    made = term(student, teacher)
    (scores,) = made.scores.values()
    with torch.no_grad():
        scores.copy_(1e3 * torch.eye(3))
    expected = attention_term([PAIR], "one_to_one").pair_loss(PAIR, student, teacher)
    torch.testing.assert_close(made.pair_loss(PAIR, student, teacher), expected)


@pytest.mark.parametrize("variant", ["kl", "mse"])
def test_gradients_to_the_student_and_to_the_weights_are_right(variant):
    student = plain.make_record(2, 3, 3, mask="float", seed=5, width=2, n_batch=1)
    teacher = plain.make_record(3, 3, 3, mask="keep", seed=6, width=2, n_batch=1)
    made = term(student, teacher, variant, seed=1).double()
    (name,) = dict(made.named_parameters())

    def loss(query, key, scores):
        record = dataclasses.replace(student, query=query, key=key)
        call = (
            Captured(None, {plain.SITE: record}),
            Captured(None, {plain.SITE: teacher}),
            Targets(torch.full((1, 1), -100)),
        )
        return torch.func.functional_call(made, {name: scores}, call).total

    values = [x.detach().clone().requires_grad_() for x in (student.query, student.key, *made.parameters())]
    assert torch.autograd.gradcheck(loss, values)


@pytest.mark.parametrize("variant", ["kl", "mse"])
def test_a_few_rows_at_a_time_give_what_whole_maps_give(variant):
    student = plain.make_record(2, mask="bool", extra="sinks", seed=1, grad=True)
    teacher = plain.make_record(3, mask="bool", seed=2)
    made = term(student, teacher, variant, seed=3)
    found = []
    for form in ("reference", "chunked"):
        with operator_backend(form):
            value = made.pair_loss(PAIR, student, teacher)
            inputs = (student.query, student.key, *made.parameters())
            found.append([value, *torch.autograd.grad(value.sum(), inputs)])
    torch.testing.assert_close(*found)


def test_training_the_weights_alone_finds_the_order_of_the_heads():
    student = plain.make_record(3, seed=1, dtype=torch.float32, sharpness=3.0)
    teacher = plain.with_heads(student, [2, 0, 1])
    made = term(student, teacher)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(100):
        loss = made.pair_loss(PAIR, student, teacher).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    both = Captured(None, {plain.SITE: student}), Captured(None, {plain.SITE: teacher})
    figures = made.diagnose(*both)[PAIR]
    assert [row.index(max(row)) for row in figures.weights] == [2, 0, 1]
    assert figures.largest > 0.9
    assert loss < 0.1


def test_the_weights_come_back_from_a_checkpoint():
    """Also into a term that has not been prepared yet, as in a resumed run."""
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    made = term(student, teacher, seed=4)
    resumed = LearnedMixture([PAIR])
    resumed.load_state_dict(made.state_dict())
    torch.testing.assert_close(
        resumed.pair_loss(PAIR, student, teacher), made.pair_loss(PAIR, student, teacher)
    )


def test_a_mixture_that_was_not_made_is_refused():
    with pytest.raises(RecipeError, match=r"call prepare\(\)|Call prepare\(\)"):
        LearnedMixture([PAIR]).pair_loss(PAIR, plain.make_record(2), plain.make_record(3))
    with pytest.raises(CaptureError, match=r"encoder.self\[0\] of the teacher was not recorded"):
        LearnedMixture([PAIR]).prepare({plain.SITE: plain.make_record(2)})


def test_a_pair_of_weight_zero_trains_nothing_and_shows_uniform_weights():
    pair = SitePair(plain.SITE, plain.SITE, 0.0)
    made = LearnedMixture([pair])
    student, teacher = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    made.prepare({plain.SITE: student}, {plain.SITE: teacher})
    assert not list(made.parameters())
    both = Captured(None, {plain.SITE: student}), Captured(None, {plain.SITE: teacher})
    assert made.diagnose(*both)[pair].entropy == pytest.approx(1.0)
