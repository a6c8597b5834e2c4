import subprocess
import sys
from importlib import metadata

import pytest

import amad


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, amad; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", amad.__all__)
def test_every_public_name_resolves_and_is_listed(name):
    assert getattr(amad, name) is not None
    assert name in dir(amad)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        amad.nonsense  # noqa: B018


def test_the_version_is_that_of_the_installed_package():
    assert amad.__version__ == metadata.version("amad")
