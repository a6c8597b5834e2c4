"""From a recipe to a trained model: everything between the YAML file and the checkpoint."""

import contextlib
import math
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord
from amad.capture.recorder import Recorder
from amad.capture.sites import Site, find_sites
from amad.data.collate import Seq2SeqCollator
from amad.data.images import ImageTransform, load_image_transform, new_image_transform
from amad.data.paths import write_whole
from amad.data.tokens import train_tokenizer
from amad.data.vqa import VqaDataset
from amad.errors import RecipeError
from amad.losses.amad import AttentionAlignment
from amad.losses.logits import LogitsDistillation
from amad.losses.objective import Objective, Term
from amad.losses.task import TaskLoss
from amad.models.checkpoint import located
from amad.models.load import load_model, load_tokenizer, save_checkpoint
from amad.models.student import build_student, check_compatible, student_config
from amad.recipe import Recipe
from amad.records import RunRecords, environment
from amad.training.arguments import DistillationArguments, make_arguments
from amad.training.callbacks import AnnouncedEpoch, KeptRecords, ShownProgress
from amad.training.models import check_same_words, new_model
from amad.training.pairing import Pairing
from amad.training.plan import record_bytes, stack_rows
from amad.training.resumption import (
    CHECKPOINTS_FOLDER,
    MODEL_FOLDER,
    RECIPE_FILE,
    RECORDS_FILE,
    check_new,
    find_checkpoint,
)
from amad.training.splits import vqa_splits
from amad.training.trainer import DistillationTrainer
from amad.training.values import checked_values


class TrainingRun:
    """One run of ``amad train`` or ``amad distill``.

    Nothing is loaded before it is needed and nothing is written before everything is loaded and checked. The
    folder ``output`` then has ``recipe.yaml`` (resolved), ``records.jsonl``, ``checkpoints/`` if the recipe asks
    for any, and at the end ``model/``, an ordinary checkpoint.

    Args:
        recipe: The run.
        with_teacher: Distil. Otherwise the loss is the task's alone; a recipe with a teacher then still gives
            its student, with the same start, data and budget.
        console: Where progress is drawn.

    Raises:
        RecipeError: if the recipe lacks what this kind of run needs.
    """

    def __init__(self, recipe: Recipe, *, with_teacher: bool, console: Console) -> None:
        self.recipe = recipe
        self.with_teacher = with_teacher
        self.console = console
        self.output = Path(recipe.output)
        if recipe.model is None and not recipe.distils:
            raise RecipeError(
                "the recipe has neither 'model' nor 'teacher' and 'student'. amad train needs model, or teacher "
                "and student; amad distill needs teacher and student."
            )
        if with_teacher and not recipe.distils:
            missing = "teacher" if recipe.teacher is None else "student"
            raise RecipeError(f"amad distill needs {missing!r} in the recipe. Add it, or use amad train.")
        if not with_teacher and recipe.objective.task is None:
            raise RecipeError("training without a teacher needs objective.task, which is null. Leave it out.")
        # Answers are as long while training as amad evaluate lets them be; the start token counts here.
        training = {"generation_max_length": recipe.data.max_target_tokens + 1}
        training |= checked_values(recipe.training)
        self.arguments: DistillationArguments = make_arguments(
            str(self.output / CHECKPOINTS_FOLDER), recipe.seed, training
        )
        if self.arguments.eval_strategy != "no" and not (recipe.data.validation or recipe.data.holdout):
            raise RecipeError(
                f"training.eval_strategy is {self.arguments.eval_strategy.value}, and there is nothing to evaluate "
                f"on. Give data.validation or data.holdout, or leave training.eval_strategy out."
            )

    # ------------------------------------------------------------------ parts

    @cached_property
    def _home(self) -> str | None:
        """Checkpoint folder whose tokenizer and image processor the run uses."""
        recipe = self.recipe
        home = recipe.teacher if recipe.distils else None if recipe.model is None else recipe.model.path
        return None if home is None else located(home)

    @cached_property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher, in float32; None without one or without a student."""
        if self.recipe.teacher is None or not self.recipe.distils:
            return None
        return load_model(self.recipe.teacher, dtype=torch.float32)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer, the model's own, or one trained on the words of the training set."""
        model = self.recipe.model
        folder = self._home or (model.tokenizer if model is not None else None)
        return load_tokenizer(folder) if folder else train_tokenizer(self.datasets[0].texts())

    @cached_property
    def image_transform(self) -> ImageTransform:
        """What makes pixels of images, as the checkpoint says, or at the size in the configuration."""
        if self._home is not None:
            return load_image_transform(self._home)
        config = (self.recipe.model.config or {}) if self.recipe.model is not None else {}
        size = config.get("image_size") or (config.get("vision_config") or {}).get("image_size")
        if not isinstance(size, int) or size < 1:
            raise RecipeError(
                f"model.config.image_size is {size!r}, so it is not known at what size images are read. Give the "
                f"height and width of images in pixels."
            )
        return new_image_transform(size)

    @cached_property
    def datasets(self) -> tuple[VqaDataset, VqaDataset | None]:
        """The training and the validation set."""
        return vqa_splits(self.recipe.data, self.recipe.seed, self.image_transform.resize)

    @cached_property
    def collator(self) -> Seq2SeqCollator:
        """Makes batches; of one fixed length where a trained projection needs maps of one size."""
        data, attention = self.recipe.data, self.recipe.objective.attention
        projected = self.with_teacher and attention is not None and attention.variant == "projected"
        return Seq2SeqCollator(
            self.tokenizer,
            self.image_transform,
            data.max_input_tokens,
            data.max_target_tokens,
            pad_to_max=projected,
        )

    @cached_property
    def model(self) -> PreTrainedModel:
        """What is trained, at its start: a function of the recipe and its seed alone."""
        recipe, student = self.recipe, self.recipe.student
        if student is not None and self.teacher is not None:
            if student.path is not None:
                own = load_model(student.path, dtype=torch.float32)
                check_compatible(own, self.teacher)
                check_same_words(student.path, self.tokenizer)
                return own
            taken = {"heads", "layers", "width"} & student.config.keys()
            if taken:
                raise RecipeError(
                    f"student.config.{min(taken)} is decided by student.{min(taken)}. Move it there."
                )
            sizes = {"heads": student.heads, "layers": student.layers, "width": student.width}
            config = student_config(self.teacher.config, **sizes, **student.config)
            return build_student(self.teacher, config, init=student.init, seed=recipe.seed)
        if recipe.model is not None and recipe.model.path is not None:
            return load_model(recipe.model.path, dtype=torch.float32)
        config_values = (recipe.model.config or {}) if recipe.model is not None else {}
        return new_model(config_values, self.tokenizer, recipe.seed)

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Attention sites of the model, and of the teacher if there is one."""
        if self.teacher is None:
            return {"model": find_sites(self.model)}
        return {"student": find_sites(self.model), "teacher": find_sites(self.teacher)}

    @cached_property
    def pairing(self) -> Pairing:
        """Who learns from whom; empty without an attention term."""
        term = self.recipe.objective.attention
        if not self.with_teacher or term is None:
            return Pairing(())
        return Pairing.make(
            [site.key for site in self.sites["student"]],
            [site.key for site in self.sites["teacher"]],
            self.recipe.pairing,
            term.stacks,
        )

    @cached_property
    def objective(self) -> Objective:
        """The loss, with the parameters that the ``projected`` variant trains."""
        chosen = self.recipe.objective
        terms: dict[str, tuple[float, Term]] = {}
        if chosen.task is not None:
            terms["task"] = (
                chosen.task.weight,
                TaskLoss(reduction=chosen.task.reduction, label_smoothing=chosen.task.label_smoothing),
            )
        if self.with_teacher and chosen.logits is not None:
            terms["logits"] = (chosen.logits.weight, LogitsDistillation(chosen.logits.temperature))
        if self.with_teacher and chosen.attention is not None:
            attention = AttentionAlignment(
                self.pairing.pairs,
                variant=chosen.attention.variant,
                temperature=chosen.attention.temperature,
                detach_alignment=chosen.attention.detach_alignment,
                projection=chosen.attention.projection,
            )
            if chosen.attention.variant == "projected":
                attention.prepare(self._student_records())
            terms["attention"] = (chosen.attention.weight, attention)
        return Objective(terms)

    # ------------------------------------------------------------------ looking

    def plan(self) -> dict[str, Any]:
        """What would be done: ``sites`` (rows of ``STACK_COLUMNS``), ``pairs`` and a ``summary``.

        Nothing is written. Everything that a run checks before its first step is checked, but for the output
        folder and what only computing shows.
        """
        train, validation = self.datasets
        arguments = self.arguments
        steps = arguments.max_steps
        if steps <= 0:
            steps = math.ceil(arguments.num_train_epochs * self._steps_per_epoch)
        trained = self.model.num_parameters()
        frozen = 0 if self.teacher is None or not self.with_teacher else self.teacher.num_parameters()
        summary: dict[str, Any] = {
            "training questions": len(train),
            "validation questions": 0 if validation is None else len(validation),
            "optimiser steps": steps,
            "examples per step": self._examples_per_step,
            "parameters trained": trained,
            "parameters of the teacher": frozen,
            "weights, gradients and Adam (MiB)": round((16 * trained + 4 * frozen) / 2**20, 1),
        }
        if len(self.pairing):
            records = [*self._student_records().values(), *self._teacher_records().values()]
            recorded, maps = record_bytes(records, arguments.train_batch_size)
            summary["recorded queries and keys (MiB)"] = round(recorded / 2**20, 1)
            summary["their attention maps would take (MiB)"] = round(maps / 2**20, 1)
        return {"sites": stack_rows(self.sites), "pairs": self.pair_rows(), "summary": summary}

    def pair_rows(self) -> list[tuple[str, str, float]]:
        """Student site, teacher site and weight of every pair."""
        return [(str(pair.student), str(pair.teacher), pair.weight) for pair in self.pairing]

    def _student_records(self) -> dict[SiteKey, AttentionRecord]:
        return self._records(self.model, "student", self.pairing.student_keys)

    def _teacher_records(self) -> dict[SiteKey, AttentionRecord]:
        return (
            {} if self.teacher is None else self._records(self.teacher, "teacher", self.pairing.teacher_keys)
        )

    def _records(
        self, model: PreTrainedModel, who: str, keys: list[SiteKey]
    ) -> dict[SiteKey, AttentionRecord]:
        """Records of a forward on one or two training examples."""
        batch = self.collator([self.datasets[0][index] for index in range(min(2, len(self.datasets[0])))])
        batch.pop("label_weights", None)
        chosen = [site for site in self.sites[who] if site.key in keys]
        with torch.no_grad(), Recorder(model, chosen, detach=True) as recorder:
            model(**batch)
            return recorder.take(batch)

    # ------------------------------------------------------------------ counting

    @property
    def _examples_per_step(self) -> int:
        arguments = self.arguments
        return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.datasets[0]) / self._examples_per_step)

    def examples_seen(self, step: int) -> int:
        """Training examples seen after so many optimiser steps; the last step of an epoch may see fewer."""
        whole, rest = divmod(step, self._steps_per_epoch)
        n_examples = len(self.datasets[0])
        return whole * n_examples + min(rest * self._examples_per_step, n_examples)

    # ------------------------------------------------------------------ doing

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Train, save, and return what came out.

        Args:
            resume: Go on from the last checkpoint of the output folder.

        Returns:
            ``output``, ``model`` (folders), ``accuracy`` (percent on the validation set, if there is one with
            answers), ``examples_seen``, ``train_seconds``, ``parameters``, and ``curve``: (examples seen,
            accuracy).

        Raises:
            RecipeError: if the output exists and ``resume`` is off, or there is no checkpoint to resume from.
        """
        if not resume:
            check_new(self.output)
        checkpoint = find_checkpoint(self.output, self.recipe, self.with_teacher) if resume else None
        with _without_empty_folders(self.output / CHECKPOINTS_FOLDER, self.output):
            trainer, shown = self._trainer()
            self.output.mkdir(parents=True, exist_ok=True)
            write_whole(self.output / RECIPE_FILE, self.recipe.dump())
            with contextlib.closing(shown), RunRecords(self.output / RECORDS_FILE) as records:
                self._write_start(records, checkpoint)
                trainer.add_callback(KeptRecords(records, lambda: trainer.alignment, self.examples_seen))
                started = time.perf_counter()
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                seconds = time.perf_counter() - started
                # Before anything else that could fail.
                save_checkpoint(
                    self.model,
                    self.tokenizer,
                    self.image_transform,
                    self.output / MODEL_FOLDER,
                    overwrite=True,
                )
                result = self._result(trainer, seconds)
                records.write("timing", **{key: result[key] for key in ("train_seconds", "examples_seen")})
                if "accuracy" in result:
                    records.write("metrics", final=True, accuracy=result["accuracy"])
        return result

    def _result(self, trainer: DistillationTrainer, seconds: float) -> dict[str, Any]:
        state = trainer.state
        if self._is_scored and not any(
            entry["step"] == state.global_step and "eval_accuracy" in entry for entry in state.log_history
        ):
            trainer.evaluate()
        curve = [
            (self.examples_seen(entry["step"]), entry["eval_accuracy"])
            for entry in state.log_history
            if "eval_accuracy" in entry
        ]
        result: dict[str, Any] = {
            "output": str(self.output),
            "model": str(self.output / MODEL_FOLDER),
            "examples_seen": self.examples_seen(state.global_step),
            "train_seconds": round(seconds, 1),
            "parameters": self.model.num_parameters(),
            "curve": curve,
        }
        if curve:
            result["accuracy"] = round(curve[-1][1], 2)
        return result

    def _trainer(self) -> tuple[DistillationTrainer, ShownProgress]:
        train, validation = self.datasets
        trainer = DistillationTrainer(
            model=self.model,
            teacher_model=self.teacher if self.with_teacher else None,
            args=self.arguments,
            objective=self.objective,
            pairing=self.pairing,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=self.collator,
            processing_class=self.tokenizer,
            compute_metrics=self._accuracy if self._is_scored else None,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        shown = ShownProgress(self.console, "distilling" if self.with_teacher else "training")
        trainer.add_callback(shown)
        trainer.add_callback(AnnouncedEpoch(train.set_epoch))
        return trainer, shown

    @property
    def _is_scored(self) -> bool:
        validation = self.datasets[1]
        return validation is not None and any(example.scores for example in validation.examples)

    def _accuracy(self, prediction: Any) -> dict[str, float]:
        """VQA accuracy in percent of what was generated; official where ten answers are known."""
        validation = self.datasets[1]
        if validation is None:
            return {}
        tokens = torch.as_tensor(prediction.predictions)
        tokens = tokens.masked_fill(tokens < 0, int(self.tokenizer.pad_token_id or 0))
        said = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        scores = [example.accuracy(answer) for example, answer in zip(validation.examples, said, strict=True)]
        return {"accuracy": 100 * sum(scores) / len(scores)}

    def _write_start(self, records: RunRecords, checkpoint: Path | None) -> None:
        records.write("recipe", recipe=self.recipe.model_dump(mode="json"), with_teacher=self.with_teacher)
        records.write("environment", **environment(str(self.arguments.device)))
        records.write("seeds", seed=self.recipe.seed)
        if checkpoint is not None:
            records.write("note", resumed_from=checkpoint.name)
        pairs = [dict(zip(("student", "teacher", "weight"), row, strict=True)) for row in self.pair_rows()]
        records.write("note", pairs=pairs)


@contextlib.contextmanager
def _without_empty_folders(*folders: Path) -> Iterator[None]:
    """Leave none of these folders behind empty, innermost first: the trainer makes them before it needs them."""
    try:
        yield
    finally:
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
