import base64
import pickle
import re
from contextlib import contextmanager

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from amad.data.captions import CaptionDataset, CaptionExample
from amad.data.collate import Seq2SeqCollator
from amad.data.region_files import H5Regions
from amad.data.regions import Regions, lacking_regions
from amad.data.tokens import train_tokenizer
from amad.data.translation import TranslationDataset, TranslationExample
from amad.data.vqa import VqaDataset, VqaExample
from amad.errors import DataError

h5py = pytest.importorskip("h5py")

WIDTH, HEIGHT, N_FEATURES = 640, 480, 8


def arrays(seed, n_regions=36, n_features=N_FEATURES):
    """Random features, and boxes in pixels of an image of 640 x 480."""
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.random((n_regions, 2, 2)), axis=1).reshape(n_regions, 4)
    boxes = corners * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    return generator.random((n_regions, n_features), dtype=np.float32), boxes.astype(np.float32)


def h5(path, images):
    """VL-T5's file, with the entries that its extraction writes."""
    with h5py.File(path, "w") as file:
        for name, (features, boxes) in images.items():
            group = file.create_group(name)
            group["features"], group["boxes"] = features, boxes
            group["img_w"], group["img_h"] = WIDTH, HEIGHT
            for key in ("obj_id", "obj_conf", "attr_id", "attr_conf"):
                group[key] = np.zeros(len(features))
    return path


def tsv_line(name, features, boxes):
    """LXMERT's line: ten columns, ids in int64 and all else in float32."""
    ids, conf = np.zeros(len(features), dtype=np.int64), np.zeros(len(features), dtype=np.float32)
    coded = [base64.b64encode(one.tobytes()).decode() for one in (ids, conf, ids, conf)]
    ends = [base64.b64encode(one.tobytes()).decode() for one in (boxes, features)]
    return "\t".join([name, str(HEIGHT), str(WIDTH), *coded, str(len(features)), *ends]) + "\n"


def tsv(path, images):
    path.write_text("".join(tsv_line(name, *pair) for name, pair in images.items()))
    return path


FORMS = pytest.mark.parametrize(("write", "name"), [(h5, "a.h5"), (tsv, "a.tsv")])


@FORMS
def test_features_are_as_stored_and_boxes_in_parts_of_the_image(tmp_path, write, name):
    images = {"COCO_val2014_000000000001": arrays(1), "2": arrays(2)}
    regions = Regions(write(tmp_path / name, images), n_features=N_FEATURES)
    assert "2" in regions
    assert "3" not in regions
    for image, (features, boxes) in images.items():
        found = regions[image]
        assert found.features.dtype == found.boxes.dtype == np.float32
        np.testing.assert_array_equal(found.features, features)
        assert found.size == (WIDTH, HEIGHT)
        np.testing.assert_allclose(found.boxes, boxes / [WIDTH, HEIGHT, WIDTH, HEIGHT], rtol=1e-6)


@FORMS
def test_a_box_by_hand(tmp_path, write, name):
    features, _ = arrays(1, 2)
    boxes = np.array([[0, 0, 640, 480], [160, 120, 320, 360]], dtype=np.float32)
    regions = Regions(write(tmp_path / name, {"1": (features, boxes)}), 2, N_FEATURES)
    assert regions["1"].boxes.tolist() == [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.75]]


@FORMS
def test_boxes_a_rounding_error_outside_are_cut_to_the_image(tmp_path, write, name):
    features, boxes = arrays(1, 2)
    boxes[0] = [-1e-3, 0, 640.001, 480.001]
    assert Regions(write(tmp_path / name, {"1": (features, boxes)}), 2, N_FEATURES)["1"].boxes[
        0
    ].tolist() == [
        0,
        0,
        1,
        1,
    ]
    boxes[0] = [0, 0, 650, 480]
    with pytest.raises(DataError, match=r"a box must lie inside of the image of 640 x 480 .* to 1\.0156"):
        Regions(write(tmp_path / f"b{name}", {"1": (features, boxes)}), 2, N_FEATURES)["1"]


def test_vl_t5s_own_size_is_the_default(tmp_path):
    path = h5(tmp_path / "a.h5", {"1": arrays(1, 36, 2048)})
    assert Regions(path)["1"].features.shape == (36, 2048)


def test_an_image_is_looked_up_in_each_file(tmp_path):
    paths = [h5(tmp_path / "train.h5", {"1": arrays(1)}), tsv(tmp_path / "val.tsv", {"2": arrays(2)})]
    regions = Regions(paths, n_features=N_FEATURES)
    np.testing.assert_array_equal(regions["2"].features, arrays(2)[0])
    np.testing.assert_array_equal(regions["1"].features, arrays(1)[0])
    with pytest.raises(DataError, match=r"train\.h5, .*val\.tsv: no features of image 3"):
        regions["3"]


def examples_of(*names):
    return [CaptionExample(None, name, ("One.",), None, f"val2014/{name}.jpg") for name in names]


@FORMS
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (arrays(2, 35), "must have 36 regions of 8 features but has 35 of 8"),
        (arrays(2, 36, 7), "must have 36 regions of 8 features but has 36 of 7"),
        (arrays(2, 0), "must have 36 regions of 8 features but has 0"),
        ((arrays(2)[0], arrays(2, 35)[1]), "must agree but are|but there are 140 box"),
        (None, "no features of image 2"),
    ],
)
def test_a_bad_image_is_found_before_training_or_left_out(tmp_path, write, name, bad, message):
    images = {"1": arrays(1), "3": arrays(3)} | ({"2": bad} if bad is not None else {})
    regions = Regions(write(tmp_path / name, images), n_features=N_FEATURES)
    names = [f"val2014/{number}.jpg" for number in (1, 2, 3)]
    for whole in (False, True):
        wrong = lacking_regions(names, regions, whole)
        assert list(wrong) == names[1:2]
        assert re.search(rf"{name}.*(image 2|line 3|no features of image 2)", wrong[names[1]])
        assert re.search(message, wrong[names[1]])


@FORMS
def test_every_number_is_read_before_training_where_it_is_asked_for(tmp_path, write, name):
    features, boxes = arrays(2)
    features[3, 1] = np.nan
    regions = Regions(
        write(tmp_path / name, {"1": arrays(1), "2": (features, boxes), "3": arrays(3, 35)}),
        n_features=N_FEATURES,
    )
    seen = []

    @contextmanager
    def watch(description, total):
        yield lambda done, whole: seen.append((done, whole))

    assert lacking_regions(["1.jpg", "2.jpg"], regions, False, watch) == {}
    assert seen == [(1, 2), (2, 2)]
    wrong = lacking_regions(["1.jpg", "2.jpg", "3.jpg", "4.jpg"], regions, True, watch)
    assert list(wrong) == ["2.jpg", "3.jpg", "4.jpg"]
    assert "a feature or a box is not finite" in wrong["2.jpg"]
    assert seen[-1] == (4, 4)
    # The first is enough to refuse.
    assert list(lacking_regions(["1.jpg", "2.jpg", "3.jpg", "4.jpg"], regions, False)) == ["3.jpg"]


def test_any_number_of_regions_may_be_allowed(tmp_path):
    path = h5(tmp_path / "a.h5", {"1": arrays(1, 10), "2": arrays(2, 3), "3": arrays(3, 0)})
    regions = Regions(path, n_regions=None, n_features=N_FEATURES)
    assert [len(regions[name].boxes) for name in "12"] == [10, 3]
    with pytest.raises(DataError, match="must have some regions"):
        regions["3"]


@FORMS
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_not_finite_are_refused(tmp_path, write, name, which):
    pair = arrays(1)
    pair[which][4, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        Regions(write(tmp_path / name, {"1": pair}), n_features=N_FEATURES)["1"]


def test_an_h5_group_without_an_entry_is_refused(tmp_path):
    for key in ("features", "boxes", "img_w"):
        path = h5(tmp_path / f"{key}.h5", {"1": arrays(1)})
        with h5py.File(path, "a") as file:
            del file["1"][key]
        with pytest.raises(DataError, match=f"image 1: has no '{key}' but"):
            Regions(path, n_features=N_FEATURES)["1"]
    with h5py.File(path, "a") as file:
        file["2"] = np.zeros(3)
    with pytest.raises(DataError, match="image 2: has no 'features'"):
        Regions(path, n_features=N_FEATURES)["2"]


def test_files_that_are_not_whole_are_refused(tmp_path):
    whole = h5(tmp_path / "a.h5", {"1": arrays(1)}).read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.tsv").write_text("")
    for name, message in (
        ("a.h5", "not a whole h5 file"),
        ("b.tsv", "is empty"),
        ("c.h5", "no such file"),
        ("c.npz", "must be in a file that ends in"),
    ):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            Regions(tmp_path / name)
    with pytest.raises(DataError, match="need a file and none is given"):
        Regions([])


def test_a_bad_line_of_a_tsv_concerns_its_image_alone(tmp_path):
    lines = [tsv_line(str(i), *arrays(i)) for i in range(4)]
    columns = lines[3].split("\t")
    wrong = "\t".join([*columns[:7], "x", *columns[8:]])
    no_base64 = "\t".join([*columns[:9], "*" + columns[9][1:]])
    (tmp_path / "a.tsv").write_text("".join([lines[0], lines[0], wrong, lines[1], lines[2][:300]]))
    regions = Regions(tmp_path / "a.tsv", n_features=N_FEATURES)
    np.testing.assert_array_equal(regions["1"].features, arrays(1)[0])
    for name, message in (
        ("0", "line 2: image 0 was listed before, in line 1"),
        ("3", "line 3: num_boxes is 'x' but there are 144 box coordinates"),
        ("2", "line 5: must have 10 columns but has"),
    ):
        with pytest.raises(DataError, match=message):
            regions.check(name)
    (tmp_path / "b.tsv").write_text(no_base64)
    with pytest.raises(DataError, match="line 1: cannot be decoded"):
        Regions(tmp_path / "b.tsv", n_features=N_FEATURES)["3"]
    (tmp_path / "c.tsv").write_bytes(b"\xff\t1\n")
    with pytest.raises(DataError, match="line 1: the image's name is not UTF-8"):
        Regions(tmp_path / "c.tsv")


class Sums(Dataset):
    """One number per image, to compare processes by."""

    def __init__(self, regions, n_images):
        self.regions = regions
        self.n_images = n_images

    def __len__(self):
        return self.n_images

    def __getitem__(self, index):
        found = self.regions[str(index)]
        return float(found.features.sum() + found.boxes.sum())


@FORMS
def test_workers_read_what_the_process_itself_reads(tmp_path, write, name):
    n_images = 40
    regions = Regions(write(tmp_path / name, {str(i): arrays(i) for i in range(n_images)}), 36, N_FEATURES)
    dataset = Sums(regions, n_images)
    # Reading first leaves the file open here, as a trainer that looks at its first examples does.
    here = [dataset[i] for i in range(n_images)]
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        assert [number for batch in loader for number in batch.tolist()] == here
        assert [dataset[i] for i in range(n_images)] == here


@pytest.mark.slow
def test_a_spawned_worker_opens_the_file_for_itself(tmp_path):
    regions = Regions(h5(tmp_path / "a.h5", {str(i): arrays(i) for i in range(4)}), n_features=N_FEATURES)
    dataset = Sums(regions, 4)
    here = [dataset[i] for i in range(4)]
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    assert [number for batch in loader for number in batch.tolist()] == here


def test_no_h5_file_is_open_while_a_process_forks(tmp_path):
    regions = Regions(h5(tmp_path / "a.h5", {"0": arrays(0)}), n_features=N_FEATURES)
    regions["0"]
    (file,) = regions._files
    assert file._handle is not None
    next(iter(DataLoader(Sums(regions, 1), num_workers=1, multiprocessing_context="fork")))
    assert file._handle is None


def test_regions_are_pickled_without_their_open_file(tmp_path):
    regions = Regions(h5(tmp_path / "a.h5", {"0": arrays(0)}), n_features=N_FEATURES)
    regions["0"]
    again = pickle.loads(pickle.dumps(regions))
    np.testing.assert_array_equal(again["0"].features, regions["0"].features)


def test_data_sets_give_regions_to_the_collator_in_the_place_of_images(tmp_path):
    path = h5(tmp_path / "a.h5", {"1": arrays(1, 5), "2": arrays(2, 3)})
    regions = Regions(path, n_regions=None, n_features=N_FEATURES)
    captions = CaptionDataset(examples_of("1", "2"), training=True, regions=regions)
    translations = TranslationDataset(
        [TranslationExample("A.", "Ein.", None, i, f"{i}.jpg") for i in (1, 2)], regions=regions
    )
    questions = VqaDataset(
        [VqaExample(i, i, "what?", None, {"red": 1.0}, None, image_name=f"val2014/{i}.jpg") for i in (1, 2)],
        training=True,
        regions=regions,
    )
    for dataset in (captions, translations, questions):
        collator = Seq2SeqCollator(train_tokenizer(dataset.texts()))
        batch = collator([dataset[0], dataset[1]])
        assert batch["vis_feats"].shape == (2, 5, N_FEATURES)
        assert batch["vis_attention_mask"].tolist() == [[1] * 5, [1] * 3 + [0] * 2]
        np.testing.assert_array_equal(batch["boxes"][1, :3].numpy(), regions["2"].boxes)


def test_a_damaged_h5_is_one_error_however_it_is_damaged(tmp_path):
    images = {f"{i}": arrays(i, 3, 4) for i in range(6)}
    whole = h5(tmp_path / "whole.h5", images).read_bytes()
    refused = 0
    for seed in range(150):
        numbers = np.random.default_rng(seed)
        start = int(numbers.integers(len(whole)))
        damaged = bytearray(whole)
        damaged[start : start + 64] = numbers.bytes(len(damaged[start : start + 64]))
        path = tmp_path / f"{seed}.h5"
        path.write_bytes(damaged)
        try:
            file = H5Regions(path)
            for name in images:
                if name in file:
                    file.size(name)
                    file.read(name)
        except DataError:
            refused += 1
        finally:
            path.unlink()
    assert refused > 10
