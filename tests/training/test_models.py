"""What goes with which model."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BlipConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from amad.data.images import new_blip_image_transform
from amad.data.tokens import train_tokenizer
from amad.errors import RecipeError
from amad.models.blip_seq2seq import BlipForQuestionAnswering
from amad.recipe import check_recipe
from amad.training.models import check_sight, new_collator

DATA = check_recipe({"task": "vqa", "output": "o", "data": {"root": "d", "train": {"questions": "q"}}}).data
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}


def small_t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=8, d_ff=8, num_heads=1, num_layers=1)
    )


def test_a_tokenizer_that_does_not_end_texts_is_refused():
    words = {"<pad>": 0, "</s>": 1, "a": 2, "red": 3}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    endless = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>")
    with pytest.raises(RecipeError, match="must end a text with its end token, '</s>', and does not"):
        new_collator(small_t5(), endless, None, DATA)
    collator = new_collator(small_t5(), train_tokenizer(["a red bus"]), None, DATA)
    labels = collator([{"text": "a", "target": "red"}])["labels"]
    assert labels[0, -1] == collator.tokenizer.eos_token_id


def test_a_blip_reads_images_of_its_own_size_only():
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    text = {**SIZES, "vocab_size": 20, "encoder_hidden_size": 8}
    model = BlipForQuestionAnswering(BlipConfig(vision_config=vision, text_config=text))
    check_sight(model, None, new_blip_image_transform(32))
    for size in (16, 64):
        with pytest.raises(
            RecipeError, match=f"reads images of 32 x 32 pixels, and they are made {size} x {size}"
        ):
            check_sight(model, None, new_blip_image_transform(size))
    check_sight(small_t5(), None, new_blip_image_transform(64))
