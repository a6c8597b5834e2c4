import pytest
import torch

from amad.errors import CaptureError
from amad.losses.objective import Captured, Counts, Objective, Targets
from amad.losses.own import OwnLoss

TARGETS = Targets(torch.zeros(3, 2, dtype=torch.long))


def captured(**figures):
    return Captured(losses={"contrast": torch.tensor([1.0, 2.0, 6.0])}, figures=figures)


def test_it_is_the_mean_over_samples_with_its_figures_in_percent():
    student = captured(accuracy=torch.tensor([3.0, 4.0]))
    objective = Objective({"contrast": (2.0, OwnLoss("contrast", ["accuracy"]))})
    value = objective(student, None, TARGETS, Counts(tokens=6, samples=3))
    assert (value.loss.item(), value.parts["contrast"].item()) == (6.0, 3.0)
    assert value.figures == {"accuracy": (300.0, 4.0)}


def test_half_batches_with_the_counts_of_the_whole_add_up():
    losses = captured().losses["contrast"]
    parts = [
        Objective({"own": (1.0, OwnLoss("contrast"))})(
            Captured(losses={"contrast": part}),
            None,
            Targets(torch.zeros(len(part), 2, dtype=torch.long)),
            Counts(6, 3),
        ).loss
        for part in (losses[:1], losses[1:])
    ]
    assert sum(parts).item() == pytest.approx(losses.mean().item())


@pytest.mark.parametrize(("term", "name"), [(OwnLoss("match"), "match"), (OwnLoss("contrast", ["a"]), "a")])
def test_a_student_that_gives_no_such_loss_is_refused(term, name):
    with pytest.raises(CaptureError, match=f"'{name}' is the student's own"):
        term(captured(), None, TARGETS)
