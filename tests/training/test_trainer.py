import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import Dataset, IterableDataset, default_collate
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from amad.axes import SiteKey, SitePair
from amad.errors import CaptureError, CheckpointError, PairingError, RecipeError, ShapeError
from amad.losses.amad import AttentionAlignment
from amad.losses.hidden import HiddenStates
from amad.losses.learned import LearnedMixture
from amad.losses.logits import LogitsDistillation
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
    assert logged[0]["share_attention"] == pytest.approx(
        logged[0]["loss_attention"] / logged[0]["loss"], rel=1e-4
    )
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


def test_evaluation_decodes_plainly_where_it_is_told_to(tmp_path):
    trainer = toy.trainer(tmp_path, predict_with_generate=True, generation_max_length=6)
    trainer.compute_metrics = lambda prediction: {"tokens": (prediction.predictions > 0).sum()}
    whole = trainer.evaluate()["eval_tokens"]
    trainer.model.generation_config.update(max_new_tokens=1)
    assert trainer.evaluate()["eval_tokens"] < whole
    trainer.decodes_plainly = True
    assert trainer.evaluate()["eval_tokens"] == whole
    assert trainer.model.generation_config.max_new_tokens == 1


class Copies(TrainerCallback):
    """Saves the model in its own way, as trackers do."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.save_pretrained(Path(args.output_dir) / "copy")


def test_whoever_saves_the_student_meanwhile_saves_the_student_alone(tmp_path):
    trainer = toy.trainer(tmp_path, variant="projected")
    trainer.add_callback(Copies())
    trainer.train()
    saved = load_file(tmp_path / "copy" / "model.safetensors")
    assert not [name for name in saved if OBJECTIVE in name]
    assert not trainer.model._state_dict_hooks


def test_no_model_keeps_keys_and_values_for_a_next_token(tmp_path):
    trainer = toy.trainer(tmp_path, check_capture=False)
    kept = []
    for model in (trainer.model, trainer.teacher):
        model.decoder.register_forward_hook(lambda module, args, output: kept.append(output.past_key_values))
    trainer.train()
    assert len(kept) >= 2
    assert not any(one is not None for one in kept)


def test_columns_that_are_removed_for_training_are_removed_for_the_check_of_capture(tmp_path):
    rows = [{**row, "text": "a cat"} for row in rows_of_sentences()]
    trainer = toy.trainer(tmp_path, remove_unused_columns=True)
    trainer.train_dataset = datasets.Dataset.from_list(rows)
    trainer.data_collator = lambda batch: {
        name: torch.tensor([row[name] for row in batch]) for name in batch[0]
    }
    trainer.train()
    assert all(map(parts_add_up, training_logs(trainer)))


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


class Kinds(toy.Sentences):
    """The sentences, every third of kind 1 and the others of kind 0."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"kinds": torch.tensor(int(index % 3 == 0))}


@pytest.mark.parametrize("batch", [{"per_device_train_batch_size": 16}, {"gradient_accumulation_steps": 4}])
def test_each_kind_of_samples_has_its_own_figures_however_the_step_is_split(tmp_path, batch):
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3} | batch
    run = toy.trainer(tmp_path, learning_rate=0.0, **sizes)
    run.pairs = ()
    run.objective = Objective({"task": (1.0, TaskLoss(kinds=("a", "b", "absent")))})
    run.train_dataset = run.eval_dataset = Kinds()
    run.train()
    (log,) = [entry for entry in run.state.log_history if "loss_task" in entry]
    evaluated = run.evaluate()
    for figures, prefix in ((log, ""), (evaluated, "eval_")):
        for number, kind in enumerate("ab"):
            rows = [index for index in range(16) if int(index % 3 == 0) == number]
            items = default_collate([toy.Sentences()[index] for index in rows])
            with torch.no_grad():
                expected = run.model(**items).loss.item()
            assert figures[f"{prefix}loss_{kind}"] == pytest.approx(expected, rel=1e-4)
            assert 0 <= figures[f"{prefix}accuracy_{kind}"] <= 100
        assert not any("absent" in name for name in figures)


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


class Unpadded(toy.Sentences):
    """The first two sentences have no padding; the others have."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"attention_mask": torch.ones(9, dtype=torch.long)} if index < 2 else item


def test_a_record_that_forgets_padding_is_refused_though_the_first_examples_have_none(tmp_path, monkeypatch):
    trainer = toy.trainer(tmp_path)
    trainer.train_dataset = Unpadded()
    from amad.capture.record import AttentionRecord

    right = AttentionRecord.logits
    monkeypatch.setattr(
        AttentionRecord,
        "logits",
        lambda self, *args, **kwargs: right(replace(self, mask=None), *args, **kwargs),
    )
    with pytest.raises(CaptureError, match=r"encoder\.self\[0\]"):
        trainer.check_capture()


class Stream(IterableDataset):
    """Sentences of unknown number."""

    def __iter__(self):
        return (toy.Sentences()[index] for index in range(16))


def rows_of_sentences():
    return ({name: value.tolist() for name, value in toy.Sentences()[index].items()} for index in range(16))


@pytest.mark.parametrize(
    "stream",
    [Stream, lambda: datasets.IterableDataset.from_generator(rows_of_sentences).with_format("torch")],
)
def test_a_stream_trains_like_the_set_it_streams(tmp_path, stream):
    sequential = {"train_sampling_strategy": "sequential", "max_steps": 2}
    stored, streamed = toy.trainer(tmp_path / "a", **sequential), toy.trainer(tmp_path / "b", **sequential)
    streamed.train_dataset = stream()
    stored.train()
    streamed.train()
    assert toy.largest_difference(toy.weights(stored.model), toy.weights(streamed.model)) == 0.0


def trainer_of(folder, student, teacher, dataset, *, shift_labels=False, **arguments):
    pairing = toy.pairing_of(student, teacher)
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationArguments(
            output_dir=str(folder),
            use_cpu=True,
            per_device_train_batch_size=4,
            max_steps=1,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **arguments,
        ),
        objective=Objective(
            {
                "task": (1.0, TaskLoss(shift_labels=shift_labels)),
                "logits": (1.0, LogitsDistillation(2.0, shift_labels=shift_labels)),
                "attention": (1.0, AttentionAlignment(pairing.pairs)),
            }
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
    )


class Pictures(Dataset):
    """Eight pictures with a class each."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        numbers = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 8, 8, generator=numbers), "labels": index % 5}


def vit(heads, layers, width):
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=width,
            image_size=8,
            patch_size=4,
            num_labels=5,
        )
    )


def test_a_classifier_of_images_learns_one_class_per_sample_and_predicts_without_decoding(tmp_path):
    student = vit(2, 1, 16)
    batch = default_collate([Pictures()[index] for index in range(8)])
    with torch.no_grad():
        expected = float(
            torch.nn.functional.cross_entropy(student(batch["pixel_values"]).logits, batch["labels"])
        )
    trainer = trainer_of(tmp_path, student, vit(4, 2, 32), Pictures())
    trainer.compute_metrics = lambda prediction: {"shape": prediction.predictions.shape}
    metrics = trainer.evaluate()
    assert metrics["eval_loss_task"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_shape"] == (8, 5)
    trainer.train()
    assert all(map(parts_add_up, training_logs(trainer)))


def test_labels_that_are_no_classes_are_refused_with_their_form(tmp_path):
    class Numbers(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"labels": 0.5}

    with pytest.raises(RecipeError, match=r"torch\.float.* of \(2,\)"):
        trainer_of(tmp_path, vit(2, 1, 16), vit(4, 2, 32), Numbers()).train()


class Masked(toy.Sentences):
    """Every third token is to be found."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"labels": torch.where(torch.arange(9) % 3 == 0, item["input_ids"], -100)}


def test_an_encoder_learns_masked_words(tmp_path):
    def bert(heads, layers, width):
        sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers}
        return BertForMaskedLM(BertConfig(vocab_size=40, num_attention_heads=heads, **sizes))

    trainer = trainer_of(tmp_path, bert(2, 1, 16), bert(4, 2, 32), Masked())
    trainer.train()
    assert all(map(parts_add_up, training_logs(trainer)))


class Continued(toy.Sentences):
    """Each sentence is its own target, as data for causal models are."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"labels": item["input_ids"].masked_fill(item["attention_mask"] == 0, -100)}


def llama(heads, layers, width):
    torch.manual_seed(heads)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            intermediate_size=width,
            pad_token_id=0,
        )
    )


def test_a_causal_model_learns_the_next_word_as_its_own_loss_has_it(tmp_path):
    student = llama(2, 1, 16)
    batch = default_collate([Continued()[index] for index in range(8)])
    with torch.no_grad():
        expected = float(student(**batch).loss)
    trainer = trainer_of(tmp_path, student, llama(4, 2, 32), Continued(8), shift_labels=True)
    assert trainer.evaluate()["eval_loss_task"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert all(map(parts_add_up, training_logs(trainer)))


def test_a_causal_model_predicts_and_does_not_go_on_with_its_own_answers(tmp_path):
    made = trainer_of(tmp_path, llama(2, 1, 16), llama(4, 2, 32), Continued(8), shift_labels=True)
    made.compute_metrics = lambda found: {"shape": list(np.shape(found.predictions))}
    metrics = made.evaluate()
    # A logit per word of the vocabulary at every place, and the losses beside it.
    assert metrics["eval_shape"] == [8, Continued()[0]["input_ids"].shape[0], 40]
    assert "eval_loss_task" in metrics


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_causal_model_with_rotary_positions_learns_under_bf16_autocast(tmp_path, implementation):
    student, teacher = llama(2, 1, 16), llama(4, 2, 32)
    for model in (student, teacher):
        model.set_attn_implementation(implementation)
    made = trainer_of(tmp_path, student, teacher, Continued(8), shift_labels=True, bf16=True)
    assert all(max(found.values()) <= 0.02 for found in made.check_capture().values())
    assert math.isfinite(made.train().training_loss)


@pytest.mark.parametrize(
    "make", [HiddenStates, LearnedMixture, partial(AttentionAlignment, variant="projected")]
)
def test_what_terms_train_is_made_before_the_optimizer_is(tmp_path, make):
    student, teacher = toy.t5(2, 1, 16, seed=0), toy.t5(4, 2, 32, seed=1)
    pairs = [pair for pair in toy.pairing_of(student, teacher) if pair.student.stack.endswith(".self")]
    objective = Objective({"task": (1.0, TaskLoss()), "own": (1.0, make(pairs))})
    made = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationArguments(output_dir=str(tmp_path), max_steps=2, use_cpu=True, save_strategy="no"),
        objective=objective,
        train_dataset=toy.Sentences(),
    )
    before = torch.random.get_rng_state()
    made.prepare_terms()
    assert torch.equal(torch.random.get_rng_state(), before)
    start = {name: value.clone() for name, value in objective.state_dict().items()}
    made.train()
    assert start
    assert any(not torch.equal(value, start[name]) for name, value in objective.state_dict().items())


def test_an_optimizer_that_lacks_what_terms_train_is_refused(tmp_path):
    student, teacher = toy.t5(2, 1, 16, seed=0), toy.t5(4, 2, 32, seed=1)
    pairs = [pair for pair in toy.pairing_of(student, teacher) if pair.student.stack.endswith(".self")]
    objective = Objective({"task": (1.0, TaskLoss()), "own": (1.0, HiddenStates(pairs))})

    def made(optimizer):
        return DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationArguments(
                output_dir=str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no"
            ),
            objective=objective,
            train_dataset=toy.Sentences(),
            optimizers=(optimizer, None),
        )

    with pytest.raises(
        RecipeError, match=r"'own' trains parameters of its own, and the optimizer .* lacks them"
    ):
        made(torch.optim.SGD(student.parameters(), lr=0.1)).train()
    # Made by the call that was refused, they can be handed over.
    made(torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.1)).train()


def test_a_student_is_not_its_own_teacher(tmp_path):
    model = llama(2, 1, 16)
    with pytest.raises(RecipeError, match="are one object"):
        trainer_of(tmp_path, model, model, Continued(), shift_labels=True)


def test_terms_that_shift_labels_otherwise_than_the_student_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"'task' has shift_labels=False.*LlamaForCausalLM"):
        trainer_of(tmp_path, llama(2, 1, 16), llama(4, 2, 32), Continued())
    with pytest.raises(RecipeError, match=r"'task' has shift_labels=True.*T5ForConditionalGeneration"):
        trainer_of(
            tmp_path, toy.t5(2, 1, 16, seed=0), toy.t5(4, 2, 32, seed=1), toy.Sentences(), shift_labels=True
        )


def test_arguments_that_would_change_nothing_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="label_smoothing_factor"):
        toy.trainer(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(RecipeError, match="DistillationArguments"):
        DistillationTrainer(
            model=toy.t5(2, 1, 16, seed=0),
            args=Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True),
            objective=Objective({"task": (1.0, TaskLoss())}),
        )


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_weights_of_labels_reach_the_task_loss(tmp_path, reduction):
    class Weighted(toy.Sentences):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"label_weights": 0.1 * index}

    student = toy.t5(2, 1, 16, seed=0)
    batch = default_collate([Weighted()[index] for index in range(4)])
    weights = batch.pop("label_weights")
    with torch.no_grad():
        per_token = torch.nn.functional.cross_entropy(
            student(**batch).logits.transpose(1, 2), batch["labels"], reduction="none"
        )
    tokens = (batch["labels"] != -100).sum(1)
    expected = {
        "token": (per_token.sum(1) * weights).sum() / tokens.sum(),
        "sample": (per_token.sum(1) / tokens * weights).mean(),
    }
    trainer = DistillationTrainer(
        model=student,
        args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no"),
        objective=Objective({"task": (1.0, TaskLoss(reduction))}),
        eval_dataset=Weighted(4),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected[reduction]), rel=1e-5)


def test_a_teacher_in_half_precision_teaches_nearly_the_same(tmp_path):
    half = toy.t5(4, 2, 32, seed=1).to(torch.bfloat16)
    same, other = toy.trainer(tmp_path / "a"), toy.trainer(tmp_path / "b", teacher=half)
    same.train()
    other.train()
    assert 0 < toy.largest_difference(toy.weights(same.model), toy.weights(other.model)) < 1e-3


def test_the_last_step_of_an_epoch_with_fewer_batches_is_the_update_of_its_examples_at_once(tmp_path):
    whole = toy.trainer(tmp_path / "whole", max_steps=4)
    parts = toy.trainer(
        tmp_path / "parts", max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    for one in (whole, parts):
        one.train_dataset = toy.Sentences(10)
        one.train()
        assert all(map(parts_add_up, training_logs(one)))
    assert toy.largest_difference(toy.weights(whole.model), toy.weights(parts.model)) < 1e-5


EVALUATION = """
import sys
sys.path.insert(0, {folder!r})
import toy
trainer = toy.trainer(sys.argv[1], per_device_eval_batch_size=int(sys.argv[2]))
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    print("loss", metrics["eval_loss"], metrics["eval_loss_task"], flush=True)
import torch
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    script = tmp_path / "evaluation.py"
    script.write_text(EVALUATION.format(folder=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    losses = []
    for n_processes, batch_size in ((1, 4), (2, 2)):
        finished = subprocess.run(
            [*command, f"--nproc-per-node={n_processes}", str(script), str(tmp_path), str(batch_size)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        line = next(line for line in finished.stdout.splitlines() if line.startswith("loss "))
        losses.append([float(number) for number in line.split()[1:]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_different_vocabularies_are_refused_with_both_sizes(tmp_path):
    teacher = toy.t5(4, 2, 32, seed=1)
    teacher.resize_token_embeddings(44)
    with pytest.raises(ShapeError, match=r"40.*44"):
        toy.trainer(tmp_path, teacher=teacher)


def test_a_term_that_needs_a_teacher_is_refused_without_one(tmp_path):
    with pytest.raises(RecipeError, match="teacher"):
        DistillationTrainer(
            model=toy.t5(2, 1, 16, seed=0),
            args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True),
            objective=Objective({"logits": (1.0, LogitsDistillation(2.0))}),
        )


def test_a_pair_with_a_site_that_is_not_there_is_refused_by_name(tmp_path):
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
    [
        ("learning_rate: 4e-3", "learning_rate", 4e-3),
        ("save_strategy: no", "save_strategy", "no"),
        ("run_name: '2024'", "run_name", "2024"),
    ],
)
def test_yaml_is_read_as_people_write_it(tmp_path, text, name, value):
    assert getattr(make_arguments(str(tmp_path), 0, yaml.safe_load(text)), name) == value


def test_a_loss_that_is_no_number_is_logged_as_none(tmp_path):
    trainer = toy.trainer(tmp_path, max_steps=2, check_capture=False)
    with torch.no_grad():
        trainer.model.shared.weight[5] = float("nan")
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss_task" in entry)
    assert not math.isfinite(first["loss"])
    assert not math.isfinite(first["loss_task"])
