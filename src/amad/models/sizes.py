"""The sizes of a student, as numbers or as shares of its teacher's."""

import copy
import difflib
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import BlipConfig, PreTrainedConfig, T5Config

from amad.errors import RecipeError
from amad.models.parts import Part, find_parts, nested
from amad.models.vlt5_config import VLT5Config

Size = int | float | str | Fraction
"""A number (8), or a share of the teacher's number (0.5 or "1/2")."""

BLIP_INITIALIZER_RANGE = 0.02
"""Standard deviation of all weights of BLIP's vision part at the start (models/vit.py of its code)."""


def student_config(
    teacher_config: PreTrainedConfig,
    *,
    heads: Size | Mapping[str, Size] | None = None,
    layers: Size | Mapping[str, Size] | None = None,
    width: Size | Mapping[str, Size] | None = None,
    **changes: Any,
) -> PreTrainedConfig:
    """The teacher's configuration with other sizes; the teacher's own is left as it is.

    Each size is a whole number, or a share of the teacher's in (0, 1] (a float or text such as "1/2"), for
    all parts or per part: ``encoder``, ``decoder``, ``vision``, ``text``. Parts that are not named keep their
    size. Feed-forward layers scale with the width. A head is as wide as width over heads, also where the
    configuration keeps that number apart (``d_kv`` of T5, ``head_dim``); key heads scale with heads.

    Args:
        teacher_config: Of the teacher.
        heads: Query heads of every layer.
        layers: Layers of every stack.
        width: Of the hidden states.
        changes: Further attributes of the configuration by name, which win over all that was computed; a
            mapping for a nested configuration.

    Returns:
        A configuration that leaves the choice of attention to transformers.

    Raises:
        RecipeError: a share that gives no whole number, heads that do not divide the width, a part or an
            attribute that is not there, or two parts that must share a size and do not.
    """
    config = copy.deepcopy(teacher_config)
    parts = find_parts(config)
    if not parts:
        raise RecipeError(
            f"The sizes of {type(config).__name__} are not known by name. "
            "Write the student's configuration by hand and use its checkpoint."
        )
    changes = _by_own_names(config, changes)
    wanted = {
        "heads": _per_part("heads", heads, parts),
        "layers": _per_part("layers", layers, parts),
        "width": _per_part("width", width, parts),
    }
    computed: dict[tuple[tuple[str, ...], str], tuple[int, str]] = {}
    for part in parts:
        for attribute, value in _sizes(part, teacher_config, wanted, changes).items():
            other, name = computed.setdefault((part.path, attribute), (value, part.name))
            if other != value:
                raise RecipeError(
                    f"{type(part.home(config)).__name__} has one {attribute} for {name} and {part.name}, "
                    f"and {other} != {value}. Give both the same."
                )
    for (path, attribute), (value, _) in computed.items():
        home = config
        for step in path:
            home = getattr(home, step)
        setattr(home, attribute, value)
    for part in parts:
        _pick_layer_lists(part, teacher_config, config)
    _widen_cross_attention(parts, config)
    _start_blip_images(config)
    _apply(config, changes)
    for part in parts:
        _check_heads(part, config)
    _check_depths(teacher_config, config)
    config._attn_implementation = None
    config._name_or_path = ""
    return config


def source_layer(layer: int, n_student: int, n_teacher: int) -> int:
    """The teacher layer that a student layer is copied from: evenly spaced, ending at the last."""
    return max(math.floor((layer + 1) * n_teacher / n_student + 0.5) - 1, 0)


def _per_part(what: str, value: Size | Mapping[str, Size] | None, parts: list[Part]) -> dict[str, Size]:
    names = [part.name for part in parts]
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            raise RecipeError(
                f"There is no part {name!r} to give {what} to; there is {', '.join(names)}. Name those."
            )
    return dict(value)


def _sizes(
    part: Part,
    teacher_config: PreTrainedConfig,
    wanted: Mapping[str, Mapping[str, Size]],
    changes: Mapping[str, Any],
) -> dict[str, int]:
    """The values of the part's attributes, by name, except those that ``changes`` gives."""
    given = _within(changes, part.path)

    def chosen(what: str, attribute: str) -> tuple[int, int]:
        """Teacher's, student's."""
        theirs = part.size(teacher_config, attribute)
        if attribute in given:
            return theirs, _number(given[attribute], attribute)
        value = wanted[what].get(part.name)
        return theirs, theirs if value is None else _sized(value, theirs, f"{what} of {part.name}")

    _, layers = chosen("layers", part.layers)
    heads_before, heads = chosen("heads", part.heads)
    width_before, width = chosen("width", part.width)
    sizes = {part.layers: layers, part.heads: heads, part.width: width}
    if part.feed_forward is not None:
        before = part.size(teacher_config, part.feed_forward)
        sizes[part.feed_forward] = _scaled(
            before, width_before, width, part.feed_forward, "width", part.name, given
        )
    if part.key_heads is not None:
        before = part.size(teacher_config, part.key_heads)
        sizes[part.key_heads] = _scaled(
            before, heads_before, heads, part.key_heads, "heads", part.name, given
        )
    resized = (heads, width) != (heads_before, width_before)
    if part.head_width is not None and part.head_width not in given and resized:
        if width % heads:
            raise _indivisible(part, heads, width)
        sizes[part.head_width] = width // heads
    return sizes


def _sized(value: Size, teacher: int, what: str) -> int:
    """A whole number, or a share of the teacher's, as a number."""
    if isinstance(value, str):
        try:
            share = Fraction(value.replace(" ", ""))
        except (ValueError, ZeroDivisionError):
            raise RecipeError(
                f"{what}: {value!r} is neither a number nor a share such as '1/2'. Give one."
            ) from None
        if share.denominator == 1 and not re.search(r"[./]", value):
            return _sized(int(share), teacher, what)
    elif isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise RecipeError(
                f"{what} must be at least 1, and {value} was asked for (the teacher has {teacher})."
            )
        return value
    elif isinstance(value, float | Fraction) and math.isfinite(value):
        share = Fraction(value).limit_denominator(1000)
    else:
        raise RecipeError(f"{what}: {value!r} is neither a number nor a share such as 0.5. Give one.")
    if not 0 < share <= 1:
        raise RecipeError(
            f"{what}: a share of the teacher's lies above 0 and up to 1, and {value} was asked for. "
            f"Give a share, or a whole number (the teacher has {teacher})."
        )
    result = share * teacher
    if result.denominator != 1:
        raise RecipeError(
            f"{what}: {value} of the teacher's {teacher} is {float(result):g}, which is no whole number. "
            "Give another share, or a whole number."
        )
    return int(result)


def _scaled(
    value: int, before: int, after: int, attribute: str, by: str, name: str, given: Mapping[str, Any]
) -> int:
    scaled = Fraction(value * after, before)
    if scaled.denominator != 1 and attribute not in given:
        raise RecipeError(
            f"{attribute} of {name} scales with {by}, and {value} * {after} / {before} is {float(scaled):g}, "
            f"which is no whole number. Give {attribute} itself."
        )
    return int(scaled)


def _within(changes: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for step in path:
        inner = changes.get(step)
        changes = inner if isinstance(inner, Mapping) else {}
    return changes


def _by_own_names(config: PreTrainedConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes under the configuration's own names, not under aliases (``hidden_size`` of T5)."""
    inner = nested(config)
    return {
        config.attribute_map.get(name, name): _by_own_names(inner[name], value)
        if isinstance(value, Mapping) and name in inner
        else value
        for name, value in changes.items()
    }


def _number(value: Any, attribute: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{attribute} must be a whole number of at least 1, and {value!r} was given.")
    return value


def _check_depths(teacher_config: PreTrainedConfig, config: PreTrainedConfig) -> None:
    if not isinstance(config, T5Config):
        return
    if isinstance(config, VLT5Config):
        # Its decoder's key/value cache counts the decoder's layers.
        return
    depths = config.num_layers, config.num_decoder_layers
    if depths[1] > depths[0] and teacher_config.num_decoder_layers <= teacher_config.num_layers:
        raise RecipeError(
            f"The T5 of transformers cannot generate with more decoder layers than encoder layers, "
            f"and {depths[1]} > {depths[0]}. Give the encoder at least as many layers."
        )


def _apply(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if not hasattr(config, name):
            known = [*vars(config), *config.attribute_map]
            near = difflib.get_close_matches(name, [key for key in known if not key.startswith("_")], 1)
            hint = f" Did you mean {near[0]!r}?" if near else " Check the spelling."
            raise RecipeError(f"{type(config).__name__} has no attribute {name!r}.{hint}")
        if isinstance(value, Mapping) and name in nested(config):
            _apply(getattr(config, name), value)
            continue
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"{type(config).__name__} refuses {name}={value!r}: {reason} Correct it."
            ) from error


def _pick_layer_lists(part: Part, teacher_config: PreTrainedConfig, config: PreTrainedConfig) -> None:
    """Shorten lists with one entry per layer (``layer_types``) to the layers that are kept."""
    n_teacher, n_student = part.size(teacher_config, part.layers), part.size(config, part.layers)
    if n_teacher == n_student:
        return
    home = part.home(config)
    for name, value in list(vars(home).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == n_teacher:
            setattr(home, name, [value[source_layer(i, n_student, n_teacher)] for i in range(n_student)])


def _widen_cross_attention(parts: list[Part], config: PreTrainedConfig) -> None:
    """BLIP's text part keeps the width of the image states that it attends to."""
    vision = next((part for part in parts if part.name == "vision"), None)
    for part in parts:
        home = part.home(config)
        if vision is not None and part is not vision and hasattr(home, "encoder_hidden_size"):
            home.encoder_hidden_size = vision.size(config, vision.width)


def _start_blip_images(config: PreTrainedConfig) -> None:
    """BLIP's vision part starts with weights like its authors', where transformers' default starts it at 1e-10."""
    if (
        isinstance(config, BlipConfig)
        and config.vision_config.initializer_range < BLIP_INITIALIZER_RANGE / 10
    ):
        config.vision_config.initializer_range = BLIP_INITIALIZER_RANGE


def _check_heads(part: Part, config: PreTrainedConfig) -> None:
    heads, width = part.size(config, part.heads), part.size(config, part.width)
    if part.head_width is None and width % heads:
        raise _indivisible(part, heads, width)
    if part.key_heads is not None and heads % part.size(config, part.key_heads):
        raise RecipeError(
            f"Heads of {part.name} come in equal groups, one per key head, and "
            f"{heads} is no multiple of {part.size(config, part.key_heads)}. Change one of them."
        )


def _indivisible(part: Part, heads: int, width: int) -> RecipeError:
    remedy = f", or give {part.head_width}" if part.head_width else ""
    return RecipeError(
        f"The width of {part.name} is shared out among its heads, and {width} is no multiple of {heads}. "
        f"Change one of them{remedy}."
    )
