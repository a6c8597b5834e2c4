"""The official downloads, unpacked as they come, in small: a recipe names them and nothing has to be converted."""

import gzip
import json

import pytest
from PIL import Image

TEN = ["red"] * 7 + ["blue"] * 3


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise((48, 36), 60).convert("RGB").save(folder / name)


def dump(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def coco(split, number):
    return f"COCO_{split}2014_{number:012d}.jpg"


def vqa_v2(root):
    for split, numbers in (("train", (9, 25)), ("val", (42,))):
        images(root / f"{split}2014", *(coco(split, number) for number in numbers))
        asked = [
            {"image_id": number, "question": "What colour?", "question_id": 1000 * number + i}
            for number in numbers
            for i in range(2)
        ]
        answered = [
            {
                "question_type": "what",
                "multiple_choice_answer": "red",
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": i}
                    for i, answer in enumerate(TEN, 1)
                ],
                "image_id": one["image_id"],
                "answer_type": "other",
                "question_id": one["question_id"],
            }
            for one in asked
        ]
        header = {"info": {}, "license": {}, "data_subtype": f"{split}2014", "data_type": "mscoco"}
        name = f"mscoco_{split}2014"
        dump(
            root / f"v2_OpenEnded_{name}_questions.json",
            header | {"task_type": "Open-Ended", "questions": asked},
        )
        dump(root / f"v2_{name}_annotations.json", header | {"annotations": answered})
    files = {
        split: {
            "questions": f"v2_OpenEnded_mscoco_{split}2014_questions.json",
            "annotations": f"v2_mscoco_{split}2014_annotations.json",
            "images": f"{split}2014",
        }
        for split in ("train", "val")
    }
    return "vqa", {"train": files["train"], "validation": files["val"]}, (4, 2, 10)


def vqa_v2_and_visual_genome(root):
    task, data, _ = vqa_v2(root)
    images(root / "VG_100K", "1.jpg")
    images(root / "VG_100K_2", "2417997.jpg")
    rows = [
        {
            "id": number,
            "qas": [
                {
                    "a_objects": [],
                    "question": "Who?",
                    "image_id": number,
                    "qa_id": number,
                    "answer": "A man.",
                    "q_objects": [],
                }
            ],
        }
        for number in (1, 2417997)
    ]
    dump(root / "question_answers.json", rows)
    genome = {
        "format": "visual-genome",
        "questions": "question_answers.json",
        "images": ["VG_100K", "VG_100K_2"],
    }
    return task, data | {"also_train": [data["validation"], genome]}, (8, 5, 10)


def vlt5(root):
    images(root / "train2014", coco("train", 9))
    images(root / "val2014", coco("val", 42))
    for split in ("train", "val"):
        stems = [coco("train", 9)[:-4], coco("val", 42)[:-4]]
        rows = [
            {
                "answer_type": "other",
                "img_id": stem,
                "label": {"net": 1, "web": 0.3},
                "question_id": i,
                "question_type": "what is",
                "sent": "What?",
            }
            for i, stem in enumerate(stems)
        ]
        dump(root / f"vqa/karpathy_{split}.json", rows)
    files = {"format": "vl-t5", "images": ["train2014", "val2014"]}
    return (
        "vqa",
        {
            "train": files | {"questions": "vqa/karpathy_train.json"},
            "validation": files | {"questions": "vqa/karpathy_val.json"},
        },
        (2, 2, 2),
    )


def vlt5_with_the_official_answers(root):
    task, data, _ = vlt5(root)
    answers = [{"answer": one, "answer_confidence": "yes", "answer_id": i} for i, one in enumerate(TEN, 1)]
    dump(
        root / "vqa/v2_mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": i, "image_id": 42, "answers": answers} for i in range(3)]},
    )
    data["validation"]["annotations"] = "vqa/v2_mscoco_val2014_annotations.json"
    return task, {"train": data["validation"], "validation": data["validation"]}, (2, 2, 10)


def blip(root):
    images(root / "coco/train2014", coco("train", 9))
    images(root / "coco/val2014", coco("val", 42))
    images(root / "vg/image", "1.jpg")
    common = {"question": "What?", "question_id": 1, "dataset": "vqa"}
    dump(root / "vqa_train.json", [common | {"image": f"train2014/{coco('train', 9)}", "answer": TEN}])
    dump(root / "vqa_val.json", [common | {"image": f"val2014/{coco('val', 42)}", "answer": TEN}])
    row = {"image": "image/1.jpg", "question": "Who?", "question_id": 7, "answer": "a man", "dataset": "vg"}
    dump(root / "vg_qa.json", [row])
    files = {"format": "blip", "images": "coco"}
    return (
        "vqa",
        {
            "train": files | {"questions": "vqa_train.json"},
            "also_train": [{"format": "blip", "images": "vg", "questions": "vg_qa.json"}],
            "validation": files | {"questions": "vqa_val.json"},
        },
        (2, 2, 10),
    )


def coco_captions(root):
    for split, number in (("train", 9), ("val", 42)):
        images(root / f"{split}2014", coco(split, number))
        document = {
            "info": {},
            "licenses": [],
            "images": [{"id": number, "file_name": coco(split, number), "height": 36, "width": 48}],
            "annotations": [{"image_id": number, "id": i, "caption": f"Caption {i}."} for i in range(5)],
        }
        dump(root / f"annotations/captions_{split}2014.json", document)
    files = {
        split: {"captions": f"annotations/captions_{split}2014.json", "images": f"{split}2014"}
        for split in ("train", "val")
    }
    return "captions", {"train": files["train"], "validation": files["val"]}, (1, 1, 5)


def karpathy(root):
    images(root / "train2014", coco("train", 9))
    images(root / "val2014", coco("val", 42), coco("val", 73))
    rows = [
        {
            "filepath": f"{folder}2014",
            "filename": coco(folder, number),
            "cocoid": number,
            "imgid": number,
            "split": split,
            "sentids": [],
            "sentences": [
                {"tokens": ["a"], "raw": "A caption.", "imgid": number, "sentid": i} for i in range(5)
            ],
        }
        for folder, number, split in (("train", 9, "train"), ("val", 42, "restval"), ("val", 73, "val"))
    ]
    dump(root / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    files = {"format": "karpathy", "captions": "dataset_coco.json", "images": "."}
    return (
        "captions",
        {"train": files | {"split": "train"}, "validation": files | {"split": "val"}},
        (2, 2, 5),
    )


def blip_captions(root):
    images(root / "train2014", coco("train", 9))
    images(root / "val2014", coco("val", 42))
    name = f"train2014/{coco('train', 9)}"
    dump(
        root / "coco_karpathy_train.json",
        [{"image": name, "caption": f"caption {i}", "image_id": "coco_9"} for i in range(5)],
    )
    rows = [{"image": f"val2014/{coco('val', 42)}", "caption": ["a", "b", "c", "d", "e"]}]
    dump(root / "coco_karpathy_val.json", rows)
    files = {"format": "blip", "images": "."}
    return (
        "captions",
        {
            "train": files | {"captions": "coco_karpathy_train.json"},
            "validation": files | {"captions": "coco_karpathy_val.json"},
        },
        (1, 1, 5),
    )


def multi30k(root, source="en", target="de", pack=True):
    for split, n in (("train", 3), ("val", 2)):
        names = [f"{split}_{i}.jpg" for i in range(n)]
        images(root / "flickr30k-images", *names)
        (root / "image_splits").mkdir(exist_ok=True)
        (root / "image_splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "raw").mkdir(exist_ok=True)
        for language in ("en", "de", "fr", "cs"):
            text = "".join(f"Věta číslo {i} ({language}).\n" for i in range(n)).encode()
            path = root / "raw" / f"{split}.{language}"
            if pack:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text))
            else:
                path.write_bytes(text)
    data = {
        "source": source,
        "target": target,
        "validation": "val",
        "sentences": "raw/{split}.{language}" + ".gz" * pack,
        "images": "flickr30k-images",
        "image_names": "image_splits/{split}.txt",
    }
    return "translation", data, (3, 3, 1)


def multi30k_plain_french(root):
    return multi30k(root, target="fr", pack=False)


def multi30k_czech(root):
    return multi30k(root, target="cs")


@pytest.mark.parametrize(
    "unpack",
    [
        vqa_v2,
        vqa_v2_and_visual_genome,
        vlt5,
        vlt5_with_the_official_answers,
        blip,
        coco_captions,
        karpathy,
        blip_captions,
        multi30k,
        multi30k_plain_french,
        multi30k_czech,
    ],
)
def test_official_files_are_read_as_they_come(amad, teacher_tree, root, unpack):
    task, data, (items, n_images, most) = unpack(root)
    path = amad.write(teacher_tree | {"task": task, "data": {"root": str(root), **data}})
    told = amad.document("data", "check", path, "--sheet", "sheet.html")
    train = told["splits"]["train"]
    assert (train["items"], train["images"], train["most"]) == (items, n_images, most)
    assert train["unanswered"] == 0
    assert told["splits"]["validation"]["items"] > 0
    plan = amad.document("train", path, "--dry-run")["summary"]
    unit = {"vqa": "questions", "captions": "captions", "translation": "sentences"}[task]
    assert plan[f"training {unit}"] == (items if task != "captions" else 5 * items)
