"""Tiny models of many families, with random weights large enough that no map is near uniform."""

import dataclasses

import pytest
import torch
import transformers as hf

from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

VOCAB = 64
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 2}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}


def words(n_tokens, seed=0):
    return torch.randint(10, 50, (2, n_tokens), generator=torch.Generator().manual_seed(seed))


def real(n_tokens, n_padding=3):
    """An attention mask whose first sample ends in padding."""
    mask = torch.ones(2, n_tokens, dtype=torch.long)
    mask[0, n_tokens - n_padding :] = 0
    return mask


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answers(n_tokens):
    """Labels whose second sample ends in -100."""
    labels = words(n_tokens, seed=3)
    labels[1, n_tokens - 2 :] = -100
    return labels


def text(n_tokens=11):
    return {"input_ids": words(n_tokens), "attention_mask": real(n_tokens)}


def pixels():
    return {"pixel_values": noise(2, 3, 32, 32)}


def blip():
    return hf.BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 32, "projection_dim": 16, "sep_token_id": 3},
        vision_config=VISION | {"projection_dim": 16},
        projection_dim=16,
        image_text_hidden_size=16,
    )


def boxes(n_tokens):
    corner = torch.randint(0, 30, (2, n_tokens, 2), generator=torch.Generator().manual_seed(3))
    return torch.cat([corner, corner + 20], -1)


def image_words(n_tokens, n_image, token):
    ids = words(n_tokens)
    ids[:, :n_image] = token
    return {"input_ids": ids, "attention_mask": real(n_tokens)}


ZOO = {
    "t5": lambda: (hf.T5ForConditionalGeneration, hf.T5Config(**T5), text() | {"labels": answers(7)}),
    "vlt5": lambda: (
        VLT5ForConditionalGeneration,
        VLT5Config(**T5, visual_source="patches", image_size=32, patch_size=8),
        text() | pixels() | {"labels": answers(7)},
    ),
    "bart": lambda: (
        hf.BartForConditionalGeneration,
        hf.BartConfig(**BART, max_position_embeddings=64, forced_eos_token_id=2),
        text() | {"labels": answers(7)},
    ),
    "whisper": lambda: (
        hf.WhisperForConditionalGeneration,
        hf.WhisperConfig(
            **BART,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=32,
            begin_suppress_tokens=None,
        ),
        {"input_features": noise(2, 8, 40), "labels": answers(7)},
    ),
    "bert": lambda: (hf.BertForMaskedLM, hf.BertConfig(**TEXT), text()),
    "bert_decoder": lambda: (
        hf.BertLMHeadModel,
        hf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True),
        text(9) | {"encoder_hidden_states": noise(2, 6, 32), "encoder_attention_mask": real(6, 2)},
    ),
    "gpt2": lambda: (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=1
        ),
        text(),
    ),
    "vit": lambda: (hf.ViTForImageClassification, hf.ViTConfig(**VISION), pixels()),
    "deit": lambda: (hf.DeiTForImageClassification, hf.DeiTConfig(**VISION), pixels()),
    "dinov2": lambda: (hf.Dinov2ForImageClassification, hf.Dinov2Config(**VISION, mlp_ratio=2), pixels()),
    "beit": lambda: (
        hf.BeitForImageClassification,
        hf.BeitConfig(**VISION, use_relative_position_bias=True),
        pixels(),
    ),
    "swin": lambda: (
        hf.SwinForImageClassification,
        hf.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
        pixels(),
    ),
    "blip_vqa": lambda: (hf.BlipForQuestionAnswering, blip(), text(9) | pixels() | {"labels": words(6, 3)}),
    "blip_caption": lambda: (hf.BlipForConditionalGeneration, blip(), text(9) | pixels()),
    "blip2_t5": lambda: (
        hf.Blip2ForConditionalGeneration,
        hf.Blip2Config(
            vision_config=VISION,
            qformer_config=TEXT | {"encoder_hidden_size": 32, "cross_attention_frequency": 2},
            text_config=T5 | {"model_type": "t5"},
            num_query_tokens=4,
            image_token_index=63,
        ),
        image_words(12, 4, 63) | pixels() | {"labels": answers(6)},
    ),
    "clip": lambda: (
        hf.CLIPModel,
        hf.CLIPConfig(
            text_config=TEXT | {"projection_dim": 16}, vision_config=VISION | {"projection_dim": 16}
        ),
        text(9) | pixels(),
    ),
    "siglip": lambda: (
        hf.SiglipModel,
        hf.SiglipConfig(text_config=TEXT, vision_config=VISION),
        text(9) | pixels(),
    ),
    "llama": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED), text()),
    "qwen2": lambda: (hf.Qwen2ForCausalLM, hf.Qwen2Config(**GROUPED), text()),
    "gemma2": lambda: (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config(
            **GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=5.0
        ),
        text(),
    ),
    "gemma3": lambda: (
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            sliding_window=4,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        text(),
    ),
    "gpt_oss": lambda: (
        hf.GptOssForCausalLM,
        hf.GptOssConfig(**GROUPED, head_dim=8, sliding_window=4, num_local_experts=2, num_experts_per_tok=1),
        text(),
    ),
    "llava": lambda: (
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig(
            vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
            text_config=GROUPED | {"model_type": "llama"},
            image_token_index=60,
            vision_feature_layer=-1,
        ),
        image_words(24, 16, 60) | pixels(),
    ),
    "vilt": lambda: (
        hf.ViltForQuestionAnswering,
        hf.ViltConfig(**TEXT, image_size=32, patch_size=8, max_image_length=-1, num_labels=3, qkv_bias=True),
        text(9) | pixels() | {"pixel_mask": torch.ones(2, 32, 32, dtype=torch.long)},
    ),
    "layoutlmv3": lambda: (
        hf.LayoutLMv3ForTokenClassification,
        hf.LayoutLMv3Config(
            **TEXT,
            coordinate_size=4,
            shape_size=8,
            input_size=32,
            patch_size=8,
            max_2d_position_embeddings=64,
            rel_pos_bins=8,
            rel_2d_pos_bins=8,
            max_rel_pos=16,
            max_rel_2d_pos=16,
        ),
        text() | pixels() | {"bbox": boxes(11)},
    ),
    "deberta_v2": lambda: (
        hf.DebertaV2ForSequenceClassification,
        hf.DebertaV2Config(
            **TEXT,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_buckets=8,
            share_att_key=True,
        ),
        text(),
    ),
    "falcon": lambda: (
        hf.FalconForCausalLM,
        hf.FalconConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            new_decoder_architecture=True,
            num_kv_heads=2,
            bias=False,
        ),
        text(),
    ),
}

# In transformers 5.23 these compute attention themselves, or refuse the fused kernel.
EAGER_ONLY = {"blip_vqa", "blip_caption", "gemma2", "gpt_oss", "vilt", "layoutlmv3", "deberta_v2"}


def build(name, implementation=None, *, train=False):
    """A model of the zoo and a padded batch for it; the same weights whatever the implementation."""
    cls, config, batch = ZOO[name]()
    _no_dropout(config)
    if implementation is None:
        implementation = "eager" if name in EAGER_ONLY else "sdpa"
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2 or "sinks" in key or "bias" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.train(train), batch


def _no_dropout(config):
    for key, value in list(vars(config).items()):
        if isinstance(value, hf.PreTrainedConfig):
            _no_dropout(value)
        elif "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)


def returned_map(output, n_heads):
    """The attention map among a module's outputs, if it returns one."""
    tensors = [output] if isinstance(output, torch.Tensor) else list(output)
    maps = [t for t in tensors if isinstance(t, torch.Tensor) and t.ndim == 4 and t.shape[1] == n_heads]
    return maps[-1] if maps else None


def eager_maps(model, sites, batch):
    """The map that each site itself computes, by hooks that know nothing of the recorder."""
    maps, handles = {}, []
    for site in sites:
        if isinstance(site.module, torch.nn.MultiheadAttention):

            def keep(module, args, kwargs, output, key=site.key):
                asked = kwargs | {"need_weights": True, "average_attn_weights": False}
                maps[key] = torch.nn.MultiheadAttention.forward(module, *args, **asked)[1]

        else:

            def keep(module, args, kwargs, output, site=site):
                maps[site.key] = returned_map(output, site.n_heads)

        handles.append(site.module.register_forward_hook(keep, with_kwargs=True))
    try:
        model(**batch, output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    return maps


@dataclasses.dataclass
class Zoo:
    """What tests take from here."""

    build = staticmethod(build)
    eager_maps = staticmethod(eager_maps)
    real = staticmethod(real)
    words = staticmethod(words)
    noise = staticmethod(noise)
    VISION = VISION
    TEXT = TEXT
    GROUPED = GROUPED


@pytest.fixture
def zoo():
    return Zoo()


# DeBERTa and Falcon return no plain map of the same scores; the back-end probs has tests of its own.
WITHOUT_MAPS = {"deberta_v2", "falcon"}


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", sorted(ZOO))
    if "mapped_family" in metafunc.fixturenames:
        metafunc.parametrize("mapped_family", sorted(ZOO.keys() - WITHOUT_MAPS))
