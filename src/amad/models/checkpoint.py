"""The folder of a checkpoint: what must lie in it, what must not, and how it is written whole."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from amad.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_REASON = 300

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that may hold pickled weights."""


class Saveable(Protocol):
    """A tokenizer, an image processor, or anything else that writes its files into a folder."""

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write the files."""


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: Saveable | None,
    image_processor: Saveable | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder, whole or not at all, and return its path.

    Everything goes to a hidden folder beside ``out``, which is renamed when it is complete. An older
    checkpoint is moved aside only then, and deleted last; if the machine stops between the two renames it
    lies beside ``out`` as ``.NAME.old-*``.

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
    new = _beside(out, "new")
    # Not mkdtemp, which would make the checkpoint readable to its owner alone.
    new.mkdir()
    try:
        for part in (model, tokenizer, image_processor):
            if part is not None:
                part.save_pretrained(new)
        _swap(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out


def located(path: str | os.PathLike[str], *, needs_config: bool = True) -> str:
    """The folder as text, or the name on the hub as it was given.

    Raises:
        CheckpointError: a folder that is not there or has no ``config.json`` though it ``needs_config``, or a
            file.
    """
    text = os.fspath(path)
    folder = Path(text).expanduser()
    if folder.is_file():
        if folder.suffix in PICKLES:
            raise pickled(folder)
        raise CheckpointError(
            f"A checkpoint is a folder, and {text} is a file. Give the folder that holds it."
        )
    if folder.is_dir():
        if needs_config and not (folder / "config.json").is_file():
            pickles = _pickles_in(folder)
            if pickles and not (folder / WEIGHTS).is_file():
                raise pickled(pickles[0])
            raise CheckpointError(
                f"{text} has no config.json, so it is no checkpoint. "
                "Give the folder that save_pretrained wrote."
            )
        return str(folder)
    is_name = text.count("/") <= 1 and not text.startswith((".", "/", "~")) and "\\" not in text
    beside = folder.parent != Path(".") and folder.parent.is_dir()
    if isinstance(path, Path) or not is_name or beside:
        raise CheckpointError(
            f"There is no folder {text}. Check the path, or give the name of a model on the hub."
        )
    return text


def check_weight_files(folder: Path, named: str | None) -> None:
    """See that every file that holds weights is there, is safetensors, and is whole.

    Args:
        folder: The checkpoint.
        named: The file that its ``config.json`` names for the weights, if it does.

    Raises:
        CheckpointError: the first file that is not, and why.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is an adapter, and a whole model is needed. Merge it into its base first."
        )
    first = folder / (named or WEIGHTS)
    if named is None and not first.is_file() and (folder / INDEX).is_file():
        first = folder / INDEX
    if not first.is_file():
        pickles = _pickles_in(folder)
        if pickles:
            raise pickled(pickles[0])
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


def check_any_file(where: str, names: Iterable[str], what: str) -> None:
    """See that a folder has at least one of the files that make up a ``what``.

    Raises:
        CheckpointError: it has none of them.
    """
    folder = Path(where)
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{where} has no {what}: none of {', '.join(names)} is there. "
            f"Save it into the folder with its save_pretrained, or name the folder that has it."
        )


def pickled(file: Path) -> CheckpointError:
    """The error that refuses pickled weights and says how to convert them."""
    return CheckpointError(
        f"Weights are read as safetensors only, and {file} is a pickle, which can run code when it is opened."
        " If you trust it, convert it once: load it with transformers "
        "(from_pretrained(folder, use_safetensors=False)) and write it with save_pretrained(new_folder)."
    )


@contextmanager
def as_checkpoint_error(where: str, what: str) -> Iterator[None]:
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
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        if Path(where).exists():
            raise CheckpointError(
                f"{where} {what}: {reason} Check the file, or save the model again."
            ) from error
        raise CheckpointError(
            f"There is no folder {where}, and a model of that name was not found on the hub: {reason}"
        ) from error


def _pickles_in(folder: Path) -> list[Path]:
    """Files that may be pickles; those that transformers writes weights to come first."""
    found = [file for file in folder.iterdir() if file.suffix in PICKLES and file.name != "training_args.bin"]
    return sorted(found, key=lambda file: (not file.name.startswith("pytorch_model"), file.name))


def _shards(index: Path) -> list[Path]:
    with as_checkpoint_error(str(index), "is no index of weights"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{index} names {name!r}, and shards lie in the folder of their index. Correct the index."
            )
        if not name.endswith(".safetensors"):
            raise pickled(index.parent / name)
    return [index.parent / name for name in names]


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
    old = out.rename(_beside(out, "old"))
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}-{uuid.uuid4().hex[:8]}")
