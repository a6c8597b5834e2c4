"""A checkpoint folder to a model and back: weights as safetensors only, errors that name the file.

A checkpoint is a folder as transformers writes it: ``config.json``, ``model.safetensors`` (or its shards with their
index), and beside them the files of a tokenizer and of an image processor. Whatever :func:`save_checkpoint` writes
loads with plain ``from_pretrained``.
"""

import importlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from amad.errors import CheckpointError
from amad.models.blip import dispatch_attention

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Model types of this package and the module that registers them.
_OWN_TYPES = {"vlt5": "amad.models.vlt5"}
_LISTED_KEYS = 8


class Saveable(Protocol):
    """A tokenizer, an image processor, or anything else that writes its files into a folder."""

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write the files."""


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    ignore_unexpected: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint folder, of the class that its ``config.json`` names, in evaluation mode.

    Weights are read as safetensors only. BLIP is put on fast attention
    (:func:`amad.models.blip.dispatch_attention`); every other model keeps the attention that transformers chose.

    Args:
        path: A folder, or the name of a model on the hub where there is no such folder.
        dtype: Of the weights; None: as they are stored.
        revision: Branch, tag or commit of a model on the hub.
        trust_remote_code: Run the model code that the checkpoint brings along. Off unless asked for by name.
        ignore_unexpected: Leave out weights that the class has no place for (a pre-training head, say)
            rather than refuse. Missing weights are always refused.

    Raises:
        CheckpointError: no folder, no ``config.json``, an unknown model type or class, pickled or broken or no
            weights, or weights that are missing, left over or of another shape. The message lists them.
    """
    where = _located(path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _as_checkpoint_error(where, "cannot be loaded"):
        raw, _ = PreTrainedConfig.get_config_dict(where, revision=revision)
    _register_own(raw.get("model_type"))
    config = _config(where, raw, options)
    _check_weights_name(where, raw)
    if Path(where).is_dir():
        _check_weight_files(Path(where), raw.get("transformers_weights"))
    loader = _model_class(where, config, raw, trust_remote_code)
    with _as_checkpoint_error(where, "cannot be loaded"), _quiet_loading_report():
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
    dispatch_attention(model)
    return model  # type: ignore[no-any-return]


def load_tokenizer(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder or of a model on the hub.

    Raises:
        CheckpointError: no folder, no tokenizer in it, or one that cannot be read.
    """
    where = _located(path)
    _check_any_file(where, _TOKENIZER_FILES, "tokenizer")
    _register_own(_model_type(where))
    with _as_checkpoint_error(where, "holds a tokenizer that cannot be read"):
        return AutoTokenizer.from_pretrained(  # type: ignore[no-any-return]
            where, revision=revision, trust_remote_code=trust_remote_code
        )


def load_image_processor(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The image processor of a checkpoint folder or of a model on the hub.

    Raises:
        CheckpointError: no folder, no image processor in it, or one that cannot be read.
    """
    where = _located(path)
    _check_any_file(where, _PROCESSOR_FILES, "image processor")
    _register_own(_model_type(where))
    with _as_checkpoint_error(where, "holds an image processor that cannot be read"):
        return AutoImageProcessor.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: Saveable | None,
    image_processor: Saveable | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder, whole or not at all, and return its path.

    Everything goes to a hidden folder beside ``out``, which is renamed when it is complete. An older checkpoint is
    moved aside only then, and deleted last; if the machine stops between the two renames it lies beside ``out``
    as ``.NAME.old-*``.

    Args:
        model: Written as safetensors.
        tokenizer: Written beside the weights; None: there is none.
        image_processor: The same.
        out: The folder; an empty one may exist.
        overwrite: Replace an older checkpoint at ``out``. A folder that holds none is never replaced.

    Raises:
        CheckpointError: ``out`` exists and ``overwrite`` is off, or it is no checkpoint folder.
    """
    out = Path(out).absolute()
    _check_replaceable(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.new-", dir=out.parent))
    try:
        # mkdtemp makes the folder private; a checkpoint has the rights of any new folder.
        new.chmod(0o777 & ~_umask())
        for part in (model, tokenizer, image_processor):
            if part is not None:
                part.save_pretrained(new)
        _swap(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise CheckpointError(f"A checkpoint is a folder, and {out} is not one. Name another path.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(
            f"{out} exists already, and an existing folder is not overwritten. "
            "Name another folder, or ask for overwrite=True."
        )
    if not (out / "config.json").is_file():
        raise CheckpointError(
            f"{out} is no checkpoint (it has no config.json), so it is not replaced. Name another folder."
        )


def _swap(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out``; what was there before goes only after that."""
    if not out.exists():
        new.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    old = out.rename(aside / out.name)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _located(path: str | os.PathLike[str]) -> str:
    """The folder as text, or the name on the hub as it was given."""
    text = os.fspath(path)
    folder = Path(text).expanduser()
    if folder.is_file():
        if folder.suffix in _PICKLES:
            raise _pickled(folder)
        raise CheckpointError(
            f"A checkpoint is a folder, and {text} is a file. Give the folder that holds it."
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            pickles = _pickles_in(folder)
            if pickles and not (folder / _WEIGHTS).is_file():
                raise _pickled(pickles[0])
            raise CheckpointError(
                f"{text} has no config.json, so it is no checkpoint. Give the folder that save_pretrained wrote."
            )
        return str(folder)
    is_name = text.count("/") <= 1 and not text.startswith((".", "/", "~")) and "\\" not in text
    beside = folder.parent != Path(".") and folder.parent.is_dir()
    if isinstance(path, Path) or not is_name or beside:
        raise CheckpointError(
            f"There is no folder {text}. Check the path, or give the name of a model on the hub."
        )
    return text


def _pickles_in(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix in _PICKLES and file.name != "training_args.bin"
    )


def _pickled(file: Path) -> CheckpointError:
    return CheckpointError(
        f"Weights are read as safetensors only, and {file} is a pickle, which can run code when it is opened. "
        "If you trust it, convert it once: load it with transformers "
        "(from_pretrained(folder, use_safetensors=False)) and write it with save_pretrained(new_folder)."
    )


def _model_type(where: str) -> Any:
    """The model type of a local folder; None for a name on the hub, where only transformers' own are looked for."""
    file = Path(where) / "config.json"
    if not file.is_file():
        return None
    with _as_checkpoint_error(where, "has a config.json that cannot be read"):
        return json.loads(file.read_text(encoding="utf-8")).get("model_type")


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
    with _as_checkpoint_error(where, "has a config.json that cannot be read"):
        return AutoConfig.from_pretrained(where, **options)  # type: ignore[no-any-return]


def _model_class(
    where: str, config: PreTrainedConfig, raw: Mapping[str, Any], trust_remote_code: bool
) -> Any:
    """What has the right ``from_pretrained``: a class of transformers or ours, or an auto class for remote code."""
    names = raw.get("architectures") or []
    if len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(
            f"The config.json of {where} must name one class under architectures, and it names {names}. "
            "Write the name of the model's class there."
        )
    auto_classes = [name for name in raw.get("auto_map", {}) if name.startswith("AutoModel")]
    if trust_remote_code and auto_classes:
        return getattr(transformers, auto_classes[0])
    own = _OWN_TYPES.get(config.model_type)
    home = importlib.import_module(own) if own else transformers
    found = getattr(home, names[0], None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(
            f"The config.json of {where} names the class {names[0]!r}, which neither transformers "
            f"{transformers.__version__} nor amad has. Check architectures, or install a newer transformers."
        )
    if not isinstance(config, found.config_class or PreTrainedConfig):
        raise CheckpointError(
            f"The config.json of {where} contradicts itself: the model type is {config.model_type!r}, and the class "
            f"{names[0]!r} is of the type {getattr(found.config_class, 'model_type', None)!r}. Correct one of them."
        )
    return found


def _check_weights_name(where: str, raw: Mapping[str, Any]) -> None:
    named = raw.get("transformers_weights")
    if named is not None and not str(named).endswith((".safetensors", ".safetensors.index.json")):
        raise _pickled(Path(where) / str(named))


def _check_weight_files(folder: Path, named: str | None) -> None:
    """Every file that holds weights is there, is safetensors, and is whole."""
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is an adapter, and a whole model is needed. Merge it into its base first."
        )
    if (folder / ".metadata").is_file():
        raise _pickled(folder / ".metadata")
    first = folder / (named or _WEIGHTS)
    if named is None and not first.is_file() and (folder / _INDEX).is_file():
        first = folder / _INDEX
    if not first.is_file():
        pickles = _pickles_in(folder)
        if pickles:
            raise _pickled(pickles[0])
        raise CheckpointError(
            f"{folder} has no {first.name}, so it holds no weights. Save the model there again."
        )
    for file in _shards(first) if first.name.endswith(".index.json") else [first]:
        if not file.is_file():
            raise CheckpointError(
                f"{first} names {file.name}, which is not there. Copy the folder again, whole."
            )
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is no whole safetensors file ({error}). Copy it again, or save the model again."
            ) from error


def _shards(index: Path) -> list[Path]:
    with _as_checkpoint_error(str(index), "is no index of weights"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{index} names {name!r}, and shards lie in the folder of their index. Correct the index."
            )
        if not name.endswith(".safetensors"):
            raise _pickled(index.parent / name)
    return [index.parent / name for name in names]


def _check_any_file(where: str, names: Iterable[str], what: str) -> None:
    folder = Path(where)
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{where} has no {what}: none of {', '.join(names)} is there. "
            f"Save it into the folder with its save_pretrained, or name the folder that has it."
        )


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


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED_KEYS} more" if len(ordered) > _LISTED_KEYS else ""
    return f"{len(ordered)}: {', '.join(ordered[:_LISTED_KEYS])}{more}"


@contextmanager
def _as_checkpoint_error(where: str, what: str) -> Iterator[None]:
    """What a library says about a checkpoint that it cannot read, as one error that names the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(where).exists():
            raise CheckpointError(
                f"{where} {what}: {reason} Check the file, or save the model again."
            ) from error
        raise CheckpointError(
            f"There is no folder {where}, and a model of that name was not found on the hub: {reason}"
        ) from error


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
