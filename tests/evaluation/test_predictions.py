import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from hypothesis import given
from hypothesis import strategies as st

from amad.data.vqa import VqaDataset, VqaExample
from amad.errors import DataError
from amad.evaluation.predictions import (
    SHARDS,
    Shards,
    decode_shards,
    digest_of_files,
    digest_of_folder,
    digest_of_items,
    kept_to_one,
)

RUN = {"model": "a1", "num_beams": 5}


def decoded(folder, batch_size=2, n_items=7, generate=None, state=None):
    """Decode what is missing; gives the shards, how many were decoded, and the batches that were asked for."""
    asked = []

    def echo(batches):
        for batch in batches:
            asked.append(batch)
            yield [f"text {item}" for item in batch]

    shards = Shards(folder, RUN, n_items, batch_size)
    waits = []

    @contextmanager
    def told(doing, whole):
        waits.append((doing, whole, []))
        yield lambda *counts: waits[0][2].append(counts)

    n = decode_shards(state or PartialState(cpu=True), shards, generate or echo, batch_size, "saying", told)
    return shards, n, asked, waits


@given(n_items=st.integers(1, 5000), batch_size=st.integers(1, 300))
def test_shards_are_whole_batches_that_cover_every_item_once(tmp_path_factory, n_items, batch_size):
    shards = Shards(tmp_path_factory.mktemp("s") / "s", RUN, n_items, batch_size)
    items = [item for shard in range(len(shards)) for item in shards.items(shard)]
    assert items == list(range(n_items))
    assert len(shards) <= SHARDS
    assert shards.size % batch_size == 0
    assert len(shards) > SHARDS // 2 or shards.size == batch_size


def test_what_is_there_is_not_decoded_again(tmp_path):
    folder = tmp_path / "made" / "here"
    shards, n, asked, waits = decoded(folder)
    assert waits == [("saying", 7, [(2, 7), (4, 7), (6, 7), (7, 7)])]
    assert (n, asked) == (7, [[0, 1], [2, 3], [4, 5], [6]])
    assert shards.texts() == [f"text {item}" for item in range(7)]
    (folder / "00001.jsonl").unlink()
    (folder / "00003.jsonl").write_bytes(b"")
    # Another size of batches makes no other shards.
    shards, n, asked, waits = decoded(folder, batch_size=1)
    assert waits == [("saying, 4 were there", 3, [(1, 3), (2, 3), (3, 3)])]
    assert (n, asked) == (3, [[2], [3], [6]])
    assert shards.texts() == [f"text {item}" for item in range(7)]
    assert decoded(folder)[1:] == (0, [], [("saying, 7 were there", 0, [])])


def test_a_shard_is_written_before_the_next_is_decoded(tmp_path):
    def stop(batches):
        yield ["text 0", "line\nline \u2028 é"]
        yield ["text 2", "text 3"]
        raise DataError("image 4 is broken")

    with pytest.raises(DataError, match="image 4"):
        decoded(tmp_path, generate=stop)
    shards, _, asked, _ = decoded(tmp_path)
    assert asked == [[4, 5], [6]]
    assert shards.texts()[:2] == ["text 0", "line\nline \u2028 é"]


def test_processes_decode_each_its_own_part_of_what_is_missing(tmp_path, monkeypatch):
    decoded(tmp_path, n_items=20)
    for shard in (1, 4, 5, 8, 9):
        (tmp_path / f"{shard:05d}.jsonl").unlink()
    # All look before any of them writes.
    missing = Shards(tmp_path, RUN, 20, 2).missing()
    monkeypatch.setattr(Shards, "missing", lambda self: missing)
    parts = []
    for index in range(2):
        state = SimpleNamespace(process_index=index, num_processes=2, wait_for_everyone=lambda: None)
        _, n, asked, waits = decoded(tmp_path, n_items=20, state=state)
        parts.append(asked)
        assert n == 10
        assert waits[0][0] == f"saying, 10 were there, process {index + 1} of 2"
    assert parts == [[[2, 3], [10, 11], [18, 19]], [[8, 9], [16, 17]]]
    assert Shards(tmp_path, RUN, 20, 2).texts() == [f"text {item}" for item in range(20)]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"item": 2, "text": "x"}', '{"item": 3, "text": "x"}\n{"item": 2, "text": "x"}']
)
def test_a_shard_that_is_not_whole_is_missing(tmp_path, line):
    shards, *_ = decoded(tmp_path)
    (tmp_path / "00001.jsonl").write_text(f"{line}\n")
    assert shards.missing() == [1]
    with pytest.raises(DataError, match=r"00001\.jsonl is missing or not whole"):
        shards.texts()


@pytest.mark.parametrize(
    ("run", "n_items", "message"),
    [
        (RUN | {"model": "b2"}, 7, "with model = 'a1', and now it is 'b2'"),
        (RUN | {"images": "blank"}, 7, "with images = None, and now it is 'blank'"),
        ({"model": "a1"}, 7, "with num_beams = 5, and now it is None"),
        (RUN, 8, "with items = 7, and now it is 8"),
    ],
)
def test_texts_of_something_else_are_refused_and_kept(tmp_path, run, n_items, message):
    decoded(tmp_path)
    with pytest.raises(DataError, match=message):
        Shards(tmp_path, run, n_items, 2)
    assert Shards(tmp_path, RUN, 7, 2).missing() == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"items_per_shard": null}'])
def test_a_description_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"run\.json: what is predicted there cannot be told"):
        Shards(tmp_path, RUN, 7, 2)


def test_removing_leaves_what_is_somebody_elses(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        shards, *_ = decoded(folder)
        (folder / ".00002.jsonl.0f.new").write_text("half")
        if folder == shared:
            (folder / "mine.txt").write_text("mine")
        shards.remove()
    assert not alone.exists()
    assert [path.name for path in shared.iterdir()] == ["mine.txt"]


def test_the_digest_of_a_folder_sees_names_and_bytes(tmp_path):
    seen = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "1")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / "inner").mkdir()
        (folder / name).write_text(content)
        seen.add(digest_of_folder(folder))
        assert digest_of_folder(folder) in seen
        (folder / "inner" / "x").write_text(content)
        assert digest_of_folder(folder) in seen
    assert len(seen) == 3


def test_the_digest_of_items_sees_questions_order_prompt_and_images_not_answers(tmp_path):
    def digest(*rows, prompt="vqa: {question}", scores=None):
        examples = [
            VqaExample(i, i, question, None, scores or {"red": 1.0}, tmp_path / image)
            for i, (question, image) in enumerate(rows)
        ]
        return digest_of_items(VqaDataset(examples, training=False, prompt=prompt))

    a, b = ("what", "1.png"), ("how", "1.png")
    assert digest(a, b) == digest(a, b, scores={"blue": 1.0})
    others = [digest(a, b), digest(b, a), digest(a), digest(a, b, prompt="{question}")]
    others += [digest(a, ("how", "2.png")), digest(("what", "1"), ("how", "1.png"))]
    assert len(set(others)) == 6


def test_images_and_regions_are_told_apart_by_place_size_and_time(tmp_path):
    def digest(*paths, regions=None):
        examples = [SimpleNamespace(image=path) for path in paths]
        return digest_of_files(SimpleNamespace(examples=examples, regions=regions))

    one, other = tmp_path / "a/1.h5", tmp_path / "b/1.h5"
    for path in (one, other):
        path.parent.mkdir()
        path.write_text("x")
    assert len({digest(one), digest(other), digest(), digest(one, other)}) == 4
    of_regions = SimpleNamespace(paths=[one])
    images, regions = {digest(one)}, {digest(None, regions=of_regions)}
    # A file that is replaced under its name is another one, be it of another time or of another size.
    for text in ("x", "longer"):
        one.write_text(text)
        os.utime(one, ns=(1, 1))
        images.add(digest(one))
        regions.add(digest(None, regions=of_regions))
    assert (len(images), len(regions)) == (3, 3)


def test_two_evaluations_are_never_at_the_same_predictions(tmp_path):
    with kept_to_one(tmp_path / "results.predictions"):
        with pytest.raises(DataError, match="is being written by another evaluation"):
            kept_to_one(tmp_path / "results.predictions").__enter__()
        with kept_to_one(tmp_path / "others.predictions"):
            pass
    with kept_to_one(tmp_path / "results.predictions"):
        pass
    assert list(tmp_path.iterdir()) == []
