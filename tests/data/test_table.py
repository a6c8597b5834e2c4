import gc
import json
import multiprocessing
import os
import pickle
import re
from contextlib import contextmanager

import datasets
import pytest

from amad.data import table as tables
from amad.data.captions import CaptionExample, read_blip_captions
from amad.data.paths import ImageFolders
from amad.data.problems import Problems
from amad.data.rows import CAPTIONS
from amad.data.table import Joined, Table, stored_table
from amad.errors import DataError


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "store")
    return tmp_path / "store" / "amad"


@pytest.fixture
def source(tmp_path):
    """Twelve captioned images, three of which are bad."""
    rows = [{"image": f"{i}.jpg", "caption": [f"Caption {i}."]} for i in range(12)]
    for i in (3, 7, 9):
        rows[i]["caption"] = []
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return tmp_path / "captions.json"


def table_of(source, policy="skip", folders=None, how=(), seen=None):
    problems = Problems(policy)

    def read(fresh):
        if seen is not None:
            seen.append(1)
        return list(read_blip_captions(source, problems=fresh))

    found = stored_table(CAPTIONS, [source], how, read, ImageFolders(folders), problems)
    return found, problems


GOOD = [0, 1, 2, 4, 5, 6, 8, 10, 11]


def test_a_table_is_the_sequence_that_was_read(source, tmp_path):
    table, _ = table_of(source, folders=tmp_path)
    read = list(read_blip_captions(source, problems=Problems("skip")))
    assert len(table) == 9
    assert [one.image_id for one in table] == GOOD
    assert [table[i] for i in range(9)] == list(table)
    assert table[-1] == list(table)[-1]
    assert [one.image for one in table] == [tmp_path / f"{i}.jpg" for i in GOOD]
    assert [(one.captions, one.image_name) for one in table] == [
        (one.captions, one.image_name) for one in read
    ]
    assert [one.image_id for one in table[2:7:2]] == [2, 5, 8]
    assert [one.image_id for one in table.select([5, 0])] == [6, 0]
    assert table.select([5, 0]).image_names() == ["6.jpg", "0.jpg"]
    with pytest.raises(IndexError):
        table[9]


def test_the_same_files_are_read_once(source):
    seen = []
    first, problems = table_of(source, seen=seen)
    again, other = table_of(source, seen=seen)
    assert seen == [1]
    assert list(again) == list(first)
    # What was bad is told each time.
    assert list(other) == list(problems)
    assert [bad.entry for bad in other] == ["item 3", "item 7", "item 9"]
    table_of(source, how=("other",), seen=seen)
    assert len(seen) == 2


def test_files_that_changed_are_read_again_whatever_their_date(source, store):
    table_of(source)
    date = source.stat().st_mtime_ns
    source.write_text(source.read_text().replace("Caption 4", "Caption 5"))
    os.utime(source, ns=(date, date))
    table, _ = table_of(source)
    assert table[3].captions == ("Caption 5.",)
    assert sum(path.is_dir() for path in store.iterdir()) == 2


def test_changed_code_reads_again(source, monkeypatch):
    seen = []
    table_of(source, seen=seen)
    monkeypatch.setattr(tables, "_rules", lambda: "other")
    table_of(source, seen=seen)
    assert len(seen) == 2


def test_what_was_left_out_once_is_refused_where_nothing_may_be(source, store):
    table_of(source, "skip")
    with pytest.raises(DataError, match=r"captions\.json, item 3: an image needs a caption .*=skip"):
        table_of(source, "raise")


def test_nothing_is_kept_of_what_is_refused(source, store):
    with pytest.raises(DataError, match="item 3: an image needs a caption"):
        table_of(source, "raise")
    assert [path.suffix for path in store.iterdir()] == [".lock"]


def test_a_missing_file_is_refused_by_its_reader(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file. Give the path of a JSON file"):
        table_of(tmp_path / "none.json")


def test_a_store_that_cannot_be_written_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(DataError, match="Set HF_DATASETS_CACHE to a folder that you may write to"):
        table_of(source)


def _read_slowly(source, seen, started):
    def read(fresh):
        seen.put(1)
        started.wait()
        return list(read_blip_captions(source, problems=fresh))

    stored_table(CAPTIONS, [source], (), read, ImageFolders(None), Problems("skip"))


def test_processes_that_come_together_read_once(source):
    context = multiprocessing.get_context("fork")
    seen, started = context.Queue(), context.Event()
    processes = [context.Process(target=_read_slowly, args=(source, seen, started)) for _ in range(3)]
    for process in processes:
        process.start()
    seen.get()
    started.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen.empty()


def test_a_reader_that_is_interrupted_leaves_nothing_behind(source, store):
    def read(fresh):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_table(CAPTIONS, [source], (), read, ImageFolders(None), Problems())
    assert [path.suffix for path in store.iterdir()] == [".lock"]
    assert len(table_of(source)[0]) == 9


def test_only_a_portion_of_the_examples_is_held_while_they_are_stored(source):
    held = []

    def read(fresh):
        for i in range(5000):
            if i % 1250 == 1249:
                held.append(sum(type(one) is CaptionExample for one in gc.get_objects()))
            yield CaptionExample(None, i, ("A caption.",), None, f"{i}.jpg")

    before = sum(type(one) is CaptionExample for one in gc.get_objects())
    table = stored_table(CAPTIONS, [source], (), read, ImageFolders(None), Problems())
    assert [one.image_id for one in table] == list(range(5000))
    assert len(held) == 4
    assert max(held) - before <= 2001


def test_reading_says_how_much_of_its_files_is_read(source):
    told = []

    @contextmanager
    def wait(description, total):
        told.append((description, total))
        yield lambda done, whole: told.append((done, whole))

    def read(fresh):
        # Twice, as where something at the end decides on the beginning.
        list(read_blip_captions(source, problems=Problems("skip")))
        yield from read_blip_captions(source, problems=fresh)

    size = source.stat().st_size
    stored_table(CAPTIONS, [source], (), read, ImageFolders(None), Problems("skip"), wait)
    assert told[0] == ("reading captions.json", size)
    assert (size, size) in told
    assert all(done <= whole == size for done, whole in told[1:])


def test_what_a_process_left_that_was_killed_goes(source, store):
    parts = []

    def read(fresh):
        parts.extend(store.glob(".*.part"))
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        stored_table(CAPTIONS, [source], (), read, ImageFolders(None), Problems("skip"))
    (part,) = parts
    part.mkdir()
    (part / "rows.arrow").write_bytes(b"half")
    stored_table(
        CAPTIONS,
        [source],
        (),
        lambda fresh: read_blip_captions(source, problems=fresh),
        ImageFolders(None),
        Problems("skip"),
    )
    assert not list(store.glob(".*.part"))


def test_examples_of_bad_images_are_refused_or_left_out(source):
    table, _ = table_of(source)
    wrong = {"4.jpg": "4.jpg: not a whole image.", "8.jpg": "8.jpg: no such image."}
    assert table.without({}, Problems()) is table
    with pytest.raises(
        DataError, match=r"4\.jpg: not a whole image\. Needed by .*, image 4\.jpg \(1 more such images\)"
    ):
        table.without(wrong, Problems())
    problems = Problems("skip")
    kept = table.without(wrong, problems)
    assert [one.image_id for one in kept] == [i for i in GOOD if i not in (4, 8)]
    assert [(bad.file, bad.entry) for bad in problems] == [(str(source), f"image {i}.jpg") for i in (4, 8)]
    with pytest.raises(
        DataError, match=r"captions\.json: none of its 9 examples has a good image; the first: bad\."
    ):
        table.without(dict.fromkeys(table.image_names(), "bad."), Problems("skip"))


def test_tables_are_joined(source):
    table, _ = table_of(source)
    joined = Joined([table[:2], table[5:5], table])
    ids = [0, 1, *GOOD]
    assert len(joined) == len(ids)
    assert [one.image_id for one in joined] == ids == [joined[i].image_id for i in range(len(ids))]
    assert joined[-1].image_id == ids[-1]
    assert [one.image_id for one in joined[1:4]] == ids[1:4]
    for index in (11, -12):
        with pytest.raises(IndexError, match="of 11"):
            joined[index]
    assert len(Joined([])) == 0
    assert joined.names() == [one.image_name for one in joined]
    for chosen in ([], [0], [10], [1, 2, 3, 9], list(range(11))):
        assert [one.image_id for one in joined.select(chosen)] == [ids[index] for index in chosen]


def test_a_table_is_pickled_by_the_place_of_its_file(source):
    table, _ = table_of(source)
    pickled = pickle.dumps(table)
    assert b"Caption 4." not in pickled
    assert list(pickle.loads(pickled)) == list(table)
    assert isinstance(table, Table)


@pytest.mark.parametrize("name", ["5.jpg", "../5.jpg"])
def test_a_bad_image_among_several_folders_is_left_out_with_its_examples(source, tmp_path, name):
    rows = json.loads(source.read_text())
    rows[5]["image"] = name
    source.write_text(json.dumps(rows))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for i in GOOD:
        if i != 5:
            (tmp_path / "ab"[i % 2] / f"{i}.jpg").touch()
    table, problems = table_of(source, folders=[tmp_path / "a", tmp_path / "b"])
    wrong = table.folders.missing(table.image_names(), str(source))
    assert list(wrong) == [name]
    kept = table.without(wrong, problems)
    assert [one.image_name for one in kept] == [f"{i}.jpg" for i in GOOD if i != 5]
    with pytest.raises(DataError, match=rf"Needed by .*captions.json, image {re.escape(name)}"):
        table.without(wrong, Problems())


@pytest.mark.parametrize("text", ["half \ud83d", "whole \ud83d\ude00"])
def test_a_text_of_half_a_character_is_refused_or_left_out(source, text):
    rows = json.loads(source.read_text())
    rows[5]["caption"] = [text]
    source.write_text(json.dumps(rows))
    table, problems = table_of(source)
    half = text.startswith("half")
    assert [one.image_id for one in table] == [i for i in GOOD if i != 5 or not half]
    assert problems.n_bad == 3 + half
    # From the store, once more.
    assert table_of(source)[1].n_bad == 3 + half
    if half:
        rows = [row for row in rows if row["caption"]]
        source.write_text(json.dumps(rows))
        with pytest.raises(DataError, match=r"captions.json, image 5.jpg: texts must be of characters"):
            table_of(source, "raise")


def test_bytes_that_no_character_has_are_refused(source):
    source.write_bytes(source.read_bytes().replace(b"Caption 5", b"Caption \xed\xa0\xbd"))
    with pytest.raises(DataError, match="not valid JSON"):
        table_of(source)


def test_bad_examples_of_any_name_come_back_from_the_store(source):
    rows = json.loads(source.read_text())
    rows[3]["image"] = "b\x85\u2028.jpg"
    rows.append(rows[0])
    source.write_text(json.dumps(rows))
    first, again = table_of(source)[1], table_of(source)[1]
    assert list(first) == list(again)


def test_a_bad_example_that_is_read_twice_counts_once(source):
    problems = Problems("skip")
    for _ in range(2):
        list(read_blip_captions(source, problems=problems))
    assert problems.n_bad == 3
