from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.data.captions import CaptionExample
from amad.data.rows import CAPTIONS, QUESTIONS, SENTENCES
from amad.data.translation import TranslationExample
from amad.data.vqa import VqaExample

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
IDS = st.integers() | TEXT
IMAGE = Path("folder/1.jpg")

questions = st.builds(
    VqaExample,
    question_id=IDS,
    image_id=IDS,
    question=TEXT,
    answers=st.none() | st.lists(TEXT).map(tuple),
    scores=st.dictionaries(TEXT, st.floats(0, 1)),
    image=st.just(IMAGE),
    question_type=st.none() | TEXT,
    answer_type=st.none() | TEXT,
    image_name=st.none() | TEXT,
    weight=st.floats(0, 10),
)
captions = st.builds(
    CaptionExample,
    image=st.just(IMAGE),
    image_id=IDS,
    captions=st.lists(TEXT).map(tuple),
    split=st.none() | TEXT,
    image_name=TEXT,
)
sentences = st.builds(
    TranslationExample,
    source=TEXT,
    target=TEXT,
    image=st.just(IMAGE),
    line=st.integers(1, 1 << 40),
    image_name=st.none() | TEXT,
)


@pytest.mark.parametrize(
    ("form", "kind"), [(QUESTIONS, questions), (CAPTIONS, captions), (SENTENCES, sentences)]
)
def test_what_is_stored_comes_back_as_it_was(form, kind):
    @given(st.lists(kind, min_size=1, max_size=3))
    def check(examples):
        rows = datasets.Dataset.from_list([form.row(one) for one in examples], features=form.features)
        assert [form.example(row, IMAGE) for row in rows] == examples
        for one, row in zip(examples, rows, strict=True):
            if isinstance(one, VqaExample):
                assert list(form.example(row, IMAGE).scores) == list(one.scores)

    check()
