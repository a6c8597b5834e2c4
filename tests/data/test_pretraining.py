import math
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from amad.data.captions import CaptionDataset, CaptionExample, read_coco_captions
from amad.data.collate import Seq2SeqCollator
from amad.data.pretraining import PREFIXES, PretrainingDataset
from amad.data.shapes import IMAGE_NAME, write_shapes
from amad.data.tokens import train_tokenizer
from amad.data.vqa import VqaDataset, VqaExample, read_vqa_v2
from amad.errors import DataError


class Things:
    """Two things in images 0 and 1, one in all others, none in image 2."""

    n_tokens = 4

    def named(self, example, task):
        things = [(1, "red bus"), (3, "dog")][: 2 if example.image_id < 2 else 1]
        return () if example.image_id == 2 else tuple(things)

    def has(self, example, task):
        return bool(self.named(example, task))

    def phrases(self):
        return ["red bus", "dog"]


def captions(training=True, n_images=5, **more):
    examples = [
        CaptionExample(
            None, i, (f"image {i} shows a bus", f"a bus in image {i} on a road"), "train", f"{i}.jpg"
        )
        for i in range(n_images)
    ]
    return CaptionDataset(examples, training, **more)


def questions(training=True):
    examples = [
        VqaExample(7, 0, "what is it?", None, {"bus": 1.0, "car": 0.5}, None),
        VqaExample(8, 1, "is it red?", None, {"yes": 1.0}, None),
    ]
    return VqaDataset(examples, training)


def dataset(tasks=("span", "match"), training=True, weights=None, **more):
    more.setdefault("questions", questions(training) if "question" in tasks else None)
    more.setdefault("objects", Things() if {"describe", "find"} & set(tasks) else None)
    given = dict(zip(tasks, weights or [1.0] * len(tasks), strict=True))
    return PretrainingDataset(more.pop("captions", None) or captions(training), given, **more)


def items(data, epochs=1):
    found = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        found += [data[index] for index in range(len(data))]
    return found


ALL = ("span", "match", "question", "describe", "find")


def test_tasks_are_drawn_by_their_weights_and_say_what_they_are():
    data = dataset(ALL, weights=(2, 1, 1, 0.5, 0.5))
    found = items(data, 400)
    counts = Counter(ALL[item["kind"]] for item in found)
    n = len(found)
    assert n == 4000
    for task, share in zip(ALL, (0.4, 0.2, 0.2, 0.1, 0.1), strict=True):
        assert abs(counts[task] - n * share) < 4 * math.sqrt(n * share * (1 - share))
    assert all(item["text"].startswith(PREFIXES[ALL[item["kind"]]] + " ") for item in found)
    assert [item["index"] for item in found[:10]] == list(range(10))


def test_a_span_is_of_the_items_own_caption():
    data = dataset(("span",))
    for index, item in enumerate(items(data)):
        source = item["text"].removeprefix("span prediction: ")
        words = item["target"].removeprefix("<extra_id_0> ")
        assert re.sub("<extra_id_0>", words, source) == data.captions.target(index)
    # Another epoch leaves other words out.
    first, second = items(data), (data.set_epoch(1), [data[i] for i in range(len(data))])[1]
    assert [item["text"] for item in first] != [item["text"] for item in second]


def test_half_of_the_pairs_match_and_the_others_are_of_other_images():
    data = dataset(("match",), captions=captions(n_images=3))
    found = items(data, 400)
    counts = Counter(item["target"] for item in found)
    n = len(found)
    assert abs(counts["true"] - n / 2) < 4 * math.sqrt(n / 4)
    assert counts["true"] + counts["false"] == n
    taken = Counter()
    for item in found:
        said = item["text"].removeprefix("image text match: ")
        own = data.captions.example(item["index"])
        assert (said in own.captions) == (item["target"] == "true")
        if item["target"] == "true":
            assert said == data.captions.target(item["index"])
        elif item["index"] == 0:
            taken[said] += 1
    # Each caption of another image comes equally often.
    assert len(taken) == 4
    assert min(taken.values()) > sum(taken.values()) / 4 - 4 * math.sqrt(sum(taken.values()) * 3 / 16)


def test_a_caption_that_other_images_share_is_no_mismatch():
    said = [("a bus", "a car"), ("a bus", "a dog"), ("a car",)]
    examples = [CaptionExample(None, i, texts, None, f"{i}.jpg") for i, texts in enumerate(said)]
    data = dataset(("match",), captions=CaptionDataset(examples, training=True))
    wrong = [item for item in items(data, 50) if item["target"] == "false"]
    told = {(data.captions.example(item["index"]).image_id, item["text"].split(": ")[1]) for item in wrong}
    assert told == {(0, "a dog"), (1, "a car"), (2, "a bus"), (2, "a dog")}
    same = [CaptionExample(None, i, ("a bus",), None, f"{i}.jpg") for i in range(3)]
    alone = dataset(("match",), captions=CaptionDataset(same, training=True))
    with pytest.raises(DataError, match=r"image \d.jpg: 64 captions .* data.tasks.match to 0"):
        items(alone, 5)


def test_questions_keep_their_answers_and_scores():
    found = items(dataset(("question",)), 100)
    assert {(item["text"], item["target"], item["weight"]) for item in found} == {
        ("vqa: what is it?", "bus", 1.0),
        ("vqa: what is it?", "car", 0.5),
        ("vqa: is it red?", "yes", 1.0),
    }


def test_objects_are_described_and_found():
    data = dataset(("describe", "find"))
    pairs = {(item["text"], item["target"]) for item in items(data, 20)}
    assert pairs == {
        ("caption region: <vis_extra_id_1>", "red bus"),
        ("caption region: <vis_extra_id_3>", "dog"),
        ("visual grounding: red bus", "<vis_extra_id_1>"),
        ("visual grounding: dog", "<vis_extra_id_3>"),
    }


def test_what_is_asked_of_objects_goes_with_their_image(tmp_path):
    examples = []
    for i in range(3):
        Image.new("RGB", (2, 2), (i, i, i)).save(tmp_path / f"{i}.png")
        examples.append(CaptionExample(tmp_path / f"{i}.png", i, ("a bus",), None, f"{i}.png"))

    class Numbered(Things):
        def named(self, example, task):
            return ((0, f"thing {example.image_id}"),)

    data = dataset(("find",), captions=CaptionDataset(examples, training=True), objects=Numbered())
    for item in items(data, 10):
        assert item["text"] == f"visual grounding: thing {item['image'][0, 0, 0]}"


def test_draws_follow_from_seed_epoch_and_index():
    def texts(**more):
        return [item["text"] for item in items(dataset(ALL, **more), 3)]

    assert texts() == texts()
    assert texts() != texts(seed=1)
    data = dataset(ALL)
    data.set_epoch(2)
    assert [data[i]["text"] for i in reversed(range(10))] == texts()[-10:][::-1]


def test_what_is_validated_on_is_fixed():
    data = dataset(ALL, training=False)
    counts = Counter(
        (ALL[item["kind"]], item["target"] if item["kind"] == 1 else None) for item in items(data)
    )
    assert counts == {
        ("span", None): 5,
        ("match", "true"): 5,
        ("match", "false"): 5,
        ("question", None): 2,
        ("describe", None): 4,
        ("find", None): 4,
    }
    assert data.occurring == ALL
    again = dataset(ALL, training=False, seed=5)
    again.set_epoch(3)
    assert [data[i] for i in range(len(data))] == [again[i] for i in range(len(data))]
    spans = [item for item in items(data) if item["kind"] == 0]
    assert all("<extra_id_0>" in item["target"] for item in spans)
    assert all(item["weight"] == 1 for item in spans)
    # What there is nothing of is left out.
    assert dataset(("span", "question"), training=False, questions=None).occurring == ("span",)


@pytest.mark.parametrize("task", ["question", "describe", "find"])
def test_a_task_without_anything_to_be_about_is_refused(task):
    with pytest.raises(DataError, match=f"task '{task}' is to be trained and there are no"):
        dataset(("span", task), questions=None, objects=None)
    with pytest.raises(DataError, match="at least one item"):
        dataset((task,), training=False, questions=None, objects=None)


@pytest.mark.parametrize("index", [-1, 10])
def test_there_are_no_items_beyond_the_last(index):
    with pytest.raises(IndexError):
        dataset()[index]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 12, seed=1)
    return folder


@pytest.fixture
def real(scenes):
    asked = list(
        read_vqa_v2(
            scenes / "questions_train.json", scenes / "annotations_train.json", scenes / "images", IMAGE_NAME
        )
    )
    said = CaptionDataset(
        list(read_coco_captions(scenes / "captions_train.json", scenes / "images")), training=True
    )
    return dataset(
        ("span", "match", "question"), captions=said, questions=VqaDataset(asked, True), weights=(2, 2, 1)
    )


def test_no_word_of_a_batch_is_unknown_to_a_tokenizer_of_its_texts(real):
    tokenizer = train_tokenizer(real.texts())
    batch = Seq2SeqCollator(tokenizer, max_input_tokens=40, max_target_tokens=40)(
        [{key: value for key, value in real[i].items() if key != "image"} for i in range(len(real))]
    )
    for ids in (batch["input_ids"], batch["labels"]):
        assert not (ids == tokenizer.unk_token_id).any()
    assert batch["kinds"].tolist() == [real[i]["kind"] for i in range(len(real))]
    spans = batch["kinds"] == 0
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert (batch["labels"][:, 0] == first).equal(spans)
    assert (batch["input_ids"] == first).any(1).equal(spans)
    assert {"caption", "true", "false", "grounding"} <= tokenizer.get_vocab().keys()


def test_workers_read_what_one_process_reads_in_every_epoch(real):
    def plain(batch):
        return [(item["text"], item["target"], int(np.asarray(item["image"]).sum())) for item in batch]

    loader = DataLoader(real, batch_size=7, num_workers=2, collate_fn=plain, persistent_workers=True)
    for epoch in range(2):
        real.set_epoch(epoch)
        assert [one for batch in loader for one in batch] == plain(real[i] for i in range(len(real)))


def test_images_of_captions_and_questions_are_kept_once(real):
    for epoch in range(3):
        real.set_epoch(epoch)
        for index in range(len(real)):
            _ = real[index]
    n_images = len({real.captions.example(i).image for i in range(len(real))})
    assert len(real.captions.images) == n_images
