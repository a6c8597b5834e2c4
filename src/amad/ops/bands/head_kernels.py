"""Kernels on all heads at once, along the flattened rows of a band: inner products, mixtures and slopes of maps.

One program takes a chunk of a sample's numbers: a few thousand of them, or one row where rows have coefficients of
their own. Tiles are (heads, numbers), heads padded with zeros to a power of two of at least 16.
"""
# ruff: noqa: ANN001, SIM108

from typing import no_type_check

import triton
import triton.language as tl

from amad.ops.bands.kernels import MAP_SCALE

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def _tile(maps, at_head, at_number, n_heads, size, inside):
    return tl.load(
        maps + at_head[:, None] * size + at_number[None, :],
        mask=(at_head < n_heads)[:, None] & inside[None, :],
        other=0.0,
    )


@triton.jit
@no_type_check
def _matrix(values, at_row, at_column, n_rows, n_columns, row, column):
    return tl.load(
        values + at_row[:, None] * row + at_column[None, :] * column,
        mask=(at_row < n_rows)[:, None] & (at_column < n_columns)[None, :],
        other=0.0,
    )


@triton.jit
@no_type_check
def gram_kernel(
    teacher, student, cross, own, norm, n_teachers, n_students, size, length, full: tl.constexpr,
    teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Inner products of the maps over each chunk of ``length`` numbers. Grid: (chunks, samples of the band).

    ``own`` holds <s_j, s_l>, or only <s_j, s_j> where it is not ``full``.
    """
    chunk = tl.program_id(0)
    sample = tl.program_id(1)
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    teacher += sample.to(tl.int64) * n_teachers * size
    student += sample.to(tl.int64) * n_students * size
    products = tl.zeros([teacher_block, student_block], tl.float32)
    norms = tl.zeros([teacher_block], tl.float32)
    if full:
        among = tl.zeros([student_block, student_block], tl.float32)
    else:
        among = tl.zeros([student_block], tl.float32)
    for start in range(0, length, block):
        ahead = start + tl.arange(0, block)
        at_number = chunk * length + ahead
        inside = (ahead < length) & (at_number < size)
        t = _tile(teacher, at_teacher, at_number, n_teachers, size, inside)
        s = _tile(student, at_student, at_number, n_students, size, inside)
        products += tl.dot(t, tl.trans(s), input_precision="ieee")
        if full:
            among += tl.dot(s, tl.trans(s), input_precision="ieee")
        else:
            wide = s.to(tl.float32)
            among += tl.sum(wide * wide, 1)
        wide_teacher = t.to(tl.float32)
        norms += tl.sum(wide_teacher * wide_teacher, 1)
    unit = 1.0 / (MAP_SCALE * MAP_SCALE)
    index = sample.to(tl.int64) * tl.num_programs(0) + chunk
    is_teacher = at_teacher < n_teachers
    is_student = at_student < n_students
    place = cross + index * n_teachers * n_students + at_teacher[:, None] * n_students + at_student[None, :]
    tl.store(place, products * unit, mask=is_teacher[:, None] & is_student[None, :])
    tl.store(norm + index * n_teachers + at_teacher, norms * unit, mask=is_teacher)
    if full:
        place = own + index * n_students * n_students + at_student[:, None] * n_students + at_student[None, :]
        tl.store(place, among * unit, mask=is_student[:, None] & is_student[None, :])
    else:
        tl.store(own + index * n_students + at_student, among * unit, mask=is_student)


@triton.jit
@no_type_check
def divergence_kernel(
    teacher, student, alignment, divergence, to_alignment, n_teachers, n_students, size, length, floor,
    per_chunk: tl.constexpr, aligning: tl.constexpr, precision: tl.constexpr,
    teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """sum t log(t / m) with m = A S over each chunk in nats, and where ``aligning`` sum (t / m) s.

    Grid: (chunks, samples of the band). The alignment is one per sample, or one ``per_chunk``.
    """
    chunk = tl.program_id(0)
    sample = tl.program_id(1)
    index = sample.to(tl.int64) * tl.num_programs(0) + chunk
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    teacher += sample.to(tl.int64) * n_teachers * size
    student += sample.to(tl.int64) * n_students * size
    matrix = sample.to(tl.int64)
    if per_chunk:
        matrix = index
    weights = _matrix(
        alignment + matrix * n_teachers * n_students,
        at_teacher,
        at_student,
        n_teachers,
        n_students,
        n_students,
        1,
    )
    value = tl.zeros([teacher_block], tl.float32)
    slopes = tl.zeros([teacher_block, student_block], tl.float32)
    for start in range(0, length, block):
        ahead = start + tl.arange(0, block)
        at_number = chunk * length + ahead
        inside = (ahead < length) & (at_number < size)
        t = _tile(teacher, at_teacher, at_number, n_teachers, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        s = _tile(student, at_student, at_number, n_students, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        mixture = tl.dot(weights, s, input_precision=precision)
        above = tl.maximum(mixture, floor)
        value += tl.sum(t * (tl.log2(tl.maximum(t, floor)) - tl.log2(above)), 1)
        if aligning:
            ratio = tl.where(mixture < floor, 0.0, t / above)
            slopes += tl.dot(ratio, tl.trans(s), input_precision=precision)
    is_teacher = at_teacher < n_teachers
    tl.store(divergence + index * n_teachers + at_teacher, value * LN_2, mask=is_teacher)
    if aligning:
        place = index * n_teachers * n_students + at_teacher[:, None] * n_students + at_student[None, :]
        tl.store(to_alignment + place, slopes, mask=is_teacher[:, None] & (at_student < n_students)[None, :])


@triton.jit
@no_type_check
def _slope(
    t, s, weights, pulls, to_cross, to_own, floor,
    mixed: tl.constexpr, crossed: tl.constexpr, full: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """dL/dS of a tile, up to a constant per row, to which the softmax is blind."""
    slope = tl.zeros_like(s)
    if mixed:
        mixture = tl.dot(weights, s, input_precision=precision)
        # One is taken off, so that nothing large cancels where the student has learnt.
        ratio = tl.where(mixture < floor, 0.0, t / tl.maximum(mixture, floor)) - 1.0
        slope -= tl.dot(pulls, ratio, input_precision=precision)
    if crossed:
        slope += tl.dot(to_cross, t, input_precision=precision)
        if full:
            slope += tl.dot(to_own, s, input_precision=precision)
        else:
            slope += to_own[:, None] * s
    return slope


@triton.jit
@no_type_check
def logit_gradient_kernel(
    teacher, student, alignment, pull, cross_slope, own_slope, to_logits, row_slope,
    n_teachers, n_students, size, pitch, floor,
    mixed: tl.constexpr, crossed: tl.constexpr, full: tl.constexpr, per_row: tl.constexpr,
    precision: tl.constexpr, teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """dL/dX = S (dL/dS - D) with D = sum_k S dL/dS of each row, times 2^15; D into ``row_slope``.

        dL/dS = - pull^T (T / m - 1) + cross_slope^T T + own_slope S,        m = alignment S

    The first term where ``mixed``, the others where ``crossed``; ``own_slope`` is a matrix where ``full``, else a
    diagonal. Coefficients are one set per sample, or one ``per_row``. Grid: (rows, samples of the band).
    """
    row = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    matrix = sample
    if per_row:
        matrix = sample * tl.num_programs(0) + row
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    teacher += sample * n_teachers * size + row * pitch
    student += sample * n_students * size + row * pitch
    to_logits += sample * n_students * size + row * pitch
    both = matrix * n_teachers * n_students
    weights = 0.0
    pulls = 0.0
    to_cross = 0.0
    to_own = 0.0
    if mixed:
        weights = _matrix(alignment + both, at_teacher, at_student, n_teachers, n_students, n_students, 1)
        pulls = _matrix(pull + both, at_student, at_teacher, n_students, n_teachers, 1, n_students)
    if crossed:
        to_cross = _matrix(cross_slope + both, at_student, at_teacher, n_students, n_teachers, 1, n_students)
        if full:
            own_slope += matrix * n_students * n_students
            to_own = _matrix(own_slope, at_student, at_student, n_students, n_students, n_students, 1)
        else:
            to_own = tl.load(
                own_slope + matrix * n_students + at_student, mask=at_student < n_students, other=0.0
            )
    total = tl.zeros([student_block], tl.float32)
    for start in range(0, pitch, block):
        at_number = start + tl.arange(0, block)
        inside = at_number < pitch
        t = _tile(teacher, at_teacher, at_number, n_teachers, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        s = _tile(student, at_student, at_number, n_students, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        slope = _slope(t, s, weights, pulls, to_cross, to_own, floor, mixed, crossed, full, precision)
        total += tl.sum(s * slope, 1)
    is_student = at_student < n_students
    n_rows = tl.num_programs(0)
    tl.store(row_slope + (sample * n_students + at_student) * n_rows + row, total, mask=is_student)
    # Once more rather than stored in between: the row is in the cache, and nothing is rounded before D is taken off.
    for start in range(0, pitch, block):
        at_number = start + tl.arange(0, block)
        inside = at_number < pitch
        t = _tile(teacher, at_teacher, at_number, n_teachers, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        s = _tile(student, at_student, at_number, n_students, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        slope = _slope(t, s, weights, pulls, to_cross, to_own, floor, mixed, crossed, full, precision)
        result = s * (slope - total[:, None]) * MAP_SCALE
        tl.store(
            to_logits + at_student[:, None] * size + at_number[None, :],
            result.to(to_logits.dtype.element_ty),
            mask=is_student[:, None] & inside[None, :],
        )
