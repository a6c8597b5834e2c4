"""Where heads look, on records whose maps are written down by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord, TokenLayout
from amad.evaluation.attention_maps import LONGEST_SIDE, look

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain


def record(maps, keep=None, query_layout=None, key_layout=None):
    """A record of one sample whose map is given."""
    maps = torch.as_tensor(maps, dtype=torch.float32)[None]
    empty = torch.zeros(1, maps.shape[1], maps.shape[2], 0), torch.zeros(1, maps.shape[1], maps.shape[3], 0)
    return AttentionRecord(
        SiteKey("encoder.self", 0), *empty, scale=1.0, probabilities=maps,
        query_keep=None if keep is None else torch.tensor([keep]), query_layout=query_layout, key_layout=key_layout,
    )  # fmt: skip


# Two words, then two patches; the rows are queries.
MAP = [[[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]
LAYOUT = TokenLayout(before=2, height=1, width=2)


def test_words_look_and_patches_do_not():
    seen = look(record(MAP, query_layout=LAYOUT, key_layout=LAYOUT), 0)
    assert seen.patches.tolist() == [[[pytest.approx(0.3), pytest.approx(0.25)]]]
    assert seen.before.tolist() == [[pytest.approx(0.3), pytest.approx(0.15)]]


def test_a_word_that_is_padding_does_not_look():
    seen = look(record(MAP, [True, False, True, True], LAYOUT, LAYOUT), 0)
    assert seen.patches.tolist() == [[[pytest.approx(0.3), pytest.approx(0.4)]]]


def test_where_there_are_no_words_every_row_looks():
    patches = TokenLayout(before=0, height=2, width=2)
    seen = look(record(MAP, query_layout=patches, key_layout=patches), 0)
    assert seen.patches.flatten().tolist() == pytest.approx([0.15, 0.075, 0.4, 0.375])


def test_a_decoder_looks_with_all_its_words():
    seen = look(record(MAP, key_layout=LAYOUT), 0)
    assert seen.patches.flatten().tolist() == pytest.approx([0.4, 0.375])


def test_keys_that_are_no_patches_are_nothing_to_see():
    assert look(record(MAP), 0) is None


def test_a_fine_grid_is_summed_into_a_coarser_one_that_keeps_all_attention():
    side = 2 * LONGEST_SIDE - 3
    maps = torch.rand(2, 1, side * side).softmax(-1)
    seen = look(record(maps, key_layout=TokenLayout(0, side, side)), 0)
    assert max(seen.patches.shape[1:]) <= LONGEST_SIDE
    first = maps[0, 0].reshape(side, side)[:2, :2].sum()
    assert seen.patches[0, 0, 0].item() == pytest.approx(first.item())
    assert seen.patches[0, -1, -1].item() == pytest.approx(maps[0, 0, -1].item())
    assert seen.patches.sum((1, 2)).tolist() == pytest.approx([1, 1])


def test_each_sample_of_a_real_record_is_looked_at_by_itself():
    whole = replace(plain.make_record(3, seed=1), key_layout=TokenLayout(1, 2, 2))
    for sample in range(2):
        maps = plain.plain_maps(whole, sample, range(5)).mean(1)
        seen = look(whole, sample)
        torch.testing.assert_close(seen.patches.flatten(1).double(), maps[:, 1:])
        torch.testing.assert_close(seen.before.double(), maps[:, :1])
