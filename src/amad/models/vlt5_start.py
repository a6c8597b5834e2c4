"""A VL-T5 to pre-train, made of a T5 that was pre-trained on text."""

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5ForConditionalGeneration

from amad.errors import CheckpointError
from amad.models.checkpoint import save_checkpoint
from amad.models.load import load_model, load_tokenizer
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

N_VISUAL_IDS = 100


def start_from_t5(source: str | os.PathLike[str], folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write what VL-T5's pre-training starts from: T5's weights and words, a visual embedding that knows nothing.

    The vocabulary gets ``<vis_extra_id_99>`` to ``<vis_extra_id_0>`` behind the tokenizer's last word, so that
    ``<vis_extra_id_i>`` has the number (vocabulary - 1 - i); rows that T5 has beyond its words are the first of
    these, as resizing an embedding leaves them. From
    T5-base this is the published shape: 32,200 words, regions of 2,048 features (Cho et al. 2021, arXiv:2102.02779,
    section 3).

    Args:
        source: Folder of a T5 with its tokenizer, or its name on the hub.
        folder: The folder to write; it must not exist yet.
        seed: Of what T5 has no weights for.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the source is no T5, or the folder exists.
    """
    t5, tokenizer = load_model(source, dtype=torch.float32), load_tokenizer(source)
    if type(t5) is not T5ForConditionalGeneration:
        raise CheckpointError(
            f"{source} is a {type(t5).__name__}, and VL-T5 starts from a T5ForConditionalGeneration. Give one."
        )
    add_visual_tokens(tokenizer)
    settings = {key: value for key, value in t5.config.to_dict().items() if key in VLT5Config().to_dict()}
    settings |= {"model_type": VLT5Config.model_type, "vocab_size": len(tokenizer)}
    config = VLT5Config(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VLT5ForConditionalGeneration(config)
    copy_t5(t5, model)
    return save_checkpoint(model, tokenizer, None, folder)


def add_visual_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer ``<vis_extra_id_99>`` to ``<vis_extra_id_0>``, each a word of its own.

    Raises:
        CheckpointError: if it has one of them already.
    """
    words = [f"<vis_extra_id_{number}>" for number in reversed(range(N_VISUAL_IDS))]
    if tokenizer.add_tokens(words, special_tokens=True) != N_VISUAL_IDS:
        raise CheckpointError(
            "the tokenizer has visual tokens already. Give that of a T5 that saw text alone."
        )


def copy_t5(t5: PreTrainedModel, model: VLT5ForConditionalGeneration) -> None:
    """Copy all weights that a T5 has into a VL-T5 of its sizes; of the embedding, the rows that both have.

    Raises:
        CheckpointError: if a weight has no place of its shape.
    """
    own, theirs = model.state_dict(), t5.state_dict()
    embedding = "shared.weight"
    copies = {name for name, value in own.items() if value.data_ptr() == own[embedding].data_ptr()}
    n_words = min(len(own[embedding]), len(theirs[embedding]))
    own[embedding][:n_words] = theirs[embedding][:n_words]
    for name, value in theirs.items():
        if name in copies and torch.equal(value, theirs[embedding]):
            continue
        if name in copies:
            raise CheckpointError(
                f"{name} of the T5 differs from {embedding}: it has an output head of its own, as T5 v1.1 and Flan-T5 "
                "have, and a VL-T5 has none. Give a T5 whose head is tied to its embedding, such as t5-base."
            )
        if name not in own or own[name].shape != value.shape:
            raise CheckpointError(
                f"{name} of the T5 is {list(value.shape)}, and the VL-T5 has {_shape(own.get(name))} there. Give a T5 "
                "of transformers as it was saved."
            )
        own[name].copy_(value)


def _shape(value: torch.Tensor | None) -> str:
    return "nothing" if value is None else str(list(value.shape))
