"""Is the record what the model did? Ask before training starts."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amad.axes import SiteKey
from amad.capture.backend import Calls, Evidence
from amad.capture.record import AttentionRecord
from amad.capture.recorder import BACKENDS
from amad.capture.sites import Site
from amad.errors import CaptureError

_logger = logging.getLogger(__name__)

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}
"""Largest difference that passes, relative to the largest output, by the coarser dtype of query and output."""


def self_check(
    model: nn.Module, sites: Iterable[Site], batch: Mapping[str, Any], tolerance: float | None = None
) -> dict[SiteKey, float | None]:
    """Compare recomputed probabilities times values with the attention output that the model really produced.

    The model runs once on ``batch``, in evaluation mode, under the attention implementation that it has;
    every module's mode is then what it was. Rows with no visible key are skipped, because kernels differ
    there.

    Args:
        model: The model.
        sites: Its sites.
        batch: Inputs, better with padding.
        tolerance: Largest difference that passes, relative to the site's largest output; by dtype when None.

    Returns:
        For each site the largest difference, relative to the largest output. None, with a warning that names
        it, for a site that shows nothing to compare with: one that the batch does not reach, or a module that
        takes its own softmax and then no plain matrix product.

    Raises:
        CaptureError: at the first site whose record is wrong; it names the site, the difference and the
            tolerance.
    """
    sites = list(sites)
    differences: dict[SiteKey, float | None] = {}
    for site, calls in _run(model, sites, batch):
        backend = BACKENDS[site.backend]
        worst: float | None = None
        for call in calls:
            with torch.no_grad():
                record = backend.read(site, call)
                evidence = backend.evidence(site, call, record)
                if evidence is not None:
                    worst = max(worst or 0.0, _checked(site, record, evidence, tolerance))
        if worst is None:
            reason = "the batch does not reach it" if not calls else "it shows no output to compare with"
            _logger.warning("%s (%s) is not verified: %s.", site.key, site.name, reason)
        differences[site.key] = worst
    return differences


def confirm_sites(model: nn.Module, sites: Iterable[Site], batch: Mapping[str, Any]) -> list[Site]:
    """The same sites, with the heads and the width that one forward pass on ``batch`` shows.

    A site that the batch does not reach keeps what was read from its module.

    Raises:
        CaptureError: if the arguments of a site cannot be read.
    """
    confirmed = []
    for site, calls in _run(model, list(sites), batch):
        if calls:
            record = BACKENDS[site.backend].read(site, calls[0])
            width = site.width if record.probabilities is not None else record.query.shape[-1]
            site = replace(site, n_heads=record.n_heads, n_kv_heads=record.n_kv_heads, width=width)
        confirmed.append(site)
    return confirmed


def _run(model: nn.Module, sites: list[Site], batch: Mapping[str, Any]) -> list[tuple[Site, Calls]]:
    """What each site does in one forward pass in evaluation mode, with evidence."""
    recorded: list[tuple[Site, Calls]] = [(site, []) for site in sites]
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.callback(_restore, modes)
        model.eval()
        for site, calls in recorded:
            stack.callback(BACKENDS[site.backend].attach(site, calls, with_evidence=True))
        with torch.no_grad():
            model(**batch)
    return recorded


def _restore(modes: Mapping[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _checked(site: Site, record: AttentionRecord, evidence: Evidence, tolerance: float | None) -> float:
    """The relative difference of one call.

    Raises:
        CaptureError: if it is above the tolerance, or not a number.
    """
    if tolerance is None:
        # Autocast computes in 16 bits what it was given in 32: the product has the dtype, its factors need not.
        dtypes = (record.query.dtype, evidence.produced.dtype)
        tolerance = max(TOLERANCES.get(dtype, TOLERANCES[torch.float32]) for dtype in dtypes)
    rows = record.keep()
    produced, recomputed = evidence.produced[rows].float(), evidence.recomputed[rows]
    if produced.numel() == 0:
        return 0.0
    scale = produced.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = float((produced - recomputed).abs().max() / scale)
    if difference <= tolerance:
        return difference
    # A comparison with NaN is false, so it ends here too.
    raise CaptureError(
        f"{site.key} ({site.name}): the recorded attention is not what the model computed. Its output is off "
        f"by {difference:.2g} of the largest, more than the tolerance {tolerance:.2g}. Leave this site out "
        "of the pairing, or run the model with attn_implementation='eager'."
    )
