import gc
import gzip
import json
import os
import stat
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import DataError
from amad.metrics.captions import read_candidates, read_references, score_caption_files, score_captions
from amad.metrics.ptb import has_java

pytest.importorskip("pycocoevalcap.cider")
needs_java = pytest.mark.skipif(not has_java(), reason="needs `java` on the path")
CASES = [
    "language_evaluation_readme",
    "nlgeval_example",
    "nlgeval_individual_1",
    "nlgeval_individual_nonascii",
]
CASES += ["val2014_fakecap_subset"]
IN_PYTHON = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
CAPTION = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "red", "the"]), min_size=1, max_size=8).map(
    " ".join
)
CORPUS = st.lists(st.tuples(st.lists(CAPTION, min_size=1, max_size=3), CAPTION), min_size=2, max_size=6)


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_java()


def reference(shared_data, case, name):
    path = shared_data / "metric_reference/caption" / case / name
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def raw_case(shared_data, case):
    candidates = {str(row["image_id"]): row["caption"] for row in reference(shared_data, case, "cands.json")}
    return reference(shared_data, case, "refs.json.gz"), candidates


def tokenized_case(shared_data, case):
    tokenized = reference(shared_data, case, "tokenized.json.gz")
    return tokenized["refs"], {image: one for image, [one] in tokenized["cands"].items()}


def assert_equal_to_reference(scores, shared_data, case, names, tolerance):
    expected = reference(shared_data, case, "expected.json")
    for name in names:
        assert scores.corpus[name] == pytest.approx(expected["scores"][name], abs=tolerance), name
    single = reference(shared_data, case, "expected_per_image.json.gz")
    for place, image in enumerate(single["image_ids"]):
        for name in names:
            assert scores.per_image[str(image)][name] == pytest.approx(single[name][place], abs=tolerance)
    assert str(dict(scores.bleu_counts)) == expected["bleu_counts"][0]
    assert len(scores.per_image) == expected["n_images"]


@pytest.mark.parametrize("case", CASES)
def test_from_tokens_every_figure_is_that_of_the_reference_scorers(shared_data, case):
    scores = score_captions(*tokenized_case(shared_data, case), pretokenized=True, meteor=False)
    assert set(scores.corpus) == set(IN_PYTHON)
    assert_equal_to_reference(scores, shared_data, case, IN_PYTHON, 1e-9)
    assert scores.signature.startswith("tokenizer:none|")


@needs_java
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_from_raw_captions_every_figure_is_that_of_the_reference_scorers(shared_data, case):
    scores = score_captions(*raw_case(shared_data, case))
    assert list(scores.corpus) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
    assert_equal_to_reference(scores, shared_data, case, scores.corpus, 1e-6)
    assert scores.signature == "tokenizer:ptb|java:yes|pycocoevalcap:1.2"


@pytest.mark.parametrize("case", CASES)
def test_without_java_the_figures_are_the_same_and_the_signature_says_so(shared_data, case, no_java):
    scores = score_captions(*raw_case(shared_data, case))
    assert_equal_to_reference(scores, shared_data, case, IN_PYTHON, 1e-9)
    assert "METEOR" not in scores.corpus
    assert scores.signature == "tokenizer:amad-ptb|java:no|pycocoevalcap:1.2"
    assert scores.summary() == {
        **scores.corpus,
        "n_images": len(scores.per_image),
        "signature": scores.signature,
    }


def test_the_official_files_of_coco_are_scored_together(shared_data, tmp_path):
    """The published result file, on those of its images whose captions are here."""
    expected = reference(shared_data, "val2014_fakecap_subset", "expected.json")["scores"]
    images = {row["image_id"] for row in reference(shared_data, "val2014_fakecap_subset", "cands.json")}
    folder = shared_data / "metric_reference/caption"
    rows = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    raw = reference(shared_data, "val2014_fakecap_subset", "refs.json.gz")
    annotations = [
        {"image_id": int(image), "caption": one} for image, several in raw.items() for one in several
    ]
    references, results = write(
        tmp_path,
        {"images": [{"id": int(image)} for image in raw], "annotations": annotations},
        [row for row in rows if row["image_id"] in images],
    )
    scores = score_caption_files(references, results, meteor=False)
    for name in IN_PYTHON:
        assert scores.corpus[name] == pytest.approx(expected[name], abs=1e-4)


def test_two_images_by_hand():
    """CIDEr: every n-gram is in one image alone, so the two cosines are 1, over four orders: 10 for the first."""
    scores = score_captions(
        {1: ["a red dog runs"], 2: ["two cats sleep here"]},
        {1: "A red dog runs.", 2: "people ride big horses"},
        meteor=False,
    )
    assert scores.per_image[1] == pytest.approx({**dict.fromkeys(IN_PYTHON, 1), "CIDEr": 10}, abs=1e-6)
    assert scores.per_image[2]["CIDEr"] == scores.per_image[2]["ROUGE_L"] == 0
    assert scores.corpus["CIDEr"] == pytest.approx(5)
    assert scores.corpus["Bleu_1"] == pytest.approx(0.5, abs=1e-6)
    assert scores.bleu_counts == {"testlen": 8, "reflen": 8, "guess": [8, 6, 4, 2], "correct": [4, 3, 2, 1]}


@given(corpus=CORPUS, data=st.data())
def test_the_order_of_images_and_of_references_does_not_matter(corpus, data):
    order = data.draw(st.permutations(range(len(corpus))))
    one = score_captions(
        {i: written for i, (written, _) in enumerate(corpus)},
        {i: said for i, (_, said) in enumerate(corpus)},
        pretokenized=True,
        meteor=False,
    )
    other = score_captions(
        {i: corpus[i][0][::-1] for i in order},
        {i: corpus[i][1] for i in reversed(order)},
        pretokenized=True,
        meteor=False,
    )
    assert other.corpus == pytest.approx(one.corpus, abs=1e-12)
    assert list(other.per_image) == list(order)
    for image, single in one.per_image.items():
        assert other.per_image[image] == pytest.approx(single, abs=1e-12)


@given(corpus=CORPUS)
def test_who_repeats_a_reference_gets_full_bleu_and_rouge(corpus):
    scores = score_captions(
        {i: written for i, (written, _) in enumerate(corpus)},
        {i: written[0] for i, (written, _) in enumerate(corpus)},
        pretokenized=True,
        meteor=False,
    )
    assert scores.corpus["ROUGE_L"] == pytest.approx(1)
    assert scores.corpus["Bleu_1"] == pytest.approx(1, abs=1e-6)
    assert scores.bleu_counts["guess"] == scores.bleu_counts["correct"]
    assert all(0 <= single["CIDEr"] <= 10 + 1e-9 for single in scores.per_image.values())


def test_an_empty_caption_scores_nothing():
    scores = score_captions({1: ["a dog"], 2: ["a cat"]}, {1: "", 2: "..."}, meteor=False)
    assert scores.corpus == pytest.approx(dict.fromkeys(IN_PYTHON, 0), abs=1e-6)


def write(folder, references, results):
    (folder / "refs.json").write_text(json.dumps(references))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "refs.json", folder / "results.json"


def coco(*pairs, images=None):
    document = {"annotations": [{"image_id": image, "caption": one} for image, one in pairs]}
    return document if images is None else document | {"images": [{"id": image} for image in images]}


def said(*pairs):
    return [{"image_id": image, "caption": one} for image, one in pairs]


def test_files_are_read_in_the_order_of_the_images(tmp_path):
    references, results = write(
        tmp_path, coco((2, "x"), ("b", "y"), (2, "z"), images=["b", 2]), said((2, "a"), ("b", ""))
    )
    assert read_references(references) == {"b": ["y"], 2: ["x", "z"]}
    assert list(read_references(references)) == ["b", 2]
    assert read_candidates(results) == {2: "a", "b": ""}
    assert list(score_caption_files(references, results, meteor=False).per_image) == ["b", 2]


@pytest.mark.parametrize(
    ("references", "results", "message"),
    [
        (
            coco((1, "a")),
            said((1, "a"), (2, "b")),
            r"results\.json: image 2 is not in .*refs\.json \(1 such\)",
        ),
        (coco((1, "a"), (2, "b")), said((1, "a")), r"results\.json: has no caption of image 2 \(1 such\)"),
        (coco((1, "a")), said((1, "a"), (1, "b")), r"results\.json: every image_id must be unique but 1"),
        (coco((1, "a")), said((1, None)), r"results\.json, image 1: 'caption' must be a string but is null"),
        (coco((1, "a")), said(("1", "a")), r"results\.json: image 1 is not in"),
        (coco((1, "a")), {"1": "a"}, r"results\.json: must hold a list"),
        (coco((1, ["a"])), said((1, "a")), r"refs\.json, annotations item 0: 'caption' must be a string"),
        (coco((1, "a"), images=[1, 2]), said((1, "a")), r"refs\.json: every image needs a caption .* but 2"),
        (
            coco((1, "a"), images=[2]),
            said((1, "a")),
            r"annotations item 0: its image 1 is not among 'images'",
        ),
        (coco((1, "a"), images=[1, 1]), said((1, "a")), r"refs\.json: every id must be unique but 1"),
        (coco(), said(), r"refs\.json: has no caption"),
        ({"images": []}, said(), r"refs\.json: must be a JSON object with a list 'annotations'"),
        (coco((1, " .")), said((1, "a")), "none has one when punctuation is dropped"),
        (coco((1, "a \ud800")), said((1, "a")), "half a surrogate pair"),
    ],
)
def test_files_that_cannot_be_scored_are_refused(tmp_path, references, results, message):
    with pytest.raises(DataError, match=message):
        score_caption_files(*write(tmp_path, references, results), meteor=False)


def test_captions_that_cannot_be_scored_are_refused():
    for references, candidates, message in [
        ({}, {}, "no captions to score"),
        ({1: ["a"]}, {}, "image 1 has references but no caption"),
        ({}, {1: "a"}, "image 1 has a caption but no reference"),
        ({1: []}, {1: "a"}, "needs a list of references but has"),
        ({1: "a dog"}, {1: "a"}, "needs a list of references but has 'a dog'"),
        ({1: ["a dog"]}, {1: 3}, "must be a string but is 3"),
    ]:
        with pytest.raises(DataError, match=message):
            score_captions(references, candidates)


def test_meteor_and_spice_are_refused_without_java(no_java):
    with pytest.raises(DataError, match=r"METEOR cannot be computed without Java.* Run apt-get install"):
        score_captions({1: ["a"]}, {1: "a"}, meteor=True)
    with pytest.raises(DataError, match="METEOR and SPICE cannot"):
        score_captions({1: ["a"]}, {1: "a"}, meteor=True, spice=True)


@needs_java
def test_spice_is_refused_without_its_models():
    package = pytest.importorskip("pycocoevalcap.spice.spice").__file__
    if any(
        "stanford-corenlp-3.6.0" in name for name in os.listdir(os.path.join(os.path.dirname(package), "lib"))
    ):
        pytest.skip("the models are there")
    with pytest.raises(
        DataError, match=r"SPICE needs the models of Stanford CoreNLP 3\.6\.0.*get_stanford_models"
    ):
        score_captions({1: ["a"]}, {1: "a"}, spice=True)


@pytest.mark.timeout(60)
def test_a_java_that_fails_in_meteor_is_one_error(tmp_path, monkeypatch):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    start = time.monotonic()
    with pytest.raises(DataError, match="METEOR runs in Java, which failed"):
        score_captions({1: ["a"]}, {1: "a"}, pretokenized=True)
    gc.collect()
    assert time.monotonic() - start < 20, "the scorer's destructor waits for a lock that nobody gives back"


def test_a_missing_package_is_refused_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(DataError, match=r"needs pycocoevalcap. Run pip install 'amad\[metrics\]'"):
        score_captions({1: ["a"]}, {1: "a"})
