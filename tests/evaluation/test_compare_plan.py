import itertools
from pathlib import Path

import pytest

from amad.errors import RecipeError
from amad.evaluation.compare_plan import Arm

OUT = Path("out")


def without(recipe, *fields):
    return recipe.model_dump(exclude=set(fields))


def test_runs_of_one_seed_differ_by_their_objective_and_place_alone(describe):
    one = describe.comparison("none", "logits", "amad", "one_to_one")
    runs = [one.runs(OUT, arm, ()) for arm in one.arms]
    for seed, several in enumerate(zip(*runs, strict=True)):
        assert {run.seed for run in several} == {run.recipe.seed for run in several} == {seed}
        for run, other in itertools.combinations(several, 2):
            assert without(run.recipe, "objective", "output") == without(other.recipe, "objective", "output")
            assert run.recipe.objective != other.recipe.objective
            assert run.folder != other.folder
    assert [run.distils for run, _ in runs] == [False, True, True, True]


def test_no_two_runs_or_trials_share_a_place(describe):
    arms = [Arm(label=label, method="amad") for label in ("a", "a-1", "search", "seed-0")]
    one = describe.comparison(*arms, search={"weight": (1, 2)}, n_seeds=12)
    runs = [run for arm in one.arms for run in (*one.trials(OUT, arm), *one.runs(OUT, arm, ()))]
    places = [place for run in runs for place in (run.folder, run.recipe_file)]
    assert len(set(places)) == len(places) == 2 * 4 * 14
    assert {run.name for run in runs} == {
        f"{label}, {what}"
        for label in ("a", "a-1", "search", "seed-0")
        for what in ("trial 0", "trial 1", *(f"seed {seed}" for seed in range(12)))
    }


def test_an_arm_is_its_method_and_then_its_own_keys(describe):
    sharp = Arm(
        label="sharp", method="amad-mse", overrides=("objective.attention.temperature=0.1", "pairing=last")
    )
    made = describe.comparison("none", sharp).runs(OUT, sharp, ())[1].recipe
    assert (made.objective.attention.variant, made.objective.attention.temperature) == ("mse", 0.1)
    assert (made.pairing, made.seed, made.output) == ("last", 1, "out/runs/sharp/seed-1")


def test_an_arm_without_any_term_of_a_teacher_is_trained_alone(describe):
    arm = Arm(label="a", method="amad", overrides=("objective.attention=null", "objective.logits=null"))
    assert not describe.comparison(arm, "logits").runs(OUT, arm, ())[0].distils


def test_every_arm_tries_every_combination_of_what_applies_to_it(describe):
    one = describe.comparison(
        "none", "logits", "amad", search={"learning_rate": (1e-3, 2e-3), "weight": (0.3, 1, 3)}
    )
    none, logits, amad = one.arms
    assert one.settings(none) == [("training.learning_rate=0.001",), ("training.learning_rate=0.002",)]
    weighted = {arm.label: {setting[1] for setting in one.settings(arm)} for arm in (logits, amad)}
    assert weighted == {
        name: {f"objective.{section}.weight={weight}" for weight in (0.3, 1, 3)}
        for name, section in (("logits", "logits"), ("amad", "attention"))
    }
    trials = one.trials(OUT, amad)
    assert len(trials) == len(set(one.settings(amad))) == 6
    tried = {(t.recipe.training["learning_rate"], t.recipe.objective.attention.weight) for t in trials}
    assert tried == set(itertools.product((1e-3, 2e-3), (0.3, 1, 3)))
    assert all(trial.recipe.objective.logits == one.recipe.objective.logits for trial in trials)
    assert {trial.recipe.seed for trial in trials} == {100}


def test_nothing_is_searched_where_there_is_nothing_to_choose(describe):
    one = describe.comparison("none", "amad", search={"weight": (1, 2)})
    none, amad = one.arms
    assert (one.trials(OUT, none), one.settings(none)) == ([], [()])
    assert len(one.trials(OUT, amad)) == 2
    single = describe.comparison("none", "amad", search={"weight": (5,)})
    assert single.trials(OUT, single.arms[1]) == []
    assert single.settings(single.arms[1]) == [("objective.attention.weight=5",)]


def test_what_an_arm_sets_itself_and_what_its_method_does_not_read_is_not_searched(describe):
    fixed = Arm(label="fixed", method="amad", overrides=("objective.attention.temperature=0.5",))
    one = describe.comparison(
        "one_to_one", "amad", fixed, search={"objective.attention.temperature": (0.1, 1)}
    )
    assert [len(one.settings(arm)) for arm in one.arms] == [1, 2, 1]
    assert one.runs(OUT, fixed, ())[0].recipe.objective.attention.temperature == 0.5


NOTHING = ("data.validation=null", "data.holdout=null")
SHORT = Arm(label="short", method="amad", overrides=("training.max_steps=5",))


def test_the_same_batch_may_be_taken_in_parts(describe):
    halves = Arm(
        label="halves",
        method="amad",
        overrides=("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2"),
    )
    training = describe.recipe().training | {"per_device_train_batch_size": 8}
    assert describe.comparison("none", halves, recipe=describe.recipe(training=training)).arms[1] == halves


@pytest.mark.parametrize(
    ("arms", "more", "said"),
    [
        (["amad"], {}, "two arms at least, and this one has 1"),
        (["none", "none"], {}, "two arms have the label 'none'"),
        (["none", "amda"], {}, "'amda'"),
        (["none", Arm(label="../up", method="amad")], {}, "'../up' must be fit to name a folder"),
        (
            ["none", Arm(label="x", method="amad", overrides=("objective.attention.temp=1",))],
            {},
            "arm 'x'.*temp",
        ),
        (
            ["none", Arm(label="x", method="amad", overrides=("teacher=u",))],
            {},
            "'x' has the teacher u.* t: all",
        ),
        (["none", "amad"], {"baseline": "mean"}, "baseline 'mean' is none of the arms none, amad"),
        (["none", "amad"], {"search": {"weight": (1, 2)}, "search_seed": 1}, "search has seed 1.*0 to 1 are"),
        (["none", "amad"], {"search": {"objectiv.attention.weight": (1, 2)}}, "applies to no arm"),
        (["none", "amad"], {"search": {"objective.attention.wieght": (1, 2)}}, "did you mean 'weight'"),
        (["none", "amad"], {"search": {"weight": (1, -2)}}, "greater than or equal to 0"),
        (["none", "amad"], {"report": ("data.holdout.seed=1",)}, "would report on what was trained on"),
        (["none", "amad"], {"report": ("data.validatoin=null",)}, "did you mean 'validation'"),
        (["none", "amad"], {"report": NOTHING}, "--report leaves nothing to report on"),
        (["none", SHORT], {}, "arm 'short' has training.max_steps 5, and the comparison"),
        (["none", "amad"], {"search": {"training.max_steps": (5, 6)}}, "has training.max_steps 5"),
        (["none", "amad"], {"search": {"training.per_device_train_batch_size": (5, 6)}}, "has a batch of 5"),
    ],
)
def test_what_cannot_be_compared_is_refused(describe, arms, more, said):
    with pytest.raises(RecipeError, match=said):
        describe.comparison(*arms, **more)


@pytest.mark.parametrize(
    ("teacher", "other", "said"),
    [
        ("t-0", "t-{seed}", "'x' has the teacher t-1, and the comparison t-0"),
        ("t-{seed}", "t-0", "'x' has the teacher t-0, and the comparison t-1"),
    ],
)
def test_all_arms_learn_from_one_teacher_whatever_the_seed(describe, teacher, other, said):
    arm = Arm(label="x", method="amad", overrides=(f"teacher={other}",))
    with pytest.raises(RecipeError, match=said):
        describe.comparison("none", arm, recipe=describe.recipe(teacher=teacher))


def test_each_seed_may_have_a_teacher_of_its_own(describe):
    one = describe.comparison(
        "none", "amad", recipe=describe.recipe(teacher="t-{seed}/m"), search={"weight": (1, 2)}
    )
    assert one.has_teachers
    for arm in one.arms:
        assert [run.recipe.teacher for run in one.runs(OUT, arm, ())] == ["t-0/m", "t-1/m"]
    assert {trial.recipe.teacher for trial in one.trials(OUT, one.arms[1])} == {"t-100/m"}
    assert not describe.comparison("none", "amad").has_teachers


def test_without_anything_to_validate_on_nothing_is_compared(describe):
    data = {"root": "d", "train": {"questions": "q.json"}}
    with pytest.raises(RecipeError, match=r"Give data\.validation or data\.holdout"):
        describe.comparison("none", "amad", recipe=describe.recipe(data=data))


@pytest.mark.parametrize(
    ("task", "data", "report"),
    [
        (
            "vqa",
            {"train": {"questions": "q.json"}, "holdout": {"share": 0.1}},
            ("data.holdout=null", "data.validation.questions=q.json"),
        ),
        (
            "vqa",
            {
                "train": {"questions": "q.json"},
                "also_train": [{"questions": "more.json"}],
                "validation": {"questions": "v.json"},
            },
            ("data.validation.questions=more.json",),
        ),
        (
            "captions",
            {
                "train": {"captions": "c.json", "split": "train"},
                "validation": {"captions": "c.json", "split": "val"},
            },
            ("data.validation.split=train",),
        ),
        ("translation", {"validation": "val"}, ("data.validation=train",)),
    ],
)
def test_what_was_trained_on_is_not_reported_on(describe, task, data, report):
    recipe = describe.recipe(task=task, data={"root": "d"} | data)
    describe.comparison("none", "amad", recipe=recipe)
    with pytest.raises(RecipeError, match="would report on what was trained on"):
        describe.comparison("none", "amad", recipe=recipe, report=report)


def test_other_data_may_be_reported_on(describe):
    report = ("data.holdout=null", "data.validation={questions: test.json}")
    one = describe.comparison("none", "amad", report=report)
    assert one.reported_recipe.data.validation.questions == "test.json"
    assert one.recipe.data.validation is None


def test_a_task_without_one_figure_is_refused(describe):
    data = {"root": "d", "train": {"captions": "c.json"}}
    preparing = describe.recipe(task="captions", data=data | {"validation": {"captions": "v.json"}})
    assert describe.comparison("none", "amad", recipe=preparing).n_comparisons == 1
    with pytest.raises(RecipeError, match="task 'pretraining' has no one figure"):
        describe.comparison("none", "amad", recipe=preparing.model_copy(update={"task": "pretraining"}))
