import json
from pathlib import Path

import pytest

from amad.data.problems import BadExample, Problems, iter_present
from amad.data.translation import TranslationExample
from amad.errors import DataError

FILE = Path("captions.json")


def read(problems, numbers=(1, -1, 2, -2)):
    kept = []
    for i, number in enumerate(numbers):
        with problems.at(FILE, f"item {i}"):
            if number < 0:
                raise DataError(f"{FILE}, item {i}: must be positive but is {number}.")
            kept.append(number)
    return kept


def test_the_first_bad_example_is_refused_by_default():
    problems = Problems()
    with pytest.raises(DataError, match=r"item 1: must be positive but is -1.*data\.on_bad_example=skip"):
        read(problems)
    assert problems.n_bad == 0


def test_bad_examples_are_left_out_counted_and_listed(tmp_path):
    problems = Problems("skip")
    assert read(problems) == [1, 2]
    assert problems.n_bad == 2
    assert problems.counts() == {"captions.json": 2}
    assert list(problems)[1] == BadExample(
        "captions.json", "item 3", "captions.json, item 3: must be positive but is -2."
    )
    problems.write(tmp_path / "bad.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert rows == [
        {"file": "captions.json", "entry": f"item {i}", "message": f"captions.json, item {i}: must be {rest}"}
        for i, rest in ((1, "positive but is -1."), (3, "positive but is -2."))
    ]


def test_without_bad_examples_the_list_is_empty(tmp_path):
    Problems("skip").write(tmp_path / "bad.jsonl")
    assert (tmp_path / "bad.jsonl").read_text() == ""


def test_a_fault_of_the_program_is_never_left_out():
    with pytest.raises(ZeroDivisionError), Problems("skip").at(FILE, "item 0"):
        raise ZeroDivisionError


def kept(folder, names, problems):
    examples = [TranslationExample("A.", "B.", name and folder / name, i) for i, name in enumerate(names, 1)]
    return [one.image and one.image.name for one in iter_present(examples, FILE, problems)]


def test_examples_whose_image_is_missing_are_found_by_either_policy(tmp_path):
    (tmp_path / "a.jpg").touch()
    names = ["a.jpg", "b.jpg", None, "c.jpg"]
    with pytest.raises(DataError, match=r"b\.jpg: no such image, needed by captions\.json, line 2 \(2"):
        kept(tmp_path, names, Problems())
    problems = Problems("skip")
    assert kept(tmp_path, names, problems) == ["a.jpg", None]
    assert [bad.entry for bad in problems] == ["line 2", "line 4"]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_missing_folder_is_refused_by_either_policy(tmp_path, policy):
    with pytest.raises(DataError, match=r"none: .*folder.*captions\.json"):
        kept(tmp_path / "none", ["a.jpg"], Problems(policy))
