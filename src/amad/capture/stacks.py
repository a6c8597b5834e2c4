"""What the stacks of a model are called: a rule from module paths to names such as ``decoder.cross``.

A path is cut at its first number: ``decoder.block.3.layer.1.EncDecAttention`` lies in the list
``decoder.block``, at index 3, under the leaf ``layer.1.EncDecAttention``. All sites of one list belong to one
part of the model; the leaf and the class say whether a site attends to its own tokens or to those of another
part.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

_CROSS = re.compile(r"cross|enc_?dec|encoder_decoder|encoder_attn|enc_attn|multihead_attn$", re.IGNORECASE)
_POOL = re.compile(r"(^|_)(head|pool|pooler|pooling|probe)($|_)", re.IGNORECASE)
_QFORMER = re.compile(r"q_?former", re.IGNORECASE)
_RESAMPLER = re.compile(r"resampler|perceiver|abstractor|connector", re.IGNORECASE)
_VISION = re.compile(r"vision|visual|image|pixel|(^|_)vit($|_)", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech", re.IGNORECASE)
_DECODER = re.compile(r"(^|_)decoder$", re.IGNORECASE)
_ENCODER = re.compile(r"(^|_)encoder$", re.IGNORECASE)
_TEXT = re.compile(r"(^|_)text(_|$)", re.IGNORECASE)
_LANGUAGE = re.compile(r"language|(^|_)(llm|lm)($|_)", re.IGNORECASE)


class Place(NamedTuple):
    """Where an attention module sits: its path without wrappers, and the modules from the root down to it."""

    path: str
    ancestry: tuple[nn.Module, ...]

    @property
    def module(self) -> nn.Module:
        """The attention module itself."""
        return self.ancestry[-1]

    @property
    def container(self) -> tuple[str, ...]:
        """Path of the module list that the site lies in; of its parent if it lies in none."""
        names = self.path.split(".")
        for position, name in enumerate(names):
            if name.isdigit():
                return tuple(names[:position])
        return tuple(names[:-1])

    @property
    def layer(self) -> int | None:
        """Index in the module list; None outside one."""
        rest = self.path.split(".")[len(self.container) :]
        return int(rest[0]) if rest and rest[0].isdigit() else None

    @property
    def leaf(self) -> str:
        """What follows the index, other numbers left out."""
        names = self.path.split(".")[len(self.container) :]
        return ".".join(name for name in names if not name.isdigit())


def name_stacks(places: list[Place]) -> list[str]:
    """The stack of every place, in the same order. Two module lists never share one.

    Parts are ``vision``, ``audio``, ``text``, ``encoder`` (the encoder of an encoder-decoder, or one stream
    of images and text), ``decoder`` (whatever is causal or generates), ``qformer`` and ``resampler``. Where
    two lists of a model would have the same name, each is told apart by the first component of its path that
    the others lack, as in ``vision_decoder.self``; a module outside of a list, such as a pooling head, is
    always told apart so.
    """
    containers: dict[tuple[str, ...], list[Place]] = defaultdict(list)
    for place in places:
        containers[place.container].append(place)
    parts = {container: _part(members) for container, members in containers.items()}
    stacks: dict[tuple[str, ...], str] = {}
    for part in dict.fromkeys(parts.values()):
        stacks |= _tell_apart(part, {c: containers[c] for c in parts if parts[c] == part})
    leaves = {container: _leaf_names(members) for container, members in containers.items()}
    return [stacks[p.container] + leaves[p.container].get(p.path, "") + "." + _kind(p) for p in places]


def _part(members: list[Place]) -> str:
    place = members[0]
    names = place.container
    owners = [module for module in reversed(place.ancestry) if isinstance(module, PreTrainedModel)]
    modalities = _modalities(owners[0]) if owners else frozenset({"text"})

    def named(pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(name) for name in names)

    if named(_QFORMER) or _QFORMER.search(type(place.module).__name__):
        return "qformer"
    if named(_RESAMPLER):
        return "resampler"
    if named(_VISION) or modalities <= {"image", "video"}:
        return "vision"
    if named(_AUDIO):
        return "audio"
    if named(_DECODER) or any(getattr(member.module, "is_causal", None) is True for member in members):
        return "decoder"
    two_sided = any(getattr(owner.config, "is_encoder_decoder", False) for owner in owners)
    if named(_ENCODER) and two_sided:
        return "encoder"
    if modalities <= {"audio"}:
        return "audio"
    if named(_TEXT):
        return "text"
    if _generates(place, owners) or (named(_LANGUAGE) and any(owner.can_generate() for owner in owners)):
        return "decoder"
    return "encoder" if {"image", "text"} <= modalities else "text"


def _modalities(owner: PreTrainedModel) -> frozenset[str]:
    declared = getattr(type(owner), "input_modalities", ("text",))
    return frozenset((declared,) if isinstance(declared, str) else declared)


def _generates(place: Place, owners: list[PreTrainedModel]) -> bool:
    """For modules that do not say themselves whether they are causal."""
    if hasattr(place.module, "is_causal"):
        return False
    return any(getattr(owner.config, "is_decoder", False) or owner.can_generate() for owner in owners)


def _kind(place: Place) -> str:
    below = place.ancestry[-1 - place.path.count(".") + len(place.container) :]
    words = [
        place.leaf,
        *(type(module).__name__ for module in below if not isinstance(module, nn.ModuleList)),
    ]
    if (
        any(_CROSS.search(word) for word in words)
        or getattr(place.module, "is_cross_attention", False) is True
    ):
        return "cross"
    # A pooling head asks with a learned query, whatever its class.
    pools = place.layer is None and any(_POOL.search(name) for name in place.path.split("."))
    return "cross" if pools else "self"


def _tell_apart(part: str, containers: dict[tuple[str, ...], list[Place]]) -> dict[tuple[str, ...], str]:
    """Names for the module lists that share a part."""
    lists = [c for c, members in containers.items() if members[0].layer is not None]
    kinds = {c: {_kind(member) for member in members} for c, members in containers.items()}
    clash = {c for c in lists for other in lists if c != other and kinds[c] & kinds[other]}
    alone = len(containers) == 1
    names: dict[tuple[str, ...], str] = {}
    for container in containers:
        if alone or (container in lists and container not in clash):
            names[container] = part
            continue
        others = {name for other in containers if other != container for name in other}
        own = [name for name in container if name not in others]
        suffix = own[0] if own else "_".join(container)
        names[container] = f"{part}_{suffix}"
        if names[container] in {name for c, name in names.items() if c != container}:
            names[container] = "_".join((part, *container))
    return names


def _leaf_names(members: list[Place]) -> dict[str, str]:
    """A suffix for each site of a list whose layers hold several sites of one kind."""
    seen: dict[tuple[int | None, str], set[str]] = defaultdict(set)
    for member in members:
        seen[member.layer, _kind(member)].add(member.leaf)
    crowded = {kind for (_, kind), leaves in seen.items() if len(leaves) > 1}
    return {m.path: "_" + m.leaf.replace(".", "_") for m in members if _kind(m) in crowded}
