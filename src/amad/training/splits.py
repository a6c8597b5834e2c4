"""The training and the validation set of a recipe."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from amad.data.images import Pixels
from amad.data.paths import inside
from amad.data.vqa import (
    GIB,
    OFFICIAL_IMAGE_NAME,
    VqaDataset,
    VqaExample,
    holdout_by_image,
    read_blip,
    read_vlt5,
    read_vqa_v2,
)
from amad.errors import DataError
from amad.recipe import VqaData, VqaFiles


def vqa_splits(
    data: VqaData, seed: int, prepare: Callable[[Image.Image], Pixels]
) -> tuple[VqaDataset, VqaDataset | None]:
    """What to train on, with sampled answers, and what to validate on, if the recipe says.

    Args:
        data: The recipe's data.
        seed: Of the sampling of answers.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: if a file is missing, malformed or outside of ``data.root``, or no training question has an
            answer.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise DataError(f"data.root {root} is no folder. Give the folder of the data with data.root=FOLDER.")
    train = read_vqa_files(root, data.train, "data.train")
    if not any(example.scores for example in train):
        raise DataError(
            f"data.train: none of the {len(train)} questions has an answer, so there is nothing to learn. "
            "Give data.train.annotations, or a file that has answers."
        )
    validation: list[VqaExample] | None = None
    if data.holdout is not None:
        train, validation = holdout_by_image(train, data.holdout.share, data.holdout.seed)
    elif data.validation is not None:
        validation = read_vqa_files(root, data.validation, "data.validation")
    cache = int(data.image_cache_gib * GIB)
    trained = VqaDataset(
        train, training=True, prompt=data.prompt, seed=seed, cache_bytes=cache, prepare=prepare
    )
    if validation is None:
        return trained, None
    validation = validation[: data.max_validation_questions]
    return trained, VqaDataset(
        validation, training=False, prompt=data.prompt, cache_bytes=cache, prepare=prepare
    )


def read_vqa_files(root: Path, files: VqaFiles, key: str) -> list[VqaExample]:
    """The examples of the split that the recipe has under ``key``; see :func:`vqa_splits`."""
    questions = inside(root, files.questions, f"{key}.questions")
    images = inside(root, files.images, f"{key}.images")
    if files.format == "blip":
        return read_blip(questions, images)
    if files.format == "vl-t5":
        return read_vlt5(questions, images, files.image_name or "{image_id}.jpg")
    annotations = None if files.annotations is None else inside(root, files.annotations, f"{key}.annotations")
    return read_vqa_v2(questions, annotations, images, files.image_name or OFFICIAL_IMAGE_NAME)
