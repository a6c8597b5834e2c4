"""Visual Genome's questions, to train on beside VQA v2."""

from collections.abc import Iterator
from pathlib import Path

from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems
from amad.data.vqa_files import VISUAL_GENOME_WEIGHT, Images, VqaExample, keep_questions
from amad.errors import DataError
from amad.metrics.documents import field, iter_rows
from amad.metrics.vqa_answers import soft_scores


def read_visual_genome(
    path: Path,
    images: Images = None,
    image_name: str = "{image_id}.jpg",
    problems: Problems | None = None,
    weight: float = VISUAL_GENOME_WEIGHT,
) -> Iterator[VqaExample]:
    """The official form, ``question_answers.json``, plain or .gz: per image its ``id`` and its ``qas``.

    Examples come one after another. The one answer of a question is taken as certain, with score 1 in its normalised
    form; the weight says how much less it counts than ten people's. An answer of which nothing is left when
    normalised has no score.

    Many of its images are COCO's too, some of them in the sets that VQA v2 validates and tests on. This file does
    not say which; the ``coco_id`` of its ``image_data.json`` does.

    Args:
        path: The file.
        images: Folder of images, or several, as the two parts that are published; without it examples have none.
        image_name: File name of an image, from ``{image_id}``.
        problems: What to do about bad examples; refuse the first when absent.
        weight: Of each question in the loss.

    Raises:
        DataError: if the file is missing, truncated or malformed; a question or an image is listed twice; an
            image is missing, or its name leaves the folder; or there is no question.
    """
    problems = problems or Problems()
    return keep_questions(
        _questions(path, ImageFolders(images), image_name, problems, weight), path, problems
    )


def _questions(
    path: Path, folders: ImageFolders, image_name: str, problems: Problems, weight: float
) -> Iterator[VqaExample]:
    seen_images: set[int | str] = set()
    seen_questions: set[int | str] = set()
    for i, row in enumerate(iter_rows(path)):
        where = f"{path}, item {i}"
        examples = []
        with problems.at(path, f"item {i}"):
            image_id = field(row, "id", (int, str), where)
            if image_id in seen_images:
                raise DataError(
                    f"{where}: every image must be listed once but {image_id} was listed before. Remove one."
                )
            seen_images.add(image_id)
            name = fill_template(image_name, where, image_id=image_id)
            image = folders.find(name, where)
            for j, pair in enumerate(field(row, "qas", list, where)):
                entry = f"item {i}, question {j}"
                with problems.at(path, entry):
                    place = f"{path}, {entry}"
                    if not isinstance(pair, dict):
                        raise DataError(f"{place}: must be an object but is {pair!r:.80}. Mend the file.")
                    question_id = field(pair, "qa_id", (int, str), place)
                    if question_id in seen_questions:
                        raise DataError(
                            f"{place}: every qa_id must be unique but {question_id} occurred before. Remove one."
                        )
                    answer = field(pair, "answer", str, place)
                    question = field(pair, "question", str, place)
                    seen_questions.add(question_id)
                    scores = dict.fromkeys(soft_scores((answer,)), 1.0)
                    examples.append(
                        VqaExample(
                            question_id,
                            image_id,
                            question,
                            (answer,),
                            scores,
                            image,
                            image_name=name,
                            weight=weight,
                        )
                    )
        yield from examples
