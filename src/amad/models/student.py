"""A student from its teacher: the same architecture with fewer heads, fewer layers and a smaller width."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import BlipForQuestionAnswering, PreTrainedConfig, PreTrainedModel

from amad.errors import RecipeError, ShapeError
from amad.models.blip import dispatch_attention
from amad.models.blip_seq2seq import as_seq2seq, is_seq2seq
from amad.models.parts import find_parts
from amad.models.sizes import Size, source_layer, student_config

__all__ = ["Size", "build_student", "check_compatible", "check_one_width", "student_config"]


# Weights that only the first layer of a stack has; they stay with whichever layer comes first.
_FIRST_LAYER_ONLY = ("relative_attention_bias",)


def build_student(
    teacher: PreTrainedModel,
    config: PreTrainedConfig,
    *,
    init: Literal["random", "teacher"] = "random",
    seed: int = 0,
) -> PreTrainedModel:
    """A student of the teacher's class, in float32 on the CPU, in evaluation mode.

    It is an ordinary model: it saves, loads and generates as the teacher does, whose generation settings it
    gets. The same configuration, seed and teacher always give the same weights; the global random state is
    left alone.

    Args:
        teacher: Gives the class and, with ``init="teacher"``, the weights.
        config: From :func:`student_config`.
        init: ``random``: as the class initialises itself. ``teacher``: student layer l of Ls is a copy of
            teacher layer round((l + 1) Lt / Ls) - 1, halves rounded up, and all else is copied; T5's relative
            position bias, which only its first layer has, stays in the first layer.
        seed: Of the random weights.

    Raises:
        RecipeError: another ``init``, a configuration of another type, ``init="teacher"`` with other widths
            or heads, or sizes that the class cannot have.
        ShapeError: a weight that does not fit the place that it should be copied to.
    """
    if init not in ("random", "teacher"):
        raise RecipeError(
            f"A student starts from one of random, teacher, and {init!r} was asked for. Name one."
        )
    if not isinstance(config, type(teacher.config)):
        raise RecipeError(
            f"Teacher and student are of one type, and the teacher's configuration is a "
            f"{type(teacher.config).__name__}, the student's a {type(config).__name__}. Use student_config."
        )
    if isinstance(teacher, BlipForQuestionAnswering):
        check_one_width(config)
    if init == "teacher":
        _check_same_sizes(teacher.config, config)
    student = _initialised(type(teacher), config, seed)
    if init == "teacher":
        _copy_layers(teacher, student)
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return (as_seq2seq if is_seq2seq(teacher) else dispatch_attention)(student).eval()


def check_compatible(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """See that a student can learn from a teacher: their vocabularies are of one size.

    Raises:
        ShapeError: they are not.
    """
    sizes = [_vocabulary(model.config) for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"Student and teacher vocabularies differ: {sizes[0]} != {sizes[1]}. "
            "Pick a student that shares the teacher's tokenizer, or build it with student_config."
        )


def check_one_width(config: PreTrainedConfig) -> None:
    """See that a BLIP for questions can be built.

    Raises:
        RecipeError: if the widths of text and vision differ.
    """
    widths = config.text_config.hidden_size, config.vision_config.hidden_size
    if widths[0] != widths[1]:
        raise RecipeError(
            f"BlipForQuestionAnswering has one width for text and vision, and {widths[0]} != {widths[1]}: "
            "its answer decoder attends to questions with projections made for images. Give both the same."
        )


def _initialised(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = model_class._from_config(copy.deepcopy(config), dtype=torch.float32)
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"{model_class.__name__} cannot have the sizes of this configuration: {error} Change them."
            ) from error
    return model


def _check_same_sizes(teacher_config: PreTrainedConfig, config: PreTrainedConfig) -> None:
    for part in find_parts(config):
        for attribute in (part.width, part.heads, part.key_heads, part.head_width, part.feed_forward):
            if attribute is None:
                continue
            ours, theirs = part.size(config, attribute), part.size(teacher_config, attribute)
            if ours != theirs:
                raise RecipeError(
                    f"init='teacher' copies whole layers, which needs the teacher's sizes, and {attribute} "
                    f"of {part.name} differs: {ours} != {theirs}. Use init='random', or keep all but layers."
                )


def _copy_layers(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    theirs, ours = teacher.state_dict(), student.state_dict()
    n_theirs, n_ours = _list_lengths(theirs), _list_lengths(ours)
    copied = {}
    for name, value in ours.items():
        source = _source_name(name, n_ours, n_theirs)
        if source not in theirs and any(word in name for word in _FIRST_LAYER_ONLY):
            source = name
        if source not in theirs or theirs[source].shape != value.shape:
            found = list(theirs[source].shape) if source in theirs else "nothing of that name"
            raise ShapeError(
                f"{name} of the student is {list(value.shape)}, and {source} of the teacher, which it would "
                f"be copied from, is {found}. Use init='random', or keep all layers of this stack."
            )
        copied[name] = theirs[source]
    student.load_state_dict(copied)


def _list_lengths(names: Mapping[str, Any]) -> dict[str, int]:
    """How many entries each list of modules has, by its name with ``*`` for outer indices."""
    lengths: dict[str, int] = {}
    for name in names:
        steps = name.split(".")
        for position, step in enumerate(steps):
            if step.isdigit():
                outer = ".".join("*" if s.isdigit() else s for s in steps[:position])
                lengths[outer] = max(lengths.get(outer, 0), int(step) + 1)
    return lengths


def _source_name(name: str, n_ours: Mapping[str, int], n_theirs: Mapping[str, int]) -> str:
    steps = name.split(".")
    source = list(steps)
    for position, step in enumerate(steps):
        if step.isdigit():
            outer = ".".join("*" if s.isdigit() else s for s in steps[:position])
            source[position] = str(source_layer(int(step), n_ours[outer], n_theirs.get(outer, n_ours[outer])))
    return ".".join(source)


def _vocabulary(config: PreTrainedConfig) -> int | None:
    return getattr(config.get_text_config(decoder=True), "vocab_size", None)
