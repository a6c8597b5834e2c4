"""Questions about images, and VQA v2's official files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems, keep_present
from amad.errors import DataError
from amad.metrics.documents import (
    field,
    index_by,
    read_json,
    read_rows,
    refuse_unmatched,
    rows_of,
)
from amad.metrics.vqa import answer_accuracy
from amad.metrics.vqa_answers import normalise_answer, soft_scores

OFFICIAL_IMAGE_NAME = "COCO_{split}2014_{image_id:012d}.jpg"
N_ANNOTATORS = 10

VISUAL_GENOME_WEIGHT = 0.2
"""Weight in the loss of a question that one person answered, as in BLIP (data/vqa_dataset.py of its code)."""

Images = Path | Sequence[Path] | None
"""A folder of images, or several to look in; None for no images."""


@dataclass(frozen=True, slots=True)
class VqaExample:
    """A question about an image.

    Attributes:
        question_id: Unique within its set.
        image_id: Equal for questions about the same image.
        question: As written in the file.
        answers: What the ten annotators said, raw; None without annotations, and where only scores are
            published.
        scores: Soft score of each distinct normalised answer, the answer of most
            annotators first where counted here; empty if there is none.
        image: The file; None if the set was read without images.
        question_type: First words of the question as the set classifies them; None where not published.
        answer_type: ``yes/no``, ``number`` or ``other``; None where not published.
        image_name: The image's file name, with folders where the set has them; None where it was not asked for.
        weight: Of the question in the loss, times the soft score of the answer that is learned.
    """

    question_id: int | str
    image_id: int | str
    question: str
    answers: tuple[str, ...] | None
    scores: Mapping[str, float]
    image: Path | None
    question_type: str | None = None
    answer_type: str | None = None
    image_name: str | None = None
    weight: float = 1.0

    @property
    def stem(self) -> str:
        """The image's file name without folders and ending, by which region features are filed; "" without one."""
        return PurePosixPath(self.image_name or "").stem

    @property
    def entry(self) -> str:
        """Where it stands in its file."""
        return f"question {self.question_id}"

    @property
    def targets(self) -> tuple[str, ...]:
        """What the annotators said; the distinct answers where only their scores are published."""
        return self.answers if self.answers is not None else tuple(self.scores)

    @property
    def best_answer(self) -> tuple[str, float]:
        """The answer with the highest soft score, and the score; the empty answer with 0 if there is none."""
        return max(self.scores.items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def answer_shares(self) -> Mapping[str, float]:
        """The share of annotators who gave each distinct answer, as written, as BLIP weights them.

        Where only scores are published they are the shares. Empty without answers. The ``weight`` of a question that
        one person answered is the rest of BLIP's rule.
        """
        if self.answers is None:
            return self.scores
        return {answer: n / len(self.answers) for answer, n in Counter(self.answers).items()}

    def accuracy(self, prediction: str) -> float:
        """VQA accuracy of a prediction, from 0 to 1: official with ten answers, else its soft score."""
        if self.answers is not None and len(self.answers) == N_ANNOTATORS:
            return answer_accuracy(self.answers, prediction)
        # Scores are under the answers as their file has them.
        return self.scores.get(prediction, self.scores.get(normalise_answer(prediction), 0.0))


def read_vqa_v2(
    questions: Path,
    annotations: Path | None = None,
    images: Images = None,
    image_name: str | None = None,
    split: str | None = None,
    problems: Problems | None = None,
    weight: float = 1.0,
) -> list[VqaExample]:
    """The official VQA v2 form, plain or .gz, in the order of the questions file.

    Args:
        questions: The file with ``questions``.
        annotations: The file with ``annotations``; without it examples have no answers.
        images: Folder of images, or several; without it examples have none.
        image_name: File name of an image, from ``{image_id}`` and ``{split}``; the official
            ``COCO_{split}2014_{image_id:012d}.jpg`` when absent. Without a folder of images, examples have an
            ``image_name`` where this is given.
        split: What ``{split}`` is; read off ``data_subtype`` of the questions file ("train2014") when absent.
        problems: What to do about a malformed question, one without ten answers or without its image; refuse
            the first when absent. Ids that contradict each other are refused always.
        weight: Of each question in the loss.

    Raises:
        DataError: if a file is missing, truncated or malformed; a question id occurs twice; a question has no
            annotation or an annotation no question; they differ in the image; there are not ten answers; an
            image is missing, or its name leaves the folder.
    """
    problems = problems or Problems()
    folders = ImageFolders(images)
    document = read_json(questions)
    asked = index_by(rows_of(document, questions, "questions"), "question_id", questions)
    answered = _annotations(annotations, questions, asked) if annotations is not None else {}
    template = image_name or OFFICIAL_IMAGE_NAME
    named = images is not None or image_name is not None
    if named and split is None and "{split" in template:
        split = _split(document.get("data_subtype"), questions)

    given: dict[int | str, tuple[str, ...]] = {}
    for question_id, row in answered.items():
        with problems.at(annotations or questions, f"question {question_id}"):
            given[question_id] = answers_of(row, f"{annotations}, question {question_id}")

    # Made once per image, not once per question.
    places: dict[int | str, tuple[str | None, Path | None]] = {}
    examples = []
    for question_id, row in asked.items():
        if question_id in answered and question_id not in given:
            continue
        with problems.at(questions, f"question {question_id}"):
            where = f"{questions}, question {question_id}"
            image_id = field(row, "image_id", (int, str), where)
            if image_id not in places:
                name = fill_template(template, where, image_id=image_id, split=split) if named else None
                places[image_id] = (name, None if name is None else folders.find(name, where))
            name, image = places[image_id]
            annotation = answered.get(question_id, {})
            answers = given.get(question_id)
            examples.append(
                VqaExample(
                    question_id=question_id,
                    image_id=image_id,
                    question=field(row, "question", str, where),
                    answers=answers,
                    scores=soft_scores(answers or ()),
                    image=image,
                    question_type=annotation.get("question_type"),
                    answer_type=annotation.get("answer_type"),
                    image_name=name,
                    weight=weight,
                )
            )
    return keep_questions(examples, questions, problems)


def _annotations(
    path: Path, questions: Path, asked: Mapping[int | str, Mapping[str, Any]]
) -> dict[int | str, Mapping[str, Any]]:
    """Annotations by question id, matched with the questions one to one."""
    answered = index_by(read_rows(path, "annotations"), "question_id", path)
    refuse_unmatched(
        asked, answered, lambda one: f"{path}: has no annotation of question {one} in {questions}"
    )
    refuse_unmatched(answered, asked, lambda one: f"{path}: annotation {one} has no question in {questions}")
    for question_id, row in answered.items():
        image_id = asked[question_id].get("image_id")
        if "image_id" in row and row["image_id"] != image_id:
            raise DataError(
                f"{path}, question {question_id}: belongs to image {row['image_id']} here and to image "
                f"{image_id} in {questions}. Check that both files are of the same split."
            )
    return answered


def answers_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The raw ``answers`` of a row: objects with ``answer``, or plain strings."""
    answers = field(row, "answers", list, where)
    plain = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    strings = tuple(answer for answer in plain if isinstance(answer, str))
    if len(strings) < len(plain):
        raise DataError(
            f"{where}: each of 'answers' must be an object with a string 'answer'. Mend the file."
        )
    return ten_answers(strings, where)


def ten_answers(answers: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The answers, of which there must be ten.

    Raises:
        DataError: if there are not.
    """
    if len(answers) != N_ANNOTATORS:
        raise DataError(
            f"{where}: a question needs {N_ANNOTATORS} answers but has {len(answers)}. "
            "Give one answer per annotator; repeat a single ground truth ten times."
        )
    return answers


def _split(subtype: Any, questions: Path) -> str:
    for split in ("train", "val"):
        if isinstance(subtype, str) and subtype.startswith(split):
            return split
    raise DataError(
        f"{questions}: the file name template has {{split}} and data_subtype is {subtype!r}, which is "
        "neither "
        "train nor val. Give a template with image_id alone, such as '{image_id}.png'."
    )


def keep_questions(examples: list[VqaExample], source: Path, problems: Problems) -> list[VqaExample]:
    """The questions of ``source`` whose image is there, or that have none.

    Raises:
        DataError: if no question is left; as ``keep_present``.
    """
    kept = keep_present(examples, source, problems)
    if not kept:
        raise DataError(
            f"{source}: must have a question and has none (bad examples left out: {problems.n_bad}). Check the file."
        )
    return kept
