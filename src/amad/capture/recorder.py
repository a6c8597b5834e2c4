"""Record what chosen sites of a model do in a forward pass."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, cast

from torch import nn

from amad.axes import SiteKey
from amad.capture import interface, multihead, probs, projections
from amad.capture.backend import Backend, Calls
from amad.capture.extras import Extra, LayerOutputs, mixing_of, mixing_projections
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site
from amad.capture.tokens import Tokens
from amad.errors import CaptureError

BACKENDS: dict[str, Backend] = {
    "interface": cast(Backend, interface),
    "projections": cast(Backend, projections),
    "multihead": cast(Backend, multihead),
    "probs": cast(Backend, probs),
}
"""The back-ends by the name that a :class:`Site` has for them."""


class Recorder:
    """Records chosen sites of a model while it is entered.

        with recorder:
            output = model(**batch)
            records = recorder.take(batch)

    Entering and leaving is cheap, so each training step does it. Recorders are independent of one another,
    also on the same model or inside one another. Outside of ``with`` nothing of them is left in the model.

    Args:
        model: The model, wrapped or not; it tells what the tokens on the axes of a map are.
        sites: Sites of this model, from :func:`amad.capture.sites.find_sites`.
        detach: Records have no gradient behind them; for a teacher.
        extras: What else records hold where it can be had: ``value``, ``hidden`` and ``mixing``, as in
            :class:`amad.capture.record.AttentionRecord`.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site],
        *,
        detach: bool = False,
        extras: Collection[Extra] = (),
    ) -> None:
        self.sites = list(sites)
        self.detach = detach
        self.extras = frozenset(extras)
        self._layers = LayerOutputs(model, self.sites if "hidden" in self.extras else [])
        self._mixing = mixing_projections(model, self.sites if "mixing" in self.extras else [])
        self._tokens = Tokens(model, self.sites) if self.sites else None
        self._calls: dict[SiteKey, Calls] = {site.key: [] for site in self.sites}
        self._attached: ExitStack | None = None

    def __enter__(self) -> "Recorder":
        if self._attached is not None:
            raise CaptureError("this recorder is already recording. Use a second Recorder to nest.")
        self.clear()
        with ExitStack() as stack:
            for site in self.sites:
                backend, calls = BACKENDS[site.backend], self._calls[site.key]
                stack.callback(backend.attach(site, calls, with_value="value" in self.extras))
            stack.callback(self._layers.attach())
            self._attached = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded and not taken."""
        for calls in self._calls.values():
            calls.clear()
        self._layers.clear()

    def take(
        self, batch: Mapping[str, Any] | None = None, *, require_grad: bool = False
    ) -> dict[SiteKey, AttentionRecord]:
        """The records of the last forward pass, which are then forgotten.

        Call it inside the ``with`` block.

        Args:
            batch: The model's inputs, where they say which queries are padding: ``decoder_attention_mask`` or
                ``labels`` of an encoder-decoder, and ``pixel_values`` for the grid of patches.
            require_grad: Refuse records through which no gradient flows; for a student that trains.

        Raises:
            CaptureError: if a site ran more than once or not at all since the last :meth:`take`, if its
                arguments cannot be read, or if a gradient is required and missing. The message names the
                site.
        """
        try:
            records = {
                site.key: self._with_extras(site, BACKENDS[site.backend].read(site, self._only_call(site)))
                for site in self.sites
            }
        finally:
            self.clear()
        for site in self.sites:
            record = self._with_tokens(records[site.key], records, batch or {})
            records[site.key] = record.detach() if self.detach else record
            if require_grad:
                _check_gradient(site, record)
        return records

    def _only_call(self, site: Site) -> Any:
        calls = self._calls[site.key]
        if len(calls) == 1:
            return calls[0]
        if calls:
            raise CaptureError(
                f"{site.key} ({site.name}) ran {len(calls)} times since records were last taken, and a "
                "record holds one call. Take the records after each forward pass, do not generate meanwhile, "
                "and leave out modules that are called once per image or window, or shared between layers."
            )
        raise CaptureError(
            f"{site.key} ({site.name}) did not run in this forward pass, inside the recorder's 'with' block. "
            "Leave it out of the pairing, or give the model the inputs that reach it."
        )

    def _with_extras(self, site: Site, record: AttentionRecord) -> AttentionRecord:
        return replace(
            record,
            value=record.value if "value" in self.extras else None,
            hidden=self._layers.of(record),
            mixing=mixing_of(self._mixing.get(site.key), record),
        )

    def _with_tokens(
        self, record: AttentionRecord, records: Mapping[SiteKey, AttentionRecord], batch: Mapping[str, Any]
    ) -> AttentionRecord:
        if self._tokens is None:
            return record
        query_layout, key_layout = self._tokens.layouts(record, batch)
        return replace(
            record,
            query_keep=self._tokens.query_keep(record, _own(record, records), batch),
            query_layout=query_layout,
            key_layout=key_layout,
        )


def _own(record: AttentionRecord, records: Mapping[SiteKey, AttentionRecord]) -> AttentionRecord | None:
    """The self-attention over the queries of a record: of its part, and if possible of its layer."""
    part, kind = record.site.stack.rsplit(".", 1)
    if kind == "self":
        return record
    same_layer = records.get(SiteKey(f"{part}.self", record.site.layer))
    if same_layer is not None:
        return same_layer
    return next((other for key, other in records.items() if key.stack == f"{part}.self"), None)


def _check_gradient(site: Site, record: AttentionRecord) -> None:
    source = record.query if record.probabilities is None else record.probabilities
    if source.requires_grad or (record.probabilities is None and record.key.requires_grad):
        return
    if not any(parameter.requires_grad for parameter in site.module.parameters()):
        raise CaptureError(
            f"{site.key} ({site.name}) gives no gradient: all its parameters are frozen. Unfreeze them, or "
            "leave this site out of the pairing."
        )
    raise CaptureError(
        f"{site.key} ({site.name}) was recorded without a gradient, as happens under no_grad "
        "and under reentrant checkpointing. "
        "Use gradient_checkpointing_kwargs={'use_reentrant': False}."
    )
