"""The processes that a launcher such as torchrun started to share one evaluation."""

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

# Processes wait for the slowest, and for the scorer, longer than the usual ten minutes.
_PATIENCE = timedelta(days=7)


@contextlib.contextmanager
def launched_processes(use_cpu: bool) -> Iterator[Any]:
    """This process among those that were launched, or the only one: accelerate's ``PartialState``.

    Its ``device`` is the accelerator that is this process's, or the CPU. At the end all wait for one another.
    """
    state = PartialState(cpu=use_cpu or not torch.accelerator.is_available(), timeout=_PATIENCE)
    yield state
    # One that leaves early can abort the others.
    state.wait_for_everyone()
    state.destroy_process_group()


@contextlib.contextmanager
def shared_temporary_folder(state: Any) -> Iterator[Path]:
    """A new folder for all processes of one machine; gone when the first of them leaves the block."""
    with tempfile.TemporaryDirectory() if state.is_main_process else contextlib.nullcontext("") as made:
        yield Path(broadcast_object_list([made])[0])
