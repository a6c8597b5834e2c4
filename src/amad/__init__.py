"""Attention Map Alignment Distillation for any Hugging Face transformer.

The names below are imported on first use, so that ``import amad`` stays light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

_HOME = {
    "AttentionAlignment": "amad.losses.amad",
    "AttentionRecord": "amad.capture.record",
    "DistillationArguments": "amad.training.arguments",
    "DistillationTrainer": "amad.training.trainer",
    "HiddenStates": "amad.losses.hidden",
    "LogitsDistillation": "amad.losses.logits",
    "Objective": "amad.losses.objective",
    "Pairing": "amad.training.pairing",
    "Recorder": "amad.capture.recorder",
    "TaskLoss": "amad.losses.task",
    "VLT5Config": "amad.models.vlt5",
    "VLT5ForConditionalGeneration": "amad.models.vlt5",
    "apply_method": "amad.methods",
    "attention_term": "amad.losses.methods",
    "build_student": "amad.models.student",
    "find_sites": "amad.capture.sites",
    "student_config": "amad.models.student",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'amad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
