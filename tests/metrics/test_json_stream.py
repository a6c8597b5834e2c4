import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import DataError
from amad.metrics import json_stream
from amad.metrics.documents import iter_members, iter_rows, read_head, read_rows
from amad.metrics.json_stream import JsonStream, opened, watched

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ROWS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5)
INDENTS = st.sampled_from([None, 0, 2])


def stream(text, portion):
    """The stream of a text that comes so many characters at a time, whatever is asked for."""
    at = 0

    def read(n):
        nonlocal at
        at += portion
        return text[at - portion : at]

    return JsonStream(read)


@given(value=JSON, portion=st.integers(1, 40), indent=INDENTS, ascii_only=st.booleans())
def test_a_value_is_what_the_standard_library_reads_wherever_it_is_cut(value, portion, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    taken = stream(text, portion)
    assert taken.value() == value
    taken.finish()


@given(items=st.lists(JSON), portion=st.integers(1, 40), indent=INDENTS)
def test_a_list_comes_item_by_item(items, portion, indent):
    taken = stream(json.dumps(items, indent=indent), portion)
    assert list(taken.items()) == items
    taken.finish()


@given(value=st.dictionaries(st.text(), JSON), portion=st.integers(1, 40), indent=INDENTS)
def test_an_object_comes_key_by_key_and_of_lists_only_that_they_are(value, portion, indent):
    taken = stream(json.dumps(value, indent=indent), portion)
    expected = {key: [] if isinstance(one, list) else one for key, one in value.items()}
    assert {key: taken.skip() for key in taken.members()} == expected
    taken.finish()


@pytest.mark.parametrize("portion", [1, 2, 100])
@pytest.mark.parametrize(
    "text",
    ["", "[", "[1", "[1,", "[1,]", "[1 2]", "[1}", "[tru", '["a', "[]]", "[1] 2", "]", "1.5.2", '{"a"}'],
)
def test_what_is_no_json_is_refused(text, portion):
    taken = stream(text, portion)
    with pytest.raises(ValueError, match=r"."):  # noqa: PT012
        taken.skip()
        taken.finish()


@pytest.mark.parametrize("text", ["{", '{"a"', '{"a":', '{"a":1', '{"a":1,}', "{1:2}", '{"a":1}}'])
def test_an_object_that_is_none_is_refused(text):
    taken = stream(text, 1)
    with pytest.raises(ValueError, match=r"."):  # noqa: PT012
        for _ in taken.members():
            taken.value()
        taken.finish()


@given(lists=st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), ROWS, min_size=1), said=JSON)
def test_lists_under_keys_come_in_the_order_of_the_file(tmp_path_factory, lists, said):
    path = tmp_path_factory.mktemp("json") / "a.json"
    document = {"info": said, **lists, "end": said}
    path.write_text(json.dumps(document))
    keys = tuple(lists)
    assert list(iter_members(path, keys)) == [(key, row) for key in lists for row in lists[key]]
    assert list(iter_members(path, keys[:1], optional=("c", "none"))) == [
        (key, row) for key in lists if key in {keys[0], "c"} for row in lists[key]
    ]
    assert read_rows(path, keys[-1]) == lists[keys[-1]]
    assert read_head(path) == {key: [] if isinstance(one, list) else one for key, one in document.items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("portion", [1, 3, 1 << 20])
def test_every_encoding_of_json_is_read(tmp_path, encoding, portion, monkeypatch):
    monkeypatch.setattr(json_stream, "_PORTION", portion)
    rows = [{"wörter": "schön 🐈"}, {"b": 2}]
    (tmp_path / "a.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode(encoding))
    assert list(iter_rows(tmp_path / "a.json")) == rows


@given(cut=st.floats(0, 1, exclude_max=True), zipped=st.booleans(), key=st.sampled_from([None, "rows"]))
def test_a_file_that_breaks_off_is_refused_before_the_last_row_counts(tmp_path_factory, cut, zipped, key):
    rows = [{"question_id": i, "answer": "yes"} for i in range(50)]
    raw = json.dumps(rows if key is None else {"rows": rows}).encode()
    raw = gzip.compress(raw) if zipped else raw
    path = tmp_path_factory.mktemp("cut") / ("a.json.gz" if zipped else "a.json")
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DataError, match=r"not valid JSON|not a whole gzip file"):
        list(iter_rows(path, key))


def test_the_place_of_a_fault_is_that_in_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[\n" + '{"a": 1},\n' * 200_000 + '{"a" 1}]')
    with pytest.raises(DataError, match=r"not valid JSON \(Expecting ':' delimiter: line 200002 column 6"):
        list(iter_rows(path))
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match="can't decode byte 0xff in position 8"):
        list(iter_rows(path))


def test_a_document_of_many_keys_is_refused_in_a_short_sentence(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({str(i): {} for i in range(1000)}))
    with pytest.raises(
        DataError, match=r"a list 'rows' but is an object with \['0', .* and 980 more"
    ) as refused:
        list(iter_rows(tmp_path / "a.json", "rows"))
    assert len(str(refused.value)) < 500


def test_a_key_that_occurs_twice_is_refused_where_it_is_asked_for(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [{}], "b": 1, "a": [{}]}')
    with pytest.raises(DataError, match=r"a\.json: has 'a' twice"):
        list(iter_members(tmp_path / "a.json", ("a",)))
    (tmp_path / "a.json").write_text('{"b": 1, "a": [{}], "b": 2}')
    assert list(iter_members(tmp_path / "a.json", ("a",))) == [("a", {})]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_who_watches_is_told_every_byte_once(tmp_path, name, monkeypatch):
    monkeypatch.setattr(json_stream, "_PORTION", 1000)
    raw = json.dumps([{"number": i} for i in range(5000)]).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    told = []
    with watched(told.append):
        assert sum(1 for _ in iter_rows(tmp_path / name)) == 5000
    assert len(told) > 50
    assert sum(told) == (tmp_path / name).stat().st_size
    with opened(tmp_path / name) as read:
        read(10)
    assert sum(told) == (tmp_path / name).stat().st_size


def test_a_file_is_never_held_whole(tmp_path):
    rows = [{"number": i, "text": "x" * 200} for i in range(40_000)]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}))
    size = (tmp_path / "a.json").stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_rows(tmp_path / "a.json", "rows")) == 40_000
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_long_value_is_tried_a_few_times_only(monkeypatch):
    monkeypatch.setattr(json_stream, "_PORTION", 10)
    text = json.dumps(list(range(20_000)))
    at, asked = 0, []

    def read(n):
        nonlocal at
        asked.append(n)
        at += n
        return text[at - n : at]

    assert JsonStream(read).value() == list(range(20_000))
    assert len(asked) < 20
