import time

import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

from amad.errors import RecipeError
from amad.evaluation.efficiency import (
    Latency,
    answer,
    compare_latency,
    count_checkpoint_bytes,
    count_flops,
    count_parameters,
    inputs_of,
)

WORDS = torch.tensor([[3, 4, 5], [6, 7, 8]])
BATCH = {"input_ids": WORDS, "labels": WORDS, "label_weights": torch.ones(2), "names": ["a", "b"]}


def t5(**changes):
    sizes = {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 20}
    return T5ForConditionalGeneration(T5Config(**{**sizes, "decoder_start_token_id": 0, **changes}))


def vit():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTModel(ViTConfig(**sizes, image_size=16))


def test_parameters_of_t5_by_hand():
    # One embedding, tied. Attention 4 * 8 * 8, feed-forward 2 * 8 * 16, each with a norm of 8; bias 32 * 2.
    embedding, attention, feed_forward, bias, last_norm = 20 * 8, 4 * 8 * 8 + 8, 2 * 8 * 16 + 8, 64, 8
    encoder = attention + feed_forward + bias + last_norm
    decoder = 2 * attention + feed_forward + bias + last_norm
    model = t5()
    assert count_parameters(model) == embedding + encoder + decoder
    assert count_checkpoint_bytes(model) == 4 * (embedding + encoder + decoder)
    assert count_checkpoint_bytes(model.to(torch.bfloat16)) == 2 * (embedding + encoder + decoder)


def test_memory_that_two_parameters_share_counts_once():
    module = torch.nn.Module()
    module.first = torch.nn.Parameter(torch.zeros(3, 4))
    module.second = torch.nn.Parameter(module.first.data)
    module.third = torch.nn.Parameter(torch.zeros(5))
    assert count_parameters(module) == 17


def test_a_model_without_memory_is_counted():
    with torch.device("meta"):
        model = torch.nn.Linear(3, 4)
    assert count_parameters(model) == 16


def test_bytes_are_those_of_the_file_without_its_header(tmp_path):
    model = BertModel(
        BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
    )
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    n_header = int.from_bytes(file.read_bytes()[:8], "little")
    assert count_checkpoint_bytes(model) == file.stat().st_size - 8 - n_header
    with safe_open(file, "pt") as stored:
        assert len(list(stored.keys())) == len(model.state_dict())


def test_operations_of_a_vision_transformer_by_hand():
    model = vit().eval()
    # A class token and 1 patch of 16 x 16 in 3 colours. Every multiplication with its addition is 2.
    n, width, inner = 2, 8, 8
    patches = 1 * (3 * 16 * 16) * width
    layer = 4 * n * width * width + 2 * n * n * width + 2 * n * width * inner
    pooler = width * width
    inputs = {"pixel_values": torch.zeros(1, 3, 16, 16)}
    assert count_flops(model, inputs, None) == 2 * (patches + layer + pooler)
    # Two samples are twice the work.
    assert count_flops(model, {"pixel_values": torch.zeros(2, 3, 16, 16)}, None) == 2 * count_flops(
        model, inputs, None
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_operations_of_generation_by_hand(attention):
    model = t5().eval()
    model.set_attn_implementation(attention)
    n, new, width, inner, forward, words = 3, 4, 8, 8, 16, 20
    encoder = 4 * n * width * inner + 2 * n * n * inner + 2 * n * width * forward
    # Keys and values of the encoder's states once; of the texts so far, one more for each token.
    cross = 2 * n * width * inner + new * (2 * width * inner + 2 * n * inner)
    own = sum(4 * width * inner + 2 * length * inner for length in range(1, new + 1))
    decoder = own + cross + new * (2 * width * forward + width * words)
    assert count_flops(model, {"input_ids": WORDS[:1]}, new) == 2 * (encoder + decoder)


def test_an_answer_leaves_its_inputs_and_reads_no_targets():
    inputs = inputs_of(BATCH, torch.device("cpu"))
    assert list(inputs) == ["input_ids"]
    model = vit().eval()
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    pixels = torch.zeros(1, 3, 16, 16)
    answer(model, {"pixel_values": pixels}, 3)
    assert seen[0]["pixel_values"] is pixels
    words = WORDS.clone()
    answer(t5().eval(), {"input_ids": words}, 2)
    assert torch.equal(words, WORDS)


def test_one_sample_is_answered_with_exactly_so_many_tokens_each_round():
    model = t5()
    calls = []
    generate = model.generate

    def note(**inputs):
        answer = generate(**inputs)
        calls.append(
            (tuple(inputs["input_ids"].shape), answer.shape[1] - 1, "labels" in inputs, model.training)
        )
        return answer

    model.generate = note
    model.train()
    latency = compare_latency({"student": model}, BATCH, repeats=3, warmup=2, new_tokens=5)
    assert calls == [((1, 3), 5, False, False)] * 5
    assert len(latency["student"].seconds) == 3
    assert model.training


def test_rounds_take_each_model_in_turn_and_start_with_the_next():
    models = {"a": vit(), "b": vit(), "c": vit()}
    order = []
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    compare_latency(models, {"pixel_values": torch.zeros(1, 3, 16, 16)}, repeats=3, warmup=0)
    assert "".join(order) == "abcbcacab"


def test_a_slower_model_is_found_slower():
    fast, slow = vit(), vit()
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    found = compare_latency(
        {"fast": fast, "slow": slow}, {"pixel_values": torch.zeros(1, 3, 16, 16)}, repeats=3
    )
    assert found["slow"].median_seconds > 0.05
    assert found["slow"].ratio_to(found["fast"]) > 1.2


def test_median_and_95th_percentile_by_hand():
    latency = Latency(tuple(float(number) for number in range(1, 22)))
    assert latency.median_seconds == 11
    assert latency.p95_seconds == 20


def test_a_ratio_is_the_median_of_ratios_within_rounds():
    # The second round was slow for both; the medians alone would say 2 / 2.
    assert Latency((2.0, 20.0, 2.0)).ratio_to(Latency((1.0, 10.0, 2.0))) == 2.0
    with pytest.raises(RecipeError, match="2 and 3"):
        Latency((1.0, 1.0)).ratio_to(Latency((1.0, 1.0, 1.0)))


def test_a_model_that_fails_gets_its_mode_back():
    model = t5().train()
    with pytest.raises(ValueError, match="model_kwargs"):
        compare_latency({"model": model}, {"nonsense": torch.zeros(1, 2)}, repeats=2)
    assert model.training


@pytest.mark.parametrize(
    ("models", "batch", "repeats"),
    [({}, BATCH, 2), ({"model": None}, BATCH, 1)],
)
def test_what_cannot_be_timed_is_refused(models, batch, repeats):
    with pytest.raises(RecipeError, match="need a model, 2 rounds"):
        compare_latency(models, batch, repeats=repeats)


def test_a_batch_of_targets_alone_is_refused():
    with pytest.raises(RecipeError, match="holds labels"):
        compare_latency({"model": t5()}, {"labels": WORDS}, repeats=2)
