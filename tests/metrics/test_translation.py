import gzip
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from amad.errors import DataError
from amad.metrics.translation import read_sentences, score_translation_files, score_translations

HYPOTHESES = [
    "identity",
    "lower",
    "drop_every_7th",
    "swap_pairs",
    "first_half",
    "shift_by_one",
    "copy_source",
    "tokenised_lc",
]
SETTINGS = {
    "default": {},
    "lowercase": {"lowercase": True},
    "tok_none": {"tokenize": "none"},
    "tok_intl": {"tokenize": "intl"},
    "char": {"tokenize": "char"},
}
SENTENCE = st.text("abcd .,é\u2028", min_size=1, max_size=30)


def swap_pairs(words):
    for i in range(0, len(words) - 1, 4):
        words[i], words[i + 1] = words[i + 1], words[i]
    return words


def tokenised(lines, language):
    """Lower case, punctuation normalised, tokens apart: Multi30K's *.lc.norm.tok files, by Moses' scripts.

    Their script saw each line with its line feed, which moves a period at the end out of the quotation marks; and of
    its time is the rule that makes a quotation mark of an apostrophe that does not stand between two of a to z.
    """
    normalise = MosesPunctNormalizer(lang=language).normalize
    tokenize = MosesTokenizer(lang=language).tokenize
    straight = [re.sub("(?<![a-z])’|’(?![a-z])", '"', line.lower()) for line in lines]
    return [tokenize(normalise(f"{line}\n"), return_str=True) for line in straight]


def spoil(rule, references, source, language):
    """Hypotheses made from the references by a rule."""
    words = [line.split() for line in references]
    return {
        "identity": lambda: references,
        "lower": lambda: [line.lower() for line in references],
        "drop_every_7th": lambda: [
            " ".join(word for i, word in enumerate(line) if (i + 1) % 7) for line in words
        ],
        "swap_pairs": lambda: [" ".join(swap_pairs(line)) for line in words],
        "first_half": lambda: [" ".join(line[: max(1, len(line) // 2)]) for line in words],
        "shift_by_one": lambda: references[1:] + references[:1],
        "copy_source": lambda: source,
        "tokenised_lc": lambda: tokenised(references, language),
    }[rule]()


CASES = [
    pytest.param(language, rule, marks=() if (language, rule) == ("de", "swap_pairs") else pytest.mark.slow)
    for language in ("de", "fr", "cs")
    for rule in HYPOTHESES
]


@pytest.mark.parametrize(("language", "rule"), CASES)
def test_equals_every_figure_of_sacrebleu_on_multi30k(shared_data, language, rule):
    expected = json.loads((shared_data / "metric_reference/bleu.json").read_text())[f"val/{language}/{rule}"]
    folder = shared_data / "multi30k_text/raw"
    references = read_sentences(folder / f"val.{language}.gz")
    hypotheses = spoil(rule, references, read_sentences(folder / "val.en.gz"), language)
    for name, setting in SETTINGS.items():
        scores = score_translations([references], hypotheses, **setting)
        figures = expected[name]
        assert scores.bleu == pytest.approx(figures["score"], abs=1e-6), name
        assert list(scores.counts) == figures["counts"]
        assert list(scores.totals) == figures["totals"]
        assert scores.brevity_penalty == pytest.approx(figures["bp"], abs=1e-9)
        assert (scores.hypothesis_length, scores.reference_length) == (figures["sys_len"], figures["ref_len"])
        assert scores.signatures["BLEU"].rpartition("|")[0] == figures["signature"].rpartition("|")[0]
    assert score_translations([references], hypotheses).chrf == pytest.approx(expected["chrf"], abs=1e-6)


def test_equals_the_documented_example_with_several_references(shared_data):
    example = json.loads((shared_data / "metric_reference/bleu.json").read_text())["doc_example"]
    scores = score_translations(example["refs"], example["sys"])
    assert scores.bleu == pytest.approx(48.530827009929865, abs=1e-9)
    assert scores.signatures["BLEU"].startswith(f"nrefs:{len(example['refs'])}|")


@given(sentences=st.lists(SENTENCE.filter(str.strip), min_size=1, max_size=6), lowercase=st.booleans())
def test_whoever_repeats_the_references_gets_everything(sentences, lowercase):
    scores = score_translations([sentences], sentences, lowercase=lowercase, tokenize="char")
    assert scores.counts == scores.totals
    assert scores.brevity_penalty == 1
    assert scores.chrf == pytest.approx(100)
    if scores.totals[3]:
        assert scores.bleu == pytest.approx(100)


@given(
    pairs=st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=6), data=st.data(), lower=st.booleans()
)
def test_the_order_of_the_corpus_does_not_matter(pairs, data, lower):
    shuffled = data.draw(st.permutations(pairs))
    one, other = (
        score_translations([[written for written, _ in rows]], [said for _, said in rows], lowercase=lower)
        for rows in (pairs, shuffled)
    )
    assert one == other


def test_case_counts_unless_it_is_not_to():
    assert score_translations([["A Dog runs fast ."]], ["a dog runs fast ."]).bleu < 60
    scores = score_translations([["A Dog runs fast ."]], ["a dog runs fast ."], lowercase=True)
    assert scores.bleu == pytest.approx(100)
    assert scores.chrf == pytest.approx(100)
    assert "case:lc" in scores.signatures["BLEU"]
    assert "case:lc" in scores.signatures["chrF"]


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "one\u2028still one\x85\x0b\x0cone\r\n\ntwo \rtwo"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(f"{text}\n".encode()))
    expected = ["one\u2028still one\x85\x0b\x0cone", "", "two \rtwo"]
    assert read_sentences(tmp_path / "a.txt") == expected
    assert read_sentences(tmp_path / "a.txt.gz") == expected


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return [folder / f"{name}.txt" for name in files]


def test_a_line_may_be_empty_where_nothing_was_said(tmp_path):
    written, said = write(tmp_path, refs="a dog\na cat\n", hyps="\na cat\n")
    assert score_translation_files([written], said).hypothesis_length == 2


def test_different_numbers_of_lines_are_both_named(tmp_path):
    good, short, said = write(tmp_path, good="a\nb\nc\n", short="a\nb\n", hyps="a\nb\nc\n")
    with pytest.raises(DataError, match=r"short\.txt must have as many lines as .*hyps\.txt.* 2 against 3"):
        score_translation_files([good, short], said)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", None, r"a\.txt: no such file"),
        ("a.txt", b"ok\nno \xff\n", r"a\.txt, line 2: must be UTF-8 but has the byte 0xff"),
        ("a.gz", b"plain", r"a\.gz: not a whole gzip file"),
        ("a.gz", gzip.compress(b"a line\n" * 99)[:-9], r"a\.gz: not a whole gzip file"),
        ("a.txt", b"", r"a\.txt: has no line"),
    ],
)
def test_a_file_that_cannot_be_scored_is_named(tmp_path, name, raw, message):
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        score_translation_files([path], path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_sentences(tmp_path)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="must be one of 13a, intl, char, none but is 'bpe'"):
        score_translations([["a"]], ["a"], tokenize="bpe")
    with pytest.raises(DataError, match="there are none"):
        score_translations([], ["a"])
    with pytest.raises(DataError, match="no translations"):
        score_translations([[]], [])
    with pytest.raises(DataError, match="references 2 must have as many lines as the hypotheses"):
        score_translations([["a"], []], ["a"])


def test_a_missing_package_is_refused_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(DataError, match=r"needs sacrebleu. Run pip install 'amad\[metrics\]'"):
        score_translations([["a"]], ["a"])
