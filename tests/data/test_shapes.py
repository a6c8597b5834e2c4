import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from amad.data.baselines import answer_baselines
from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.data.vqa import read_vqa_v2
from amad.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "set"
    return out, write_shapes(out, 300, seed=1, validation_share=0.2)


def read(out, split):
    return list(
        read_vqa_v2(
            out / f"questions_{split}.json", out / f"annotations_{split}.json", out / "images", IMAGE_NAME
        )
    )


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_loader_of_the_official_set_reads_it(written):
    out, summary = written
    assert summary.n_images == {"train": 240, "val": 60}
    for split, n_images in summary.n_images.items():
        examples = read(out, split)
        assert len(examples) == summary.n_questions[split]
        assert len({example.image_id for example in examples}) == n_images
        for example in examples:
            assert example.answers == (example.best_answer[0],) * 10
            assert example.question_id // 1000 == example.image_id
    assert not {e.image_id for e in read(out, "train")} & {e.image_id for e in read(out, "val")}


def test_official_files_have_every_official_key(written):
    out, _ = written
    questions = json.loads((out / "questions_val.json").read_text())
    annotations = json.loads((out / "annotations_val.json").read_text())
    head = {"info", "license", "data_type", "data_subtype"}
    assert set(questions) == head | {"task_type", "questions"}
    assert set(annotations) == head | {"annotations"}
    assert set(questions["questions"][0]) == {"image_id", "question", "question_id"}
    row = annotations["annotations"][0]
    assert set(row) == {
        "question_type",
        "multiple_choice_answer",
        "answers",
        "image_id",
        "answer_type",
        "question_id",
    }
    assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))
    assert {one["answer_type"] for one in annotations["annotations"]} == {"number", "other"}


def test_images_are_small_rgb_pictures(written):
    out, _ = written
    paths = list((out / "images").iterdir())
    assert len(paths) == 300
    for path in paths[:20]:
        with Image.open(path) as image:
            assert (image.mode, image.size, image.format) == ("RGB", (36, 36), "PNG")


def test_every_image_has_five_captions_and_one_line_of_each_language(written):
    out, summary = written
    for split, n_images in summary.n_images.items():
        captions = json.loads((out / f"captions_{split}.json").read_text())
        per_image = Counter(row["image_id"] for row in captions["annotations"])
        assert set(per_image.values()) == {5}
        assert set(per_image) == {image["id"] for image in captions["images"]}
        assert len({row["id"] for row in captions["annotations"]}) == 5 * n_images
        lines = {
            name: (out / name).read_text(encoding="utf-8").splitlines()
            for name in (f"{split}.en", f"{split}.de", f"image_splits.{split}.txt")
        }
        assert {len(rows) for rows in lines.values()} == {n_images}
        assert lines[f"image_splits.{split}.txt"] == [image["file_name"] for image in captions["images"]]
        assert all((out / "images" / image["file_name"]).is_file() for image in captions["images"])


def test_translating_needs_the_picture(tmp_path):
    """The most frequent translation of every English line is often not the right one."""
    write_shapes(tmp_path / "set", 1000, seed=0)
    english = (tmp_path / "set/train.en").read_text().splitlines()
    german = (tmp_path / "set/train.de").read_text().splitlines()
    and_lines = [(e, d) for e, d in zip(english, german, strict=True) if " and " in e]
    counts = Counter(and_lines)
    by_english = Counter(e for e, _ in and_lines)
    repeated = {e for e, n in by_english.items() if n > 1}
    assert len(repeated) > 20
    split = {e for e in repeated if sum(one == e for one, _ in counts) > 1}
    assert len(split) > 0.5 * len(repeated)


def test_baselines_stored_with_the_set_are_those_of_what_was_written(written):
    out, summary = written
    stored = json.loads((out / "baselines.json").read_text())
    again = answer_baselines(read(out, "train"), read(out, "val"))
    assert again == summary.baselines
    assert stored == {
        "majority_answer": again.majority_answer,
        "majority": again.majority,
        "question_only": again.question_only,
        "n_train": again.n_train,
        "n_validation": again.n_validation,
    }


def test_the_question_alone_says_little(tmp_path):
    # Guessing among 8 colours twice, 3 shapes and 4 numbers is right in 20.8 % of all cases.
    summary = write_shapes(tmp_path / "set", 2000, seed=3)
    assert summary.baselines.question_only < 27
    assert summary.baselines.majority < 12


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(tmp_path):
    write_shapes(tmp_path / "a", 30, seed=5)
    write_shapes(tmp_path / "b", 30, seed=5)
    write_shapes(tmp_path / "c", 30, seed=6)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_splits_share_no_picture(written):
    out, _ = written
    pictures = {
        split: {np.asarray(Image.open(path)).tobytes() for path in (out / "images").glob(f"shapes_{split}_*")}
        for split in ("train", "val")
    }
    assert not pictures["train"] & pictures["val"]


def test_progress_ends_at_all(tmp_path):
    seen = []
    write_shapes(tmp_path / "set", 1100, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1100), (990, 1100), (1100, 1100)]


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "set", 20, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(DataError, match="is there already and not empty"):
        write_shapes(tmp_path, 20)
    assert (tmp_path / "mine").read_text() == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_images": 1}, "at least 2 images"),
        ({"n_images": 5, "seed": -1}, "seed must not be negative"),
        ({"n_images": 5, "validation_share": 1.0}, "between 0 and 1"),
        ({"n_images": 5, "questions_per_image": 0}, "from 1 to 10"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        write_shapes(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()
