import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from amad.metrics.ptb import has_java


def files(questions, annotations, results):
    return ["score", "vqa", "--questions", questions, "--annotations", annotations, "--results", results]


def own(scenes, results):
    return files(scenes / "questions_val.json", scenes / "annotations_val.json", results)


@pytest.fixture
def half_right(scenes):
    """Results that answer every other question as all annotators did."""
    rows = json.loads((scenes / "annotations_val.json").read_text())["annotations"]
    rows = [
        {"question_id": row["question_id"], "answer": row["multiple_choice_answer"] if i % 2 else "nothing"}
        for i, row in enumerate(rows)
    ]
    Path("results.json").write_text(json.dumps(rows))
    return Path("results.json")


def test_half_of_the_answers_right_is_fifty_percent(amad, scenes, half_right):
    told = amad.document(*own(scenes, half_right))
    assert told["overall"] == 50.0
    assert set(told) == {"overall", "per_answer_type", "per_question_type"}
    assert "50.00" in amad.succeed(*own(scenes, half_right))


def test_plain_and_gzipped_files_score_alike(amad, scenes, half_right):
    packed = []
    for path in (scenes / "questions_val.json", scenes / "annotations_val.json", half_right):
        packed.append(Path(f"{path.name}.gz"))
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    assert amad.document(*files(*packed)) == amad.document(*own(scenes, half_right))


def test_a_published_result_file_gets_its_published_score(amad, shared_data):
    folder = shared_data / "metric_reference" / "vqa"
    expected = json.loads((folder / "expected.json").read_text())["valid"]["mca"]
    data = shared_data / "vqa_v2_subset60k"
    found = amad.document(
        *files(
            data / "questions_valid.json.gz",
            data / "annotations_valid.json.gz",
            folder / "valid" / "mca_results.json.gz",
        )
    )
    assert found["overall"] == expected["overall"]
    assert found["per_answer_type"] == expected["perAnswerType"]
    assert found["per_question_type"] == expected["perQuestionType"]


def test_a_question_without_an_answer_is_refused(amad, scenes, half_right):
    rows = json.loads(half_right.read_text())
    half_right.write_text(json.dumps(rows[1:]))
    message = amad.refuse(*own(scenes, half_right))
    assert str(rows[0]["question_id"]) in message


def test_a_missing_and_a_truncated_file_are_named(amad, scenes, half_right):
    assert "absent.json" in amad.refuse(*own(scenes, "absent.json"))
    half_right.write_bytes(half_right.read_bytes()[:-20])
    assert "results.json" in amad.refuse(*own(scenes, half_right))


KEYS = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "n_images", "signature"]
SAID = {1: "A man's dog, running.", 2: "two red cats"}
WRITTEN = {1: ["a man's dog is running", "a dog runs"], 2: ["Two red cats sleep."]}


def captions(*more):
    """The arguments that score two captions, written to the working folder."""
    rows = [{"image_id": image, "caption": one} for image, several in WRITTEN.items() for one in several]
    Path("refs.json").write_text(json.dumps({"images": [{"id": 1}, {"id": 2}], "annotations": rows}))
    rows = [{"image_id": image, "caption": one} for image, one in SAID.items()]
    Path("results.json").write_text(json.dumps(rows))
    return ["score", "captions", "--references", "refs.json", "--results", "results.json", *more]


@pytest.mark.skipif(not has_java(), reason="needs `java` on the path")
def test_captions_get_every_score_and_standard_output_nothing_else():
    """As the console script does it, so that what Java and the scorers write is seen."""
    program = "from amad.cli.app import main; main()"
    command = [sys.executable, "-c", program, *captions("--json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert list(found) == KEYS
    assert found["signature"].startswith("tokenizer:ptb|java:yes|")
    assert done.stderr == ""


def test_captions_without_java_say_so(amad, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = amad.call(*captions("--json"))
    found = json.loads(done.stdout)
    assert list(found) == [key for key in KEYS if key != "METEOR"]
    assert found["signature"].startswith("tokenizer:amad-ptb|java:no|")
    assert "METEOR is left out" in done.stderr
    assert "apt-get install" in done.stderr
    message = amad.refuse(*captions("--meteor"))
    assert "METEOR cannot be computed without Java" in message
    assert "apt-get install" in message
    table = amad.succeed(*captions("--no-meteor"))
    assert f"{found['CIDEr']:.4f}" in table
    assert found["signature"] in table


def test_captions_of_the_reference_set_get_its_scores(amad, shared_data):
    folder = shared_data / "metric_reference/caption/val2014_fakecap_subset"
    expected = json.loads((folder / "expected.json").read_text())["scores"]
    tokenized = json.loads(gzip.decompress((folder / "tokenized.json.gz").read_bytes()))
    rows = [
        {"image_id": int(i), "caption": one} for i, several in tokenized["refs"].items() for one in several
    ]
    Path("refs.json").write_text(json.dumps({"annotations": rows}))
    rows = [{"image_id": int(i), "caption": one} for i, [one] in tokenized["cands"].items()]
    Path("results.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    arguments = ["--references", "refs.json", "--results", "results.json.gz", "--pretokenized", "--no-meteor"]
    found = amad.document("score", "captions", *arguments)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    assert found["n_images"] == 148


def test_pretokenized_captions_are_scored_as_they_stand(amad):
    found = amad.document(*captions("--no-meteor", "--pretokenized"))
    assert found["Bleu_1"] < amad.document(*captions("--no-meteor"))["Bleu_1"]
    assert found["signature"].startswith("tokenizer:none|")


def test_captions_against_a_split_of_karpathys_file(amad):
    plain = amad.document(*captions("--no-meteor"))
    rows = [
        {
            "cocoid": image,
            "filename": f"{image}.jpg",
            "split": "test",
            "sentences": [{"raw": one} for one in said],
        }
        for image, said in WRITTEN.items()
    ]
    rows.append({"cocoid": 3, "filename": "3.jpg", "split": "val", "sentences": [{"raw": "a bird"}]})
    Path("refs.json").write_text(json.dumps({"images": rows}))
    arguments = ["--references", "refs.json", "--results", "results.json", "--no-meteor"]
    assert amad.document("score", "captions", *arguments, "--split", "test") == plain
    assert "refs.json" in amad.refuse("score", "captions", *arguments, "--split", "dev")
    assert "'annotations'" in amad.refuse("score", "captions", *arguments)


def test_captions_that_cannot_be_scored_are_one_error(amad):
    arguments = captions("--no-meteor")
    Path("results.json").write_text(json.dumps([{"image_id": 1, "caption": "a"}]))
    assert "has no caption of image 2" in amad.refuse(*arguments)
    Path("results.json").write_text("[{")
    assert "results.json: not valid JSON" in amad.refuse(*arguments)


def translation(references, hypotheses, *more):
    Path("hyps.txt").write_text(hypotheses)
    named = []
    for number, text in enumerate(references):
        Path(f"refs{number}.txt").write_text(text)
        named += ["--references", f"refs{number}.txt"]
    return ["score", "translation", *named, "--hypotheses", "hyps.txt", *more]


def test_translations_get_the_documented_score(amad, shared_data):
    example = json.loads((shared_data / "metric_reference/bleu.json").read_text())["doc_example"]
    references = ["".join(f"{line}\n" for line in one) for one in example["refs"]]
    arguments = translation(references, "".join(f"{line}\n" for line in example["sys"]))
    found = amad.document(*arguments)
    assert found["BLEU"] == pytest.approx(48.530827009929865, abs=1e-9)
    assert list(found) == ["BLEU", "chrF", "signature"]
    assert found["signature"]["BLEU"].startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert amad.document(*arguments, "--tokenize", "none")["BLEU"] == pytest.approx(49.1919566, abs=1e-6)
    table = amad.succeed(*arguments)
    assert "48.53" in table
    assert found["signature"]["chrF"] in table


def test_translations_without_case(amad):
    arguments = translation(["A Red Dog Runs .\n"], "a red dog runs .\n")
    assert amad.document(*arguments)["BLEU"] < 50
    assert amad.document(*arguments, "--lowercase")["BLEU"] == pytest.approx(100)


def test_translations_of_another_length_are_one_error(amad):
    message = amad.refuse(*translation(["a\nb\n", "a\n"], "a\nb\n"))
    assert "refs1.txt must have as many lines as hyps.txt, but has 1 against 2" in message
    assert "'bpe'" in amad.refuse(*translation(["a\n"], "a\n", "--tokenize", "bpe"))


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("pycocoevalcap", captions), ("sacrebleu", lambda: translation(["a\n"], "a\n"))],
)
def test_a_missing_package_is_one_error_with_the_install_line(amad, monkeypatch, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    message = amad.refuse(*arguments())
    assert f"needs {package}" in message
    assert "pip install 'amad[metrics]'" in message
