import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from amad.errors import RecipeError
from amad.evaluation.bench_inputs import random_inputs
from amad.evaluation.efficiency import answer, count_flops
from amad.models.blip import dispatch_attention
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
IMAGE = {"image_size": 16, "patch_size": 8}
WORDS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def blip(kind):
    text = SMALL | WORDS | {"encoder_hidden_size": 8, "sep_token_id": 2}
    return dispatch_attention(kind(BlipConfig(text_config=text, vision_config=SMALL | IMAGE)))


MODELS = {
    "vlt5 on regions": lambda: VLT5ForConditionalGeneration(VLT5Config(**T5, vocab_size=60, feat_dim=12)),
    "vlt5 on patches": lambda: VLT5ForConditionalGeneration(
        VLT5Config(**T5, **IMAGE, visual_source="patches", vocab_size=30)
    ),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, vocab_size=30)),
    "blip captions": lambda: blip(BlipForConditionalGeneration),
    "blip questions": lambda: blip(BlipForQuestionAnswering),
    "vit": lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=(16, 8), patch_size=8)),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=SMALL | WORDS, vision_config=SMALL | IMAGE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=30)),
}
READS = {
    "vlt5 on regions": {"vis_feats": (2, 36, 12), "boxes": (2, 36, 4)},
    "vlt5 on patches": {"pixel_values": (2, 3, 16, 16)},
    "t5": {},
    "blip captions": {"pixel_values": (2, 3, 16, 16)},
    "blip questions": {"pixel_values": (2, 3, 16, 16)},
    "vit": {"pixel_values": (2, 3, 16, 8)},
    "clip": {"pixel_values": (2, 3, 16, 16)},
    "llama": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_what_its_configuration_says(name):
    model = MODELS[name]().eval()
    inputs = random_inputs(model, 2, 5)
    words = {} if name == "vit" else {"input_ids": (2, 5), "attention_mask": (2, 5)}
    assert {key: tuple(one.shape) for key, one in inputs.items()} == READS[name] | words
    answer(model, inputs, 2)
    if words:
        assert 0 <= inputs["input_ids"].min() <= inputs["input_ids"].max() < 30 * (1 + ("regions" in name))


@pytest.mark.parametrize("name", ["vlt5 on patches", "blip captions", "vit", "llama"])
def test_attention_is_counted(name):
    model = MODELS[name]().eval()
    inputs = random_inputs(model, 1, 5)
    found = count_flops(model, inputs, 2)
    model.set_attn_implementation("eager")
    assert found == count_flops(model, inputs, 2) > 0


def test_the_seed_decides_and_the_dtype_is_the_models():
    model = MODELS["vit"]().to(torch.bfloat16)
    one, same, other = (random_inputs(model, 1, 5, seed)["pixel_values"] for seed in (0, 0, 1))
    assert one.dtype == torch.bfloat16
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_model_that_reads_neither_images_nor_words_is_refused():
    model = Wav2Vec2Model(
        Wav2Vec2Config(
            **SMALL,
            conv_dim=(8,),
            conv_stride=(5,),
            conv_kernel=(10,),
            num_conv_pos_embeddings=2,
            num_conv_pos_embedding_groups=2,
        )
    )
    with pytest.raises(RecipeError, match="Wav2Vec2Model tells neither"):
        random_inputs(model, 1, 5)
