"""Texts as the arguments of ``generate`` ask for them, whatever a checkpoint brings along."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import GenerationConfig

_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


@contextmanager
def plain_decoding(model: nn.Module) -> Iterator[None]:
    """Inside the block, of a ``generation_config`` the special tokens alone count.

    Its other settings, such as ``max_new_tokens`` or ``no_repeat_ngram_size``, would act beside the lengths and beams
    that are asked for, or in their place. They are back afterwards.
    """
    found = [
        (module, module.generation_config)
        for module in model.modules()
        if isinstance(getattr(module, "generation_config", None), GenerationConfig)
    ]
    for module, own in found:
        module.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _TOKENS})
    try:
        yield
    finally:
        for module, own in found:
            module.generation_config = own
