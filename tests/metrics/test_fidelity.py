import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binned_statistic, binomtest

from amad.errors import DataError
from amad.metrics.fidelity import Calibration, agreement, expected_calibration_error, wilson_interval

shares = st.floats(0, 1, allow_subnormal=False)
predictions = st.lists(st.tuples(shares, shares), min_size=1, max_size=60)
texts = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)


def test_agreement_counts_equal_texts():
    found = agreement(["a red ball", "two", "no", "Yes"], ["a red ball", "two", "yes", "yes"])
    assert (found.n_equal, found.n_items, found.percent) == (2, 4, 50)
    low, high = found.interval_percent
    assert 0 < low < 50 < high < 100


@given(texts)
def test_agreement_is_symmetric_and_whole_with_oneself(pairs):
    one, other = map(list, zip(*pairs, strict=True))
    assert agreement(one, other) == agreement(other, one)
    assert agreement(one, one).percent == 100


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_that_of_scipy(counts):
    expected = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson_interval(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_calibration_by_hand():
    # Two bins. Below: confidences .2 and .4, one of two right: |.5 - .3|. Above: .8 and 1, both right: |1 - .9|.
    found = Calibration(2)
    found.add([0.2, 0.4, 0.8, 1.0], [0, 1, 1, 1])
    assert found.error_percent == pytest.approx(100 * (0.5 * 0.2 + 0.5 * 0.1))
    assert found.accuracy_percent == pytest.approx(75)
    # Less sure than right by (.2 + .1) / 2.
    assert found.overconfidence_percent == pytest.approx(-15)
    assert found.summary()["n"] == 4


def test_a_model_that_always_errs_with_certainty_is_off_by_all():
    assert expected_calibration_error([1.0] * 3, [0] * 3) == 100
    assert expected_calibration_error([0.0] * 3, [0] * 3) == 0


def test_a_bin_holds_its_upper_edge():
    # In one bin 1/2 and 1/4 would make up for each other; the lower bin holds both.
    assert expected_calibration_error([0.5, 0.25], [0.25, 0.5], n_bins=2) == 0
    # 1/2 and 3/4 are in different bins, or they would make up for each other.
    assert expected_calibration_error([0.5, 0.75], [0.75, 0.5], n_bins=2) == pytest.approx(25)


@given(st.lists(st.tuples(st.integers(1, 15), st.integers(1, 20)), min_size=1, max_size=8))
def test_it_is_zero_where_confidence_is_how_often_the_model_is_right(groups):
    # In the middle of a bin, at confidence (2 k - 1) / 30, so many of 30 n predictions are right.
    found = Calibration()
    for k, n in groups:
        confidence = (k - 0.5) / 15
        found.add(np.full(30 * n, confidence), np.repeat([1, 0], [(2 * k - 1) * n, (31 - 2 * k) * n]))
    assert found.error_percent == pytest.approx(0, abs=1e-9)
    assert found.overconfidence_percent == pytest.approx(0, abs=1e-9)


@given(predictions)
def test_it_lies_between_the_mean_gap_and_one(pairs):
    found = Calibration()
    found.add(*zip(*pairs, strict=True))
    assert abs(found.overconfidence_percent) - 1e-9 <= found.error_percent <= 100


@given(predictions, st.integers(0, 60))
def test_batches_add_up(pairs, cut):
    whole, parts = Calibration(), Calibration()
    whole.add(*zip(*pairs, strict=True))
    for some in (pairs[:cut], pairs[cut:]):
        if some:
            parts.add(*zip(*some, strict=True))
    assert parts.summary() == pytest.approx(whole.summary())


def test_it_is_what_scipy_bins():
    generator = np.random.default_rng(0)
    sure, right = generator.random(5000) ** 0.5, generator.integers(0, 2, 5000)
    within = {"bins": 15, "range": (0, 1)}
    n = binned_statistic(sure, sure, "count", **within).statistic
    gap = binned_statistic(sure, right - sure, "mean", **within).statistic
    expected = 100 * np.sum(n * np.abs(gap)) / 5000
    assert expected_calibration_error(sure, right) == pytest.approx(expected, abs=1e-9)


def test_without_predictions_nothing_is_known():
    assert math.isnan(Calibration().error_percent)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: agreement(["a"], ["a", "b"]), "there are 1 and 2"),
        (lambda: agreement([], []), "there are 0 and 0"),
        (lambda: wilson_interval(3, 2), "3 of 2"),
        (lambda: wilson_interval(0, 0), "0 of 0"),
        (lambda: Calibration(0), "n_bins = 0"),
        (lambda: expected_calibration_error([0.5, 0.5], [1]), r"\(2,\) and \(1,\)"),
        (lambda: expected_calibration_error([1.5], [1]), "confidences lie between 0 and 1, and one is 1.5"),
        (lambda: expected_calibration_error([math.nan], [1]), "one is nan"),
        (lambda: expected_calibration_error([0.5], [-1]), "outcomes lie between 0 and 1, and one is -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, match):
    with pytest.raises(DataError, match=match):
        call()
