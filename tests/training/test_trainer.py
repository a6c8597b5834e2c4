import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration, TrainerCallback

from amad.axes import SiteKey, SitePair
from amad.errors import CaptureError, CheckpointError, PairingError, RecipeError, ShapeError
from amad.losses.objective import Objective
from amad.losses.task import TaskLoss
from amad.training.arguments import DistillationArguments, make_arguments
from amad.training.trainer import OBJECTIVE, OBJECTIVE_FILE, DistillationTrainer

sys.path.insert(0, str(Path(__file__).parent))
import toy


@pytest.mark.parametrize("variant", ["kl", "mse", "token", "projected"])
def test_four_accumulated_batches_of_two_give_the_update_of_one_batch_of_eight(tmp_path, variant):
    whole = toy.trainer(tmp_path / "whole", variant=variant)
    parts = toy.trainer(
        tmp_path / "parts", variant=variant, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    start = toy.weights(whole.model)
    whole.train()
    parts.train()
    moved = toy.largest_difference(toy.weights(whole.model), start)
    assert moved > 1e-3
    assert toy.largest_difference(toy.weights(whole.model), toy.weights(parts.model)) < 1e-5 * max(moved, 1)


def test_the_logged_parts_are_those_of_the_whole_step_however_it_is_split(tmp_path):
    whole = toy.trainer(tmp_path / "whole")
    parts = toy.trainer(tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for one in (whole, parts):
        one.train()
    logged = [
        next(entry for entry in one.state.log_history if "loss_attention" in entry) for one in (whole, parts)
    ]
    for name in ("loss_task", "loss_logits", "loss_attention", "share_attention"):
        assert logged[0][name] == pytest.approx(logged[1][name], rel=1e-4)
    assert logged[0]["loss"] == pytest.approx(
        logged[0]["loss_task"] + logged[0]["loss_logits"] + logged[0]["loss_attention"], rel=1e-4
    )
    assert sum(logged[0][f"share_{name}"] for name in ("task", "logits", "attention")) == pytest.approx(1)
    assert 0 < logged[0]["alignment_entropy"] <= 1
    assert 0.5 <= logged[0]["alignment_largest"] <= 1


@pytest.mark.parametrize("variant", ["kl", "projected"])
def test_two_steps_and_two_resumed_ones_equal_four_to_the_bit(tmp_path, variant):
    settings = {
        "variant": variant,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 4,
    }
    straight = toy.trainer(tmp_path / "straight", **settings)
    straight.train()
    resumed = toy.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert toy.largest_difference(toy.weights(straight.model), toy.weights(resumed.model)) == 0.0
    assert toy.weights(straight.objective).keys() == toy.weights(resumed.objective).keys()
    if variant == "projected":
        assert toy.largest_difference(toy.weights(straight.objective), toy.weights(resumed.objective)) == 0.0


def test_a_checkpoint_is_the_ordinary_student_with_the_objective_beside_it(tmp_path):
    trainer = toy.trainer(tmp_path, variant="projected", save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    assert not [
        name for name in load_file(folder / "model.safetensors") if OBJECTIVE in name or "teacher" in name
    ]
    assert load_file(folder / OBJECTIVE_FILE)
    again, info = T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert toy.largest_difference(toy.weights(again), toy.weights(trainer.model)) == 0.0
    assert not hasattr(trainer.model, OBJECTIVE)


def test_the_teacher_is_frozen_and_stays_as_it_was(tmp_path):
    teacher = toy.t5(4, 2, 32, seed=1)
    before = toy.weights(teacher)
    toy.trainer(tmp_path, teacher=teacher).train()
    assert toy.largest_difference(before, toy.weights(teacher)) == 0.0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_gradient_checkpointing_changes_no_update(tmp_path):
    plain = toy.trainer(tmp_path / "plain")
    saving = toy.trainer(tmp_path / "saving", gradient_checkpointing=True)
    plain.train()
    saving.train()
    assert toy.largest_difference(toy.weights(plain.model), toy.weights(saving.model)) < 1e-6


def test_the_attention_term_moves_queries_and_keys_that_the_others_would_not(tmp_path):
    with_attention, without = toy.trainer(tmp_path / "a"), toy.trainer(tmp_path / "b", attention_weight=0.0)
    with_attention.train()
    without.train()
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert (
        float((with_attention.model.state_dict()[name] - without.model.state_dict()[name]).abs().max()) > 1e-6
    )


def test_bf16_autocast_trains(tmp_path):
    trainer = toy.trainer(tmp_path, bf16=True, max_steps=2)
    trainer.train()
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def parts_add_up(figures, prefix=""):
    """Whether the weighted terms, all of weight one, make the loss beside them."""
    parts = [figures[f"{prefix}loss_{name}"] for name in ("task", "logits", "attention")]
    return figures[f"{prefix}loss"] == pytest.approx(sum(parts), rel=1e-4)


def training_logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("generates", [True, False])
def test_evaluation_reports_every_term_and_its_share(tmp_path, generates):
    metrics = toy.trainer(tmp_path, predict_with_generate=generates, per_device_eval_batch_size=3).evaluate()
    assert parts_add_up(metrics, "eval_")
    assert sum(metrics[f"eval_share_{name}"] for name in ("task", "logits", "attention")) == pytest.approx(1)


def test_a_prediction_or_another_evaluation_leaves_nothing_in_the_next_one(tmp_path):
    trainer = toy.trainer(tmp_path, per_device_eval_batch_size=2)
    first = trainer.evaluate()
    predicted = trainer.predict(toy.Sentences(12)).metrics
    assert parts_add_up(predicted, "test_")
    assert parts_add_up(trainer.evaluate(toy.Sentences(12), metric_key_prefix="other"), "other_")
    again = trainer.evaluate()
    for name in ("eval_loss", "eval_loss_task", "eval_loss_attention"):
        assert again[name] == pytest.approx(first[name], rel=1e-6)


def test_logged_parts_are_means_over_the_steps_since_the_last_log_with_evaluations_between(tmp_path):
    trainer = toy.trainer(tmp_path, max_steps=6, logging_steps=3, eval_strategy="steps", eval_steps=2)
    trainer.train()
    logs = training_logs(trainer)
    assert [entry["step"] for entry in logs] == [3, 6]
    assert all(map(parts_add_up, logs))


def test_parts_add_up_after_resuming_between_two_logs(tmp_path):
    settings = {"max_steps": 6, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4}
    toy.trainer(tmp_path / "first", **settings).train()
    resumed = toy.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    assert parts_add_up(training_logs(resumed)[-1])


def test_training_again_starts_its_sums_anew(tmp_path):
    trainer = toy.trainer(tmp_path, max_steps=5, logging_steps=2)
    trainer.train()
    trainer.train()
    assert [entry["step"] for entry in training_logs(trainer)] == [2, 4]
    assert all(map(parts_add_up, training_logs(trainer)))


class Interruption(TrainerCallback):
    """Control-C after the first of several accumulated batches."""

    def on_substep_end(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_an_interruption_leaves_an_ordinary_student_that_can_train_again(tmp_path):
    trainer = toy.trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2)
    plain = {name: set(vars(module)) for name, module in trainer.model.named_modules()}
    trainer.add_callback(Interruption)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    left = {name: set(vars(module)) - plain[name] for name, module in trainer.model.named_modules()}
    assert {name for names in left.values() for name in names} <= {"_is_accelerate_prepared"}
    assert not hasattr(trainer.model, OBJECTIVE)
    trainer.remove_callback(Interruption)
    trainer.train()
    assert all(map(parts_add_up, training_logs(trainer)))


@pytest.mark.parametrize("arguments", [{"logging_strategy": "epoch"}, {"logging_steps": 2}])
def test_every_log_has_the_alignment_of_its_own_step(tmp_path, arguments):
    trainer = toy.trainer(tmp_path, max_steps=4, logging_first_step=True, **arguments)
    trainer.train()
    logs = training_logs(trainer)
    assert [entry["step"] for entry in logs] == [1, 2, 4]
    entropies = [entry["alignment_entropy"] for entry in logs]
    assert len(set(entropies)) == 3


def test_the_best_student_comes_back_with_the_objective_it_was_trained_with(tmp_path):
    trainer = toy.trainer(
        tmp_path,
        variant="projected",
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"
    assert toy.largest_difference(load_file(best / OBJECTIVE_FILE), trainer.objective.state_dict()) == 0.0


def test_a_checkpoint_without_the_objective_parameters_is_refused(tmp_path):
    settings = {"variant": "projected", "save_strategy": "steps", "save_steps": 1}
    toy.trainer(tmp_path / "first", **settings).train()
    (tmp_path / "first" / "checkpoint-1" / OBJECTIVE_FILE).unlink()
    with pytest.raises(CheckpointError, match=OBJECTIVE_FILE):
        toy.trainer(tmp_path / "again", max_steps=2, **settings).train(
            resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-1")
        )


def test_a_wrong_record_is_refused_before_the_first_step(tmp_path, monkeypatch):
    trainer = toy.trainer(tmp_path)
    before = toy.weights(trainer.model)
    from amad.capture.record import AttentionRecord

    right = AttentionRecord.logits
    monkeypatch.setattr(
        AttentionRecord, "logits", lambda self, *args, **kwargs: 1.3 * right(self, *args, **kwargs)
    )
    with pytest.raises(CaptureError, match=r"encoder\.self\[0\]"):
        trainer.train()
    assert toy.largest_difference(before, toy.weights(trainer.model)) == 0.0


def test_different_vocabularies_are_refused_with_both_sizes(tmp_path):
    teacher = toy.t5(4, 2, 32, seed=1)
    teacher.resize_token_embeddings(44)
    with pytest.raises(ShapeError, match=r"40.*44"):
        toy.trainer(tmp_path, teacher=teacher)


def test_a_term_that_needs_a_teacher_is_refused_without_one(tmp_path):
    from amad.losses.logits import LogitsDistillation

    with pytest.raises(RecipeError, match="teacher"):
        DistillationTrainer(
            model=toy.t5(2, 1, 16, seed=0),
            args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True),
            objective=Objective({"logits": (1.0, LogitsDistillation(2.0))}),
        )


def test_a_pair_with_a_site_that_is_not_there_is_refused_by_name(tmp_path):
    from amad.losses.amad import AttentionAlignment

    pair = SitePair(SiteKey("encoder.self", 0), SiteKey("encoder.self", 7))
    with pytest.raises(PairingError, match=r"encoder\.self\[7\] is not an attention site of the teacher"):
        DistillationTrainer(
            model=toy.t5(2, 1, 16, seed=0),
            teacher_model=toy.t5(4, 2, 32, seed=1),
            args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True),
            objective=Objective({"attention": (1.0, AttentionAlignment([pair]))}),
        )


def test_without_a_teacher_it_is_an_ordinary_trainer(tmp_path):
    trainer = DistillationTrainer(
        model=toy.t5(2, 1, 16, seed=0),
        args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no"),
        objective=Objective({"task": (1.0, TaskLoss())}),
        train_dataset=toy.Sentences(),
    )
    before = toy.weights(trainer.model)
    trainer.train()
    assert toy.largest_difference(before, toy.weights(trainer.model)) > 0


def test_an_unknown_training_argument_is_refused_with_the_nearest_known_one(tmp_path):
    with pytest.raises(RecipeError, match=r"'training\.learning_rat': did you mean 'learning_rate'"):
        make_arguments(str(tmp_path), 0, {"learning_rat": 1e-3})


def test_an_argument_that_the_recipe_decides_elsewhere_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.seed is decided by 'seed'"):
        make_arguments(str(tmp_path), 0, {"seed": 3})


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("learning_rate: 4e-3", "learning_rate", 4e-3), ("save_strategy: no", "save_strategy", "no")],
)
def test_yaml_is_read_as_people_write_it(tmp_path, text, name, value):
    assert getattr(make_arguments(str(tmp_path), 0, yaml.safe_load(text)), name) == value
