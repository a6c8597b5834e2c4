"""torch's own multi-head attention, with every kind of mask that it takes."""

import pytest
import torch
from torch import nn

from amad.capture.check import self_check
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import CaptureError

PADDING = torch.tensor([[False, False, False, True], [False] * 4])
CAUSAL = torch.ones(3, 4, dtype=torch.bool).triu(2)
CASES = {
    "nothing": {},
    "padding": {"key_padding_mask": PADDING},
    "added padding": {"key_padding_mask": torch.zeros(2, 4).masked_fill(PADDING, -torch.inf)},
    "causal": {"attn_mask": CAUSAL},
    "causal and padding": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "bias": {"attn_mask": torch.linspace(-1, 1, 12).reshape(3, 4)},
    "bias and padding": {
        "attn_mask": torch.linspace(-1, 1, 12).reshape(3, 4),
        "key_padding_mask": torch.zeros(2, 4).masked_fill(PADDING, -torch.inf),
    },
    "bias per head": {"attn_mask": torch.linspace(-2, 2, 48).reshape(4, 3, 4)},
}


class Model(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **({"batch_first": True} | kwargs))

    def forward(self, **batch):
        self.maps = self.attention(**batch, average_attn_weights=False)[1]
        return self.maps


def inputs(model, key_width=6):
    tensors = {"query": torch.randn(2, 3, 6), "key": torch.randn(2, 4, key_width)}
    tensors["value"] = torch.randn(2, 4, key_width)
    if not model.attention.batch_first:
        tensors = {name: tensor.transpose(0, 1) for name, tensor in tensors.items()}
    return tensors


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kwargs", [{}, {"batch_first": False}, {"bias": False}, {"kdim": 5, "vdim": 5}])
def test_the_map_is_the_one_that_torch_returns(case, kwargs):
    model = Model(**kwargs)
    batch = inputs(model, kwargs.get("kdim", 6)) | CASES[case]
    sites = find_sites(model)
    with Recorder(model, sites) as recorder:
        model(**batch)
        record = recorder.take()[sites[0].key]
    torch.testing.assert_close(record.rows(), model.maps, atol=1e-6, rtol=0)
    assert max(self_check(model, sites, batch).values()) < 1e-6


def test_tokens_of_another_type_than_the_weights_are_projected_in_that_of_the_weights():
    """As under mixed precision, where a linear layer before the site gives halves."""
    model = Model()
    batch = inputs(model)
    sites = find_sites(model)
    with Recorder(model, sites) as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            model(**{name: value.bfloat16() for name, value in batch.items()})
        record = recorder.take()[sites[0].key]
    model(**batch)
    torch.testing.assert_close(record.rows().float(), model.maps, atol=0.02, rtol=0)


def test_gradients_reach_the_projections():
    model = Model()
    batch = inputs(model)
    sites = find_sites(model)
    weight = torch.randn(2, 2, 3, 4)
    found = []
    for recorded in (True, False):
        with Recorder(model, sites) as recorder:
            model(**batch)
            maps = recorder.take(require_grad=True)[sites[0].key].rows() if recorded else model.maps
        model.zero_grad()
        (maps * weight).sum().backward()
        found.append(model.attention.in_proj_weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kwargs", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_that_are_no_tokens_are_refused(kwargs):
    model = Model(**kwargs)
    batch = inputs(model)
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        with pytest.raises(CaptureError, match=r"\(attention\): keys that are not tokens"):
            recorder.take()
