"""The authors' checkpoints, against a plain NumPy computation of the published forward pass."""

import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM

from amad.errors import CheckpointError
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration
from amad.models.vlt5_checkpoint import convert_original, load_original_state_dict, published_config

HEADS, WIDTH, D_MODEL, D_FF, LAYERS, FEATURES, VOCAB = 3, 4, 10, 14, 2, 6, 40
BUCKETS, MAX_DISTANCE = 8, 20


def config(**changes):
    values = {
        "vocab_size": VOCAB,
        "d_model": D_MODEL,
        "d_kv": WIDTH,
        "d_ff": D_FF,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "feat_dim": FEATURES,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
    }
    return VLT5Config(**{**values, **changes})


def original_state(prefix="module.", individual=True):
    """A state dict with every name that the authors' code saves, drawn at random."""
    draw = np.random.default_rng(0).standard_normal
    inner = HEADS * WIDTH
    state = {"shared.weight": draw((VOCAB, D_MODEL))}
    for stack in ("encoder", "decoder"):
        for layer in range(LAYERS):
            block = f"{stack}.block.{layer}.layer"
            attentions = ["0.SelfAttention"] + (["1.EncDecAttention"] if stack == "decoder" else [])
            for attention in attentions:
                for name in "qkv":
                    state[f"{block}.{attention}.{name}.weight"] = 0.3 * draw((inner, D_MODEL))
                state[f"{block}.{attention}.o.weight"] = 0.3 * draw((D_MODEL, inner))
            last = len(attentions)
            state[f"{block}.{last}.DenseReluDense.wi.weight"] = 0.3 * draw((D_FF, D_MODEL))
            state[f"{block}.{last}.DenseReluDense.wo.weight"] = 0.3 * draw((D_MODEL, D_FF))
            for index in range(last + 1):
                state[f"{block}.{index}.layer_norm.weight"] = 1 + 0.1 * draw(D_MODEL)
        state[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = draw(
            (BUCKETS, HEADS)
        )
        state[f"{stack}.final_layer_norm.weight"] = 1 + 0.1 * draw(D_MODEL)
        state[f"{stack}.embed_tokens.weight"] = state["shared.weight"]
    visual = "encoder.visual_embedding"
    for name, width in (("feat_embedding", FEATURES), ("absolute_vis_pos_embedding", 5)):
        state[f"{visual}.{name}.0.weight"] = draw((D_MODEL, width))
        state[f"{visual}.{name}.0.bias"] = draw(D_MODEL)
        if individual:
            state[f"{visual}.{name}.1.weight"] = 1 + 0.1 * draw(D_MODEL)
    if not individual:
        state[f"{visual}.layer_norm.weight"] = 1 + 0.1 * draw(D_MODEL)
    state[f"{visual}.img_order_embedding.weight"] = draw((2, D_MODEL))
    state[f"{visual}.obj_order_embedding.weight"] = state["shared.weight"]
    state["lm_head.weight"] = state["shared.weight"]
    return {prefix + name: torch.from_numpy(value.copy()) for name, value in state.items()}


def rms_norm(x, weight):
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def bucket(distance, bidirectional):
    """Bucket of key position minus query position (Raffel et al. 2020, section 2.1, and its code)."""
    count, first = BUCKETS, 0
    if bidirectional:
        count //= 2
        first = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    exact = count // 2
    if distance < exact:
        return first + distance
    far = exact + int(math.log(distance / exact) / math.log(MAX_DISTANCE / exact) * (count - exact))
    return first + min(far, count - 1)


def position_bias(table, n_tokens, bidirectional):
    buckets = [[bucket(k - q, bidirectional) for k in range(n_tokens)] for q in range(n_tokens)]
    return table[np.array(buckets)].transpose(2, 0, 1)


def attention(weights, name, x, memory, bias, visible):
    """Softmax attention without scaling; x (query, model), memory (key, model), visible (query, key)."""

    def heads(states, kind):
        projected = states @ weights[f"{name}.{kind}.weight"].T
        return projected.reshape(len(states), HEADS, WIDTH).transpose(1, 0, 2)

    scores = heads(x, "q") @ heads(memory, "k").transpose(0, 2, 1) + bias
    scores = np.where(visible, scores, -np.inf)
    exponent = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = exponent / exponent.sum(-1, keepdims=True) @ heads(memory, "v")
    return mixed.transpose(1, 0, 2).reshape(len(x), -1) @ weights[f"{name}.o.weight"].T


def feed_forward(weights, name, x):
    hidden = np.maximum(
        rms_norm(x, weights[f"{name}.layer_norm.weight"]) @ weights[f"{name}.DenseReluDense.wi.weight"].T, 0
    )
    return x + hidden @ weights[f"{name}.DenseReluDense.wo.weight"].T


def visual_embedding(weights, features, boxes, image_ids, individual):
    name = "encoder.visual_embedding"
    x1, y1, x2, y2 = boxes.T
    numbers = np.stack([x1, y1, x2, y2, (y2 - x2) * (y1 - x1)], -1)
    total = 0
    for part, values in (("feat_embedding", features), ("absolute_vis_pos_embedding", numbers)):
        projected = values @ weights[f"{name}.{part}.0.weight"].T + weights[f"{name}.{part}.0.bias"]
        total = total + (rms_norm(projected, weights[f"{name}.{part}.1.weight"]) if individual else projected)
    total = total + weights[f"{name}.img_order_embedding.weight"][image_ids]
    total = total + weights["shared.weight"][[VOCAB - 1 - i for i in range(len(features))]]
    return total if individual else rms_norm(total, weights[f"{name}.layer_norm.weight"])


def plain_logits(weights, text, features, boxes, image_ids, visual_mask, target, individual=True):
    """Logits of one sample, written from the paper and the authors' description, in float64."""
    n_text, n_visual, n_target = len(text), len(features), len(target)
    visual = visual_embedding(weights, features, boxes, image_ids, individual)
    x = np.concatenate([weights["shared.weight"][text], visual])
    visible = np.concatenate([text != 0, visual_mask])[None]
    bias = np.zeros((HEADS, n_text + n_visual, n_text + n_visual))
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    bias[:, :n_text, :n_text] = position_bias(weights[f"encoder.{table}"], n_text, True)
    for layer in range(LAYERS):
        block = f"encoder.block.{layer}.layer"
        normed = rms_norm(x, weights[f"{block}.0.layer_norm.weight"])
        x = x + attention(weights, f"{block}.0.SelfAttention", normed, normed, bias, visible)
        x = feed_forward(weights, f"{block}.1", x)
    memory = rms_norm(x, weights["encoder.final_layer_norm.weight"])

    y = weights["shared.weight"][np.concatenate([[0], target[:-1]])]
    causal = np.tril(np.ones((n_target, n_target), dtype=bool))
    bias = position_bias(weights[f"decoder.{table}"], n_target, False)
    for layer in range(LAYERS):
        block = f"decoder.block.{layer}.layer"
        normed = rms_norm(y, weights[f"{block}.0.layer_norm.weight"])
        y = y + attention(weights, f"{block}.0.SelfAttention", normed, normed, bias, causal)
        normed = rms_norm(y, weights[f"{block}.1.layer_norm.weight"])
        y = y + attention(weights, f"{block}.1.EncDecAttention", normed, memory, 0.0, visible)
        y = feed_forward(weights, f"{block}.2", y)
    y = rms_norm(y, weights["decoder.final_layer_norm.weight"])
    return y * D_MODEL**-0.5 @ weights["shared.weight"].T


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("individual", [True, False])
def test_a_checkpoint_with_original_names_computes_the_published_forward_pass(prefix, individual):
    state = original_state(prefix, individual)
    model = load_original_state_dict(config(individual_vis_layer_norm=individual), state).double().eval()
    rng = np.random.default_rng(1)
    text = rng.integers(1, VOCAB, (2, 12))
    text[1, 7:] = 0
    target = rng.integers(1, VOCAB, (2, 11))
    features = rng.standard_normal((2, 5, FEATURES))
    boxes = rng.uniform(0, 1, (2, 5, 4))
    image_ids = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    visual_mask = np.array([[True] * 5, [True, True, True, False, True]])
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(text),
            vis_feats=torch.from_numpy(features),
            boxes=torch.from_numpy(boxes),
            img_order_ids=torch.from_numpy(image_ids),
            vis_attention_mask=torch.from_numpy(visual_mask),
            labels=torch.from_numpy(target),
        )
    weights = {name.removeprefix(prefix): value.numpy() for name, value in state.items()}
    total = 0.0
    for i in range(2):
        expected = plain_logits(
            weights, text[i], features[i], boxes[i], image_ids[i], visual_mask[i], target[i], individual
        )
        np.testing.assert_allclose(output.logits[i].numpy(), expected, rtol=2e-6, atol=2e-6)
        log_normaliser = np.log(np.exp(expected).sum(-1))
        total += (log_normaliser - expected[np.arange(11), target[i]]).sum()
    assert output.loss.item() == pytest.approx(total / 22, rel=1e-6)


@pytest.mark.parametrize(("size", "millions"), [("base", "224.54"), ("small", "61.60")])
def test_a_published_model_has_the_published_number_of_parameters(size, millions):
    with torch.device("meta"):
        model = VLT5ForConditionalGeneration(published_config(size))
    assert model.shared.num_embeddings == 32200
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == millions


def test_the_old_name_of_the_encoder_and_an_unread_weight_are_understood():
    state = {
        name.replace("encoder.", "vis_encoder.", 1) if name.startswith("encoder.") else name: value
        for name, value in original_state("").items()
    }
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(
        BUCKETS, HEADS
    )
    model = load_original_state_dict(config(), state)
    wanted = state["vis_encoder.block.1.layer.0.SelfAttention.q.weight"].float()
    assert torch.equal(model.encoder.block[1].layer[0].SelfAttention.q.weight, wanted)


def test_a_converted_safetensors_file_loads_with_plain_transformers(tmp_path):
    state = {name: value.float() for name, value in original_state().items()}
    save_file(state, tmp_path / "Epoch30.safetensors")
    folder = convert_original(tmp_path / "Epoch30.safetensors", tmp_path / "vlt5", config())
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(model) is VLT5ForConditionalGeneration
    assert torch.equal(model.lm_head.weight, state["module.shared.weight"])
    assert model.lm_head.weight is model.shared.weight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Epoch30.safetensors", "vlt5"]


def test_a_conversion_does_not_overwrite(tmp_path):
    (tmp_path / "kept.txt").write_text("here first")
    with pytest.raises(CheckpointError, match="exists"):
        convert_original(original_state(), tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    state = original_state()
    del state["module.encoder.final_layer_norm.weight"]
    with pytest.raises(CheckpointError):
        convert_original(state, tmp_path / "vlt5", config())
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_read_only_when_allowed(tmp_path):
    state = original_state()
    torch.save(state, tmp_path / "Epoch30.pth")
    with pytest.raises(CheckpointError, match=r"convert_original\(path, folder, allow_pickle=True\)"):
        load_original_state_dict(config(), tmp_path / "Epoch30.pth")
    model = load_original_state_dict(config(), tmp_path / "Epoch30.pth", allow_pickle=True)
    assert torch.equal(model.shared.weight, state["module.shared.weight"].float())


def test_a_pickle_that_would_run_code_is_refused_even_when_allowed(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (marker.write_text, ("code ran",))

    torch.save({"shared.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_original_state_dict(config(), tmp_path / "evil.pth", allow_pickle=True)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_truncated_file_is_refused_by_name(tmp_path, name):
    state = original_state()
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_original_state_dict(config(), path, allow_pickle=True)


def test_a_missing_file_and_a_nested_pickle_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        load_original_state_dict(config(), tmp_path / "nowhere.safetensors")
    torch.save({"model": original_state()}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match="not a state dict"):
        load_original_state_dict(config(), tmp_path / "nested.pth", allow_pickle=True)


def test_missing_and_unexpected_names_are_listed():
    state = original_state()
    del state["module.encoder.visual_embedding.feat_embedding.0.bias"]
    state["module.answer_head.logit_fc.0.weight"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        load_original_state_dict(config(), state)
    message = str(caught.value)
    assert "Missing (1): encoder.visual_embedding.feat_embedding.0.bias" in message
    assert "Unexpected (1): answer_head.logit_fc.0.weight" in message


def test_a_checkpoint_of_another_vocabulary_names_both_sizes_and_changes_nothing():
    model = VLT5ForConditionalGeneration(config(vocab_size=VOCAB - 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"shared\.weight \(40, 10\), not \(32, 10\)"):
        load_original_state_dict(model, original_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_untied_copy_of_the_shared_embedding_is_refused():
    state = original_state()
    state["module.lm_head.weight"] = state["module.lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from shared\.weight"):
        load_original_state_dict(config(), state)
