"""The operators in each of their forms."""

import pytest

from amad.ops import maps, sweep
from amad.ops.backends import operator_backend


@pytest.fixture(params=["reference", "chunked", "chunked in tiles of two rows"])
def form(request, monkeypatch):
    """Every test that asks for it runs once per form."""
    if request.param.endswith("rows"):
        monkeypatch.setattr(sweep, "MOST_ROWS", 2)
        monkeypatch.setattr(sweep, "LEAST_ROWS", 1)
        monkeypatch.setattr(maps, "BLOCK_NUMBERS", 1)
    with operator_backend(request.param.split()[0]):
        yield request.param
