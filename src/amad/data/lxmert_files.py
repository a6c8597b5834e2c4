"""LXMERT's pre-training files, which VL-T5 is pre-trained on too: per image its captions and its questions.

    [{"img_id": "COCO_train2014_000000000009",
      "sentf": {"mscoco": ["..", ..], "vqa": ["..?", ..]},
      "labelf": {"vqa": [{"yes": 1.0}, ..]}}, ..]

``sentf`` has texts by their source. Those of a source that is in ``labelf`` too are questions, each with the soft score
of its answers; all others are captions. Tan and Bansal 2019 (arXiv:1908.07490), section 3.2.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amad.data.caption_files import CaptionExample
from amad.data.paths import ImageFolders, fill_template
from amad.data.problems import Problems, iter_present
from amad.data.vqa_files import Images, VqaExample, keep_questions
from amad.errors import DataError
from amad.metrics.documents import field, iter_rows

IMAGE_NAME = "{image_id}.jpg"


def read_lxmert_captions(
    path: Path, images: Path | None = None, problems: Problems | None = None
) -> Iterator[CaptionExample]:
    """The images that have captions, one by one in the order of the file; of equal captions of an image the first.

    Args:
        path: The file, plain or .gz.
        images: Folder of ``IMG_ID.jpg``; without it examples have no image.
        problems: What to do about bad examples; refuse the first when absent.

    Raises:
        DataError: if the file is missing, truncated or malformed; an image is listed twice or is missing; or no
            image has a caption.
    """
    problems = problems or Problems()
    empty = True
    for example in iter_present(_captioned(path, ImageFolders(images), problems), path, problems):
        empty = False
        yield example
    if empty:
        raise DataError(f"{path}: no image has a caption. Give a file that has some.")


def _captioned(path: Path, folders: ImageFolders, problems: Problems) -> Iterator[CaptionExample]:
    for where, image_id, row in _rows(path, problems):
        example = None
        with problems.at(path, f"image {image_id}"):
            labelled = field(row, "labelf", dict, where) if "labelf" in row else {}
            texts = field(row, "sentf", dict, where)
            said = [
                text
                for source in texts
                if source not in labelled
                for text in _texts(texts, source, where)
                if text
            ]
            if said:
                name = fill_template(IMAGE_NAME, where, image_id=image_id)
                captions = tuple(dict.fromkeys(said))
                example = CaptionExample(folders.find(name, where), image_id, captions, None, name)
        if example is not None:
            yield example


def read_lxmert_questions(
    path: Path,
    images: Images = None,
    image_name: str = IMAGE_NAME,
    problems: Problems | None = None,
    weight: float = 1.0,
) -> Iterator[VqaExample]:
    """The questions that have an answer, one by one in the order of the file; ids are image, source and position.

    Args:
        path: The file, plain or .gz.
        images: Folder of images, or several; without it examples have none.
        image_name: File name of an image, from ``{image_id}``.
        problems: What to do about bad examples; refuse the first when absent.
        weight: Of each question in the loss.

    Raises:
        DataError: as :func:`read_lxmert_captions`; questions and labels of a source differ in number; a soft score
            is not a number from 0 to 1; or no question has an answer.
    """
    problems = problems or Problems()
    return keep_questions(_asked(path, ImageFolders(images), image_name, problems, weight), path, problems)


def _asked(
    path: Path, folders: ImageFolders, image_name: str, problems: Problems, weight: float
) -> Iterator[VqaExample]:
    for where, image_id, row in _rows(path, problems):
        examples = []
        with problems.at(path, f"image {image_id}"):
            texts = field(row, "sentf", dict, where)
            labelled = field(row, "labelf", dict, where) if "labelf" in row else {}
            for source in labelled:
                asked, labels = _texts(texts, source, where), field(labelled, source, list, where)
                if len(asked) != len(labels):
                    raise DataError(
                        f"{where}: {source} must have a label for every question but has {len(asked)} questions and "
                        f"{len(labels)} labels. Mend the file."
                    )
                name = fill_template(image_name, where, image_id=image_id)
                image = folders.find(name, where)
                for number, (question, label) in enumerate(zip(asked, labels, strict=True)):
                    scores = _scores(label, f"{where}, {source} question {number}")
                    if question and any(scores.values()):
                        question_id = f"{image_id} {source} {number}"
                        examples.append(
                            VqaExample(
                                question_id,
                                image_id,
                                question,
                                None,
                                scores,
                                image,
                                image_name=name,
                                weight=weight,
                            )
                        )
        yield from examples


def _rows(path: Path, problems: Problems) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Where each image stands, its id, and what there is of it."""
    seen: set[str] = set()
    for number, row in enumerate(iter_rows(path)):
        where = f"{path}, item {number}"
        new = None
        with problems.at(path, f"item {number}"):
            image_id = field(row, "img_id", str, where)
            if image_id in seen:
                raise DataError(
                    f"{where}: every image must be listed once but {image_id} was listed before. Remove one."
                )
            seen.add(image_id)
            new = image_id
        if new is not None:
            yield where, new, row


def _texts(texts: Mapping[str, Any], source: str, where: str) -> list[str]:
    found = field(texts, source, list, f"{where}, sentf")
    if not all(isinstance(text, str) for text in found):
        raise DataError(f"{where}: {source} must be a list of strings. Mend the file.")
    return [text.strip() for text in found]


def _scores(label: Any, where: str) -> dict[str, float]:
    if not isinstance(label, dict):
        raise DataError(f"{where}: a label must map answers to scores but is {label!r:.80}. Mend the file.")
    for answer in label:
        score = field(label, answer, (int, float), where)
        if not 0 <= score <= 1:
            raise DataError(f"{where}: a soft score must be from 0 to 1 but that of {answer!r} is {score}.")
    return {answer: float(score) for answer, score in label.items() if score}
