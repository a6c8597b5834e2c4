"""Every image of a set opened and decoded once, before it is needed."""

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from amad.data.images import decoded
from amad.data.waiting import Wait, unseen
from amad.errors import DataError

MOST_THREADS = 16
PORTION = 256


def broken_images(paths: Iterable[Path], wait: Wait = unseen) -> dict[Path, str]:
    """What is wrong with each file that is no whole image; nothing of those that are.

    Decoding releases Python's lock, so threads use all cores.

    Args:
        paths: The files; each is decoded once, however often it occurs.
        wait: Shows how far it is.
    """
    files = list(dict.fromkeys(paths))
    broken = {}
    # Filters of warnings belong to the process: they are set once, around all threads.
    with (
        warnings.catch_warnings(),
        wait("decoding images", len(files)) as advance,
        ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads,
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # In portions: an interruption waits for the threads to empty their queue.
        for start in range(0, len(files), PORTION):
            portion = files[start : start + PORTION]
            for path, problem in zip(portion, threads.map(_problem, portion), strict=True):
                if problem is not None:
                    broken[path] = problem
            advance(start + len(portion), len(files))
    return broken


def _problem(path: Path) -> str | None:
    try:
        decoded(path)
    except DataError as error:
        return str(error)
    return None
