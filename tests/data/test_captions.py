import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from amad.data.captions import CaptionDataset, CaptionExample, read_coco_captions
from amad.data.collate import Seq2SeqCollator
from amad.data.images import new_image_transform
from amad.data.tokens import train_tokenizer
from amad.errors import DataError


def example(image_id=1, captions=("One.", "Two."), image=None):
    return CaptionExample(image, image_id, captions, "train", f"{image_id}.jpg")


def test_an_item_has_what_the_collator_reads(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    item = CaptionDataset([example(image=tmp_path / "a.png")], training=True)[1]
    assert {key: value for key, value in item.items() if key != "image"} == {
        "text": "caption:",
        "target": "Two.",
        "weight": 1.0,
        "index": 1,
    }
    assert (item["image"].shape, item["image"].dtype) == ((6, 4, 3), np.uint8)
    assert "image" not in CaptionDataset([example()], training=True)[0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_there_is_an_item_per_caption_to_train_and_per_image_to_evaluate(counts):
    examples = [example(i, tuple(f"{i} {j}" for j in range(count))) for i, count in enumerate(counts)]
    said = [(i, f"{i} {j}") for i, count in enumerate(counts) for j in range(count)]
    if said:
        dataset = CaptionDataset(examples, training=True)
        items = [(dataset.example(i).image_id, dataset[i]["target"]) for i in range(len(dataset))]
        assert items == said
    else:
        with pytest.raises(DataError, match="at least one caption"):
            CaptionDataset(examples, training=True)
    dataset = CaptionDataset(examples, training=False)
    assert [dataset.example(i) for i in range(len(dataset))] == examples
    assert [dataset[i]["weight"] for i in range(len(dataset))] == [float(count > 0) for count in counts]
    assert [dataset[i]["target"] for i in range(len(dataset))] == [
        f"{i} 0" if count else "" for i, count in enumerate(counts)
    ]


@pytest.mark.parametrize("index", [-1, 2])
def test_there_are_no_items_beyond_the_last(index):
    with pytest.raises(IndexError):
        CaptionDataset([example()], training=True)[index]


def test_a_set_without_images_is_refused():
    with pytest.raises(DataError, match="at least one image"):
        CaptionDataset([], training=False)


def test_texts_have_every_caption():
    dataset = CaptionDataset([example(), example(2, ("Three.",))], training=False, prompt="describe:")
    assert dataset.texts() == ["describe:", "One.", "Two.", "Three."]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_real_captions_and_images_become_batches_in_order(shared_data, n_workers):
    examples = list(read_coco_captions(shared_data / "coco/captions.json", shared_data / "coco/images"))[:6]
    transform = new_image_transform(32)
    dataset = CaptionDataset(examples, training=True, prepare=transform.resize)
    tokenizer = train_tokenizer(dataset.texts())
    collator = Seq2SeqCollator(tokenizer, transform, max_target_tokens=30)
    batches = list(DataLoader(dataset, batch_size=10, num_workers=n_workers, collate_fn=collator))
    assert [len(batch["labels"]) for batch in batches] == [10, 10, 10]
    ids = batches[1]["labels"][3]
    told = tokenizer.decode(ids[ids >= 0], skip_special_tokens=True)
    assert told.split()[:3] == examples[2].captions[3].lower().split()[:3]
    assert batches[1]["pixel_values"].shape == (10, 3, 32, 32)
    assert batches[1]["pixel_values"][0].equal(batches[1]["pixel_values"][4])
    assert not batches[1]["pixel_values"][0].equal(batches[1]["pixel_values"][5])


def test_the_items_of_six_hundred_thousand_captions_take_less_than_a_megabyte_beside_the_texts():
    texts = tuple(f"caption {i} of a picture" for i in range(5))
    dataset = CaptionDataset([example(i, texts) for i in range(120_000)], training=True)
    assert len(dataset) == 600_000
    assert dataset._first.nbytes < 1_000_000
    assert dataset.example(599_999).image_id == 119_999
