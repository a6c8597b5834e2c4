"""Every method distils: one step of each, from the same teacher into the same student; variants mse aside."""

import pytest
import torch
from safetensors.torch import load_file

from amad.methods import METHODS, apply_method
from amad.recipe import check_recipe
from amad.records import read_records

ATTENTION = [name for name, method in METHODS.items() if method.changes["attention"]]


@pytest.fixture
def distil(student_tree, amad, tmp_path):
    def one_step(name, **training):
        tree = student_tree | {"output": str(tmp_path / name)}
        tree["training"] = {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
        } | training
        recipe = apply_method(check_recipe(tree), name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.dump())
        result = amad.document("distill", path)
        events = read_records(tmp_path / name / "records.jsonl")
        return result, events

    return one_step


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("-mse")])
def test_one_step_of_every_method(name, distil, tmp_path):
    result, events = distil(name)
    (step,) = [event for event in events if event["event"] == "step" and "loss" in event]
    method = METHODS[name].changes
    terms = {key.removeprefix("loss_") for key in step if key.startswith("loss_")}
    assert ("attention" in terms) == (name in ATTENTION)
    assert ("hidden" in terms) == (name in ("hidden", "hidden-cosine", "tinybert", "amad-important-hidden"))
    assert ("logits" in terms) == (name != "none")
    for key in terms:
        assert step[f"loss_{key}"] > 0, key
    shown = [event for event in events if event["event"] == "alignment"]
    if name in ATTENTION and name != "relations":
        assert all(0 <= event["collapse"] <= 1 and event["coverage"] > 0 for event in shown), method
        assert shown
    assert all(torch.isfinite(x).all() for x in load_file(f"{result['model']}/model.safetensors").values())


def test_a_learned_mixture_is_trained_and_stays_out_of_the_student(distil, tmp_path):
    result, _ = distil("learned", save_strategy="steps", save_steps=1)
    (path,) = (tmp_path / "learned").glob("checkpoints/*/objective.safetensors")
    trained = load_file(path)
    assert trained
    assert all(name.startswith("terms.attention.scores.") and value.any() for name, value in trained.items())
    assert not any("scores" in name for name in load_file(f"{result['model']}/model.safetensors"))
