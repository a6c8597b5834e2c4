"""Every recipe, as it stands, on scenes laid out as it expects its data: two steps, evaluated, teacher and student.

What is changed are the places, the steps and the size of batches, and of the sizes those that take minutes here.
"""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from amad.cli.app import app
from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.models.load import save_checkpoint
from amad.recipe import load_recipe
from amad.training.parts import RunParts

RECIPES = Path(__file__).parents[1] / "recipes"
SHORT = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "use_cpu": True,
}
# A teacher with the heads and the inputs of the real one.
TINY = {"d_model": 24, "d_kv": 2, "d_ff": 48, "num_heads": 12, "num_layers": 2, "num_decoder_layers": 2}
VLT5 = {"checkpoint": {"model_type": "vlt5", **TINY}, "student": ("student.width=16",)}
TINY_BLIP = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_attention_heads": 12,
    "num_hidden_layers": 2,
}
BLIP = {
    "checkpoint": {
        "model_type": "blip",
        "vision_config": {**TINY_BLIP, "image_size": 32, "patch_size": 16},
        "text_config": {**TINY_BLIP, "max_position_embeddings": 64},
    },
    # The checkpoint reads smaller images: that they are made larger is tried too.
    "teacher": ("model.image_size=48",),
    # While training answers are generated.
    "as_trained": ("data.ranking=null",),
}
FAMILIES = {
    "blip-coco-captions": BLIP | {"as_trained": ()},
    "blip-vqa-v2": BLIP,
    "coco-vqa": {},
    "easy-vqa": {},
    "easy-vqa-blip": {},
    "flickr8k-captions": {},
    "flickr8k-captions-blip": {},
    "multi30k-en-de": {},
    "scenes-captions": {},
    "scenes-captions-blip": {},
    "scenes-translation": {},
    "scenes-vqa": {},
    "vlt5-coco-captions": VLT5,
    "vlt5-multi30k-en-de": VLT5,
    "vlt5-vqa-v2": VLT5,
}


# Run in test_recipes_pretraining.py.
PRETRAINING = {
    "flickr8k-pretrain-blip.yaml",
    "flickr8k-pretrain-vlt5.yaml",
    "scenes-pretrain-blip.yaml",
    "scenes-pretrain-vlt5.yaml",
    "vlt5-pretrain.yaml",
}


def test_no_recipe_is_left_out():
    run = {f"{family}-{kind}.yaml" for family in FAMILIES for kind in ("teacher", "amad")}
    assert {path.name for path in RECIPES.iterdir()} == run | PRETRAINING


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_where_its_data_lies(path):
    recipe = load_recipe(path)
    command = "distill" if recipe.distils else "train"
    first, *_ = path.read_text().splitlines()
    assert first.startswith(f"# amad {command} recipes/{path.name}")
    assert recipe.output == f"runs/{path.stem}"
    if recipe.distils:
        assert recipe.teacher == f"runs/{path.stem.removesuffix('-amad')}-teacher/model"
        assert recipe.data == load_recipe(path.with_name(path.name.replace("-amad", "-teacher"))).data


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 20, seed=1)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_and_its_student_are_trained_and_evaluated(family, scenes, tmp_path, monkeypatch):
    changes = FAMILIES[family]
    monkeypatch.chdir(tmp_path)
    taught, distilled = (RECIPES / f"{family}-{kind}.yaml" for kind in ("teacher", "amad"))
    recipe = load_recipe(taught)
    if recipe.data.root == "scenes":
        (tmp_path / "data").symlink_to(scenes)
    else:
        lay_out(recipe, scenes, tmp_path / "data")
    common = ["data.root=data", *(f"training.{key}={value}" for key, value in SHORT.items())]
    if recipe.training.get("eval_strategy") == "steps":
        common.append("training.eval_steps=2")
    if "checkpoint" in changes:
        start = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"root": "data"}),
                "model": recipe.model.model_copy(update={"path": None, "config": changes["checkpoint"]}),
            }
        )
        parts = RunParts(start, with_teacher=False)
        save_checkpoint(parts.model, parts.tokenizer, parts.image_transform, recipe.model.path)

    teacher = amad("train", taught, *common, *changes.get("teacher", ()))
    student = amad("distill", distilled, *common, *changes.get("student", ()))
    told = amad("evaluate", distilled, *common, *changes.get("as_trained", ()))
    assert student["parameters"] < teacher["parameters"]
    main = {"vqa": "accuracy", "captions": "CIDEr", "translation": "BLEU"}[recipe.task]
    for result in (teacher, student):
        assert [examples for examples, _ in result["curve"]] == [result["examples_seen"]]
    assert told[main] == pytest.approx(student[main], abs=0.005)
    assert (told["max_length"], told["num_beams"]) == (
        recipe.training["generation_max_length"],
        recipe.training.get("generation_num_beams", 1),
    )
    assert Path(told["results"]).parent == Path(f"runs/{family}-amad")
    if getattr(recipe.data, "ranking", None) is not None:
        ranked = amad("evaluate", distilled, *common)
        answers = json.loads(Path("data", recipe.data.ranking.answers).read_text())
        assert (ranked["ranked_answers"], ranked["compared_whole"]) == (len(answers), 128)
        assert {row["answer"] for row in json.loads(Path(ranked["results"]).read_text())} <= set(answers)


def amad(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr or done.exception
    return json.loads(done.stdout)


def lay_out(recipe, scenes, root):
    """The scenes in the files that the recipe names, below another root."""
    data, seen = recipe.data, {}
    for split in ("train", "val"):
        seen |= {"vqa": questions, "captions": captions, "translation": sentences}[recipe.task](
            data, split, scenes, root
        )
    if data.regions is None:
        for name, (split, image_id) in seen.items():
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(scenes / "images" / IMAGE_NAME.format(split=split, image_id=image_id), place)
        return
    h5py = pytest.importorskip("h5py")
    generator = np.random.default_rng(0)
    for number, name in enumerate(data.regions.files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / name, "w") as file:
            # Each image is in one of the files.
            for image in list(seen)[number :: len(data.regions.files)]:
                group = file.create_group(Path(image).stem)
                shape = data.regions.n_regions, data.regions.n_features
                group["features"] = generator.random(shape, dtype=np.float32)
                corners = np.sort(generator.random((data.regions.n_regions, 2, 2)), axis=1)
                group["boxes"] = (36 * corners.reshape(-1, 4)).astype(np.float32)
                group["img_w"] = group["img_h"] = 36


def questions(data, split, scenes, root):
    """Questions of one split; both go into the one file where images are held out."""
    asked, answered = (
        json.loads((scenes / f"{kind}_{split}.json").read_text()) for kind in ("questions", "annotations")
    )
    files = data.train if split == "train" or data.holdout is not None else data.validation
    name = files.image_name or "{image_id}.jpg"
    if files.format == "vqa-v2":
        grow(root / files.questions, asked, "questions")
        grow(root / files.annotations, answered, "annotations")
        ids = {row["image_id"]: row["image_id"] for row in asked["questions"]}
    elif files.format == "blip":
        return blip_questions(data, files, split, asked["questions"], answered["annotations"], root)
    else:
        ids = {row["image_id"]: f"COCO_{split}2014_{row['image_id']:012d}" for row in asked["questions"]}
        rows = [
            {
                "question_id": question["question_id"],
                "img_id": ids[question["image_id"]],
                "sent": question["question"],
                "label": {answer["multiple_choice_answer"]: 1, "maybe": 0.3},
            }
            for question, answer in zip(asked["questions"], answered["annotations"], strict=True)
        ]
        write(root / files.questions, json.dumps(rows))
        if files.annotations is not None:
            write(root / files.annotations, json.dumps(answered))
    folder, *_ = files.images
    return {f"{folder}/{name.format(image_id=own)}": (split, image_id) for image_id, own in ids.items()}


def blip_questions(data, files, split, asked, answered, root):
    """Questions of one split in BLIP's form, the list of answers, and Visual Genome's of the same images."""
    names = {row["image_id"]: f"{split}2014/COCO_{split}2014_{row['image_id']:012d}.jpg" for row in asked}
    rows = [
        {
            "dataset": "vqa",
            "image": names[question["image_id"]],
            "question": question["question"],
            "question_id": question["question_id"],
            "answer": [answer["multiple_choice_answer"]] * 7 + ["maybe"] * 3,
        }
        for question, answer in zip(asked, answered, strict=True)
    ]
    write(root / files.questions, json.dumps(rows))
    seen = {f"{files.images[0]}/{name}": (split, image_id) for image_id, name in names.items()}
    if split == "train":
        write(root / data.ranking.answers, json.dumps(sorted({row["answer"][0] for row in rows})))
        genome = next(one for one in data.also_train if "vg" in one.questions)
        for row, question in zip(rows, asked, strict=True):
            row |= {"dataset": "vg", "image": f"image/{question['image_id']}.jpg", "answer": row["answer"][0]}
            seen[f"{genome.images[0]}/{row['image']}"] = (split, question["image_id"])
        write(root / genome.questions, json.dumps(rows))
    return seen


def captions(data, split, scenes, root):
    """Captions of one split; both are in one file, but for BLIP's."""
    document = json.loads((scenes / f"captions_{split}.json").read_text())
    files = data.train if split == "train" else data.validation
    if files.format == "coco":
        for image in document["images"]:
            image["split"] = files.split
        grow(root / files.captions, document, "images", "annotations")
    elif files.format == "blip":
        names = {image["id"]: f"{split}2014/{image['file_name']}" for image in document["images"]}
        rows = [
            {"image": names[row["image_id"]], "caption": row["caption"]} for row in document["annotations"]
        ]
        write(root / files.captions, json.dumps(rows))
        return {f"{files.images}/{name}": (split, image_id) for image_id, name in names.items()}
    else:
        said = {image["id"]: [] for image in document["images"]}
        for row in document["annotations"]:
            said[row["image_id"]].append({"raw": row["caption"]})
        for image in document["images"]:
            # As in the real file, some images to train on are called something else.
            image["split"] = "restval" if split == "train" and image["id"] % 2 else files.split
            image |= {"filename": image["file_name"], "sentences": said[image["id"]]}
        grow(root / files.captions, {"images": document["images"]}, "images")
    return {f"{files.images}/{image['file_name']}": (split, image["id"]) for image in document["images"]}


def sentences(data, split, scenes, root):
    own = data.train if split == "train" else data.validation
    for language in (data.source, data.target):
        write(
            root / data.sentences.format(split=own, language=language),
            (scenes / f"{split}.{language}").read_text(),
        )
    names = (scenes / f"image_splits.{split}.txt").read_text()
    write(root / data.image_names.format(split=own), names)
    ids = [int(Path(name).stem.rsplit("_", 1)[1]) for name in names.split()]
    return {
        f"{data.images}/{name}": (split, image_id) for name, image_id in zip(names.split(), ids, strict=True)
    }


def grow(path, document, *keys):
    """Write a document, or add its rows to the one that is there."""
    if path.exists():
        there = json.loads(path.read_text())
        document = there | {key: there[key] + document[key] for key in keys}
    write(path, json.dumps(document))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
