"""Losses that a model computes itself."""

from collections.abc import Sequence

from amad.errors import CaptureError
from amad.losses.objective import Captured, Figure, Targets, Term, TermValue


class OwnLoss(Term):
    """A loss that the student gives for each sample of a batch, such as the contrast of BLIP's pre-training, in nats.

    Args:
        name: Its name among ``Captured.losses``.
        figures: Names among ``Captured.figures`` that are shown with it, in percent.
    """

    needs = frozenset()

    def __init__(self, name: str, figures: Sequence[str] = ()) -> None:
        super().__init__()
        self.name = name
        self.figures = tuple(figures)

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum over the samples of this batch.

        Raises:
            CaptureError: if the student did not give the loss or a figure.
        """
        for name, given in ((self.name, student.losses), *((one, student.figures) for one in self.figures)):
            if name not in given:
                raise CaptureError(
                    f"the loss or figure {name!r} is the student's own, and it gave {sorted(given) or 'none'}. Train a "
                    "model that computes it."
                )
        figures = {}
        for name in self.figures:
            total, divisor = student.figures[name]
            figures[name] = Figure(100 * total, divisor)
        return TermValue(targets.sum_over_samples(student.losses[self.name]), "sample", figures)
