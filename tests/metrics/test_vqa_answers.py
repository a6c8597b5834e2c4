import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amad.metrics.vqa_answers import normalise_answer, soft_scores, strip_answer, strip_punctuation

ANSWERS = st.text(alphabet=string.ascii_letters + string.digits + " .,'-/?!;_\n\t", max_size=24)


def test_every_row_of_the_official_normaliser_is_reproduced(shared_data):
    rows = json.loads((shared_data / "metric_reference/vqa/normaliser_table.json").read_text())
    assert len(rows) > 1000
    wrong = [
        row
        for row in rows
        if (strip_punctuation(row["in"]), normalise_answer(row["in"])) != (row["punct"], row["out"])
    ]
    assert wrong == []


# By hand from the description of the official code.
@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Yes.", "yes"),
        ("  The Red Car\n", "red car"),
        ("an", ""),
        ("ten", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("red-orange", "red orange"),
        ("red -orange", "red orange"),
        ("1,000-2", "10002"),
        ("3.14", "3.14"),
        ("1.", "1"),
        ("a.m.", "am"),
        (" .5", ".5"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("its", "its"),
        ("Im", "im"),
        ("ow's'at", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("man?is", "man is"),
        ("", ""),
    ],
)
def test_worked_cases(raw, normal):
    assert normalise_answer(raw) == normal


@given(ANSWERS)
@example("1,2 , one")
def test_what_comes_out_is_lower_case_single_spaced_and_without_marks(raw):
    normal = normalise_answer(raw)
    assert normal == normal.lower() == " ".join(normal.split())
    assert not set(normal) & set("/?!;_,-")
    assert not {"a", "an", "the", "one", "none"} & set(normal.split())


@given(ANSWERS)
def test_case_and_outer_white_space_do_not_matter(raw):
    assert normalise_answer(f"\n {raw.upper()}\t") == normalise_answer(raw)
    assert strip_answer(f"\t{raw} ") == strip_answer(raw)


@given(st.text(alphabet=string.ascii_lowercase + " ", max_size=30))
def test_plain_words_change_only_by_articles_numbers_and_apostrophes(raw):
    once = normalise_answer(raw)
    assert normalise_answer(once) == once


def test_only_32_full_stops_are_removed():
    assert strip_punctuation("a" + "." * 40) == "a" + "." * 8


def test_soft_scores_count_annotators():
    answers = ["Red"] * 4 + ["a blue"] * 3 + ["2", "two"] + ["green"]
    assert soft_scores(answers) == {"red": 1.0, "blue": 0.9, "2": 0.6, "green": 0.3}


def test_the_answer_of_most_annotators_comes_first_and_the_earliest_among_equals():
    assert list(soft_scores(["a b", "c", "c", "d", "d"])) == ["c", "d", "b"]


def test_an_answer_of_which_nothing_is_left_is_left_out():
    assert soft_scores(["a", ".", "the", "x"]) == {"x": 0.3}


@given(st.lists(ANSWERS, max_size=10))
def test_soft_scores_are_in_range_and_do_not_depend_on_order(answers):
    scores = soft_scores(answers)
    assert set(scores.values()) <= {0.3, 0.6, 0.9, 1.0}
    assert soft_scores(reversed(answers)) == scores
