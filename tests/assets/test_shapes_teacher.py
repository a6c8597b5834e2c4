import json
from pathlib import Path

import pytest
import torch

import amad
from amad.data.collate import Seq2SeqCollator
from amad.data.images import load_image_transform
from amad.data.shapes import write_shapes
from amad.evaluation.evaluate import accuracy, answer_questions
from amad.models.load import load_model, load_tokenizer
from amad.recipe import load_recipe
from amad.training.tasks import load_task

ASSETS = Path(amad.__file__).parent / "assets"
TEACHER = ASSETS / "shapes-teacher"


def test_the_teacher_that_ships_is_small():
    assert sum(file.stat().st_size for file in TEACHER.iterdir()) < 3 * 2**20
    assert not [file for file in TEACHER.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_its_recipe_describes_it():
    recipe = load_recipe(ASSETS / "shapes-teacher.yaml")
    config = json.loads((TEACHER / "config.json").read_text())
    assert {key: config[key] for key in recipe.model.config} == recipe.model.config
    provenance = json.loads((TEACHER / "provenance.json").read_text())
    assert recipe.training["max_steps"] == provenance["steps"]
    assert recipe.training["per_device_train_batch_size"] == provenance["batch_size"]
    assert recipe.seed == provenance["seed"]


@pytest.mark.slow
def test_it_scores_what_its_provenance_claims(tmp_path):
    claimed = json.loads((TEACHER / "provenance.json").read_text())["validation"]
    summary = write_shapes(tmp_path / "scenes", 8000, seed=1)
    assert summary.baselines.question_only == pytest.approx(claimed["question_only_accuracy"], abs=0.01)
    transform = load_image_transform(TEACHER)
    data = load_recipe(ASSETS / "shapes-teacher.yaml", [f"data.root={tmp_path / 'scenes'}"]).data
    data = data.model_copy(update={"max_validation_questions": None})
    validation = load_task(data, 0, transform.resize).validation
    tokenizer = load_tokenizer(TEACHER)
    results = answer_questions(
        load_model(TEACHER, dtype=torch.float32),
        tokenizer,
        validation,
        Seq2SeqCollator(tokenizer, transform, data.max_input_tokens, data.max_target_tokens),
        batch_size=400,
        max_new_tokens=data.max_target_tokens,
    )
    assert len(results) == 3200
    assert accuracy(validation, results) == pytest.approx(claimed["accuracy"], abs=0.2)
