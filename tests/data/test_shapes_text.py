import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from amad.data.shapes_scene import COLOURS, SHAPES, Scene, Thing, draw_scenes
from amad.data.shapes_text import BalancedChoice, possible_questions, sentences

#  a small red circle | a large blue square
#  -                  | a large red square
SCENE = Scene((Thing(0, 0, False, 0, 0), Thing(2, 1, True, 0, 1), Thing(0, 1, True, 1, 1)), 220)


def answers(scene):
    return {question.text: question.answer for group in possible_questions(scene) for question in group}


def test_every_question_of_a_small_scene_by_hand():
    asked = answers(SCENE)
    numbers = {f"how many {name} things are there?": "0" for name in COLOURS}
    numbers |= {"how many red things are there?": "2", "how many blue things are there?": "1"}
    assert asked == numbers | {
        "what color is the circle?": "red",
        "what shape is the blue thing?": "square",
        "what color is the thing right of the red circle?": "blue",
        "what color is the thing left of the blue square?": "red",
        "what color is the thing below the blue square?": "red",
        "what color is the thing above the red square?": "blue",
    }


def test_nothing_is_asked_of_a_thing_that_another_can_be_taken_for():
    twins = Scene((Thing(0, 0, False, 0, 0), Thing(0, 0, True, 0, 1)), 220)
    assert [len(group) for group in possible_questions(twins)] == [0, 0, 8, 0]


def look(scene, text):
    """Answers a question by looking at the scene, knowing nothing of how it was made up."""
    words = text.rstrip("?").split()
    if words[:2] == ["how", "many"]:
        return str(sum(COLOURS[thing.colour] == words[2] for thing in scene.things))
    if words[:2] == ["what", "shape"]:
        (only,) = [thing for thing in scene.things if COLOURS[thing.colour] == words[4]]
        return SHAPES[only.shape]
    if words[4] != "thing":
        (only,) = [thing for thing in scene.things if SHAPES[thing.shape] == words[4]]
        return COLOURS[only.colour]
    (only,) = [thing for thing in scene.things if [COLOURS[thing.colour], SHAPES[thing.shape]] == words[-2:]]
    down, right = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[words[5]]
    (other,) = [
        thing for thing in scene.things if (thing.row, thing.column) == (only.row + down, only.column + right)
    ]
    return COLOURS[other.colour]


def test_every_answer_is_what_one_sees():
    for scene in draw_scenes(100, np.random.default_rng(0)):
        asked = answers(scene)
        assert {text: look(scene, text) for text in asked} == asked


def test_kinds_and_the_answers_of_each_kind_come_out_equally_often():
    random = np.random.default_rng(0)
    choose = BalancedChoice()
    kinds, by_kind = Counter(), defaultdict(Counter)
    for scene in draw_scenes(3000, random):
        chosen = choose(scene, 4, random.integers(1 << 30, size=4).tolist())
        assert len({question.text for question in chosen}) == len(chosen)
        for question in chosen:
            kinds[question.kind] += 1
            by_kind[question.kind][question.answer] += 1
    assert max(kinds.values()) <= min(kinds.values()) + 8
    for counts in by_kind.values():
        assert max(counts.values()) < 1.6 * min(counts.values())


def test_a_scene_that_offers_fewer_questions_gets_fewer():
    assert len(BalancedChoice()(Scene((), 220), 20, range(20))) == 8


def test_what_is_said_of_a_small_scene_by_hand():
    assert sentences(SCENE) == [
        ("a red circle left of a blue square", "ein roter Punkt links neben einem blauen Quadrat"),
        ("a blue square right of a red circle", "ein blaues Quadrat rechts neben einem roten Punkt"),
        ("a blue square above a red square", "ein blaues Quadrat über einem roten Quadrat"),
        ("a red square below a blue square", "ein rotes Quadrat unter einem blauen Quadrat"),
        ("a red circle and a blue square", "ein roter Punkt und ein blaues Quadrat"),
        ("a red circle and a red square", "ein roter Punkt und ein rotes Quadrat"),
        ("a blue square and a red square", "ein blaues Quadrat und ein rotes Quadrat"),
    ]


@pytest.mark.parametrize(
    ("shape", "small", "large"),
    [
        (0, "ein orangefarbener Punkt", "ein orangefarbener Kreis"),
        (1, "ein orangefarbenes Kästchen", "ein orangefarbenes Quadrat"),
        (2, "ein orangefarbener Keil", "ein orangefarbenes Dreieck"),
    ],
)
def test_the_picture_alone_decides_between_two_german_nouns(shape, small, large):
    """One English sentence, four translations: no rule on the English side can be right."""
    said = {
        sizes: sentences(Scene((Thing(5, shape, sizes[0], 0, 0), Thing(0, 1, sizes[1], 2, 2)), 220))[0]
        for sizes in itertools.product([False, True], repeat=2)
    }
    assert {english for english, _ in said.values()} == {f"an orange {SHAPES[shape]} and a red square"}
    assert len({german for _, german in said.values()}) == 4
    assert said[False, False][1].startswith(small)
    assert said[True, False][1].startswith(large)


def test_english_articles_fit():
    for scene in draw_scenes(100, np.random.default_rng(1)):
        for english, _ in sentences(scene):
            assert "a orange" not in english
            assert english.count("an ") == english.count("an orange")
