"""A bar for a wait that counts."""

from amad.training.callbacks import counted

__all__ = ["counted"]
