"""Items become BLIP's batches: its start tokens, its cleaning of texts, all answers of a question at once."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amad.data.collate import IGNORED_LABEL, Seq2SeqCollator
from amad.data.wordpiece import DECODE, ENCODE, add_blip_tokens

MOST_CAPTION_WORDS = 30
MOST_QUESTION_WORDS = 50

_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")


class BlipCollator(Seq2SeqCollator):
    """Makes the inputs of :mod:`amad.models.blip_seq2seq` from dataset items, with the tokens of BLIP's authors.

    - ``questions``: a text is ``[ENC]``, its cleaned words, ``[SEP]``; a target is its words, ``[SEP]``.
    - ``captions``: a text, the prompt, is ``[DEC]`` and its words; a target is its cleaned words, ``[SEP]``.

    An item is what ``Seq2SeqCollator`` takes, or has several targets, ``targets`` with their ``weights``. The batch
    then has a row of ``labels`` and of ``label_weights`` for each, and ``answer_counts``, how many each item has.

    Args:
        tokenizer: BERT's; what it lacks of BLIP's tokens is added to it.
        texts: Which of the two.
        image_transform: Makes one float tensor of a list of images.
        max_input_tokens: The longest text, with the tokens above.
        max_target_tokens: The longest target, ``[SEP]`` included.
        pad_to_max: As in ``Seq2SeqCollator``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Literal["questions", "captions"],
        image_transform: Callable[[Sequence[Any]], Tensor] | None = None,
        max_input_tokens: int = 35,
        max_target_tokens: int = 40,
        pad_to_max: bool = False,
    ) -> None:
        super().__init__(
            add_blip_tokens(tokenizer),
            image_transform,
            max_input_tokens,
            max_target_tokens,
            pad_to_max=pad_to_max,
        )
        self.texts = texts
        decode, encode = tokenizer.convert_tokens_to_ids([DECODE, ENCODE])
        self._start = encode if texts == "questions" else decode

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of these items.

        Raises:
            DataError: as ``Seq2SeqCollator``.
        """
        batch = super().__call__(items)
        if self._have(items, "targets"):
            targets = [target for item in items for target in item["targets"]]
            batch["labels"] = self.labels(targets)
            batch["label_weights"] = torch.tensor([float(one) for item in items for one in item["weights"]])
            batch["answer_counts"] = torch.tensor([len(item["targets"]) for item in items])
        return batch

    def labels(self, targets: Sequence[str]) -> Int[Tensor, "target token"]:
        """The tokens of each target, ``[SEP]`` last, then -100."""
        return self._pad(targets, self.max_target_tokens, IGNORED_LABEL, is_target=True)

    def _tokenise(self, text: str, max_tokens: int, is_target: bool) -> tuple[int, ...]:
        if self.texts == "questions" and not is_target:
            text = clean_question(text)
        if self.texts == "captions" and is_target:
            text = clean_caption(text)
        before = () if is_target else (self._start,)
        ends = is_target or self.texts == "questions"
        after = (int(self.tokenizer.sep_token_id),) if ends else ()
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*before, *words[: max_tokens - len(before) - len(after)], *after)


def clean_caption(caption: str, max_words: int = MOST_CAPTION_WORDS) -> str:
    """A caption as BLIP learns it: lower case, ``. ! " ( ) * # : ; ~`` as spaces, so many words at most.

    data/utils.py of BLIP's code, ``pre_caption``, with the number of words that its recipe gives.
    """
    plain = _SPACES.sub(" ", _MARKS.sub(" ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(plain.split(" ")[:max_words])


def clean_question(question: str, max_words: int = MOST_QUESTION_WORDS) -> str:
    """A question as BLIP reads it: lower case, without ``. ! " ( ) * # : ; ~``, so many words at most.

    data/utils.py of BLIP's code, ``pre_question``.
    """
    plain = _MARKS.sub("", question.lower()).rstrip(" ")
    return " ".join(plain.split(" ")[:max_words])
