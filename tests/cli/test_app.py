import subprocess
import sys

import amad as package


def test_the_version_is_that_of_the_package(amad):
    assert amad.succeed("--version").strip() == f"amad {package.__version__}"


def test_help_names_every_command(amad):
    shown = amad.succeed("--help")
    for name in ("demo", "train", "distill", "evaluate", "inspect", "data", "score"):
        assert name in shown


def test_every_command_explains_itself(amad):
    for command in (
        ["demo"],
        ["train"],
        ["distill"],
        ["evaluate"],
        ["inspect"],
        ["data", "shapes"],
        ["score", "vqa"],
    ):
        assert "--json" in amad.succeed(*command, "--help")


def test_help_needs_no_torch():
    code = "import sys, amad.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_command_ends_with_status_two(amad):
    assert amad.call("distil").exit_code == 2
