"""Which rows of a map are real tokens, and where the patches of an image lie on its axes."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from amad.capture.record import HIDDEN, AttentionRecord, TokenLayout
from amad.capture.sites import Site, clean_name, find_sites

# Class, distillation and register tokens; more tokens outside of the grid mean that the grid is not this one.
_MOST_EXTRA_TOKENS = 16


class Tokens:
    """What a model says about the tokens on the axes of its maps.

    Args:
        model: The model, wrapped or not.
        sites: The sites that are recorded.
    """

    def __init__(self, model: nn.Module, sites: list[Site]) -> None:
        everywhere = find_sites(model)
        parts = {site.key.stack.split(".")[0] for site in everywhere}
        roots = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
        self._root: nn.Module = roots[0] if roots else model
        declared = any(getattr(root.config, "is_encoder_decoder", False) for root in roots)
        self._two_sided = declared or bool(parts & {"text", "encoder"})
        self._sees_image = {"text", "qformer"} if "vision" in parts else set()
        if "vision" in parts and not parts & {"text", "encoder"}:
            self._sees_image.add("decoder")
        configs = _nearest_configs(model)
        self._configs = {site.key: configs.get(site.name) for site in sites}
        self._vision_config = next(
            (configs.get(site.name) for site in everywhere if site.key.stack == "vision.self"), None
        )

    def query_keep(
        self, record: AttentionRecord, own: AttentionRecord | None, batch: Mapping[str, Any]
    ) -> Bool[Tensor, "#batch query"] | None:
        """True for the query rows of real tokens; None if nothing says that any is padding.

        A token is padding if it may not attend itself although a mask is given. In a decoder that has its own
        input, ``decoder_attention_mask`` of the batch says it too, or else labels of -100, if there are as
        many labels as queries; or fewer, where the model itself puts a prompt before them and nothing else says
        anything. A cross-attention asks what the self-attention of its part says.

        Args:
            record: The record in question.
            own: That of the self-attention of the same part; ``record`` itself for a self-attention. Where
                it is None, or holds only a map, ``attention_mask`` of the batch is asked too, if it has the
                right length.
            batch: The model's inputs.
        """
        part = record.site.stack.split(".")[0]
        keep = None if own is None else _attends_itself(own)
        said = None
        if part == "decoder" and self._two_sided:
            said = batch.get("decoder_attention_mask")
            if said is None and isinstance(labels := batch.get("labels"), Tensor):
                said = labels != -100
                n_before = record.n_queries - said.shape[-1]
                if keep is None and said.ndim == 2 and n_before > 0 and "decoder_input_ids" not in batch:
                    said = torch.nn.functional.pad(said, (n_before, 0), value=True)
        elif (own is None or own.probabilities is not None) and part in ("text", "decoder", "encoder"):
            # Where only the map is known, rows of padding may look like any other.
            said = batch.get("attention_mask")
        if isinstance(said, Tensor) and said.shape == (record.n_batch, record.n_queries):
            said = said.to(device=record.query.device, dtype=torch.bool)
            return said if keep is None else keep & said
        return keep if keep is None or keep.shape[1] == record.n_queries else None

    def layouts(
        self, record: AttentionRecord, batch: Mapping[str, Any]
    ) -> tuple[TokenLayout | None, TokenLayout | None]:
        """Where the patches lie on the query axis and on the key axis; None where there is no known grid."""
        part, kind = record.site.stack.rsplit(".", 1)
        grid = getattr(self._root, "visual_grid", None)
        if part in ("encoder", "decoder") and grid is not None:
            keys = _grid_at_end(record.n_keys, grid)
            if part == "encoder" and kind == "self":
                return _grid_at_end(record.n_queries, grid), keys
            return None, keys if kind == "cross" else None
        if part == "vision" and kind == "self":
            config = self._configs.get(record.site)
            return _patches(record.n_queries, config, batch), _patches(record.n_keys, config, batch)
        if kind == "cross" and part in self._sees_image:
            return None, _patches(record.n_keys, self._vision_config, batch)
        return None, None


def _attends_itself(record: AttentionRecord) -> Bool[Tensor, "#batch query"] | None:
    """The diagonal of a self-attention's mask; where only the map is known, whether the token is attended."""
    if record.probabilities is not None:
        attended = (record.probabilities > 0).any(1).any(1)
        return attended if record.n_keys == record.n_queries else None
    mask = record.mask
    offset = record.n_keys - record.n_queries
    if mask is None or offset < 0:
        return None
    diagonal = mask[:, :, 0, offset:] if mask.shape[2] == 1 else mask.diagonal(offset, dim1=2, dim2=3)
    visible = diagonal if diagonal.dtype == torch.bool else diagonal > HIDDEN
    return visible.any(1)


def _nearest_configs(model: nn.Module) -> dict[str, Any]:
    """The configuration that holds for each module: its own, or that of the nearest module above."""
    configs: dict[str, Any] = {}
    for name, module in model.named_modules():
        path = clean_name(name)
        config = getattr(module, "config", None)
        configs[path] = configs.get(path.rpartition(".")[0]) if config is None else config
    return configs


def _grid_at_end(n_tokens: int, grid: tuple[int, int]) -> TokenLayout | None:
    before = n_tokens - grid[0] * grid[1]
    return TokenLayout(before, grid[0], grid[1]) if before >= 0 else None


def _patches(n_tokens: int, config: Any, batch: Mapping[str, Any]) -> TokenLayout | None:
    """Class tokens, patches row by row, detection tokens; sizes from the images, else the configuration."""
    patch = _pair(getattr(config, "patch_size", None))
    pixels = batch.get("pixel_values")
    image = tuple(pixels.shape[-2:]) if isinstance(pixels, Tensor) and pixels.ndim == 4 else None
    image = image or _pair(getattr(config, "image_size", None))
    if patch is None or image is None:
        return None
    height, width = image[0] // patch[0], image[1] // patch[1]
    after = int(getattr(config, "num_detection_tokens", 0) or 0)
    before = n_tokens - height * width - after
    return TokenLayout(before, height, width, after) if 0 <= before <= _MOST_EXTRA_TOKENS else None


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
