"""Translation of image descriptions as a data set to train and to validate on."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from amad.data.images import Pixels
from amad.data.regions import Regions, visual_inputs
from amad.data.translation_files import TranslationExample, read_multi30k
from amad.data.vqa import GIB, ImageCache
from amad.errors import DataError

__all__ = ["LANGUAGES", "TranslationDataset", "TranslationExample", "read_multi30k", "translation_prompt"]

LANGUAGES = {"cs": "Czech", "de": "German", "en": "English", "fr": "French"}


def translation_prompt(source: str, target: str) -> str:
    """The prompt of T5 and VL-T5 for two of Multi30K's languages: "translate English to German: {source}".

    Raises:
        DataError: if a language is none of Multi30K's.
    """
    for language in (source, target):
        if language not in LANGUAGES:
            raise DataError(
                f"a language of Multi30K must be one of {', '.join(LANGUAGES)} but is {language!r}. "
                "Give the prompt itself for another one."
            )
    return f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: {{source}}"


class TranslationDataset(Dataset[dict[str, Any]]):
    """Examples as items for ``Seq2SeqCollator``, in their order.

    An item has ``text`` (the prompt with the sentence), ``target`` (its translation), ``weight`` 1, ``index``,
    and either ``image`` (pixels) or ``vis_feats`` and ``boxes`` where the example has one.

    Args:
        examples: What ``read_multi30k`` gave.
        prompt: The text; ``{source}`` is replaced.
        regions: Give region features instead of pixels; see ``Regions``.
        cache_bytes: Bytes of decoded images to keep in memory.
        prepare: Makes the array of an image before it is kept; see ``ImageCache``.

    Raises:
        DataError: if there is no example, or the prompt has no place for the sentence.
    """

    def __init__(
        self,
        examples: Sequence[TranslationExample],
        prompt: str = "translate English to German: {source}",
        regions: Regions | None = None,
        cache_bytes: int = GIB,
        prepare: Callable[[Image.Image], Pixels] | None = None,
    ) -> None:
        if not examples:
            raise DataError(
                "a data set needs at least one sentence and has none. Check the files and the split."
            )
        if "{source}" not in prompt:
            raise DataError(f"the prompt must contain {{source}}, the sentence to translate: {prompt!r}.")
        self.examples = examples
        self.prompt = prompt
        self.regions = regions
        self.images = ImageCache(cache_bytes, prepare)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item.

        Raises:
            DataError: if its image or its region features cannot be read.
        """
        example = self.examples[index]
        return {
            "text": self._ask(example),
            "target": example.target,
            "weight": 1.0,
            "index": index,
        } | visual_inputs(example, self.images.__getitem__, self.regions)

    def text(self, index: int) -> str:
        """What the text encoder reads; needs no image."""
        return self._ask(self.examples[index])

    def texts(self) -> list[str]:
        """Every text and every translation, to train a tokenizer on; reads no image."""
        asked, said = [], []
        for example in self.examples:
            asked.append(self._ask(example))
            said.append(example.target)
        return asked + said

    def _ask(self, example: TranslationExample) -> str:
        return self.prompt.replace("{source}", example.source)
