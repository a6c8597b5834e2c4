"""The answer forms of VQA: what counts as the same answer.

The rules are those of the official evaluation code (GT-Vision-Lab/VQA, vqaEval.py), faults included: scores
are comparable only if the faults are kept. Each one is named where it stands.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# Meant as "a full stop between digits stays"; the look-behind is misspelt, so only the digit after it counts.
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
# The official call passes a flag where the number of replacements belongs; re.UNICODE is 32.
_MOST_FULL_STOPS = int(re.UNICODE)

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})

# A word that lacks exactly one of these apostrophes gets it back ("couldntve" lacks two and stays). The
# official table also has forms of "I", which never match because words are lower-cased first.
_CONTRACTIONS = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
    """,
)


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'")


_RESTORED = {form: word for word in _CONTRACTIONS for form in _without_one_apostrophe(word)}
# The one row of the official table that runs the other way.
_RESTORED["somebody'd"] = "somebodyd"

_SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


def strip_answer(answer: str) -> str:
    """The answer on one line without white space at its ends: the form compared when all annotators agree."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(answer: str) -> str:
    """The answer after the official punctuation step.

    A mark is deleted if it touches a space anywhere, and every mark is deleted if a comma stands between
    digits anywhere; otherwise it becomes a space. A full stop goes unless a digit follows: "a.m." becomes
    "am", "1." "1", and "3.14" stays.
    """
    has_number_with_comma = _DIGIT_COMMA_DIGIT.search(answer) is not None
    stripped = answer
    for mark in _MARKS:
        if mark in answer:
            touches_space = f"{mark} " in answer or f" {mark}" in answer
            stripped = stripped.replace(mark, "" if has_number_with_comma or touches_space else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


@lru_cache(maxsize=1 << 17)
def normalise_answer(answer: str) -> str:
    """The form in which answers are compared: lower case, no marks, no articles, digits, apostrophes.

    The empty string is a possible result: "a" and "." are nothing but an article and a mark.
    """
    words = strip_punctuation(strip_answer(answer)).lower().split()
    digits = (_NUMBERS.get(word, word) for word in words)
    kept = (word for word in digits if word not in _ARTICLES)
    return " ".join(_RESTORED.get(word, word) for word in kept)


def soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """Soft score of each distinct normalised answer, that of most annotators first, the earliest among
    equals.

    1 -> 0.3, 2 -> 0.6, 3 -> 0.9, four and more -> 1.0, by how many annotators gave it: the expected VQA
    accuracy of that answer. Answers of which nothing is left are left out.
    """
    counts: dict[str, int] = {}
    for answer in answers:
        form = normalise_answer(answer)
        if form:
            counts[form] = counts.get(form, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return {answer: _SOFT_SCORES[min(count, 4)] for answer, count in ranked}
