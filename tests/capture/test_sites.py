"""Sites of every family: stacks, layers, geometry, wrappers, refusals."""

import logging
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch import nn

from amad.axes import SiteKey
from amad.capture.check import confirm_sites
from amad.capture.sites import clean_name, find_sites
from amad.errors import CaptureError

STACKS = {
    "t5": {"encoder.self": 2, "decoder.self": 3, "decoder.cross": 3},
    "vlt5": {"encoder.self": 2, "decoder.self": 3, "decoder.cross": 3},
    "bart": {"encoder.self": 2, "decoder.self": 3, "decoder.cross": 3},
    "whisper": {"encoder.self": 2, "decoder.self": 3, "decoder.cross": 3},
    "bert": {"text.self": 2},
    "bert_decoder": {"decoder.self": 2, "decoder.cross": 2},
    "gpt2": {"decoder.self": 2},
    "vit": {"vision.self": 2},
    "deit": {"vision.self": 2},
    "dinov2": {"vision.self": 2},
    "beit": {"vision.self": 2},
    "swin": {"vision.self": 4},
    "blip_vqa": {
        "vision.self": 2,
        "text.self": 2,
        "text.cross": 2,
        "decoder.self": 2,
        "decoder.cross": 2,
    },
    "blip_caption": {"vision.self": 2, "decoder.self": 2, "decoder.cross": 2},
    "blip2_t5": {
        "vision.self": 2,
        "qformer.self": 2,
        "qformer.cross": 1,
        "encoder.self": 2,
        "decoder.self": 3,
        "decoder.cross": 3,
    },
    "clip": {"text.self": 2, "vision.self": 2},
    "siglip": {"text.self": 2, "vision.self": 2, "vision_head.cross": 1},
    "llama": {"decoder.self": 2},
    "qwen2": {"decoder.self": 2},
    "gemma2": {"decoder.self": 2},
    "gemma3": {"decoder.self": 2},
    "gpt_oss": {"decoder.self": 2},
    "llava": {"vision.self": 2, "decoder.self": 2},
    "vilt": {"encoder.self": 2},
    "layoutlmv3": {"encoder.self": 2},
    "deberta_v2": {"text.self": 2},
    "falcon": {"decoder.self": 2},
}
BACKENDS = {
    "blip_vqa": {"projections"},
    "blip_caption": {"projections"},
    "vilt": {"projections"},
    "layoutlmv3": {"projections"},
    "siglip": {"interface", "multihead"},
    "deberta_v2": {"probs"},
    "falcon": {"probs"},
}


def test_stacks_have_their_names_and_layers_count_from_zero(family, zoo):
    sites = find_sites(zoo.build(family)[0])
    assert Counter(site.key.stack for site in sites) == STACKS[family]
    for stack, n_layers in STACKS[family].items():
        assert [site.key.layer for site in sites if site.key.stack == stack] == list(range(n_layers))


def test_the_backend_is_the_one_that_the_family_needs(family, zoo):
    sites = find_sites(zoo.build(family)[0])
    assert {site.backend for site in sites} == BACKENDS.get(family, {"interface"})


def test_layers_follow_the_order_of_the_model(zoo):
    names = {site.key: site.name for site in find_sites(zoo.build("t5")[0])}
    assert names[SiteKey("encoder.self", 1)] == "encoder.block.1.layer.0.SelfAttention"
    assert names[SiteKey("decoder.self", 2)] == "decoder.block.2.layer.0.SelfAttention"
    assert names[SiteKey("decoder.cross", 2)] == "decoder.block.2.layer.1.EncDecAttention"


def test_static_geometry_is_what_a_forward_pass_shows(family, zoo):
    model, batch = zoo.build(family)
    sites = find_sites(model)
    if family == "falcon":
        # Falcon repeats its keys before it attends, so none is shared where the map is made.
        assert {site.n_kv_heads for site in sites} == {2}
        assert {site.n_kv_heads for site in confirm_sites(model, sites, batch)} == {4}
    else:
        assert confirm_sites(model, sites, batch) == sites


def test_grouped_heads_and_head_width_are_read(zoo):
    site = find_sites(zoo.build("llama")[0])[0]
    assert (site.n_heads, site.n_kv_heads, site.width) == (4, 2, 8)


def test_a_head_width_that_does_not_follow_from_the_model_width_is_read():
    config = hf.T5Config(vocab_size=8, d_model=32, d_kv=5, d_ff=8, num_layers=1, num_heads=3)
    sites = find_sites(hf.T5ForConditionalGeneration(config))
    assert {(site.n_heads, site.n_kv_heads, site.width) for site in sites} == {(3, 3, 5)}


def test_wrong_geometry_is_corrected_by_a_forward_pass(zoo):
    model, batch = zoo.build("llama")
    sites = find_sites(model)
    wrong = [replace(site, n_heads=1, n_kv_heads=1, width=1) for site in sites]
    assert confirm_sites(model, wrong, batch) == sites


def test_a_model_on_the_meta_device_is_listed(family, zoo):
    model, _ = zoo.build(family)
    with torch.device("meta"):
        empty = type(model)(model.config)
    described = [(s.key, s.name, s.backend, s.n_heads, s.n_kv_heads, s.width) for s in find_sites(empty)]
    assert described == [
        (s.key, s.name, s.backend, s.n_heads, s.n_kv_heads, s.width) for s in find_sites(model)
    ]


class Wrapper(nn.Module):
    """Holds its model as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [Wrapper, torch.compile, lambda model: Wrapper(torch.compile(model))])
def test_wrappers_leave_no_trace_in_names_and_stacks(wrap, zoo):
    model, _ = zoo.build("blip_vqa")
    bare = find_sites(model)
    assert find_sites(wrap(model)) == bare


def test_names_lose_wrapper_components_wherever_they_stand():
    assert clean_name("module.encoder.layer.0._fsdp_wrapped_module.attention") == "encoder.layer.0.attention"
    assert clean_name("_orig_mod.module.a._checkpoint_wrapped_module.b") == "a.b"
    assert clean_name("encoder.submodule.attention") == "encoder.submodule.attention"


def test_two_lists_never_share_a_stack():
    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    with torch.device("meta"):
        sites = find_sites(hf.DetrForObjectDetection(config))
    assert [str(site.key) for site in sites] == [
        "vision_encoder.self[0]",
        "vision_decoder.self[0]",
        "vision_decoder.cross[0]",
    ]


def test_several_sites_of_one_kind_in_one_layer_get_stacks_of_their_own():
    config = hf.LxmertConfig(
        vocab_size=30,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=8,
        l_layers=1,
        x_layers=2,
        r_layers=1,
    )
    with torch.device("meta"):
        sites = find_sites(hf.LxmertModel(config))
    keys = [site.key for site in sites]
    assert len(keys) == len(set(keys)) == len(sites)
    by_stack = {}
    for site in sites:
        by_stack.setdefault(site.key.stack, set()).add(site.name.split(".layer.")[0].rsplit("layers.", 1)[0])
    assert all(len(lists) == 1 for lists in by_stack.values())


def test_channel_attention_is_no_site():
    config = hf.Florence2Config(
        vision_config={
            "depths": [1],
            "patch_size": [7],
            "patch_stride": [4],
            "patch_padding": [3],
            "patch_prenorm": [False],
            "embed_dim": [16],
            "num_heads": [2],
            "num_groups": [2],
            "window_size": 4,
            "projection_dim": 32,
        },
        text_config={"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
    )
    with torch.device("meta"):
        sites = find_sites(hf.Florence2ForConditionalGeneration(config))
    assert not [site.name for site in sites if "channel" in site.name]
    assert [site.name for site in sites if "window" in site.name]


def test_a_model_without_attention_is_refused():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    with pytest.raises(CaptureError, match="ResNetModel has no attention that can be recorded"):
        find_sites(hf.ResNetModel(config))


def test_a_site_whose_heads_cannot_be_read_is_left_out_by_name(caplog):
    class OddAttention(nn.Module):
        def forward(self, states):
            return states.softmax(-1)

    model = nn.ModuleDict({"odd": OddAttention(), "plain": nn.MultiheadAttention(8, 2)})
    with caplog.at_level(logging.WARNING):
        sites = find_sites(model)
    assert [site.name for site in sites] == ["plain"]
    assert "odd (OddAttention) is left out" in caplog.text


def test_what_counts_is_the_code_that_runs_and_not_the_code_it_replaces():
    class Replaced(hf.models.bert.modeling_bert.BertSelfAttention):
        def forward(self, hidden_states, *args, **kwargs):
            return (hidden_states,)

    attention = Replaced(hf.BertConfig(**{"hidden_size": 8, "num_attention_heads": 2}))
    model = nn.ModuleDict({"replaced": attention, "plain": nn.MultiheadAttention(8, 2)})
    assert [site.name for site in find_sites(model)] == ["plain"]
