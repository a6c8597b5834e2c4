import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BlipConfig, BlipForConditionalGeneration

from amad.errors import RecipeError
from amad.models.blip import dispatch_attention
from amad.models.blip_regularization import set_text_dropout, stochastic_depth
from amad.models.blip_seq2seq import as_seq2seq

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
BERT = BertConfig(**SIZES, num_hidden_layers=1, vocab_size=20)


@pytest.fixture
def blip():
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**SIZES, "num_hidden_layers": 2, "vocab_size": 30, "encoder_hidden_size": 16},
        vision_config={**SIZES, "num_hidden_layers": 3, "image_size": 8, "patch_size": 4},
    )
    model = BlipForConditionalGeneration(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def branches_of(model):
    return [branch for layer in model.vision_model.encoder.layers for branch in (layer.self_attn, layer.mlp)]


def outputs_of(model, images):
    """What enters and what leaves every branch, in their order."""
    seen = []
    hooks = [
        branch.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(
                ((args or (kwargs["hidden_states"],))[0], output[0] if isinstance(output, tuple) else output)
            ),
            with_kwargs=True,
        )
        for branch in branches_of(model)
    ]
    model.vision_model(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("dispatched", [False, True])
def test_branches_are_left_out_by_sample_with_a_rate_that_rises_by_layer(blip, dispatched):
    model = dispatch_attention(blip) if dispatched else blip
    images = torch.rand(3000, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad(), stochastic_depth(model, 0.4):
        seen = outputs_of(model.train(), images)
    model.eval()
    dropped = []
    for number, ((entered, left), branch) in enumerate(zip(seen, branches_of(model), strict=True)):
        with torch.no_grad():
            whole = branch(hidden_states=entered) if number % 2 == 0 else branch(entered)
        whole = whole[0] if isinstance(whole, tuple) else whole
        rate = (0.0, 0.2, 0.4)[number // 2]
        out = (left == 0).all(dim=2).all(dim=1)
        torch.testing.assert_close(left[~out], whole[~out] / (1 - rate))
        # Five standard deviations of a share of 3,000 samples.
        assert out.double().mean().item() == pytest.approx(rate, abs=5 * 0.5 / 3000**0.5 if rate else 0)
        dropped.append(out.double())
    # The attention and the feed-forward part of a layer, and layers, independently of each other.
    together = torch.corrcoef(torch.stack(dropped[2:]))
    assert (together - torch.eye(4)).abs().max() < 0.1


def test_what_is_evaluated_and_what_is_left_behind_is_the_ordinary_model(blip):
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    before = blip.vision_model(images).last_hidden_state
    with stochastic_depth(blip, 0.9):
        assert torch.equal(blip.vision_model(images).last_hidden_state, before)
        blip.train()
        assert not torch.equal(blip.vision_model(images).last_hidden_state, before)
    blip.train()
    assert torch.equal(blip.vision_model(images).last_hidden_state, before)
    assert not any(module._forward_hooks for module in blip.modules())


def test_the_mean_of_the_first_layer_that_is_left_out_is_what_it_was(blip):
    """Scaling keeps what a branch adds in the mean, exactly so over both outcomes weighed by their chances."""
    branch = blip.vision_model.encoder.layers[2].mlp
    states = torch.randn(20000, 1, 16, dtype=torch.float64)
    with torch.no_grad(), stochastic_depth(blip, 0.5):
        whole = branch(states)
        blip.train()
        left = branch(states)
    assert ((left - whole).mean(0).abs() < 5 * whole.std(0) / 20000**0.5).all()


def test_no_rate_does_nothing_to_any_model():
    model = BertModel(BERT)
    with stochastic_depth(model, 0.0):
        assert not any(module._forward_hooks for module in model.modules())


def test_models_without_such_parts_are_refused():
    model = BertModel(BERT)
    with pytest.raises(RecipeError, match=r"drop_path_rate is that of BLIP's vision part.*BertModel"):
        stochastic_depth(model, 0.1).__enter__()
    with pytest.raises(RecipeError, match=r"dropout is that of BLIP's text part.*BertModel"):
        set_text_dropout(model, 0.1)


@pytest.mark.parametrize("form", [dispatch_attention, as_seq2seq])
def test_text_drops_while_it_trains_and_vision_does_not(blip, tmp_path, form):
    model = form(blip)
    set_text_dropout(model, 0.25)
    assert {m.p for m in model.vision_model.modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert {m.p for m in model.text_decoder.modules() if isinstance(m, nn.Dropout)} == {0.25}
    ids = torch.tensor([[1, 5, 6, 7]])
    states = torch.randn(1, 3, 16, dtype=torch.float64)

    def said():
        return model.text_decoder.bert(input_ids=ids, encoder_hidden_states=states, is_decoder=True)[0]

    whole = said()
    assert torch.equal(said(), whole)
    model.train()
    assert not torch.equal(said(), whole)
    model.save_pretrained(tmp_path)
    again = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert {m.p for m in again.text_decoder.modules() if isinstance(m, nn.Dropout)} == {0.25}
