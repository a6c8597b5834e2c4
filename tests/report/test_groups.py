import pytest
from story import write_run

from amad.intervals import mean_interval, paired_difference
from amad.report.groups import group_runs, paired_differences
from amad.report.run import read_run


def runs(tmp_path, *described):
    return [read_run(write_run(tmp_path / str(index), **one)) for index, one in enumerate(described)]


def test_runs_that_differ_in_seed_output_and_habits_are_one_group(tmp_path):
    habits = {
        "learning_rate": 1e-3,
        "max_steps": 40,
        "logging_steps": 5,
        "save_strategy": "steps",
        "use_cpu": True,
    }
    (group,) = group_runs(
        runs(
            tmp_path,
            {"accuracy": 80.0, "seed": 0},
            {"accuracy": 82.0, "seed": 1, "output": "runs/two", "training": habits},
            {"accuracy": 84.0, "seed": 2},
        )
    )
    assert group.name == "AMAD kl"
    assert group.score() == mean_interval([80.0, 82.0, 84.0])
    assert group.curve()[-1] == (2560, mean_interval([80.0, 82.0, 84.0]))
    assert len(group.curve()) == 4


def test_methods_are_told_apart_and_named_by_what_differs(tmp_path):
    slow = {"learning_rate": 5e-4, "max_steps": 40}
    found = group_runs(runs(tmp_path, {}, {"training": slow}, {"with_teacher": False}))
    assert [group.name for group in found] == [
        "AMAD kl, learning_rate 0.001",
        "AMAD kl, learning_rate 0.0005",
        "ground truth alone",
    ]


def test_what_most_have_in_common_goes_without_saying(tmp_path):
    def objective(temperature):
        return {"objective": {"attention": {"weight": 1.0, "variant": "kl", "temperature": temperature}}}

    found = group_runs(
        runs(
            tmp_path,
            objective(1.0) | {"pairing": "uniform"},
            objective(0.1) | {"pairing": "uniform"},
            objective(1.0) | {"pairing": "important"},
        )
    )
    assert [group.name for group in found] == [
        "AMAD kl",
        "AMAD kl, temperature 0.1",
        "AMAD kl, pairing important",
    ]


def test_what_a_lone_student_does_not_use_does_not_split_its_group(tmp_path):
    other = {"task": {"weight": 1.0}, "attention": {"weight": 2.0, "variant": "mse"}}
    found = group_runs(
        runs(
            tmp_path,
            {"with_teacher": False},
            {"with_teacher": False, "objective": other, "teacher": "elsewhere"},
        )
    )
    assert [group.name for group in found] == ["ground truth alone"]


def test_two_methods_are_compared_at_the_seeds_that_both_have(tmp_path):
    alone = [
        {"with_teacher": False, "seed": seed, "accuracy": value}
        for seed, value in ((0, 70.0), (1, 72.0), (2, 60.0))
    ]
    taught = [{"seed": seed, "accuracy": value} for seed, value in ((1, 78.0), (0, 74.0), (9, 99.0))]
    first, second = group_runs(runs(tmp_path, *alone, *taught))
    assert paired_differences([first, second]) == [(first, second, mean_interval([4.0, 6.0]))]
    assert paired_differences([first, *group_runs(runs(tmp_path / "far", {"seed": 7}))]) == []


def test_several_comparisons_have_wider_intervals_that_hold_together(tmp_path):
    values = {"alone": (70.0, 72.0, 75.0), "kl": (80.0, 81.0, 85.0), "mse": (79.0, 83.0, 80.0)}
    described = []
    for name, scores in values.items():
        objective = {"task": {"weight": 1.0}, "attention": {"weight": 1.0, "variant": name}}
        changes = {"with_teacher": False} if name == "alone" else {"objective": objective}
        described += [{"seed": seed, "accuracy": value} | changes for seed, value in enumerate(scores)]
    found = paired_differences(group_runs(runs(tmp_path, *described)))
    assert [(second.name, first.name) for first, second, _ in found] == [
        ("AMAD kl", "ground truth alone"),
        ("AMAD mse", "ground truth alone"),
    ]
    for (_, _, interval_found), one in zip(found, ("kl", "mse"), strict=True):
        theirs = paired_difference(values[one], values["alone"], n_comparisons=2)
        assert interval_found.mean == pytest.approx(theirs.mean)
        assert interval_found.low == pytest.approx(theirs.low)
        assert interval_found.high == pytest.approx(theirs.high)


def test_a_method_is_named_by_all_that_it_compares(tmp_path):
    hidden = {"weight": 1.0, "loss": "mse"}
    task = {"task": {"weight": 1.0}}
    objectives = [
        task | {"hidden": hidden},
        task | {"attention": {"weight": 1.0, "method": "one_to_one", "variant": "scores"}, "hidden": hidden},
        task | {"logits": {"weight": 1.0}},
    ]
    found = group_runs(runs(tmp_path, *({"objective": one} for one in objectives)))
    assert [group.name for group in found] == [
        "hidden states", "one to one scores and hidden states", "predictions alone",
    ]  # fmt: skip


def test_two_keys_that_end_alike_are_told_apart(tmp_path):
    def objective(logits, attention):
        return {
            "task": {"weight": 1.0},
            "logits": {"weight": logits},
            "attention": {"weight": attention, "variant": "kl"},
        }

    found = group_runs(
        runs(tmp_path, *({"objective": objective(*one)} for one in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))))
    )
    assert [group.name for group in found] == [
        "AMAD kl", "AMAD kl, objective.logits.weight 2.0", "AMAD kl, objective.attention.weight 2.0",
    ]  # fmt: skip


def test_runs_that_have_not_ended_are_not_compared(tmp_path):
    alone = [
        {"seed": seed, "accuracy": value, "with_teacher": False} for seed, value in enumerate((60.0, 61.0))
    ]
    taught = [{"seed": seed, "accuracy": 70.0 + seed} for seed in range(2)]
    first, second = group_runs(runs(tmp_path, *alone, *taught))
    going = second.runs[0]
    going.final, going.train_seconds = {}, None
    going.curve = [(1, 64, 12.0)]
    assert second.score() == mean_interval([71.0])
    ((_, _, difference),) = paired_differences([first, second])
    assert (difference.mean, difference.n) == (10.0, 1)


def test_differences_that_are_all_the_same_have_no_interval(tmp_path):
    alone = [{"seed": seed, "accuracy": 60.0 + seed, "with_teacher": False} for seed in range(2)]
    taught = [{"seed": seed, "accuracy": 62.0 + seed} for seed in range(2)]
    ((_, _, difference),) = paired_differences(group_runs(runs(tmp_path, *alone, *taught)))
    assert difference == (2.0, None, None, 2)


def test_where_each_seed_has_a_teacher_the_teacher_belongs_to_the_seed(tmp_path):
    each = [{"seed": seed, "teacher": f"t-{seed}/model", "accuracy": 80.0 + seed} for seed in range(3)]
    (group,) = group_runs(runs(tmp_path / "own", *each))
    assert group.name == "AMAD kl"
    assert group.score() == mean_interval([80.0, 81.0, 82.0])
    # Another run of a seed from another seed's teacher: then it is the teachers that are compared.
    found = group_runs(runs(tmp_path / "crossed", *each, {"seed": 0, "teacher": "t-1/model"}))
    assert len(found) == 3
    assert all("teacher t-" in group.name for group in found)


def test_teachers_that_differ_in_more_than_the_seed_are_compared(tmp_path):
    two = [{"seed": 0, "teacher": "runs/t-0/model"}, {"seed": 1, "teacher": "assets/other/model"}]
    assert len(group_runs(runs(tmp_path, *two))) == 2


def test_what_differs_between_methods_is_named_even_where_each_is_alone(tmp_path):
    found = group_runs(
        runs(
            tmp_path,
            {"training": {"learning_rate": 1e-4}},
            {"training": {"learning_rate": 1e-2}, "with_teacher": False},
        )
    )
    assert [group.name for group in found] == [
        "AMAD kl, learning_rate 0.0001",
        "ground truth alone, learning_rate 0.01",
    ]
