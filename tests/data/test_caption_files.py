import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amad.data.caption_files import read_blip_captions, read_coco_captions, read_karpathy
from amad.data.problems import Problems
from amad.errors import DataError

NAME = "COCO_val2014_000000391895.jpg"


def image(image_id=391895, name=NAME, **more):
    return {"license": 3, "file_name": name, "height": 360, "width": 640, "id": image_id} | more


def annotation(image_id=391895, caption="A man on a bike.", annotation_id=770337):
    return {"image_id": image_id, "id": annotation_id, "caption": caption}


def coco(folder, images, annotations=None, name="captions.json"):
    document = {"info": {}, "licenses": [], "images": images}
    raw = json.dumps(document | ({} if annotations is None else {"annotations": annotations})).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


def karpathy(split="val", name=NAME, cocoid=391895, said=("A man .",), **more):
    return {
        "filepath": "val2014",
        "filename": name,
        "split": split,
        "cocoid": cocoid,
        "imgid": 7,
        "sentids": [],
        "sentences": [{"tokens": [], "raw": raw, "imgid": 7, "sentid": i} for i, raw in enumerate(said)],
    } | more


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.parametrize("name", ["captions.json", "captions.json.gz"])
def test_the_official_form_keeps_the_order_of_images_and_of_captions(tmp_path, name):
    picture(tmp_path / "val2014" / NAME)
    picture(tmp_path / "val2014" / "b.jpg")
    said = [annotation(2, " Two. ", 5), annotation(391895, "One.", 9), annotation(391895, "Uno.\n", 1)]
    path = coco(tmp_path, [image(), image(2, "b.jpg")], said, name)
    first, second = list(read_coco_captions(path, tmp_path / "val2014"))
    assert (first.image_id, first.captions, first.split) == (391895, ("One.", "Uno."), None)
    assert first.image == tmp_path / "val2014" / NAME
    assert first.stem == "COCO_val2014_000000391895"
    assert (second.image_id, second.captions) == (2, ("Two.",))


def test_a_split_is_picked_where_images_name_theirs(tmp_path):
    images = [image(1, "a.jpg", split="train"), image(2, "b.jpg", split="val")]
    path = coco(tmp_path, images, [annotation(1, "a"), annotation(2, "b")])
    (only,) = list(read_coco_captions(path, split="val"))
    assert (only.image_id, only.captions, only.split, only.image) == (2, ("b",), "val", None)
    with pytest.raises(DataError, match=r"split 'test' must have .* \(splits found: \['train', 'val'\]"):
        list(read_coco_captions(path, split="test"))
    with pytest.raises(DataError, match="no image has a 'split', so 'val' cannot be picked"):
        list(read_coco_captions(coco(tmp_path, [image()], [annotation()]), split="val"))


def test_a_test_split_has_images_and_no_captions(tmp_path):
    (only,) = list(read_coco_captions(coco(tmp_path, [image()])))
    assert only.captions == ()


@pytest.mark.parametrize(
    ("images", "annotations", "message", "n_bad"),
    [
        ([image(), image()], [annotation()], "images item 1: every image must be listed once but 391895", 1),
        ([image()], [annotation(), annotation(7, annotation_id=12)], "annotation 12: .* image 7 is not", 1),
        ([image(), image(2, "b.jpg")], [annotation()], "image 2: an image needs a caption and has none", 1),
        ([image()], [annotation(), annotation(caption=" \n")], "annotation 770337: a caption must be", 1),
        ([image()], [annotation(), annotation(caption=5)], "must be a string with text but is 5", 1),
        ([image(), image(2, "b.jpg")], [annotation(), annotation(2, "")], "annotation 770337: a cap", 2),
        ([image(), image(2, "../b")], [annotation(), annotation(2)], "image 2: .* leaves the data folder", 1),
        ([image(), image(2, "none.jpg")], [annotation(), annotation(2)], r"none\.jpg: no such image", 1),
        ([image(), image(2, None)], [annotation(), annotation(2)], "image 2: 'file_name' must be", 1),
        ([image(), {"file_name": "a"}], [annotation()], "images item 1: has no 'id'", 1),
    ],
)
def test_bad_official_entries_are_refused_or_left_out(tmp_path, images, annotations, message, n_bad):
    picture(tmp_path / NAME)
    picture(tmp_path / "b.jpg")
    path = coco(tmp_path, images, annotations)
    with pytest.raises(DataError, match=message):
        list(read_coco_captions(path, tmp_path))
    problems = Problems("skip")
    (only,) = list(read_coco_captions(path, tmp_path, problems=problems))
    assert (only.image_id, only.captions) == (391895, ("A man on a bike.",))
    assert problems.n_bad == n_bad
    assert all(bad.file == str(path) for bad in problems)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_files_as_a_whole_are_refused_by_either_policy(tmp_path, policy):
    whole = gzip.compress(json.dumps({"images": [image()] * 50}).encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "latin.json").write_bytes('{"images": [{"file_name": "ä"}]}'.encode("latin-1"))
    (tmp_path / "cut.json").write_text('{"images": [\n{"id": 1')
    for name, message in (
        ("cut.json.gz", "not a whole gzip file"),
        ("latin.json", "not valid JSON .*position 27"),
        ("cut.json", "not valid JSON .*line 2"),
        ("none.json", "no such file"),
    ):
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            list(read_coco_captions(tmp_path / name, problems=Problems(policy)))
    for images in ([], [image(None)]):
        with pytest.raises(DataError, match=r"captions\.json"):
            list(read_coco_captions(coco(tmp_path, images, []), problems=Problems(policy)))


def test_karpathys_form_counts_restval_as_train(tmp_path):
    rows = [
        karpathy("restval", said=["One. ", "Two."]),
        karpathy("train", "COCO_train2014_000000000002.jpg", 2, filepath="train2014"),
        karpathy("val", "COCO_val2014_000000000003.jpg", 3),
    ]
    path = write(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    for name in (f"val2014/{NAME}", "train2014/COCO_train2014_000000000002.jpg"):
        picture(tmp_path / name)
    first, second = list(read_karpathy(path, "train", tmp_path))
    assert (first.image_id, first.captions, first.split) == (391895, ("One.", "Two."), "train")
    assert first.image == tmp_path / "val2014" / NAME
    assert second.image_name == "train2014/COCO_train2014_000000000002.jpg"
    assert second.stem == "COCO_train2014_000000000002"
    assert [one.image_id for one in list(read_karpathy(path, "val"))] == [3]


def test_karpathys_form_of_other_sets_has_no_coco_id(tmp_path):
    row = karpathy(name="1000092795.jpg")
    del row["cocoid"], row["filepath"]
    path = write(tmp_path / "dataset_flickr30k.json", {"images": [row]})
    (only,) = list(read_karpathy(path, "val"))
    assert (only.image_id, only.image_name) == (7, "1000092795.jpg")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (karpathy(), "images item 1: every image must be listed once but 391895"),
        (karpathy("train"), "images item 1: every image must be listed once but 391895"),
        (karpathy(cocoid=2, said=[]), "images item 1: an image needs a caption"),
        (karpathy(cocoid=2, said=[" "]), "images item 1, sentence 0: a caption must be"),
        (karpathy(cocoid=2, sentences=["a"]), "images item 1, sentence 0: a caption must be"),
        (karpathy(cocoid=2, sentences="a"), "'sentences' must be a list"),
        (karpathy(cocoid="x", split=None), "'split' must be a string"),
        (karpathy(cocoid=2, name="../../a.jpg"), "leaves the data folder"),
    ],
)
def test_bad_entries_of_karpathys_form_are_refused_or_left_out(tmp_path, bad, message):
    picture(tmp_path / "val2014" / NAME)
    path = write(tmp_path / "a.json", {"images": [karpathy(), bad]})
    with pytest.raises(DataError, match=message):
        list(read_karpathy(path, "val", tmp_path))
    problems = Problems("skip")
    assert [one.image_id for one in list(read_karpathy(path, "val", tmp_path, problems))] == [391895]
    assert problems.n_bad >= 1


def test_blips_training_rows_are_gathered_by_image(tmp_path):
    rows = [
        {"image": f"val2014/{NAME}", "caption": "one ", "image_id": "coco_391895"},
        {"image": "train2014/b.jpg", "caption": "b", "image_id": "coco_2"},
        {"image": f"val2014/{NAME}", "caption": "two", "image_id": "coco_391895"},
    ]
    for row in rows:
        picture(tmp_path / row["image"])
    first, second = list(read_blip_captions(write(tmp_path / "a.json", rows), tmp_path, "train"))
    assert (first.image_id, first.captions, first.split) == (391895, ("one", "two"), "train")
    assert first.image == tmp_path / "val2014" / NAME
    assert (second.image_id, second.captions) == ("b", ("b",))


def test_blips_evaluation_rows_have_every_caption(tmp_path):
    rows = [{"image": f"val2014/{NAME}", "caption": list("abcde")}, {"image": "17.jpg", "caption": ["x"]}]
    first, second = list(read_blip_captions(write(tmp_path / "a.json", rows)))
    assert (first.image_id, first.captions) == (391895, tuple("abcde"))
    assert (second.image_id, second.image, second.split) == (17, None, None)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": "a/1.jpg", "caption": ["again"]}, r"item 1: every image must be listed once but a/1\.jpg"),
        ({"image": "a/1.jpg", "caption": "again"}, r"item 1: every image must be listed once but a/1\.jpg"),
        ({"image": "b/1.jpg", "caption": ["x"]}, "a/1.jpg and b/1.jpg have the same image id 1"),
        ({"image": "2.jpg", "caption": []}, "item 1: an image needs a caption"),
        ({"image": "2.jpg", "caption": ["", "x"][:1]}, "item 1, caption 0: a caption must be"),
        ({"image": "2.jpg", "caption": ""}, "item 1: a caption must be"),
        ({"image": "2.jpg"}, "item 1: has no 'caption'"),
        ({"image": "../2.jpg", "caption": "x"}, "leaves the data folder"),
    ],
)
def test_bad_rows_of_blip_are_refused_or_left_out(tmp_path, bad, message):
    path = write(tmp_path / "rows.json", [{"image": "a/1.jpg", "caption": ["one"]}, bad])
    for name in ("a/1.jpg", "b/1.jpg", "2.jpg"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match=message):
        list(read_blip_captions(path, tmp_path))
    problems = Problems("skip")
    assert [one.captions for one in list(read_blip_captions(path, tmp_path, problems=problems))] == [("one",)]
    assert problems.n_bad >= 1


ROWS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "val", "../a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "images",
                    "annotations",
                    "id",
                    "image_id",
                    "file_name",
                    "filename",
                    "split",
                    "sentences",
                    "raw",
                    "caption",
                    "image",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(images=ROWS, annotations=ROWS, policy=st.sampled_from(["raise", "skip"]))
def test_arbitrary_documents_are_read_or_refused_by_file_name(tmp_path_factory, images, annotations, policy):
    folder = tmp_path_factory.mktemp("rows")
    both = coco(folder, images, annotations)
    listed = write(folder / "list.json", images)
    for read in (
        lambda: list(read_coco_captions(both, problems=Problems(policy))),
        lambda: list(read_karpathy(both, "val", problems=Problems(policy))),
        lambda: list(read_blip_captions(listed, problems=Problems(policy))),
    ):
        try:
            examples = read()
        except DataError as error:
            assert str(folder) in str(error)  # noqa: PT017
        else:
            assert all(isinstance(caption, str) for one in examples for caption in one.captions)


def test_real_captions_of_real_images_are_read(shared_data):
    examples = list(read_coco_captions(shared_data / "coco/captions.json", shared_data / "coco/images"))
    assert len(examples) == 356
    assert sum(len(one.captions) for one in examples) == 1_781
    assert all(one.image.is_file() for one in examples)
    zipped = list(read_coco_captions(shared_data / "coco_captions/captions_val2014_random1000.json.gz"))
    assert (len(zipped), sum(len(one.captions) for one in zipped)) == (1_000, 5_005)


@pytest.mark.parametrize(("split", "n_images"), [("train", 2_303), ("dev", 212), ("val", 242)])
def test_real_captions_are_read_by_split(shared_data, split, n_images):
    folder = shared_data / "multi30k_flickr8k"
    examples = list(read_coco_captions(folder / "captions.json", folder / "images", split))
    assert len(examples) == n_images
    assert all(len(one.captions) == 5 and one.split == split for one in examples)


def test_a_real_cutting_whose_captions_are_of_other_images_is_refused(shared_data):
    path = shared_data / "format_samples/captions_train2014_first100.json"
    with pytest.raises(DataError, match=r"annotation \d+: a caption needs an image, but image \d+ is not"):
        list(read_coco_captions(path))
    with pytest.raises(DataError, match="bad examples left out: 200"):
        list(read_coco_captions(path, problems=Problems("skip")))
