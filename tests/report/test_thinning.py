from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.report.thinning import Thinned, averaged, evenly


@given(st.integers(0, 500), st.integers(2, 60))
def test_evenly_spaced_numbers_hold_the_ends_and_differ_by_nearly_the_same(n, most):
    found = evenly(n, most)
    assert len(found) == min(n, most)
    assert len(set(found)) == len(found)
    if n:
        assert (found[0], found[-1]) == (0, n - 1)
    gaps = [after - before for before, after in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(1, 700), st.integers(2, 20))
def test_of_many_steps_a_bounded_number_is_held_with_the_first_and_the_last(n, most):
    thinned = Thinned(most)
    for step in range(10, 10 * n + 1, 10):
        thinned.add(step, "a", step)
        thinned.add(step, "b", -step)
        assert len(thinned._entries) <= 2 * most + 1
    found = thinned.steps()
    assert list(found) == sorted(found)
    assert (next(iter(found)), list(found)[-1]) == (10, 10 * n)
    assert min(n, most) == len(found)
    assert all(entry == {"a": step, "b": -step} for step, entry in found.items())


def test_what_came_after_a_step_is_forgotten_and_written_anew():
    thinned = Thinned(50)
    for step in range(1, 8):
        thinned.add(step, "a", "before")
    thinned.forget_after(4)
    for step in (5, 6):
        thinned.add(step, "a", "after")
    assert {step: entry["a"] for step, entry in thinned.steps().items()} == {
        **dict.fromkeys(range(1, 5), "before"),
        5: "after",
        6: "after",
    }


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.integers(1, 30))
def test_means_of_consecutive_rows_keep_the_whole_sum(values, most):
    rows = averaged([(step, [value]) for step, value in enumerate(values)], most)
    assert len(rows) <= most
    ends = [step for step, _ in rows]
    assert ends[-1] == len(values) - 1
    starts = [0, *(end + 1 for end in ends[:-1])]
    whole = sum(mean * (end - start + 1) for start, end, (_, (mean,)) in zip(starts, ends, rows, strict=True))
    assert whole == pytest.approx(sum(values), abs=1e-6)


def test_a_mean_leaves_out_what_is_no_number():
    assert averaged([(1, [None, 1.0]), (2, [4.0, 3.0]), (3, [None, None])], 2) == [
        (2, [4.0, 2.0]),
        (3, [None, None]),
    ]
