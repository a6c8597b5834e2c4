"""The maps of a student and of a teacher, a few query rows at a time, in memory that is used again and again."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.resampling import TeacherMap, common_dtype, match_tokens
from amad.ops.rows import Gradients, Rows
from amad.ops.workspace import ALIGNMENT, Workspace, rounded

MOST_ROWS = 64
"""A tile has at most so many query rows: more do not make the products faster."""

TILE_BYTES = 12 << 20
"""The maps of one tile, teacher and student together, take at most so much, unless LEAST_ROWS rows take more."""

LEAST_ROWS = 16
"""With fewer rows, packing the operands of the products costs more than the products."""

GROUP_BYTES = 4 << 20
"""The maps of the samples that share a tile take at most so much: what each call costs is shared by them."""

LONG_ROW = 256
"""Rows of so many keys or more have their products summed row by row, and no other sample in their tile."""


class Tile(NamedTuple):
    """Some query rows of all heads of the maps of some samples; rows that do not count are zero.

    Attributes:
        samples: Of the batch.
        rows: Query rows.
        keys: Key columns; outside of them all these rows are zero.
        teacher: The teacher's maps.
        student: The student's maps.
    """

    samples: slice
    rows: slice
    keys: slice
    teacher: Float[Tensor, "sample teacher row key"]
    student: Float[Tensor, "sample student row key"]


@runtime_checkable
class Contribution(Protocol):
    """One part of the gradient of a loss to the student's maps."""

    def add(
        self, tile: Tile, scratch: Tensor, gradient: Float[Tensor, "sample student row key"], first: bool
    ) -> None:
        """Add the gradient to the student's rows of this tile, or set it if this is the ``first``.

        ``scratch`` has room for as many numbers as the teacher's rows of the tile.
        """


class Sweep:
    """Goes over the tiles of the maps of two sites, as often as it is asked to, until it is closed.

    Args:
        student: The student's record.
        teacher: The teacher's.
        is_whole: Make rows that sum to one also where a sink takes a part of them.
        keep_bytes: Tiles are kept for the next time until they take so much.

    Raises:
        ShapeError: if the batches differ, or the tokens differ and cannot be matched.
    """

    def __init__(
        self, student: AttentionRecord, teacher: AttentionRecord, is_whole: bool, keep_bytes: int = 0
    ) -> None:
        self.dtype = common_dtype(student, teacher)
        self.student: AttentionRecord
        self.teacher: TeacherMap
        self.student, self.teacher = match_tokens(student, teacher)
        self.is_whole = is_whole
        self.device = student.query.device
        self.keep = pair_keep(self.student, self.teacher)
        self.n_rows: Float[Tensor, " batch"] = self.keep.sum(1).clamp(min=1).to(self.dtype)
        # Known at once on a CPU; asking a GPU would wait for it.
        self._all_kept = not self.keep.is_cuda and bool(self.keep.all())
        n_heads = student.n_heads + self.teacher.n_heads
        row_bytes = n_heads * student.n_keys * self.dtype.itemsize
        most_rows = max(min(MOST_ROWS, TILE_BYTES // max(row_bytes, 1)), LEAST_ROWS)
        self.n_tile_rows = min(most_rows, student.n_queries)
        together = GROUP_BYTES // max(row_bytes * self.n_tile_rows, 1) if student.n_keys < LONG_ROW else 1
        self.n_tile_samples = max(min(together, student.n_batch), 1)
        self._n_tile_numbers = self.n_tile_samples * self.n_tile_rows * student.n_keys
        n_tiles = -(-student.n_batch // self.n_tile_samples) * -(-student.n_queries // self.n_tile_rows)
        tile_bytes = rounded(n_heads * self._n_tile_numbers * self.dtype.itemsize)
        self._free_bytes = keep_bytes + n_tiles * ALIGNMENT if keep_bytes else 0
        self._kept: dict[tuple[int, int], Tile] = {}
        self._source: tuple[int, Rows, Rows | ResampledRows] | None = None
        # Beside the tile at hand, room for its heads once more and for those of the student.
        most_bytes = min(self._free_bytes, n_tiles * tile_bytes) + 3 * tile_bytes + 4 * ALIGNMENT
        self._workspace = Workspace(most_bytes, self.device)

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hand the memory on; no tile may be used after that."""
        self._kept.clear()
        self._workspace.close()

    def zeros(self, *shape: int) -> Tensor:
        """In the dtype of the computation."""
        return torch.zeros(self.student.n_batch, *shape, dtype=self.dtype, device=self.device)

    def room(self, name: object, n_heads: int) -> Tensor:
        """Memory for so many heads of one tile; at most three times those of a tile in all."""
        return self._workspace.room(name, n_heads * self._n_tile_numbers, self.dtype)

    def tiles(self) -> Iterator[Tile]:
        """All tiles in which a row counts, in order. A tile is valid until the next one is asked for."""
        n_batch, n_queries = self.student.n_batch, self.student.n_queries
        for sample in range(0, n_batch, self.n_tile_samples):
            samples = slice(sample, min(sample + self.n_tile_samples, n_batch))
            for first in range(0, n_queries, self.n_tile_rows):
                rows = slice(first, min(first + self.n_tile_rows, n_queries))
                tile = self._kept.get((sample, first))
                if tile is None:
                    keep = self.keep[samples, rows]
                    if not self._all_kept and not keep.is_cuda and not bool(keep.any()):
                        continue
                    tile = self._make(samples, rows, keep)
                yield tile

    def back(
        self, tile: Tile, gradient: Float[Tensor, "sample student row key"], gradients: Gradients
    ) -> None:
        """Take the gradient of the student's rows of a tile back to the student's tensors; overwrites it."""
        student, _ = self._sources(tile.samples)
        student.back(tile.rows, tile.keys, tile.student, gradient, gradients.of_samples(tile.samples).sums)

    def _sources(self, samples: slice) -> tuple[Rows, "Rows | ResampledRows"]:
        """What makes the rows of some samples; kept for as long as they are the same."""
        if self._source is None or self._source[0] != samples.start:
            student = Rows(self.student, samples, self.dtype, self.is_whole)
            if isinstance(self.teacher, AttentionRecord):
                teacher: Rows | ResampledRows = Rows(self.teacher, samples, self.dtype, self.is_whole)
            else:
                teacher = ResampledRows(self.teacher.samples(samples), self.dtype)
            self._source = (samples.start, student, teacher)
        return self._source[1:]

    def _make(self, samples: slice, rows: slice, keep: Bool[Tensor, "sample row"]) -> Tile:
        student, teacher = self._sources(samples)
        first, last = zip(student.key_range(rows), teacher.key_range(rows), strict=True)
        keys = slice(min(first), max(last))
        n_samples, shape = samples.stop - samples.start, (rows.stop - rows.start, keys.stop - keys.start)
        n_numbers = n_samples * shape[0] * shape[1]
        n_teachers, n_heads = self.teacher.n_heads, self.teacher.n_heads + self.student.n_heads
        n_bytes = rounded(n_heads * n_numbers * self.dtype.itemsize)
        kept = n_bytes <= self._free_bytes
        if kept:
            self._free_bytes -= n_bytes
            memory = self._workspace.room((samples.start, rows.start), n_heads * n_numbers, self.dtype)
        else:
            memory = self.room("tile", n_heads)
        split, end = n_teachers * n_numbers, n_heads * n_numbers
        tile = Tile(
            samples,
            rows,
            keys,
            memory[:split].view(n_samples, n_teachers, *shape),
            memory[split:end].view(n_samples, n_heads - n_teachers, *shape),
        )
        teacher.make(rows, keys, tile.teacher)
        student.make(rows, keys, tile.student)
        if not self._all_kept:
            for maps in (tile.teacher, tile.student):
                maps.masked_fill_(~keep[:, None, :, None], 0.0)
        if kept:
            self._kept[samples.start, rows.start] = tile
        return tile


class ResampledRows:
    """Rows of a teacher's map on the student's tokens; see :class:`amad.ops.rows.Rows`."""

    def __init__(self, source: TeacherMap, dtype: torch.dtype) -> None:
        self.source = source
        self.dtype = dtype

    def key_range(self, rows: slice) -> tuple[int, int]:
        """All keys."""
        return 0, self.source.n_keys

    def make(self, rows: slice, keys: slice, out: Float[Tensor, "sample head row key"]) -> None:
        """The rows, which sum to one."""
        out.copy_(self.source.rows(rows, self.dtype)[..., keys])


def gradient_sweep(sweep: Sweep, contributions: Sequence[Contribution], gradients: Gradients) -> None:
    """Take the gradient of a loss, in parts, from the student's maps to the tensors that they follow from."""
    gradient = sweep.room("gradient", sweep.student.n_heads)
    scratch = sweep.room("scratch", sweep.teacher.n_heads)
    for tile in sweep.tiles():
        numbers = gradient[: tile.student.numel()].view(tile.student.shape)
        for index, contribution in enumerate(contributions):
            contribution.add(tile, scratch, numbers, index == 0)
        sweep.back(tile, numbers, gradients)


def pair_keep(student: AttentionRecord, teacher: TeacherMap) -> Bool[Tensor, "batch query"]:
    """True for rows that count in both models."""
    return torch.cat([student.keep(rows) & teacher.keep(rows) for rows in student.row_slices(MOST_ROWS)], 1)
