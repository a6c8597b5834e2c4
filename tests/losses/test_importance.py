"""Importance of heads: a head by hand, the slope against differences, and what must not change."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from amad.axes import SiteKey
from amad.capture.gates import gated
from amad.capture.sites import find_sites
from amad.errors import CaptureError, RecipeError
from amad.losses.importance import head_importance
from amad.losses.objective import Captured, Targets
from amad.losses.task import TaskLoss


def model_and_batches(dtype=torch.float32):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.3,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    numbers = torch.Generator().manual_seed(1)
    batches = []
    for n in (3, 2):
        labels = torch.randint(1, 40, (n, 4), generator=numbers)
        labels[0, 2:] = -100
        batches.append({"input_ids": torch.randint(1, 40, (n, 6), generator=numbers), "labels": labels})
    return model, batches


def loss_per_token(model, batches):
    """By transformers' own loss, which is a mean over the target tokens of a batch."""
    model.eval()
    with torch.no_grad():
        counts = [int((batch["labels"] != -100).sum()) for batch in batches]
        sums = [float(model(**batch).loss) * n for batch, n in zip(batches, counts, strict=True)]
    return sum(sums) / sum(counts)


def test_ablation_is_the_rise_of_the_loss_without_the_columns_of_a_head():
    model, batches = model_and_batches()
    sites = find_sites(model)
    found = head_importance(model, sites, batches)
    whole = loss_per_token(model, batches)
    assert found.loss == pytest.approx(whole, rel=1e-5)
    site = next(site for site in sites if site.key == SiteKey("decoder.cross", 1))
    for head in range(4):
        kept = site.module.o.weight.detach().clone()
        with torch.no_grad():
            site.module.o.weight[:, 4 * head : 4 * head + 4] = 0
        rise = loss_per_token(model, batches) - whole
        with torch.no_grad():
            site.module.o.weight.copy_(kept)
        assert float(found.heads[site.key][head]) == pytest.approx(rise, abs=2e-6)


def test_the_gradient_estimate_is_the_sum_of_every_samples_slope():
    model, batches = model_and_batches(torch.float64)
    sites = find_sites(model)
    found = head_importance(model, sites, batches, estimate="gradient")
    model.eval()
    by_key = {site.key: site for site in sites}
    # T5 normalises in float32 whatever the weights are, so a smaller step would measure rounding.
    key, head, step = SiteKey("encoder.self", 1), 2, 1e-3
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    slopes = 0.0
    for batch in batches:
        for sample in range(len(batch["labels"])):
            one = {name: value[sample : sample + 1] for name, value in batch.items()}
            totals = []
            for moved in (1 + step, 1 - step):
                gate = torch.ones(1, 4, dtype=torch.float64)
                gate[0, head] = moved
                with torch.no_grad(), gated(by_key, {key: gate}):
                    logits = model(**one).logits
                totals.append(float(TaskLoss()(Captured(logits), None, Targets(one["labels"])).total))
            slopes += abs(totals[0] - totals[1]) / (2 * step)
    assert float(found.heads[key][head]) == pytest.approx(slopes / tokens, rel=0.01)


@pytest.mark.parametrize("estimate", ["ablation", "gradient"])
def test_a_head_that_adds_nothing_is_worth_nothing_and_the_model_is_left_as_it_was(estimate):
    model, batches = model_and_batches()
    site = find_sites(model)[0]
    with torch.no_grad():
        site.module.o.weight[:, 4:8] = 0
    model.train()
    model.shared.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = head_importance(model, find_sites(model), batches, estimate=estimate)
    assert float(found.heads[site.key][1]) == pytest.approx(0, abs=1e-6)
    assert float(found.heads[site.key].abs().max()) > 1e-3
    assert model.training
    assert not model.shared.weight.requires_grad
    assert sum(parameter.requires_grad for parameter in model.parameters()) > 10
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("estimate", ["ablation", "gradient"])
def test_batches_cut_otherwise_give_the_same(estimate):
    model, batches = model_and_batches()
    sites = find_sites(model)
    together = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    apart = head_importance(model, sites, batches, estimate=estimate)
    whole = head_importance(model, sites, [together], estimate=estimate)
    assert apart.loss == pytest.approx(whole.loss, rel=1e-5)
    for key, heads in apart.heads.items():
        torch.testing.assert_close(heads, whole.heads[key], rtol=1e-4, atol=1e-6)


def test_layers_sum_what_harms_when_missing():
    model, batches = model_and_batches()
    found = head_importance(model, find_sites(model), batches)
    for key, heads in found.heads.items():
        assert found.of_layers()[key] == pytest.approx(sum(max(float(head), 0) for head in heads), rel=1e-5)


def test_progress_counts_forward_passes():
    model, batches = model_and_batches()
    sites = find_sites(model)[:2]
    seen = []
    head_importance(model, sites, batches, on_progress=lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (2 * (1 + 8), 2 * (1 + 8))


def small_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("estimate", ["ablation", "gradient"])
def test_the_loss_of_a_causal_model_is_that_of_the_next_word(estimate):
    model = small_llama()
    ids = torch.randint(1, 40, (3, 7))
    found = head_importance(model, find_sites(model), [{"input_ids": ids, "labels": ids}], estimate=estimate)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)


@pytest.mark.parametrize("estimate", ["ablation", "gradient"])
def test_a_classifier_of_images_whose_attention_is_over_windows(estimate):
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    )
    model = SwinForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 2, 4])}
    sites = find_sites(model)
    found = head_importance(model, sites, [batch], estimate=estimate)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(model(**batch).loss), rel=1e-5)
    one_by_one = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(3)]
    again = head_importance(model, sites, one_by_one, estimate=estimate)
    for key, heads in found.heads.items():
        torch.testing.assert_close(heads, again.heads[key], rtol=1e-3, atol=1e-6)
        assert heads.any()


def test_no_example_is_refused():
    model, _ = model_and_batches()
    with pytest.raises(CaptureError, match="there are none"):
        head_importance(model, find_sites(model), [])


def test_the_gradient_estimate_of_a_sample_with_several_rows_is_of_the_sample():
    """As BLIP has questions with several answers: the encoder runs once, its output is repeated for the decoder."""
    model, (batch, _) = model_and_batches(torch.float64)
    sites = [site for site in find_sites(model) if site.key.stack.startswith("decoder")]
    counts = torch.tensor([1, 2])
    ids, labels = batch["input_ids"][:2], batch["labels"]
    rows = {"input_ids": ids.repeat_interleave(counts, 0), "labels": labels, "row_counts": counts}
    found = head_importance(model, sites, [rows], estimate="gradient").heads
    apart = []
    for one, own in ((0, labels[:1]), (1, labels[1:])):
        n_rows = torch.tensor([len(own)])
        alone = {"input_ids": ids[one].expand(len(own), -1), "labels": own, "row_counts": n_rows}
        apart.append(head_importance(model, sites, [alone], estimate="gradient"))
    for site in sites:
        whole = sum(part.heads[site.key] * n for part, n in zip(apart, apart_tokens(labels), strict=True))
        torch.testing.assert_close(found[site.key], whole / sum(apart_tokens(labels)))


def apart_tokens(labels):
    return [int((part != -100).sum()) for part in (labels[:1], labels[1:])]


def test_it_is_per_token_whatever_the_unit_of_a_task():
    model, batches = model_and_batches()
    sites = find_sites(model)
    of_tokens, of_samples = (
        head_importance(model, sites, batches, task=TaskLoss(reduction)) for reduction in ("token", "sample")
    )
    assert of_samples.loss == of_tokens.loss
    for key, worth in of_tokens.heads.items():
        torch.testing.assert_close(of_samples.heads[key], worth)


def test_an_estimate_nobody_knows_is_refused():
    model, batches = model_and_batches()
    # Without the type checker of these tests, which would refuse it first.
    measure = getattr(head_importance, "__wrapped__", head_importance)
    with pytest.raises(RecipeError, match="estimate 'ablate' is none of ablation, gradient"):
        measure(model, find_sites(model), batches, estimate="ablate")


def test_modules_keep_the_mode_that_each_was_in():
    model, batches = model_and_batches()
    model.train()
    model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    head_importance(model, find_sites(model), batches, estimate="gradient")
    assert {name: module.training for name, module in model.named_modules()} == before
