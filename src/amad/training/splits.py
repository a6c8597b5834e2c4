"""The training and the validation set of a recipe, for each task."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from amad.data.captions import (
    CaptionDataset,
    CaptionExample,
    read_blip_captions,
    read_coco_captions,
    read_karpathy,
)
from amad.data.images import Pixels
from amad.data.paths import fill_template, inside
from amad.data.translation import (
    TranslationDataset,
    TranslationExample,
    read_multi30k,
    translation_prompt,
)
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
from amad.recipe_data import CaptionData, CaptionFiles, TranslationData, VqaData, VqaFiles

Prepare = Callable[[Image.Image], Pixels]


def vqa_splits(data: VqaData, seed: int, prepare: Prepare) -> tuple[VqaDataset, VqaDataset | None]:
    """What to train on, with sampled answers, and what to validate on, if the recipe says.

    Args:
        data: The recipe's data.
        seed: Of the sampling of answers.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: if a file is missing, malformed or outside of ``data.root``, or no training question has an
            answer.
    """
    root = _root(data.root)
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


def caption_splits(data: CaptionData, prepare: Prepare) -> tuple[CaptionDataset, CaptionDataset | None]:
    """What to train on, one item per caption, and what to validate on, one per image, if the recipe says.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: if a file is missing, malformed or outside of ``data.root``, or no training image has a
            caption.
    """
    root = _root(data.root)
    cache = int(data.image_cache_gib * GIB)
    train = read_caption_files(root, data.train, "data.train")
    if not any(example.captions for example in train):
        raise DataError(
            f"data.train: none of the {len(train)} images has a caption, so there is nothing to learn. "
            "Give data.train.captions a file that has some."
        )
    trained = CaptionDataset(train, training=True, prompt=data.prompt, cache_bytes=cache, prepare=prepare)
    if data.validation is None:
        return trained, None
    validation = read_caption_files(root, data.validation, "data.validation")[: data.max_validation_examples]
    return trained, CaptionDataset(
        validation, training=False, prompt=data.prompt, cache_bytes=cache, prepare=prepare
    )


def read_caption_files(root: Path, files: CaptionFiles, key: str) -> list[CaptionExample]:
    """The examples of the split that the recipe has under ``key``; see :func:`caption_splits`."""
    captions = inside(root, files.captions, f"{key}.captions")
    images = inside(root, files.images, f"{key}.images")
    if files.format == "blip":
        return read_blip_captions(captions, images)
    if files.format == "karpathy":
        return read_karpathy(captions, files.split or "", images)
    return read_coco_captions(captions, images, files.split)


def translation_splits(
    data: TranslationData, prepare: Prepare
) -> tuple[TranslationDataset, TranslationDataset | None]:
    """What to train on, and what to validate on, if the recipe says.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: if a file is missing, malformed or outside of ``data.root``; files of a split differ in their
            number of lines; or there is no prompt for the languages.
    """
    root = _root(data.root)
    prompt = data.prompt or translation_prompt(data.source, data.target)
    cache = int(data.image_cache_gib * GIB)
    train = read_translation_files(root, data, data.train)
    trained = TranslationDataset(train, prompt, cache_bytes=cache, prepare=prepare)
    if data.validation is None:
        return trained, None
    validation = read_translation_files(root, data, data.validation)[: data.max_validation_examples]
    return trained, TranslationDataset(validation, prompt, cache_bytes=cache, prepare=prepare)


def read_translation_files(root: Path, data: TranslationData, split: str) -> list[TranslationExample]:
    """The examples of a split; see :func:`translation_splits`."""

    def sentences(language: str) -> Path:
        key = "data.sentences"
        return inside(root, fill_template(data.sentences, key, split=split, language=language), key)

    source, target = sentences(data.source), sentences(data.target)
    if source == target:
        raise DataError(
            f"data.sentences = {data.sentences!r} names one file, {source}, for both languages. Put {{language}} "
            "in it."
        )
    names = inside(root, fill_template(data.image_names, "data.image_names", split=split), "data.image_names")
    return read_multi30k(source, target, names, inside(root, data.images, "data.images"))


def _root(name: str) -> Path:
    root = Path(name)
    if not root.is_dir():
        raise DataError(f"data.root {root} is no folder. Give the folder of the data with data.root=FOLDER.")
    return root
