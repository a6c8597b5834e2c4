"""Kernels on all heads at once, along the flattened rows of a band: inner products, mixtures and slopes of maps.

A sample's numbers are one line, or one line per row where something belongs to each row. One program takes a chunk of
``length`` numbers of a line, and nothing is added across chunks here. Grid: (chunks of all lines, samples of the band).
Tiles are (heads, numbers), heads padded with zeros to a power of two of at least 16.
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
def _place(line_length, length):
    """Of this program: its line, the number of lines, where its chunk starts in the line, and the sample."""
    per_line = tl.cdiv(line_length, length)
    line = tl.program_id(0) // per_line
    start = (tl.program_id(0) % per_line) * length
    return line, tl.num_programs(0) // per_line, start, tl.program_id(1).to(tl.int64)


@triton.jit
@no_type_check
def gram_kernel(
    teacher, student, cross, own, norm, n_teachers, n_students, size, line_length, length, full: tl.constexpr,
    teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Inner products of the maps over each chunk. ``own`` holds <s_j, s_l>, or only <s_j, s_j> where not ``full``."""
    line, _, first, sample = _place(line_length, length)
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    teacher += sample * n_teachers * size + line * line_length
    student += sample * n_students * size + line * line_length
    products = tl.zeros([teacher_block, student_block], tl.float32)
    norms = tl.zeros([teacher_block], tl.float32)
    if full:
        among = tl.zeros([student_block, student_block], tl.float32)
    else:
        among = tl.zeros([student_block], tl.float32)
    last = min(first + length, line_length)
    for start in range(first, last, block):
        at_number = start + tl.arange(0, block)
        inside = at_number < last
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
    index = sample * tl.num_programs(0) + tl.program_id(0)
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
    teacher, student, alignment, divergence, to_alignment, n_teachers, n_students, size, line_length, length, floor,
    aligning: tl.constexpr, precision: tl.constexpr,
    teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """sum t log(t / m) with m = A S over each chunk in nats, and where ``aligning`` sum (t / m) s.

    There is one alignment A for each line.
    """
    line, n_lines, first, sample = _place(line_length, length)
    index = sample * tl.num_programs(0) + tl.program_id(0)
    matrix = sample * n_lines + line
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    teacher += sample * n_teachers * size + line * line_length
    student += sample * n_students * size + line * line_length
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
    last = min(first + length, line_length)
    for start in range(first, last, block):
        at_number = start + tl.arange(0, block)
        inside = at_number < last
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
    n_teachers, n_students, size, line_length, length, floor,
    closing: tl.constexpr, mixed: tl.constexpr, crossed: tl.constexpr, full: tl.constexpr, per_row: tl.constexpr,
    precision: tl.constexpr, teacher_block: tl.constexpr, student_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """dL/dX = S (dL/dS - D) with D = sum_k S dL/dS of each row, times 2^15. Lines are rows.

        dL/dS = - pull^T (T / m - 1) + cross_slope^T T + own_slope S,        m = alignment S

    The first term where ``mixed``, the others where ``crossed``; ``own_slope`` is a matrix where ``full``, else a
    diagonal. Coefficients are one set per sample, or one ``per_row``.

    To be launched twice: first for the part of D that each chunk has, (sample, chunk, student), then, ``closing``, with
    D itself, (sample, row, student). dL/dS is made twice rather than stored in between, so nothing is rounded before D
    is taken off.
    """
    line, n_lines, first, sample = _place(line_length, length)
    row = sample * n_lines + line
    matrix = sample
    if per_row:
        matrix = row
    at_teacher = tl.arange(0, teacher_block)
    at_student = tl.arange(0, student_block)
    is_student = at_student < n_students
    teacher += sample * n_teachers * size + line * line_length
    student += sample * n_students * size + line * line_length
    to_logits += sample * n_students * size + line * line_length
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
            to_own = tl.load(own_slope + matrix * n_students + at_student, mask=is_student, other=0.0)
    total = tl.zeros([student_block], tl.float32)
    if closing:
        total = tl.load(row_slope + row * n_students + at_student, mask=is_student, other=0.0)
    last = min(first + length, line_length)
    for start in range(first, last, block):
        at_number = start + tl.arange(0, block)
        inside = at_number < last
        t = _tile(teacher, at_teacher, at_number, n_teachers, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        s = _tile(student, at_student, at_number, n_students, size, inside).to(tl.float32) * (1.0 / MAP_SCALE)
        slope = _slope(t, s, weights, pulls, to_cross, to_own, floor, mixed, crossed, full, precision)
        if closing:
            result = s * (slope - total[:, None]) * MAP_SCALE
            tl.store(
                to_logits + at_student[:, None] * size + at_number[None, :],
                result.to(to_logits.dtype.element_ty),
                mask=is_student[:, None] & inside[None, :],
            )
        else:
            total += tl.sum(s * slope, 1)
    if not closing:
        index = sample * tl.num_programs(0) + tl.program_id(0)
        tl.store(row_slope + index * n_students + at_student, total, mask=is_student)
