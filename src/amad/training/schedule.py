"""A learning rate that changes between epochs only."""

from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from amad.errors import RecipeError


def hold_within_epochs(scheduler: LRScheduler, steps_per_epoch: int) -> None:
    """Give each step of an epoch the learning rate of its first step.

    With ``cosine`` and E whole epochs, epoch e of 0 .. E - 1 has the learning rate times (1 + cos(pi e / E)) / 2, as
    BLIP's authors have it (utils.py of their code, ``cosine_lr_schedule``).

    Args:
        scheduler: Changed in place.
        steps_per_epoch: Optimiser steps of one epoch.

    Raises:
        RecipeError: if the scheduler does not compute the learning rate from the number of the step.
    """
    if not isinstance(scheduler, LambdaLR):
        raise RecipeError(
            f"training.lr_scheduler_interval epoch needs a schedule that the number of the step decides, and "
            f"{type(scheduler).__name__} is none. Give lr_scheduler_type cosine, linear or polynomial, or leave the "
            "interval out."
        )

    def held(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step - step % steps_per_epoch)

    scheduler.lr_lambdas = [held(factor) for factor in scheduler.lr_lambdas]
