import re
import sys
from pathlib import Path

import pytest
from torch.utils.data import default_collate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

sys.path.insert(0, str(Path(__file__).parent / "training"))
import toy


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    student = toy.t5(2, 1, 16, seed=0)
    before = toy.weights(student)
    exec(
        code,
        {
            "student": student,
            "teacher": toy.t5(4, 2, 32, seed=1),
            "train": toy.Sentences(),
            "collate": default_collate,
        },
    )
    assert toy.largest_difference(before, toy.weights(student)) > 0


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:recipes|src/amad)/[\w./-]+\.yaml", README))))
def test_every_recipe_that_the_readme_names_is_there(path):
    assert (ROOT / path).is_file()
