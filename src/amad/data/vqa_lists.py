"""Questions about images in one JSON list, as VL-T5's and BLIP's authors publish them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems
from amad.data.vqa_files import (
    VISUAL_GENOME_WEIGHT,
    Images,
    VqaExample,
    answers_of,
    keep_questions,
    ten_answers,
)
from amad.errors import DataError
from amad.metrics.documents import field, index_by, read_json, read_rows, refuse_duplicates, refuse_unmatched
from amad.metrics.vqa_answers import soft_scores


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
                answers = answers_of(answered[question_id], f"{annotations}, question {question_id}")
            elif row.get("answers") is not None:
                answers = answers_of(row, where)
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
                answers = ten_answers(_strings(row["answer"], where), where)
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


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise DataError(f"{where}: 'answer' must be a list of strings. Mend the file.")
    return tuple(value)
