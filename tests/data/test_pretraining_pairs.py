import pytest
from PIL import Image
from torch.utils.data import DataLoader

from amad.data.captions import CaptionDataset, CaptionExample
from amad.data.images import new_image_transform
from amad.data.pretraining_pairs import CaptionPairs, PairCollator
from amad.data.wordpiece import train_wordpiece
from amad.errors import DataError

SAID = [("A red bus.", "One bus!"), ("Two dogs",), ("A red car on a road", "A car")]


def pairs(folder, training=True, said=SAID):
    examples = []
    for i, captions in enumerate(said):
        Image.new("RGB", (4, 4), (i, i, i)).save(folder / f"{i}.png")
        examples.append(CaptionExample(folder / f"{i}.png", i, captions, None, f"{i}.png"))
    return CaptionPairs(CaptionDataset(examples, training))


def collator(**more):
    words = [caption for captions in SAID for caption in captions]
    return PairCollator(train_wordpiece(words), new_image_transform(4), **more)


def test_an_item_has_its_caption_twice_and_the_number_of_its_image(tmp_path):
    data = pairs(tmp_path)
    found = [data[index] for index in range(len(data))]
    assert [item["text"] for item in found] == [caption for captions in SAID for caption in captions]
    assert all(item["text"] == item["target"] for item in found)
    assert [item["image_number"] for item in found] == [0, 0, 1, 2, 2]
    assert all((item["image"] == item["image_number"]).all() for item in found)
    data = pairs(tmp_path, training=False)
    assert [data[index]["text"] for index in range(len(data))] == [captions[0] for captions in SAID]
    assert [data[index]["image_number"] for index in range(len(data))] == [0, 1, 2]


def test_a_batch_has_the_tokens_of_blip(tmp_path):
    data, make = pairs(tmp_path), collator(max_input_tokens=6, max_target_tokens=5)
    batch = make([data[index] for index in range(len(data))])
    words = make.tokenizer.convert_ids_to_tokens
    # The full stop is cleaned away, and what is too long is cut before the last token.
    assert words(batch["input_ids"][0]) == ["[CLS]", "a", "red", "bus", "[SEP]", "[PAD]"]
    assert words(batch["pair_input_ids"][3]) == ["[ENC]", "a", "red", "car", "on", "[SEP]"]
    assert words(batch["labels"][3]) == ["a", "red", "car", "on", "[SEP]"]
    assert batch["labels"][0].tolist()[3:] == [make.tokenizer.sep_token_id, -100]
    assert batch["attention_mask"].sum(1).tolist() == [5, 4, 4, 6, 4]
    assert batch["image_numbers"].tolist() == [0, 0, 1, 2, 2]
    assert batch["pair_input_ids"][:, 1:].equal(batch["input_ids"][:, 1:])
    assert batch["pixel_values"].shape == (5, 3, 4, 4)


def test_workers_number_images_as_one_process_does(tmp_path):
    loader = DataLoader(pairs(tmp_path), batch_size=2, num_workers=2, collate_fn=collator())
    assert [number for batch in loader for number in batch["image_numbers"].tolist()] == [0, 0, 1, 2, 2]


def test_what_cannot_be_contrasted_is_refused(tmp_path):
    with pytest.raises(DataError, match="contrasted with those of other images, and there is 1"):
        pairs(tmp_path, said=SAID[:1])
    with pytest.raises(DataError, match=r"image 1.png has no caption to make a pair with"):
        pairs(tmp_path, training=False, said=[SAID[0], ()])
