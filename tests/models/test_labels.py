import pytest
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from amad.models.labels import has_encoder, predicts_next

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 9}


@pytest.mark.parametrize(
    ("model", "encoder", "shifted"),
    [
        (lambda: T5ForConditionalGeneration(T5Config(**T5)), True, False),
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=9)), False, True),
        (
            lambda: BlipForConditionalGeneration(
                BlipConfig(text_config={**SMALL, "encoder_hidden_size": 8}, vision_config=SMALL)
            ),
            False,
            True,
        ),
        (lambda: ViTForImageClassification(ViTConfig(**SMALL)), False, False),
    ],
    ids=["t5", "llama", "blip", "vit"],
)
def test_what_a_position_predicts_is_known_by_the_class(model, encoder, shifted):
    built = model()
    assert has_encoder(built) is encoder
    assert predicts_next(built) is shifted
