"""Hidden states compared through a trained projection."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amad.axes import SitePair
from amad.capture.record import TokenLayout
from amad.errors import CaptureError, RecipeError, ShapeError
from amad.losses.hidden import HiddenStates
from amad.losses.objective import Captured, Objective, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
LOSSES = ("mse", "cosine")


def with_hidden(width, seed=0, grad=False, **arguments):
    record = plain.make_record(2, seed=seed, **arguments)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, record.n_queries, width)
    hidden = torch.randn(shape, generator=generator, dtype=record.query.dtype).requires_grad_(grad)
    return dataclasses.replace(record, hidden=hidden)


def term(student, teacher, loss="mse", seed=None):
    made = HiddenStates([PAIR], loss=loss)
    made.prepare({plain.SITE: student}, {plain.SITE: teacher})
    if seed is not None:
        nn.init.normal_(next(made.parameters()), generator=torch.Generator().manual_seed(seed))
    return made


def losses(made, student, teacher):
    return made.pair_loss(PAIR, student, teacher)


def test_a_case_worked_by_hand():
    """Two queries; (1, 2) against (1, 0) and (0, 1) against (0, 3): squares 4 and 4 over two numbers each."""
    student = plain.make_record(1, 2, 2, n_batch=1)
    student = dataclasses.replace(student, hidden=torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
    teacher = dataclasses.replace(student, hidden=torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
    assert losses(term(student, teacher), student, teacher).item() == pytest.approx(2.0)
    # The first cosine is 1 / sqrt 5, the second 1.
    cosine = losses(term(student, teacher, "cosine"), student, teacher).item()
    assert cosine == pytest.approx((1 - 5**-0.5) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 99), mask=st.sampled_from(["none", "bool", "keep", "causal"]))
@settings(max_examples=15)
def test_it_is_the_distance_of_torch_over_the_rows_that_count(loss, seed, mask):
    student, teacher = with_hidden(4, seed, mask=mask), with_hidden(6, seed + 1, mask=mask)
    made = term(student, teacher, loss, seed=seed)
    (weight,) = made.parameters()
    found = losses(made, student, teacher)
    for sample in range(2):
        rows = plain.kept_rows(student, teacher, sample)
        projected = student.hidden[sample, rows] @ weight.detach().double().T
        aim = teacher.hidden[sample, rows]
        if loss == "mse":
            expected = nn.functional.mse_loss(projected, aim)
        else:
            expected = nn.functional.cosine_embedding_loss(projected, aim, torch.ones(len(rows)))
        torch.testing.assert_close(found[sample], expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_to_the_states_and_to_the_projection_are_right(loss):
    student, teacher = with_hidden(3, 1), with_hidden(4, 2, mask="keep")
    made = term(student, teacher, loss, seed=3).double()
    (name,) = dict(made.named_parameters())

    def value(hidden, weight):
        record = dataclasses.replace(student, hidden=hidden)
        both = Captured(None, {plain.SITE: record}), Captured(None, {plain.SITE: teacher})
        call = (*both, Targets(torch.full((1, 1), -100)))
        return torch.func.functional_call(made, {name: weight}, call).total

    inputs = [x.detach().clone().requires_grad_() for x in (student.hidden, *made.parameters())]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_states_of_one_width_cost_nothing_at_the_start(loss):
    student = with_hidden(4, 1)
    made = term(student, student, loss)
    torch.testing.assert_close(
        losses(made, student, student), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_the_projection_alone_finds_a_rotation():
    student = with_hidden(4, 1, n_queries=40, n_keys=40, dtype=torch.float32)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0][:, :4]
    teacher = dataclasses.replace(student, hidden=student.hidden @ turn.T)
    made = term(student, teacher)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        loss = losses(made, student, teacher).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 1e-3
    torch.testing.assert_close(next(made.parameters()).detach(), turn, atol=0.02, rtol=0)


def test_rows_that_do_not_count_change_nothing_and_an_empty_sample_gives_zero():
    student, teacher = with_hidden(4, 1, grad=True), with_hidden(6, 2)
    keep = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    kept = dataclasses.replace(student, query_keep=keep)
    made = term(student, teacher, seed=1)
    loss = losses(made, kept, teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student.hidden)
    assert loss[1] == 0
    assert (gradient[0, 3:] == 0).all()
    assert (gradient[1] == 0).all()
    noisy = dataclasses.replace(kept, hidden=student.hidden + 100.0 * ~keep[..., None])
    torch.testing.assert_close(losses(made, noisy, teacher), loss)


def test_no_gradient_reaches_the_teacher():
    student, teacher = with_hidden(4, 1, grad=True), with_hidden(4, 2, grad=True)
    losses(term(student, teacher), student, teacher).sum().backward()
    assert teacher.hidden.grad is None
    assert student.hidden.grad is not None


def test_the_projections_come_back_from_a_checkpoint_into_a_term_that_is_not_prepared():
    student, teacher = with_hidden(4, 1), with_hidden(6, 2)
    made = term(student, teacher, seed=4)
    resumed = HiddenStates([PAIR])
    resumed.load_state_dict(made.state_dict())
    torch.testing.assert_close(losses(resumed, student, teacher), losses(made, student, teacher))


def test_what_cannot_be_compared_is_refused():
    student, teacher = with_hidden(4, 1), with_hidden(4, 2, n_queries=4)
    with pytest.raises(
        ShapeError, match=r"token by token, but encoder.self\[0\] has 5 and .* of the teacher has 4"
    ):
        losses(term(student, teacher), student, teacher)
    grids = (TokenLayout(1, 2, 2), TokenLayout(2, 1, 3))
    on_grids = [dataclasses.replace(student, query_layout=grid) for grid in grids]
    with pytest.raises(ShapeError, match=r"has 5 in a grid of 2 x 2 and .* has 5 in a grid of 1 x 3"):
        losses(term(*on_grids), *on_grids)
    with pytest.raises(CaptureError, match="of the student has no hidden states with one per query"):
        term(plain.make_record(2), teacher)
    with pytest.raises(RecipeError, match=r"Call prepare\(\)"):
        losses(HiddenStates([PAIR]), student, student)


def test_the_objective_says_what_records_must_hold():
    assert Objective({"hidden": (1.0, HiddenStates([PAIR]))}).extras == {"hidden"}
