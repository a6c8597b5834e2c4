"""What is asked and said about a scene: questions with answers, captions, and their translation."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from amad.data.shapes_scene import COLOURS, SHAPES, Scene, Thing

NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
HIGHEST_NUMBER = 3
CAPTIONS_PER_IMAGE = 5

_RELATIONS_DE = {"left of": "links neben", "right of": "rechts neben", "above": "über", "below": "unter"}
_COLOURS_DE = ("rot", "grün", "blau", "gelb", "violett", "orangefarben", "türkisfarben", "braun")
# English has one noun where German has two, and only the picture shows which: (small, large), with the ending
# of the adjective after "ein", which follows the gender.
_NOUNS_DE = (
    (("Punkt", "er"), ("Kreis", "er")),
    (("Kästchen", "es"), ("Quadrat", "es")),
    (("Keil", "er"), ("Dreieck", "es")),
)


class Question(NamedTuple):
    """A question with its only right answer; ``kind`` is the official ``question_type``."""

    text: str
    answer: str
    kind: str
    answer_type: str = "other"


def possible_questions(scene: Scene) -> list[list[Question]]:
    """Every question with exactly one answer in this scene, grouped by what it is about.

    Colour and shape are asked of a thing that no other can be taken for; a neighbour is in the next cell.
    """
    cells = scene.cells()
    shapes = Counter(thing.shape for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    looks = Counter((thing.colour, thing.shape) for thing in scene.things)
    colour, shape, neighbour = [], [], []
    for thing in scene.things:
        colour_name, shape_name = COLOURS[thing.colour], SHAPES[thing.shape]
        if shapes[thing.shape] == 1:
            colour.append(Question(f"what color is the {shape_name}?", colour_name, "what color is the"))
        if colours[thing.colour] == 1:
            shape.append(Question(f"what shape is the {colour_name} thing?", shape_name, "what shape is the"))
        if looks[thing.colour, thing.shape] == 1:
            for relation, (down, right) in NEIGHBOURS.items():
                other = cells.get((thing.row + down, thing.column + right))
                if other is not None:
                    text = f"what color is the thing {relation} the {_looks(thing)}?"
                    neighbour.append(Question(text, COLOURS[other.colour], "what color is the thing"))
    number = [
        Question(f"how many {name} things are there?", str(colours[index]), "how many", "number")
        for index, name in enumerate(COLOURS)
        if colours[index] <= HIGHEST_NUMBER
    ]
    return [colour, shape, number, neighbour]


class BalancedChoice:
    """Chooses questions so that kinds, and for every wording the answers, come out equally often.

    Greedy: of what a scene offers, what was asked least so far. A model that reads only the question then
        gains
    little; how much is measured and stored with the set.
    """

    def __init__(self) -> None:
        self._kinds: Counter[int] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def __call__(self, scene: Scene, n_questions: int, tie_breaks: Sequence[int]) -> list[Question]:
        """At most ``n_questions`` different questions, fewer if the scene offers fewer.

        Args:
            scene: What is asked about.
            n_questions: How many.
            tie_breaks: One large random number per question: which of equally rare ones is taken.
        """
        groups = dict(enumerate(possible_questions(scene)))
        chosen = []
        for tie_break in tie_breaks[:n_questions]:
            kinds = [kind for kind, group in groups.items() if group]
            if not kinds:
                break
            kinds = kinds[tie_break % len(kinds) :] + kinds[: tie_break % len(kinds)]
            kind = min(kinds, key=self._kinds.__getitem__)
            group = groups[kind]
            start = tie_break % len(group)
            question = min(group[start:] + group[:start], key=lambda one: self._answers[one.text, one.answer])
            group.remove(question)
            self._kinds[kind] += 1
            self._answers[question.text, question.answer] += 1
            chosen.append(question)
        return chosen


def sentences(scene: Scene) -> list[tuple[str, str]]:
    """Everything said about a scene, in English and in German, neighbours first.

    Which German noun fits depends on the size of the thing, which the English leaves out.
    """
    cells = scene.cells()
    said = []
    for thing in scene.things:
        for relation, (down, right) in NEIGHBOURS.items():
            other = cells.get((thing.row - down, thing.column - right))
            if other is not None:
                english = f"a {_looks(thing)} {relation} a {_looks(other)}".replace("a orange", "an orange")
                said.append((english, f"{_ein(thing)} {_RELATIONS_DE[relation]} {_einem(other)}"))
    for index, thing in enumerate(scene.things):
        for other in scene.things[index + 1 :]:
            english = f"a {_looks(thing)} and a {_looks(other)}".replace("a orange", "an orange")
            said.append((english, f"{_ein(thing)} und {_ein(other)}"))
    return said


def _looks(thing: Thing) -> str:
    return f"{COLOURS[thing.colour]} {SHAPES[thing.shape]}"


def _ein(thing: Thing) -> str:
    noun, ending = _NOUNS_DE[thing.shape][thing.large]
    return f"ein {_COLOURS_DE[thing.colour]}{ending} {noun}"


def _einem(thing: Thing) -> str:
    return f"einem {_COLOURS_DE[thing.colour]}en {_NOUNS_DE[thing.shape][thing.large][0]}"
