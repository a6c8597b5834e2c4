import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from amad.data.tokens import train_tokenizer
from amad.errors import DataError

TEXTS = ["vqa: What color is the Circle?", "three", "o'clock", "3.5", "vqa: what shape?"]
WORDS = st.sampled_from(["vqa", ":", "what", "color", "circle", "?", "o'clock", "3.5", "three"])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, n_extra_ids=3, n_visual_ids=4)


def test_special_tokens_have_the_ids_of_t5_and_of_vl_t5(tokenizer):
    size = len(tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert [tokenizer.convert_tokens_to_ids(f"<vis_extra_id_{i}>") for i in range(4)] == [
        size - 1 - i for i in range(4)
    ]
    assert [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(3)] == [
        size - 1 - 4 - i for i in range(3)
    ]


def test_the_most_frequent_words_come_first_and_ids_have_no_gap(tokenizer):
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert words[3:8] == [":", "?", "vqa", "what", "3.5"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@given(st.lists(WORDS, max_size=8))
def test_known_words_come_back_lower_case_joined_by_spaces(tokenizer, words):
    ids = tokenizer(" ".join(words).upper())["input_ids"]
    assert ids[-1] == 1
    assert len(ids) == len(words) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(words)


@given(st.text(max_size=40))
def test_any_text_becomes_known_ids_that_end_with_the_end_token(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == 1
    assert all(0 <= one < len(tokenizer) for one in ids)


def test_an_unknown_word_is_one_unknown_token_and_a_mark_is_split_off(tokenizer):
    assert tokenizer("zebra?")["input_ids"] == [2, tokenizer.convert_tokens_to_ids("?"), 1]


def test_a_special_token_in_a_text_is_read_as_itself(tokenizer):
    ids = tokenizer("what <extra_id_1> <vis_extra_id_0>")["input_ids"]
    assert ids[1:3] == [len(tokenizer) - 6, len(tokenizer) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "what"


def test_special_tokens_in_the_training_texts_are_no_words():
    vocabulary = train_tokenizer(["a <extra_id_0> b </s>"], 1, 0).get_vocab()
    assert set(vocabulary) == {"<pad>", "</s>", "<unk>", "a", "b", "<extra_id_0>"}


def test_a_cut_text_still_ends_with_the_end_token(tokenizer):
    assert tokenizer("what what what what", truncation=True, max_length=3)["input_ids"][2] == 1


def test_saved_and_loaded_it_does_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "VQA: what <extra_id_2> o'clock? zebra"
    assert loaded(text) == tokenizer(text)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == "vqa : what o'clock ?"
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 1, "right")


def test_the_order_of_the_texts_does_not_matter():
    assert train_tokenizer(TEXTS).get_vocab() == train_tokenizer(reversed(TEXTS)).get_vocab()


def test_rare_words_are_left_out_on_request():
    assert "three" not in train_tokenizer(TEXTS, 0, 0, min_count=2).get_vocab()
    assert len(train_tokenizer(TEXTS, 0, 0, max_words=2)) == 3 + 2


def test_no_word_at_all_is_refused():
    with pytest.raises(DataError, match="no word occurs 1 times"):
        train_tokenizer([" ", ""])
