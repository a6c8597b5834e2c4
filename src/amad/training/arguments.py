"""The trainer's arguments: Hugging Face's, with defaults that suit distillation."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainingArguments, Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from amad.errors import RecipeError
from amad.recipe import nearest_key

_NOT_BY_STEPS = ("reduce_lr_on_plateau", "greedy")


@dataclass
class DistillationArguments(Seq2SeqTrainingArguments):  # type: ignore[misc]
    """``Seq2SeqTrainingArguments`` with other defaults and a few arguments of ours.

    Attributes:
        remove_unused_columns: False: columns that only the collator or the teacher reads must survive.
        predict_with_generate: True: evaluation decodes, as users of the model will, where it is an encoder-decoder that
            can generate.
        report_to: "none": runs keep their own records; name a tracker to use it as well.
        check_capture: Before the first step, compare the attention recorded at every paired site with what the
            model computed, and refuse to train on a wrong record.
        generation_min_length: Fewest decoder tokens of what is decoded while evaluating, as ``generate`` counts them.
        log_alignment: Log entropy, largest weight, coverage and collapse of the alignment with the losses.
        lr_scheduler_interval: "step", or "epoch": the learning rate changes between epochs only.
        no_decay: Parts of the names of parameters that weight decay spares; an empty list: it spares none. None: those
            that ``Trainer`` spares, biases and norms.
        drop_path_rate: Stochastic depth of BLIP's vision part, of its last layer
            (:func:`amad.models.blip_regularization.stochastic_depth`).

    ``metric_for_best_model`` may be a sum: ``CIDEr+Bleu_4``. Of losses, ``loss_task`` as well as ``loss``, the least is
    the best unless ``greater_is_better`` says otherwise.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns the model does not name."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Decode while evaluating."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Trackers to report to."})
    check_capture: bool = field(default=True, metadata={"help": "Verify recorded attention before training."})
    generation_min_length: int | None = field(
        default=None, metadata={"help": "Fewest tokens decoded in evaluation."}
    )
    log_alignment: bool = field(default=True, metadata={"help": "Log who teaches whom, and how sharply."})
    lr_scheduler_interval: str = field(
        default="step", metadata={"help": "What the learning rate changes with: step or epoch."}
    )
    no_decay: list[str] | None = field(
        default=None, metadata={"help": "Parts of the names of parameters without weight decay."}
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of BLIP's vision part."})

    def __post_init__(self) -> None:
        parts = [part.removeprefix("eval_") for part in (self.metric_for_best_model or "").split("+")]
        losses = [part for part in parts if part == "loss" or part.startswith("loss_")]
        if losses and len(losses) < len(parts):
            raise ValueError(
                f"metric_for_best_model {self.metric_for_best_model!r} adds {losses[0]}, of which less is better, to "
                "what more is better of. Give losses or scores."
            )
        if losses and self.greater_is_better is None:  # type: ignore[has-type]
            # Trainer knows names that end with "loss".
            self.greater_is_better = False
        super().__post_init__()
        if self.lr_scheduler_interval not in ("step", "epoch"):
            raise ValueError(
                f"lr_scheduler_interval is one of step, epoch, and {self.lr_scheduler_interval!r} was given."
            )
        if self.lr_scheduler_interval == "epoch" and self.warmup_steps:
            raise ValueError(
                f"lr_scheduler_interval epoch holds the learning rate through an epoch, and with warmup_steps "
                f"{self.warmup_steps} it would be zero in all of the first. Leave one of them out."
            )
        if self.lr_scheduler_interval == "epoch" and self.lr_scheduler_type in _NOT_BY_STEPS:
            raise ValueError(
                f"lr_scheduler_interval epoch needs a schedule that the number of the step decides, and "
                f"{self.lr_scheduler_type.value} is none. Give cosine, linear or polynomial, or leave the interval out."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"drop_path_rate is at least 0 and below 1, and {self.drop_path_rate} was given."
            )
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "fp16 needs an accelerator, and there is none: everything would be computed in 32 bits. Leave it out, "
                "or give bf16 with use_cpu."
            )
        names = self.no_decay
        if names is not None and not (
            isinstance(names, list) and all(isinstance(n, str) and n for n in names)
        ):
            raise ValueError(f"no_decay is a list of parts of names, and {names!r} was given.")


_NUMBERS = frozenset(
    argument.name for argument in fields(DistillationArguments) if "float" in str(argument.type)
)


_WHOLE_MODELS = (
    "Each process of a recipe holds whole models. Start several with torchrun, or use DistillationTrainer in a script "
    "of your own"
)

NOT_IN_RECIPES: dict[str, tuple[Any, str]] = {
    "dataloader_drop_last": (False, "Every example is trained and scored. Leave it out"),
    "predict_with_generate": (
        True,
        "Texts are scored as they are generated. Leave it out, or give eval_strategy no",
    ),
    "prediction_loss_only": (
        False,
        "Texts are scored as they are generated. Leave it out, or give eval_strategy no",
    ),
    "remove_unused_columns": (False, "The collator and the objective read them. Leave it out"),
    "push_to_hub": (False, "Upload the folder model/ when it is right, with hf upload"),
    "generation_config": (None, "Give generation_max_length, generation_num_beams and generation_min_length"),
    "fsdp": (None, _WHOLE_MODELS),
    "deepspeed": (None, _WHOLE_MODELS),
    "use_liger_kernel": (False, "Its loss keeps the logits to itself, which are compared. Leave it out"),
    "resume_from_checkpoint": (None, "Give the command --resume instead"),
    "eval_do_concat_batches": (True, "Texts are scored one by one. Leave it out"),
    "label_smoothing_factor": (0.0, "Give objective.task.label_smoothing instead"),
}
"""Arguments of the trainer that a recipe leaves at this value, and what to do instead."""


def make_arguments(output_dir: str, seed: int, given: dict[str, Any]) -> DistillationArguments:
    """Arguments from the ``training`` section of a recipe.

    Raises:
        RecipeError: if a key is no argument of the trainer, names what the recipe decides elsewhere, or a value
            is refused by Hugging Face's own checks.
    """
    known = [argument.name for argument in fields(DistillationArguments) if argument.init]
    decided = {"output_dir": "output", "seed": "seed", "data_seed": "seed"}
    for key in given:
        if key in decided:
            raise RecipeError(f"training.{key} is decided by {decided[key]!r} at the top of the recipe.")
        if key not in known:
            raise RecipeError(f"unknown key 'training.{key}': {nearest_key(key, known)}")
        if key in NOT_IN_RECIPES and given[key] != NOT_IN_RECIPES[key][0]:
            usual, instead = NOT_IN_RECIPES[key]
            raise RecipeError(
                f"training.{key} is {usual} in a recipe, and {given[key]!r} was given. {instead}."
            )
    given = {key: _as_meant(key, value) for key, value in given.items()}
    with refused_arguments():
        return DistillationArguments(output_dir=output_dir, seed=seed, data_seed=seed, **(_quiet() | given))


@contextlib.contextmanager
def refused_arguments() -> Iterator[None]:
    """Let what Hugging Face's libraries refuse of the ``training`` section be a refusal of the recipe.

    Raises:
        RecipeError: with what they say.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
        raise RecipeError(f"training: {_said(error)}. Correct the argument, or leave it out.") from None


def check_makeable(arguments: DistillationArguments, model: PreTrainedModel, steps: int) -> None:
    """Make trackers, optimizer and schedule once, on a parameter of no model, and forget them.

    The trainer makes them where a run has begun, and its libraries raise what they like.

    Args:
        arguments: What names them.
        model: Which some optimizers are chosen by.
        steps: Of the run.

    Raises:
        RecipeError: if one cannot be made of its arguments, or needs a library that is not installed.
    """
    parameter = nn.Parameter(torch.zeros(1))
    with _refused("report_to", arguments.report_to):
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    with _refused("optim", arguments.optim.value, "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"):
        made, values = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        # Some come with the model's own parameters.
        if not {"params", "model", "optimizer_dict"} & values.keys():
            made([{"params": [parameter], "weight_decay": arguments.weight_decay}], **values)
    with _refused("lr_scheduler_type", arguments.lr_scheduler_type.value, "lr_scheduler_kwargs"):
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([parameter], lr=arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )


@contextlib.contextmanager
def _refused(key: str, value: Any, *with_keys: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        others = f", with {', '.join(with_keys)}," if with_keys else ""
        next_step = (
            "Install what it needs, or give another"
            if isinstance(error, ImportError | RuntimeError)
            else "Correct it"
        )
        raise RecipeError(
            f"training.{key} {value!r}{others} cannot be had: {_said(error)}. {next_step}."
        ) from None


def _said(error: Exception) -> str:
    """What a library's error says; a KeyError says its key alone."""
    text = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
    return text.rstrip(".")


def _as_meant(key: str, value: Any) -> Any:
    """What YAML 1.1 reads otherwise than people write it: ``no`` as false, ``1e-3`` as text."""
    if value is False and key.endswith("_strategy"):
        return "no"
    if isinstance(value, str) and key in _NUMBERS:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _quiet() -> dict[str, Any]:
    """Pinned memory only helps where there is a device to copy to; elsewhere torch warns."""
    return {"dataloader_pin_memory": torch.accelerator.is_available(), "disable_tqdm": True}
