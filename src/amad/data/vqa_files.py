"""Questions about images, read from the forms in which they are published."""

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
    refuse_duplicates,
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
        return self.scores.get(normalise_answer(prediction), 0.0)


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
            given[question_id] = _answers(row, f"{annotations}, question {question_id}")

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


def read_vlt5(
    path: Path,
    images: Images = None,
    image_name: str = "{image_id}.jpg",
    problems: Problems | None = None,
    weight: float = 1.0,
    annotations: Path | None = None,
) -> list[VqaExample]:
    """VL-T5's form: one list with ``img_id``, ``sent`` and ``label``, the soft score of each answer.

    ``label`` is used as it stands. It may be missing or empty: such examples have no scores. Raw ``answers``
    are read where they are given, or taken from the official ``annotations``, so that accuracy is the official
    one. Visual Genome's rows may have ``question`` in the place of ``sent``.

    Args:
        path: The file.
        images: Folder of images, or several; without it examples have none.
        image_name: File name of an image, from ``{image_id}``.
        problems: What to do about bad examples; refuse the first when absent.
        weight: Of each question in the loss.
        annotations: VQA v2's own file with the ten answers of each of these questions, and maybe of others.

    Raises:
        DataError: as ``read_vqa_v2``, and if a soft score is not a number from 0 to 1.
    """
    problems = problems or Problems()
    folders = ImageFolders(images)
    asked = index_by(read_rows(path), "question_id", path)
    answered: Mapping[int | str, Mapping[str, Any]] = {}
    if annotations is not None:
        answered = index_by(read_rows(annotations, "annotations"), "question_id", annotations)
        refuse_unmatched(
            asked, answered, lambda one: f"{annotations}: has no annotation of question {one} in {path}"
        )
    examples = []
    for question_id, row in asked.items():
        with problems.at(path, f"question {question_id}"):
            where = f"{path}, question {question_id}"
            image_id = field(row, "img_id", str, where)
            label = field(row, "label", dict, where) if "label" in row else {}
            for answer in label:
                score = field(label, answer, (int, float), f"{where}, label")
                if not 0 <= score <= 1:
                    raise DataError(
                        f"{where}: a soft score must be from 0 to 1 but that of {answer!r} is {score}."
                    )
            answers = None
            if question_id in answered:
                answers = _answers(answered[question_id], f"{annotations}, question {question_id}")
            elif row.get("answers"):
                answers = _answers(row, where)
            name = fill_template(image_name, where, image_id=image_id)
            examples.append(
                VqaExample(
                    question_id=question_id,
                    image_id=image_id,
                    question=field(row, "sent" if "sent" in row else "question", str, where),
                    answers=answers,
                    scores={answer: float(score) for answer, score in label.items()},
                    image=folders.find(name, where),
                    question_type=row.get("question_type"),
                    answer_type=row.get("answer_type"),
                    image_name=name,
                    weight=weight,
                )
            )
    return keep_questions(examples, path, problems)


def read_blip(
    path: Path,
    images: Images = None,
    problems: Problems | None = None,
    weight: float | None = None,
) -> list[VqaExample]:
    """BLIP's form: one list with ``image`` (a path below ``images``), ``question`` and ``answer``.

    Ten answers of VQA v2 give soft scores as everywhere; the one answer of a Visual Genome row (``dataset``
    is ``vg``) is taken as certain, score 1, at ``VISUAL_GENOME_WEIGHT`` unless ``weight`` is given. Test rows
    have no ``answer``. ``question_id`` may be missing, as in Visual Genome, and is then the position in the
    list, as text.

    Raises:
        DataError: as ``read_vqa_v2``.
    """
    problems = problems or Problems()
    folders = ImageFolders(images)
    rows = read_rows(path)
    ids: list[int | str] = [
        field(row, "question_id", (int, str), f"{path}, item {i}") if "question_id" in row else f"row {i}"
        for i, row in enumerate(rows)
    ]
    # Visual Genome counts its own questions, so ids are unique only within a data set.
    in_sets = (f"{row.get('dataset', 'vqa')} {one}" for row, one in zip(rows, ids, strict=True))
    refuse_duplicates(in_sets, "question_id", path)
    examples = []
    for row, question_id in zip(rows, ids, strict=True):
        with problems.at(path, f"question {question_id}"):
            where = f"{path}, question {question_id}"
            name = field(row, "image", str, where)
            answers: tuple[str, ...] | None = None
            scores: Mapping[str, float] = {}
            own_weight = 1.0
            if row.get("dataset") == "vg" and isinstance(row.get("answer"), str):
                own_weight = VISUAL_GENOME_WEIGHT
                answers = (row["answer"],)
                scores = dict.fromkeys(soft_scores(answers), 1.0)
            elif row.get("answer") is not None:
                answers = _ten(_strings(row["answer"], where), where)
                scores = soft_scores(answers)
            examples.append(
                VqaExample(
                    question_id=question_id,
                    image_id=name,
                    question=field(row, "question", str, where),
                    answers=answers,
                    scores=scores,
                    image=folders.find(name, where),
                    image_name=name,
                    weight=own_weight if weight is None else weight,
                )
            )
    return keep_questions(examples, path, problems)


def read_answer_list(path: Path) -> list[str]:
    """Answers to choose from, such as BLIP's ``answer_list.json``: a JSON list of texts, plain or .gz.

    Raises:
        DataError: if the file is missing, or anything but a list of different texts.
    """
    found = read_json(path)
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise DataError(f"{path}: a list of answers is a JSON list of strings, at least one. Mend the file.")
    refuse_duplicates(found, "answer", path)
    return found


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


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The raw ``answers`` of a row: objects with ``answer``, or plain strings."""
    answers = field(row, "answers", list, where)
    plain = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    strings = tuple(answer for answer in plain if isinstance(answer, str))
    if len(strings) < len(plain):
        raise DataError(
            f"{where}: each of 'answers' must be an object with a string 'answer'. Mend the file."
        )
    return _ten(strings, where)


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise DataError(f"{where}: 'answer' must be a list of strings. Mend the file.")
    return tuple(value)


def _ten(answers: tuple[str, ...], where: str) -> tuple[str, ...]:
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
