"""BLIP in runs: its loss is its authors', steps may be split, and what it needs is checked."""

import json

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.errors import RecipeError, ShapeError
from amad.losses.importance import head_importance
from amad.models.blip_seq2seq import as_seq2seq
from amad.models.load import load_model, load_tokenizer, save_checkpoint
from amad.recipe import check_recipe
from amad.training.parts import RunParts
from amad.training.run import TrainingRun

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
CONFIG = {
    "model_type": "blip",
    "vision_config": {**SIZES, "image_size": 36, "patch_size": 12},
    "text_config": {**SIZES, "max_position_embeddings": 48},
}


FILES = {
    "questions": "questions_train.json",
    "annotations": "annotations_train.json",
    "image_name": IMAGE_NAME,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes whose questions have one, two or three different answers."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 10, seed=1)
    path = folder / "annotations_train.json"
    document = json.loads(path.read_text())
    for number, row in enumerate(document["annotations"]):
        for answer in row["answers"][: number % 3]:
            answer["answer"] = "Maybe" if answer["answer_id"] % 2 else "two words"
    path.write_text(json.dumps(document))
    return folder


def vqa(scenes, **more):
    tree = {
        "task": "vqa",
        "output": "unused",
        "data": {
            "root": str(scenes),
            "train": FILES,
            "prompt": "{question}",
            "targets": "every",
            "max_input_tokens": 20,
            "max_target_tokens": 6,
        },
        "model": {"config": CONFIG},
        "objective": {"task": {"reduction": "sum", "label_smoothing": 0.1}},
        "training": {
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "use_cpu": True,
            "save_strategy": "no",
        },
    }
    return tree | more


def captions(scenes, **more):
    return vqa(scenes) | {
        "task": "captions",
        "data": {
            "root": str(scenes),
            "train": {"captions": "captions_train.json"},
            "prompt": "a picture of ",
            "max_input_tokens": 4,
            "max_target_tokens": 24,
        },
        "objective": {"task": {"label_smoothing": 0.1}},
    } | more  # fmt: skip


def parts(tree, with_teacher=False):
    return RunParts(check_recipe(tree), with_teacher=with_teacher)


def first_step(tree, folder, with_teacher=False, **training):
    tree = tree | {"output": str(folder), "training": tree["training"] | {"logging_steps": 1} | training}
    run = TrainingRun(check_recipe(tree), with_teacher=with_teacher, console=Console(stderr=True, quiet=True))
    run.train()
    entries = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return run.parts.model, [entry for entry in entries if "loss_task" in entry]


def test_the_loss_of_questions_is_that_of_blips_authors(scenes, tmp_path):
    """models/blip_vqa.py: sum over answers of weight times summed, smoothed cross entropy, over the questions."""
    tree = vqa(scenes)
    # All training questions are one batch.
    n = len(parts(tree).datasets[0])
    _, (entry,) = first_step(tree, tmp_path / "run", per_device_train_batch_size=n)

    made = parts(tree)
    items = [made.datasets[0][index] for index in range(n)]
    assert {len(item["targets"]) for item in items} == {1, 2, 3}
    assert all(sum(item["weights"]) == pytest.approx(1) for item in items)
    upstream = made.model
    upstream.__class__ = transformers.BlipForQuestionAnswering
    upstream.text_decoder.label_smoothing = 0.1
    tokenizer, total = made.tokenizer, 0.0
    for item in items:
        asked = tokenizer(item["text"], return_tensors="pt").input_ids
        asked[:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")
        pixels = made.image_transform([item["image"]])
        for answer, weight in zip(item["targets"], item["weights"], strict=True):
            said = tokenizer(answer, return_tensors="pt").input_ids
            said[:, 0] = tokenizer.bos_token_id
            with torch.no_grad():
                mean = upstream(input_ids=asked, pixel_values=pixels, labels=said).loss
            total += weight * float(mean) * (said.shape[1] - 1)
    assert entry["loss_task"] == pytest.approx(total / n, rel=1e-4)


def test_the_loss_of_captions_is_upstreams_with_the_prompt_masked(scenes, tmp_path):
    tree = captions(scenes)
    n = len(parts(tree).datasets[0])
    _, (entry,) = first_step(tree, tmp_path / "run", per_device_train_batch_size=n)
    made = parts(tree)
    upstream, tokenizer = made.model, made.tokenizer
    upstream.__class__ = transformers.BlipForConditionalGeneration
    upstream.text_decoder.label_smoothing = 0.1
    total = tokens = 0.0
    for item in (made.datasets[0][index] for index in range(n)):
        caption = item["target"].lower().replace(".", " ").strip()
        whole = tokenizer(f"a picture of {caption}", return_tensors="pt").input_ids
        whole[:, 0] = tokenizer.bos_token_id
        labels = whole.clone()
        labels[:, :4] = -100
        pixels = made.image_transform([item["image"]])
        with torch.no_grad():
            mean = upstream(input_ids=whole, pixel_values=pixels, labels=labels).loss
        total, tokens = total + float(mean) * (whole.shape[1] - 4), tokens + whole.shape[1] - 4
    assert entry["loss_task"] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("make", [vqa, captions])
def test_what_was_learned_by_heart_is_said_of_each_image(make, tmp_path):
    """Learned labels and said texts meet in one place: an answer or a caption of an image, begun and ended right."""
    write_shapes(tmp_path / "scenes", 6, seed=1, validation_share=0.5)
    tree = make(tmp_path / "scenes", output=str(tmp_path / "run"))
    tree["data"]["validation"] = tree["data"]["train"]
    tree["model"] = {
        "config": {**CONFIG, **{part: CONFIG[part] | {"hidden_size": 32} for part in list(CONFIG)[1:]}}
    }
    tree["training"] |= {"max_steps": 180, "warmup_steps": 20, "lr_scheduler_type": "cosine"}
    tree["training"] |= {
        "learning_rate": 4e-3,
        "generation_max_length": 24,
        "per_device_train_batch_size": 15,
    }
    run = TrainingRun(check_recipe(tree), with_teacher=False, console=Console(stderr=True, quiet=True))
    result = run.train()
    if make is vqa:
        assert result["accuracy"] == 100
        model, validation = run.parts.model.eval(), run.parts.datasets[1]
        answers = run.parts.task.answer_list(None)
        batch = run.parts.collator([validation[index] for index in range(len(validation))])
        inputs = {name: value for name, value in batch.items() if "label" not in name}
        chosen = model.rank(**inputs, candidates=run.parts.collator.labels(answers), n_first=128)
        said = [answers[row] for row in chosen.tolist()]
        assert said == [example.best_answer[0] for example in validation.examples]
    else:
        assert result["Bleu_4"] > 0.9


@pytest.fixture(scope="module", params=["vqa", "captions"])
def distilled(request, scenes, tmp_path_factory):
    """A recipe that distils from a checkpoint on disk."""
    tree = {"vqa": vqa, "captions": captions}[request.param](scenes)
    made = parts(tree)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    save_checkpoint(made.model, made.tokenizer, made.image_transform, folder)
    del tree["model"]
    return tree | {"teacher": str(folder), "student": {"heads": 2, "layers": 0.5, "width": 0.5}}


def test_four_accumulated_batches_of_two_give_the_update_of_one_batch_of_eight(distilled, tmp_path):
    training = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    whole, (one,) = first_step(distilled, tmp_path / "whole", with_teacher=True, **training)
    split, (other,) = first_step(
        distilled,
        tmp_path / "split",
        with_teacher=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **training,
    )
    for name in ("loss_task", "loss_logits", "loss_attention"):
        assert one[name] > 0
        assert other[name] == pytest.approx(one[name], rel=1e-4)
    start = parts(distilled, with_teacher=True).model
    moved = 0.0
    for before, first, second in zip(start.parameters(), whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)
        moved = max(moved, float((first - before).detach().abs().max()))
    assert moved > 1e-3


def test_a_student_is_upstreams_model_and_says_there_what_it_says_here(distilled, tmp_path):
    first_step(distilled, tmp_path / "run", with_teacher=True, max_steps=2)
    folder = tmp_path / "run" / "model"
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    plain = getattr(transformers, name).from_pretrained(folder).eval()
    assert type(plain).__module__.startswith("transformers.")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = load_tokenizer(folder)
    made = parts(distilled, with_teacher=True)
    collate, ours = made.collator, load_model(folder)
    for index in range(3):
        item = made.datasets[0][index]
        batch = {k: v for k, v in collate([item]).items() if "label" not in k and "count" not in k}
        said = ours.generate(**batch, max_length=9, min_length=9, num_beams=2)[0].tolist()
        # With nothing but transformers: BLIP's start token is put by hand, as its authors do.
        ids = tokenizer(item["text"], return_tensors="pt").input_ids
        if distilled["task"] == "vqa":
            ids[:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")
        pixels = torch.as_tensor(np.array(processor(item["image"])["pixel_values"]))
        theirs = plain.generate(input_ids=ids, pixel_values=pixels, max_length=9, min_length=9, num_beams=2)[
            0
        ].tolist()
        assert said == (theirs if distilled["task"] == "vqa" else theirs[4:])


@pytest.mark.parametrize("estimate", ["ablation", "gradient"])
def test_heads_are_worth_something_where_a_question_has_several_answers(distilled, estimate):
    made = parts(distilled, with_teacher=True)
    batch = made.collator([made.datasets[0][index] for index in range(4)])
    if distilled["task"] == "vqa":
        assert len(batch["labels"]) > 4
    sites = made.sites["teacher"]
    found = head_importance(made.teacher, sites, [batch], estimate=estimate)
    assert set(found.heads) == {site.key for site in sites}
    assert all(float(heads.abs().max()) > 0 for heads in found.heads.values())


def test_a_checkpoint_of_the_other_task_and_a_wrong_tokenizer_are_refused(scenes, distilled):
    other = captions(scenes) if distilled["task"] == "vqa" else vqa(scenes)
    del other["model"]
    other |= {"teacher": distilled["teacher"], "student": {"layers": 1}}
    with pytest.raises(RecipeError, match="the task needs a BlipFor"):
        _ = parts(other, with_teacher=True).collator
    made = parts(distilled, with_teacher=True)
    made.model.config.text_config.bos_token_id += 1
    with pytest.raises(ShapeError, match=r"bos_token_id is .* in the tokenizer and .* in the model"):
        _ = made.collator


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"config": {**CONFIG, "hidden": 1}}}, "unknown key 'model.config.hidden'"),
        (
            {"model": {"config": {**CONFIG, "text_config": {"hiden_size": 16}}}},
            "unknown key 'model.config.text_config.hiden_size': did you mean 'hidden_size'",
        ),
        ({"model": {"config": {**CONFIG, "text_config": [1]}}}, "text_config is .1., and it is a mapping"),
        (
            {"model": {"config": {**CONFIG, "text_config": {**SIZES, "hidden_size": 32}}}},
            "one width for text and vision, and 32 != 16",
        ),
        (
            {"model": {"config": {**CONFIG, "text_config": {**SIZES, "num_attention_heads": 3}}}},
            "model.config makes no model",
        ),
        ({"model": {"path": "x", "config": CONFIG}}, "exactly one of model.path and model.config"),
        ({"model": {"config": CONFIG, "image_size": 48}}, "model.image_size changes a checkpoint"),
        ({"model": {"config": CONFIG, "dropout": 0.1}}, "model.dropout changes a checkpoint"),
    ],
)
def test_what_makes_no_blip_is_refused_by_its_key(scenes, changes, message):
    with pytest.raises(RecipeError, match=message):
        _ = parts(vqa(scenes, **changes)).model


def test_blip_does_not_translate(scenes):
    data = {"root": str(scenes), "validation": "val"}
    with pytest.raises(RecipeError, match="BLIP answers questions and captions images"):
        _ = parts(vqa(scenes) | {"task": "translation", "data": data}).model


@pytest.mark.parametrize("key", ["targets", "ranking"])
def test_what_only_blip_reads_is_refused_for_others(scenes, key):
    tree = vqa(scenes)
    tree["data"] |= {"targets": "sampled"} | {key: {"targets": "every", "ranking": {}}[key]}
    tree["model"] = {
        "config": {
            "model_type": "vlt5",
            "visual_source": "patches",
            "image_size": 36,
            "patch_size": 12,
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 16,
            "num_heads": 4,
            "num_layers": 1,
            "num_decoder_layers": 1,
        }
    }
    with pytest.raises(RecipeError, match=rf"data\.{key}.* is for BLIP"):
        _ = parts(tree).collator


def test_one_answer_may_be_sampled_for_blip_too(scenes, tmp_path):
    tree = vqa(scenes)
    tree["data"]["targets"] = "sampled"
    _, (entry,) = first_step(tree, tmp_path / "run")
    assert entry["loss_task"] > 0
    assert "answer_counts" not in parts(tree).collator([parts(tree).datasets[0][0]])


def test_views_need_a_size(scenes, distilled, tmp_path):
    processor = transformers.ViTImageProcessorPil(do_resize=False)
    folder = tmp_path / "model"
    save_checkpoint(
        as_seq2seq(load_model(distilled["teacher"])), load_tokenizer(distilled["teacher"]), processor, folder
    )
    tree = distilled | {"teacher": str(folder), "data": distilled["data"] | {"augment": "crop-flip"}}
    with pytest.raises(RecipeError, match=r"data\.augment shows parts"):
        _ = parts(tree, with_teacher=True).datasets


def test_training_shows_views_and_validation_whole_images(scenes):
    tree = vqa(scenes)
    tree["data"] |= {"augment": "crop-flip", "validation": FILES}
    train, validation = parts(tree).datasets
    plain, _ = parts(vqa(scenes)).datasets
    assert not np.array_equal(train[0]["image"], plain[0]["image"])
    assert np.array_equal(validation[0]["image"], plain[0]["image"])
    assert train[0]["image"].shape == (36, 36, 3)
    assert not train.augment.randaugment
    tree["data"]["augment"] = "crop-flip-randaugment"
    assert parts(tree).datasets[0].augment.randaugment


def test_a_vision_layer_that_is_left_out_of_training_learns_nothing(scenes, tmp_path):
    start = parts(vqa(scenes)).model.state_dict()
    model, _ = first_step(vqa(scenes), tmp_path / "run", drop_path_rate=1 - 1e-9)
    for layer, moved in ((0, True), (1, False)):
        for name in ("self_attn.projection.weight", "mlp.fc2.weight"):
            key = f"vision_model.encoder.layers.{layer}.{name}"
            assert torch.equal(model.state_dict()[key], start[key]) != moved
    assert not any(layer.mlp._forward_hooks for layer in model.vision_model.encoder.layers)


def test_a_checkpoint_may_drop_more_than_it_says(distilled, tmp_path):
    tree = {key: value for key, value in distilled.items() if key not in ("teacher", "student")}
    model = parts(tree | {"model": {"path": distilled["teacher"], "dropout": 0.3}}).model
    assert model.config.text_config.hidden_dropout_prob == 0.3
    texts = [module for name, module in model.named_modules() if name.endswith("attention.self.dropout")]
    assert texts
    assert all(module.p == 0.3 for module in texts)
