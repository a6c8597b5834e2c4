from pathlib import Path

from amad.data.captions import CaptionExample
from amad.data.survey import SplitCounts, count_split
from amad.data.translation import TranslationExample
from amad.data.vqa import VqaExample


def question(number, image, answers, scores):
    return VqaExample(number, 1, "what?", answers, scores, image and Path(image))


def test_questions_are_counted():
    examples = [
        question(1, "a.jpg", ("yes",) * 10, {"yes": 1.0}),
        question(2, "a.jpg", None, {"red": 0.3, "blue": 0.6}),
        question(3, "b/a.jpg", None, {}),
    ]
    assert count_split(examples) == SplitCounts(items=3, images=2, fewest=0, most=10, unanswered=1)


def test_captions_and_sentences_are_counted():
    captions = [CaptionExample(Path(f"{i}.jpg"), i, ("a",) * i, None, f"{i}.jpg") for i in (3, 5)]
    assert count_split(captions) == SplitCounts(2, 2, 3, 5, 0)
    sentences = [TranslationExample("a", "b", None, i, "1.jpg" if i < 3 else None) for i in range(1, 5)]
    assert count_split(sentences) == SplitCounts(4, 1, 1, 1, 0)
    assert count_split([]) == SplitCounts(0, 0, 0, 0, 0)
