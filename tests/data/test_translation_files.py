import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amad.data.problems import Problems
from amad.data.translation_files import read_lines, read_multi30k
from amad.errors import DataError


def write(folder, english, german, names=None, zipped=False):
    """Files of one split, and an image of every name; gives their paths as read_multi30k takes them."""
    paths = []
    for name, lines in (("a.en", english), ("a.de", german), ("a.txt", names)):
        if lines is None:
            continue
        raw = b"".join(
            (line if isinstance(line, bytes) else line.encode()).rstrip(b"\n") + b"\n" for line in lines
        )
        zips = zipped and name != "a.txt"
        paths.append(folder / f"{name}{'.gz' if zips else ''}")
        paths[-1].write_bytes(gzip.compress(raw) if zips else raw)
    return paths


def pictures(folder, names):
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_lines_are_matched_across_files(tmp_path, zipped):
    names = ["1000092795.jpg", "10002456.jpg"]
    paths = write(tmp_path, ["Two men. ", "A dog."], ["Zwei Männer.", "Ein Hund."], names, zipped)
    first, second = read_multi30k(*paths, pictures(tmp_path, names))
    assert (first.source, first.target, first.line) == ("Two men.", "Zwei Männer.", 1)
    assert (second.image, second.stem) == (tmp_path / "10002456.jpg", "10002456")
    first, _ = read_multi30k(*paths[:2])
    assert (first.image, first.image_name, first.stem) == (None, None, "")
    assert read_multi30k(*paths)[1].image is None
    assert read_multi30k(*paths)[1].stem == "10002456"


def test_only_a_line_feed_ends_a_line(tmp_path):
    odd = "a\u2028b\x85c\x0bd\x1ce\rf"
    first, second = read_multi30k(*write(tmp_path, [odd, "x\r"], ["eins", "zwei"]))
    assert (first.source, second.source) == (odd, "x")


@given(st.lists(st.binary(max_size=5).map(lambda raw: raw.replace(b"\n", b" ")), max_size=5))
def test_lines_are_what_line_feeds_end(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.en"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    assert read_lines(path) == lines


def test_the_last_line_needs_no_line_feed(tmp_path):
    (tmp_path / "a").write_bytes(b"x\ny")
    assert read_lines(tmp_path / "a") == [b"x", b"y"]
    (tmp_path / "a").write_bytes(b"")
    assert read_lines(tmp_path / "a") == []


def test_the_number_of_a_caption_is_no_part_of_an_images_name(tmp_path):
    names = ["COCO_val2014_000000398076.jpg#657409", "COCO_val2014_000000398076.jpg#657410"]
    first, second = read_multi30k(*write(tmp_path, "ab", "cd", names))
    assert first.image_name == second.image_name == "COCO_val2014_000000398076.jpg"
    assert first.stem == "COCO_val2014_000000398076"


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_files_that_do_not_align_are_refused_by_either_policy(tmp_path, policy):
    problems = Problems(policy)
    paths = write(tmp_path, "abc", "de", ["1.jpg", "2.jpg", "3.jpg"])
    with pytest.raises(DataError, match=r"a\.de, line 3: is missing, while .*a\.en has 3 lines"):
        read_multi30k(*paths, problems=problems)
    paths = write(tmp_path, "ab", "cd", ["1.jpg", "2.jpg", "3.jpg"])
    with pytest.raises(DataError, match=r"a\.en, line 3: is missing, while .*a\.txt has 3 lines"):
        read_multi30k(*paths, problems=problems)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_truncated_gzip_is_refused_with_the_line_it_breaks_off_in(tmp_path, policy):
    paths = write(tmp_path, [f"line {i} {i * 7919 % 1009}" for i in range(2000)], ["x"] * 2000, zipped=True)
    raw = paths[0].read_bytes()
    paths[0].write_bytes(raw[: len(raw) // 2])
    with pytest.raises(
        DataError, match=r"a\.en\.gz: not a whole gzip file: it breaks off in line \d+"
    ) as caught:
        read_multi30k(*paths, problems=Problems(policy))
    assert 500 < int(str(caught.value).split("in line ")[1].split()[0]) < 1500
    paths[0].write_bytes(b"plain\n" * 2000)
    with pytest.raises(DataError, match="a plain file must not be named"):
        read_multi30k(*paths, problems=Problems(policy))


@pytest.mark.parametrize(
    ("english", "german", "names", "file", "message"),
    [
        (
            ["a", b"\xe4b", "c"],
            "xyz",
            ["1.jpg", "2.jpg", "3.jpg"],
            "a.en",
            "line 2: must be UTF-8 but byte 1",
        ),
        ("abc", ["x", b"abc\xff", "z"], ["1.jpg", "2.jpg", "3.jpg"], "a.de", "line 2: .* byte 4 .* 0xff"),
        ("abc", ["x", " ", "z"], ["1.jpg", "2.jpg", "3.jpg"], "a.de", "line 2: must have text but is empty"),
        ("abc", "xyz", ["1.jpg", "1.jpg", "3.jpg"], "a.txt", r"line 2: .* once but 1\.jpg is in line 1 too"),
        ("abc", "xyz", ["1.jpg", "../2.jpg", "3.jpg"], "a.txt", "line 2: .* leaves the data folder"),
        ("abc", "xyz", ["1.jpg", "none.jpg", "3.jpg"], "a.txt", r"none\.jpg: no such image, .*line 2"),
    ],
)
def test_bad_lines_are_refused_or_left_out(tmp_path, english, german, names, file, message):
    paths = write(tmp_path, english, german, names)
    pictures(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    with pytest.raises(DataError, match=message):
        read_multi30k(*paths, tmp_path)
    problems = Problems("skip")
    assert [one.line for one in read_multi30k(*paths, tmp_path, problems)] == [1, 3]
    (bad,) = problems
    assert (bad.file, bad.entry) == (str(tmp_path / file), "line 2")


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_an_empty_split_is_refused_by_either_policy(tmp_path, policy):
    with pytest.raises(DataError, match=r"a\.en: a split must have a sentence and has none \(0 lines"):
        read_multi30k(*write(tmp_path, [], []), problems=Problems(policy))
    with pytest.raises(DataError, match=r"a\.en"):
        read_multi30k(*write(tmp_path, [" "], ["x"]), problems=Problems(policy))
    with pytest.raises(DataError, match=r"none: no such file"):
        read_multi30k(tmp_path / "none", tmp_path / "a.de", problems=Problems(policy))


def test_images_without_a_list_of_their_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="need a list of their names"):
        read_multi30k(*write(tmp_path, "a", "b"), images=tmp_path)


@pytest.mark.parametrize("language", ["de", "fr", "cs"])
@pytest.mark.parametrize(("split", "n_lines"), [("train", 29_000), ("val", 1_014)])
def test_every_real_line_of_the_published_files_is_read(shared_data, language, split, n_lines):
    folder = shared_data / "multi30k_text"
    examples = read_multi30k(
        folder / f"raw/{split}.en.gz",
        folder / f"raw/{split}.{language}.gz",
        folder / f"image_splits/{split}.txt",
    )
    assert len(examples) == n_lines
    assert len({one.image_name for one in examples}) == n_lines
    assert [one.line for one in examples] == list(range(1, n_lines + 1))


@pytest.mark.parametrize(("split", "n_lines"), [("train", 2_303), ("dev", 212), ("val", 242)])
def test_real_plain_files_are_read_with_their_images(shared_data, split, n_lines):
    folder = shared_data / "multi30k_flickr8k"
    examples = read_multi30k(
        folder / f"{split}.en",
        folder / f"{split}.cs",
        folder / f"image_splits.{split}.txt",
        folder / "images",
    )
    assert len(examples) == n_lines
    assert all(one.image.is_file() for one in examples)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert read_lines(tmp_path / "a.txt") == [b"one", b"two"]
