"""The command as a function, a small set of scenes, and a small teacher that a real run trained."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
import yaml
from typer.testing import CliRunner

from amad.cli.app import app
from amad.data.shapes import IMAGE_NAME, write_shapes


def snapshot(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def call(*arguments):
    """Run ``amad`` in this process, as the console script would."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def succeed(*arguments):
    done = call(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def document(*arguments):
    """The JSON document of a command; whatever else is on standard output fails here."""
    return json.loads(succeed(*arguments, "--json"))


def refuse(*arguments):
    """The one error of a command that must refuse, on one line."""
    done = call(*arguments)
    assert done.exit_code == 2, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    return " ".join(done.stderr.split())


@pytest.fixture(scope="session")
def amad():
    return SimpleNamespace(
        call=call, succeed=succeed, document=document, refuse=refuse, snapshot=snapshot, write=write
    )


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Relative paths of a recipe lead into the test's folder, and the libraries are as loud as before."""
    monkeypatch.chdir(tmp_path)
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(before)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def write(tree, path="recipe.yaml"):
    """A recipe file; later keys may be dotted: {"training.max_steps": 2}."""
    Path(path).write_text(yaml.safe_dump(tree))
    return Path(path)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Scenes whose training questions have two right answers each, so that answers are sampled."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shapes(folder, 60, seed=1)
    path = folder / "annotations_train.json"
    document = json.loads(path.read_text())
    rows = document["annotations"]
    said = [row["multiple_choice_answer"] for row in rows]
    for row, other in zip(rows, said[1:] + said[:1], strict=True):
        for answer in row["answers"][5:]:
            answer["answer"] = other
    path.write_text(json.dumps(document))
    return folder


def split(name):
    return {
        "questions": f"questions_{name}.json",
        "annotations": f"annotations_{name}.json",
        "image_name": IMAGE_NAME,
    }


@pytest.fixture
def teacher_tree(scenes):
    return _teacher_tree(scenes, "teacher")


def _teacher_tree(scenes, output):
    return {
        "task": "vqa",
        "output": str(output),
        "data": {
            "root": str(scenes),
            "train": split("train"),
            "validation": split("val"),
            "max_input_tokens": 16,
            "max_target_tokens": 3,
        },
        "model": {
            "config": {
                "model_type": "vlt5",
                "visual_source": "patches",
                "image_size": 36,
                "patch_size": 12,
                "n_images": 1,
                "d_model": 16,
                "d_kv": 4,
                "d_ff": 32,
                "num_heads": 4,
                "num_layers": 2,
                "num_decoder_layers": 2,
                "dropout_rate": 0.1,
            }
        },
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": 36,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
        },
    }


@pytest.fixture(scope="session")
def taught(scenes, tmp_path_factory):
    """The run that trained the teacher: its folder and what the command reported."""
    folder = tmp_path_factory.mktemp("taught")
    path = write(_teacher_tree(scenes, folder / "run"), folder / "recipe.yaml")
    return SimpleNamespace(
        folder=folder / "run", model=folder / "run" / "model", result=document("train", path)
    )


@pytest.fixture
def student_tree(teacher_tree, taught):
    tree = {key: value for key, value in teacher_tree.items() if key != "model"}
    return tree | {
        "output": "student",
        "teacher": str(taught.model),
        "student": {"heads": 2, "layers": 0.5, "width": 0.5},
    }


@pytest.fixture
def own_scenes(scenes, tmp_path):
    """A copy of the scenes that a test may break; images are links until they are replaced."""
    copy = tmp_path / "own"
    (copy / "images").mkdir(parents=True)
    for path in scenes.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    for path in (scenes / "images").iterdir():
        os.link(path, copy / "images" / path.name)
    return copy
