import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from amad.data.collate import Seq2SeqCollator
from amad.data.images import new_image_transform
from amad.data.tokens import train_tokenizer
from amad.errors import DataError

WORDS = ["what", "color", "is", "the", "circle"]
TOKENIZER = train_tokenizer([" ".join(WORDS), "red blue"], 2, 2)
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=0, max_size=8).map(" ".join)


def item(text="what", target="red", **more):
    return {"text": text, "target": target, **more}


@given(st.lists(SENTENCES, min_size=1, max_size=5), st.integers(2, 6))
def test_padding_is_what_the_tokenizer_itself_does(texts, longest):
    batch = Seq2SeqCollator(TOKENIZER, max_input_tokens=longest)([item(text) for text in texts])
    expected = TOKENIZER(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_labels_are_padded_with_the_ignored_index_and_weights_are_carried():
    batch = Seq2SeqCollator(TOKENIZER)([item(target="red blue", weight=0.3), item(target="")])
    red, blue = TOKENIZER.convert_tokens_to_ids(["red", "blue"])
    assert batch["labels"].tolist() == [[red, blue, 1], [1, -100, -100]]
    torch.testing.assert_close(batch["label_weights"], torch.tensor([0.3, 1.0]))


def test_padding_to_the_limits_gives_every_batch_one_size_and_the_same_words():
    fixed = Seq2SeqCollator(TOKENIZER, max_input_tokens=7, max_target_tokens=4, pad_to_max=True)
    tight = Seq2SeqCollator(TOKENIZER, max_input_tokens=7, max_target_tokens=4)
    for items in ([item("what is", "red")], [item("what", "red blue"), item("the circle", "red")]):
        wide, narrow = fixed(items), tight(items)
        assert wide["input_ids"].shape == wide["attention_mask"].shape == (len(items), 7)
        assert wide["labels"].shape == (len(items), 4)
        for name in ("input_ids", "attention_mask", "labels"):
            n_tokens = narrow[name].shape[1]
            assert torch.equal(wide[name][:, :n_tokens], narrow[name])
        assert not wide["attention_mask"][:, narrow["input_ids"].shape[1] :].any()
        assert wide["labels"][:, narrow["labels"].shape[1] :].eq(-100).all()


def test_a_long_target_is_cut_before_its_end_token():
    batch = Seq2SeqCollator(TOKENIZER, max_target_tokens=2)([item(target="red red red")])
    assert batch["labels"].tolist() == [[TOKENIZER.convert_tokens_to_ids("red"), 1]]


def test_without_targets_there_are_no_labels_and_other_keys_stay_out():
    batch = Seq2SeqCollator(TOKENIZER)([{"text": "what", "index": 3, "question_id": 7}])
    assert set(batch) == {"input_ids", "attention_mask"}


def test_images_are_stacked():
    transform = new_image_transform(6)
    images = [np.full((6, 6, 3), value, np.uint8) for value in (0, 255)]
    batch = Seq2SeqCollator(TOKENIZER, transform)([item(image=image) for image in images])
    assert torch.equal(batch["pixel_values"], transform(images))


def test_regions_are_padded_and_masked():
    items = [
        item(vis_feats=np.ones((n, 5), np.float16), boxes=np.full((n, 4), n, np.float64)) for n in (2, 3)
    ]
    batch = Seq2SeqCollator(TOKENIZER)(items)
    assert batch["vis_feats"].shape == (2, 3, 5)
    assert batch["boxes"].shape == (2, 3, 4)
    assert batch["vis_feats"].dtype == batch["boxes"].dtype == torch.float32
    assert batch["vis_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["vis_feats"][0, 2].abs().sum() == 0
    assert batch["boxes"][0, :2].eq(2).all()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one item"),
        ([item(), {"text": "what"}], "1 of 2 items of a batch have 'target'"),
        ([item(image=np.zeros((4, 4, 3), np.uint8)), item()], "1 of 2 items of a batch have 'image'"),
        ([item(image=np.zeros((4, 4, 3), np.uint8))], "no image_transform"),
        ([item(vis_feats=np.ones((2, 5)), boxes=np.ones((1, 4)))], "2 region features and 1 boxes"),
        ([item(vis_feats=np.ones((2, 5)))], "2 region features and 0 boxes"),
    ],
)
def test_items_that_make_no_batch_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        Seq2SeqCollator(TOKENIZER)(items)


def test_a_tokenizer_without_padding_is_refused():
    tokenizer = pickle.loads(pickle.dumps(TOKENIZER))
    tokenizer.pad_token = None
    with pytest.raises(DataError, match="needs a padding token"):
        Seq2SeqCollator(tokenizer)


def test_it_works_in_a_loader_with_a_worker_and_survives_pickling():
    collate = pickle.loads(pickle.dumps(Seq2SeqCollator(TOKENIZER)))
    items = [item("what is"), item("the circle")]
    (batch,) = DataLoader(items, batch_size=2, collate_fn=collate, num_workers=1)
    assert torch.equal(batch["input_ids"], collate(items)["input_ids"])
