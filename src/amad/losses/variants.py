"""The methods of attention distillation by name, and the losses that each has. Light to import, for recipes."""

from typing import Literal

AttentionMethod = Literal[
    "amad", "one_to_one", "mean", "nearest", "assigned", "head_mean", "learned", "relations", "squeezed"
]
AttentionVariant = Literal["kl", "mse", "projected", "token", "scores"]

VARIANTS: dict[str, tuple[str, ...]] = {
    "amad": ("kl", "mse", "projected", "token"),
    "one_to_one": ("kl", "mse", "scores"),
    "mean": ("kl", "mse"),
    "nearest": ("kl", "mse"),
    "assigned": ("kl", "mse"),
    "head_mean": ("kl",),
    "learned": ("kl", "mse"),
    "relations": ("kl",),
    "squeezed": ("kl",),
}
"""Per method its variants."""

WITHOUT_HEAD_WEIGHTS = ("head_mean", "relations", "squeezed")
"""Methods that are no sum over the teacher's heads, so that these cannot be weighed."""
