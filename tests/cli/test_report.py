import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from amad.records import read_records


@pytest.fixture(scope="module")
def distilled(amad, taught, tmp_path_factory):
    """A run of amad distill; the folder of the test is where its recipe and its results may be."""
    folder = tmp_path_factory.mktemp("distilled")
    tree = yaml.safe_load((taught.folder / "recipe.yaml").read_text())
    tree |= {"model": None, "teacher": str(taught.model), "output": str(folder / "student")}
    tree |= {"student": {"heads": 2, "layers": 0.5, "width": 0.5}}
    tree["training"]["logging_steps"] = 3
    path = amad.write(tree, folder / "recipe.yaml")
    result = amad.document("distill", path)
    return SimpleNamespace(folder=folder / "student", recipe=path, result=result)


@pytest.fixture(scope="module")
def examples(distilled):
    """What the end of a run leaves for the report."""
    return examples_in(distilled.folder)


def examples_in(folder):
    return [json.loads(line) for line in (folder / "examples" / "examples.jsonl").read_text().splitlines()]


def inside(page):
    """The document in a page."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', Path(page).read_text(), re.S
    )
    return json.loads(found[1])


def measured(folder):
    return {
        event["who"]: event for event in read_records(folder / "records.jsonl") if "latency_seconds" in event
    }


def test_a_run_and_its_teacher_make_one_page(amad, distilled, taught):
    told = amad.document("report", distilled.folder, taught.folder, "--out", "page")
    assert told["page"] == "page/index.html"
    assert [method["name"] for method in told["methods"]] == ["AMAD kl", "teacher"]
    found = inside(told["page"])
    student, teacher = found["runs"]
    assert found["teacher"]["score"] == taught.result["accuracy"]
    assert student["score"] == distilled.result["accuracy"]
    assert student["losses"]["steps"] == [3]
    assert [pair["student"] for pair in student["alignment"]["pairs"]] == [
        "encoder.self[0]",
        "decoder.self[0]",
        "decoder.cross[0]",
    ]
    for pair in student["alignment"]["pairs"]:
        # Four teacher heads, two student heads, and each teacher head gives all it has.
        assert [len(row) for row in pair["weights"][-1]] == [2, 2, 2, 2]
        assert all(abs(sum(row) - 1000) <= 1 for row in pair["weights"][-1])
        assert [row[index] for index, row in enumerate(pair["alike"])] == [1, 1]
        assert len(pair["coverage_by_head"]) == 4
    assert found["groups"][0]["parameters"] == distilled.result["parameters"]
    assert teacher["alignment"]["pairs"] == []
    assert teacher["examples"] is None
    assert found["groups"][1]["latency_seconds"]["median"] > 0


def test_examples_are_what_both_models_answer_on_their_own(amad, distilled, taught, examples):
    told = measured(distilled.folder)
    for who, model in (("student", distilled.folder / "model"), ("teacher", taught.model)):
        alone = amad.document(
            "evaluate", distilled.recipe, "--model", model, "--results", f"{who}.json", "--batch-size", "7"
        )
        answers = json.loads(Path(f"{who}.json").read_text())
        assert [row[who] for row in examples] == [answers[row["index"]]["answer"] for row in examples]
        assert told[who]["sample_score"] == pytest.approx(alone["accuracy"])
        assert told[who]["sample_low"] <= alone["accuracy"] <= told[who]["sample_high"]
        assert told[who]["items"] == told[who]["sample_items"] == len(examples)
        latency = told[who]["latency_seconds"]
        assert 0 < latency["low"] <= latency["median"] <= latency["high"]


def test_attention_that_is_kept_is_whole_and_lies_on_the_patches_of_the_image(distilled, examples):
    seen = [row for row in examples if row["attention"]]
    assert len(seen) == 6
    for row in seen:
        with Image.open(distilled.folder / "examples" / row["image"]) as image:
            assert image.format == "JPEG"
        assert [pair["student"]["site"] for pair in row["attention"]] == [
            "encoder.self[0]",
            "decoder.cross[0]",
        ]
        for pair in row["attention"]:
            assert (len(pair["teacher"]["heads"]), len(pair["student"]["heads"])) == (4, 2)
            assert pair["words"][0] == "vqa"
            assert all(0 <= cosine <= 1 for line in pair["cosines"] for cosine in line)
            for side in (pair["teacher"], pair["student"]):
                assert side["grid"] == [3, 3]
                for head in side["heads"]:
                    assert head["share"] + sum(head["words"]) == pytest.approx(1, abs=1e-3)
                    patches = sum(head["patches"]) / 255 * head["largest"]
                    assert patches == pytest.approx(head["share"], abs=0.01)
                    # Padding is never looked at.
                    padding = [at for at, word in enumerate(pair["words"]) if not word]
                    assert all(head["words"][at] == 0 for at in padding)


def test_examples_that_an_earlier_version_did_not_leave_are_made_for_the_report(
    amad, distilled, examples, tmp_path
):
    early = shutil.copytree(distilled.folder, tmp_path / "early", ignore=shutil.ignore_patterns("examples"))
    path = early / "records.jsonl"
    lines = [line for line in path.read_text().splitlines() if "latency_seconds" not in line]
    path.write_text("".join(f"{line}\n" for line in lines))
    before = inside(amad.document("report", early)["page"])
    assert before["runs"][0]["examples"] is None
    after = inside(amad.document("report", early, "--examples")["page"])
    assert after["runs"][0]["examples"]["n"] == len(examples)
    assert after["groups"][0]["latency_seconds"]["median"] > 0
    assert examples_in(early) == examples
    n_lines = len(path.read_text().splitlines())
    amad.document("report", early, "--examples")
    assert len(path.read_text().splitlines()) == n_lines


def test_a_student_that_learned_alone_is_compared_with_the_teacher_it_did_not_have(amad, distilled):
    amad.document("train", distilled.recipe, "output=alone")
    found = inside(amad.document("report", "alone")["page"])
    assert found["teacher"]["score"] is not None
    (run,) = found["runs"]
    assert run["examples"]["n"] > 0
    assert run["alignment"]["pairs"] == []
    assert len(run["examples"]["seen"]) == 6


def test_it_says_where_the_page_is(amad, taught):
    said = amad.succeed("report", taught.folder, "--out", "page")
    assert "page/index.html" in said
    assert "opens in any browser" in said


def test_without_a_folder_the_page_lies_in_the_run_or_beside_several(amad, distilled, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(distilled.folder, tmp_path / "runs" / name)
    assert Path(amad.document("report", "runs/one")["page"]) == tmp_path / "runs/one/report/index.html"
    assert Path(amad.document("report", "runs")["page"]) == tmp_path / "runs/report/index.html"
    # The page of before is no run.
    assert len(amad.document("report", "runs")["runs"]) == 2


def test_it_needs_no_torch(taught):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from amad.report.document import build_document\n"
        "from amad.report.page import write_page\n"
        "from amad.report.run import read_run\n"
        f"write_page(build_document([read_run(Path({str(taught.folder)!r}))], 'x'), Path('page'))\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Path("page/index.html").is_file()


def test_what_is_no_run_is_refused(amad, tmp_path):
    assert "holds no records.jsonl" in amad.refuse("report", tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    assert "is a file" in amad.refuse("report", _run(tmp_path / "run"), "--out", tmp_path / "mine.html")


def _run(folder):
    folder.mkdir()
    line = {"schema": 1, "event": "recipe", "time": 0, "recipe": {"task": "vqa"}, "with_teacher": False}
    (folder / "records.jsonl").write_text(json.dumps(line) + "\n")
    return folder
