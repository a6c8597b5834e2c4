import math
import sys
from pathlib import Path

import datasets
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from amad.errors import RecipeError
from amad.losses.objective import Objective
from amad.losses.task import TaskLoss
from amad.training.arguments import DistillationArguments, make_arguments
from amad.training.schedule import hold_within_epochs
from amad.training.trainer import DistillationTrainer

sys.path.insert(0, str(Path(__file__).parent))
import toy


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)


def test_a_cosine_by_epochs_is_that_of_its_authors():
    made = optimizer()
    scheduler = get_scheduler("cosine", made, num_warmup_steps=0, num_training_steps=70)
    hold_within_epochs(scheduler, 7)
    rates = []
    for _ in range(70):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    # utils.py of BLIP's code: (init - min) * 0.5 * (1 + cos(pi epoch / max_epoch)) + min, with min 0.
    authors = [2e-5 * 0.5 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(10)]
    assert rates == pytest.approx([rate for rate in authors for _ in range(7)], rel=1e-12)


def test_a_schedule_that_steps_do_not_decide_is_refused():
    with pytest.raises(RecipeError, match=r"ReduceLROnPlateau is none.*cosine"):
        hold_within_epochs(ReduceLROnPlateau(optimizer()), 7)


# Sixteen examples in batches of eight: two steps an epoch.
EPOCHS = {"max_steps": -1, "num_train_epochs": 3, "lr_scheduler_type": "cosine", "learning_rate": 0.1}


def rates_of(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_a_run_holds_its_learning_rate_through_each_epoch(tmp_path):
    trainer = toy.trainer(tmp_path, **EPOCHS, lr_scheduler_interval="epoch")
    trainer.train()
    assert rates_of(trainer) == pytest.approx([0.1, 0.1, 0.075, 0.075, 0.025, 0.025])
    trainer = toy.trainer(tmp_path, **EPOCHS)
    trainer.train()
    assert len(set(rates_of(trainer))) == 6


@pytest.mark.parametrize("kept", [2, 3])
def test_a_resumed_run_goes_on_at_the_same_rate(tmp_path, kept):
    settings = EPOCHS | {"lr_scheduler_interval": "epoch", "save_strategy": "steps", "save_steps": 1}
    straight = toy.trainer(tmp_path / "straight", **settings)
    straight.train()
    resumed = toy.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{kept}"))
    assert rates_of(resumed) == rates_of(straight)
    assert toy.largest_difference(toy.weights(straight.model), toy.weights(resumed.model)) == 0.0


def test_an_interval_that_is_not_known_or_would_change_nothing_is_refused(tmp_path):
    trainer = toy.trainer(tmp_path, max_steps=2, lr_scheduler_type="cosine", lr_scheduler_interval="epoch")
    trainer.create_optimizer()
    with pytest.raises(RecipeError, match=r"nobody knows before train"):
        trainer.create_scheduler(2)
    trainer = toy.trainer(tmp_path, max_steps=2, lr_scheduler_type="cosine", lr_scheduler_interval="epoch")
    trainer.train_dataset = datasets.IterableDataset.from_generator(
        lambda: (toy.Sentences()[index] for index in range(16))
    )
    with pytest.raises(RecipeError, match="which a stream does not have"):
        trainer.train()
    made = optimizer()
    with pytest.raises(RecipeError, match="a scheduler is given in optimizers"):
        DistillationTrainer(
            toy.t5(2, 1, 16, seed=0),
            args=DistillationArguments(str(tmp_path), use_cpu=True, lr_scheduler_interval="epoch"),
            objective=Objective({"task": (1.0, TaskLoss())}),
            optimizers=(made, get_scheduler("constant", made)),
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scheduler_interval": "batch"}, "one of step, epoch, and 'batch'"),
        ({"lr_scheduler_interval": "epoch", "warmup_steps": 0.05}, "warmup_steps 0.05 it would be zero"),
        (
            {
                "lr_scheduler_interval": "epoch",
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "eval_strategy": "steps",
            },
            "reduce_lr_on_plateau is none",
        ),
        ({"drop_path_rate": 1.0}, "drop_path_rate is at least 0 and below 1, and 1.0"),
        ({"no_decay": "bias"}, "no_decay is a list of parts of names, and 'bias'"),
        ({"no_decay": [""]}, "no_decay is a list of parts of names"),
    ],
)
def test_arguments_that_have_no_meaning_are_refused(tmp_path, given, message):
    with pytest.raises(RecipeError, match=message):
        make_arguments(str(tmp_path), 0, given)


@pytest.mark.parametrize("no_decay", [None, [], ["bias"], ["layer_norm", "SelfAttention.q"]])
def test_only_what_is_named_is_spared_by_weight_decay(tmp_path, no_decay):
    """With nothing but decay, AdamW multiplies what decays by 1 - rate * decay, and leaves the rest."""
    trainer = toy.trainer(
        tmp_path,
        optim="adamw_torch",
        learning_rate=0.1,
        weight_decay=0.5,
        no_decay=no_decay,
    )
    before = toy.weights(trainer.model)
    trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    spared = ["bias", "norm"] if no_decay is None else no_decay
    for name, now in toy.weights(trainer.model).items():
        factor = 1.0 if any(part in name for part in spared) else 0.95
        torch.testing.assert_close(now, before[name] * factor)


@pytest.mark.parametrize("metric", ["eval_loss_task", "loss_task+loss_logits"])
def test_of_losses_the_least_is_the_best(tmp_path, metric):
    trainer = toy.trainer(
        tmp_path,
        max_steps=3,
        learning_rate=0.01,
        metric_for_best_model=metric,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
    )
    trainer.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [entry[name] for entry in trainer.state.log_history if name in entry]
    assert len(set(values)) == 3
    assert trainer.state.best_metric == min(values)


def test_a_sum_of_losses_and_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="adds loss_task, of which less is better"):
        toy.trainer(tmp_path, metric_for_best_model="CIDEr+eval_loss_task")


def test_the_best_model_may_be_that_of_a_sum(tmp_path):
    trainer = toy.trainer(
        tmp_path,
        max_steps=3,
        learning_rate=1.0,
        metric_for_best_model="loss_task+eval_loss_logits",
        greater_is_better=False,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
    )
    trainer.eval_dataset = toy.Sentences(8)
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_loss_task" in entry]
    sums = [entry["eval_loss_task"] + entry["eval_loss_logits"] for entry in found]
    # Under the name that was given, which is where Trainer and its callbacks look.
    assert [entry["eval_loss_task+eval_loss_logits"] for entry in found] == pytest.approx(sums)
    assert trainer.state.best_metric == pytest.approx(min(sums))
    best = found[sums.index(min(sums))]["step"]
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert len(sums) == 3
