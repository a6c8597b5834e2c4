"""A band of query rows, and the memory that its maps lie in."""

from typing import NamedTuple

from torch import Tensor


class Band(NamedTuple):
    """Some rows of one sample, or all rows of several.

    Attributes:
        first_sample: The first of its samples.
        n_samples: How many they are.
        first_row: The first of its query rows.
        n_rows: How many they are, of each sample.
        pitch: Columns in the workspace: up to the last key that a row may attend, and a little more.
    """

    first_sample: int
    n_samples: int
    first_row: int
    n_rows: int
    pitch: int

    @property
    def samples(self) -> slice:
        """Its samples within the batch."""
        return slice(self.first_sample, self.first_sample + self.n_samples)

    @property
    def rows(self) -> slice:
        """Its rows within the map."""
        return slice(self.first_row, self.first_row + self.n_rows)

    @property
    def size(self) -> int:
        """Numbers of one map in the workspace."""
        return self.n_rows * self.pitch


class Workspace(NamedTuple):
    """Memory for the maps of one band, flat: (sample, head, row, column) of whatever band is in it.

    Attributes:
        teacher: The teacher's maps times 2^15.
        student: The student's.
        to_logits: Gradients of the student's scores, if they are wanted.
        cap_slopes: Slopes of the student's soft cap, if it has one and gradients are wanted.
    """

    teacher: Tensor
    student: Tensor
    to_logits: Tensor | None = None
    cap_slopes: Tensor | None = None
