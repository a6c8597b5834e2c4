"""The back-end for modules that dispatch: every way in which a mask arrives, and what installing does."""

import copy

import pytest
import torch
from transformers import StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from amad.axes import SiteKey
from amad.capture import interface
from amad.capture.check import self_check
from amad.capture.interface import InterfaceCall
from amad.capture.recorder import Recorder
from amad.capture.sites import Site, find_sites
from amad.errors import CaptureError


def site(module=None, n_heads=2):
    module = torch.nn.Identity() if module is None else module
    return Site(SiteKey("text.self", 0), "layer.0", module, "interface", n_heads, n_heads, 4)


def call(implementation, n_queries=5, n_keys=5, n_batch=2, **changes):
    fields = dict.fromkeys(InterfaceCall._fields)
    fields |= {
        "implementation": implementation,
        "query": torch.randn(n_batch, 2, n_queries, 4),
        "key": torch.randn(n_batch, 2, n_keys, 4),
        "is_causal": False,
    }
    return InterfaceCall(**(fields | changes))


def visible(record):
    seen = record.visible()
    shape = (record.n_batch, record.n_heads, record.n_queries, record.n_keys)
    return torch.ones(shape, dtype=torch.bool) if seen is None else seen.expand(shape)


def dense(query, key, value, allowed, scale, softcap, sinks):
    """Attention by the book, one sample and one head at a time."""
    output = torch.zeros(*query.shape[:3], value.shape[-1])
    group = query.shape[1] // key.shape[1]
    for sample in range(query.shape[0]):
        for head in range(query.shape[1]):
            scores = query[sample, head] @ key[sample, head // group].T * scale
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            weight = scores.exp() * allowed[sample]
            total = weight.sum(-1, keepdim=True) + (0 if sinks is None else sinks[head].exp())
            output[sample, head] = (weight / total.clamp(min=1e-30)) @ value[sample, head // group]
    return output.transpose(1, 2)


def flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Stands in for a flash kernel: padding as (batch, key), causality and windows as arguments."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    distance = torch.arange(n_queries)[:, None] + (n_keys - n_queries) - torch.arange(n_keys)[None]
    allowed = torch.ones(query.shape[0], n_queries, n_keys, dtype=torch.bool)
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        allowed &= attention_mask.bool()[:, None, -n_keys:]
    causal = kwargs.get("is_causal")
    if module.is_causal if causal is None else causal:
        allowed &= distance >= 0
    if kwargs.get("sliding_window") is not None:
        allowed &= distance.abs() < kwargs["sliding_window"]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = dense(query, key, value, allowed, scale, kwargs.get("softcap"), kwargs.get("s_aux"))
    return output, None


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", ["bert", "bart", "llama", "gemma2", "gemma3", "gpt_oss", "clip"])
def test_a_flash_kernel_s_arguments_give_the_maps_that_it_uses(name, padded, zoo, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    model, batch = zoo.build(name, "eager")
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    sites = find_sites(model)
    with torch.no_grad(), Recorder(model, sites) as recorder:
        model(**batch)
        expected = recorder.take(batch)
        for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
            config._attn_implementation_internal = "flash_attention_2"
        model(**batch)
        records = recorder.take(batch)
    assert max(self_check(model, sites, batch).values()) < 1e-5
    for key, record in records.items():
        keep = record.keep()
        if padded:
            assert torch.equal(keep, expected[key].keep())
        rows = keep[:, None, :, None]
        assert float(((record.rows() - expected[key].rows()) * rows).abs().max()) < 2e-6


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "clip", "llama", "gemma3", "vlt5"])
def test_without_padding_causality_comes_from_the_flag(name, zoo):
    model, batch = zoo.build(name)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    sites = find_sites(model)
    assert max(self_check(model, sites, batch).values()) < 1e-6
    with Recorder(model, sites) as recorder:
        model(**batch)
        records = recorder.take(batch)
    for key, record in records.items():
        if key.stack == "decoder.self" or (name, key.stack) == ("clip", "text.self"):
            assert not visible(record).triu(1).any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_left_padding_leaves_out_the_padded_rows(name, zoo):
    model, batch = zoo.build(name)
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        for record in recorder.take(batch).values():
            assert torch.equal(record.keep(), batch["attention_mask"].bool())


def test_the_empty_end_of_a_static_cache_is_not_recorded(zoo):
    model, batch = zoo.build("llama")
    expected, records = [], []
    for cache, into in ((None, expected), (StaticCache(model.config, max_cache_len=20), records)):
        with torch.no_grad(), Recorder(model, find_sites(model)) as recorder:
            model(batch["input_ids"], past_key_values=cache, use_cache=cache is not None)
            into.extend(recorder.take().values())
    for before, after in zip(expected, records, strict=True):
        rows = after.rows()
        torch.testing.assert_close(rows[..., : before.n_keys], before.rows(), atol=1e-6, rtol=0)
        assert not rows[..., before.n_keys :].any()


def test_sdpa_is_causal_at_the_upper_left():
    seen = visible(interface.read(site(), call("sdpa", 3, 5, is_causal=True)))
    assert seen.shape[-1] == 3
    assert torch.equal(seen[0, 0], torch.ones(3, 3).tril().bool())


def test_sdpa_of_one_query_is_not_causal():
    assert visible(interface.read(site(), call("sdpa", 1, 5, is_causal=True))).all()


def test_sdpa_with_a_mask_is_not_causal_besides():
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    assert visible(interface.read(site(), call("sdpa", mask=mask, is_causal=True))).all()


def test_eager_attention_ignores_the_flag():
    assert visible(interface.read(site(), call("eager", is_causal=True))).all()


def test_a_module_without_a_flag_is_causal_as_in_transformers():
    seen = visible(interface.read(site(), call("sdpa", is_causal=None)))
    assert not seen.triu(1).any()


def test_flash_is_causal_at_the_lower_right_with_a_window():
    seen = visible(interface.read(site(), call("flash_attention_2", 2, 5, is_causal=True, window=2)))
    assert seen[0, 0].tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


def test_flash_padding_of_a_longer_mask_is_that_of_the_last_keys():
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    seen = visible(interface.read(site(), call("flash_attention_2", mask=mask)))
    assert seen[0, 0, 0].tolist() == [True, False, True, True, True]
    assert seen[1, 1, 4].tolist() == [True, True, True, True, False]


def test_cumulative_lengths_become_segments():
    lengths = torch.tensor([0, 2, 5], dtype=torch.int32)
    record = interface.read(
        site(), call("flash_attention_2", n_batch=1, cu_seqlens_query=lengths, cu_seqlens_key=lengths)
    )
    block = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool()
    assert torch.equal(visible(record)[0, 0], block)
    causal = interface.read(
        site(),
        call(
            "flash_attention_2",
            n_batch=1,
            cu_seqlens_query=lengths,
            cu_seqlens_key=lengths,
            is_causal=True,
        ),
    )
    assert torch.equal(visible(causal)[0, 0], block.tril())


def test_packed_positions_become_segments():
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    record = interface.read(site(), call("flash_attention_2", n_batch=1, position_ids=positions))
    assert torch.equal(visible(record)[0, 0], torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool())


def test_positions_that_go_on_are_one_segment():
    record = interface.read(
        site(), call("flash_attention_2", n_batch=1, position_ids=torch.arange(3, 8)[None])
    )
    assert visible(record).all()


@pytest.mark.parametrize("mask", [torch.ones(2, 5), torch.ones(2, 1, 5, 5, dtype=torch.long), "mask"])
def test_a_mask_that_cannot_be_read_is_refused_by_name(mask):
    with pytest.raises(CaptureError, match=r"text.self\[0\] \(layer.0\): a mask must be bool or float"):
        interface.read(site(), call("eager", mask=mask))


def test_a_mask_and_a_bias_longer_than_the_keys_are_cut():
    mask, bias = torch.ones(2, 1, 5, 9, dtype=torch.bool), torch.randn(1, 2, 5, 9)
    record = interface.read(site(), call("eager", mask=mask, position_bias=bias))
    assert record.mask.shape[-1] == 5
    assert torch.equal(record.position_bias, bias[..., :5])


def test_sinks_of_the_module_count_where_none_are_passed():
    module = torch.nn.Identity()
    module.sinks = torch.nn.Parameter(torch.tensor([0.0, 100.0]))
    rows = interface.read(site(module), call("eager")).rows()
    assert (rows[:, 0].sum(-1) > 0.1).all()
    assert (rows[:, 1].sum(-1) < 1e-6).all()


def test_the_default_scale_is_that_of_the_head_width():
    assert interface.read(site(), call("sdpa")).scale == 0.5


def test_installing_twice_wraps_once():
    interface.install()
    before = dict(AttentionInterface._global_mapping), AttentionInterface.get_interface
    interface.install()
    assert (dict(AttentionInterface._global_mapping), AttentionInterface.get_interface) == before


def test_keys_stay_what_they_were_and_paged_attention_is_left_alone():
    keys = set(AttentionInterface._global_mapping)
    interface.install()
    assert set(AttentionInterface._global_mapping) == keys
    assert not hasattr(AttentionInterface._global_mapping["paged|eager"], "_amad_base")
    assert hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], "_amad_base")


def test_a_function_that_is_registered_later_is_recorded_too(zoo, monkeypatch):
    interface.install()
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", flash)
    model, batch = zoo.build("vit")
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        assert len(recorder.take(batch)) == 2


def test_a_model_that_was_copied_while_recorded_does_not_feed_the_recorder(zoo):
    model, batch = zoo.build("vit")
    with Recorder(model, find_sites(model)) as recorder:
        twin = copy.deepcopy(model)
        twin(**batch)
        model(**batch)
        assert len(recorder.take(batch)) == 2
