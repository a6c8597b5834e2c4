import io
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.errors import DataError, RecipeError, ShapeError
from amad.recipe import check_recipe
from amad.records import RunRecords, read_records
from amad.training.callbacks import AnnouncedEpoch, KeptRecords
from amad.training.models import weights_digest
from amad.training.resumption import check_new, find_checkpoint, last_checkpoint
from amad.training.run import TrainingRun
from amad.training.tasks import load_task
from amad.training.trainer import DistillationTrainer
from amad.training.values import checked_values


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 20, seed=1)
    return folder


@pytest.fixture
def tree(scenes, tmp_path):
    files = {"questions": "questions_{}.json", "annotations": "annotations_{}.json"}
    train, val = (
        {key: name.format(split) for key, name in files.items()} | {"image_name": IMAGE_NAME}
        for split in ("train", "val")
    )
    return {
        "task": "vqa",
        "output": str(tmp_path / "run"),
        "data": {"root": str(scenes), "train": train, "validation": val, "max_target_tokens": 3},
        "model": {
            "config": {
                "model_type": "vlt5",
                "visual_source": "patches",
                "image_size": 36,
                "patch_size": 18,
                "d_model": 8,
                "d_kv": 4,
                "d_ff": 16,
                "num_heads": 2,
                "num_layers": 1,
                "num_decoder_layers": 1,
            }
        },
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 10,
            "gradient_accumulation_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
        },
    }


def run_of(tree, with_teacher=False):
    return TrainingRun(check_recipe(tree), with_teacher=with_teacher, console=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drop_path_rate": 0.1}, "drop_path_rate is that of BLIP's vision part, and the model is a VLT5"),
        ({"metric_for_best_model": "acuracy"}, "'acuracy' is not: did you mean 'accuracy'"),
        ({"metric_for_best_model": "loss_task"}, "'loss_task' is not"),
        ({"metric_for_best_model": "accuracy+Bleu_4"}, "'Bleu_4' is not"),
    ],
)
def test_what_does_not_suit_model_or_task_is_refused_before_anything_is_written(tree, given, message):
    tree["training"] |= given
    for look in (TrainingRun.plan, TrainingRun.train):
        with pytest.raises(RecipeError, match=message):
            look(run_of(tree))
        assert not Path(tree["output"]).exists()


def test_no_model_is_the_best_where_no_answer_is_known(tree):
    del tree["data"]["validation"]["annotations"]
    tree["training"] |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    tree["training"] |= {"metric_for_best_model": "accuracy"}
    with pytest.raises(RecipeError, match="'accuracy' is not"):
        run_of(tree).train()
    tree["training"] |= {"metric_for_best_model": "loss", "load_best_model_at_end": True}
    with pytest.raises(RecipeError, match="a validation set whose answers are known"):
        run_of(tree).train()


def test_examples_are_counted_as_they_are_seen_short_batches_included(tree):
    run = run_of(tree)
    assert len(run.parts.datasets[0]) == 72
    result = run.train()
    # 72 examples in steps of 30 are 30, 30 and 12, twice.
    assert result["examples_seen"] == 144
    assert [run.examples_seen(step) for step in range(7)] == [0, 30, 60, 72, 102, 132, 144]
    steps = [event for event in read_records(run.output / "records.jsonl") if "loss" in event]
    assert [step["examples"] for step in steps] == [30, 60, 72, 102, 132, 144]
    assert run.plan()["summary"]["optimiser steps"] == 6


def test_the_curve_has_every_evaluation_and_one_at_the_end(tree):
    tree["training"] |= {"eval_strategy": "steps", "eval_steps": 4}
    result = run_of(tree).train()
    assert [examples for examples, _ in result["curve"]] == [102, 144]
    assert result["accuracy"] == round(result["curve"][-1][1], 2)


def test_figures_are_those_of_the_model_that_is_saved(tree):
    # Of the two evaluations the one with the larger loss, which is the first, counts as the best.
    tree["data"] |= {"train": tree["data"]["validation"]}
    tree["training"] |= {"num_train_epochs": 30, "learning_rate": 0.03, "gradient_accumulation_steps": 1}
    tree["training"] |= {"eval_strategy": "steps", "eval_steps": 15, "load_best_model_at_end": True}
    tree["training"] |= {"save_strategy": "steps", "save_steps": 15, "metric_for_best_model": "loss"}
    tree["training"] |= {"greater_is_better": True, "max_steps": 30}
    run = run_of(tree)
    result = run.train()
    (_, first), (_, last) = result["curve"]
    assert result["accuracy"] == round(first, 2) != round(last, 2)
    saved = load_file(run.output / "model" / "model.safetensors")
    best = load_file(run.output / "checkpoints" / "checkpoint-15" / "model.safetensors")
    assert all(saved[name].equal(best[name]) for name in saved)


def test_a_run_that_is_resumed_after_its_last_evaluation_tells_the_signature(tree, scenes):
    tree["task"] = "translation"
    tree["data"] = {"root": str(scenes), "validation": "val", "max_target_tokens": 10}
    tree["training"] |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    tree["training"] |= {"max_steps": 2}
    first, again = run_of(tree).train(), run_of(tree).train(resume=True)
    assert first["BLEU"] == again["BLEU"]
    told = [event for event in read_records(Path(tree["output"]) / "records.jsonl") if event.get("final")]
    assert [event["signature"] for event in told] == [told[0]["signature"]] * 2
    assert "case:lc" in told[0]["signature"]


@pytest.mark.parametrize("best", [False, True])
def test_a_run_that_is_resumed_at_its_last_step_trains_no_further(tree, best):
    tree["training"] |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps"}
    tree["training"] |= {"eval_steps": 2, "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    if best:
        tree["training"] |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        tree["training"] |= {"greater_is_better": True}
    run = run_of(tree)
    first = run.train()
    model = run.output / "model" / "model.safetensors"
    saved = load_file(model)
    model.unlink()
    again = run_of(tree).train(resume=True)
    assert (again["examples_seen"], again["accuracy"]) == (first["examples_seen"], first["accuracy"])
    assert all(value.equal(saved[name]) for name, value in load_file(model).items())
    assert [path.name for path in (run.output / "checkpoints").glob("checkpoint-5")] == []


def test_a_run_of_half_an_epoch_that_is_resumed_at_its_end_trains_no_further(tree):
    tree["training"] |= {"num_train_epochs": 0.5, "save_strategy": "steps", "save_steps": 1}
    first, again = run_of(tree).train(), run_of(tree).train(resume=True)
    assert again["examples_seen"] == first["examples_seen"] == 60


def test_steps_that_were_counted_stay_what_they_were(tree):
    tree["training"] |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run_of(tree).train()
    tree["training"] |= {"max_steps": 4, "per_device_train_batch_size": 5}
    with pytest.raises(RecipeError, match=r"gradient_accumulation_steps = 30, and the recipe .* has 15"):
        run_of(tree).train(resume=True)
    tree["training"] |= {"gradient_accumulation_steps": 6}
    assert run_of(tree).train(resume=True)["examples_seen"] == 102


def test_what_a_checkpoint_keeps_or_lacks_of_the_optimizer_is_no_matter_of_resuming(tree):
    tree["training"] |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run = run_of(tree)
    run.train()
    before = (run.output / "recipe.yaml").read_text()
    tree["training"] |= {"max_steps": 4, "learning_rate": 0.5}
    with pytest.raises(
        RecipeError, match=r"training\.learning_rate = .*, and the recipe to resume with has 0\.5"
    ):
        run_of(tree).train(resume=True)
    tree["training"].pop("learning_rate")
    (run.output / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(RecipeError, match=r"checkpoint-2 has no optimizer\.pt"):
        run_of(tree).train(resume=True)
    assert (run.output / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dataloader_drop_last", True, "Every example is trained and scored"),
        ("predict_with_generate", False, "scored as they are generated"),
        ("prediction_loss_only", True, "scored as they are generated"),
        ("resume_from_checkpoint", "nowhere", "Give the command --resume"),
        ("remove_unused_columns", True, "Leave it out"),
        ("generation_config", "elsewhere", "Give generation_max_length"),
        ("push_to_hub", True, "hf upload"),
        ("use_liger_kernel", True, "keeps the logits to itself"),
        ("fsdp", "full_shard", "DistillationTrainer"),
        ("deepspeed", "foo.json", "DistillationTrainer"),
        ("label_smoothing_factor", 0.1, r"Give objective\.task\.label_smoothing"),
    ],
)
def test_arguments_that_a_recipe_has_otherwise_are_refused(tree, key, value, said):
    tree["training"][key] = value
    with pytest.raises(
        RecipeError, match=rf"training\.{key} is .* in a recipe, and {value!r} was given.*{said}"
    ):
        run_of(tree)


def test_one_model_is_trained(tree):
    tree |= {"teacher": "t", "student": {"heads": 1}}
    with pytest.raises(RecipeError, match="both 'model' and 'teacher' with 'student'"):
        run_of(tree)


def test_the_model_is_saved_though_the_last_evaluation_fails(tree, monkeypatch):
    run = run_of(tree)

    def fail(prediction):
        raise RuntimeError("no score")

    monkeypatch.setattr(run, "_accuracy", fail)
    with pytest.raises(RuntimeError, match="no score"):
        run.train()
    assert (run.output / "model" / "model.safetensors").is_file()


def test_the_start_depends_on_the_seed_alone(tree):
    first = run_of(tree).parts.model.state_dict()
    torch.rand(5)
    second = run_of(tree).parts.model.state_dict()
    other = run_of(tree | {"seed": 1}).parts.model.state_dict()
    assert all(first[name].equal(second[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_the_digest_of_weights_tells_starts_apart(tree):
    model = run_of(tree).parts.model
    digest = weights_digest(model)
    assert digest == weights_digest(run_of(tree).parts.model)
    assert digest != weights_digest(run_of(tree | {"seed": 1}).parts.model)
    assert digest != weights_digest(model.bfloat16())
    with torch.no_grad():
        model.shared.weight[-1, -1] += 1
    assert digest != weights_digest(model)


def test_records_tell_the_start_as_it_was_before_the_first_step(tree):
    run = run_of(tree)
    start = weights_digest(run.parts.model)
    run.train()
    assert weights_digest(run.parts.model) != start
    told = [event for event in read_records(run.output / "records.jsonl") if event["event"] == "seeds"]
    assert [(event["seed"], event["start"]) for event in told] == [(0, start)]


def test_a_run_that_was_interrupted_before_its_first_checkpoint_begins_again(tree, monkeypatch):
    straight = run_of(tree | {"output": tree["output"] + "-straight"}).train()

    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptRecords, "on_log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_of(tree).train()
    with pytest.raises(RecipeError, match="not empty"):
        run_of(tree).train()
    again = run_of(tree).train(resume=True)
    assert again["curve"] == straight["curve"]
    notes = [
        event["resumed_from"]
        for event in read_records(Path(again["output"]) / "records.jsonl")
        if "resumed_from" in event
    ]
    assert notes == ["the start"]
    with pytest.raises(RecipeError, match="holds a run that is finished, and no checkpoint"):
        run_of(tree).train(resume=True)


def test_a_run_that_another_process_is_at_is_left_alone(tree):
    tree["training"] |= {"save_strategy": "steps", "save_steps": 3}
    run = run_of(tree)
    run.train()
    path = run.output / "records.jsonl"
    held = path.read_bytes()
    with RunRecords(path), pytest.raises(DataError, match="is being written by another run"):
        run_of(tree).train(resume=True)
    assert path.read_bytes() == held


def test_nothing_is_left_behind_where_the_trainer_refuses(tree, monkeypatch):
    def refuse(*args, **kwargs):
        raise ShapeError("no")

    monkeypatch.setattr("amad.training.run.DistillationTrainer", refuse)
    run = run_of(tree)
    with pytest.raises(ShapeError):
        run.train()
    assert not run.output.exists()


def test_soft_scores_stand_in_where_raw_answers_are_not_published(tree, scenes, tmp_path):
    rows = json.loads((scenes / "annotations_val.json").read_text())["annotations"]
    listed = [
        {
            "question_id": row["question_id"],
            "img_id": str(row["image_id"]),
            "sent": "what?",
            "label": {"red": 0.3},
        }
        for row in rows
    ]
    (tmp_path / "val.json").write_text(json.dumps(listed))
    (tmp_path / "images").mkdir()
    for row in rows:
        source = scenes / "images" / IMAGE_NAME.format(split="val", image_id=row["image_id"])
        (tmp_path / "images" / f"{row['image_id']}.png").write_bytes(source.read_bytes())
    for name in ("questions_train.json", "annotations_train.json"):
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    for path in (scenes / "images").glob("*train*"):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    tree["data"] |= {
        "root": str(tmp_path),
        "validation": {"format": "vl-t5", "questions": "val.json", "image_name": "{image_id}.png"},
    }
    run = run_of(tree)
    red = run.parts.tokenizer("red")["input_ids"]
    prediction = SimpleNamespace(predictions=[red] * len(rows))
    assert run._accuracy(prediction) == {"accuracy": pytest.approx(30)}


def test_held_out_images_are_in_one_split_alone(tree):
    data = check_recipe(tree).data.model_copy(
        update={"validation": None, "holdout": SimpleNamespace(share=0.5, seed=0)}
    )
    task = load_task(data, 0, lambda image: image)
    images = [{example.image_id for example in one.examples} for one in (task.train, task.validation)]
    assert not images[0] & images[1]
    assert len(images[0]) == len(images[1]) == 9


def test_a_checkpoint_counts_once_its_last_file_is_there(tmp_path):
    for step, text in ((5, "{}"), (10, "{}"), (20, None), (30, ""), (40, '{"epoch": 1')):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert last_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": "no_such_tracker"}, "no_such_tracker"),
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"optim": "sgd", "optim_args": "no_such"}, "optim_args"),
        ({"adam_beta1": 2.0}, "beta"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"no_such": 1}}, "no_such"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"save_strategy": "best"}, "metric_for_best_model"),
        ({"dataloader_persistent_workers": True}, "persistent_workers"),
        ({"log_level": "foo"}, "unknown value 'foo'"),
    ],
)
def test_what_the_trainer_could_not_make_is_refused_before_anything_is_written(tree, given, named):
    if given.get("report_to") == "wandb" and find_spec("wandb"):
        pytest.skip("wandb is installed")
    tree["training"] |= given
    run = TrainingRun(check_recipe(tree), with_teacher=False, console=Console(file=io.StringIO()))
    with pytest.raises(RecipeError, match=named):
        run.plan()
    with pytest.raises(RecipeError, match=f"training.*{named}"):
        run.train()
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"fp16": True}, "fp16 needs an accelerator"), ({"accelerator_config": "foo.json"}, "foo.json")],
)
def test_arguments_that_the_libraries_refuse_are_refused(tree, given, said):
    tree["training"] |= given
    with pytest.raises(RecipeError, match=f"training: .*{said}"):
        run_of(tree)


def test_a_stored_recipe_that_cannot_be_read_is_named(tree, tmp_path):
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text("task: [")
    with pytest.raises(RecipeError, match=r"recipe\.yaml of the run to resume cannot be read"):
        find_checkpoint(tmp_path, check_recipe(tree), with_teacher=False)


def test_places_and_trainer_arguments_may_change_on_resuming(tree, tmp_path):
    tree["training"] |= {"save_strategy": "steps", "save_steps": 3}
    run = run_of(tree)
    run.train()
    tree["training"] |= {"num_train_epochs": 3}
    tree["data"] |= {"root": str(Path(tree["data"]["root"]) / "."), "image_cache_gib": 0}
    longer = run_of(tree).train(resume=True)
    assert longer["examples_seen"] == 216


def test_an_empty_folder_is_a_new_output(tmp_path):
    check_new(tmp_path)
    check_new(tmp_path / "absent")
    (tmp_path / "checkpoints" / "empty").mkdir(parents=True)
    check_new(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="not empty"):
        check_new(tmp_path)
    with pytest.raises(RecipeError, match="is a file"):
        check_new(tmp_path / "file")


@pytest.mark.parametrize(("epoch", "told"), [(None, 0), (0, 0), (1.5, 1), (2.0, 2)])
def test_the_epoch_that_begins_is_announced_also_in_its_middle(epoch, told):
    heard = []
    AnnouncedEpoch(heard.append).on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
    assert heard == [told]


@pytest.mark.parametrize(
    ("given", "checked"),
    [
        ({"max_steps": "12"}, {"max_steps": 12}),
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
        ({"save_strategy": False}, {"save_strategy": False}),
        ({"optim": "adafactor", "bf16": True}, {"optim": "adafactor", "bf16": True}),
        ({"unknown": object}, {"unknown": object}),
    ],
)
def test_values_become_what_the_trainer_computes_with(given, checked):
    assert checked_values(given) == checked


@pytest.mark.parametrize(
    "given",
    [
        {"max_steps": "many"},
        {"max_steps": 1.5},
        {"max_steps": 0},
        {"max_steps": -3},
        {"num_train_epochs": 0},
        {"num_train_epochs": -3.0, "max_steps": -1},
        {"learning_rate": [1]},
        {"learning_rate": -1.0},
        {"learning_rate": float("inf")},
        {"weight_decay": float("nan")},
        {"dataloader_num_workers": -1},
        {"eval_accumulation_steps": 0},
        {"gradient_accumulation_steps": 0},
        {"load_best_model_at_end": True},
    ],
)
def test_values_that_are_none_are_refused_by_key(given):
    with pytest.raises(RecipeError, match=rf"training\.{next(iter(given))}"):
        checked_values(given)


def test_a_run_that_another_process_began_meanwhile_is_left_as_it_is(tree, monkeypatch):
    run = run_of(tree)
    made = TrainingRun._trainer

    def slow(self):
        found = made(self)
        # While this process was loading, another one made the whole run.
        with RunRecords(Path(tree["output"]) / "records.jsonl") as records:
            records.write("recipe", recipe={"seed": 7}, with_teacher=False)
        (Path(tree["output"]) / "recipe.yaml").write_text("theirs")
        return found

    monkeypatch.setattr(TrainingRun, "_trainer", slow)
    with pytest.raises(RecipeError, match="another process began"):
        run.train()
    assert (Path(tree["output"]) / "recipe.yaml").read_text() == "theirs"
    assert len(read_records(Path(tree["output"]) / "records.jsonl")) == 1


def test_a_run_that_fails_before_its_first_step_leaves_nothing_that_blocks_its_remedy(tree, monkeypatch):
    def fail(self, *args, **kwargs):
        assert (Path(tree["output"]) / "recipe.yaml").exists()
        raise DataError("an image is broken")

    with monkeypatch.context() as patched:
        patched.setattr("amad.training.trainer.DistillationTrainer.check_capture", fail)
        patched.setattr("amad.training.trainer.DistillationTrainer._inner_training_loop", fail)
        with pytest.raises(DataError, match="an image is broken"):
            run_of(tree).train()
    assert not Path(tree["output"]).exists()
    tree["data"]["on_bad_example"] = "skip"
    assert run_of(tree).train()["examples_seen"] == 144


def test_what_differs_on_resuming_is_named_alone(tree):
    tree["training"] |= {"save_strategy": "steps", "save_steps": 3}
    run_of(tree).train()
    tree["data"]["on_bad_example"] = "skip"
    with pytest.raises(RecipeError, match=r"has data\.on_bad_example = 'raise', and .* has 'skip'\. Resume"):
        run_of(tree).train(resume=True)


def test_a_loss_that_was_no_number_is_told(tree):
    tree["training"] |= {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 4}
    heard = io.StringIO()
    run = TrainingRun(check_recipe(tree), with_teacher=False, console=Console(file=heard, width=500))
    step = run.train()["loss_not_finite_at_step"]
    assert 1 < step <= 4
    assert f"the loss was no finite number at step {step}" in heard.getvalue()


@pytest.mark.parametrize("way", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_models_that_accelerate_splits_are_refused(tree, monkeypatch, way):
    # Without several GPUs accelerate splits nothing, whatever it is configured to do.
    split = property(lambda self: hasattr(self, "objective"), lambda self, found: None)
    monkeypatch.setattr(DistillationTrainer, way, split, raising=False)
    with pytest.raises(RecipeError, match=r"split models \(FSDP or DeepSpeed\)"):
        run_of(tree).train()
    assert not Path(tree["output"]).exists()


def test_where_several_gpus_are_visible_a_run_takes_one(tree, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    heard = io.StringIO()
    tree["training"] |= {"max_steps": 1, "use_cpu": False}
    run = TrainingRun(check_recipe(tree), with_teacher=False, console=Console(file=heard, width=200))
    assert heard.getvalue() == ""
    # Not four times as many, as the trainer would see by itself.
    assert run.train()["examples_seen"] == 30
    assert "4 GPUs are visible, and this process uses the first. On all of them: torchrun" in heard.getvalue()


def test_processes_that_did_not_find_one_another_are_refused(tree, monkeypatch):
    # As on a machine with a GPU, by a launcher that says no more than this.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    tree["training"]["use_cpu"] = False
    with pytest.raises(
        RecipeError, match=r"2 processes were launched \(WORLD_SIZE\), and 1 found one another"
    ):
        run_of(tree)


def test_targets_that_the_tokenizer_does_not_know_are_refused(tree, scenes, tmp_path):
    tree["training"]["max_steps"] = 1
    run_of(tree).train()
    known = json.loads((scenes / "annotations_train.json").read_text())
    for row in known["annotations"]:
        for answer in row["answers"]:
            answer["answer"] = "grün"
        row["multiple_choice_answer"] = "grün"
    (scenes / "foreign.json").write_text(json.dumps(known))
    tree["data"]["train"]["annotations"] = "foreign.json"
    tree |= {"output": str(tmp_path / "other"), "model": {"path": str(tmp_path / "run" / "model")}}
    for look in (TrainingRun.plan, TrainingRun.train):
        with pytest.raises(RecipeError, match=r"\d+ % of the target tokens .* are unknown to the tokenizer"):
            look(run_of(tree))
    assert not Path(tree["output"]).exists()
