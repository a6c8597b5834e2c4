import json
import re
import sys
from pathlib import Path


def inside(page):
    """The document in a page."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', Path(page).read_text(), re.S
    )
    return json.loads(found[1])


def test_a_run_and_its_teacher_make_one_page(amad, student_tree, taught):
    amad.document("distill", amad.write(student_tree))
    told = amad.document("report", "student", taught.folder, "--out", "page")
    assert told["page"] == "page/index.html"
    assert [method["name"] for method in told["methods"]] == ["AMAD kl", "trained alone"]
    found = inside(told["page"])
    student, teacher = found["runs"]
    assert found["teacher"]["score"] == taught.result["accuracy"]
    assert student["losses"]["steps"] == [1, 2, 3]
    assert {pair["student"] for pair in student["alignment"]["pairs"]} == {
        "encoder.self[0]",
        "decoder.self[0]",
        "decoder.cross[0]",
    }
    for pair in student["alignment"]["pairs"]:
        # Four teacher heads, two student heads, and each teacher head gives all it has.
        assert [len(row) for row in pair["weights"][-1]] == [2, 2, 2, 2]
        assert all(abs(sum(row) - 1000) <= 1 for row in pair["weights"][-1])
        assert [row[index] for index, row in enumerate(pair["alike"])] == [1, 1]
        assert len(pair["coverage_by_head"]) == 4
    assert found["groups"][0]["parameters"] == student["models"]["student"]["parameters"]
    assert teacher["alignment"]["pairs"] == []


def test_it_says_where_the_page_is(amad, taught):
    said = amad.succeed("report", taught.folder, "--out", "page")
    assert "page/index.html" in said
    assert "opens in any browser" in said


def test_without_a_folder_the_page_lies_in_the_run_or_beside_several(amad, student_tree):
    path = amad.write(student_tree | {"output": "runs/one"})
    amad.document("distill", path, "training.max_steps=1")
    amad.document("distill", path, "training.max_steps=1", "output=runs/two")
    assert Path(amad.document("report", "runs/one")["page"]) == Path("runs/one/report/index.html").resolve()
    assert Path(amad.document("report", "runs")["page"]) == Path("runs/report/index.html").resolve()
    # The page of before is no run.
    assert len(amad.document("report", "runs")["runs"]) == 2


def test_it_needs_no_torch(amad, taught):
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from amad.report.document import build_document\n"
        "from amad.report.page import write_page\n"
        "from amad.report.run import read_run\n"
        f"write_page(build_document([read_run(Path({str(taught.folder)!r}))], 'x'), Path('page'))\n"
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
