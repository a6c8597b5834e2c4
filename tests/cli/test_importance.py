import json
from pathlib import Path

import pytest

pytest.importorskip("scipy")


def test_every_head_is_measured_both_ways(amad, student_tree, taught, tmp_path):
    path = amad.write(student_tree)
    told = amad.document("importance", taught.model, "--data", path, "--examples", 16)
    listed = amad.document("inspect", taught.model)["models"]["model"]
    for rows in told["importance"].values():
        assert [(row["stack"], row["layer"], len(row["heads"])) for row in rows] == [
            (site["stack"], site["layer"], site["heads"]) for site in listed
        ]
    assert told["examples"] == 16
    assert told["loss"] > 0
    assert -1 <= told["rank_correlation"] <= 1
    # Slopes are sums of absolute values; ablation may show that a head does harm.
    assert all(value >= 0 for row in told["importance"]["gradient"] for value in row["heads"])
    once = amad.document(
        "importance", taught.model, "--data", path, "--examples", 16, "--estimate", "gradient"
    )
    assert once["importance"]["gradient"] == told["importance"]["gradient"]
    assert set(once["importance"]) == {"gradient"}


def test_the_table_and_the_picture(amad, student_tree, taught):
    pytest.importorskip("matplotlib")
    path = amad.write(student_tree)
    words = amad.succeed(
        "importance",
        taught.model,
        "--data",
        path,
        "--examples",
        8,
        "--estimate",
        "gradient",
        "--plot",
        "heads.svg",
    )
    assert "encoder.self[0]" in words
    assert "</svg>" in Path("heads.svg").read_text()


def test_important_layers_teach(amad, student_tree, taught):
    path = amad.write(student_tree | {"pairing": "important"})
    measured = amad.document("importance", taught.model, "--data", path, "--estimate", "ablation")
    plan = amad.document("distill", path, "--dry-run")
    worth = {}
    for row in measured["importance"]["ablation"]:
        worth.setdefault(row["stack"], []).append(sum(max(value, 0) for value in row["heads"]))
    for stack, layers in worth.items():
        taught_by = [
            int(pair["teacher"].split("[")[1][:-1])
            for pair in plan["pairs"]
            if pair["teacher"].startswith(stack)
        ]
        best = sorted(range(len(layers)), key=layers.__getitem__, reverse=True)[: len(taught_by)]
        assert taught_by == sorted(best)


def test_what_it_needs_is_said_before_anything_is_computed(amad, student_tree, taught):
    path = amad.write(student_tree)
    assert "--data RECIPE" in amad.refuse("importance", taught.model)
    assert ".bmp" in amad.refuse("importance", taught.model, "--data", path, "--plot", "heads.bmp")
    assert "no folder" in amad.refuse(
        "importance", taught.model, "--data", path, "--plot", "nowhere/heads.png"
    )
    assert "none-such" in amad.refuse("importance", "none-such", "--data", path)


def test_examples_that_the_model_cannot_say_are_refused(amad, student_tree, taught, own_scenes):
    (file,) = own_scenes.glob("annotations_train.json")
    document = json.loads(file.read_text())
    for annotation in document["annotations"]:
        for answer in annotation["answers"]:
            answer["answer"] = "xyzzy"
    file.write_text(json.dumps(document))
    student_tree["data"]["root"] = str(own_scenes)
    message = amad.refuse("importance", taught.model, "--data", amad.write(student_tree))
    assert "unknown to the tokenizer" in " ".join(message.split())


def test_heads_that_matter_teach_more(amad, student_tree, taught):
    even = amad.document("distill", amad.write(student_tree), "training.max_steps=3", "output=even")
    tree = student_tree | {"pairing": "important"}
    tree["objective"] = {"attention": {"head_weights": "importance"}}
    weighed = amad.document("distill", amad.write(tree), "training.max_steps=3", "output=weighed")
    assert weighed["examples_seen"] == even["examples_seen"]
    first = [
        next(
            line
            for line in map(json.loads, Path(f"{name}/records.jsonl").read_text().splitlines())
            if line["event"] == "step"
        )
        for name in ("even", "weighed")
    ]
    assert first[0]["loss_task"] == pytest.approx(first[1]["loss_task"], rel=1e-5)
    assert first[0]["loss_attention"] != pytest.approx(first[1]["loss_attention"], rel=1e-3)
