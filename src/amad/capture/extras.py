"""What some losses read of a site beside its map: hidden states and the projection that mixes its heads."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from amad.axes import SiteKey
from amad.capture.backend import recomputing
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site, clean_name

Extra = Literal["value", "hidden", "mixing"]

_OUTPUT_NAMES = ("o", "o_proj", "out_proj", "proj", "projection", "c_proj", "dense")
_OUTPUT_BESIDE = "output.dense"


class LayerOutputs:
    """Keeps the hidden states that the layers of some sites give.

    The layer of a site is the module above it in the list of its stack, such as ``encoder.layers.3``, and the first
    tensor that it returns is taken. A site outside of a list has none.

    Args:
        model: The model, wrapped or not.
        sites: Sites of this model.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site]) -> None:
        modules = _modules(model) if (sites := list(sites)) else {}
        self._layers = {
            site.key: modules[path] for site in sites if (path := _layer_path(site.name)) in modules
        }
        self._seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in self._layers.values()}

    def attach(self) -> Callable[[], None]:
        """Keep what the layers give until the function that is returned is called."""
        handles = [
            layer.register_forward_hook(partial(self._keep, seen)) for layer, seen in self._seen.items()
        ]

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

    def clear(self) -> None:
        """Forget what was kept."""
        for seen in self._seen.values():
            seen.clear()

    def of(self, record: AttentionRecord) -> Float[Tensor, "#batch query feature"] | None:
        """The hidden states of the layer of this record; None if there are none with one per query."""
        layer = self._layers.get(record.site)
        seen = [] if layer is None else self._seen[layer]
        if len(seen) != 1 or seen[0].ndim != 3 or seen[0].shape[1] != record.n_queries:
            return None
        return seen[0] if seen[0].shape[0] in (1, record.n_batch) else None

    @staticmethod
    def _keep(seen: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(first, Tensor) and not recomputing():
            seen.append(first)


def mixing_projections(model: nn.Module, sites: Iterable[Site]) -> dict[SiteKey, nn.Linear | Conv1D]:
    """The output projections of these sites, as far as one is found: in its module by name, or beside it."""
    found: dict[SiteKey, nn.Linear | Conv1D] = {}
    modules = _modules(model) if (sites := list(sites)) else {}
    for site in sites:
        own = (dict(site.module.named_children()).get(name) for name in _OUTPUT_NAMES)
        beside = modules.get(f"{site.name.rpartition('.')[0]}.{_OUTPUT_BESIDE}")
        projection = next((one for one in (*own, beside) if isinstance(one, (nn.Linear, Conv1D))), None)
        if projection is not None:
            found[site.key] = projection
    return found


def mixing_of(
    projection: nn.Linear | Conv1D | None, record: AttentionRecord
) -> Float[Tensor, "head value_width feature"] | None:
    """The weight of a projection, by head; None if there is none or it does not take what these heads give."""
    if projection is None:
        return None
    weight = projection.weight.T if isinstance(projection, nn.Linear) else projection.weight
    n_heads, (n_inputs, n_features) = record.n_heads, weight.shape
    width = n_inputs // n_heads if record.value is None else record.value.shape[-1]
    return weight.reshape(n_heads, width, n_features) if n_inputs == n_heads * width else None


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """By path without wrappers; of a wrapper and what it wraps the latter."""
    return {clean_name(name): module for name, module in model.named_modules()}


def _layer_path(path: str) -> str | None:
    """The path as far as the first number, where the stack's list of layers is."""
    names = path.split(".")
    position = next((position for position, name in enumerate(names) if name.isdigit()), None)
    return None if position is None else ".".join(names[: position + 1])
