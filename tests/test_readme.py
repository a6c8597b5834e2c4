import re
import sys
from pathlib import Path

import pytest
from torch.utils.data import default_collate

from amad import build_student, student_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

sys.path.insert(0, str(Path(__file__).parent / "training"))
import toy


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    teacher = toy.t5(4, 2, 32, seed=1)
    names = {"teacher": teacher, "train": toy.Sentences(), "collate": default_collate}
    exec(code, names)
    before = build_student(teacher, student_config(teacher.config, heads=2, layers=0.5, width=0.5))
    assert toy.largest_difference(toy.weights(before), toy.weights(names["student"])) > 0


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:recipes|src/amad)/[\w./-]+\.yaml", README))))
def test_every_recipe_that_the_readme_names_is_there(path):
    assert (ROOT / path).is_file()
