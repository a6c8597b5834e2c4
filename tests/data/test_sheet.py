import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amad.data.captions import CaptionExample
from amad.data.sheet import SHOWN, sheet_page, spread
from amad.data.translation import TranslationExample
from amad.data.vqa import VqaExample
from amad.errors import DataError


class Page(HTMLParser):
    """The texts and the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def shown(page):
    """The images of a page."""
    coded = [attrs["src"] for tag, attrs in Page(page).tags if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in coded]


def noise(path, width, height):
    Image.effect_noise((width, height), 60).convert("RGB").save(path)
    return path


def test_each_task_shows_its_texts(tmp_path):
    image = noise(tmp_path / "a.png", 20, 10)
    splits = {
        "train": [VqaExample(7, 1, "what?", None, {"red": 0.3, "blue": 1.0}, image, image_name="a.png")],
        "validation": [CaptionExample(image, 1, ("One.", "Two."), None, "a.png")],
        "other": [TranslationExample("A dog.", "Ein Hund.", image, 5, "a.png")],
    }
    texts = [text for text in Page(sheet_page("r.yaml", splits)).texts if text.strip()]
    for text in ("what?", "One.", "Two.", "A dog.", "Ein Hund.", "question 7 · a.png", "image a.png"):
        assert text in texts
    assert texts.index("blue ") < texts.index("red ")
    assert "line 5 · a.png" in texts


@given(st.text(min_size=1).filter(str.strip))
def test_no_text_of_the_data_becomes_part_of_the_page(text):
    examples = [
        VqaExample(text, 1, text, None, {text: 1.0}, None, image_name=text),
        CaptionExample(None, 1, (text,), None, text),
        TranslationExample(text, text, None, 5, text),
    ]
    plain = [VqaExample("t", 1, "t", None, {"t": 1.0}, None, image_name="t")]
    plain += [CaptionExample(None, 1, ("t",), None, "t"), TranslationExample("t", "t", None, 5, "t")]
    of, expected = (Page(sheet_page(title, {title: one})) for title, one in ((text, examples), ("t", plain)))
    assert of.tags == expected.tags


def test_images_are_whole_and_large_ones_are_made_smaller(tmp_path):
    sizes = [(20, 10), (640, 480), (1000, 10)]
    examples = [
        TranslationExample("A", "B", noise(tmp_path / f"{i}.png", *size), i) for i, size in enumerate(sizes)
    ]
    images = shown(sheet_page("t", {"train": examples}))
    assert [image.size for image in images] == [(20, 10), (320, 240), (320, 3)]
    np.testing.assert_array_equal(np.asarray(images[0]), np.asarray(Image.open(tmp_path / "0.png")))


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    page = sheet_page("t", {"train": [TranslationExample("A", "B", noise(tmp_path / "a.png", 9, 9), 1)]})
    assert not re.search(r"https?:|url\(|<script|<link", page)


def test_examples_are_spread_over_the_split():
    assert spread(range(10), 10) == list(range(10))
    assert spread(range(3), 10) == [0, 1, 2]
    assert spread(range(100), 4) == [0, 33, 66, 99]
    examples = [TranslationExample(f"source {i}", "B", None, i) for i in range(1000)]
    texts = Page(sheet_page("t", {"train": examples})).texts
    assert sum(text.startswith("source ") for text in texts) == SHOWN
    assert {"source 0", "source 999", "24 of 1,000"} <= set(texts)


def test_a_broken_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png: not a whole image"):
        sheet_page("t", {"train": [TranslationExample("A", "B", tmp_path / "a.png", 1)]})
