import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.data.blip_collate import BlipCollator, clean_caption, clean_question
from amad.data.images import new_image_transform
from amad.data.wordpiece import train_wordpiece
from amad.errors import DataError

TOKENIZER = train_wordpiece(["what color is the cat", "red blue", "a picture of"])
PAD, SEP = TOKENIZER.pad_token_id, TOKENIZER.sep_token_id
DEC, ENC = len(TOKENIZER) - 2, len(TOKENIZER) - 1


def ids(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


def test_a_question_begins_with_enc_and_an_answer_ends_with_sep():
    batch = BlipCollator(TOKENIZER, "questions")(
        [{"text": "What color?", "target": "red"}, {"text": "what", "target": "red blue", "weight": 0.4}]
    )
    assert batch["input_ids"].tolist() == [
        [ENC, *ids("what color ?"), SEP],
        [ENC, *ids("what"), SEP, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[*ids("red"), SEP, -100], [*ids("red blue"), SEP]]
    torch.testing.assert_close(batch["label_weights"], torch.tensor([1.0, 0.4]))
    assert "answer_counts" not in batch


def test_a_caption_goes_on_from_dec_and_the_prompt():
    collator = BlipCollator(TOKENIZER, "captions", max_target_tokens=3)
    batch = collator([{"text": "a picture of ", "target": "The RED, red cat."}])
    assert batch["input_ids"].tolist() == [[DEC, *ids("a picture of")]]
    assert batch["labels"].tolist() == [[*ids("the red"), SEP]]


def test_all_answers_of_a_question_are_rows_one_after_the_other():
    items = [
        {
            "text": "what",
            "targets": ("red", "red blue"),
            "weights": (0.7, 0.3),
            "image": np.zeros((4, 4, 3), np.uint8),
        },
        {
            "text": "is the cat red",
            "targets": ("",),
            "weights": (0.0,),
            "image": np.ones((4, 4, 3), np.uint8),
        },
    ]
    batch = BlipCollator(TOKENIZER, "questions", new_image_transform(4))(items)
    assert batch["labels"].tolist() == [[*ids("red"), SEP, -100], [*ids("red blue"), SEP], [SEP, -100, -100]]
    torch.testing.assert_close(batch["label_weights"], torch.tensor([0.7, 0.3, 0.0]))
    assert batch["answer_counts"].tolist() == [2, 1]
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 2
    with pytest.raises(DataError, match="'targets'"):
        BlipCollator(TOKENIZER, "questions")([{"text": "what"}, {"text": "what", "targets": ("red",)}])


def test_long_texts_keep_their_first_and_last_token():
    collator = BlipCollator(TOKENIZER, "questions", max_input_tokens=4, max_target_tokens=2)
    batch = collator([{"text": "what color is the cat", "target": "red blue"}])
    assert batch["input_ids"].tolist() == [[ENC, *ids("what color"), SEP]]
    assert batch["labels"].tolist() == [[*ids("red"), SEP]]
    wide = BlipCollator(TOKENIZER, "questions", max_input_tokens=9, max_target_tokens=5, pad_to_max=True)
    batch = wide([{"text": "what", "target": "red"}])
    assert batch["input_ids"].shape == (1, 9)
    assert batch["labels"].shape == (1, 5)


def test_it_survives_a_worker_process():
    again = pickle.loads(pickle.dumps(BlipCollator(TOKENIZER, "questions")))
    item = {"text": "what", "target": "red"}
    assert again([item])["labels"].tolist() == BlipCollator(TOKENIZER, "questions")([item])["labels"].tolist()


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ('A "Red" cat.  (Two)\n', "a red cat two"),
        ("don't stop,#now:~", "don't stop, now"),
        ("a*b;c!", "a b c"),
        (" x ", "x"),
        (" ".join(map(str, range(40))), " ".join(map(str, range(30)))),
    ],
)
def test_captions_are_cleaned(caption, cleaned):
    assert clean_caption(caption) == cleaned


@pytest.mark.parametrize(
    ("question", "cleaned"),
    [
        ("Is it #1 (really)? ", "is it 1 really?"),
        ("Mr. X's  hat!", "mr x's  hat"),
        ("w " * 60, " ".join("w" * 50)),
    ],
)
def test_questions_are_cleaned(question, cleaned):
    assert clean_question(question) == cleaned


@given(st.text(alphabet='ab .!"()*#:;~\n?,', max_size=40))
def test_cleaning_twice_is_cleaning_once(text):
    assert clean_caption(clean_caption(text)) == clean_caption(text)
    assert clean_question(clean_question(text)) == clean_question(text)
