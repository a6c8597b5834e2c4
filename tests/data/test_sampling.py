import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amad.data.sampling import uniform


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
