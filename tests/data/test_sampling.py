import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amad.data.sampling import shuffled, uniform


@given(st.lists(st.integers(-5, 1 << 70), max_size=4))
def test_uniform_is_in_range_and_repeatable(keys):
    assert 0 <= uniform(*keys) < 1
    assert uniform(*keys) == uniform(*keys)


def test_uniform_is_uniform_over_neighbouring_keys():
    values = np.array([uniform(0, epoch, index) for epoch in range(20) for index in range(500)])
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    # Chi squared with 19 degrees of freedom is above 60 once in a million times.
    assert ((counts - 500) ** 2 / 500).sum() < 60
    grid = values.reshape(20, 500)
    assert abs(np.corrcoef(grid[0], grid[1])[0, 1]) < 0.2
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06


@given(st.lists(st.one_of(st.integers(0, 50), st.text(max_size=2))), st.integers(0, 3), st.randoms())
def test_an_order_depends_on_the_set_of_names_and_the_seed_alone(names, seed, random):
    order = shuffled(names, seed)
    assert set(order) == set(names)
    assert len(order) == len(set(order))
    again = names + names[:2]
    random.shuffle(again)
    assert shuffled(again, seed) == order


def test_seeds_order_names_otherwise():
    assert len({tuple(shuffled(range(10), seed)) for seed in range(20)}) == 20
