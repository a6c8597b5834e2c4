"""Back-end ``projections``: hooks on the projections of the modules in :mod:`amad.capture.families`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amad.capture.backend import Calls, Evidence, attend, recomputing
from amad.capture.families import Family, family_of
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site
from amad.errors import CaptureError


class ProjectionsCall(NamedTuple):
    """What the projections gave, and the arguments of the call, by name."""

    arguments: dict[str, Any]
    projected: dict[str, Tensor]
    context: Tensor | None = None


class _Tap:
    """The hooks on one module and what they have seen of the call that is under way."""

    def __init__(self, site: Site, calls: Calls, with_evidence: bool, with_value: bool) -> None:
        self.family = _family(site)
        self.calls = calls
        self.projected: dict[str, Tensor] | None = None
        self.arguments: dict[str, Any] = {}
        self.context: Tensor | None = None
        self.with_evidence = with_evidence
        self.signature = inspect.signature(site.module.forward)
        self.handles: list[RemovableHandle] = [
            site.module.register_forward_pre_hook(self.start, with_kwargs=True),
            site.module.register_forward_hook(self.finish),
        ]
        family = self.family
        names = {"qkv": family.fused} if family.fused else {"query": family.query, "key": family.key}
        if (with_evidence or with_value) and not family.fused:
            names["value"] = family.value
        for role, name in names.items():
            projection = site.module.get_submodule(name)
            self.handles.append(projection.register_forward_hook(partial(self.keep, role)))
        if with_evidence and family.projects:
            projection = site.module.get_submodule(family.projects)
            self.handles.append(projection.register_forward_pre_hook(self.keep_context))

    def start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A recomputation may stop before it reaches the end of the module, so nothing of it may be kept.
        self.projected = None if recomputing() else {}
        if self.projected is not None:
            arguments = dict(self.signature.bind_partial(*args, **kwargs).arguments)
            self.arguments = arguments | dict(arguments.pop("kwargs", {}))

    def keep(self, role: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.projected is not None:
            self.projected[role] = output

    def keep_context(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.projected is not None:
            self.context = args[0]

    def finish(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.projected is None:
            return
        context = self.context
        if self.with_evidence and self.family.projects is None:
            context = output[0] if isinstance(output, tuple) else output
        self.calls.append(ProjectionsCall(self.arguments, self.projected, context))
        self.projected, self.arguments, self.context = None, {}, None

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attach(
    site: Site, calls: Calls, *, with_evidence: bool = False, with_value: bool = False
) -> Callable[[], None]:
    """See :class:`amad.capture.backend.Backend`."""
    return _Tap(site, calls, with_evidence, with_value).remove


def read(site: Site, call: ProjectionsCall) -> AttentionRecord:
    """See :class:`amad.capture.backend.Backend`."""
    family = _family(site)
    query, key = (_heads(site, family, call, role) for role in ("query", "key"))
    return AttentionRecord(
        site=site.key,
        query=query,
        key=key,
        scale=query.shape[-1] ** -0.5,
        mask=family.mask(call.arguments),
        position_bias=family.bias(site.module, call.arguments),
        value=_heads(site, family, call, "value") if {"value", "qkv"} & call.projected.keys() else None,
    )


def evidence(site: Site, call: ProjectionsCall, record: AttentionRecord) -> Evidence | None:
    """See :class:`amad.capture.backend.Backend`."""
    if call.context is None:
        return None
    recomputed = attend(record, _heads(site, _family(site), call, "value"))
    return Evidence(call.context.reshape(recomputed.shape), recomputed)


def _family(site: Site) -> Family:
    family = family_of(type(site.module))
    if family is None:
        raise CaptureError(
            f"{site.key} ({site.name}): {type(site.module).__name__} is not among the known families."
        )
    return family


def _heads(site: Site, family: Family, call: ProjectionsCall, role: str) -> Tensor:
    """One projection's output as (batch, head, token, width)."""
    n_heads, width = getattr(site.module, family.heads), getattr(site.module, family.width)
    if family.fused:
        projected = call.projected["qkv"].chunk(3, dim=-1)[("query", "key", "value").index(role)]
    else:
        projected = call.projected[role]
    return projected.reshape(*projected.shape[:2], n_heads, width).transpose(1, 2)
