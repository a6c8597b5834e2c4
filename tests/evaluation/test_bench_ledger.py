"""The scripts of ``benchmarks``: what goes into the ledger, what is skipped and what is drawn of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from amad.errors import DataError, RecipeError
from amad.evaluation.bench_ops import OpsCase

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("needs a checkout with its benchmarks", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import ledger
import plot
import run

RATIOS = {"ours/sdpa": 2.0, "naive/ours": 1.5, "compile/ours": None, "naive/ours memory": 8.0}
QUIET = Console(quiet=True)


def measured(case, seconds=1.0):
    """A document of the form that ``bench_ops`` gives, with numbers chosen here."""
    times = {"ours": 2 * seconds, "naive": 3 * seconds, "compile": None, "sdpa": seconds}
    return {
        "case": vars(case),
        "clock": "process",
        "repeats": 5,
        "median_seconds": times,
        "peak_extra_bytes": {"ours": 1 << 20, "naive": 8 << 20, "compile": None, "sdpa": 1 << 19},
        "ratios": RATIOS,
        "floors": {"ours/sdpa": 0.75},
        "errors": {"value": 1e-7, "gradient": 2e-6},
        "missing": {"compile": "no C++ compiler"},
        "versions": {"torch": "2.0"},
        "machine": {"cpu": "Abacus", "cpu_count": 2, "allocator": "default"},
        "commit": None,
    }


def test_targets_by_length():
    def wanted(op, length):
        return ledger.targets(OpsCase(op, queries=length, keys=length))

    assert wanted("mse", 197) == {
        "ours/sdpa": ("<=", 1.8),
        "naive/ours": (">=", 1),
        "compile/ours": (">=", 1),
    }
    assert wanted("kl", 512) == {
        "ours/sdpa": ("<=", 3),
        "naive/ours": (">=", 2),
        "compile/ours": (">=", 1),
        "naive/ours memory": (">=", 8),
    }
    assert wanted("token", 2048)["naive/ours"] == (">=", 3)
    assert wanted("token", 2048)["naive/ours memory"] == (">=", 25)
    assert wanted("token", 2048)["ours/sdpa"] == ("<=", 2)


def test_misses_by_hand():
    assert ledger.misses(OpsCase("mse"), RATIOS) == ["ours/sdpa by 11.1 %", "naive/ours by 25.0 %"]
    assert ledger.misses(OpsCase("kl", queries=100, keys=100), RATIOS) == []


def test_a_line_says_what_was_measured_and_what_was_missed(tmp_path):
    path = tmp_path / "ledger.csv"
    row = ledger.row_of(measured(OpsCase("mse")), "abc", "today")
    ledger.append(row, path)
    ledger.append(row, path)
    first, second = ledger.read(path)
    assert first == second == row
    assert path.read_text().splitlines()[0] == ",".join(ledger.COLUMNS)
    assert row["seconds ours"] == "2"
    assert row["seconds compile"] == row["compile/ours"] == ""
    assert row["misses"] == "ours/sdpa by 11.1 %; naive/ours by 25.0 %"
    assert row["targets"] == "ours/sdpa <= 1.8; naive/ours >= 2; compile/ours >= 1; naive/ours memory >= 8"
    assert row["not measured"] == "compile: no C++ compiler"
    assert row["machine"] == "Abacus, 2 cores"


def test_the_projects_ledger_can_be_read():
    for row in ledger.read():
        assert not row["commit"].endswith("+")
        assert float(row["error value"]) < 1e-5


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other\.csv has other columns"):
        ledger.read(path)
    assert ledger.read(tmp_path / "absent.csv") == []


@pytest.fixture
def _committed(monkeypatch):
    monkeypatch.setattr(run, "measured_commit", lambda: "abc")


@pytest.mark.usefixtures("_committed")
def test_what_the_ledger_has_is_not_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "ledger.csv"
    asked = []

    def answer(case, rounds):
        asked.append(case)
        return measured(case) | {"machine": run.surroundings("cpu")["machine"]}

    monkeypatch.setattr(run, "bench_ops", answer)
    first, second = OpsCase("mse"), OpsCase("mse", keys=99)
    assert run.measure([first], path, QUIET) == 0
    assert run.measure([first, second], path, QUIET) == 0
    assert asked == [first, second]
    monkeypatch.setattr(run, "measured_commit", lambda: "def")
    run.measure([first], path, QUIET)
    assert asked == [first, second, first]
    assert len(ledger.read(path)) == 3


@pytest.mark.usefixtures("_committed")
def test_a_refused_case_is_counted_and_leaves_no_line(tmp_path, monkeypatch):
    def refuse(case, rounds):
        raise RecipeError("operator is wrong")

    monkeypatch.setattr(run, "bench_ops", refuse)
    assert run.measure([OpsCase(), OpsCase("mse")], tmp_path / "ledger.csv", QUIET) == 2
    assert ledger.read(tmp_path / "ledger.csv") == []


def test_the_projects_ledger_takes_committed_code_only(monkeypatch):
    monkeypatch.setattr(run, "measured_commit", lambda: "abc+")
    with pytest.raises(RecipeError, match="differ from commit abc"):
        run.measure([OpsCase()], ledger.LEDGER, QUIET)


@pytest.mark.skipif(not (FOLDER.parent / ".git").exists(), reason="needs a checkout")
def test_the_commit_is_that_of_what_is_measured():
    commit = ledger.measured_commit()
    changed = subprocess.run(
        ["git", "-C", str(ledger.ROOT), "show", "--name-only", "--format=", commit.rstrip("+")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert any(name.startswith(ledger.MEASURED) for name in changed)


def test_every_shape_has_a_name_of_its_own_and_every_operator():
    everything = run.cases(1, "float32", "cpu")
    names = [run.name_of(case) for case in everything]
    assert len(set(names)) == len(names) == 3 * len(run.SHAPES)
    assert "kl-b32-12to12-d64-n56-m56" in names
    assert all(5 <= run.n_rounds(case) <= 25 for case in everything)


def test_figures_are_drawn_of_the_newest_lines(tmp_path):
    path, out = tmp_path / "ledger.csv", tmp_path / "figures"
    for date, seconds in (("2", 5.0), ("1", 1.0)):
        for op in ("mse", "kl", "token"):
            for length in (512, 1024):
                case = OpsCase(op, queries=length, keys=length)
                ledger.append(ledger.row_of(measured(case, seconds), "abc", date), path)
    ledger.append(ledger.row_of(measured(OpsCase(student_heads=3), 99.0), "abc", "3"), path)
    rows = plot.newest(ledger.read(path))
    assert [row["seconds sdpa"] for row in rows] == ["5"] * 6
    for quantity in ("time", "memory"):
        plot.draw(rows, quantity, out / f"{quantity}.svg")
        text = (out / f"{quantity}.svg").read_text()
        assert all(word in text for word in ("<svg", "amad", "attention itself", "1,024", "Abacus"))
        assert "maps, compiled" not in text
        plot.draw(rows, quantity, out / "again.svg")
        assert (out / "again.svg").read_text() == text


def test_an_empty_ledger_is_not_drawn(tmp_path):
    with pytest.raises(DataError, match="no line to draw"):
        plot.newest([])


@pytest.mark.slow
def test_a_run_by_hand_adds_lines(tmp_path):
    path = tmp_path / "ledger.csv"
    command = [sys.executable, str(FOLDER / "run.py"), "--ledger", str(path), "--device", "cpu"]
    done = subprocess.run([*command, "--only", "mse-b32-*"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = ledger.read(path)
    assert float(row["error gradient"]) < 1e-5
    assert float(row["seconds ours"]) > 0
    wrong = subprocess.run([*command, "--only", "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no case is named like 'nothing'" in wrong.stderr


@pytest.mark.slow
def test_the_proof_of_long_context_at_a_short_length():
    command = [sys.executable, str(FOLDER / "long_context.py"), "--length", "300"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for op in ("mse", "kl"):
        assert f"{op}: 300 tokens, 12 -> 6 heads of 64: forward" in done.stdout
        assert f"{op}: off float64 by" in done.stdout
