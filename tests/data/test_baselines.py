import pytest

from amad.data.baselines import answer_baselines
from amad.data.vqa import VqaExample, holdout_by_image, read_vqa_v2
from amad.errors import DataError


def example(question, **scores):
    return VqaExample(0, 0, question, None, scores, None)


def test_by_hand():
    train = [
        example("what color?", red=1.0),
        example("what color?", red=0.3, blue=0.9),
        example("how many?", two=1.0),
        example("how many?", two=1.0),
    ]
    validation = [
        example("What  color?", red=1.0),
        example("what color?", blue=1.0),
        example("how many?", two=0.6),
        example("why?", two=1.0),
    ]
    baselines = answer_baselines(train, validation)
    assert baselines.majority_answer == "two"
    assert baselines.majority == 40.0
    assert baselines.question_only == 65.0
    assert (baselines.n_train, baselines.n_validation) == (4, 4)


def test_the_alphabet_decides_between_equals():
    assert (
        answer_baselines([example("?", b=1.0), example("?", a=1.0)], [example("?", a=1.0)]).majority_answer
        == "a"
    )


def test_a_single_answer_to_everything_is_all_right_without_looking():
    rows = [example("is it?", yes=1.0)] * 3
    assert answer_baselines(rows, rows).question_only == 100.0


def test_nothing_to_learn_from_or_to_score_is_refused():
    for train, validation in [
        ([], [example("?", a=1.0)]),
        ([example("?", a=1.0)], []),
        ([example("?")], [example("?")]),
    ]:
        with pytest.raises(DataError, match="baselines need"):
            answer_baselines(train, validation)


def test_the_easy_set_is_as_guessable_as_published(shared_data):
    # 67.0 % is stated for the set's own test split; a holdout by image differs a little.
    folder = shared_data / "easy_vqa"
    examples = list(read_vqa_v2(folder / "questions.json", folder / "annotations.json"))
    train, held = ([examples[i] for i in part] for part in holdout_by_image(examples, 0.1, 0))
    baselines = answer_baselines(train, held)
    assert 35 < baselines.majority < 40
    assert 63 < baselines.question_only < 70
