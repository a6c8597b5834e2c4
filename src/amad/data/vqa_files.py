"""Questions about images, and VQA v2's official files."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems, iter_present
from amad.errors import DataError
from amad.metrics.documents import field, iter_rows, iter_unique, read_head, refuse_unmatched
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
) -> Iterator[VqaExample]:
    """The official VQA v2 form, plain or .gz, in the order of the questions file, one after another.

    Both files are read side by side, and of annotations only those are held whose question is still to come: none
    where both files have one order, as the official ones.

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
    return keep_questions(
        _vqa_v2(questions, annotations, ImageFolders(images), image_name, split, problems, weight),
        questions,
        problems,
    )


def _vqa_v2(
    questions: Path,
    annotations: Path | None,
    folders: ImageFolders,
    image_name: str | None,
    split: str | None,
    problems: Problems,
    weight: float,
) -> Iterator[VqaExample]:
    template = image_name or OFFICIAL_IMAGE_NAME
    named = bool(folders.folders) or image_name is not None
    if named and split is None and "{split" in template:
        split = _split(read_head(questions).get("data_subtype"), questions)
    answered = Annotations(annotations, questions, problems)
    # Made once per image, not once per question.
    places: dict[int | str, tuple[str | None, Path | None]] = {}
    for question_id, row in iter_unique(iter_rows(questions, "questions"), "question_id", questions):
        annotation = answered.of(question_id, row.get("image_id"))
        if annotation is None:
            continue
        example = None
        with problems.at(questions, f"question {question_id}"):
            where = f"{questions}, question {question_id}"
            image_id = field(row, "image_id", (int, str), where)
            if image_id not in places:
                name = fill_template(template, where, image_id=image_id, split=split) if named else None
                places[image_id] = (name, None if name is None else folders.find(name, where))
            name, image = places[image_id]
            example = VqaExample(
                question_id=question_id,
                image_id=image_id,
                question=field(row, "question", str, where),
                answers=annotation.answers,
                scores=soft_scores(annotation.answers or ()),
                image=image,
                question_type=annotation.question_type,
                answer_type=annotation.answer_type,
                image_name=name,
                weight=weight,
            )
        if example is not None:
            yield example
    answered.finish(all_asked=True)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What VQA v2's annotations say of a question.

    Attributes:
        answers: Ten, raw; None where nothing is said.
        question_type: As published.
        answer_type: As published.
    """

    answers: tuple[str, ...] | None = None
    question_type: str | None = None
    answer_type: str | None = None


_UNSAID = object()


class Annotations:
    """VQA v2's annotations, read as far as the questions that are asked for need it.

    Args:
        path: The file with ``annotations``; without one, nothing is said of any question.
        questions: The file that the questions are in.
        problems: What to do about a question without ten answers.
    """

    def __init__(self, path: Path | None, questions: Path, problems: Problems) -> None:
        self._path, self._questions, self._problems = path, questions, problems
        self._rows = (
            iter(()) if path is None else iter_unique(iter_rows(path, "annotations"), "question_id", path)
        )
        self._waiting: dict[int | str, tuple[Any, Annotation | DataError]] = {}
        self._lacking: list[int | str] = []

    @property
    def n_held(self) -> int:
        """Annotations that were read and whose question is still to come."""
        return len(self._waiting)

    def of(self, question_id: int | str, image_id: Any = None) -> Annotation | None:
        """The annotation of a question; None for a question to leave out.

        Each question is asked for once. One that has no annotation is left out here and refused by ``finish``.

        Args:
            question_id: That of the question.
            image_id: Its image, which must be that of the annotation if it says one; not looked at when None.

        Raises:
            DataError: if the annotation is of another image, or is malformed and nothing is left out.
        """
        if self._path is None:
            return Annotation()
        while question_id not in self._waiting:
            one, row = next(self._rows, (None, None))
            if one is None or row is None:
                self._lacking.append(question_id)
                return None
            self._waiting[one] = row.get("image_id", _UNSAID), self._read(one, row)
        its_image, found = self._waiting.pop(question_id)
        if image_id is not None and its_image is not _UNSAID and its_image != image_id:
            raise DataError(
                f"{self._path}, question {question_id}: belongs to image {its_image!r} here and to image "
                f"{image_id!r} in {self._questions}. Check that both files are of the same split."
            )
        if isinstance(found, Annotation):
            return found
        with self._problems.at(self._path, f"question {question_id}"):
            raise found
        return None

    def _read(self, question_id: int | str, row: Mapping[str, Any]) -> Annotation | DataError:
        where = f"{self._path}, question {question_id}"
        try:
            # Few answers are given often: each text is held once.
            answers = tuple(map(sys.intern, answers_of(row, where)))
            return Annotation(
                answers, kind_of(row, "question_type", where), kind_of(row, "answer_type", where)
            )
        except DataError as error:
            # Of a question that nobody asks for, nobody needs to know.
            return error

    def finish(self, all_asked: bool) -> None:
        """See that the file is whole, every question had its annotation, and with ``all_asked`` the reverse.

        Raises:
            DataError: if not.
        """
        refuse_unmatched(
            self._lacking,
            (),
            lambda one: f"{self._path}: has no annotation of question {one} in {self._questions}",
        )
        # To the end, also where nobody asks for more: the file must be whole.
        left = [*self._waiting, *(one for one, _ in self._rows)]
        if all_asked:
            refuse_unmatched(
                left, (), lambda one: f"{self._path}: annotation {one} has no question in {self._questions}"
            )


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


def kind_of(row: Mapping[str, Any], name: str, where: str) -> str | None:
    """``question_type`` or ``answer_type`` of a row; None where nothing is published."""
    return None if row.get(name) is None else field(row, name, str, where)


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


def keep_questions(examples: Iterable[VqaExample], source: Path, problems: Problems) -> Iterator[VqaExample]:
    """The questions of ``source`` whose image is there, or that have none, one after another.

    Raises:
        DataError: if there is none; as ``iter_present``.
    """
    empty = True
    for example in iter_present(examples, source, problems):
        empty = False
        yield example
    if empty:
        raise DataError(
            f"{source}: must have a question and has none (bad examples left out: {problems.n_bad}). Check the file."
        )
