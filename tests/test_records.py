import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amad
from amad.axes import SiteKey
from amad.errors import DataError
from amad.records import EVENTS, SCHEMA, RunRecords, environment, is_written, read_records


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / "records.jsonl"


def test_events_come_back_in_order_each_with_the_schema(file):
    with RunRecords(file) as records:
        for number, event in enumerate(EVENTS):
            records.write(event, number=number)
    found = read_records(file)
    assert [record["event"] for record in found] == list(EVENTS)
    assert [record["number"] for record in found] == list(range(len(EVENTS)))
    assert {record["schema"] for record in found} == {SCHEMA}
    assert [record["time"] for record in found] == sorted(record["time"] for record in found)


def test_a_line_is_there_as_soon_as_it_is_written(file):
    records = RunRecords(file)
    records.write("step", step=1)
    assert len(read_records(file)) == 1
    records.close()


def test_numbers_of_numpy_and_torch_are_plain_numbers(file):
    with RunRecords(file) as records:
        records.write(
            "metrics",
            scalars=[np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(0.25), torch.tensor(7)],
            matrix=torch.eye(2, requires_grad=True),
            half=torch.tensor([0.5], dtype=torch.bfloat16),
            array=np.array([[1, 2]]),
        )
    record = read_records(file)[0]
    assert record["scalars"] == [0.5, 3, True, 0.25, 7]
    assert [type(value) for value in record["scalars"]] == [float, int, bool, float, int]
    assert record["matrix"] == [[1.0, 0.0], [0.0, 1.0]]
    assert record["half"] == [0.5]
    assert record["array"] == [[1, 2]]


def test_numbers_that_are_not_finite_are_text_in_valid_json(file):
    nan, inf = float("nan"), float("inf")
    with RunRecords(file) as records:
        records.write("step", values=[nan, inf, -inf, np.float64(nan), torch.tensor([inf, 1.0])], loss=nan)

    def refuse(name):
        raise AssertionError(name)

    record = json.loads(file.read_text(), parse_constant=refuse)
    assert record["values"] == ["nan", "inf", "-inf", "nan", ["inf", 1.0]]
    assert record["loss"] == "nan"


def test_paths_tuples_sets_and_keys_become_json(file):
    with RunRecords(file) as records:
        records.write(
            "note",
            path=Path("a/b"),
            site=SiteKey("encoder.self", 0),
            words={"b", "a"},
            counts={3: "c"},
            text="ü\n",
        )
    record = read_records(file)[0]
    assert record["path"] == "a/b"
    assert record["site"] == ["encoder.self", 0]
    assert record["words"] == ["a", "b"]
    assert record["counts"] == {"3": "c"}
    assert record["text"] == "ü\n"
    assert file.read_text(encoding="utf-8").count("\n") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_what_json_can_hold_comes_back_as_it_was(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    with RunRecords(file) as records:
        records.write("note", value=value)
    assert read_records(file)[0]["value"] == value


def test_a_resumed_run_appends(file):
    for step in (1, 2):
        with RunRecords(file) as records:
            records.write("step", step=step)
    assert [record["step"] for record in read_records(file)] == [1, 2]


@given(st.integers(1, 60))
def test_a_line_cut_short_anywhere_is_dropped_and_written_over(tmp_path_factory, n_lost):
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    with RunRecords(file) as records:
        records.write("step", step=1)
        records.write("step", step=2, loss=0.12345678901234567)
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    cut = whole[: max(len(whole) - n_lost, first)]
    file.write_bytes(cut)
    assert [record["step"] for record in read_records(file)] == [1]
    with RunRecords(file) as records:
        records.write("step", step=3)
    assert [record["step"] for record in read_records(file)] == [1, 3]
    assert file.read_bytes().startswith(whole[:first])


def test_a_first_line_cut_short_is_dropped(file):
    with RunRecords(file) as records:
        records.write("step", step=1)
    file.write_bytes(file.read_bytes()[:25])
    with RunRecords(file) as records:
        records.write("step", step=2)
    assert [record["step"] for record in read_records(file)] == [2]


@pytest.mark.parametrize("content", ["dear diary", "dear diary\n", "[1]\n", '{"a": 1}\n'])
def test_a_file_of_something_else_is_refused_and_kept(file, content):
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(DataError, match=r"records\.jsonl"):
        RunRecords(file)
    assert file.read_text() == content


def test_records_that_a_run_has_open_cannot_be_opened_and_are_not_touched(file):
    assert not is_written(file)
    with RunRecords(file) as records:
        records.write("note", number=1)
        with file.open("ab") as half:
            half.write(b'{"schema"')
        assert is_written(file)
        with pytest.raises(DataError, match="is being written by another run"):
            RunRecords(file)
        assert file.read_bytes().endswith(b'{"schema"')
        assert len(read_records(file)) == 1
    assert not is_written(file)
    with RunRecords(file) as records:
        records.write("note", number=2)
    assert [record["number"] for record in read_records(file)] == [1, 2]


def test_a_process_that_is_killed_leaves_its_records_open_to_others(file):
    write = (
        "import sys, time; from amad.records import RunRecords; records = RunRecords(sys.argv[1]); "
        "records.write('note'); print('open', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", write, str(file)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        assert is_written(file)
        process.kill()
    assert not is_written(file)
    with RunRecords(file) as records:
        records.write("note")
    assert len(read_records(file)) == 2


def test_a_broken_line_is_named_by_its_number(file):
    with RunRecords(file) as records:
        records.write("step", step=1)
    with file.open("a") as stream:
        stream.write("{\n")
    with pytest.raises(DataError, match=r"Line 2 of .*records\.jsonl is no JSON"):
        read_records(file)


def test_a_newer_schema_is_refused(file):
    file.parent.mkdir()
    file.write_text(f'{{"schema": {SCHEMA + 1}, "event": "step"}}\n')
    with pytest.raises(DataError, match=f"schema {SCHEMA + 1}.*up to {SCHEMA}"):
        read_records(file)


def test_a_file_that_is_not_there_is_refused(file):
    with pytest.raises(DataError, match=r"records\.jsonl"):
        read_records(file)


@pytest.mark.parametrize(
    ("event", "fields", "message"),
    [
        ("stpe", {}, "no event 'stpe'"),
        ("step", {"schema": 2}, "'schema'.*reserved"),
        ("step", {"model": {"a": [object()]}}, r"step\.model\.a is a object"),
    ],
)
def test_what_is_no_record_is_refused_and_not_written(file, event, fields, message):
    with RunRecords(file) as records:
        with pytest.raises(DataError, match=message):
            records.write(event, **fields)
        records.write("step", step=1)
    assert len(read_records(file)) == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        RunRecords(tmp_path / "file" / "records.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        RunRecords(tmp_path)


def test_the_environment_names_versions_and_no_path():
    found = environment("one GPU")
    assert found["torch"] == torch.__version__
    assert found["amad"] is not None
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"] == "one GPU"
    assert found["cpu_count"] >= 1
    text = json.dumps(found)
    for secret in (str(Path.home()), str(Path(amad.__file__).parent), "/"):
        assert secret not in text


def test_the_commit_is_that_of_the_checkout():
    root = Path(amad.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("not in a checkout")
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    commit = environment()["commit"]
    assert len(commit.rstrip("+")) >= 7
    assert head.startswith(commit.rstrip("+"))


def test_reading_and_writing_need_neither_torch_nor_transformers():
    code = (
        "import sys, amad.records as r; r.environment(); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
