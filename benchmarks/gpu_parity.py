"""The Triton kernels on an NVIDIA GPU: errors beside float64, time and memory beside attention itself.

    python benchmarks/gpu_parity.py [tokens ...]

One line per length, dtype and operator: relative errors of the value and of the gradients of query and key, seconds of
forward and backward, the same divided by those of attention (student forward and backward, teacher forward), and the
most memory that the operator allocated. Exits with 1 if an error is over its limit.
"""

import dataclasses
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl import aligned_kl, row_aligned_kl
from amad.ops.attention_gram import attention_gram
from amad.ops.backends import operator_backend

N_TEACHERS, N_STUDENTS, WIDTH, N_SAMPLES = 16, 12, 64, 2
MOST_VALUE_ERROR = 1e-3
MOST_GRADIENT_ERROR = {torch.float16: 3e-3, torch.bfloat16: 2e-2}

Operator = Callable[[AttentionRecord, AttentionRecord], Tensor]


def kl(student: AttentionRecord, teacher: AttentionRecord) -> Tensor:
    """With one student head for each teacher head in turn, and some of all others."""
    weights = torch.eye(N_STUDENTS, device=student.query.device)[torch.arange(N_TEACHERS) % N_STUDENTS]
    mixed = 0.5 * weights + 0.5 / N_STUDENTS
    return aligned_kl(student, teacher, mixed.expand(N_SAMPLES, -1, -1).contiguous())


OPERATORS: dict[str, Operator] = {
    "attention_gram": lambda student, teacher: attention_gram(student, teacher).cross,
    "aligned_kl": kl,
    "row_aligned_kl": row_aligned_kl,
}


def record(n_heads: int, n_tokens: int, dtype: torch.dtype, grad: bool) -> AttentionRecord:
    """A causal site with maps that are neither flat nor one key each."""
    query, key = (
        torch.randn(N_SAMPLES, n_tokens, n_heads, WIDTH, device="cuda")
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_(grad)
        for _ in range(2)
    )
    return AttentionRecord(SiteKey("decoder.self", 0), query, key, 2 * WIDTH**-0.5, causal_offset=0)


def in_double(site: AttentionRecord) -> AttentionRecord:
    """The same numbers in float64."""
    query, key = (x.detach().double().requires_grad_(x.requires_grad) for x in (site.query, site.key))
    return dataclasses.replace(site, query=query, key=key)


def run(operator: Operator, student: AttentionRecord, teacher: AttentionRecord) -> list[Tensor]:
    """Value and gradients of query and key."""
    value = operator(student, teacher)
    return [value.detach(), *torch.autograd.grad(value.sum(), (student.query, student.key))]


def attention(student: AttentionRecord, teacher: AttentionRecord) -> None:
    """What the models compute anyway."""
    out = scaled_dot_product_attention(
        student.query, student.key, student.key, is_causal=True, scale=student.scale
    )
    torch.autograd.grad(out.sum(), (student.query, student.key))
    scaled_dot_product_attention(teacher.query, teacher.key, teacher.key, is_causal=True, scale=teacher.scale)


def seconds(work: Callable[[], object]) -> float:
    """Median of ten runs after three."""
    times = []
    for _ in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return float(sorted(times[3:])[5])


def measure(name: str, student: AttentionRecord, teacher: AttentionRecord) -> bool:
    """Print the line of an operator; whether its errors are within their limits."""
    operator = OPERATORS[name]
    with operator_backend("chunked"):
        exact = run(operator, in_double(student), in_double(teacher))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with operator_backend("triton"):
        found = run(operator, student, teacher)
        memory = torch.cuda.max_memory_allocated() - before
        time = seconds(lambda: run(operator, student, teacher))
        again = run(operator, student, teacher)
    same = all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    errors = [
        float((one.double() - right).norm() / right.norm()) for one, right in zip(found, exact, strict=True)
    ]
    ratio = time / seconds(lambda: attention(student, teacher))
    dtype = student.query.dtype
    within = same and errors[0] < MOST_VALUE_ERROR and max(errors[1:]) < MOST_GRADIENT_ERROR[dtype]
    sys.stdout.write(
        f"{student.n_queries:6d}  {str(dtype).removeprefix('torch.'):9s} {name:15s} {errors[0]:8.1e} {errors[1]:8.1e} "
        f"{errors[2]:8.1e} {time:9.2e} {ratio:7.2f} {memory / 2**20:8.0f}  "
        f"{'' if within else 'TOO LARGE' if same else 'NOT THE SAME TWICE'}\n"
    )
    return within


def main() -> int:
    """Every length, dtype and operator; 1 if one is wrong."""
    if not torch.cuda.is_available():
        sys.stdout.write("This needs an NVIDIA GPU, and PyTorch sees none here.\n")
        return 2
    sys.stdout.write(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {N_SAMPLES} samples, {N_TEACHERS} -> {N_STUDENTS} "
        f"heads of width {WIDTH}, causal\ntokens  dtype     operator           value    query      key   seconds  "
        "/ SDPA      MiB\n"
    )
    good = True
    for n_tokens in [int(word) for word in sys.argv[1:]] or [512, 1024, 2048, 4096]:
        for dtype in (torch.float16, torch.bfloat16):
            torch.manual_seed(0)
            student = record(N_STUDENTS, n_tokens, dtype, grad=True)
            teacher = record(N_TEACHERS, n_tokens, dtype, grad=False)
            for name in OPERATORS:
                good = measure(name, student, teacher) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
