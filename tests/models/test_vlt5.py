"""VL-T5 as a Hugging Face model: inputs, masks, generation, saving, and what transformers switches on."""

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    CLIPVisionConfig,
    EncoderDecoderConfig,
    ResNetConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from amad.errors import RecipeError, ShapeError
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration, VLT5Model
from amad.models.vlt5_embedding import box_area, build_vision_model, grid_boxes, image_patches, patch_states

N_TEXT, N_TARGET = 5, 4


def config(**changes):
    values = {
        "vocab_size": 60,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 3,
        "dropout_rate": 0.0,
        "feat_dim": 7,
        "image_size": 12,
        "patch_size": 4,
    }
    return VLT5Config(**{**values, **changes})


def vision(**changes):
    values = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "image_size": 12,
        "patch_size": 4,
    }
    return ViTConfig(**{**values, **changes})


def build(source="regions", **changes):
    if source == "vision_model":
        changes.setdefault("vision_config", vision())
    return VLT5ForConditionalGeneration(config(visual_source=source, **changes)).eval()


def build_lively(source="regions", **changes):
    """A model whose layers outweigh the embeddings, so that it does not just repeat a token."""
    model = build(source, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".block." in name and parameter.ndim == 2:
                parameter.mul_(4)
    return model


def batch(source="regions", n_batch=3, n_visual=6):
    text = torch.randint(2, 60, (n_batch, N_TEXT))
    text[1, 3:] = 0
    inputs = {"input_ids": text, "attention_mask": (text != 0).long()}
    if source == "regions":
        low, high = torch.rand(n_batch, n_visual, 2) / 2, torch.rand(n_batch, n_visual, 2) / 2 + 0.5
        inputs["vis_feats"] = torch.randn(n_batch, n_visual, 7)
        inputs["boxes"] = torch.cat([low, high], -1)
    else:
        inputs["pixel_values"] = torch.randn(n_batch, 3, 12, 12)
    inputs["labels"] = torch.randint(2, 60, (n_batch, N_TARGET))
    inputs["labels"][2, 2:] = -100
    return inputs


def assert_near(actual, expected):
    """Equal but for float32 rounding: 2e-5 at most was seen, where a wrong mask makes a difference of 2."""
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)


SOURCES = ["regions", "patches", "vision_model"]
every_source = pytest.mark.parametrize("source", SOURCES)


# What transformers expects of a model


@every_source
def test_a_saved_model_computes_the_same_when_loaded_by_the_auto_classes(source, tmp_path):
    model, inputs = build(source), batch(source)
    model.save_pretrained(tmp_path)
    expected = model(**inputs)
    for auto in (AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is VLT5ForConditionalGeneration
        assert torch.equal(loaded(**inputs).logits, expected.logits)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is VLT5Model
    labels = inputs.pop("labels")
    states = bare(**inputs, decoder_input_ids=model._shift_right(labels)).last_hidden_state
    assert torch.equal(model.lm_head(states * 16**-0.5), expected.logits)


@every_source
def test_a_saved_configuration_loads_equal(source, tmp_path):
    changes = {"box_area": "exact", "num_decoder_layers": 1, "use_vis_order_embedding": False, "n_images": 3}
    before = build(source, **changes).config
    before.save_pretrained(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    assert type(after) is VLT5Config
    assert after.to_diff_dict() == before.to_diff_dict()
    for name, value in changes.items():
        assert getattr(after, name) == value
    assert type(after.vision_config) is type(before.vision_config)


def test_the_shared_embedding_is_stored_once(tmp_path):
    build().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tables = [name for name in file.keys() if file.get_slice(name).get_shape() == [60, 16]]  # noqa: SIM118
    assert tables == ["shared.weight"]


def test_all_uses_of_the_token_embedding_are_one_parameter():
    model = build()
    shared = model.shared.weight
    for other in (model.encoder.embed_tokens, model.decoder.embed_tokens, model.lm_head):
        assert other.weight is shared
    model.resize_token_embeddings(64)
    assert model.encoder.embed_tokens.num_embeddings == 64
    assert model.lm_head.weight is model.encoder.embed_tokens.weight is model.shared.weight
    assert model(**batch()).logits.shape == (3, N_TARGET, 64)


def test_weights_are_drawn_as_t5_draws_them():
    torch.manual_seed(0)
    values = {"vocab_size": 60, "d_model": 128, "d_kv": 16, "d_ff": 256, "num_layers": 1, "num_heads": 8}
    ours = VLT5ForConditionalGeneration(config(**values, feat_dim=100))
    theirs = T5ForConditionalGeneration(T5Config(**values))
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert own[name].std().item() == pytest.approx(parameter.std().item(), rel=0.15, abs=1e-6), name
    visual = ours.encoder.visual_embedding
    assert visual.feat_embedding[0].weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert visual.absolute_vis_pos_embedding[0].weight.std().item() == pytest.approx(5**-0.5, rel=0.15)
    assert visual.img_order_embedding.weight.std().item() == pytest.approx(1.0, rel=0.2)


def test_weights_of_a_plain_t5_load_into_the_text_side(tmp_path):
    theirs = T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3)
    )
    theirs.save_pretrained(tmp_path)
    ours = VLT5ForConditionalGeneration.from_pretrained(tmp_path, config=config())
    own = ours.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.state_dict().items())
    bias = ours.encoder.visual_embedding.feat_embedding[0].bias
    assert torch.equal(bias, torch.zeros_like(bias))


@every_source
def test_eager_and_sdpa_attention_agree(source):
    model, inputs = build(source), batch(source)
    fast = model(**inputs).logits
    model.set_attn_implementation("eager")
    slow = model(**inputs, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(slow.logits, fast, atol=2e-5, rtol=0)
    n_joint = slow.encoder_last_hidden_state.shape[1]
    assert [tuple(a.shape) for a in slow.encoder_attentions] == [(3, 3, n_joint, n_joint)] * 2
    assert [tuple(a.shape) for a in slow.decoder_attentions] == [(3, 3, N_TARGET, N_TARGET)] * 2
    assert [tuple(a.shape) for a in slow.cross_attentions] == [(3, 3, N_TARGET, n_joint)] * 2
    assert len(slow.encoder_hidden_states) == len(slow.decoder_hidden_states) == 3


def test_attention_is_set_for_the_stacks_and_the_vision_model_each_on_its_own():
    model = build("vision_model")

    def chosen():
        parts = (model, model.encoder, model.decoder, model.encoder.vision_model)
        return [part.config._attn_implementation for part in parts]

    model.set_attn_implementation("sdpa")
    model.set_attn_implementation({"": "eager"})
    assert chosen() == ["eager", "eager", "eager", "sdpa"]
    model.set_attn_implementation({"": "sdpa", "vision_config": "eager"})
    assert chosen() == ["sdpa", "sdpa", "sdpa", "eager"]
    model.set_attn_implementation("eager")
    assert chosen() == ["eager"] * 4


@every_source
def test_gradient_checkpointing_changes_no_gradient(source):
    model, inputs = build(source).train(), batch(source)
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@every_source
def test_bfloat16_autocast_and_bfloat16_weights_stay_near_float32(source):
    model, inputs = build(source), batch(source)
    exact = model(**inputs).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**inputs).loss
    mixed.backward()
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=0.05)
    assert model.bfloat16()(**inputs).loss.item() == pytest.approx(exact.item(), rel=0.05)


# The position bias


def attention_calls(model, inputs, monkeypatch):
    """The module and the position bias of every call of the attention interface."""
    calls = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def recording(module, *args, **kwargs):
        calls.append((module, kwargs.get("position_bias")))
        return sdpa(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", recording)
    model(**inputs)
    return calls


def test_the_position_bias_is_t5s_between_texts_and_zero_wherever_vision_is(monkeypatch):
    model = build()
    calls = attention_calls(model, batch(), monkeypatch)
    first = model.encoder.block[0].layer[0].SelfAttention
    encoder = [
        bias for module, bias in calls if any(module is b.layer[0].SelfAttention for b in model.encoder.block)
    ]
    assert len(encoder) == 2
    assert encoder[0] is encoder[1]
    assert encoder[0].shape == (1, 3, N_TEXT + 6, N_TEXT + 6)
    assert torch.equal(encoder[0][..., :N_TEXT, :N_TEXT], first.compute_bias(N_TEXT, N_TEXT))
    assert encoder[0][..., :N_TEXT, :N_TEXT].abs().min() > 0
    assert torch.count_nonzero(encoder[0][..., N_TEXT:, :]) == 0
    assert torch.count_nonzero(encoder[0][..., :, N_TEXT:]) == 0


@every_source
def test_every_attention_goes_through_the_attention_interface(source, monkeypatch):
    model = build(source)
    calls = attention_calls(model, batch(source), monkeypatch)
    # Two encoder layers, two decoder layers with two attentions each, one layer of the vision model.
    assert len(calls) == 2 + 4 + (source == "vision_model")


# Masks


@every_source
def test_more_padding_of_the_text_changes_nothing(source):
    model, inputs = build_lively(source), batch(source)
    short = model(**inputs)
    padded = dict(inputs)
    padded["input_ids"] = functional.pad(inputs["input_ids"], (0, 4))
    padded["attention_mask"] = functional.pad(inputs["attention_mask"], (0, 4))
    assert_near(model(**padded).logits, short.logits)


def test_without_a_mask_padding_tokens_are_not_attended():
    model, inputs = build_lively(), batch()
    expected = model(**inputs).logits
    del inputs["attention_mask"]
    assert torch.equal(model(**inputs).logits, expected)


def test_a_masked_region_has_no_influence():
    model, inputs = build_lively(), batch()
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, 4] = 0
    expected = model(**inputs, vis_attention_mask=mask).logits
    assert not torch.allclose(expected[0], model(**inputs).logits[0], atol=0.1)
    inputs["vis_feats"][0, 4] = 100.0
    assert_near(model(**inputs, vis_attention_mask=mask).logits, expected)


def test_a_target_token_depends_on_no_later_one():
    model, inputs = build_lively(), batch()
    target = torch.randint(2, 60, (3, 4))
    del inputs["labels"]
    before = model(**inputs, decoder_input_ids=target).logits
    target[:, 3] = 7
    assert_near(model(**inputs, decoder_input_ids=target).logits[:, :3], before[:, :3])


# The visual embedding


def test_orders_that_are_not_given_count_up_in_image_zero():
    model, inputs = build(), batch()
    orders = {
        "img_order_ids": torch.zeros(3, 6, dtype=torch.long),
        "obj_order_ids": torch.arange(6).expand(3, 6),
    }
    torch.testing.assert_close(model(**inputs, **orders).logits, model(**inputs).logits)
    orders["img_order_ids"] = torch.ones(3, 6, dtype=torch.long)
    assert not torch.allclose(model(**inputs, **orders).logits, model(**inputs).logits, atol=1e-4)


def test_permuted_regions_with_their_orders_give_the_same_logits():
    model, inputs = build(), batch()
    expected = model(**inputs).logits
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    inputs["vis_feats"], inputs["boxes"] = inputs["vis_feats"][:, order], inputs["boxes"][:, order]
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-4)
    actual = model(**inputs, obj_order_ids=order[None]).logits
    assert_near(actual, expected)


def test_the_fifth_number_of_a_box_is_the_published_one_or_the_area():
    box = torch.tensor([[[0.1, 0.2, 0.7, 0.5]]])
    assert box_area(box, exact=True).item() == pytest.approx(0.6 * 0.3)
    assert box_area(box, exact=False).item() == pytest.approx((0.5 - 0.7) * (0.2 - 0.1))


def test_patches_are_flattened_row_by_row_and_boxed_by_their_place():
    image = torch.arange(2 * 3 * 12 * 12, dtype=torch.float32).view(2, 3, 12, 12)
    patches, grid = image_patches(image, config())
    assert grid == (3, 3)
    boxes = grid_boxes(3, 3, torch.device("cpu"))
    for i in range(9):
        left, top, right, bottom = (boxes[0, i] * 12).round().int().tolist()
        assert torch.equal(patches[1, i].view(3, 4, 4), image[1, :, top:bottom, left:right])


def test_patches_equal_regions_with_the_same_numbers():
    torch.manual_seed(0)
    model, inputs = build("patches"), batch("patches")
    regions = build(feat_dim=48)
    regions.load_state_dict(model.state_dict())
    expected = model(**inputs).logits
    patches, _ = image_patches(inputs.pop("pixel_values"), model.config)
    boxes = grid_boxes(3, 3, torch.device("cpu")).expand(3, -1, -1)
    torch.testing.assert_close(regions(**inputs, vis_feats=patches, boxes=boxes).logits, expected)


def test_a_vision_model_gives_its_patch_states_without_the_class_token():
    model, inputs = build("vision_model"), batch("vision_model")
    states = model.encoder.vision_model(inputs["pixel_values"]).last_hidden_state
    assert states.shape[1] == 10
    regions = build(feat_dim=8)
    regions.load_state_dict(model.state_dict(), strict=False)
    expected = model(**inputs).logits
    del inputs["pixel_values"]
    boxes = grid_boxes(3, 3, torch.device("cpu")).expand(3, -1, -1)
    torch.testing.assert_close(regions(**inputs, vis_feats=states[:, 1:], boxes=boxes).logits, expected)


@pytest.mark.parametrize(
    ("vision_config", "grid", "n_visual"),
    [
        (vision(patch_size=6), (2, 2), 4),
        (
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=12,
                patch_size=4,
            ),
            (3, 3),
            9,
        ),
        (ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"), None, 4),
    ],
)
def test_vision_models_of_several_kinds_fit(vision_config, grid, n_visual):
    model = build("vision_model", vision_config=vision_config)
    output = model(**batch("vision_model"))
    assert model.visual_grid == model.encoder.visual_grid == grid
    assert output.encoder_last_hidden_state.shape == (3, N_TEXT + n_visual, 16)


def test_a_vision_model_is_trained_by_the_loss():
    model = build("vision_model")
    model(**batch("vision_model")).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("source", "grid"), [("regions", None), ("patches", (3, 3)), ("vision_model", (3, 3))]
)
def test_the_visual_grid_ends_the_encoders_tokens(source, grid):
    model = build(source)
    assert model.visual_grid == grid
    if grid is not None:
        n_joint = model(**batch(source)).encoder_last_hidden_state.shape[1]
        assert n_joint == N_TEXT + grid[0] * grid[1]


# The loss


def test_the_loss_is_the_mean_over_tokens_that_count():
    model, inputs = build(), batch()
    output = model(**inputs)
    expected = functional.cross_entropy(output.logits.flatten(0, 1), inputs["labels"].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_the_loss_of_two_halves_sums_to_that_of_the_batch():
    model, inputs = build(), batch(n_batch=4)
    n_items = (inputs["labels"] != -100).sum()
    halves = [{name: value[part] for name, value in inputs.items()} for part in (slice(2), slice(2, 4))]
    total = sum(model(**half, num_items_in_batch=n_items).loss for half in halves)
    torch.testing.assert_close(total, model(**inputs).loss)


def test_a_batch_in_which_no_token_counts_has_no_loss_and_no_gradient():
    model, inputs = build(), batch()
    inputs["labels"][:] = -100
    loss = model(**inputs).loss
    loss.backward()
    assert loss.item() == 0
    assert model.shared.weight.grad.abs().sum() == 0


# Generation


@every_source
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_the_argmax_step_by_step(source, use_cache):
    model, inputs = build_lively(source), batch(source)
    del inputs["labels"]
    model.generation_config.eos_token_id = None
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    tokens = torch.zeros(3, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(6):
            logits = model(**inputs, decoder_input_ids=tokens).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, tokens)
    assert len(tokens[:, 1:].unique()) > 2


@every_source
def test_beams_find_what_is_at_least_as_likely_as_greedy(source):
    model, inputs = build_lively(source), batch(source)
    del inputs["labels"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    def log_likelihood(tokens):
        logits = model(**inputs, decoder_input_ids=tokens[:, :-1]).logits.log_softmax(-1)
        # The end token is forbidden at every step, so that all answers have one length.
        logits = logits.index_fill(-1, torch.tensor([1]), -1e9).log_softmax(-1)
        return logits.gather(-1, tokens[:, 1:, None])[..., 0].sum(1)

    greedy = model.generate(**inputs, **options)
    beams = model.generate(**inputs, **options, num_beams=60, length_penalty=0.0)
    assert (log_likelihood(beams) >= log_likelihood(greedy) - 1e-5).all()


def test_generating_in_a_batch_equals_generating_one_by_one():
    model, inputs = build_lively(), batch()
    del inputs["labels"]
    together = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, num_beams=3)
    for i in range(3):
        n_text = int(inputs["attention_mask"][i].sum())
        one = {name: value[i : i + 1] for name, value in inputs.items()}
        one["input_ids"], one["attention_mask"] = (
            one["input_ids"][:, :n_text],
            one["attention_mask"][:, :n_text],
        )
        alone = model.generate(**one, max_new_tokens=5, min_new_tokens=5, num_beams=3)
        assert torch.equal(alone[0], together[i])


def test_a_visual_mask_is_obeyed_while_generating():
    model, inputs = build_lively(), batch()
    del inputs["labels"]
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 2:] = False
    masked = model.generate(**inputs, vis_attention_mask=mask, max_new_tokens=5, num_beams=2)
    short = {**inputs, "vis_feats": inputs["vis_feats"][:, :2], "boxes": inputs["boxes"][:, :2]}
    assert torch.equal(masked, model.generate(**short, max_new_tokens=5, num_beams=2))


def test_a_decoder_deeper_than_the_encoder_generates_with_a_cache():
    model, inputs = build_lively(num_layers=1, num_decoder_layers=3), batch()
    del inputs["labels"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5}
    with_cache = model.generate(**inputs, **options)
    assert torch.equal(with_cache, model.generate(**inputs, **options, use_cache=False))


def test_no_cache_is_kept_while_training():
    model, inputs = build(), batch()
    assert model(**inputs).past_key_values is None
    assert model(**inputs, use_cache=True).past_key_values is not None


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"visual_source": "video"}, "visual_source is 'video'"),
        ({"box_area": "true"}, "box_area is 'true'"),
        ({"pos_dim": 5}, "pos_dim is 5"),
        ({"visual_source": "patches", "patch_size": 5}, "12 is no multiple of patch_size 5"),
        ({"visual_source": "vision_model"}, "vision_config is missing"),
        ({"vision_config": {"model_type": "vit"}}, "vision_config is given"),
        ({"visual_source": "vision_model", "vision_config": {"hidden_size": 8}}, "no model_type"),
        ({"visual_source": "vision_model", "vision_config": {"model_type": "vitt"}}, "'vitt'"),
        ({"visual_source": "patches", "patch_size": 1}, "12 x 12 visual tokens"),
    ],
)
def test_a_contradictory_configuration_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("source", "drop", "add", "got"),
    [
        ("regions", ["boxes"], {}, "got vis_feats"),
        ("regions", ["vis_feats", "boxes"], {}, "got none of them"),
        ("regions", [], {"pixel_values": torch.zeros(3, 3, 12, 12)}, "vis_feats, boxes, pixel_values"),
        ("patches", ["pixel_values"], {}, "got none of them"),
        ("patches", [], {"boxes": torch.zeros(3, 6, 4)}, "got boxes, pixel_values"),
    ],
)
def test_visual_inputs_of_the_wrong_kind_are_refused(source, drop, add, got):
    inputs = {name: value for name, value in {**batch(source), **add}.items() if name not in drop}
    with pytest.raises(RecipeError, match=got):
        build(source)(**inputs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vis_feats", (3, 6, 8)),
        ("vis_feats", (2, 6, 7)),
        ("boxes", (3, 6, 5)),
        ("boxes", (3, 5, 4)),
        ("attention_mask", (3, 4)),
        ("vis_attention_mask", (3, 7)),
    ],
)
def test_inputs_of_wrong_sizes_are_refused(name, shape):
    with pytest.raises(ShapeError):
        build()(**{**batch(), name: torch.zeros(shape)})


def test_more_regions_than_the_vocabulary_has_rows_are_refused():
    with pytest.raises(ShapeError, match="only 60"):
        build()(**batch(n_visual=61))
    build(use_vis_order_embedding=False)(**batch(n_visual=61))


def test_an_image_of_another_size_is_refused():
    inputs = {**batch("patches"), "pixel_values": torch.zeros(3, 3, 16, 12)}
    with pytest.raises(ShapeError, match=r"\(3, 3, 16, 12\)"):
        build("patches")(**inputs)


@pytest.mark.parametrize(("shape", "grid"), [((2, 8, 5), (3, 3)), ((2, 9, 5), None), ((2, 9), (3, 3))])
def test_vision_states_that_are_no_grid_are_refused(shape, grid):
    with pytest.raises(ShapeError, match="last states"):
        patch_states(torch.zeros(shape), grid)


def test_a_configuration_without_a_bare_model_is_refused():
    bodiless = EncoderDecoderConfig.from_encoder_decoder_configs(T5Config(), T5Config())
    with pytest.raises(RecipeError, match="bare model"):
        build_vision_model(bodiless)


def test_a_decoder_with_nothing_to_read_is_refused():
    inputs = batch()
    del inputs["labels"]
    with pytest.raises(RecipeError, match="labels or decoder_input_ids"):
        build()(**inputs)
