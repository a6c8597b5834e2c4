"""Every recipe of pre-training, as it stands, on scenes laid out as it expects its data: two steps, then fine-tuned."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from amad.cli.app import app
from amad.data.shapes import write_shapes
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
    "eval_strategy": "no",
    "save_strategy": "no",
}
TINY = {"d_model": 24, "d_kv": 2, "d_ff": 48, "num_heads": 12, "num_layers": 2, "num_decoder_layers": 2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 20, seed=1)
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def amad(command, recipe, *overrides, data="data"):
    common = [f"data.root={data}", *(f"training.{key}={value}" for key, value in SHORT.items())]
    done = CliRunner().invoke(app, [command, str(RECIPES / recipe), *common, *overrides, "--json"])
    assert done.exit_code == 0, done.stderr or done.exception
    return json.loads(done.stdout)


def weights(result):
    return load_file(Path(result["model"]) / "model.safetensors")


def with_splits(scenes, root):
    """The scenes as one COCO file with a split per image, as that of Flickr8k."""
    whole = {"images": [], "annotations": []}
    for split, name in (("train", "train"), ("val", "dev")):
        document = json.loads((scenes / f"captions_{split}.json").read_text())
        for image in document["images"]:
            image["split"] = name
        for key, rows in whole.items():
            rows += document[key]
    root.mkdir()
    (root / "captions.json").write_text(json.dumps(whole))
    (root / "images").symlink_to(scenes / "images")


def as_lxmert(recipe, scenes, root):
    """The scenes in LXMERT's files and their regions with classes, as VL-T5's authors share them."""
    h5py = pytest.importorskip("h5py")
    data, names = recipe.data, []
    half = {"train": [0, 1], "val": [0]}
    for split, files in (("train", data.train), ("val", data.validation)):
        said, asked, answered = (
            json.loads((scenes / f"{kind}_{split}.json").read_text())
            for kind in ("captions", "questions", "annotations")
        )
        answers = {row["question_id"]: row["multiple_choice_answer"] for row in answered["annotations"]}
        rows = []
        for image in said["images"]:
            questions = [row for row in asked["questions"] if row["image_id"] == image["id"]]
            captions = [row["caption"] for row in said["annotations"] if row["image_id"] == image["id"]]
            rows.append(
                {
                    "img_id": f"COCO_{split}2014_{image['id']}",
                    "sentf": {"mscoco": captions, "vqa": [row["question"] for row in questions]},
                    "labelf": {"vqa": [{answers[row["question_id"]]: 1} for row in questions]},
                }
            )
        for number in half[split]:
            path = root / files.captions[number].captions
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows[number :: len(half[split])]))
        names += [row["img_id"] for row in rows]
    for place, count in ((data.region_names.objects, 3), (data.region_names.attributes, 2)):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("".join(f"{Path(place).stem} {number}\n" for number in range(count)))
    generator = np.random.default_rng(0)
    for number, place in enumerate(data.regions.files):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / place, "w") as file:
            for name in names[number :: len(data.regions.files)]:
                group = file.create_group(name)
                n_regions = data.regions.n_regions
                group["features"] = generator.random((n_regions, data.regions.n_features), dtype=np.float32)
                corners = np.sort(generator.random((n_regions, 2, 2)), axis=1).reshape(-1, 4)
                group["boxes"] = (36 * corners).astype(np.float32)
                group["img_w"] = group["img_h"] = 36
                group["obj_id"] = generator.integers(0, 3, n_regions)
                group["attr_id"] = generator.integers(0, 2, n_regions)


def test_vlt5_is_pre_trained_with_all_tasks_and_then_fine_tuned(scenes, tmp_path):
    recipe = load_recipe(RECIPES / "vlt5-pretrain.yaml")
    as_lxmert(recipe, scenes, tmp_path / "data")
    start = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"root": "data"}),
            "model": recipe.model.model_copy(update={"path": None, "config": {"model_type": "vlt5", **TINY}}),
        }
    )
    parts = RunParts(start, with_teacher=False)
    save_checkpoint(parts.model, parts.tokenizer, None, recipe.model.path)
    result = amad("train", "vlt5-pretrain.yaml")
    assert {f"accuracy_{task}" for task in recipe.data.tasks} <= result.keys()


@pytest.mark.parametrize(
    ("recipe", "family", "figures"),
    [
        ("flickr8k-pretrain-vlt5", "flickr8k-captions", {"accuracy_match", "accuracy_span", "loss_span"}),
        ("flickr8k-pretrain-blip", "flickr8k-captions-blip", {"accuracy_match", "accuracy_contrast"}),
        ("scenes-pretrain-vlt5", "scenes-vqa", {"accuracy_match", "accuracy_span", "accuracy_question"}),
        ("scenes-pretrain-blip", "scenes-captions-blip", {"accuracy_match", "accuracy_contrast"}),
    ],
)
def test_a_small_model_is_pre_trained_and_the_student_starts_there(scenes, tmp_path, recipe, family, figures):
    if recipe.startswith("scenes"):
        (tmp_path / "data").symlink_to(scenes)
    else:
        with_splits(scenes, tmp_path / "data")
    pretrained = amad("train", f"{recipe}.yaml")
    assert figures <= pretrained.keys()
    amad("train", f"{family}-teacher.yaml", f"model.tokenizer={pretrained['model']}")
    start = f"student={{path: {pretrained['model']}}}"
    student = amad("distill", f"{family}-amad.yaml", start, "training.learning_rate=0")
    ours, theirs = weights(student), weights(pretrained)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    # It has the shape that the recipe of the student gives without it.
    other = amad("distill", f"{family}-amad.yaml", "output=runs/other")
    assert other["parameters"] == student["parameters"]
