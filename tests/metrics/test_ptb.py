import gzip
import json
import random
import re
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import DataError
from amad.metrics.ptb import has_java, on_one_line, tokenize, tokenize_in_java

needs_java = pytest.mark.skipif(not has_java(), reason="needs `java` on the path")
CASES = [
    "language_evaluation_readme",
    "nlgeval_example",
    "nlgeval_individual_1",
    "nlgeval_individual_nonascii",
]
CASES += ["val2014_fakecap_subset"]


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog; can't won't gonna cannot.", "a man 's dog ca n't wo n't gon na can not"),
        ('He said "hi" (twice), `ok\' -- “yes” — no – so...', "he said hi -lrb- twice -rrb- ok yes no so"),
        ("state-of-the-art and/or 3.14 1,000 10:30am", "state-of-the-art and/or 3.14 1,000 10:30 am"),
        ("Mr. Smith of the U.S. at 7 p.m. etc.", "mr. smith of the u.s. at 7 p.m. etc."),
        ("No. 5, no.", "no. 5 no"),
        ("$5 50%off #1 a & b AT&T M&Ms M&amp;M", "$ 5 50 % off # 1 a & b at&t m&m s m&m"),
        ("'tis the '90s rock 'n' roll o'clock", "'t is the '90s rock 'n' roll o'clock"),
        ("shouldn't've the dogs' y", "should n't 've the dogs y"),
        ("really?! no!! wow ?? yes?", "really ?! no !! wow ?? yes"),
        ("a ** b ___ c :) Français café", "a ** b ___ c :-rrb- français café"),
        ("", ""),
        (" .,;: - ... ", ""),
    ],
)
def test_captions_by_hand(caption, tokens):
    assert " ".join(tokenize(caption)) == tokens


@pytest.mark.parametrize("case", CASES)
def test_every_reference_caption_becomes_the_same_tokens(shared_data, case):
    folder = shared_data / "metric_reference/caption" / case
    tokenized = json.loads(gzip.decompress((folder / "tokenized.json.gz").read_bytes()))
    raw = json.loads(gzip.decompress((folder / "refs.json.gz").read_bytes()))
    for image, captions in raw.items():
        assert [" ".join(tokenize(one)) for one in captions] == tokenized["refs"][image]
    for row in json.loads((folder / "cands.json").read_text()):
        assert [" ".join(tokenize(row["caption"]))] == tokenized["cands"][str(row["image_id"])]


@needs_java
def test_java_makes_the_same_tokens_of_real_captions_and_questions(shared_data):
    captions = json.loads(
        gzip.decompress((shared_data / "coco_captions/captions_val2014_random1000.json.gz").read_bytes())
    )
    texts = [row["caption"] for row in captions["annotations"]]
    questions = gzip.decompress((shared_data / "vqa_v2_subset60k/questions_valid.json.gz").read_bytes())
    texts += [row["question"] for row in json.loads(questions)["questions"]]
    texts = [on_one_line(one) for one in texts]
    ours = [" ".join(tokenize(one)) for one in texts]
    different = [
        (one, other) for one, other in zip(ours, tokenize_in_java(texts), strict=True) if one != other
    ]
    assert len(texts) > 13_000
    assert different == []


@needs_java
def test_java_is_given_captions_as_the_scorers_own_wrapper_gives_them(shared_data):
    wrapper = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    raw = (shared_data / "metric_reference/caption/val2014_fakecap_subset/refs.json.gz").read_bytes()
    captions = [one for several in json.loads(gzip.decompress(raw)).values() for one in several]
    captions += ["", "Le chat d'été – « très » 50 €", "日本 (x) [y] :-)", ""]
    theirs = wrapper.tokenize({i: [{"caption": one}] for i, one in enumerate(captions)})
    assert tokenize_in_java([on_one_line(one) for one in captions]) == [
        theirs[i][0] for i in range(len(captions))
    ]


@needs_java
def test_java_tears_no_caption_apart():
    captions = [f"a{mark}dog runs" for mark in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
    assert tokenize_in_java([on_one_line(one) for one in captions]) == ["a dog runs"] * len(captions)


def test_a_java_that_fails_is_one_error(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap.tokenizer")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no virtual machine here' >&2\nexit 1\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DataError, match=r"failed: no virtual machine here. Try `java -version`"):
        tokenize_in_java(["a dog"])
    java.write_text("#!/bin/sh\ncat > /dev/null\necho 'one line'\n")
    with pytest.raises(DataError, match="must give a line per caption but gave 1 for 2"):
        tokenize_in_java(["a dog", "a cat"])


@given(words=st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), max_size=8), data=st.data())
def test_words_survive_case_and_punctuation(words, data):
    plain = tokenize(" ".join(words))
    marks = random.Random(data.draw(st.integers(0, 9)))
    loud = " ".join(word.upper() + marks.choice(["", ",", ";", " -", " --", '"']) for word in words)
    assert tokenize(loud) == plain


@given(caption=st.text(max_size=60))
def test_any_text_becomes_tokens_without_space_in_them(caption):
    tokens = tokenize(caption)
    assert all(tokens)
    assert not any(re.search(r"[\n ]", one) for one in tokens if not one.startswith("<"))
