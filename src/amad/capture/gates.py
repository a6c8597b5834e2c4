"""Scale what single heads add to the output of their site: what a model is worth without a head."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from amad.axes import SiteKey
from amad.capture import interface
from amad.capture.families import family_of
from amad.capture.sites import Site
from amad.errors import CaptureError, ShapeError

Gate = Float[Tensor, "#batch head"]
"""The factor of each head, for each sample or for all alike: 1 leaves it as it is, 0 silences it.

Where a site has several rows for each sample, as Swin's windows, they have the sample's."""

GATED_BACKENDS = frozenset({"interface", "projections"})
"""Back-ends whose sites show the output of each head before heads are mixed."""


@contextmanager
def gated(sites: Mapping[SiteKey, Site], gates: Mapping[SiteKey, Gate]) -> Iterator[None]:
    """Multiply the output of each head of these sites by its gate, before the output projection mixes heads.

    Gates may require a gradient. Inside one another the last gate of a site counts. Outside of the block nothing of
    them is left in the model.

    Args:
        sites: The sites of the model by their keys.
        gates: The gates of some of them.

    Raises:
        CaptureError: if a site mixes its heads where no gate can be put.
        ShapeError: if a site has another number of heads than its gate.
    """
    with ExitStack() as stack:
        for key, gate in gates.items():
            site = sites[key]
            if gate.shape[-1] != site.n_heads:
                raise ShapeError(
                    f"{key} ({site.name}) has {site.n_heads} heads, and its gate has {gate.shape[-1]} numbers. "
                    "Give one per head."
                )
            stack.callback(_attach(site, gate))
        yield


def _attach(site: Site, gate: Gate) -> Callable[[], None]:
    """Put a gate on a site; what is returned takes it off."""
    if site.backend == "interface":
        return interface.attach_gate(site.module, gate)
    family = family_of(type(site.module)) if site.backend == "projections" else None
    if family is None:
        raise CaptureError(
            f"{site.key} ({site.name}) is recorded by the back-end {site.backend}, where heads cannot be silenced one "
            f"by one. Leave its stack out."
        )
    if family.projects is None:
        return site.module.register_forward_hook(partial(_scale_output, gate)).remove
    projection = site.module.get_submodule(family.projects)
    return projection.register_forward_pre_hook(partial(_scale_input, gate)).remove


def _scale_output(gate: Gate, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (_scale(output[0], gate), *output[1:])
    return _scale(output, gate)


def _scale_input(gate: Gate, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_scale(args[0], gate), *args[1:])


def _scale(context: Float[Tensor, "batch query feature"], gate: Gate) -> Float[Tensor, "batch query feature"]:
    """The features of a head lie together."""
    heads = context.reshape(*context.shape[:-1], gate.shape[-1], -1)
    scaled: Tensor = heads * interface.gate_rows(gate, heads)[:, None, :, None]
    return scaled.flatten(-2)
