"""The trained map of student maps of the ``projected`` variant."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from amad.capture.record import AttentionRecord
from amad.errors import RecipeError, ShapeError
from amad.losses.blocks import Result, over_rows
from amad.ops.maps import MapBlock, map_block
from amad.ops.resampling import common_dtype, match_tokens

Form = Literal["full", "factored"]


class Projection(nn.Module):
    """S~ = ReLU(S W^T + b) for the maps of one student site.

    - ``full``: S is the flattened map and W is n x n with n = queries * keys (Zhao et al. 2024, equation 10).
    - ``factored``: S is one row and W is keys x keys, the same for every row. This form is ours.

    W starts as the identity and b as zero, so S~ starts as S; the paper does not say how it starts. Keys that the
    student may not attend, and rows that do not count, are zero before and after.

    Args:
        n_queries: Rows of the map.
        n_keys: Columns of the map.
        form: ``full`` or ``factored``.
        bytes_limit: The most that W may take.

    Raises:
        RecipeError: if W would take more.
    """

    def __init__(self, n_queries: int, n_keys: int, form: Form, bytes_limit: int) -> None:
        super().__init__()
        size = n_keys if form == "factored" else n_queries * n_keys
        n_bytes = 4 * size * (size + 1)
        if n_bytes > bytes_limit:
            advice = "Use projection='factored', or a" if form == "full" else "Use a"
            raise RecipeError(
                f"the {form} projection of maps of {n_queries} x {n_keys} takes {n_bytes} bytes "
                f"({n_bytes / 1e9:.2f} GB) before gradients and optimiser, more than the limit of {bytes_limit}. "
                f"{advice}nother variant, or raise projection_bytes_limit."
            )
        self.map_size: Tensor
        # Saved with the weights, so that a resumed run can make the projection before it loads them.
        self.register_buffer("map_size", torch.tensor([n_queries, n_keys]))
        self.shape = (n_queries, n_keys)
        self.form = form
        self.weight = nn.Parameter(torch.eye(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(
        self, maps: Float[Tensor, "batch student query key"], counts: Tensor
    ) -> Float[Tensor, "batch student query key"]:
        """The projected maps; ``counts`` is True where a number of the map may be other than zero.

        Raises:
            ShapeError: if the maps are of another size than W was made for.
        """
        factored = self.form == "factored"
        if tuple(maps.shape[2:]) != self.shape and not (factored and maps.shape[3] == self.shape[1]):
            raise ShapeError(
                f"maps are {maps.shape[2]} x {maps.shape[3]}, but their projection was made for "
                f"{self.shape[0]} x {self.shape[1]}. Pad texts to a fixed length, or use another variant."
            )
        rows = maps if factored else maps.flatten(2)
        projected = nn.functional.linear(rows, self.weight.to(maps.dtype), self.bias.to(maps.dtype)).relu()
        return projected.view(maps.shape) * counts


PROJECTED_ROWS = 64
"""So many rows of the maps are projected at a time in the ``factored`` form."""


def over_projected_blocks(
    student: AttentionRecord,
    teacher: AttentionRecord,
    projection: Projection,
    measure: Callable[[MapBlock], Result],
) -> list[Result]:
    """What ``measure`` says of blocks of rows of the two maps, with the student's projected.

    The ``full`` form mixes all rows, so its one block is the whole map; its weight is the square of that. The
    ``factored`` form takes a few rows at a time, and makes them again for the backward pass rather than keep them.
    """
    on_student, on_teacher = match_tokens(student, teacher)
    dtype = common_dtype(student, teacher)

    def measure_rows(rows: slice) -> Result:
        block = map_block(on_student, on_teacher, rows, dtype)
        counts = block.keep[:, None, :, None]
        visible = on_student.visible(rows)
        if visible is not None:
            counts = counts & visible
        return measure(block._replace(student=projection(block.student, counts), student_is_whole=False))

    if projection.form == "full":
        return [measure_rows(slice(0, on_student.n_queries))]
    return over_rows(on_student, PROJECTED_ROWS, measure_rows)
