"""The back-end that keeps the map of a module: softmax outputs, fused calls, dropout, refusals."""

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from amad.capture.check import self_check
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import CaptureError


class EagerAttention(nn.Module):
    """Cosine attention, whose scores are no plain product of projections."""

    num_heads, head_dim = 2, 4

    def __init__(self, dropout=0.0, flat=False):
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout, self.flat = nn.Dropout(dropout), flat

    def forward(self, states):
        query, key, value = (
            tokens.unflatten(-1, (2, 4)).transpose(1, 2)
            for tokens in (self.query(states), self.key(states), states)
        )
        if self.flat:
            query, key, value = (tokens.flatten(0, 1) for tokens in (query, key, value))
        scores = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-1, -2)
        self.maps = functional.softmax(5 * scores, dim=-1)
        return (self.dropout(self.maps) @ value,)


class FusedAttention(nn.Module):
    """Calls the fused function itself, as Falcon does."""

    num_heads, head_dim, causal = 2, 4, False

    def forward(self, states, mask=None):
        tokens = states.unflatten(-1, (2, 4)).transpose(1, 2)
        return functional.scaled_dot_product_attention(
            tokens, 2 * tokens, tokens, attn_mask=mask, is_causal=self.causal, scale=0.7
        )


class Model(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, **batch):
        return self.attention(**batch)


def record(model, batch):
    sites = find_sites(model)
    with Recorder(model, sites) as recorder:
        model(**batch)
        return recorder.take()[sites[0].key]


@pytest.mark.parametrize("flat", [False, True])
def test_the_map_is_that_of_the_softmax(flat):
    model, batch = Model(EagerAttention(flat=flat)), {"states": torch.randn(3, 5, 8)}
    found = record(model, batch)
    assert found.map_shape == (3, 2, 5, 5)
    assert torch.equal(found.rows().flatten(), model.attention.maps.flatten())
    assert max(self_check(model, find_sites(model), batch).values()) == 0


def test_the_map_is_that_before_dropout():
    found = record(Model(EagerAttention(dropout=0.5)), {"states": torch.randn(3, 5, 8)})
    torch.testing.assert_close(found.rows().sum(-1), torch.ones(3, 2, 5))


def test_gradients_flow_through_the_map():
    model = Model(EagerAttention())
    record(model, {"states": torch.randn(3, 5, 8)}).rows().square().sum().backward()
    assert model.attention.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("causal", [False, True])
def test_the_arguments_of_a_fused_call_give_its_map(causal):
    model = Model(FusedAttention())
    model.attention.causal = causal
    states = torch.randn(2, 5, 8)
    found = record(model, {"states": states})
    tokens = states.unflatten(-1, (2, 4)).transpose(1, 2)
    scores = 0.7 * tokens @ (2 * tokens).transpose(2, 3)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(found.rows(), scores.softmax(-1))
    assert max(self_check(model, find_sites(model), {"states": states}).values()) < 1e-6


def test_a_flat_mask_of_a_fused_call_is_broadcast():
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    found = record(Model(FusedAttention()), {"states": torch.randn(2, 5, 8), "mask": mask})
    assert torch.equal(found.visible()[0, 0], mask)


def test_a_softmax_that_is_no_map_is_refused():
    class OddAttention(EagerAttention):
        def forward(self, states):
            return (states.sum(1).softmax(-1),)

    with pytest.raises(CaptureError, match=r"its softmax gives \(3, 8\), which is no map"):
        record(Model(OddAttention()), {"states": torch.randn(3, 5, 8)})


@pytest.mark.parametrize("name", ["deberta_v2", "swinv2", "falcon"])
def test_real_models_give_the_maps_that_they_return(name, zoo):
    if name == "swinv2":
        config = hf.Swinv2Config(
            image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4
        )
        model, batch = hf.Swinv2Model(config).eval(), {"pixel_values": zoo.noise(2, 3, 16, 16)}
    else:
        model, batch = zoo.build(name, "eager")
    sites = find_sites(model)
    with torch.no_grad(), Recorder(model, sites) as recorder:
        maps = model(**batch, output_attentions=True).attentions
        records = recorder.take(batch)
    assert {site.backend for site in sites} == {"probs"}
    found = [records[site.key].rows() for site in sites]
    # Swin returns the maps of every other block.
    returned = [next(own for own in found if torch.allclose(own, one, atol=1e-6)) for one in maps]
    assert len(returned) == len(maps) > 0
