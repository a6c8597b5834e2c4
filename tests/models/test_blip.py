import copy
import itertools
import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from amad.errors import RecipeError
from amad.models.blip import dispatch_attention

VOCAB = 40
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    # One width for all: this number sizes the keys from images and, in the answer decoder, from questions.
    "encoder_hidden_size": 32,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "label_smoothing": 0.0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}


def build(model_class):
    config = BlipConfig(text_config=TEXT, vision_config=VISION, image_text_hidden_size=16)
    # In double precision equal means equal, and rounding needs no tolerance that could hide a mistake.
    model = model_class(config).eval().double()
    with torch.no_grad():
        # Maps far from uniform: with the default 0.02 any mistake in attention would hide.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def pair(model_class):
    model = build(model_class)
    return model, dispatch_attention(copy.deepcopy(model))


def batch_of(model):
    """Two samples, the second padded on the right."""
    generator = torch.Generator().manual_seed(1)
    keep = torch.ones(2, 7, dtype=torch.long)
    keep[1, 4:] = 0
    words = torch.randint(3, VOCAB, (2, 7), generator=generator) * keep
    batch = {
        "input_ids": words,
        "attention_mask": keep,
        "pixel_values": torch.randn(2, 3, 24, 24, generator=generator, dtype=torch.float64),
    }
    if isinstance(model, BlipForQuestionAnswering):
        answers = torch.randint(3, VOCAB, (2, 5), generator=generator)
        return {**batch, "decoder_input_ids": answers, "labels": answers}
    if isinstance(model, BlipForConditionalGeneration):
        return {**batch, "labels": words.masked_fill(keep == 0, -100)}
    return batch


def outputs(model, batch):
    found = model(**batch)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


MODELS = [BlipForQuestionAnswering, BlipForConditionalGeneration, BlipForImageTextRetrieval]
DECODERS = MODELS[:2]


@pytest.mark.parametrize("model_class", MODELS)
def test_every_output_stays_what_it_was(model_class):
    plain, fast = pair(model_class)
    batch = batch_of(plain)
    expected, found = outputs(plain, batch), outputs(fast, batch)
    assert expected.keys() == found.keys()
    assert len(expected) > 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("model_class", DECODERS)
def test_every_gradient_stays_what_it_was(model_class):
    plain, fast = pair(model_class)
    batch = batch_of(plain)
    plain.train()(**batch).loss.backward()
    fast.train()(**batch).loss.backward()
    largest = max(p.grad.abs().max() for p in plain.parameters() if p.grad is not None)
    assert largest > 0.01
    for (name, p), (_, q) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name)


@pytest.mark.parametrize("padded", [False, True])
def test_the_decoder_is_causal_whether_a_padding_mask_comes_or_not(padded):
    plain, fast = pair(BlipForConditionalGeneration)
    batch = batch_of(plain)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    before = fast(**batch).logits
    changed = batch["input_ids"].clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    after = fast(**{**batch, "input_ids": changed}).logits
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 0.1
    torch.testing.assert_close(before, plain(**batch).logits)


def test_a_question_is_read_in_both_directions():
    _, fast = pair(BlipForQuestionAnswering)
    batch = batch_of(fast)
    fast(**batch)
    fast.text_decoder(
        input_ids=batch["input_ids"], encoder_hidden_states=torch.randn(2, 7, 32, dtype=torch.float64)
    )
    states = fast.text_encoder(input_ids=batch["input_ids"]).last_hidden_state
    changed = batch["input_ids"].clone()
    changed[:, -1] = 5
    after = fast.text_encoder(input_ids=changed).last_hidden_state
    assert (after[:, 0] - states[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("model_class", DECODERS)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beam", "no cache"]
)
def test_generated_tokens_stay_what_they_were(model_class, options):
    plain, fast = pair(model_class)
    batch = batch_of(plain)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    # No token twice: a random model repeats one for ever, which would compare nothing.
    length = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 1}
    expected = plain.generate(**{k: v.clone() for k, v in inputs.items()}, **length, **options)
    found = fast.generate(**{k: v.clone() for k, v in inputs.items()}, **length, **options)
    assert torch.equal(found, expected)
    assert len(expected[0].unique()) > 5


def test_keys_of_the_encoder_are_cached_once():
    _, fast = pair(BlipForConditionalGeneration)
    states = torch.randn(1, 10, 32, dtype=torch.float64)
    first = fast.text_decoder(torch.tensor([[1, 3, 4]]), encoder_hidden_states=states, use_cache=True)
    second = fast.text_decoder(
        torch.tensor([[5]]),
        encoder_hidden_states=states,
        past_key_values=first.past_key_values,
        use_cache=True,
    )
    cache = second.past_key_values
    assert cache.self_attention_cache.layers[1].keys.shape[2] == 4
    assert cache.cross_attention_cache.layers[1].keys.shape[2] == 10
    whole = fast.text_decoder(torch.tensor([[1, 3, 4, 5]]), encoder_hidden_states=states)
    torch.testing.assert_close(second.logits[:, -1], whole.logits[:, -1])


@pytest.mark.parametrize("model_class", DECODERS)
def test_activation_checkpointing_changes_no_gradient(model_class):
    _, fast = pair(model_class)
    batch = batch_of(fast)
    gradients = []
    for checkpoints in (False, True):
        model = copy.deepcopy(fast).train()
        if checkpoints:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for without, with_checkpoints in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpoints, without)


def test_names_class_and_saved_files_stay_what_they_were(tmp_path):
    plain, fast = pair(BlipForQuestionAnswering)
    assert list(fast.state_dict()) == list(plain.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    fast.save_pretrained(tmp_path / "fast")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "fast" / name).read_text()) == json.loads(
            (tmp_path / "plain" / name).read_text()
        )
    again = BlipForQuestionAnswering.from_pretrained(tmp_path / "fast")
    assert again.config._attn_implementation == "eager"
    batch = batch_of(plain)
    assert torch.equal(again(**batch).loss, plain(**batch).loss)


def test_eager_attention_returns_the_maps_of_upstream():
    plain, fast = pair(BlipForQuestionAnswering)
    dispatch_attention(fast, "eager")
    batch = batch_of(plain)
    expected = plain(**batch, output_attentions=True)
    found = fast(**batch, output_attentions=True)
    assert len(found.attentions) == len(expected.attentions) == 2
    for mine, theirs in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(mine, theirs)
    words = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "output_attentions": True,
    }
    words["encoder_hidden_states"] = torch.randn(2, 10, 32, dtype=torch.float64)
    expected, found = plain.text_encoder(**words), fast.text_encoder(**words)
    for mine, theirs in itertools.chain(
        zip(found.attentions, expected.attentions, strict=True),
        zip(found.cross_attentions, expected.cross_attentions, strict=True),
    ):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


def test_no_map_is_kept_for_the_backward_pass():
    config = BlipConfig(
        text_config=TEXT, vision_config={**VISION, "image_size": 128, "attention_dropout": 0.0}
    )
    plain = BlipForConditionalGeneration(config).train()
    fast = dispatch_attention(copy.deepcopy(plain))
    pixels = torch.randn(1, 3, 128, 128)

    def saved_bytes(model):
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            states = model.vision_model(pixels).last_hidden_state
        states.sum().backward()
        return sum(kept.values())

    n_tokens, n_heads, n_layers = 257, 2, 2
    one_map_per_layer = 4 * n_tokens**2 * n_heads * n_layers
    assert saved_bytes(plain) - saved_bytes(fast) > 0.9 * one_map_per_layer


def test_padding_of_a_question_is_seen_by_the_answer_decoder_as_upstream():
    # Upstream's defect, kept on purpose: this fails on the day when it is mended there.
    _, fast = pair(BlipForQuestionAnswering)
    batch = batch_of(fast)
    before = fast(**batch).loss
    changed = batch["input_ids"].clone()
    changed[1, 5] = 7
    assert (fast(**{**batch, "input_ids": changed}).loss - before).abs() > 1e-4


def test_dispatching_twice_is_dispatching_once():
    _, fast = pair(BlipForConditionalGeneration)
    batch = batch_of(fast)
    before = fast(**batch).loss
    hooks = sum(len(module._forward_pre_hooks) for module in fast.modules())
    assert dispatch_attention(fast) is fast
    assert hooks == sum(len(module._forward_pre_hooks) for module in fast.modules()) == 1
    assert torch.equal(fast(**batch).loss, before)


def test_eager_that_was_asked_for_is_kept_by_a_second_dispatch():
    fast = dispatch_attention(build(BlipForConditionalGeneration), "eager")
    dispatch_attention(fast)
    assert fast.config.text_config._attn_implementation == "eager"


def test_a_model_without_blip_is_left_alone():
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    config._attn_implementation = "eager"
    model = BertModel(config)
    classes = [type(module) for module in model.modules()]
    assert dispatch_attention(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert model.config._attn_implementation == "eager"


def test_an_attention_that_is_not_known_is_refused():
    with pytest.raises(RecipeError, match=r"sdpa, eager.*'flash'"):
        dispatch_attention(build(BlipForConditionalGeneration), "flash")
