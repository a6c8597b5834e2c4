"""What keeps a BLIP from learning by heart while it is fine-tuned: dropout of its text, stochastic depth of its vision.

The BLIP of transformers has the first only as its configuration says, and published checkpoints say zero; it has no
stochastic depth. Neither changes a parameter, or what a model computes once it is trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.blip.modeling_blip import BlipEncoder
from transformers.models.blip.modeling_blip_text import BlipTextModel

from amad.errors import RecipeError


def set_text_dropout(model: PreTrainedModel, probability: float) -> None:
    """Let the text part of a BLIP drop states and attention with a probability while it trains.

    Args:
        model: Changed in place: its dropout modules and its text configuration.
        probability: In [0, 1); BLIP's authors take 0.1 (configs/med_config.json of their code).

    Raises:
        RecipeError: if the model has no BLIP text part.
    """
    texts = [module for module in model.modules() if isinstance(module, BlipTextModel)]
    if not texts:
        raise RecipeError(
            f"model.dropout is that of BLIP's text part, and the model is a {type(model).__name__}. Leave it out: "
            "another model drops what its config.json says."
        )
    configs = [model.config.text_config, *(text.config for text in texts)]
    for config in configs:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = probability
    for text in texts:
        for module in text.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability


@contextmanager
def stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Leave out branches of the layers of a BLIP's vision part, sample by sample, while the model trains.

    Layer l of L, counted from 0, leaves out its attention, and independently its feed-forward part, for a sample with
    probability p = rate * l / (L - 1) (0 where there is one layer), and multiplies what it keeps by 1 / (1 - p)
    (Huang et al. 2016, arXiv:1603.09382, section 3; with the scaling at training time of models/vit.py of BLIP's code).
    In evaluation mode nothing is left out.

    Args:
        model: An ordinary model again afterwards; while this lasts, its layers have forward hooks.
        rate: Of the last layer, in [0, 1); 0: nothing happens.

    Raises:
        RecipeError: if the model has no BLIP vision part.
    """
    hooks = []
    try:
        for stack in check_stochastic_depth(model, rate):
            rates = torch.linspace(0, rate, len(stack.layers)).tolist()
            for layer, probability in zip(stack.layers, rates, strict=True):
                for branch in (layer.self_attn, layer.mlp):
                    hooks.append(branch.register_forward_hook(partial(_leave_out, probability)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_stochastic_depth(model: nn.Module, rate: float) -> list[BlipEncoder]:
    """The stacks of layers that :func:`stochastic_depth` would thin out; none at rate 0.

    Raises:
        RecipeError: if the model has no BLIP vision part.
    """
    if not rate:
        return []
    stacks = [module for module in model.modules() if isinstance(module, BlipEncoder)]
    if not stacks:
        raise RecipeError(
            f"training.drop_path_rate is that of BLIP's vision part, and the model is a {type(model).__name__}. Leave "
            "it out, or set it in the model's own configuration where that has it."
        )
    return stacks


def _leave_out(probability: float, branch: nn.Module, args: Any, output: Any) -> Any:
    """The output of a branch, zero for some samples; an attention module gives its maps as well."""
    if not branch.training:
        return output
    states: Tensor = output[0] if isinstance(output, tuple) else output
    kept = functional.dropout(states.new_ones(len(states), *[1] * (states.ndim - 1)), probability)
    return (states * kept, *output[1:]) if isinstance(output, tuple) else states * kept
