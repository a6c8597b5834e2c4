"""The weights of the VL-T5 authors' checkpoints (j-min/VL-T5), read into this package's model.

Our state-dict names are theirs, so reading one means checking it: prefixes are taken off, copies of the
shared embedding are compared with it and dropped, and every name that is left over or missing is an error.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from amad.errors import CheckpointError
from amad.models.checkpoint import save_checkpoint
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

PUBLISHED_VOCABULARY = 32200

_SHARED = "shared.weight"
_COPIES = (
    "encoder.embed_tokens.weight",
    "encoder.visual_embedding.obj_order_embedding.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)
# Older transformers saved a position bias that no forward pass has ever read.
_UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_N_NAMED = 12

Source = str | os.PathLike[str] | Mapping[str, Tensor]


def published_config(size: Literal["small", "base"] = "base") -> VLT5Config:
    """The configuration of the authors' models on T5-small or T5-base, with its vocabulary of 32,200.

    The published checkpoints are of size base: 224.54 million parameters. Small has 61.60 million.
    """
    sizes = {
        "small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    }
    return VLT5Config(vocab_size=PUBLISHED_VOCABULARY, d_kv=64, **sizes[size])


def load_original_state_dict(
    model: VLT5ForConditionalGeneration | VLT5Config, source: Source, *, allow_pickle: bool = False
) -> VLT5ForConditionalGeneration:
    """Put the weights of an original checkpoint into a model, which is changed in place and returned.

    Args:
        model: The model, or the configuration of one to build.
        source: The path of a ``.safetensors`` or ``.pth`` file, or a state dict. Names may start with
            ``module.``, and ``vis_encoder.`` may stand for ``encoder.``.
        allow_pickle: Read a ``.pth`` file, which is a pickle. Only tensors and plain containers are admitted
            from it (``torch.load(weights_only=True)``), but leave this off for files that you do not trust.

    Raises:
        CheckpointError: if the file is missing, broken, or a pickle that was not allowed; if names are
            missing or left over; if a weight has another shape; if a copy of the shared embedding differs
            from it.
    """
    if isinstance(model, VLT5Config):
        model = VLT5ForConditionalGeneration(model)
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    state = source if isinstance(source, Mapping) else _read(Path(source), allow_pickle)
    state = _without_copies({_our_name(key): value for key, value in state.items()}, name)
    wanted = {key: value for key, value in model.state_dict().items() if key not in _COPIES}
    _check_names(set(wanted), set(state), name)
    _check_shapes(wanted, state, name)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def convert_original(
    source: Source,
    folder: str | os.PathLike[str],
    config: VLT5Config | None = None,
    *,
    allow_pickle: bool = False,
) -> Path:
    """Write an original checkpoint as a folder that ``from_pretrained`` reads, with weights as safetensors.

    The folder appears complete or not at all.

    Args:
        source: As in :func:`load_original_state_dict`.
        folder: The folder to write.
        config: The configuration; by default that of the published base model.
        allow_pickle: As in :func:`load_original_state_dict`.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the folder exists, and as :func:`load_original_state_dict` does.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists, and a conversion overwrites nothing. Name a new folder.")
    model = load_original_state_dict(config or published_config(), source, allow_pickle=allow_pickle)
    return save_checkpoint(model, None, None, folder)


def _read(path: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file. Give the .safetensors or .pth file of the checkpoint.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is no complete safetensors file ({error}). Copy or convert it again."
            ) from error
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is not a .safetensors file, and other formats are pickles, which are not read unasked. "
            "If you trust it, convert it once: amad.models.vlt5_checkpoint.convert_original(path, folder, "
            "allow_pickle=True)."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} is broken, or holds more than tensors, and is not read. Get the checkpoint again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} is not a state dict, a mapping of names to tensors. Take the model's entry out of it."
        )
    return state


def _our_name(name: str) -> str:
    name = name.removeprefix("module.")
    return "encoder." + name.removeprefix("vis_encoder.") if name.startswith("vis_encoder.") else name


def _without_copies(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state without unread weights and without copies of the shared embedding, which must equal it."""
    shared = state.get(_SHARED)
    for copy in _COPIES:
        if copy not in state:
            continue
        if shared is None:
            raise CheckpointError(
                f"{name} has {copy} but not {_SHARED}, of which it is a copy. Get it again."
            )
        if not torch.equal(state[copy], shared):
            raise CheckpointError(
                f"In {name}, {copy} differs from {_SHARED}, and a VL-T5 ties the two. "
                "Give a VL-T5 checkpoint."
            )
    return {key: value for key, value in state.items() if key not in (*_COPIES, *_UNREAD)}


def _check_names(wanted: set[str], found: set[str], name: str) -> None:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if missing or unexpected:
        raise CheckpointError(
            f"{name} does not hold the weights of this VL-T5. Missing ({len(missing)}): "
            f"{_listed(missing)}. "
            f"Unexpected ({len(unexpected)}): {_listed(unexpected)}. "
            "Give the configuration that it was trained with."
        )


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    wrong = [
        f"{key} {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if found[key].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"Weights in {name} differ in shape from the model's ({len(wrong)}): {_listed(wrong)}. Give the "
            "configuration that it was trained with; published models have a vocabulary of "
            f"{PUBLISHED_VOCABULARY}."
        )


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more
