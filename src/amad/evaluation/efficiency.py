"""What a model costs: parameters, bytes, arithmetic, and the time of one answer."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from amad.data.collate import FOR_THE_LOSS
from amad.errors import RecipeError

# What a batch holds beside the inputs of a model that is to answer by itself.
_TARGETS = ("labels", "answer_counts", *FOR_THE_LOSS, "decoder_input_ids", "decoder_attention_mask")


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of one sample, in the order in which they were taken, warm-up left out.

    Attributes:
        seconds: One time per run.
    """

    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """The middle time."""
        return statistics.median(self.seconds)

    @property
    def p95_seconds(self) -> float:
        """The time that 95 % of the runs stay within, interpolated between the two nearest."""
        return statistics.quantiles(self.seconds, n=20, method="inclusive")[-1]

    def ratio_to(self, other: "Latency") -> float:
        """How many times as long as the other: the median over rounds of the two times of one round.

        Raises:
            RecipeError: the two were not timed in the same number of rounds.
        """
        if len(self.seconds) != len(other.seconds):
            raise RecipeError(
                f"Times are compared round by round, and there are {len(self.seconds)} "
                f"and {len(other.seconds)} rounds. Take both from one call of compare_latency."
            )
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def compare_latency(
    models: Mapping[str, PreTrainedModel],
    batch: Mapping[str, Any],
    *,
    repeats: int = 20,
    warmup: int = 3,
    new_tokens: int | None = 4,
) -> dict[str, Latency]:
    """Times of the first sample of a batch, with each model, by the names of the models.

    Every round runs each model once, and each round starts with the next one, so that a machine that slows
    down or is shared slows all of them alike. A model that can generate generates greedily or as its
    generation settings say; any other does one forward pass. Models are in evaluation mode meanwhile.

    Args:
        models: On the devices where they are to be timed.
        batch: Inputs; labels and other targets are left out.
        repeats: Rounds that count; at least 2.
        warmup: Rounds before them that do not.
        new_tokens: Each model generates exactly so many, whatever it has learned about when to stop; None: it
            stops when it wants to.

    Raises:
        RecipeError: no models, fewer than 2 rounds, or a batch with no tensor in it.
    """
    if not models or repeats < 2 or warmup < 0:
        raise RecipeError(
            "Times need a model, 2 rounds and no negative warm-up, "
            f"and there are {len(models)}, {repeats} and {warmup}. Give more."
        )
    names = list(models)
    inputs = {
        name: {key: value[:1] for key, value in inputs_of(batch, model.device).items()}
        for name, model in models.items()
    }
    modes = {name: model.training for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for model in models.values():
            model.eval()
        for number in range(-warmup, repeats):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                elapsed = _time_once(models[name], inputs[name], new_tokens)
                if number >= 0:
                    seconds[name].append(elapsed)
    finally:
        for name, model in models.items():
            model.train(modes[name])
    return {name: Latency(tuple(seconds[name])) for name in names}


def answer(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int | None) -> None:
    """Generate greedily or as the generation settings say, or do one forward pass where the model cannot generate.

    Args:
        model: In the mode in which it is.
        inputs: From :func:`inputs_of`; they stay as they are.
        new_tokens: Each text has exactly so many; None: the model stops when it wants to.
    """
    length = {} if new_tokens is None else {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    # Some models write into the words that they are given (BLIP replaces the first).
    own = {name: value if value.is_floating_point() else value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        if model.can_generate():
            model.generate(**own, do_sample=False, **length)  # type: ignore[operator]
        else:
            model(**own)


def inputs_of(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """What a model reads of a batch to answer by itself, on a device: no targets, and tensors alone.

    Raises:
        RecipeError: if there is none.
    """
    inputs = {
        name: value.to(device)
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in _TARGETS
    }
    if not inputs:
        raise RecipeError(
            f"A batch to time holds tensors, and this one holds {', '.join(batch) or 'nothing'}."
        )
    return inputs


def count_flops(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int | None) -> int:
    """Floating-point operations of :func:`answer` on these inputs, counted while it runs.

    A multiplication and the addition of its product are two. Products of matrices, convolutions and attention are
    counted, and nothing else: no norms, no softmax, no embedding. Attention counts as if every query saw every key,
    also where a mask hides some, and keys and values that are kept are not computed again.

    Args:
        model: In the mode in which it is.
        inputs: From :func:`inputs_of`.
        new_tokens: As in :func:`answer`.
    """
    # The counter knows the fused attention of CUDA and not that of the CPU; it knows the products of this one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        answer(model, inputs, new_tokens)
    return int(counter.get_total_flops())


def count_parameters(model: torch.nn.Module) -> int:
    """Trained numbers of a model; tied weights count once."""
    return sum(tensor.numel() for tensor in _distinct(dict(model.named_parameters())))


def count_checkpoint_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights that a checkpoint of the model holds, without the few kilobytes of their names."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _distinct(model.state_dict()))


def _distinct(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """One tensor per piece of memory; those without memory (on the meta device) one per name."""
    found: dict[Any, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape) if tensor.data_ptr() else name
        found.setdefault(place, tensor)
    return list(found.values())


def _time_once(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int | None) -> float:
    _finish(model.device)
    started = time.perf_counter()
    answer(model, inputs, new_tokens)
    _finish(model.device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
