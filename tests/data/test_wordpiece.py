import random

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from amad.data.wordpiece import DECODE, ENCODE, add_blip_tokens, train_wordpiece
from amad.errors import CheckpointError, DataError

TEXTS = ["What color is the cat?", "the cat, the dog", "a picture of", "3.5", "Café"]


def test_words_come_by_frequency_and_blips_tokens_last():
    tokenizer = train_wordpiece(TEXTS)
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat")] == [
        *range(7)
    ]
    assert (vocabulary[DECODE], vocabulary[ENCODE]) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer.bos_token_id == vocabulary[DECODE]
    assert len(set(vocabulary.values())) == len(vocabulary) == len(tokenizer)


def test_the_same_texts_in_any_order_give_the_same_tokenizer():
    mixed = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_wordpiece(mixed).get_vocab() == train_wordpiece(TEXTS).get_vocab()


def test_texts_are_split_as_berts_tokenizer_splits_them(tmp_path):
    """The tokenizer of BERT with the same vocabulary is the independent reference."""
    tokenizer = train_wordpiece(TEXTS)
    rows = sorted(tokenizer.get_vocab().items(), key=lambda row: row[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in rows))
    bert = BertTokenizer(str(tmp_path / "vocab.txt"))
    for text in [*TEXTS, "THE  hat!", "cafe's 10", "zzz", "", "a photo of the cat"]:
        ids = tokenizer(text).input_ids
        assert ids == bert(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == bert.decode(ids, skip_special_tokens=True)


def test_another_word_of_known_letters_is_spelt_and_read_back():
    tokenizer = train_wordpiece(TEXTS)
    ids = tokenizer("the hat").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "h", "##a", "##t", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the hat"


def test_it_is_saved_and_loaded_whole(tmp_path):
    tokenizer = train_wordpiece(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.bos_token == DECODE
    assert ENCODE in again.all_special_tokens
    assert again("What is 3.5?").input_ids == tokenizer("What is 3.5?").input_ids
    assert len(add_blip_tokens(again)) == len(tokenizer)


def test_berts_tokenizer_gets_blips_tokens_behind_its_words(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    bert = add_blip_tokens(BertTokenizer(str(tmp_path / "vocab.txt")))
    assert bert.convert_tokens_to_ids([DECODE, ENCODE]) == [6, 7]
    assert (bert.bos_token_id, len(bert)) == (6, 8)


def test_texts_without_a_word_and_tokenizers_without_an_end_are_refused():
    with pytest.raises(DataError, match="have no word"):
        train_wordpiece(["", "  "])
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(CheckpointError, match=r"such as BERT's, and this .* has no sep_token"):
        add_blip_tokens(other)
