"""A checkpoint folder to a model and back: weights as safetensors only, errors that name the file.

A checkpoint is a folder as transformers writes it: ``config.json``, ``model.safetensors`` (or its shards with
their index), and beside them the files of a tokenizer and of an image processor. Whatever
:func:`save_checkpoint` writes loads with plain ``from_pretrained``.
"""

import importlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from amad.data.wordpiece import add_blip_tokens
from amad.errors import CheckpointError
from amad.models.blip_seq2seq import as_seq2seq
from amad.models.checkpoint import (
    as_checkpoint_error,
    check_any_file,
    check_weight_files,
    located,
    pickled,
    save_checkpoint,
)

__all__ = ["load_empty_model", "load_model", "load_tokenizer", "model_type", "save_checkpoint"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
# Model types of this package and the module that registers them.
_OWN_TYPES = {"vlt5": "amad.models.vlt5"}
# Model classes of this package whose model type is one of transformers.
_OWN_CLASSES = {"BlipForPretraining": "amad.models.blip_pretraining"}
_LISTED_KEYS = 8


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    ignore_unexpected: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint folder, of the class that its ``config.json`` names, in evaluation mode.

    Weights are read as safetensors only. BLIP is put on fast attention, and for questions and captions in the form of
    an encoder-decoder (:func:`amad.models.blip_seq2seq.as_seq2seq`); every other model keeps the attention that
    transformers chose.

    Args:
        path: A folder, or the name of a model on the hub where there is no such folder.
        dtype: Of the weights; None: as they are stored.
        revision: Branch, tag or commit of a model on the hub.
        trust_remote_code: Run the model code that the checkpoint brings along. Off unless asked for by name.
        ignore_unexpected: Leave out weights that the class has no place for (a pre-training head, say)
            rather than refuse. Missing weights are always refused.

    Raises:
        CheckpointError: no folder, no ``config.json``, an unknown model type or class, pickled or broken or
            no weights, or weights that are missing, left over, of another shape or not finite. The message lists
            them.
    """
    where, raw, config, options = _described(path, revision, trust_remote_code)
    if Path(where).is_dir():
        check_weight_files(Path(where), raw.get("transformers_weights"))
    loader = _model_class(where, config, raw, trust_remote_code)
    with as_checkpoint_error(where, "cannot be loaded"), _quiet_loading_report():
        model, info = loader.from_pretrained(
            where,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    _check_keys(where, type(model).__name__, info, ignore_unexpected)
    _check_finite(where, model)
    as_seq2seq(model)
    return model  # type: ignore[no-any-return]


def load_empty_model(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The same model without weights, on the meta device: what there is to look at before anything is read.

    Raises:
        CheckpointError: no folder, no ``config.json``, or an unknown model type or class.
    """
    where, raw, config, _ = _described(path, revision, trust_remote_code)
    builder = _model_class(where, config, raw, trust_remote_code)
    with as_checkpoint_error(where, "describes a model that cannot be built"), torch.device("meta"):
        model = (
            builder._from_config(config) if hasattr(builder, "_from_config") else builder.from_config(config)
        )
    as_seq2seq(model)
    return model  # type: ignore[no-any-return]


def load_tokenizer(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder or of a model on the hub; that of a BLIP with BLIP's own two tokens.

    Raises:
        CheckpointError: no folder, no tokenizer in it, or one that cannot be read.
    """
    where = located(path, needs_config=False)
    check_any_file(where, _TOKENIZER_FILES, "tokenizer")
    kind = model_type(where)
    _register_own(kind)
    with as_checkpoint_error(where, "holds a tokenizer that cannot be read"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
    return add_blip_tokens(tokenizer) if kind == "blip" else tokenizer


def model_type(where: str) -> Any:
    """The model type of a local folder; None for a name on the hub: only transformers' own are looked for."""
    file = Path(where) / "config.json"
    if not file.is_file():
        return None
    with as_checkpoint_error(where, "has a config.json that cannot be read"):
        return json.loads(file.read_text(encoding="utf-8")).get("model_type")


def _described(
    path: str | os.PathLike[str], revision: str | None, trust_remote_code: bool
) -> tuple[str, Mapping[str, Any], PreTrainedConfig, dict[str, Any]]:
    """Where a model is, its raw and its checked configuration, and the options to load it with."""
    where = located(path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with as_checkpoint_error(where, "cannot be loaded"):
        raw, _ = PreTrainedConfig.get_config_dict(where, revision=revision)
    _register_own(raw.get("model_type"))
    config = _config(where, raw, options)
    _check_weights_name(where, raw)
    return where, raw, config, options


def _register_own(model_type: Any) -> None:
    if model_type in _OWN_TYPES:
        importlib.import_module(_OWN_TYPES[model_type])


def _config(where: str, raw: Mapping[str, Any], options: Mapping[str, Any]) -> PreTrainedConfig:
    needs_code = "auto_map" in raw and raw.get("model_type") not in transformers.CONFIG_MAPPING
    if needs_code and not options["trust_remote_code"]:
        raise CheckpointError(
            f"{where} brings its own model code, which is not run unless asked for. "
            "Read that code, then pass trust_remote_code=True."
        )
    if "model_type" not in raw:
        raise CheckpointError(
            f"The config.json of {where} names no model_type. Add it, or save the model again."
        )
    if raw["model_type"] not in transformers.CONFIG_MAPPING and not needs_code:
        raise CheckpointError(
            f"{where} is of the model type {raw['model_type']!r}, which neither transformers "
            f"{transformers.__version__} nor amad knows. Check config.json, or install a newer transformers."
        )
    with as_checkpoint_error(where, "has a config.json that cannot be read"):
        return AutoConfig.from_pretrained(where, **options)  # type: ignore[no-any-return]


def _model_class(
    where: str, config: PreTrainedConfig, raw: Mapping[str, Any], trust_remote_code: bool
) -> Any:
    """What has the right ``from_pretrained``: a class, or an auto class where remote code is allowed."""
    names = raw.get("architectures") or []
    if len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(
            f"The config.json of {where} must name one class under architectures, and it names {names}. "
            "Write the name of the model's class there."
        )
    auto_classes = [name for name in raw.get("auto_map", {}) if name.startswith("AutoModel")]
    if trust_remote_code and auto_classes:
        return getattr(transformers, auto_classes[0])
    own = _OWN_CLASSES.get(names[0]) or _OWN_TYPES.get(config.model_type)
    home = importlib.import_module(own) if own else transformers
    found = getattr(home, names[0], None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(
            f"The config.json of {where} names the class {names[0]!r}, which neither transformers "
            f"{transformers.__version__} nor amad has. Check architectures, or install a newer transformers."
        )
    needed: Any = getattr(found, "config_class", None) or PreTrainedConfig
    if not isinstance(config, needed):
        raise CheckpointError(
            f"The config.json of {where} contradicts itself: the model type is {config.model_type!r}, and "
            f"the class {names[0]!r} is of the type {needed.model_type!r}. Correct one of them."
        )
    return found


def _check_weights_name(where: str, raw: Mapping[str, Any]) -> None:
    named = raw.get("transformers_weights")
    if named is not None and not str(named).endswith((".safetensors", ".safetensors.index.json")):
        raise pickled(Path(where) / str(named))


def _check_keys(where: str, class_name: str, info: Mapping[str, Any], ignore_unexpected: bool) -> None:
    faults = []
    if info["missing_keys"]:
        faults.append(f"missing {_listed(info['missing_keys'])}")
    if info["unexpected_keys"] and not ignore_unexpected:
        faults.append(f"left over {_listed(info['unexpected_keys'])}")
    if info["mismatched_keys"]:
        shapes = [f"{name} (stored {list(a)}, needed {list(b)})" for name, a, b in info["mismatched_keys"]]
        faults.append(f"of another shape {_listed(shapes)}")
    if faults:
        raise CheckpointError(
            f"The weights of {where} are not those of {class_name}: {'; '.join(faults)}. "
            "Correct architectures or the sizes in config.json, or save the model again"
            + (", or pass ignore_unexpected=True to leave out those left over." if len(faults) == 1 else ".")
        )


def _check_finite(where: str, model: PreTrainedModel) -> None:
    faults = [name for name, weights in model.named_parameters() if not _is_finite(weights)]
    if faults:
        raise CheckpointError(
            f"The weights of {where} are not all finite numbers: {_listed(faults)}. It was saved by a run that "
            "diverged, or converted wrongly; take a checkpoint from before."
        )


def _is_finite(weights: torch.Tensor) -> bool:
    """By least and largest, which NaN becomes: a hundred times faster here than asking each weight."""
    if not weights.numel() or not weights.is_floating_point() or weights.element_size() == 1:
        return True
    return all(bool(end.isfinite()) for end in weights.detach().aminmax())


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED_KEYS} more" if len(ordered) > _LISTED_KEYS else ""
    return f"{len(ordered)}: {', '.join(ordered[:_LISTED_KEYS])}{more}"


@contextmanager
def _quiet_loading_report() -> Iterator[None]:
    """Keep transformers from logging its table of keys: the same facts are raised as an error."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(entry: logging.LogRecord) -> bool:
    return entry.levelno >= logging.ERROR
