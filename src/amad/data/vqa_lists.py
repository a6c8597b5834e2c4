"""Questions about images in one JSON list, as VL-T5's and BLIP's authors publish them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems
from amad.data.vqa_files import (
    VISUAL_GENOME_WEIGHT,
    Annotations,
    Images,
    VqaExample,
    answers_of,
    keep_questions,
    kind_of,
    ten_answers,
)
from amad.errors import DataError
from amad.metrics.documents import field, iter_rows, iter_unique, read_json, refuse_duplicates
from amad.metrics.vqa_answers import soft_scores


def read_vlt5(
    path: Path,
    images: Images = None,
    image_name: str = "{image_id}.jpg",
    problems: Problems | None = None,
    weight: float = 1.0,
    annotations: Path | None = None,
) -> Iterator[VqaExample]:
    """VL-T5's form: one list with ``img_id``, ``sent`` and ``label``, the soft score of each answer.

    Examples come one after another. ``label`` is used as it stands. It may be missing or empty: such examples have
    no scores. Raw ``answers`` are read where they are given, or taken from the official ``annotations``, so that
    accuracy is the official one. Visual Genome's rows may have ``question`` in the place of ``sent``.

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
    return keep_questions(
        _vlt5(path, ImageFolders(images), image_name, problems, weight, annotations), path, problems
    )


def _vlt5(
    path: Path,
    folders: ImageFolders,
    image_name: str,
    problems: Problems,
    weight: float,
    annotations: Path | None,
) -> Iterator[VqaExample]:
    answered = Annotations(annotations, path, problems)
    for question_id, row in iter_unique(iter_rows(path), "question_id", path):
        annotation = answered.of(question_id)
        if annotation is None:
            continue
        example = None
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
            answers = annotation.answers
            if answers is None and row.get("answers") is not None:
                answers = answers_of(row, where)
            name = fill_template(image_name, where, image_id=image_id)
            example = VqaExample(
                question_id=question_id,
                image_id=image_id,
                question=field(row, "sent" if "sent" in row else "question", str, where),
                answers=answers,
                scores={answer: float(score) for answer, score in label.items()},
                image=folders.find(name, where),
                question_type=kind_of(row, "question_type", where),
                answer_type=kind_of(row, "answer_type", where),
                image_name=name,
                weight=weight,
            )
        if example is not None:
            yield example
    answered.finish(all_asked=False)


def read_blip(
    path: Path,
    images: Images = None,
    problems: Problems | None = None,
    weight: float | None = None,
) -> Iterator[VqaExample]:
    """BLIP's form: one list with ``image`` (a path below ``images``), ``question`` and ``answer``.

    Examples come one after another. Ten answers of VQA v2 give soft scores as everywhere; the one answer of a Visual
    Genome row (``dataset`` is ``vg``) is taken as certain, score 1, at ``VISUAL_GENOME_WEIGHT`` unless ``weight`` is
    given. Test rows have no ``answer``. ``question_id`` may be missing, as in Visual Genome, and is then ``row N``,
    its position in the list from 0.

    Raises:
        DataError: as ``read_vqa_v2``.
    """
    problems = problems or Problems()
    return keep_questions(_blip(path, ImageFolders(images), problems, weight), path, problems)


def _blip(
    path: Path, folders: ImageFolders, problems: Problems, weight: float | None
) -> Iterator[VqaExample]:
    # Visual Genome counts its own questions, so ids are unique only within a data set.
    seen: set[str] = set()
    repeated: list[str] = []
    for i, row in enumerate(iter_rows(path)):
        question_id: int | str = f"row {i}"
        if "question_id" in row:
            question_id = field(row, "question_id", (int, str), f"{path}, item {i}")
        in_set = f"{row.get('dataset', 'vqa')} {question_id}"
        if in_set in seen:
            repeated += [in_set, in_set]
        seen.add(in_set)
        if repeated:
            continue
        example = None
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
            example = VqaExample(
                question_id=question_id,
                image_id=name,
                question=field(row, "question", str, where),
                answers=answers,
                scores=scores,
                image=folders.find(name, where),
                image_name=name,
                weight=own_weight if weight is None else weight,
            )
        if example is not None:
            yield example
    refuse_duplicates(repeated, "question_id", path)


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
