"""The trained map of maps."""

import sys
from pathlib import Path

import pytest
import torch

from amad.axes import SitePair
from amad.errors import RecipeError, ShapeError
from amad.losses import projection as projection_module
from amad.losses.amad import AttentionAlignment
from amad.losses.objective import Captured, Targets
from amad.losses.projection import Projection, over_projected_blocks

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

PAIR = SitePair(plain.SITE, plain.SITE)
LIMIT = 1 << 30


def test_the_full_form_multiplies_the_flattened_map():
    projection = Projection(1, 2, "full", LIMIT)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, -3.0]]))
        projection.bias.copy_(torch.tensor([0.5, 0.0]))
    maps = torch.tensor([[[[0.75, 0.25]]]])
    # 2 * 0.75 + 0.5 and max(0.75 - 3 * 0.25, 0).
    torch.testing.assert_close(projection(maps, torch.ones(1, 1, 1, 2)), torch.tensor([[[[2.0, 0.0]]]]))


def test_the_factored_form_treats_every_row_alike():
    projection = Projection(3, 2, "factored", LIMIT)
    torch.nn.init.normal_(projection.weight)
    maps = torch.rand(2, 4, 3, 2)
    rows = projection(maps, torch.ones(1, 1, 1, 2))
    swapped = projection(maps[:, :, [2, 0, 1]], torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(swapped, rows[:, :, [2, 0, 1]])


def test_a_projection_over_the_limit_is_refused_with_its_bytes():
    # 4 bytes for each of 38,809^2 weights and 38,809 biases: the 6 GB of a 197 x 197 map.
    with pytest.raises(RecipeError, match=r"6024709160 bytes \(6.02 GB\).*limit of 1073741824"):
        AttentionAlignment([PAIR], variant="projected", projection_shapes={PAIR: (197, 197)})
    with pytest.raises(RecipeError, match="factored projection of maps of 9 x 9 takes 360 bytes"):
        Projection(9, 9, "factored", 100)


def test_maps_of_another_size_are_refused():
    term = AttentionAlignment([PAIR], variant="projected", projection_shapes={PAIR: (5, 4)})
    with pytest.raises(ShapeError, match="maps are 5 x 5, but their projection was made for 5 x 4"):
        term.pair_loss(PAIR, plain.make_record(2), plain.make_record(3))


def test_a_projection_that_was_not_made_is_refused():
    term = AttentionAlignment([PAIR], variant="projected")
    with pytest.raises(RecipeError, match=r"call prepare\(\)"):
        term.pair_loss(PAIR, plain.make_record(2), plain.make_record(3))


def test_projections_come_back_from_a_checkpoint():
    """Also into a term that has not been prepared yet, as in a resumed run."""
    term = AttentionAlignment([PAIR], variant="projected", projection_shapes={PAIR: (5, 5)})
    for parameter in term.parameters():
        torch.nn.init.normal_(parameter)
    resumed = AttentionAlignment([PAIR], variant="projected")
    resumed.load_state_dict(term.state_dict())
    records = plain.make_record(2, seed=1), plain.make_record(3, seed=2)
    torch.testing.assert_close(resumed.pair_loss(PAIR, *records), term.pair_loss(PAIR, *records))


@pytest.mark.parametrize("form", ["full", "factored"])
def test_training_the_projection_alone_lowers_the_loss(form):
    student = plain.make_record(2, seed=1, dtype=torch.float32)
    teacher = plain.make_record(3, seed=2, dtype=torch.float32)
    term = AttentionAlignment([PAIR], variant="projected", projection=form, projection_shapes={PAIR: (5, 5)})
    optimiser = torch.optim.Adam(term.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        loss = term(
            Captured(None, {plain.SITE: student}),
            Captured(None, {plain.SITE: teacher}),
            Targets(torch.full((2, 1), -100)),
        ).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


def test_keys_that_may_not_be_attended_stay_zero():
    """A bias that would give every key something does not reach hidden keys or padded rows."""
    student, teacher = plain.make_record(2, mask="bool", seed=1), plain.make_record(3, mask="keep", seed=2)
    term = AttentionAlignment([PAIR], variant="projected", projection_shapes={PAIR: (5, 5)})
    (projection,) = term.projections.values()
    torch.nn.init.ones_(projection.bias)
    (projected,) = over_projected_blocks(student, teacher, projection, lambda block: block.student)
    assert (projected[1, ..., -1] == 0).all()
    assert (projected[0, :, 2:] == 0).all()
    assert (projected[0, :, :2] > 0).all()


def test_the_factored_form_in_blocks_of_rows_is_that_in_one(monkeypatch):
    student = plain.make_record(2, 7, 5, "float", seed=1, grad=True)
    teacher = plain.make_record(3, 7, 5, "keep", seed=2)
    term = AttentionAlignment(
        [PAIR], variant="projected", projection="factored", projection_shapes={PAIR: (7, 5)}
    )
    term.double()
    found = []
    for n_rows in (64, 2):
        monkeypatch.setattr(projection_module, "PROJECTED_ROWS", n_rows)
        loss = term.pair_loss(PAIR, student, teacher)
        inputs = [student.query, student.key, *term.parameters()]
        found.append([loss, *torch.autograd.grad(loss.sum(), inputs)])
    torch.testing.assert_close(*found)
