"""What an attention operator costs beside whole maps, beside their compiled form and beside attention itself."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import AmadError, RecipeError
from amad.evaluation.bench_maps import exact_loss, naive_loss, relative_error
from amad.evaluation.bench_measuring import (
    Progress,
    check_fits,
    check_machine,
    clock_for,
    in_own_process,
    memory_ratio,
    peak_extra_bytes,
    peaks_of,
    ratio,
    silent,
    surroundings,
    take_turns,
    use_threads,
)
from amad.evaluation.efficiency import Latency
from amad.losses.amad import AttentionAlignment
from amad.losses.objective import Captured, Targets

OPS = ("mse", "kl", "token")
CONTENDERS = ("ours", "naive", "compile", "sdpa")

TOLERANCES = {"float32": (1e-5, 1e-5), "bfloat16": (1e-5, 1e-2), "float16": (1e-5, 2e-3)}
"""By dtype of query and key: how far value and gradients may be from float64, relative to their norm.

The value is computed in float32 whatever the dtype; gradients come back in it, and rounding alone is 2e-3 in bfloat16.
"""

LOSS_SCALE = 2.0**16
"""What the gate multiplies losses with, as training in float16 does: small gradients would be zero otherwise."""

MAP_BYTES = {"naive": 32, "compile": 15}
"""Bytes per number of the two maps that a contender holds at its worst moment, roughly."""

_PAIR = SitePair(SiteKey("encoder.self", 0), SiteKey("encoder.self", 0))
_SMALL = 16


@dataclass(frozen=True)
class OpsCase:
    """One operator at one shape on one machine.

    Attributes:
        op: ``mse``, ``kl`` or ``token``: the variant of :class:`amad.losses.amad.AttentionAlignment`.
        batch: Samples.
        teacher_heads: Heads of the teacher.
        student_heads: Heads of the student.
        width: Numbers per head in a query or a key, of both.
        queries: Rows of a map.
        keys: Columns of a map.
        threads: Threads of torch.
        dtype: Of query, key and value: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.

    Raises:
        RecipeError: if one of them is out of its range.
    """

    op: str = "kl"
    batch: int = 1
    teacher_heads: int = 12
    student_heads: int = 12
    width: int = 64
    queries: int = 512
    keys: int = 512
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise RecipeError(f"op {self.op!r} is none of {', '.join(OPS)}.")
        if self.dtype not in TOLERANCES:
            raise RecipeError(f"dtype {self.dtype!r} is none of {', '.join(TOLERANCES)}.")
        for name in ("batch", "teacher_heads", "student_heads", "width", "queries", "keys"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name.replace('_', '-')} = {getattr(self, name)}: give 1 or more.")
        check_machine(self.device, self.threads)


class Inputs(NamedTuple):
    """Random queries, keys and values of both models; those of the student want a gradient."""

    student_query: Tensor
    student_key: Tensor
    student_value: Tensor
    teacher_query: Tensor
    teacher_key: Tensor
    teacher_value: Tensor

    @property
    def compared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query and key of the student, then of the teacher."""
        return self.student_query, self.student_key, self.teacher_query, self.teacher_key


class Errors(NamedTuple):
    """How far an operator is from float64: the value's relative error and the larger one of the two gradients."""

    value: float
    gradient: float


def bench_ops(case: OpsCase, repeats: int = 11, on_progress: Progress = silent) -> dict[str, Any]:
    """Time and memory of the contenders at one shape, after the operator was found right.

    - ``ours``: the attention term of the objective, forward and backward, from records of query and key;
    - ``naive``: the same loss from maps in float32 with autograd (:func:`amad.evaluation.bench_maps.naive_loss`);
    - ``compile``: ``torch.compile`` of that;
    - ``sdpa``: torch's attention on the same heads: the student's forward and backward, the teacher's forward.

    A ratio is the median over rounds of the ratio within a round. ``floors`` is the ratio ours/sdpa if both did
    nothing but the products of matrices that they need, at one rate; see :func:`floor`. Peaks are each taken in a
    process of its own. A contender that is not measured is None, and ``missing`` says why.

    Returns:
        One document of numbers and text, as ``amad bench ops --json`` prints it.

    Raises:
        RecipeError: fewer rounds than one, or an operator that :func:`check_correct` refuses.
    """
    if repeats < 1:
        raise RecipeError(f"repeats = {repeats}: a time needs at least one round. Give 1 or more.")
    measured = in_own_process(measure_times, case, repeats, on_progress=on_progress)
    missing: dict[str, str] = measured["missing"]
    times = {name: Latency(seconds) for name, seconds in measured["seconds"].items()}
    peaks = peaks_of(measure_peak, case, times, missing, on_progress)
    return {
        "case": asdict(case),
        "clock": clock_for(case.device, case.threads),
        "repeats": repeats,
        "median_seconds": {
            name: times[name].median_seconds if name in times else None for name in CONTENDERS
        },
        "peak_extra_bytes": {name: peaks.get(name) for name in CONTENDERS},
        "ratios": {
            "ours/sdpa": ratio(times.get("ours"), times.get("sdpa")),
            "naive/ours": ratio(times.get("naive"), times.get("ours")),
            "compile/ours": ratio(times.get("compile"), times.get("ours")),
            "naive/ours memory": memory_ratio(peaks.get("naive"), peaks.get("ours")),
        },
        "floors": {"ours/sdpa": floor(case)},
        "errors": measured["errors"],
        "missing": missing,
        "seconds": {name: list(latency.seconds) for name, latency in times.items()},
        **surroundings(case.device),
    }


def floor(case: OpsCase) -> float:
    """Multiplications that the operator needs at least, relative to those of SDPA(student and teacher).

    Per sample and cell of a map, with Ht and Hs heads of width d, in units of one multiplication and one addition:

        SDPA     7 d Hs + 2 d Ht                      2 products forward and 5 backward; 2 of the teacher
        mse      2 QK + 2 Hs (Ht + Hs) + 2 d Hs       QK = d (Ht + Hs): maps made twice, inner products twice
        kl       3 QK + 6 Ht Hs + 2 d Hs              maps made three times; inner products, mixture and theirs
        token      QK + 5 Ht Hs + 2 d Hs              rows are complete, so that maps are made once

    The last summand of each is the gradient of query and key. Exponentials and memory traffic are left out, so that
    no program reaches the floor.
    """
    teacher, student, width = case.teacher_heads, case.student_heads, case.width
    scores = width * (teacher + student)
    needed = {
        "mse": 2 * scores + 2 * student * (teacher + student),
        "kl": 3 * scores + 6 * teacher * student,
        "token": scores + 5 * teacher * student,
    }[case.op]
    return (needed + 2 * width * student) / (7 * width * student + 2 * width * teacher)


def make_inputs(case: OpsCase) -> Inputs:
    """Normal numbers, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def make(heads: int, length: int) -> Tensor:
        numbers = torch.randn(case.batch, heads, length, case.width, generator=generator)
        return numbers.to(case.device, getattr(torch, case.dtype))

    lengths = (case.queries, case.keys, case.keys)
    student = [make(case.student_heads, length).requires_grad_() for length in lengths]
    return Inputs(*student, *(make(case.teacher_heads, length) for length in lengths))


def ours_loss(op: str, inputs: Inputs) -> Tensor:
    """The attention term of an objective on records of these queries and keys, divided by the samples."""
    term = AttentionAlignment([_PAIR], variant=op)  # type: ignore[arg-type]
    query, key, teacher_query, teacher_key = inputs.compared
    scale = query.shape[-1] ** -0.5
    student = AttentionRecord(_PAIR.student, query, key, scale)
    teacher = AttentionRecord(_PAIR.teacher, teacher_query, teacher_key, scale)
    labels = torch.zeros(len(query), 1, dtype=torch.long, device=query.device)
    captured = Captured(records={_PAIR.student: student}), Captured(records={_PAIR.teacher: teacher})
    total: Tensor = term(*captured, Targets(labels)).total
    return total / len(query)


def check_correct(case: OpsCase) -> Errors:
    """Compare our value and gradients at this shape with float64.

    Raises:
        RecipeError: if they differ by more than :data:`TOLERANCES`.
    """
    inputs = make_inputs(case)
    loss = ours_loss(case.op, inputs)
    found = torch.autograd.grad(loss * LOSS_SCALE, (inputs.student_query, inputs.student_key))
    value, *gradients = exact_loss(case.op, *inputs.compared)
    errors = Errors(
        relative_error(loss, value),
        max(relative_error(mine / LOSS_SCALE, its) for mine, its in zip(found, gradients, strict=True)),
    )
    allowed = Errors(*TOLERANCES[case.dtype])
    for name, error, most in zip(Errors._fields, errors, allowed, strict=True):
        if not error <= most:
            raise RecipeError(
                f"operator {case.op!r} is wrong at this shape: its {name} is off by {error:.1e} of float64's, and "
                f"{most:.0e} is allowed in {case.dtype}. What is wrong is not timed; please report it."
            )
    return errors


def measure_times(case: OpsCase, repeats: int, on_progress: Progress = silent) -> dict[str, Any]:
    """``errors`` of the gate, ``seconds`` of each contender in each round, and of the others why they are ``missing``.

    Raises:
        RecipeError: as :func:`bench_ops`.
    """
    use_threads(case.threads)
    on_progress("comparing with float64", 0, 1)
    errors = check_correct(case)
    inputs = make_inputs(case)
    chosen, missing = {}, {}
    for number, name in enumerate(CONTENDERS):
        on_progress("preparing", number, len(CONTENDERS))
        try:
            cells = case.batch * case.queries * case.keys * (case.teacher_heads + case.student_heads)
            check_fits(MAP_BYTES.get(name, 0) * cells, case.device)
            chosen[name] = _prepared(case, name, inputs)
        except AmadError as error:
            missing[name] = str(error)
    rounds = take_turns(chosen, repeats, clock_for(case.device, case.threads), case.device, on_progress)
    seconds = {name: latency.seconds for name, latency in rounds.items()}
    return {"errors": errors._asdict(), "seconds": seconds, "missing": missing}


def measure_peak(case: OpsCase, name: str, on_progress: Progress = silent) -> int:
    """Peak extra bytes of one contender; call it in a process of its own.

    A run at a tiny shape first takes what libraries take once. The compiled loss is compiled at the shape itself.
    """
    use_threads(case.threads)
    small = replace(case, batch=1, queries=min(case.queries, _SMALL), keys=min(case.keys, _SMALL))
    if name != "compile":
        contender(small, name, make_inputs(small))()
    return peak_extra_bytes(_prepared(case, name, make_inputs(case)), case.device)


def contender(case: OpsCase, name: str, inputs: Inputs) -> Callable[[], object]:
    """One forward and backward of a contender on these inputs."""
    wanted = inputs.student_query, inputs.student_key
    if name == "ours":
        return lambda: torch.autograd.grad(ours_loss(case.op, inputs), wanted)
    if name == "sdpa":
        whole = (*wanted, inputs.student_value)
        gradient = torch.ones_like(inputs.student_query)

        def attention() -> object:
            scaled_dot_product_attention(*inputs[3:])
            return torch.autograd.grad(scaled_dot_product_attention(*whole), whole, gradient)

        return attention
    loss = torch.compile(naive_loss, dynamic=False) if name == "compile" else naive_loss
    return lambda: torch.autograd.grad(loss(case.op, *inputs.compared), wanted)


def _prepared(case: OpsCase, name: str, inputs: Inputs) -> Callable[[], object]:
    """The contender, compiled if it is to be."""
    work = contender(case, name, inputs)
    if name == "compile":
        try:
            work()
        except Exception as error:
            raise RecipeError(f"torch.compile failed: {_first_line(error)}") from error
    return work


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
