from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.data.paths import ImageFolders, fill_template, inside, new_folder
from amad.errors import DataError


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "a/../../b.png",
        "/etc/passwd",
        "..",
        "",
        "a\\..\\..\\b.png",
        "C:\\a.png",
        "C:a.png",
        "\\a",
        "a\0b",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(DataError, match=r"question 7: the file name .* leaves the data folder data"):
        inside(Path("data"), name, "question 7")


@given(st.text(max_size=30))
def test_what_is_let_through_lies_below_the_folder(name):
    folder = Path("/data/images")
    try:
        path = inside(folder, name, "row")
    except DataError:
        return
    assert folder in (path.resolve(), *path.resolve().parents)


def test_ordinary_names_pass():
    assert inside(Path("data"), "train2014/a..b.jpg", "row") == Path("data/train2014/a..b.jpg")


def test_the_official_template_is_filled():
    name = fill_template("COCO_{split}2014_{image_id:012d}.jpg", "q", split="val", image_id=42)
    assert name == "COCO_val2014_000000000042.jpg"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{image}.png", r"asks for \['image'\]"),
        ("{image_id.__class__}.png", r"asks for \['image_id.__class__'\]"),
        ("{image_id[0]}.png", "asks for"),
        ("{}.png", "asks for"),
        ("{image_id", "malformed"),
        ("{image_id:012d}.png", "do not fit"),
        ("{image_id:{image_id.__class__}}", r"asks for \['image_id:"),
    ],
)
def test_another_template_is_refused(template, message):
    with pytest.raises(DataError, match=message):
        fill_template(template, "question 1", image_id="a")


def test_a_new_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    reference = tmp_path / "reference"
    reference.mkdir()
    assert out.stat().st_mode == reference.stat().st_mode


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_after_a_failure_nothing_is_left(tmp_path, failure):
    def write():
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise failure

    with pytest.raises(failure):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_touched(tmp_path):
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "mine").write_text("1")
    file.write_text("2")
    link.symlink_to(tmp_path / "empty")
    for out in (full, file, link):
        with pytest.raises(DataError, match="is there already and not empty"), new_folder(out):
            pass
    assert (full / "mine").read_text() == "1"
    assert file.read_text() == "2"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "out" / "a").is_file()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"), new_folder(tmp_path / "file" / "out"):
        pass


def test_an_image_lies_in_the_first_folder_that_has_it(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, names in zip(folders, (("1", "2"), ("2", "3")), strict=True):
        (folder / "sub").mkdir(parents=True)
        for name in names:
            (folder / "sub" / name).write_text("")
    several = ImageFolders(folders)
    found = [several.find(f"sub/{name}", "row 1") for name in "123"]
    assert found == [folders[0] / "sub" / "1", folders[0] / "sub" / "2", folders[1] / "sub" / "3"]
    with pytest.raises(DataError, match=r"row 1: no image sub/4 in .*a, .*b\."):
        several.find("sub/4", "row 1")
    with pytest.raises(DataError, match=r"row 1: .* leaves the data folder"):
        several.find("../sub/1", "row 1")
    with pytest.raises(
        DataError, match=r"none: the folder of images cannot be read .* row 1 names images in it"
    ):
        ImageFolders([tmp_path / "none", *folders]).find("1", "row 1")
    # Whether an image is in the only folder is seen for all images at once.
    assert ImageFolders(folders[0]).find("4", "row 1") == folders[0] / "4"
    assert ImageFolders(None).find("4", "row 1") is None


def test_images_that_are_not_there_are_told_of_by_name(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, name in zip(folders, "12", strict=True):
        folder.mkdir()
        (folder / name).write_text("")
    for chosen, missing in ((folders[0], ["2", "3"]), (folders, ["3"]), (None, [])):
        wrong = ImageFolders(chosen).missing(["1", "2", "3"], "list.txt")
        assert list(wrong) == missing
        assert all("no such image" in one or "no image 3 in" in one for one in wrong.values())
    assert "leaves the data folder" in ImageFolders(folders[0]).missing(["../1"], "list.txt")["../1"]
    for chosen in (tmp_path / "none", [*folders, tmp_path / "none"]):
        with pytest.raises(DataError, match=r"none: .* cannot be read .* list.txt names images in it"):
            ImageFolders(chosen).missing(["1"], "list.txt")
    assert "deep/1: no such image" in ImageFolders(folders[0]).missing(["deep/1"], "list.txt")["deep/1"]


def test_a_folder_inside_of_one_folder_need_not_be_in_the_others(tmp_path):
    for name in ("a/train/1.jpg", "b/val/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    folders = ImageFolders([tmp_path / "a", tmp_path / "b"])
    assert folders.find("val/2.jpg", "q.json") == tmp_path / "b/val/2.jpg"
    assert list(folders.missing(["train/1.jpg", "val/2.jpg", "trian/1.jpg"], "q.json")) == ["trian/1.jpg"]
    alone = ImageFolders(tmp_path / "a")
    assert list(alone.missing(["train/1.jpg", "trian/1.jpg"], "q.json")) == ["trian/1.jpg"]
    with pytest.raises(DataError, match="the folder of images cannot be read"):
        ImageFolders(tmp_path / "c").missing(["1.jpg"], "q.json")
