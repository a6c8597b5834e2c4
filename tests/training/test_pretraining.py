import json
from pathlib import Path

import numpy as np
import pytest

from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.data.tokens import train_tokenizer
from amad.errors import DataError, RecipeError
from amad.recipe import check_recipe
from amad.recipe_data import PretrainingData
from amad.training.pretraining import PretrainingTask
from amad.training.tasks import load_task

h5py = pytest.importorskip("h5py")

WIDTH = 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes with what the tasks on objects need: boxes of the whole image, and regions without images."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 20, seed=1)
    document = json.loads((folder / "captions_train.json").read_text())
    boxes = [
        {"image_id": image["id"], "category_id": 1, "bbox": [0, 0, 36, 36]} for image in document["images"]
    ]
    (folder / "instances.json").write_text(
        json.dumps(document | {"annotations": boxes, "categories": [{"id": 1, "name": "square"}]})
    )
    with h5py.File(folder / "regions.h5", "w") as file:
        for split in ("train", "val"):
            for image in json.loads((folder / f"captions_{split}.json").read_text())["images"]:
                group = file.create_group(Path(image["file_name"]).stem)
                group["features"] = np.full((4, WIDTH), image["id"], dtype=np.float32)
                group["boxes"] = np.array([[0, 0, 36, 36]] * 4, dtype=np.float32)
                group["img_w"], group["img_h"] = 36, 36
                group["obj_id"] = group["attr_id"] = np.array([0, 1, 0, 1])
    (folder / "objects.txt").write_text("square\ncircle\n")
    (folder / "attributes.txt").write_text("red\nblue\n")
    return folder


def files(split, **more):
    return {
        "captions": {"captions": f"captions_{split}.json"},
        "questions": {
            "questions": f"questions_{split}.json",
            "annotations": f"annotations_{split}.json",
            "image_name": IMAGE_NAME,
        },
    } | more


def data(root, **more):
    tree = {"root": str(root), "train": files("train"), "validation": files("val")}
    return PretrainingData.model_validate(tree | more)


def task_of(*args, **more):
    task = load_task(data(*args, **more), 0, np.asarray)
    assert type(task) is PretrainingTask
    return task


def items(dataset):
    return [dataset[index] for index in range(len(dataset))]


REGIONS = {"files": "regions.h5", "n_regions": 4, "n_features": WIDTH}
NAMES = {"objects": "objects.txt", "attributes": "attributes.txt"}
BOXES = {"instances": "instances.json", "grid": 3}


def test_captions_and_questions_of_both_splits_are_read(scenes):
    task = task_of(scenes, tasks={"span": 1, "match": 1, "question": 2})
    assert len(task.train) == 5 * 18
    assert len(task.validation) == 2 + 4 + len(task.splits.validation_questions)
    assert task.kinds == ("span", "match", "question")
    assert list(task.figures) == [
        *("accuracy_match", "accuracy_span", "accuracy_question"),
        *("loss_match", "loss_span", "loss_question"),
    ]
    assert task.main_figure == "accuracy_match"
    assert {item["image"].shape for item in items(task.train)} == {(36, 36, 3)}
    # A task at 0 is left out.
    assert task_of(scenes, tasks={"span": 1, "match": 0}).kinds == ("span",)


def test_a_list_joins_several_sets(scenes):
    both = [{"captions": "captions_train.json"}, {"captions": "captions_val.json"}]
    task = task_of(scenes, train={"captions": both}, validation=None)
    assert len(task.train) == 5 * 20
    assert task.validation is None
    assert not task.is_scored


def test_the_limit_cuts_images_and_questions_of_the_validation_set_alone(scenes):
    task = task_of(scenes, max_validation_examples=2, tasks={"span": 1, "match": 1, "question": 1})
    assert [item["kind"] for item in items(task.validation)] == [0, 0, 1, 1, 1, 1, 2, 2]
    with pytest.raises(DataError, match="captions of two images or more"):
        _ = task_of(scenes, max_validation_examples=1).validation
    assert len(task.train) == 90


def test_regions_take_the_place_of_images_for_captions_and_questions_alike(scenes, tmp_path):
    for path in scenes.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    tasks = dict.fromkeys(("span", "match", "question", "describe", "find"), 1)
    task = task_of(tmp_path, tasks=tasks, regions=REGIONS, region_names=NAMES)
    for dataset in (task.train, task.validation):
        found = items(dataset)
        assert {item["kind"] for item in found} == set(range(5))
        for item in found:
            assert "image" not in item
            assert item["vis_feats"].shape == (4, WIDTH)
            if item["kind"] == 2:
                # The features are the number of the image, by which the question is known.
                asked = [one for one in dataset.questions.examples if item["text"].endswith(one.question)]
                assert item["vis_feats"][0, 0] in {one.image_id for one in asked}
            if item["kind"] == 4:
                assert (item["text"], item["target"]) in {
                    ("visual grounding: red square", "<vis_extra_id_0>"),
                    ("visual grounding: red square", "<vis_extra_id_2>"),
                    ("visual grounding: blue circle", "<vis_extra_id_1>"),
                    ("visual grounding: blue circle", "<vis_extra_id_3>"),
                }


def test_boxes_are_asked_for_by_patch(scenes):
    task = task_of(scenes, boxes=BOXES, tasks={"describe": 1, "find": 1}, validation=None)
    texts = {(item["text"], item["target"]) for item in items(task.train)}
    assert texts == {
        ("caption region: <vis_extra_id_4>", "square"),
        ("visual grounding: square", "<vis_extra_id_4>"),
    }


class Grid:
    def __init__(self, grid):
        if grid is not None:
            self.visual_grid = grid


def test_boxes_must_lie_on_the_patches_of_the_model(scenes):
    task = task_of(scenes, boxes=BOXES, tasks={"describe": 1}, validation=None)
    task.check_model(Grid((3, 3)))
    with pytest.raises(RecipeError, match="grid is 3, and the model has 4 x 4 patches"):
        task.check_model(Grid((4, 4)))
    with pytest.raises(RecipeError, match="grid is 3, and the model has no grid of patches"):
        task.check_model(Grid(None))


@pytest.mark.parametrize(
    ("more", "words", "unknown"),
    [
        ({"tasks": {"span": 1}}, {"n_extra_ids": 0}, "<extra_id_0>"),
        ({"tasks": {"describe": 1}, "boxes": BOXES}, {"n_visual_ids": 8}, "<vis_extra_id_8>"),
        ({"tasks": {"match": 1}}, {"texts": ["a b"]}, "what sets 'true' and 'false' apart"),
    ],
)
def test_a_tokenizer_without_the_words_that_a_task_needs_is_refused(scenes, more, words, unknown):
    task = task_of(scenes, validation=None, **more)
    with pytest.raises(DataError, match=f"does not know {unknown}"):
        task.check_words(train_tokenizer(**{"texts": task.train.texts()} | words))
    task.check_words(train_tokenizer(task.train.texts()))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"tasks": {"question": 1}, "train": {"captions": {"captions": "captions_train.json"}}},
            "no questions",
        ),
        ({"tasks": {"find": 1}}, "there are no objects"),
        ({"train": files("train", captions={"captions": "../c.json"})}, r"captions\.0\.captions: .* leaves"),
        ({"regions": {"files": "no.h5"}}, r"no\.h5: no such file"),
        ({"regions": REGIONS | {"n_regions": 36}}, "must have 36 regions of 3"),
    ],
)
def test_what_cannot_be_read_is_one_error(scenes, more, message):
    with pytest.raises(DataError, match=message):
        _ = task_of(scenes, **more).train


def recipe(**data):
    train = {"captions": {"captions": "c.json"}}
    return {"task": "pretraining", "output": "o", "data": {"root": "d", "train": train} | data}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": {"span": 1, "contrast": 1}}, "mixes BLIP's contrast and caption with span"),
        ({"tasks": {"span": 0}}, "must have a task with a weight above 0"),
        ({"tasks": {"spam": 1}}, "data.tasks.spam"),
        ({"train": {"captions": {"captions": "c.json", "splitt": "x"}}}, "did you mean 'split'"),
        ({"regions": REGIONS, "boxes": BOXES}, "data.regions take their place"),
        ({"region_names": NAMES}, "names of data.regions, which are missing"),
    ],
)
def test_a_broken_rule_of_the_recipe_is_named(data, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe(**data))
    assert check_recipe(recipe()).data.tasks == {"span": 1, "match": 1}
