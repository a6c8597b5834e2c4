import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from amad.errors import RecipeError
from amad.intervals import half_width, mean_interval, paired_difference

figures = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)).map(
        lambda pair: (pair[0] / 100, pair[1] / 100)
    ),
    min_size=2,
    max_size=6,
)


def test_a_case_worked_by_hand():
    # Differences 2, 4, 6: mean 4, deviation 2; t(0.975, 2) = 4.3027, so +- 4.3027 x 2 / sqrt(3) = 4.968.
    found = paired_difference([3.0, 6.0, 9.0], [1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.deviation) == (3, 4.0, 2.0)
    assert (found.low, found.high) == (pytest.approx(-0.968, abs=1e-3), pytest.approx(8.968, abs=1e-3))
    assert found.verdict == "no difference"
    # Twice as far from zero, with the same spread.
    assert paired_difference([7.0, 10.0, 13.0], [1.0, 2.0, 3.0]).verdict == "better"
    assert paired_difference([1.0, 2.0, 3.0], [7.0, 10.0, 13.0]).verdict == "worse"


def test_with_two_pairs_students_t_is_cauchys():
    # One degree of freedom: the quantile is tan(pi (p - 1/2)), here at 1 - 0.05 / (2 x 5).
    assert half_width(2, 5) == pytest.approx(math.tan(math.pi * (0.995 - 0.5)) / math.sqrt(2), rel=1e-9)


@given(figures, st.integers(1, 12))
def test_it_is_scipys_paired_interval_at_the_corrected_level(pairs, n_comparisons):
    values, baseline = zip(*pairs, strict=True)
    found = paired_difference(values, baseline, n_comparisons=n_comparisons)
    level = 1 - 0.05 / n_comparisons
    if found.deviation == 0:
        assert found.low == found.mean == found.high
        return
    known = stats.ttest_rel(values, baseline).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-6, abs=1e-6)


@given(figures, st.integers(1, 12))
def test_swapping_the_two_turns_the_interval_and_the_verdict_round(pairs, n_comparisons):
    values, baseline = zip(*pairs, strict=True)
    there = paired_difference(values, baseline, n_comparisons=n_comparisons)
    back = paired_difference(baseline, values, n_comparisons=n_comparisons)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    turned = {"better": "worse", "worse": "better"}
    assert back.verdict == turned.get(there.verdict, there.verdict)


def test_differences_that_are_all_the_same_show_no_spread():
    # Two seeds of 8 questions each: steps of 12.5 %.
    assert paired_difference([75.0, 87.5], [62.5, 75.0]).verdict == "not enough seeds"
    # 0.09 each, which no float64 is.
    assert paired_difference([59.9, 76.0, 11.55], [59.81, 75.91, 11.46]).verdict == "not enough seeds"
    assert paired_difference([75.0, 87.5], [75.0, 87.5]).verdict == "no difference"


@given(figures, st.floats(-50, 50))
def test_what_a_seed_does_to_both_does_not_count(pairs, shift):
    values, baseline = zip(*pairs, strict=True)
    plain = paired_difference(values, baseline)
    shifted = paired_difference(
        [value + shift * index for index, value in enumerate(values)],
        [value + shift * index for index, value in enumerate(baseline)],
    )
    assert (shifted.low, shifted.high) == pytest.approx((plain.low, plain.high), abs=1e-6)


@given(figures, st.integers(1, 12))
def test_more_comparisons_make_every_interval_wider_about_the_same_mean(pairs, n_comparisons):
    values, baseline = zip(*pairs, strict=True)
    one = paired_difference(values, baseline)
    many = paired_difference(values, baseline, n_comparisons=n_comparisons + 1)
    assert many.mean == one.mean
    assert many.low < one.low or one.deviation == 0


def test_equal_figures_are_no_difference_and_one_seed_is_not_enough():
    same = paired_difference([50.0, 61.2, 70.0], [50.0, 61.2, 70.0], n_comparisons=3)
    assert (same.low, same.high, same.verdict) == (0.0, 0.0, "no difference")
    one = paired_difference([90.0], [10.0])
    assert (one.mean, one.low, one.high, one.verdict) == (80.0, None, None, "not enough seeds")


def test_of_families_without_any_difference_at_most_five_percent_have_one_shown():
    # Four methods of very different spread beside one baseline that they share, three seeds each.
    generator = numpy.random.default_rng(0)
    spread = numpy.array([[0.2], [1.0], [3.0], [9.0]])
    wrong = {1: 0, 4: 0}
    n_families = 800
    for _ in range(n_families):
        seeds = generator.normal(50, 10, 3)
        baseline = seeds + generator.normal(0, 1, 3)
        arms = seeds + spread * generator.normal(0, 1, (4, 3))
        for n_comparisons in wrong:
            verdicts = [paired_difference(arm, baseline, n_comparisons=n_comparisons).verdict for arm in arms]
            wrong[n_comparisons] += any(verdict != "no difference" for verdict in verdicts)
    # Three standard errors of a share of 5 %; without the correction it is far more.
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / n_families)
    assert wrong[4] / n_families < limit < wrong[1] / n_families


@pytest.mark.parametrize(
    ("values", "baseline", "n_comparisons", "said"),
    [
        ([1.0, 2.0], [1.0], 1, "there are 2 and 1 figures"),
        ([], [], 1, "there are 0 and 0 figures"),
        ([1.0, math.nan], [1.0, 2.0], 1, "must be finite"),
        ([1.0, 2.0], [1.0, 2.0], 0, "at least one comparison and not 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, baseline, n_comparisons, said):
    with pytest.raises(RecipeError, match=said):
        paired_difference(values, baseline, n_comparisons=n_comparisons)


def test_the_interval_is_that_of_scipy():
    numbers = random.Random(0)
    for n in (2, 3, 10, 50):
        values = [numbers.gauss(80, 3) for _ in range(n)]
        low, high = stats.t.interval(0.95, n - 1, stats.tmean(values), stats.sem(values))
        found = mean_interval(values)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_two_values_is_worked_by_hand():
    # Mean 81, deviation sqrt(2), over sqrt(2) is 1; the quantile of one degree of freedom is 12.7062.
    assert mean_interval([80.0, 82.0])[1:3] == (
        pytest.approx(81 - 12.7062, abs=1e-3),
        pytest.approx(81 + 12.7062, abs=1e-3),
    )


def test_one_value_has_no_interval():
    assert mean_interval([81.5]) == (81.5, None, None, 1)
