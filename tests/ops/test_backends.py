"""The choice among the forms of the operators."""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest
import torch

from amad.errors import RecipeError
from amad.ops import backends
from amad.ops.backends import choose_backend, operator_backend

sys.path.insert(0, str(Path(__file__).parent))
import plain


@pytest.fixture
def pair():
    return plain.make_record(2, dtype=torch.float32), plain.make_record(3, dtype=torch.float32)


def test_a_cpu_compares_in_chunks_and_says_so_once(pair, caplog, monkeypatch):
    monkeypatch.setattr(backends, "_said", set())
    with caplog.at_level(logging.INFO, "amad.ops"):
        assert [choose_backend(*pair) for _ in range(2)] == ["chunked"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "attention is compared in chunks of query rows on cpu."
    ]


def test_a_forced_form_ends_with_its_context(pair):
    with operator_backend("reference"):
        assert choose_backend(*pair) == "reference"
        with operator_backend("chunked"):
            assert choose_backend(*pair) == "chunked"
        assert choose_backend(*pair) == "reference"
    assert choose_backend(*pair) == "chunked"


def test_an_unknown_form_is_refused():
    with (
        pytest.raises(RecipeError, match="'cuda' is none of reference, chunked, triton"),
        operator_backend("cuda"),
    ):
        pass


def test_triton_is_not_forced_on_what_it_cannot_take(pair, monkeypatch):
    wide = plain.make_record(2, dtype=torch.float64), plain.make_record(3, dtype=torch.float64)
    with (
        operator_backend("triton"),
        pytest.raises(RecipeError, match=r"'triton' was forced, but .*Force 'chunked'"),
    ):
        choose_backend(*wide)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with operator_backend("triton"), pytest.raises(RecipeError, match="not installed"):
        choose_backend(*pair)
    assert importlib.util.find_spec is not backends.find_spec
