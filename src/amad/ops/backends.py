"""Which of its forms an operator takes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Literal, cast, get_args

from amad.capture.record import AttentionRecord
from amad.errors import RecipeError

Backend = Literal["reference", "chunked", "triton"]

logger = logging.getLogger("amad.ops")

_forced: ContextVar[Backend | None] = ContextVar("operator_backend", default=None)
_said: set[str] = set()


@contextmanager
def operator_backend(name: str) -> Iterator[None]:
    """Within it, the operators take this form wherever they run; as ``torch.nn.attention.sdpa_kernel`` for attention.

    - ``reference``: whole maps with plain autograd; the definition, and slow.
    - ``chunked``: a few query rows at a time in PyTorch, on any device.
    - ``triton``: kernels for NVIDIA GPUs.

    Without it, ``triton`` is taken for what it supports on a GPU where it is installed, and ``chunked`` for
    everything else; the log of ``amad.ops`` says once which, and why.

    Raises:
        RecipeError: if there is no such form.
    """
    if name not in get_args(Backend):
        raise RecipeError(f"operator backend {name!r} is none of {', '.join(get_args(Backend))}.")
    token = _forced.set(cast(Backend, name))
    try:
        yield
    finally:
        _forced.reset(token)


def choose_backend(student: AttentionRecord, teacher: AttentionRecord) -> Backend:
    """The form for two records.

    Raises:
        RecipeError: if ``triton`` is forced and cannot take these records.
    """
    forced = _forced.get()
    if forced == "triton":
        reason = _without_triton(student, teacher)
        if reason is not None:
            raise RecipeError(
                f"operator backend 'triton' was forced, but {reason}. Force 'chunked', or none."
            )
    if forced is not None:
        return forced
    if student.query.device.type != "cuda":
        _say_once(
            logging.INFO, f"attention is compared in chunks of query rows on {student.query.device.type}."
        )
        return "chunked"
    reason = _without_triton(student, teacher)
    if reason is None:
        _say_once(logging.INFO, "attention is compared by Triton kernels on cuda.")
        return "triton"
    _say_once(logging.WARNING, f"attention is compared in chunks of query rows on cuda, as {reason}.")
    return "chunked"


def _without_triton(student: AttentionRecord, teacher: AttentionRecord) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'amad[triton]')"
    from amad.ops.bands import unsupported

    return unsupported(student, teacher)


def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.log(level, message)
