"""Vision-language pre-training as a data set: captions, questions and named objects become texts with targets."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from amad.data.captions import CaptionDataset
from amad.data.pretraining_objects import GROUNDED, GroundedTask, ObjectSource
from amad.data.pretraining_text import Draws, n_masked, span_prediction
from amad.data.sampling import Epoch
from amad.data.vqa import VqaDataset
from amad.errors import DataError

PREFIXES = {
    "span": "span prediction:",
    "match": "image text match:",
    "question": "vqa:",
    "describe": "caption region:",
    "find": "visual grounding:",
}
"""What the text encoder reads first, by task, as in VL-T5."""

MATCHED, MISMATCHED = "true", "false"

# What fine-tuning on captions has the encoder read.
_CAPTION_PROMPT = "caption:"
_MOST_TRIES = 64


class PretrainingDataset(Dataset[dict[str, Any]]):
    """VL-T5's pre-training tasks (Cho et al. 2021, arXiv:2102.02779, section 4) as items for ``Seq2SeqCollator``.

        span        "span prediction: a <extra_id_0> bus"     ->  "<extra_id_0> red"
        match       "image text match: a red bus"             ->  "true", or "false" for a caption of another image
        question    "vqa: what color is the bus?"             ->  "red"
        describe    "caption region: <vis_extra_id_7>"        ->  "red bus"
        find        "visual grounding: red bus"               ->  "<vis_extra_id_7>"

    An item has ``text``, ``target``, ``weight``, ``kind`` (the number of its task in ``tasks``), ``index``, and
    what its image gives: ``image``, or ``vis_feats`` and ``boxes``.

    While training there is one item per caption. Its task is drawn by the weights; ``span`` and ``match`` are
    about the item's own caption, which is matched in half of the cases, the other tasks about any question or any
    image that has objects. All draws follow from seed, epoch and index alone: the order of reading, the number of
    workers and an interruption change nothing.

    Otherwise the items are fixed, and the same for every seed: of each image its first caption with gaps, matched
    and instead of it the first caption of another image; every question with its best answer; one object of each
    image, to describe and to find.

    Args:
        captions: One item per caption to train on, one per image to validate on.
        tasks: The tasks, and how often each is drawn, in parts of the sum.
        questions: For ``question``.
        objects: For ``describe`` and ``find``.
        mask_ratio: Share of a caption's words that ``span`` leaves out.
        seed: Of the draws.

    Raises:
        DataError: if a task to train has nothing to be about, or there is no item to validate on.
    """

    def __init__(
        self,
        captions: CaptionDataset,
        tasks: Mapping[str, float],
        questions: VqaDataset | None = None,
        objects: ObjectSource | None = None,
        mask_ratio: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.captions = captions
        self.questions = questions
        self.objects = objects
        self.training = captions.training
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.tasks = tuple(tasks)
        self._shares = list(accumulate(tasks.values()))
        if questions is not None:
            # One memory for the images of both.
            questions.images = captions.images
        self._with_objects: dict[str, list[int]] = {
            task: self._images_with(task) for task in GROUNDED if task in tasks
        }
        self._items = [] if self.training else self._fixed_items()
        self._check()
        self._epoch = Epoch()

    def __len__(self) -> int:
        return len(self.captions) if self.training else len(self._items)

    def set_epoch(self, epoch: int) -> None:
        """Draw the items of this epoch from now on."""
        self._epoch.set(epoch)
        self.captions.set_epoch(epoch)
        if self.questions is not None:
            self.questions.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item.

        Raises:
            DataError: if its image or its region features cannot be read, or no other image has another caption.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if self.training:
            draws = Draws(self.seed, int(self._epoch), index)
            task = self.tasks[bisect_right(self._shares, draws() * self._shares[-1])]
            number, matched = self._drawn(task, index, draws)
        else:
            task, number, matched = self._items[index]
            draws = Draws(number)
        if task == "question" and self.questions is not None:
            item = self.questions[number]
        else:
            text, target = self._texts_of(task, number, matched, draws)
            item = self.captions[number] | {"text": f"{PREFIXES[task]} {text}", "target": target}
            item["weight"] = 1.0
        return item | {"kind": self.tasks.index(task), "index": index}

    @property
    def occurring(self) -> tuple[str, ...]:
        """The tasks that have an item, in their order."""
        found = set(self.tasks) if self.training else {task for task, _, _ in self._items}
        return tuple(task for task in self.tasks if task in found)

    def texts(self) -> list[str]:
        """All that is said, asked or named, and every prefix, to train a tokenizer on; reads no image."""
        texts = [*PREFIXES.values(), MATCHED, MISMATCHED, _CAPTION_PROMPT, *self.captions.texts()]
        if self.questions is not None:
            texts += self.questions.texts()
        return texts if self.objects is None else texts + self.objects.phrases()

    def _drawn(self, task: str, index: int, draws: Draws) -> tuple[int, bool]:
        """What an item to train on is about: number of a caption's item or a question; whether they match."""
        if task == "question" and self.questions is not None:
            return draws.below(len(self.questions)), True
        if task in self._with_objects:
            images = self._with_objects[task]
            return images[draws.below(len(images))], True
        return index, task != "match" or draws() < 0.5

    def _fixed_items(self) -> list[tuple[str, int, bool]]:
        """Task, and what it is about, of every item to validate on."""
        captioned = [i for i in range(len(self.captions)) if self.captions.example(i).captions]
        items = []
        for task in self.tasks:
            numbers = self._with_objects.get(task, captioned)
            if task == "question":
                numbers = list(range(0 if self.questions is None else len(self.questions)))
            both = (True, False) if task == "match" else (True,)
            items += [(task, number, matched) for number in numbers for matched in both]
        return items

    def _images_with(self, task: GroundedTask) -> list[int]:
        """One item of each image that has objects to ask for."""
        if self.objects is None:
            return []
        examples = enumerate(self.captions.examples)
        return [
            self.captions.first_item(number)
            for number, example in examples
            if (example.captions or not self.training) and self.objects.has(example, task)
        ]

    def _texts_of(self, task: str, number: int, matched: bool, draws: Draws) -> tuple[str, str]:
        """What is read after the prefix, and what is to be said."""
        caption = self.captions.target(number)
        if task == "span":
            n_words = len(caption.split())
            return span_prediction(caption, draws.choose(n_words, n_masked(n_words, self.mask_ratio)))
        if task == "match":
            return (caption, MATCHED) if matched else (self._of_another_image(number, draws), MISMATCHED)
        assert self.objects is not None
        grounded: GroundedTask = "describe" if task == "describe" else "find"
        named = self.objects.named(self.captions.example(number), grounded)
        place, name = named[draws.below(len(named))]
        token = f"<vis_extra_id_{place}>"
        return (token, name) if grounded == "describe" else (name, token)

    def _of_another_image(self, number: int, draws: Draws) -> str:
        """A caption of another image, each equally likely, that nobody gave to this one."""
        own = self.captions.example(number)
        for _ in range(_MOST_TRIES):
            caption = self.captions.target(draws.below(len(self.captions)))
            if caption not in ("", *own.captions):
                return caption
        raise DataError(
            f"image {own.image_name}: {_MOST_TRIES} captions drawn from the set are all its own, so it has no "
            "mismatch. Give captions of more images, or set data.tasks.match to 0."
        )

    def _check(self) -> None:
        if "match" in self.tasks and len(self.captions.examples) < 2:
            raise DataError(
                "task 'match' needs captions of two images or more, and there is one. Give more, or set "
                "data.tasks.match to 0."
            )
        if not self.training:
            if not self._items:
                raise DataError(
                    "validation needs at least one item of a task and has none. Check data.validation."
                )
            return
        for task, source, given in (
            ("question", "questions", self.questions is not None),
            ("describe", "objects", bool(self._with_objects.get("describe"))),
            ("find", "objects", bool(self._with_objects.get("find"))),
        ):
            if task in self.tasks and not given:
                raise DataError(
                    f"task {task!r} is to be trained and there are no {source}. Give some, or set data.tasks.{task} "
                    "to 0."
                )
