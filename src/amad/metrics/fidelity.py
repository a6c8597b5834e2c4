"""How alike two models answer, and how far a model's confidence can be trusted.

Fidelity to the teacher is not quality: a student can answer better than its teacher and unlike it, and the other way
round (Stanton et al. 2021, "Does Knowledge Distillation Really Work?", arXiv:2106.05945).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amad.errors import DataError

N_BINS = 15
"""Bins of the calibration error, as most of the literature has it."""

_Numbers = npt.ArrayLike


@dataclass(frozen=True)
class Agreement:
    """How many items two models answer alike.

    Attributes:
        n_equal: Items with equal answers.
        n_items: Items in all.
    """

    n_equal: int
    n_items: int

    @property
    def percent(self) -> float:
        """Percentage of items with equal answers."""
        return 100 * self.n_equal / self.n_items

    @property
    def interval_percent(self) -> tuple[float, float]:
        """Wilson's 95 % interval of it, for items that are a sample of many."""
        low, high = wilson_interval(self.n_equal, self.n_items)
        return 100 * low, 100 * high


def agreement(student: Sequence[str], teacher: Sequence[str]) -> Agreement:
    """How many texts of the student are the teacher's text for the same item, to the letter.

    The average top-1 agreement of Stanton et al. 2021 (arXiv:2106.05945), with whole texts in the place of classes.
    Symmetric.

    Raises:
        DataError: no text, or not one of each model per item.
    """
    if not student or len(student) != len(teacher):
        raise DataError(
            "agreement needs one text of the student and one of the teacher per item, and there are "
            f"{len(student)} and {len(teacher)}. Let both answer the same items."
        )
    return Agreement(sum(mine == its for mine, its in zip(student, teacher, strict=True)), len(student))


def wilson_interval(n_successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, within 0 and 1.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    p = n_successes / n

    with z the normal quantile of (1 + confidence) / 2. Wilson 1927, doi 10.1080/01621459.1927.10502953. It assumes
    that the items are independent of one another. Of items that succeed in part, give the sum: none of them varies
    more than one that succeeds or fails, so the interval is not too narrow.

    Raises:
        DataError: no items, or successes that are not some of them.
    """
    if not 0 <= n_successes <= n or n < 1:
        raise DataError(
            f"a share is of at least one item, and {n_successes} of {n} were given. Count them again."
        )
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = n_successes / n
    centre = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At the ends rounding would leave a share of none a little above zero.
    low = 0.0 if n_successes == 0 else (centre - reach) / scale
    high = 1.0 if n_successes == n else (centre + reach) / scale
    return low, high


class Calibration:
    """How far confidence is from accuracy, from as many predictions as are added, a batch at a time.

    The expected calibration error is, over bins B of equal width,

        sum_B n_B / n |mean outcome in B - mean confidence in B|

    Guo et al. 2017 (arXiv:1706.04599), section 2; a bin holds its upper edge, the first one zero too. Zero for
    a model that is right as often as it says, but for chance: the fewer predictions, the more of it. Gaps in both
    directions add up; ``overconfidence_percent`` tells which one prevails.

    Args:
        n_bins: Bins from 0 to 1.

    Raises:
        DataError: no bins.
    """

    def __init__(self, n_bins: int = N_BINS) -> None:
        if n_bins < 1:
            raise DataError(f"a calibration error needs at least one bin, and n_bins = {n_bins}. Give 15.")
        # Of each bin: predictions, the sum of their confidences, the sum of their outcomes.
        self._sums = np.zeros((3, n_bins))

    def add(self, confidences: _Numbers, outcomes: _Numbers) -> None:
        """More predictions.

        Args:
            confidences: Probability that the model gives its prediction, each from 0 to 1.
            outcomes: 1 where it was right and 0 where it was wrong; shares of right, such as VQA accuracies, are
                taken as they are and not rounded.

        Raises:
            DataError: other numbers of both, or a number outside of 0 to 1.
        """
        sure = np.asarray(confidences, dtype=np.float64)
        right = np.asarray(outcomes, dtype=np.float64)
        if sure.ndim != 1 or sure.shape != right.shape:
            raise DataError(
                f"every prediction has one confidence and one outcome, and there are {sure.shape} and "
                f"{right.shape}. Give two lists of one length."
            )
        for name, values in (("confidences", sure), ("outcomes", right)):
            outside = values[~((values >= 0) & (values <= 1))]
            if outside.size:
                raise DataError(f"{name} lie between 0 and 1, and one is {outside[0]}. Give shares.")
        n_bins = self._sums.shape[1]
        bins = np.clip(np.ceil(sure * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
        for row, weights in enumerate((None, sure, right)):
            self._sums[row] += np.bincount(bins, weights, n_bins)

    @property
    def n(self) -> int:
        """Predictions so far."""
        return int(self._sums[0].sum())

    @property
    def error_percent(self) -> float:
        """The expected calibration error in percentage points: 0 at best. NaN without predictions."""
        return self._percent(np.abs(self._sums[2] - self._sums[1]).sum())

    @property
    def accuracy_percent(self) -> float:
        """Mean outcome in percent. NaN without predictions."""
        return self._percent(self._sums[2].sum())

    @property
    def overconfidence_percent(self) -> float:
        """Mean confidence less mean outcome, in percentage points: above 0 the model is surer than it is right."""
        return self._percent(self._sums[1].sum() - self._sums[2].sum())

    def summary(self) -> dict[str, Any]:
        """All of it, named with its units."""
        return {
            "n": self.n,
            "accuracy_percent": self.accuracy_percent,
            "calibration_error_percent": self.error_percent,
            "overconfidence_percent": self.overconfidence_percent,
        }

    def _percent(self, total: float) -> float:
        return 100 * float(total) / self.n if self.n else math.nan


def expected_calibration_error(confidences: _Numbers, outcomes: _Numbers, n_bins: int = N_BINS) -> float:
    """The expected calibration error in percentage points; see :class:`Calibration`."""
    calibration = Calibration(n_bins)
    calibration.add(confidences, outcomes)
    return calibration.error_percent
