import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from amad.data.collate import Seq2SeqCollator
from amad.data.images import new_image_transform
from amad.data.tokens import train_tokenizer
from amad.data.translation import (
    TranslationDataset,
    TranslationExample,
    read_multi30k,
    translation_prompt,
)
from amad.errors import DataError


def test_an_item_has_what_the_collator_reads(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    dataset = TranslationDataset([TranslationExample("A {source}.", "Ein.", tmp_path / "a.png", 1, "a.png")])
    item = dataset[0]
    assert {key: value for key, value in item.items() if key != "image"} == {
        "text": "translate English to German: A {source}.",
        "target": "Ein.",
        "weight": 1.0,
        "index": 0,
    }
    assert (item["image"].shape, item["image"].dtype) == ((6, 4, 3), np.uint8)
    assert "image" not in TranslationDataset([TranslationExample("A.", "Ein.", None, 1)])[0]


def test_the_prompt_is_replaced_as_text_only():
    examples = [TranslationExample("A {source} {0}.", "Ein.", None, 1)]
    assert TranslationDataset(examples, prompt="{de} {source}")[0]["text"] == "{de} A {source} {0}."


@pytest.mark.parametrize(
    ("target", "prompt"),
    [
        ("de", "translate English to German: {source}"),
        ("fr", "translate English to French: {source}"),
        ("cs", "translate English to Czech: {source}"),
    ],
)
def test_the_prompt_names_both_languages(target, prompt):
    assert translation_prompt("en", target) == prompt


def test_a_language_that_is_not_in_multi30k_is_refused():
    with pytest.raises(DataError, match="must be one of cs, de, en, fr but is 'es'"):
        translation_prompt("en", "es")


def test_a_set_without_sentences_or_a_prompt_without_a_place_is_refused():
    with pytest.raises(DataError, match="at least one sentence"):
        TranslationDataset([])
    with pytest.raises(DataError, match=r"must contain \{source\}"):
        TranslationDataset([TranslationExample("A.", "Ein.", None, 1)], prompt="translate")


def test_real_sentences_and_images_become_batches_in_order(shared_data):
    folder = shared_data / "multi30k_flickr8k"
    examples = read_multi30k(
        folder / "dev.en", folder / "dev.fr", folder / "image_splits.dev.txt", folder / "images"
    )
    transform = new_image_transform(32)
    dataset = TranslationDataset(examples, translation_prompt("en", "fr"), prepare=transform.resize)
    tokenizer = train_tokenizer(dataset.texts())
    collator = Seq2SeqCollator(tokenizer, transform, max_input_tokens=40, max_target_tokens=40)
    batches = list(DataLoader(dataset, batch_size=53, collate_fn=collator))
    assert [len(batch["labels"]) for batch in batches] == [53] * 4
    assert batches[0]["pixel_values"].shape == (53, 3, 32, 32)
    assert batches[0]["label_weights"].tolist() == [1.0] * 53
    first = tokenizer.decode(batches[0]["input_ids"][0], skip_special_tokens=True)
    assert first.startswith("translate english to french : several people are taking a break")
