"""How sure a mean over seeds is, and whether one method is better than another."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy import stats

from amad.errors import RecipeError

Verdict = Literal["better", "worse", "no difference", "not enough seeds"]

CONFIDENCE = 0.95
"""Probability with which all intervals of a family hold together."""


_ROUNDING = 1e-12


class Interval(NamedTuple):
    """A mean with its 95 % interval; ``low`` and ``high`` are None where one value says nothing of the spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """How far one method is from another, in the unit of the figure.

    Attributes:
        n: Pairs, one per seed.
        mean: Mean of the differences.
        deviation: Their standard deviation (n - 1); None for one pair.
        low: Lower end of the interval; None for one pair.
        high: Upper end; None for one pair.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """``no difference`` means that the interval contains zero: none was shown, not that there is none."""
        if self.low is None or self.high is None or (self.deviation == 0 and self.mean != 0):
            # Differences that are all the same come of figures in coarse steps and say nothing of the spread.
            return "not enough seeds"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference"


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, n_comparisons: int = 1
) -> PairedDifference:
    """The mean difference over seeds, with an interval corrected for the number of comparisons.

        d_i = values_i - baseline_i
        mean(d) +- t sd(d) / sqrt(n),  t the 1 - (1 - 0.95) / (2 n_comparisons) quantile of Student's t, n - 1 degrees

    The paired t interval at the level of Bonferroni (Dunn, "Multiple comparisons among means", Journal of the
    American Statistical Association 56, 1961): with at least 95 % all ``n_comparisons`` intervals hold together,
    however they depend on one another through the baseline that they share. Holm's steps reject more, but give no
    intervals that agree with their verdicts; Dunnett's needs equal variances, which a method that always reaches the
    teacher and one that sometimes does have not. Differences are taken as normal over seeds.

    Args:
        values: One figure per seed.
        baseline: Those of the method to compare with, for the same seeds in the same order.
        n_comparisons: Intervals in the family.

    Raises:
        RecipeError: if the numbers of figures differ, there is none or no comparison, or one is not finite.
    """
    if len(values) != len(baseline) or len(values) == 0:
        raise RecipeError(
            f"differences are taken seed by seed, and there are {len(values)} and {len(baseline)} figures. Give one "
            f"of each per seed."
        )
    if n_comparisons < 1:
        raise RecipeError(f"a family has at least one comparison and not {n_comparisons}. Count them all.")
    if not all(map(math.isfinite, (*values, *baseline))):
        raise RecipeError(f"figures must be finite and are {[*values]} and {[*baseline]}. Leave none out.")
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    found = mean_interval(differences, n_comparisons)
    deviation = statistics.stdev(differences) if found.n > 1 else None
    if deviation is not None and deviation <= _ROUNDING * max(map(abs, (*values, *baseline))):
        # All the same but for the rounding of the subtraction.
        return PairedDifference(found.n, found.mean, 0.0, found.mean, found.mean)
    return PairedDifference(found.n, found.mean, deviation, found.low, found.high)


def mean_interval(values: Sequence[float], n_comparisons: int = 1) -> Interval:
    """The mean of values that differ by chance, with Student's interval of the mean.

        mean +- t s / sqrt(n),  t the 1 - 0.05 / (2 n_comparisons) quantile of Student's t, n - 1 degrees of freedom

    Of several comparisons all intervals hold together with at least 95 % (Bonferroni).
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, None, n)
    reach = half_width(n, n_comparisons) * statistics.stdev(values)
    return Interval(mean, mean - reach, mean + reach, n)


def half_width(n: int, n_comparisons: int = 1) -> float:
    """Half the width of the interval of ``n`` pairs, in standard deviations of the differences.

    Raises:
        RecipeError: for fewer than two pairs.
    """
    if n < 2:
        raise RecipeError(f"an interval needs two pairs and has {n}. Run more seeds.")
    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * n_comparisons), n - 1)) / math.sqrt(n)
