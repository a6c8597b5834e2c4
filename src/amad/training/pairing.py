"""Which teacher layer teaches which student layer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from amad.axes import SiteKey, SitePair
from amad.errors import PairingError

Rule = Literal["uniform", "last", "first", "important", "important-encoder"] | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Pairing:
    """The pairs of sites that the attention loss compares, in the order of stacks and student layers.

    Rules, for student layer l of Ls and teacher layers 0..Lt-1:

    - ``uniform``: teacher layer round((l + 1) Lt / Ls) - 1, evenly spaced and ending at the last;
    - ``last``: teacher layer Lt - Ls + l;
    - ``first``: teacher layer l;
    - ``important``: the Ls teacher layers that matter most to the teacher's task, in order of depth; ours, beyond the
      paper (see :mod:`amad.losses.importance`);
    - ``important-encoder``: ``important`` where a model reads, ``uniform`` in the stacks of a decoder, whose last
      layers a student needs whatever they are worth (docs/study);
    - explicit (student layer, teacher layer) pairs.

    Where only some layers of a stack are given, rules count these from 0; explicit pairs name layers.
    """

    pairs: tuple[SitePair, ...]

    @classmethod
    def make(
        cls,
        student: Iterable[SiteKey],
        teacher: Iterable[SiteKey],
        rule: Rule | Mapping[str, Rule] = "uniform",
        weights: Mapping[str, float] | None = None,
        importance: Callable[[str], Mapping[SiteKey, float]] | None = None,
    ) -> "Pairing":
        """Pair the sites of two models.

        Args:
            student: The student's sites.
            teacher: The teacher's sites.
            rule: One rule for every stack, or one per stack; stacks without a rule of their own are uniform.
            weights: The stacks to pair and the weight of each; every stack that both models have, at weight 1,
                when None.
            importance: Measures what each teacher layer of a stack matters; called only for stacks whose rule needs it.

        Raises:
            PairingError: if no stack is in both models, a stack that is asked for is missing in one of them, or
                a rule needs a layer that is not there.
        """
        student_layers, teacher_layers = _layers(student), _layers(teacher)
        if weights is None:
            weights = dict.fromkeys((stack for stack in student_layers if stack in teacher_layers), 1.0)
            if not weights:
                raise PairingError(
                    f"no stack is in both models: the student has {_names(student_layers)}, the teacher has "
                    f"{_names(teacher_layers)}. Choose a teacher of the student's kind."
                )
        rules: Mapping[str, Rule] = rule if isinstance(rule, Mapping) else dict.fromkeys(weights, rule)
        for stack in [*weights, *rules]:
            for who, layers in (("student", student_layers), ("teacher", teacher_layers)):
                if stack not in layers:
                    raise PairingError(
                        f"stack {stack!r} is not in the {who}, which has {_names(layers)}. "
                        f"Take it out of objective.attention.stacks, objective.hidden.stacks or pairing."
                    )
        pairs = []
        for stack, weight in weights.items():
            chosen = rules.get(stack, "uniform")
            for student_layer, teacher_layer in _apply(
                stack, chosen, sorted(student_layers[stack]), sorted(teacher_layers[stack]), importance
            ):
                pairs.append(SitePair(SiteKey(stack, student_layer), SiteKey(stack, teacher_layer), weight))
        return cls(tuple(pairs))

    def __iter__(self) -> Iterator[SitePair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def student_keys(self) -> list[SiteKey]:
        """Student sites that learn, each once."""
        return list(dict.fromkeys(pair.student for pair in self.pairs))

    @property
    def teacher_keys(self) -> list[SiteKey]:
        """Teacher sites that teach, each once."""
        return list(dict.fromkeys(pair.teacher for pair in self.pairs))


def _layers(sites: Iterable[SiteKey]) -> dict[str, list[int]]:
    layers: dict[str, list[int]] = {}
    for key in sites:
        layers.setdefault(key.stack, []).append(key.layer)
    return layers


def _names(layers: Mapping[str, object]) -> str:
    return ", ".join(layers) or "none"


def _apply(
    stack: str,
    rule: Rule,
    student: list[int],
    teacher: list[int],
    importance: Callable[[str], Mapping[SiteKey, float]] | None,
) -> list[tuple[int, int]]:
    n_student, n_teacher = len(student), len(teacher)
    if rule == "important-encoder":
        rule = "uniform" if "decoder" in stack.partition(".")[0] else "important"
    if rule == "uniform":
        chosen = [max(math.floor((n + 1) * n_teacher / n_student + 0.5) - 1, 0) for n in range(n_student)]
        return [(layer, teacher[position]) for layer, position in zip(student, chosen, strict=True)]
    if rule in ("last", "first", "important"):
        if n_student > n_teacher:
            raise PairingError(
                f"pairing {rule!r} of {stack} needs at least as many teacher layers as student layers: "
                f"{n_teacher} < {n_student}. Use 'uniform' or explicit pairs."
            )
        if rule == "important":
            if importance is None:
                raise PairingError(f"pairing 'important' of {stack} needs the importance of layers. Give it.")
            worth = importance(stack)
            best = sorted(teacher, key=lambda layer: worth[SiteKey(stack, layer)], reverse=True)[:n_student]
            return list(zip(student, sorted(best), strict=True))
        offset = n_teacher - n_student if rule == "last" else 0
        return list(zip(student, teacher[offset : offset + n_student], strict=True))
    if isinstance(rule, str):
        raise PairingError(
            f"pairing rule {rule!r} of {stack} is none of 'uniform', 'last', 'first', 'important', "
            "'important-encoder'."
        )
    pairs = [(int(one), int(other)) for one, other in rule]
    if not pairs:
        raise PairingError(f"pairing of {stack} lists no pair. Give one, or leave the stack out.")
    for pair in pairs:
        for who, layer, layers in zip(("student", "teacher"), pair, (student, teacher), strict=True):
            if layer not in layers:
                raise PairingError(
                    f"pairing of {stack} names {who} layer {layer}, but the {who} has {_layer_names(layers)}."
                )
    return pairs


def _layer_names(layers: list[int]) -> str:
    if layers == list(range(len(layers))):
        return f"layers 0 to {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"
