import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import browser as chromium


@pytest.fixture(scope="session")
def browser():
    """One window for all tests of a page."""
    if missing := chromium.missing():
        pytest.skip(missing)
    window = chromium.Browser()
    yield window
    window.close()
