"""Recipes on region features, for each task: trained, distilled, evaluated and checked without any image."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

N_FEATURES = 8
TASKS = {
    "vqa": {},
    "captions": {
        "train": {"captions": "captions_train.json"},
        "validation": {"captions": "captions_val.json"},
    },
    "translation": {"validation": "val"},
}


def write_regions(folder, n_regions=36):
    """VL-T5's file for each split, of random features; then there are no images any more."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        names = sorted((folder / "images").glob(f"*_{split}_*"))
        assert names
        with h5py.File(folder / f"{split}_boxes36.h5", "w") as file:
            for name in names:
                group = file.create_group(name.stem)
                group["features"] = generator.random((n_regions, N_FEATURES), dtype=np.float32)
                corners = np.sort(generator.random((n_regions, 2, 2)), axis=1).reshape(n_regions, 4)
                group["boxes"] = (36 * corners).astype(np.float32)
                group["img_w"] = group["img_h"] = 36
    shutil.rmtree(folder / "images")


@pytest.fixture(params=TASKS)
def tree(request, teacher_tree, own_scenes):
    write_regions(own_scenes)
    data = TASKS[request.param] or teacher_tree["data"]
    teacher_tree["model"]["config"] |= {"visual_source": "regions", "feat_dim": N_FEATURES}
    for key in ("image_size", "patch_size"):
        del teacher_tree["model"]["config"][key]
    regions = {"files": ["train_boxes36.h5", "val_boxes36.h5"], "n_features": N_FEATURES}
    return teacher_tree | {
        "task": request.param,
        "data": {**data, "root": str(own_scenes), "max_target_tokens": 8, "regions": regions},
    }


def test_a_model_is_trained_distilled_evaluated_and_its_data_checked(amad, tree):
    trained = amad.document("train", amad.write(tree))
    assert not Path("teacher/model/preprocessor_config.json").exists()
    told = amad.document("evaluate", amad.write(tree))
    main = {"vqa": "accuracy", "captions": "CIDEr", "translation": "BLEU"}[tree["task"]]
    assert told[main] == pytest.approx(trained[main], abs=0.005)
    checked = amad.document("data", "check", amad.write(tree), "--sheet", "sheet.html")
    assert checked["splits"]["train"]["images"] == 54
    assert Path("sheet.html").read_text().count("<rect") == 37 * (48 if main == "accuracy" else 30)

    del tree["model"]
    student = {"heads": 2, "layers": 0.5, "width": 0.5}
    tree |= {"output": "student", "teacher": trained["model"], "student": student}
    distilled = amad.document("distill", amad.write(tree))
    assert distilled["parameters"] < trained["parameters"]


def test_the_regions_are_seen(amad, tree):
    """Of other features a model learns another loss."""
    root = Path(tree["data"]["root"])
    shutil.copy(root / "train_boxes36.h5", root / "other.h5")
    with h5py.File(root / "other.h5", "a") as file:
        for group in file.values():
            group["features"][...] = group["features"][...] * 3 - 1
    one = amad.document("train", amad.write(tree), "training.max_steps=1")
    files = "data.regions.files=[other.h5, val_boxes36.h5]"
    other = amad.document("train", amad.write(tree), "training.max_steps=1", "output=other", files)
    losses = [
        [
            json.loads(line)["loss"]
            for line in Path(run["output"], "records.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for run in (one, other)
    ]
    assert len(losses[0]) == len(losses[1]) == 1
    assert losses[0] != losses[1]


def test_an_image_with_boxes_of_another_count_is_refused_or_left_out(amad, tree):
    root = Path(tree["data"]["root"])
    with h5py.File(root / "train_boxes36.h5", "a") as file:
        name = sorted(file)[3]
        for key in ("features", "boxes"):
            short = file[name][key][:35]
            del file[name][key]
            file[name][key] = short
    path = amad.write(tree)
    message = amad.refuse("train", path)
    assert f"train_boxes36.h5, image {name}: must have 36 regions of 8 features but has 35 of 8" in message
    assert "data.on_bad_example=skip" in message
    assert not Path("teacher").exists()
    checked = json.loads(amad.call("data", "check", path, "--json").stdout)
    told = amad.document("train", path, "data.on_bad_example=skip")
    rows = [json.loads(line) for line in Path("teacher/bad_examples.jsonl").read_text().splitlines()]
    assert checked["problems"] == rows
    assert told["bad_examples"] == len(rows) == {"vqa": 4}.get(tree["task"], 1)
    source = {
        "vqa": "questions_train.json",
        "captions": "captions_train.json",
        "translation": "image_splits.train.txt",
    }[tree["task"]]
    assert {row["file"] for row in rows} == {str(root / source)}
    # Any number of regions is fine where the recipe says so.
    plan = amad.document("train", path, "data.regions.n_regions=null", "--dry-run")
    assert plan["summary"]["parameters trained"] == told["parameters"]


@pytest.mark.parametrize("tree", ["vqa"], indirect=True)
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.regions.files=no.h5", "no.h5: no such file"),
        ("data.regions.files=../no.h5", "data.regions.files: the file name '../no.h5' leaves"),
        ("data.regions.files=[]", "data.regions.files"),
        ("data.regions.files=questions_train.json", "must be in a file that ends in .h5, .hdf5 or .tsv"),
        ("data.regions.files=val_boxes36.h5", "val_boxes36.h5: no features of image shapes_train"),
        ("data.regions.n_features=2048", "must have 36 regions of 2048 features but has 36 of 8"),
        ("data.regions.n_region=3", "did you mean 'n_regions'?"),
        ("model.config.feat_dim=16", "data.regions.n_features is 8, and VLT5ForConditionalGeneration reads"),
        ("model.config.visual_source=patches", "and VLT5ForConditionalGeneration reads images"),
        ("data.regions=null", "model.config.image_size is None"),
    ],
)
def test_regions_that_do_not_fit_are_refused_before_anything_is_written(amad, tree, override, words):
    assert words in amad.refuse("train", amad.write(tree), override)
    assert not Path("teacher").exists()


def test_a_model_that_reads_regions_is_not_shown_images(amad, teacher_tree):
    teacher_tree["model"]["config"] |= {"visual_source": "regions"}
    message = amad.refuse("train", amad.write(teacher_tree))
    assert "reads region features (visual_source is regions), and the recipe has none" in message
    assert not Path("teacher").exists()
