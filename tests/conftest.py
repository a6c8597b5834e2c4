"""Shape checks in every signature, determinism, and where the real data lies."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker a core: more threads than cores would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# What tests read is not kept among the user's data sets.
_store = tempfile.TemporaryDirectory(prefix="amad-tests-")
os.environ["HF_DATASETS_CACHE"] = _store.name

from jaxtyping import install_import_hook

install_import_hook(["amad.capture", "amad.ops", "amad.losses"], "beartype.beartype")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("amad", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("amad")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real data folder beside the checkout")
    return SHARED_DATA
