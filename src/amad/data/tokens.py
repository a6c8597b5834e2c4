"""A word-level tokenizer for small sets, with the special tokens where T5 and VL-T5 have them."""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from amad.errors import DataError

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

# A word keeps apostrophes, full stops and commas inside it ("o'clock", "3.5", "1,000"), so that decoding,
# which joins with spaces, gives the word back; every other mark is a token.
_WORD = r"\w+(?:['.,]\w+)*|[^\w\s]"
_SPECIAL = re.compile(r"<(?:pad|unk|(?:vis_)?extra_id_\d+)>|</s>")


def train_tokenizer(
    texts: Iterable[str],
    n_extra_ids: int = 100,
    n_visual_ids: int = 100,
    max_words: int | None = None,
    min_count: int = 1,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """A tokenizer of the words in ``texts``, lower-cased, most frequent first.

    Ids: ``<pad>`` 0 (also what the decoder starts with), ``</s>`` 1, ``<unk>`` 2, then the words, then
    ``<extra_id_i>`` and ``<vis_extra_id_i>``, each block counted down as in VL-T5: with V tokens in all,
    ``<vis_extra_id_i>`` is V - 1 - i and ``<extra_id_i>`` is V - 1 - n_visual_ids - i.

    ``</s>`` is appended to every text; decoding with ``skip_special_tokens=True`` gives words joined by
    spaces. The same texts in any order give the same tokenizer.

    Args:
        texts: Everything that must be known: prompts, questions, answers, captions.
        n_extra_ids: How many ``<extra_id_i>``.
        n_visual_ids: How many ``<vis_extra_id_i>``.
        max_words: Keep only so many words, the most frequent; all when absent.
        min_count: Leave out words that occur less often.
        model_max_length: Recorded in the tokenizer as the longest input.

    Raises:
        DataError: if no word is left.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts:
        plain = _SPECIAL.sub(" ", normalizer.normalize_str(text))
        counts.update(word for word, _ in splitter.pre_tokenize_str(plain))
    words = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= min_count
    ]
    words = words[:max_words]
    if not words:
        raise DataError(
            f"no word occurs {min_count} times or more in the texts to train a tokenizer on, which have "
            f"{len(counts)} distinct words. Check that the training set is not empty, or lower min_count."
        )
    extra = [f"<extra_id_{i}>" for i in reversed(range(n_extra_ids))]
    visual = [f"<vis_extra_id_{i}>" for i in reversed(range(n_visual_ids))]
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *words, *extra, *visual])}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[*reversed(extra), *reversed(visual)],
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
