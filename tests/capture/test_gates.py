"""Heads silenced one by one: against weights set to zero, on every back-end that shows its heads."""

import pytest
import torch

from amad.axes import SiteKey
from amad.capture.gates import gated
from amad.capture.sites import find_sites
from amad.errors import CaptureError, ShapeError

# Model, stack, and the projection that mixes heads, in the site's module or beside it.
CASES = [
    ("vlt5", "encoder.self", "o"),
    ("t5", "decoder.cross", "o"),
    ("vilt", "encoder.self", None),
    ("blip_caption", "vision.self", "projection"),
]


def build(zoo, name):
    model, batch = zoo.build(name)
    model.eval()
    return model, batch, {site.key: site for site in find_sites(model)}


def logits(model, batch):
    # ViLT draws which patches it sees.
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**batch)
    return output["logits"] if "logits" in output else output[0]


def mixing(model, site, name):
    """The linear layer that mixes the heads of a site."""
    if name is not None:
        return site.module.get_submodule(name)
    wanted = (site.n_heads * site.width, site.n_heads * site.width)
    parent = model.get_submodule(site.name.rsplit(".", 1)[0])
    own = [m for m in site.module.modules() if isinstance(m, torch.nn.Linear)]
    beside = [
        m for m in parent.modules() if isinstance(m, torch.nn.Linear) and tuple(m.weight.shape) == wanted
    ]
    return [m for m in [*own, *beside] if tuple(m.weight.shape) == wanted][-1]


@pytest.mark.parametrize(("name", "stack", "projection"), CASES)
def test_a_silent_head_is_one_whose_columns_of_the_output_projection_are_zero(zoo, name, stack, projection):
    model, batch, sites = build(zoo, name)
    key = SiteKey(stack, 1)
    site = sites[key]
    gate = torch.ones(1, site.n_heads)
    gate[0, 2] = 0
    whole = logits(model, batch)
    with gated(sites, {key: gate}):
        silent = logits(model, batch)
    assert not torch.allclose(silent, whole, atol=1e-4)
    assert torch.equal(logits(model, batch), whole)
    columns = mixing(model, site, projection).weight
    with torch.no_grad():
        columns[:, 2 * site.width : 3 * site.width] = 0
    torch.testing.assert_close(logits(model, batch), silent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stack"),
    # The last has several rows for each sample: windows.
    [("t5", "encoder.self"), ("swin", "vision.self")],
)
def test_a_gate_per_sample_touches_its_sample_only(zoo, name, stack):
    model, batch, sites = build(zoo, name)
    key = SiteKey(stack, 0)
    gate = torch.ones(2, sites[key].n_heads)
    gate[1] = 0
    whole = logits(model, batch)
    with gated(sites, {key: gate}):
        changed = logits(model, batch)
    torch.testing.assert_close(changed[0], whole[0])
    assert not torch.allclose(changed[1], whole[1], atol=1e-4)


def test_inner_gates_count_and_outer_ones_come_back(zoo):
    model, batch, sites = build(zoo, "t5")
    key = SiteKey("encoder.self", 0)
    outer, inner = torch.zeros(1, sites[key].n_heads), torch.ones(1, sites[key].n_heads)
    whole = logits(model, batch)
    with gated(sites, {key: outer}):
        silent = logits(model, batch)
        with gated(sites, {key: inner}):
            torch.testing.assert_close(logits(model, batch), whole)
        assert torch.equal(logits(model, batch), silent)


def test_a_gate_of_another_size_is_refused(zoo):
    _, _, sites = build(zoo, "t5")
    with (
        pytest.raises(ShapeError, match="4 heads, and its gate has 3"),
        gated(sites, {SiteKey("encoder.self", 0): torch.ones(1, 3)}),
    ):
        pass


def test_a_site_that_does_not_show_its_heads_is_refused():
    module = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    sites = {site.key: site for site in find_sites(module)}
    key = next(iter(sites))
    with pytest.raises(CaptureError, match="multihead"), gated(sites, {key: torch.ones(1, 2)}):
        pass
