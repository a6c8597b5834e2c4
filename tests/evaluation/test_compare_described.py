import pytest
import yaml

from amad.errors import RecipeError
from amad.evaluation.compare_described import (
    COMPARISON_FILE,
    check_overrides,
    parse_arms,
    parse_search,
    read_comparison,
    write_comparison,
)
from amad.evaluation.compare_plan import Arm


def test_methods_are_arms_of_their_own_name_and_arms_follow():
    found = parse_arms(
        "none, amad", ["sharp: amad objective.attention.temperature=0.1 pairing='{a: last, b: first}'"]
    )
    assert found == (
        Arm(label="none", method="none"),
        Arm(label="amad", method="amad"),
        Arm(
            label="sharp",
            method="amad",
            overrides=("objective.attention.temperature=0.1", "pairing={a: last, b: first}"),
        ),
    )


@pytest.mark.parametrize("text", ["sharp", "sharp:", "sharp: 'amad", ""])
def test_a_malformed_arm_is_refused(text):
    with pytest.raises(RecipeError, match=r"is not 'LABEL: METHOD key=value \.\.\.'"):
        parse_arms(None, [text])


def test_values_of_a_search_are_yaml():
    found = parse_search(["learning_rate=1e-3,2e-3", "pairing=last,[[0, 1]]", "weight = 1, 0.3"])
    assert found == {"learning_rate": (1e-3, 2e-3), "pairing": ("last", [[0, 1]]), "weight": (1, 0.3)}


@pytest.mark.parametrize("text", ["weight", "weight=", "=1,2", "weight=[1"])
def test_a_malformed_search_is_refused(text):
    with pytest.raises(RecipeError, match=r"is not KEY=VALUE,VALUE"):
        parse_search([text])


def test_a_key_is_searched_once():
    with pytest.raises(RecipeError, match="weight twice"):
        parse_search(["weight=1", "weight=2"])


@pytest.mark.parametrize("call", [lambda text: check_overrides([text]), lambda text: parse_search([text])])
def test_what_the_comparison_decides_is_not_overridden(call):
    with pytest.raises(RecipeError, match=r"the comparison decides seed\. Give --seeds"):
        call("seed=3")
    with pytest.raises(RecipeError, match="the comparison decides output"):
        parse_arms(None, ["a: amad output=there"])


def test_what_is_written_reads_back_and_goes_on(describe, tmp_path):
    sharp = Arm(label="sharp", method="amad", overrides=("objective.attention.temperature=0.1",))
    one = describe.comparison(
        "none",
        sharp,
        search={"learning_rate": (1e-5, 2e-3), "pairing": ("last", [[0, 1]])},
        report=("data.holdout=null", "data.validation={questions: test.json}"),
    )
    folder = tmp_path / "deep" / "compare"
    write_comparison(one, folder)
    assert read_comparison(folder) == one
    before = (folder / COMPARISON_FILE).read_bytes()
    write_comparison(one, folder)
    assert (folder / COMPARISON_FILE).read_bytes() == before


def test_labels_that_look_like_numbers_are_labels(describe, tmp_path):
    arms = [
        Arm(label=label, method="amad", overrides=("training.learning_rate=5e-5",))
        for label in ("5e-5", "5e-5-long", "1e3")
    ]
    one = describe.comparison("none", *arms)
    write_comparison(one, tmp_path)
    assert read_comparison(tmp_path) == one


def test_arms_and_seeds_may_be_added_and_the_baseline_and_place_changed(describe, tmp_path):
    write_comparison(describe.comparison("none", "amad"), tmp_path)
    moved = describe.recipe(output="elsewhere")
    more = describe.comparison("amad", "logits", "none", n_seeds=3, baseline="logits", recipe=moved)
    write_comparison(more, tmp_path)
    assert read_comparison(tmp_path) == more


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda describe: describe.comparison("none", "logits"), r"arm 'amad' \(amad\), which is missing"),
        (
            lambda describe: describe.comparison("none", Arm(label="amad", method="amad-mse")),
            r"arm 'amad' \(amad\), which is another one now",
        ),
        (
            lambda describe: describe.comparison("none", "amad", n_seeds=1),
            "compares 2 seeds, and 1 are asked for",
        ),
        (
            lambda describe: describe.comparison("none", "amad", search={"weight": (1, 2)}),
            r"search\.weight is None",
        ),
        (
            lambda describe: describe.comparison("none", "amad", search_seed=7),
            "search_seed is 100, and 7 is given",
        ),
        (
            lambda describe: describe.comparison(
                "none", "amad", recipe=describe.recipe(training={"max_steps": 11})
            ),
            r"recipe\.training\.max_steps is 10, and 11 is given",
        ),
    ],
)
def test_another_comparison_does_not_take_the_place_of_one(describe, tmp_path, other, said):
    write_comparison(describe.comparison("none", "amad"), tmp_path)
    before = (tmp_path / COMPARISON_FILE).read_bytes()
    with pytest.raises(RecipeError, match=said):
        write_comparison(other(describe), tmp_path)
    assert (tmp_path / COMPARISON_FILE).read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(describe, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="is no comparison, and nothing is overwritten"):
        write_comparison(describe.comparison("none", "amad"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(RecipeError, match=r"has no compare\.yaml"):
        read_comparison(tmp_path)


@pytest.mark.parametrize("text", ["[", "arms: 3", "- 1"])
def test_a_file_that_was_broken_is_named(tmp_path, text):
    (tmp_path / COMPARISON_FILE).write_text(text)
    with pytest.raises(RecipeError, match=r"compare\.yaml cannot be read"):
        read_comparison(tmp_path)


def test_a_file_that_was_changed_to_break_a_rule_is_refused(describe, tmp_path):
    write_comparison(describe.comparison("none", "amad"), tmp_path)
    path = tmp_path / COMPARISON_FILE
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"baseline": "mean"}))
    with pytest.raises(RecipeError, match="baseline 'mean' is none of the arms"):
        read_comparison(tmp_path)
