from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from amad.data.augmentation import CropAndFlip
from amad.data.images import new_image_transform
from amad.data.vqa import VISUAL_GENOME_WEIGHT, ImageCache, VqaDataset, VqaExample, holdout_by_image
from amad.errors import DataError


def example(question_id=1, image_id=1, scores=None, image=None):
    return VqaExample(question_id, image_id, f"what {question_id}?", None, scores or {"red": 1.0}, image)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


@given(st.lists(st.integers(0, 30), min_size=2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_no_image_is_on_both_sides_and_nothing_is_lost(image_ids, share, seed):
    examples = [example(i, image_id) for i, image_id in enumerate(image_ids)]
    if len(set(image_ids)) < 2:
        with pytest.raises(DataError, match="two images or more"):
            holdout_by_image(examples, share, seed)
        return
    train, held = holdout_by_image(examples, share, seed)
    assert train
    assert held
    assert not {image_ids[i] for i in train} & {image_ids[i] for i in held}
    assert sorted(train + held) == list(range(len(examples)))
    assert train == sorted(train)
    assert held == sorted(held)


def test_the_share_is_of_images_and_the_seed_decides_which():
    examples = [example(10 * image + i, image) for image in range(100) for i in range(1 + image % 7)]
    _, held = holdout_by_image(examples, 0.1, 0)
    assert len({examples[i].image_id for i in held}) == 10
    assert holdout_by_image(examples, 0.1, 0)[1] == held
    last = len(examples) - 1
    assert holdout_by_image(examples[::-1], 0.1, 0)[1] == [last - i for i in held[::-1]]
    assert holdout_by_image(examples, 0.1, 1)[1] != held


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(DataError, match="must be between 0 and 1"):
        holdout_by_image([example(1, 1), example(2, 2)], share)


def test_an_item_has_what_the_collator_reads(picture):
    dataset = VqaDataset([example(image=picture, scores={"red": 0.6})], training=True)
    item = dataset[0]
    assert {key: value for key, value in item.items() if key != "image"} == {
        "text": "vqa: what 1?",
        "target": "red",
        "weight": 0.6,
        "index": 0,
    }
    assert item["image"].shape == (4, 4, 3)
    assert item["image"].dtype == np.uint8
    assert "image" not in VqaDataset([example()], training=True)[0]


def test_the_prompt_is_replaced_as_text_only():
    one = VqaExample(1, 1, "what is {question} and {0}?", None, {}, None)
    assert VqaDataset([one], False, prompt="q {question} a")[0]["text"] == "q what is {question} and {0}? a"


def test_an_example_without_any_answer_weighs_nothing():
    for training in (True, False):
        item = VqaDataset([VqaExample(1, 1, "what?", None, {}, None)], training)[0]
        assert (item["target"], item["weight"]) == ("", 0.0)


def test_for_evaluation_the_target_is_the_best_answer_in_every_epoch():
    dataset = VqaDataset([example(scores={"a": 0.3, "b": 0.9, "c": 0.9})], training=False)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        assert (dataset[0]["target"], dataset[0]["weight"]) == ("b", 0.9)


def test_targets_are_sampled_in_proportion_to_their_soft_scores():
    scores = {"a": 1.0, "b": 0.6, "c": 0.3}
    dataset = VqaDataset([example(i, scores=scores) for i in range(500)], training=True)
    drawn = Counter()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        items = [dataset[i] for i in range(500)]
        assert all(item["weight"] == scores[item["target"]] for item in items)
        drawn.update(item["target"] for item in items)
    for answer, score in scores.items():
        expected = 4000 * score / 1.9
        # Six standard deviations of a binomial.
        assert abs(drawn[answer] - expected) < 6 * np.sqrt(expected * (1 - score / 1.9))


def test_a_target_depends_on_seed_epoch_and_index_alone():
    examples = [example(i, scores={"a": 0.3, "b": 0.3, "c": 0.3}) for i in range(40)]

    def draw(seed, epoch, order=range(40)):
        dataset = VqaDataset(examples, training=True, seed=seed)
        dataset.set_epoch(epoch)
        return {i: dataset[i]["target"] for i in order}

    assert draw(1, 2) == draw(1, 2, reversed(range(40)))
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)
    assert draw(1, 2) != draw(2, 1)


def test_workers_that_stay_see_the_next_epoch():
    examples = [example(i, scores={"a": 0.3, "b": 0.3, "c": 0.3}) for i in range(40)]
    dataset = VqaDataset(examples, training=True)
    loader = DataLoader(
        dataset, batch_size=40, num_workers=1, persistent_workers=True, collate_fn=lambda items: items
    )
    for epoch in (0, 1, 2):
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert [item["target"] for item in batch] == [dataset[i]["target"] for i in range(40)]


def test_every_answer_comes_with_the_share_of_annotators_who_gave_it():
    ten = VqaExample(1, 1, "what", ("Red",) * 7 + ("red", "dark red", "dark red"), {"red": 1.0}, None)
    lone = VqaExample(2, 1, "what", ("a dog",), {"dog": 1.0}, None, weight=VISUAL_GENOME_WEIGHT)
    scored = VqaExample(3, 1, "what", None, {"cat": 0.9, "dog": 0.3}, None)
    silent = VqaExample(4, 1, "what", None, {}, None)
    dataset = VqaDataset([ten, lone, scored, silent], training=True, every_answer=True)
    items = [dict(zip(dataset[i]["targets"], dataset[i]["weights"], strict=True)) for i in range(4)]
    assert items == [
        pytest.approx({"Red": 0.7, "red": 0.1, "dark red": 0.2}),
        {"a dog": 0.2},
        {"cat": 0.9, "dog": 0.3},
        {"": 0.0},
    ]
    assert "target" not in dataset[0]
    assert {"Red", "dark red", "a dog", "cat"} <= set(dataset.texts())
    validated = VqaDataset([ten], training=False, every_answer=True)[0]
    assert (validated["target"], validated["weight"]) == ("red", 1.0)


def test_views_of_an_image_are_taken_of_the_whole_image_and_change_with_the_epoch(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    asked = VqaExample(1, 1, "what", None, {"red": 1.0}, tmp_path / "a.png")
    small = new_image_transform(8).resize
    augment = CropAndFlip(8, 8)
    dataset = VqaDataset([asked], training=True, prepare=small, augment=augment)
    views = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        views.append(dataset[0]["image"])
        assert np.array_equal(views[-1], augment(pixels, epoch, 0))
    assert not np.array_equal(*views)
    shown = VqaDataset([asked], training=False, prepare=small, augment=augment)[0]["image"]
    assert np.array_equal(shown, small(Image.fromarray(pixels)))


def test_a_full_cache_keeps_what_it_has(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (4, 4), (i, i, i)).save(paths[-1])
    cache = ImageCache(max_bytes=2 * 48)
    for _ in range(2):
        for i, path in enumerate(paths):
            assert (cache[path] == i).all()
    assert (len(cache), cache.n_bytes) == (2, 96)
    assert cache[paths[0]] is cache[paths[0]]
    assert cache[paths[2]] is not cache[paths[2]]


def test_cached_pixels_cannot_be_written(picture):
    with pytest.raises(ValueError, match="read-only"):
        ImageCache(1 << 20)[picture][0, 0, 0] = 1


def test_images_are_prepared_once_before_they_are_kept(picture):
    transform = new_image_transform(2)
    dataset = VqaDataset([example(image=picture)], training=False, prepare=transform.resize)
    assert dataset[0]["image"].shape == (2, 2, 3)
    assert dataset.images.n_bytes == 12
    assert torch.equal(transform([dataset[0]["image"]]), transform([Image.open(picture)]))


def test_a_truncated_image_is_named_when_it_is_read(picture):
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(DataError, match=r"a\.png: not a whole image"):
        VqaDataset([example(image=picture)], training=False)[0]


def test_texts_need_no_image():
    dataset = VqaDataset([example(image=Path("nowhere.png"), scores={"red": 1.0, "big": 0.3})], training=True)
    assert dataset.texts() == ["vqa: what 1?", "red", "big"]


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="at least one question"):
        VqaDataset([], training=True)
