import json

import numpy as np
import pytest

from amad.data.captions import CaptionExample
from amad.data.pretraining_objects import BoxNames, RegionNames, read_classes, unambiguous
from amad.data.regions import Regions
from amad.errors import DataError

h5py = pytest.importorskip("h5py")


def example(image_id, name=None):
    return CaptionExample(None, image_id, ("A bus.",), "train", name or f"{image_id}.jpg")


def instances(path, annotations, size=(100, 50)):
    document = {
        "images": [{"id": i, "width": size[0], "height": size[1], "file_name": f"{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": 3, "name": "car"}, {"id": 17, "name": "traffic light"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for number, (image, category, box, crowd) in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(document))
    return path


def test_an_object_is_at_the_patch_of_its_centre(tmp_path):
    # The image is 100 x 50 and has 4 x 4 patches of 25 x 12.5.
    boxes = [
        (1, 3, [0, 0, 20, 10], 0),  # centre (10, 5): row 0, column 0
        (1, 17, [80, 30, 20, 20], 0),  # centre (90, 40): row 3, column 3
        (1, 3, [25, 0, 25, 50], 1),  # a crowd
    ]
    source = BoxNames([instances(tmp_path / "i.json", boxes)], 4)
    assert source.n_tokens == 16
    for task in ("describe", "find"):
        assert source.named(example(1), task) == ((0, "car"), (15, "traffic light"))
        assert source.has(example(1), task)
        assert not source.has(example(2), task)
        assert source.named(example(9), task) == ()
    assert source.phrases() == ["car", "traffic light"]


def test_the_last_row_and_column_hold_what_touches_the_edge(tmp_path):
    source = BoxNames([instances(tmp_path / "i.json", [(1, 3, [100, 50, 0, 0], 0)])], 4)
    assert source.named(example(1), "find") == ((15, "car"),)


def test_only_what_has_one_answer_is_asked():
    placed = [(0, "car"), (0, "car"), (1, "car"), (1, "dog"), (2, "cat")]
    assert unambiguous(placed) == {
        "describe": ((0, "car"), (2, "cat")),
        "find": ((1, "dog"), (2, "cat")),
    }


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 3, [0, 0, 300, 10], 0), "centre outside of the image of 100 x 50"),
        ((1, 3, [0, 0, 10], 0), "bbox must be x, y, width and height"),
        ((1, 3, [10**400, 1, 2, 2], 0), "bbox must be x, y, width and height in pixels"),
        ((7, 3, [0, 0, 1, 1], 0), "image 7 and category 3 must be listed"),
        ((1, 4, [0, 0, 1, 1], 0), "image 1 and category 4 must be listed"),
    ],
)
def test_boxes_that_cannot_be_placed_are_refused(tmp_path, box, message):
    with pytest.raises(DataError, match=message):
        BoxNames([instances(tmp_path / "i.json", [box])], 4)


def classes(tmp_path):
    (tmp_path / "objects.txt").write_text("yolk\nBus,coach\nroad\n")
    (tmp_path / "attributes.txt").write_text("floppy\nred\n")
    return tmp_path / "objects.txt", tmp_path / "attributes.txt"


def regions(path, objects=(1, 2), attributes=(1, 0)):
    with h5py.File(path, "w") as file:
        group = file.create_group("7")
        group["features"], group["boxes"] = np.zeros((2, 3)), np.zeros((2, 4))
        group["img_w"], group["img_h"] = 10, 10
        group["obj_id"], group["attr_id"] = np.array(objects), np.array(attributes)
    return Regions(path, 2, 3)


def test_a_region_is_called_by_attribute_and_object(tmp_path):
    source = RegionNames(regions(tmp_path / "r.h5"), *classes(tmp_path))
    assert source.named(example(7), "describe") == ((0, "red bus"), (1, "floppy road"))
    assert source.named(example(7), "find") == ((0, "red bus"), (1, "floppy road"))
    assert source.n_tokens == 2
    assert "bus" in source.phrases()


@pytest.mark.parametrize(
    ("objects", "attributes", "message"),
    [
        ((3, 0), (0, 0), r"classes must be below 3 \(objects\) and 2 \(attributes\) but are 3 and 0"),
        ((0, 0), (-1, 0), "but are 0 and -1"),
        ((0,), (0, 0), "and there are 1 and 2"),
    ],
)
def test_classes_without_a_name_are_refused(tmp_path, objects, attributes, message):
    source = RegionNames(regions(tmp_path / "r.h5", objects, attributes), *classes(tmp_path))
    with pytest.raises(DataError, match=message):
        source.named(example(7), "find")


def test_a_list_of_classes_is_text_with_a_name_per_line(tmp_path):
    path = tmp_path / "c.txt"
    with pytest.raises(DataError, match="cannot be read"):
        read_classes(path)
    path.write_text("a\n\nb\n")
    with pytest.raises(DataError, match="line 2: a class must have a name"):
        read_classes(path)


def test_the_detectors_own_classes_are_read(shared_data):
    objects = read_classes(shared_data / "vocab" / "objects_vocab.txt")
    attributes = read_classes(shared_data / "vocab" / "attributes_vocab.txt")
    assert (len(objects), len(attributes)) == (1600, 400)
    assert not any("," in name for name in objects + attributes)


def test_real_boxes_of_coco_are_placed(shared_data, tmp_path):
    """The set keeps boxes by image, in parts of its size; in COCO's form they are read as they stand there."""
    stored = json.loads((shared_data / "coco" / "boxes.json").read_text())
    labels = sorted({one["label"] for row in stored.values() for one in row["objects"]})
    document = {
        "images": [
            {"id": int(image), "file_name": f"{image}.jpg", "width": 1000, "height": 1000} for image in stored
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(labels)],
        "annotations": [
            {
                "image_id": int(image),
                "category_id": labels.index(one["label"]),
                "bbox": [1000 * x, 1000 * y, 1000 * (right - x), 1000 * (bottom - y)],
            }
            for image, row in stored.items()
            for one in row["objects"]
            for x, y, right, bottom in [one["box_xyxy_norm"]]
        ],
    }
    (tmp_path / "i.json").write_text(json.dumps(document))
    source = BoxNames([tmp_path / "i.json"], 8)
    n_found = 0
    for image, row in stored.items():
        for token, name in source.named(example(int(image)), "find"):
            n_found += 1
            centres = [
                ((x + right) / 2, (y + bottom) / 2)
                for one in row["objects"]
                if one["label"] == name
                for x, y, right, bottom in [one["box_xyxy_norm"]]
            ]
            places = {(min(int(8 * y), 7), min(int(8 * x), 7)) for x, y in centres}
            assert places == {divmod(token, 8)}
    assert n_found > 300
