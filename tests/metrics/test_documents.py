import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import DataError
from amad.metrics.documents import field, index_by, read_json, read_rows, refuse_unmatched

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON, zipped=st.booleans())
def test_what_was_written_is_read_back_plain_or_zipped(tmp_path_factory, value, zipped):
    path = tmp_path_factory.mktemp("json") / ("a.json.gz" if zipped else "a.json")
    raw = json.dumps(value).encode()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert read_json(path) == value


@given(raw=st.binary(max_size=200), name=st.sampled_from(["a.json", "a.json.gz"]))
def test_arbitrary_bytes_are_json_or_refused_by_name(tmp_path_factory, raw, name):
    path = tmp_path_factory.mktemp("raw") / name
    path.write_bytes(raw)
    try:
        json.loads(gzip.decompress(raw) if name.endswith("gz") else raw)
    except (ValueError, OSError, EOFError):
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_json(path)
    else:
        read_json(path)


@given(cut=st.floats(0, 1, exclude_max=True), zipped=st.booleans())
def test_a_truncated_file_is_refused(tmp_path_factory, cut, zipped):
    raw = json.dumps([{"question_id": i, "answer": "yes"} for i in range(50)]).encode()
    raw = gzip.compress(raw) if zipped else raw
    path = tmp_path_factory.mktemp("cut") / ("a.json.gz" if zipped else "a.json")
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DataError, match=r"not valid JSON|not a whole gzip file"):
        read_json(path)


def test_a_plain_file_named_gz_is_refused(tmp_path):
    (tmp_path / "a.json.gz").write_text("[]")
    with pytest.raises(DataError, match=r"a\.json\.gz: not a whole gzip file"):
        read_json(tmp_path / "a.json.gz")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_nesting_too_deep_for_the_parser_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"nested too deeply|not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("document", "key", "message"),
    [
        ([], "questions", "must be a JSON object with a list 'questions' but is a list"),
        ({"annotations": []}, "questions", r"but is an object with \['annotations'\]"),
        ({"questions": {}}, "questions", "must hold a list of objects but holds an object"),
        ({"questions": [{}, 3]}, "questions", "item 1 must be an object but is a whole number"),
        ({"a": 1}, None, "must hold a list of objects"),
        (None, None, "holds null"),
    ],
)
def test_a_document_of_another_form_is_refused(tmp_path, document, key, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        read_rows(path, key)


def test_a_field_of_another_kind_is_refused():
    assert field({"a": 1}, "a", int, "here") == 1
    with pytest.raises(DataError, match=r"here: has no 'a', which must be a string. It has \['b'\]"):
        field({"b": 1}, "a", str, "here")
    with pytest.raises(DataError, match="'a' must be a whole number or a string but is null"):
        field({"a": None}, "a", (int, str), "here")
    with pytest.raises(DataError, match="but is true or false"):
        field({"a": True}, "a", int, "here")


def test_rows_are_indexed_in_order_and_a_repeated_id_is_named(tmp_path):
    rows = [{"id": 2}, {"id": 1}]
    assert list(index_by(rows, "id", tmp_path)) == [2, 1]
    with pytest.raises(DataError, match=r"every id must be unique but 7 occurs more than once \(1 such\)"):
        index_by([{"id": 7}, {"id": 7}, {"id": 7}], "id", tmp_path)


def test_unmatched_ids_are_counted():
    refuse_unmatched([1, 2], {1, 2, 3}, str)
    with pytest.raises(DataError, match=r"lost 4 \(2 such\)"):
        refuse_unmatched([1, 4, 5], {1}, lambda one: f"lost {one}")
