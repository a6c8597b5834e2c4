"""Where attention lives in a model: every site's name, module, back-end and geometry."""

import functools
import inspect
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from amad.axes import SiteKey
from amad.capture.families import family_of
from amad.capture.geometry import read_geometry
from amad.capture.stacks import Place, name_stacks
from amad.errors import CaptureError

_logger = logging.getLogger(__name__)

_WRAPPERS = re.compile(
    r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module(?=\.))(?=\.|$)"
)
_SOFTMAX = {"softmax", "Softmax", "scaled_dot_product_attention"}


@dataclass(frozen=True)
class Site:
    """A place where attention happens.

    Attributes:
        key: Stack and layer, as in recipes and tables.
        name: Path of the module in the model, without the components that wrappers add.
        module: The attention module.
        backend: How it is recorded: ``interface`` (it dispatches through the attention interface of
            transformers), ``projections`` (hooks on its query and key projections), ``multihead`` (torch's
            own module) or
            ``probs`` (its own softmax is kept).
        n_heads: Query heads.
        n_kv_heads: Key heads; fewer than ``n_heads`` where keys are shared inside a group.
        width: Numbers per head in a query or a key.
    """

    key: SiteKey
    name: str
    module: nn.Module = field(repr=False)
    backend: str
    n_heads: int
    n_kv_heads: int
    width: int


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention site of a model, stack by stack, layers counted from 0 at the input.

    Nothing is run, so a model on the meta device will do. Sites whose map is not one over tokens (channel
    attention) are left out; so are those whose head count cannot be read, with a warning that names them.

    Raises:
        CaptureError: if there is no site at all.
    """
    places, backends, geometries = [], [], []
    for place, backend in _attention(model):
        geometry = read_geometry(place.module)
        if geometry is None:
            _logger.warning(
                "%s (%s) is left out: neither its attributes nor its projections tell its heads.",
                place.path,
                type(place.module).__name__,
            )
            continue
        places.append(place)
        backends.append(backend)
        geometries.append(geometry)
    if not places:
        raise CaptureError(
            f"{type(model).__name__} has no attention that can be recorded. A site is a module that "
            "dispatches through the attention interface of transformers, an nn.MultiheadAttention, or a "
            "module called ...Attention... that takes a softmax. Pick a model with attention over tokens."
        )
    counts: Counter[str] = Counter()
    sites: dict[str, list[Site]] = {}
    stacks = name_stacks(places)
    for place, backend, geometry, stack in zip(places, backends, geometries, stacks, strict=True):
        key = SiteKey(stack, counts[stack])
        counts[stack] += 1
        sites.setdefault(stack, []).append(Site(key, place.path, place.module, backend, *geometry))
    return [site for stack in sites.values() for site in stack]


def backend_of(module: nn.Module) -> str | None:
    """The back-end that records this module's attention; None if it is no attention module."""
    cls: Any = type(module)
    return _backend_of_class(cls)


@functools.cache
def _backend_of_class(cls: type) -> str | None:
    if issubclass(cls, nn.MultiheadAttention):
        return "multihead"
    # PreTrainedModel itself names the interface; a channel map is one over features.
    if issubclass(cls, PreTrainedModel) or "channel" in cls.__name__.lower():
        return None
    names = _names_in_code(cls)
    if "ALL_ATTENTION_FUNCTIONS" in names:
        return "interface"
    if family_of(cls) is not None:
        return "projections"
    if names & _SOFTMAX and "Attention" in cls.__name__:
        return "probs"
    return None


def _names_in_code(cls: type) -> set[str]:
    """Global and attribute names in the methods that instances really run, decorators unwrapped."""
    names: set[str] = set()
    own = (base for base in cls.__mro__ if not base.__module__.startswith("torch.") and base is not object)
    for attribute in {attribute for base in own for attribute in vars(base)}:
        function: Callable[..., Any] | None = inspect.getattr_static(cls, attribute)
        while function is not None:
            code = getattr(function, "__code__", None)
            names.update(code.co_names if code is not None else ())
            function = getattr(function, "__wrapped__", None)
    return names


def _attention(model: nn.Module) -> Iterator[tuple[Place, str]]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        backend = backend_of(module)
        if backend is None:
            continue
        parts = name.split(".") if name else []
        # A wrapper and what it wraps have the same clean path, and the wrapped module comes last.
        ancestry = {
            clean_name(above): modules[above]
            for above in (".".join(parts[:length]) for length in range(len(parts) + 1))
        }
        yield Place(clean_name(name), tuple(ancestry.values())), backend


def clean_name(name: str) -> str:
    """A module path without the components of DDP, FSDP, torch.compile and checkpoint wrappers."""
    previous = None
    while previous != name:
        previous, name = name, _WRAPPERS.sub("", name, count=1).lstrip(".")
    return name
