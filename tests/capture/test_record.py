"""The record itself: its map by hand, its tiles, its edges, its gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord, TokenLayout

KEY = SiteKey("text.self", 0)


def make(n_batch=2, n_heads=4, n_kv_heads=4, n_queries=5, n_keys=5, width=3, **changes):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(n_batch, n_heads, n_queries, width, generator=generator)
    key = torch.randn(n_batch, n_kv_heads, n_keys, width, generator=generator)
    return AttentionRecord(**({"site": KEY, "query": query, "key": key, "scale": 0.5} | changes))


def test_a_map_worked_by_hand():
    query = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    key = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    record = AttentionRecord(KEY, query, key, scale=math.log(2.0))
    # Scores log 2, 0 and 0, 2 log 2.
    expected = torch.tensor([[[[2 / 3, 1 / 3], [1 / 5, 4 / 5]]]])
    torch.testing.assert_close(record.rows(), expected)


def test_everything_together_is_the_formula():
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(1, 4, 5, 5, generator=generator)
    added = torch.randn(2, 1, 1, 5, generator=generator)
    sinks = torch.randn(4, generator=generator)
    record = make(
        n_kv_heads=2, softcap=2.0, position_bias=bias, mask=added, sinks=sinks, causal_offset=0, window=3
    )
    rows = record.rows()
    for sample in range(2):
        for head in range(4):
            for q in range(5):
                seen = [k for k in range(5) if k <= q and abs(k - q) < 3]
                scores = []
                for k in seen:
                    dot = float(record.query[sample, head, q] @ record.key[sample, head // 2, k]) * 0.5
                    capped = 2.0 * math.tanh(dot / 2.0)
                    scores.append(
                        math.exp(capped + float(bias[0, head, q, k]) + float(added[sample, 0, 0, k]))
                    )
                total = sum(scores) + math.exp(float(sinks[head]))
                expected = torch.zeros(5)
                expected[seen] = torch.tensor(scores) / total
                torch.testing.assert_close(rows[sample, head, q], expected)


@given(
    n_rows=st.integers(1, 7),
    n_queries=st.integers(1, 6),
    n_keys=st.integers(1, 6),
    group=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(["none", "bool", "row", "float", "causal", "window", "segments"]),
)
def test_tiles_put_together_are_the_map(n_rows, n_queries, n_keys, group, kind):
    generator = torch.Generator().manual_seed(n_queries * 7 + n_keys)
    masks = {
        "none": {},
        "bool": {"mask": torch.rand(2, 1, n_queries, n_keys, generator=generator) > 0.4},
        "row": {"mask": torch.rand(2, 1, 1, n_keys, generator=generator) > 0.4},
        "float": {"mask": torch.randn(1, 4, n_queries, n_keys, generator=generator)},
        "causal": {"causal_offset": n_keys - n_queries},
        "window": {"window": 2},
        "segments": {
            "segments": (
                torch.randint(0, 2, (1, n_queries), generator=generator),
                torch.randint(0, 2, (1, n_keys), generator=generator),
            )
        },
    }
    record = make(n_kv_heads=4 // group, n_queries=n_queries, n_keys=n_keys, **masks[kind])
    whole = record.rows()
    tiles = [record.rows(rows) for rows in record.row_slices(n_rows)]
    torch.testing.assert_close(torch.cat(tiles, 2), whole)
    kept = torch.cat([record.keep(rows) for rows in record.row_slices(n_rows)], 1)
    assert torch.equal(kept, record.keep())
    assert torch.isfinite(whole).all()
    sums = whole.sum(-1)
    alive = record.keep()[:, None].expand_as(sums)
    torch.testing.assert_close(sums[alive], torch.ones_like(sums[alive]))
    assert not sums[~alive].any()


def test_a_row_that_sees_no_key_is_zero_with_zero_gradient():
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    record = make(mask=mask)
    record.query.requires_grad_()
    rows = record.rows()
    rows.square().sum().backward()
    assert not rows[0, :, 2].any()
    assert torch.isfinite(record.query.grad).all()
    assert not record.query.grad[0, :, 2].any()
    assert record.keep().tolist() == [[True, True, False, True, True], [True] * 5]


def test_padding_is_left_out_of_the_rows_that_count():
    keep = torch.tensor([[True, True, True, False, False], [True] * 5])
    assert torch.equal(make(query_keep=keep).keep(), keep)


def test_the_smallest_number_of_a_dtype_hides_a_key():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        mask = torch.zeros(1, 1, 1, 5, dtype=dtype)
        mask[..., 3:] = torch.finfo(dtype).min
        record = make(mask=mask)
        assert record.visible()[0, 0, 0].tolist() == [True, True, True, False, False]
        assert not record.rows()[..., 3:].any()


def test_heads_of_a_group_share_their_keys():
    grouped = make(n_kv_heads=2)
    repeated = make(n_kv_heads=4, query=grouped.query, key=grouped.key.repeat_interleave(2, 1))
    torch.testing.assert_close(grouped.rows(), repeated.rows())


def test_a_query_of_one_sample_is_shared_by_the_batch():
    record = make()
    shared = make(query=record.query[:1])
    assert shared.map_shape == (2, 4, 5, 5)
    torch.testing.assert_close(shared.rows()[1], make(query=record.query[:1].expand(2, -1, -1, -1)).rows()[1])


def test_a_given_map_is_given_back():
    probabilities = torch.rand(2, 4, 5, 6).softmax(-1)
    empty = {"query": torch.empty(2, 4, 5, 0), "key": torch.empty(2, 4, 6, 0)}
    record = make(**empty, probabilities=probabilities)
    assert record.map_shape == (2, 4, 5, 6)
    assert torch.equal(record.rows(slice(1, 3)), probabilities[:, :, 1:3])
    torch.testing.assert_close(record.logits().exp(), probabilities)


def test_gradients_to_query_key_and_bias_are_right_in_double_precision():
    record = make(n_batch=1, n_heads=2, n_kv_heads=1, n_queries=3, n_keys=4, causal_offset=1)
    bias = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def rows(query, key, bias):
        inner = make(
            query=query, key=key, position_bias=bias, causal_offset=1, softcap=3.0, sinks=torch.zeros(2)
        )
        return inner.rows(dtype=torch.float64)

    query, key = (tensor.double().requires_grad_() for tensor in (record.query, record.key))
    assert torch.autograd.gradcheck(rows, (query, key, bias))


def test_detaching_cuts_every_gradient():
    record = make(position_bias=torch.zeros(1, 4, 5, 5, requires_grad=True))
    record.query.requires_grad_()
    record.key.requires_grad_()
    assert record.rows().requires_grad
    assert not record.detach().rows().requires_grad


def test_shapes_that_contradict_are_refused():
    with pytest.raises(Exception, match="mask"):
        make(mask=torch.ones(2, 1, 5, 9, dtype=torch.bool))


def test_a_layout_counts_its_tokens():
    assert TokenLayout(before=2, height=3, width=4, after=1).n_tokens == 15
