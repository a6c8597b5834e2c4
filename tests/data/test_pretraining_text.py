import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.data.pretraining_text import N_SENTINELS, Draws, n_masked, span_prediction

SENTINEL = re.compile(r"<extra_id_(\d+)>")


def restored(source, target):
    """The text that a source and its target interleave to."""
    spans = SENTINEL.split(target)
    assert spans[0] == ""
    fillings = {int(number): words for number, words in zip(spans[1::2], spans[2::2], strict=True)}
    return " ".join(SENTINEL.sub(lambda found: fillings[int(found[1])], source).split())


@pytest.mark.parametrize(
    ("masked", "source", "target"),
    [
        ({1, 2, 5}, "a <extra_id_0> on a <extra_id_1>", "<extra_id_0> red bus <extra_id_1> road"),
        ({0}, "<extra_id_0> red bus on a road", "<extra_id_0> a"),
        ({0, 5}, "<extra_id_0> red bus on a <extra_id_1>", "<extra_id_0> a <extra_id_1> road"),
        (range(6), "<extra_id_0>", "<extra_id_0> a red bus on a road"),
    ],
)
def test_cases_by_hand(masked, source, target):
    assert span_prediction("a red bus on a road", masked) == (source, target)


def test_white_space_of_any_kind_parts_words():
    assert span_prediction(" a\tred \n bus ", {1}) == ("a <extra_id_0> bus", "<extra_id_0> red")


@given(st.data())
def test_source_and_target_interleave_to_the_text(data):
    words = data.draw(st.lists(st.text("abc.,'é", min_size=1), min_size=1, max_size=12))
    masked = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1))
    source, target = span_prediction(" ".join(words), masked)
    assert restored(source, target) == " ".join(words)
    assert [word for word in target.split() if not SENTINEL.match(word)] == [
        word for position, word in enumerate(words) if position in masked
    ]
    # Sentinels count up from 0 in both, and no two of the source are neighbours.
    numbers = [int(number) for number in SENTINEL.findall(source)]
    assert numbers == [int(number) for number in SENTINEL.findall(target)] == list(range(len(numbers)))
    assert not re.search(r"> <", source)


@pytest.mark.parametrize(
    ("n_words", "ratio", "expected"),
    [
        (1, 0.15, 1),
        (10, 0.15, 1),
        (13, 0.15, 1),
        (14, 0.15, 2),
        (20, 0.15, 3),
        (4, 1.0, 4),
        (9999, 0.15, 100),
    ],
)
def test_so_many_words_are_masked(n_words, ratio, expected):
    # 0.15 of 13 is 1.95, which VL-T5 rounds down.
    assert n_masked(n_words, ratio) == expected <= N_SENTINELS


def test_every_choice_is_equally_likely():
    counts = Counter(tuple(Draws(3, number).choose(4, 2)) for number in range(6000))
    assert set(counts) == set(combinations(range(4), 2))
    # Six cells of 1000 expected each: four standard deviations are about 115.
    assert max(abs(count - 1000) for count in counts.values()) < 115


def test_draws_depend_on_their_keys_alone():
    first, second, other = Draws(1, 2), Draws(1, 2), Draws(1, 3)
    numbers = [first() for _ in range(5)]
    assert numbers == [second() for _ in range(5)]
    assert numbers != [other() for _ in range(5)]
    assert len(set(numbers)) == 5
    assert all(0 <= number < 1 for number in numbers)
