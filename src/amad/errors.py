"""Every way in which amad refuses, in one tree.

A message says the rule, both values and the next step. The command line prints it without a traceback and
exits with status 2.

    AmadError
    ├── RecipeError       a recipe, an override or an argument breaks a rule
    ├── DataError         a data file or an image does
    ├── CheckpointError   a checkpoint folder does
    ├── ShapeError        two tensors that must agree do not
    ├── CaptureError      attention could not be recorded, or the record is not what the model did
    └── PairingError      a stack or a layer that was asked for is not there
"""


class AmadError(Exception):
    """The root: whatever a user can cause and mend."""


class RecipeError(AmadError):
    """A recipe, an override or an argument breaks a rule."""


class DataError(AmadError):
    """A data file or an image is missing, truncated or contradicts another."""


class CheckpointError(AmadError):
    """A checkpoint folder is missing, is no checkpoint, or holds pickled weights."""


class ShapeError(AmadError):
    """Two tensors or two models that must agree in a size do not."""


class CaptureError(AmadError):
    """Attention could not be recorded, or the record differs from what the model computed."""


class PairingError(AmadError):
    """A stack or a layer that was asked for is not there."""
