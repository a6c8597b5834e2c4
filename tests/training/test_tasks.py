import json
import sys

import pytest

from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.errors import DataError
from amad.metrics.captions import score_captions
from amad.metrics.translation import score_translations
from amad.recipe_data import CaptionData, TranslationData, VqaData
from amad.training.tasks import CaptionTask, TranslationTask, VqaTask, load_task


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 40, seed=1)
    return folder


def captions(root, **more):
    files = {name: {"captions": f"captions_{name}.json"} for name in ("train", "val")}
    data = {"root": str(root), "train": files["train"], "validation": files["val"]} | more
    return CaptionData.model_validate(data)


def translation(root, **more):
    return TranslationData.model_validate({"root": str(root), "validation": "val"} | more)


def task_of(data):
    return load_task(data, 0, None)


def read(data):
    task = task_of(data)
    return task.train, task.validation


def lines(path):
    return path.read_text().splitlines()


def test_captions_are_scored_as_the_scorers_do_from_our_tokens_and_the_signature_says_so(scenes):
    task = task_of(captions(scenes))
    # Some are right, some are of another image.
    references = [example.captions for example in task.validation.examples]
    said = [several[1] for several in references]
    said[1], said[2] = said[2], said[1]
    ids = [example.image_id for example in task.validation.examples]
    direct = score_captions(
        dict(zip(ids, references, strict=True)), dict(zip(ids, said, strict=True)), meteor=False, java=False
    )
    scores = task.score(said)
    assert scores == {
        "CIDEr": direct.corpus["CIDEr"],
        "Bleu_4": direct.corpus["Bleu_4"],
        "signature": direct.signature,
    }
    assert task.signature == direct.signature
    assert scores["CIDEr"] > 0
    assert scores["signature"].startswith("tokenizer:amad-ptb|java:no|")
    assert task.main_figure == "CIDEr"


def test_scoring_captions_starts_no_java(scenes, tmp_path, monkeypatch):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    task = task_of(captions(scenes))
    task.score([example.captions[0] for example in task.validation.examples])
    assert not (tmp_path / "started").exists()


def test_translations_are_scored_by_sacrebleu_without_case(scenes):
    task = task_of(translation(scenes))
    references = lines(scenes / "val.de")
    said = [one.upper() for one in references]
    said[0], said[1] = said[1], said[0]
    direct = score_translations([references], said, lowercase=True)
    assert task.score(said) == {"BLEU": direct.bleu, "signature": direct.signatures["BLEU"]}
    assert task.signature == direct.signatures["BLEU"]
    assert 0 < direct.bleu < 100
    assert task.score([one.upper() for one in references])["BLEU"] == pytest.approx(100)


def test_result_files_are_official(scenes):
    task = task_of(captions(scenes))
    images = json.loads((scenes / "captions_val.json").read_text())["images"]
    said = [f"bär {i}" for i in range(len(images))]
    assert json.loads(task.results(said)) == [
        {"image_id": image["id"], "caption": one} for image, one in zip(images, said, strict=True)
    ]
    # A text of several lines would shift all lines that follow.
    assert task_of(translation(scenes)).results(["ein\nHaus ", "", "x"]) == "ein Haus\n\nx\n"


def vqa(root, **more):
    files = {"annotations": "annotations_train.json", "image_name": IMAGE_NAME}
    return VqaData.model_validate(
        {"root": str(root), "train": {"questions": "questions_train.json"} | files} | more
    )


@pytest.mark.parametrize("make", [captions, translation, vqa])
def test_a_subset_is_a_share_of_the_training_images_with_all_that_belongs_to_them(scenes, make):
    whole = task_of(make(scenes)).splits.train
    images = [one.image_name for one in whole]
    chosen = {}
    for share in (0.1, 0.3, 0.9):
        found = list(task_of(make(scenes, subset={"share": share, "seed": 5})).splits.train)
        chosen[share] = {one.image_name for one in found}
        assert len(chosen[share]) == round(share * len(set(images)))
        assert found == [one for one in whole if one.image_name in chosen[share]]
    assert chosen[0.1] < chosen[0.3] < chosen[0.9]
    other = task_of(make(scenes, subset={"share": 0.3})).splits.train
    assert {one.image_name for one in other} != chosen[0.3]
    # However small, something is left.
    assert len({one.image_name for one in task_of(make(scenes, subset={"share": 0.001})).splits.train}) == 1


def test_a_subset_is_of_what_is_not_held_out_and_leaves_that_as_it_was(scenes):
    held = task_of(vqa(scenes, holdout={"share": 0.5})).splits
    part = task_of(vqa(scenes, holdout={"share": 0.5}, subset={"share": 0.5})).splits
    assert list(part.validation) == list(held.validation)
    kept, whole = ({one.question_id for one in splits.train} for splits in (part, held))
    assert kept < whole


def test_a_subset_is_of_all_files_that_are_trained_on(scenes):
    data = vqa(scenes)
    more = {
        "questions": "questions_val.json",
        "annotations": "annotations_val.json",
        "image_name": IMAGE_NAME,
    }
    both = task_of(vqa(scenes, also_train=[more])).splits.train
    images = list(dict.fromkeys(one.image_name for one in both))
    assert len(images) == len({one.image_name for one in task_of(data).splits.train}) + 4
    found = task_of(vqa(scenes, also_train=[more], subset={"share": 0.99})).splits.train
    kept = {one.image_name for one in found}
    assert len(kept) == round(0.99 * len(images))
    assert list(found) == [one for one in both if one.image_name in kept]
    assert any("val" in name for name in kept)
    assert any("train" in name for name in kept)


def test_each_task_reads_its_own_files(scenes):
    vqa = VqaData.model_validate(
        {
            "root": str(scenes),
            "train": {
                "questions": "questions_train.json",
                "annotations": "annotations_train.json",
                "image_name": IMAGE_NAME,
            },
        }
    )
    tasks = [task_of(vqa), task_of(captions(scenes)), task_of(translation(scenes, source="de", target="en"))]
    assert [type(task) for task in tasks] == [VqaTask, CaptionTask, TranslationTask]
    n_images = len(lines(scenes / "train.en"))
    assert len(tasks[1].train) == 5 * n_images
    assert len(tasks[1].validation) == 40 - n_images == len(tasks[2].validation)
    assert tasks[2].train.text(0) == f"translate German to English: {lines(scenes / 'train.de')[0]}"
    assert tasks[2].train.examples[0].target == lines(scenes / "train.en")[0]
    assert not tasks[0].is_scored


def test_visual_genome_is_trained_on_beside_vqa_at_its_weight(scenes, tmp_path):
    (tmp_path / "images").symlink_to(scenes / "images")
    for name in ("questions_train.json", "annotations_train.json"):
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    name = sorted(path.stem for path in (scenes / "images").iterdir())[0]
    pairs = [{"qa_id": i, "question": f"What is {i}?", "answer": "A man."} for i in range(3)]
    (tmp_path / "question_answers.json").write_text(json.dumps([{"id": name, "qas": pairs}]))
    vg = {"format": "visual-genome", "questions": "question_answers.json", "image_name": "{image_id}.png"}
    data = {
        "root": str(tmp_path),
        "train": {
            "questions": "questions_train.json",
            "annotations": "annotations_train.json",
            "image_name": IMAGE_NAME,
        },
    }
    alone = task_of(VqaData.model_validate(data)).train
    for weight in (None, 0.5):
        both = task_of(VqaData.model_validate(data | {"also_train": [vg | {"weight": weight}]})).train
        assert len(both) == len(alone) + 3
        assert both[0]["weight"] == alone[0]["weight"] == 1.0
        last = both[len(both) - 1]
        assert (last["text"], last["target"]) == ("vqa: What is 2?", "man")
        assert last["weight"] == (weight or 0.2)
        assert last["image"].shape == both[0]["image"].shape


def test_one_coco_file_with_a_split_per_image_is_both_sets(scenes, tmp_path):
    document = json.loads((scenes / "captions_train.json").read_text())
    for i, image in enumerate(document["images"]):
        image["split"] = "val" if i < 3 else "train"
    (tmp_path / "captions.json").write_text(json.dumps(document))
    (tmp_path / "images").symlink_to(scenes / "images")
    both = {name: {"captions": "captions.json", "split": name} for name in ("train", "val")}
    task = task_of(captions(tmp_path, train=both["train"], validation=both["val"]))
    ids = [[example.image_id for example in one.examples] for one in (task.validation, task.train)]
    assert ids[0] + ids[1] == [image["id"] for image in document["images"]]
    assert len(ids[0]) == 3


def test_karpathys_and_blips_files_are_read_by_their_format(scenes, tmp_path):
    (tmp_path / "images").symlink_to(scenes / "images")
    names = sorted(path.name for path in (scenes / "images").iterdir())[:2]
    karpathy = [
        {"filename": name, "imgid": i, "split": split, "sentences": [{"raw": f"k {i}"}]}
        for i, (name, split) in enumerate(zip(names, ("restval", "val"), strict=True))
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": karpathy}))
    (tmp_path / "b.json").write_text(json.dumps([{"image": name, "caption": name} for name in names]))
    task = task_of(
        captions(
            tmp_path,
            train={"format": "karpathy", "captions": "k.json", "split": "train"},
            validation={"format": "blip", "captions": "b.json"},
        )
    )
    assert [example.captions for example in task.train.examples] == [("k 0",)]
    assert [example.captions for example in task.validation.examples] == [(name,) for name in names]


def test_the_limit_cuts_the_validation_set_alone(scenes):
    for data in (captions(scenes, max_validation_examples=2), translation(scenes, max_validation_examples=2)):
        whole, limited = task_of(data.whole()), task_of(data)
        assert len(limited.validation) == 2 < len(whole.validation)
        assert len(limited.train) == len(whole.train)
        assert list(limited.validation.examples) == list(whole.validation.examples)[:2]


def test_captions_of_a_test_split_are_written_and_not_scored(scenes, tmp_path):
    document = json.loads((scenes / "captions_val.json").read_text())
    del document["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(document))
    (tmp_path / "captions_train.json").write_bytes((scenes / "captions_train.json").read_bytes())
    (tmp_path / "images").symlink_to(scenes / "images")
    task = task_of(captions(tmp_path, validation={"captions": "test.json"}))
    assert not task.is_scored
    assert len(json.loads(task.results(["x"] * len(task.validation)))) == len(document["images"])
    with pytest.raises(DataError, match=r"none of the \d+ images has a caption.* Give data\.train\.captions"):
        _ = task_of(captions(tmp_path, train={"captions": "test.json"})).train


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (captions, {"root": "absent"}, r"data\.root absent is no folder"),
        (captions, {"train": {"captions": "no.json"}}, r"no\.json: no such file"),
        (captions, {"train": {"captions": "../c.json"}}, r"data\.train\.captions: the file name .* leaves"),
        (
            captions,
            {"validation": {"captions": "captions_val.json", "split": "val"}},
            "no image has a 'split'",
        ),
        (
            captions,
            {"validation": {"captions": "captions_val.json", "images": "x"}},
            "folder of images cannot",
        ),
        (translation, {"train": "trian"}, r"trian\.en: no such file"),
        (translation, {"target": "nl"}, "must be one of cs, de, en, fr but is 'nl'"),
        (translation, {"sentences": "train.en"}, r"for both languages. Put \{language\} in it"),
        (translation, {"sentences": "{lang}"}, r"data\.sentences: .* asks for \['lang'\]"),
        (translation, {"image_names": "image_splits.val.txt"}, "Lines of a split must correspond"),
        (translation, {"sentences": "/{split}.{language}"}, r"data\.sentences: the file name .* leaves"),
    ],
)
def test_what_cannot_be_read_is_one_error(scenes, make, more, message):
    with pytest.raises(DataError, match=message):
        read(make(**({"root": scenes} | more)))


@pytest.mark.parametrize(("make", "package"), [(captions, "pycocoevalcap"), (translation, "sacrebleu")])
def test_a_missing_scorer_is_refused_only_where_it_is_needed(scenes, monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs {package}. Run pip install 'amad\[metrics\]'"):
        _ = task_of(make(scenes)).is_scored
    assert not task_of(make(scenes, validation=None)).is_scored
