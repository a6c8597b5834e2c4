"""The self-check accepts what is right, refuses what is wrong, and says what it cannot see."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from amad.capture import interface, multihead, probs, projections
from amad.capture.check import confirm_sites, self_check
from amad.capture.sites import find_sites
from amad.errors import CaptureError


def drop_mask(record):
    return replace(record, mask=None)


def drop_causality(record):
    return replace(record, mask=None, causal_offset=None)


def scale_up(record):
    return replace(record, scale=record.scale * 1.1)


def drop_bias(record):
    return replace(record, position_bias=None)


def drop_softcap(record):
    return replace(record, softcap=None)


def drop_sinks(record):
    return replace(record, sinks=None)


def shift_heads(record):
    return replace(record, query=record.query.roll(1, dims=1))


def spoil(record):
    return replace(record, query=record.query * torch.nan)


def sharpen(record):
    sharper = record.probabilities.square()
    return replace(record, probabilities=sharper / sharper.sum(-1, keepdim=True))


FAULTS = [
    ("t5", interface, scale_up),
    ("t5", interface, drop_bias),
    ("t5", interface, drop_mask),
    ("t5", interface, drop_causality),
    ("vlt5", interface, drop_bias),
    ("vlt5", interface, drop_mask),
    ("vlt5", interface, shift_heads),
    ("bart", interface, drop_causality),
    ("bert", interface, drop_mask),
    ("bert", interface, spoil),
    ("beit", interface, drop_mask),
    ("vit", interface, scale_up),
    ("llama", interface, drop_mask),
    ("llama", interface, shift_heads),
    ("gemma2", interface, drop_softcap),
    ("gpt_oss", interface, drop_sinks),
    ("blip_vqa", projections, scale_up),
    ("blip_vqa", projections, drop_mask),
    ("layoutlmv3", projections, drop_bias),
    ("vilt", projections, drop_mask),
    ("siglip", multihead, scale_up),
    ("falcon", probs, drop_mask),
    ("deberta_v2", probs, sharpen),
]


def test_every_family_passes_and_every_site_is_verified(family, zoo):
    model, batch = zoo.build(family)
    sites = find_sites(model)
    differences = self_check(model, sites, batch)
    assert list(differences) == [site.key for site in sites]
    assert all(value is not None and value < 1e-6 for value in differences.values())


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@pytest.mark.parametrize("name", ["bert", "bart", "llama", "gemma3"])
def test_every_implementation_passes(name, implementation, zoo):
    model, batch = zoo.build(name, implementation)
    # Flex attention would compile for half a minute.
    with torch.compiler.set_stance("force_eager"):
        assert max(self_check(model, find_sites(model), batch).values()) < 1e-5


@pytest.mark.parametrize(("name", "backend", "fault"), FAULTS)
def test_a_wrong_record_is_refused_with_site_difference_and_tolerance(name, backend, fault, zoo, monkeypatch):
    model, batch = zoo.build(name)
    read = backend.read
    monkeypatch.setattr(backend, "read", lambda site, call: fault(read(site, call)))
    message = r"\[\d\] \(.+\): the recorded attention is not .* by (nan|\d\S*) of .* tolerance 0.0001\."
    with pytest.raises(CaptureError, match=message):
        self_check(model, find_sites(model), batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_and_its_faults_do_not(dtype, zoo, monkeypatch):
    model, batch = zoo.build("bert")
    model.to(dtype)
    sites = find_sites(model)
    differences = self_check(model, sites, batch)
    assert all(value < 2e-2 for value in differences.values())
    read = interface.read
    monkeypatch.setattr(interface, "read", lambda site, call: drop_mask(read(site, call)))
    with pytest.raises(CaptureError, match=r"tolerance 0\.02"):
        self_check(model, sites, batch)


def test_a_given_tolerance_is_used(zoo):
    model, batch = zoo.build("bert")
    with pytest.raises(CaptureError, match="tolerance 0"):
        self_check(model, find_sites(model), batch, tolerance=0.0)


def test_rows_that_see_no_key_are_skipped(zoo):
    model, batch = zoo.build("llama")
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    assert max(self_check(model, find_sites(model), batch).values()) < 1e-6


def test_every_module_keeps_its_mode(zoo):
    model, batch = zoo.build("vit", train=True)
    frozen = find_sites(model)[0].module.eval()
    self_check(model, find_sites(model), batch)
    assert model.training
    assert not frozen.training


def test_the_mode_is_kept_when_the_model_fails(zoo):
    model, batch = zoo.build("vit", train=True)
    batch["pixel_values"] = torch.zeros(1, 3, 5, 5)
    with pytest.raises(Exception, match=r"\S"):
        self_check(model, find_sites(model), batch)
    assert all(module.training for module in model.modules())
    assert not any(name.startswith("_amad") for module in model.modules() for name in vars(module))


def test_the_check_leaves_no_gradient_and_no_random_numbers_behind(zoo):
    model, batch = zoo.build("t5", train=True)
    state = torch.get_rng_state()
    self_check(model, find_sites(model), batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_site_that_is_not_reached_is_none_and_named(zoo, caplog):
    class TextOnly(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **batch):
            return self.model.text_model(**batch)

    model, batch = zoo.build("clip")
    batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with caplog.at_level(logging.WARNING):
        differences = self_check(TextOnly(model), find_sites(model), batch)
    assert {key.stack for key, value in differences.items() if value is None} == {"vision.self"}
    assert {key.stack for key, value in differences.items() if value is not None} == {"text.self"}
    assert "vision.self[0]" in caplog.text
    assert "the batch does not reach it" in caplog.text


class EinsumAttention(nn.Module):
    """Takes a softmax, and then no matrix product that could be watched."""

    num_heads, head_dim = 2, 4

    def forward(self, states):
        query = states.unflatten(-1, (2, 4)).transpose(1, 2)
        probabilities = torch.matmul(query, query.transpose(2, 3)).softmax(-1)
        return torch.einsum("bhqk,bhkd->bqhd", probabilities, query)


def test_a_map_whose_use_is_not_seen_is_none_and_named(caplog):
    model = nn.ModuleDict({"odd": EinsumAttention()})
    model.forward = model["odd"].forward
    sites = find_sites(model)
    model.forward = lambda states: model["odd"](states)
    with caplog.at_level(logging.WARNING):
        assert list(self_check(model, sites, {"states": torch.randn(2, 5, 8)}).values()) == [None]
    assert "(odd) is not verified: it shows no output to compare with" in caplog.text


def test_sites_that_run_once_per_image_are_verified_call_by_call(zoo):
    class Twice(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **batch):
            self.model(**batch)
            return self.model(**batch)

    model, batch = zoo.build("vit")
    sites = find_sites(model)
    assert max(self_check(Twice(model), sites, batch).values()) < 1e-6
    assert confirm_sites(Twice(model), sites, batch) == sites
