"""What each method changes in a recipe, and what it leaves as it is."""

import pytest

from amad.errors import RecipeError
from amad.methods import METHODS, apply_method
from amad.recipe import check_recipe


def recipe(objective=None, **more):
    tree = {
        "task": "vqa",
        "output": "runs/x",
        "data": {"root": "d", "train": {"questions": "q.json"}},
        "teacher": "t",
        "student": {"heads": 2},
        "objective": objective or {},
    }
    return check_recipe(tree | more)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_nothing_but_the_objective_and_is_final(name):
    before = recipe(
        {"attention": {"weight": 3.0, "stacks": {"encoder.self": 2.0}}, "logits": {"weight": 5.0}}
    )
    after = apply_method(before, name)
    assert after.model_dump(exclude={"objective", "pairing"}) == before.model_dump(
        exclude={"objective", "pairing"}
    )
    assert after.pairing == (METHODS[name].pairing or before.pairing)
    assert after.objective.task == before.objective.task
    assert apply_method(after, name) == after


def test_the_layers_that_matter_are_a_matter_of_the_pairing():
    before = recipe({"attention": {"weight": 3.0}}, pairing={"encoder.self": "last"})
    after = apply_method(before, "amad-important")
    assert after.pairing == "important-encoder"
    assert after.objective == apply_method(before, "amad").objective
    assert apply_method(before, "amad").pairing == {"encoder.self": "last"}


def test_weights_and_stacks_stay_as_they_are():
    before = recipe({"attention": {"weight": 3.0, "stacks": {"encoder.self": 2.0}, "variant": "mse"}})
    after = apply_method(before, "amad-token").objective
    assert (after.attention.weight, after.attention.stacks) == (3.0, {"encoder.self": 2.0})
    assert after.attention.variant == "token"
    assert after.logits == before.objective.logits


def test_the_ground_truth_alone_has_one_term():
    after = apply_method(recipe(), "none").objective
    assert (after.logits, after.attention, after.hidden) == (None, None, None)


def test_hidden_states_alone_or_with_scores():
    before = recipe({"hidden": {"weight": 3.0, "loss": "cosine"}, "attention": {"temperature": 2.0}})
    alone, both = (apply_method(before, name).objective for name in ("hidden", "tinybert"))
    assert (alone.attention, alone.hidden.weight, alone.hidden.loss) == (None, 3.0, "mse")
    assert (both.attention.method, both.attention.variant, both.hidden) == (
        "one_to_one",
        "scores",
        alone.hidden,
    )
    assert apply_method(before, "mean").objective.hidden is None


def test_predictions_alone_come_back_where_the_recipe_left_them_out():
    after = apply_method(recipe({"logits": None}), "logits").objective
    assert after.attention is None
    assert after.logits.weight == 1.0


@pytest.mark.parametrize(("name", "divergence"), [("logits-reverse", "reverse_kl"), ("logits-jsd", "jsd")])
def test_predictions_are_compared_by_the_divergence_of_the_name(name, divergence):
    after = apply_method(recipe({"logits": {"weight": 5.0}}), name).objective
    assert (after.logits.weight, after.logits.divergence, after.attention) == (5.0, divergence, None)


def test_an_attention_method_adds_no_predictions():
    after = apply_method(recipe({"logits": None, "attention": None}), "amad").objective
    assert after.logits is None
    assert after.attention.variant == "kl"


def test_the_temperature_is_the_recipes_unless_the_method_sets_it():
    before = recipe({"attention": {"temperature": 0.5}})
    assert apply_method(before, "amad").objective.attention.temperature == 0.5
    assert apply_method(before, "amad-sharp").objective.attention.temperature == 0.1


def test_keys_that_only_amad_reads_do_not_stay_for_another_method():
    before = recipe({"attention": {"temperature": 0.5, "detach_alignment": True, "weight": 4.0}})
    after = apply_method(before, "mean-mse").objective.attention
    assert (after.method, after.variant, after.weight) == ("mean", "mse", 4.0)
    assert (after.temperature, after.detach_alignment) == (1.0, False)


def test_an_unknown_method_is_refused_with_those_that_there_are():
    with pytest.raises(RecipeError, match=r"method 'amad-mes' is none of none, logits, logits-reverse, "):
        apply_method(recipe(), "amad-mes")


@pytest.mark.parametrize("missing", ["teacher", "student"])
def test_a_recipe_without_teacher_or_student_is_refused(missing):
    with pytest.raises(RecipeError, match="lacks one of them"):
        apply_method(recipe(**{missing: None}), "amad")


def test_the_ground_truth_alone_needs_a_task_term():
    with pytest.raises(RecipeError, match=r"objective\.task is null"):
        apply_method(recipe({"task": None}), "none")
