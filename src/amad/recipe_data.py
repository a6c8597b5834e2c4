"""The ``data`` section of a recipe, one form per task."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Task = Literal["vqa", "captions", "translation", "pretraining"]
Share = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Augmentation = Literal["crop-flip", "crop-flip-randaugment"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class VqaFiles(Section):
    """One split of a visual question answering set.

    Attributes:
        format: ``vqa-v2`` (official questions and annotations), ``vl-t5``, ``blip`` or ``lxmert`` (one JSON list),
            or ``visual-genome`` (official ``question_answers.json``).
        questions: The questions; for all but ``vqa-v2`` the one file there is.
        annotations: The ten answers of each question, in the official file: for ``vqa-v2``, unless it is a test
            split; for ``vl-t5`` to be scored by the official accuracy rather than by the file's soft scores.
        images: Folder of images, or several, the first of which that has an image gives it.
        image_name: File name of an image, with ``{image_id}`` in it; the official one by default.
        weight: Of each question in the loss, beside the soft score of its answer. When absent, 0.2 for questions
            of Visual Genome, which one person answered, as in BLIP, and 1 for all others.
    """

    format: Literal["vqa-v2", "vl-t5", "blip", "lxmert", "visual-genome"] = "vqa-v2"
    questions: str
    annotations: str | None = None
    images: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] = ["images"]
    image_name: str | None = None
    weight: NonNegative | None = None

    @model_validator(mode="after")
    def _keys_of_the_format(self) -> "VqaFiles":
        superfluous = {
            "vqa-v2": (),
            "vl-t5": (),
            "blip": ("annotations", "image_name"),
            "lxmert": ("annotations",),
            "visual-genome": ("annotations",),
        }
        for key in superfluous[self.format]:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"format {self.format} has no {key}: its one file says it all; leave {key} out"
                )
        return self


class Holdout(Section):
    """Hold a share of the training images out for validation, with all their questions."""

    share: Share = 0.1
    seed: int = 0


class Subset(Section):
    """Train on a share of the training images, with all that belongs to them.

    Of one seed, a smaller share is part of a larger one. Images that are held out are not among them.
    """

    share: Share
    seed: int = 0


class RegionFiles(Section):
    """Features of image regions, extracted beforehand, in the place of images.

    Attributes:
        files: VL-T5's ``.h5`` or LXMERT's ``.tsv``, one or several; an image is looked up in each in turn, by its
            file name without folders and ending.
        n_regions: Regions that every image must have; any number when null.
        n_features: Length of a feature.
    """

    files: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]
    n_regions: int | None = Field(36, gt=0)
    n_features: int = Field(2048, gt=0)


class DataSection(Section):
    """What the data of every task has.

    Attributes:
        root: Folder that every file below is in.
        on_bad_example: ``raise`` refuses the first example that breaks a rule. ``skip`` leaves such examples out,
            counts them and lists them in the run's folder; every image is then decoded once before training.
        regions: Features of image regions instead of images; no folder of images is then needed.
        image_cache_gib: Decoded images kept in memory.
    """

    root: str
    on_bad_example: Literal["raise", "skip"] = "raise"
    regions: RegionFiles | None = None
    image_cache_gib: NonNegative = 1.0

    @property
    def validates(self) -> bool:
        """Whether there is something to validate on."""
        return getattr(self, "validation", None) is not None or getattr(self, "holdout", None) is not None

    @property
    def validation_keys(self) -> list[str]:
        """Keys that give something to validate on, any one of which is enough."""
        return [f"data.{key}" for key in ("validation", "holdout") if key in type(self).model_fields]

    def whole(self) -> Self:
        """The same with no limit on what is validated."""
        limits = [key for key in type(self).model_fields if key.startswith("max_validation_")]
        return self.model_copy(update=dict.fromkeys(limits))


class RankingRecipe(Section):
    """Answers of a list, ranked by their likelihood, in the place of generated ones; for BLIP.

    Attributes:
        answers: JSON list of answers, such as BLIP's ``answer_list.json``; those of the training set when absent.
        first: So many are ranked by the likelihood of the whole answer: those whose first token is the most likely.
    """

    answers: str | None = None
    first: int = Field(128, gt=0)


class VqaData(DataSection):
    """Visual question answering data.

    Attributes:
        train: The split to train on.
        also_train: More to train on, such as VQA v2's validation split or Visual Genome.
        subset: Train on so much of it; on all when absent.
        validation: The split to select and report on; or ``holdout``, never both.
        holdout: Images of ``train`` to validate on instead.
        prompt: What the text encoder reads; ``{question}`` is replaced.
        targets: Which answers a question is learned with: ``sampled`` is one in each epoch, drawn by its soft score,
            as in VL-T5; ``every`` is all of them at once, weighted by the share of annotators, as in BLIP, and for it.
        augment: ``crop-flip`` shows another part of each training image in each epoch, half of the time mirrored;
            ``crop-flip-randaugment``, BLIP's, also distorts it.
        ranking: How ``amad evaluate`` picks answers of a list; it generates them when absent.
        max_input_tokens: Longer questions are cut.
        max_target_tokens: Longer answers are cut.
        max_validation_questions: Validate on the first so many questions while training; all when absent.
    """

    train: VqaFiles
    also_train: list[VqaFiles] = []
    subset: Subset | None = None
    validation: VqaFiles | None = None
    holdout: Holdout | None = None
    prompt: str = "vqa: {question}"
    targets: Literal["sampled", "every"] = "sampled"
    augment: Augmentation | None = None
    ranking: RankingRecipe | None = None
    max_input_tokens: int = Field(20, gt=0)
    max_target_tokens: int = Field(10, gt=0)
    max_validation_questions: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_validation(self) -> "VqaData":
        if self.validation is not None and self.holdout is not None:
            raise ValueError("give either data.validation or data.holdout, not both")
        if self.also_train and self.holdout is not None:
            raise ValueError(
                "data.also_train may show the images that data.holdout holds out of data.train; give "
                "data.validation instead of data.holdout"
            )
        if "{question}" not in self.prompt:
            raise ValueError(f"data.prompt must contain {{question}}: {self.prompt!r}")
        return self


class CaptionFiles(Section):
    """One split of a captioning set.

    Attributes:
        format: ``coco`` (official), ``karpathy`` (his ``dataset_coco.json``), ``blip`` or ``lxmert`` (one JSON list).
        captions: The file, plain or .gz.
        images: Folder of images.
        split: The images to take by their ``split``: needed for ``karpathy``; for ``coco`` where one file has all
            splits; never for ``blip`` and ``lxmert``, whose files are one split.
    """

    format: Literal["coco", "karpathy", "blip", "lxmert"] = "coco"
    captions: str
    images: str = "images"
    split: str | None = None

    @model_validator(mode="after")
    def _split_of_the_format(self) -> Self:
        if self.format == "karpathy" and self.split is None:
            raise ValueError("format karpathy needs a split, train, val or test: its one file has them all")
        if self.format in ("blip", "lxmert") and self.split is not None:
            raise ValueError(f"format {self.format} has no split: a file of it is one; leave split out")
        return self


class CaptionData(DataSection):
    """Captioning data.

    Attributes:
        train: The split to train on, one example per caption.
        subset: Train on so much of it; on all when absent.
        validation: The split to select and report on, one caption per image.
        prompt: What the text encoder reads, or what BLIP's decoder goes on from.
        augment: ``crop-flip`` shows another part of each training image in each epoch, half of the time mirrored;
            ``crop-flip-randaugment``, BLIP's, also distorts it.
        max_input_tokens: Longer prompts are cut.
        max_target_tokens: Longer captions are cut.
        max_validation_examples: Validate on the first so many images while training; all when absent.
    """

    train: CaptionFiles
    subset: Subset | None = None
    validation: CaptionFiles | None = None
    prompt: str = "caption:"
    augment: Augmentation | None = None
    max_input_tokens: int = Field(8, gt=0)
    max_target_tokens: int = Field(40, gt=0)
    max_validation_examples: int | None = Field(None, gt=0)


class TranslationData(DataSection):
    """Translation of image descriptions, in Multi30K's files: aligned line by line.

    Attributes:
        source: Language to translate from, as file names have it.
        target: Language to translate to.
        train: Name of the split to train on.
        subset: Train on so much of it; on all when absent.
        validation: Name of the split to select and report on.
        sentences: File of a split in a language, plain or .gz; ``{split}`` and ``{language}`` are replaced.
        images: Folder of images.
        image_names: List of a split's images; ``{split}`` is replaced.
        prompt: What the text encoder reads; ``{source}`` is replaced. T5's for cs, de, en and fr when absent.
        max_input_tokens: Longer texts are cut, prompt included.
        max_target_tokens: Longer translations are cut.
        max_validation_examples: Validate on the first so many sentences while training; all when absent.
    """

    source: str = "en"
    target: str = "de"
    train: str = "train"
    subset: Subset | None = None
    validation: str | None = None
    sentences: str = "{split}.{language}"
    images: str = "images"
    image_names: str = "image_splits.{split}.txt"
    prompt: str | None = None
    max_input_tokens: int = Field(40, gt=0)
    max_target_tokens: int = Field(40, gt=0)
    max_validation_examples: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _two_languages(self) -> Self:
        if self.source == self.target:
            raise ValueError(
                f"data.source and data.target must be two languages and are both {self.source!r}"
            )
        if self.prompt is not None and "{source}" not in self.prompt:
            raise ValueError(f"data.prompt must contain {{source}}: {self.prompt!r}")
        return self


class RegionNames(Section):
    """What the detector of region features calls its classes.

    Attributes:
        objects: Its object classes, one per line; of synonyms ("a,b") the first counts.
        attributes: Its attribute classes, likewise.
    """

    objects: str
    attributes: str


class BoxFiles(Section):
    """Named boxes in images that the model reads as patches.

    Attributes:
        instances: COCO's instance annotations, one file or several.
        grid: Rows, and columns, of the model's patches.
    """

    instances: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]
    grid: int = Field(gt=0)


class PretrainingFiles(Section):
    """One split of what is pre-trained on.

    Attributes:
        captions: Images with captions, one set or several.
        questions: Questions about images, for the task ``question``; likewise.
    """

    captions: Annotated[list[CaptionFiles], Field(min_length=1), BeforeValidator(_listed)]
    questions: Annotated[list[VqaFiles], BeforeValidator(_listed)] = []


TextTask = Literal["span", "match", "question", "describe", "find"]
"""VL-T5's tasks: texts with targets."""

PairTask = Literal["contrast", "match", "caption"]
"""BLIP's: losses on pairs of image and caption."""


class PretrainingData(DataSection):
    """What is pre-trained on: images with captions, and maybe questions and named objects.

    Attributes:
        train: The split to train on.
        validation: The split to report on.
        tasks: For an encoder-decoder, how often each of ``span``, ``match``, ``question``, ``describe`` and ``find`` is
            drawn, in parts of the sum; 0 leaves a task out. For BLIP, the weights of the losses ``contrast``,
            ``match`` and ``caption``, all of which each batch gives.
        region_names: For ``describe`` and ``find`` where there are region features.
        boxes: For the same where the model reads images as patches.
        mask_ratio: Share of a caption's words that ``span`` leaves out.
        augment: ``crop-flip`` shows another part of each training image in each epoch, half of the time mirrored;
            ``crop-flip-randaugment``, BLIP's, also distorts it.
        max_input_tokens: Longer texts are cut.
        max_target_tokens: Longer targets are cut.
        max_validation_examples: Validate on the first so many images and questions; all when absent.
    """

    train: PretrainingFiles
    validation: PretrainingFiles | None = None
    tasks: dict[TextTask | PairTask, NonNegative] = {"span": 1.0, "match": 1.0}
    region_names: RegionNames | None = None
    boxes: BoxFiles | None = None
    mask_ratio: float = Field(0.15, gt=0, lt=1)
    augment: Augmentation | None = None
    max_input_tokens: int = Field(20, gt=0)
    max_target_tokens: int = Field(20, gt=0)
    max_validation_examples: int | None = Field(None, gt=0)

    @property
    def learns_pairs(self) -> bool:
        """Whether the tasks are BLIP's."""
        return bool({"contrast", "caption"} & self.tasks.keys())

    @property
    def drawn_tasks(self) -> dict[str, float]:
        """The tasks that are not left out, and their weights."""
        return {task: weight for task, weight in self.tasks.items() if weight}

    @model_validator(mode="after")
    def _tasks_of_one_model(self) -> Self:
        others = self.tasks.keys() & {"span", "question", "describe", "find"}
        if self.learns_pairs and others:
            raise ValueError(
                f"data.tasks mixes BLIP's contrast and caption with {', '.join(sorted(others))} of an encoder-decoder. "
                "Give those of one model"
            )
        if not self.drawn_tasks:
            raise ValueError("data.tasks must have a task with a weight above 0")
        return self

    @model_validator(mode="after")
    def _names_of_what_is_seen(self) -> Self:
        if self.boxes is not None and self.augment is not None:
            raise ValueError("data.augment shows other parts of images than those in which data.boxes lie")
        if self.region_names is not None and self.regions is None:
            raise ValueError("data.region_names are the names of data.regions, which are missing")
        if self.boxes is not None and self.regions is not None:
            raise ValueError(
                "data.boxes are for images that are read as patches, and data.regions take their place"
            )
        return self


RecipeData = VqaData | CaptionData | TranslationData | PretrainingData

DATA_OF_TASK: dict[str, type[RecipeData]] = {
    "vqa": VqaData,
    "captions": CaptionData,
    "translation": TranslationData,
    "pretraining": PretrainingData,
}
"""The form of ``data`` for each task."""
