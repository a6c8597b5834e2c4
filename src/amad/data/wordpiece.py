"""BERT's words with BLIP's two further tokens: those of a checkpoint, or made of the words of a small set."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from amad.errors import CheckpointError, DataError

PAD, UNKNOWN, CLASS, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
DECODE, ENCODE = "[DEC]", "[ENC]"
"""What a text begins with that BLIP's decoder says, and one that its encoder reads with an image."""

_PIECE = "##"


def train_wordpiece(texts: Iterable[str], model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """A tokenizer that splits and writes texts as BERT's does, whose words are those of ``texts``.

    Ids: ``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4, then every word, the most frequent first,
    then the letters that they are made of, at the beginning of a word and inside it, so that other words of the same
    letters are spelt; last ``[DEC]`` and ``[ENC]``, as in BLIP. Which pieces of words a corpus has is not learned: a
    set small enough to train on from nothing has few words.

    The same texts in any order give the same tokenizer.

    Args:
        texts: Everything that must be known: questions, answers, captions, prompts.
        model_max_length: Recorded in the tokenizer as the longest input.

    Raises:
        DataError: if the texts have no word.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not counts:
        raise DataError(
            "the texts to train a tokenizer on have no word. Check that the training set is not empty."
        )
    words = sorted(counts, key=lambda word: (-counts[word], word))
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(_PIECE + letter for letter in letters)]
    ordered = [PAD, UNKNOWN, CLASS, END, MASK, *words, *pieces]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(ordered))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=_PIECE))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix=_PIECE)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {END}",
        pair=f"{CLASS} $A {END} $B {END}",
        special_tokens=[(token, vocabulary[token]) for token in (CLASS, END)],
    )
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLASS,
        sep_token=END,
        mask_token=MASK,
        model_max_length=model_max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    return add_blip_tokens(trained)  # type: ignore[return-value]


def add_blip_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer with ``[DEC]``, as the token that texts begin with, and ``[ENC]`` behind its words.

    BLIP's authors add them when they load a model (models/blip.py, ``init_tokenizer``); checkpoints in the form of
    transformers come with BERT's tokenizer, which lacks them though the model knows them by number. A tokenizer that
    has them is left as it is.

    Raises:
        CheckpointError: if it has no token that ends a text or fills a batch up, which BERT's has.
    """
    for name in ("sep_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise CheckpointError(
                f"BLIP needs a tokenizer such as BERT's, and this {type(tokenizer).__name__} has no {name}. Save "
                "the tokenizer of bert-base-uncased beside the model."
            )
    if tokenizer.bos_token != DECODE:
        tokenizer.add_special_tokens({"bos_token": DECODE})
    if ENCODE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [ENCODE]})
    return tokenizer
