"""From a recipe to a trained model: everything between the YAML file and the checkpoint."""

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from amad.axes import SitePair
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
from amad.metrics.vqa import mean_accuracy
from amad.models.load import load_model, load_tokenizer, save_checkpoint
from amad.models.student import build_student, student_config
from amad.recipe import Recipe
from amad.records import RunRecords, environment
from amad.training.arguments import DistillationArguments, make_arguments
from amad.training.callbacks import KeptRecords, ShownProgress
from amad.training.pairing import Pairing
from amad.training.splits import vqa_splits
from amad.training.trainer import DistillationTrainer

RECIPE_FILE = "recipe.yaml"
RECORDS_FILE = "records.jsonl"
MODEL_FOLDER = "model"
CHECKPOINTS_FOLDER = "checkpoints"


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
        if recipe.model is None and (recipe.teacher is None or recipe.student is None):
            raise RecipeError(
                "the recipe has neither 'model' nor 'teacher' and 'student'. amad train needs model, or teacher "
                "and student; amad distill needs teacher and student."
            )
        if with_teacher and (recipe.teacher is None or recipe.student is None):
            missing = "teacher" if recipe.teacher is None else "student"
            raise RecipeError(f"amad distill needs {missing!r} in the recipe. Add it, or use amad train.")
        if not with_teacher and recipe.objective.task is None:
            raise RecipeError("training without a teacher needs objective.task, which is null.")
        self.arguments: DistillationArguments = make_arguments(
            str(self.output / CHECKPOINTS_FOLDER), recipe.seed, recipe.training
        )

    # ------------------------------------------------------------------ parts

    @cached_property
    def _home(self) -> str | None:
        """Checkpoint folder whose tokenizer and image processor the run uses."""
        recipe = self.recipe
        if recipe.teacher is not None and recipe.student is not None:
            return recipe.teacher
        return None if recipe.model is None else recipe.model.path

    @cached_property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher, in float32."""
        if self.recipe.teacher is None or self.recipe.student is None:
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
        if "image_size" not in config:
            raise RecipeError(
                "model.config has no image_size, so it is not known at what size images are read."
            )
        return new_image_transform(int(config["image_size"]))

    @cached_property
    def datasets(self) -> tuple[VqaDataset, VqaDataset | None]:
        """The training and the validation set."""
        return vqa_splits(self.recipe.data, self.recipe.seed, self.image_transform.resize)

    @cached_property
    def collator(self) -> Seq2SeqCollator:
        """Makes batches."""
        data = self.recipe.data
        return Seq2SeqCollator(
            self.tokenizer, self.image_transform, data.max_input_tokens, data.max_target_tokens
        )

    @cached_property
    def model(self) -> PreTrainedModel:
        """What is trained, at its start: a function of the recipe and its seed alone."""
        recipe, seed = self.recipe, self.recipe.seed
        if recipe.student is not None and self.teacher is not None:
            student = recipe.student
            if student.path is not None:
                return load_model(student.path, dtype=torch.float32)
            config = student_config(
                self.teacher.config,
                heads=student.heads,
                layers=student.layers,
                width=student.width,
                **student.config,
            )
            return build_student(self.teacher, config, init=student.init, seed=seed)
        assert recipe.model is not None
        if recipe.model.path is not None:
            return load_model(recipe.model.path, dtype=torch.float32)
        return self._new_model(dict(recipe.model.config or {}))

    def _new_model(self, values: dict[str, Any]) -> PreTrainedModel:
        import amad.models.vlt5  # noqa: F401 - registers the model type

        model_type = values.pop("model_type", None)
        if model_type is None:
            raise RecipeError("model.config has no model_type. Name one, for instance vlt5.")
        tokenizer = self.tokenizer
        values |= {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.pad_token_id,
        }
        set_seed(self.recipe.seed)
        try:
            model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(
                AutoConfig.for_model(model_type, **values)
            )
        except (ValueError, TypeError, KeyError) as error:
            raise RecipeError(f"model.config makes no model: {error}") from None
        return model

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Attention sites of the model, and of the teacher if there is one."""
        found = {"student" if self.teacher is not None else "model": find_sites(self.model)}
        if self.teacher is not None:
            found["teacher"] = find_sites(self.teacher)
        return found

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
                attention.prepare(self._records_of_one_batch()[0])
            terms["attention"] = (chosen.attention.weight, attention)
        return Objective(terms)

    # ------------------------------------------------------------------ looking

    def describe_sites(self) -> dict[str, list[tuple[Any, ...]]]:
        """For each model, one row per site: stack, layer, heads, key heads, head width, back-end, module."""
        return {
            name: [
                (
                    site.key.stack,
                    site.key.layer,
                    site.n_heads,
                    site.n_kv_heads,
                    site.width,
                    site.backend,
                    site.name,
                )
                for site in sites
            ]
            for name, sites in self.sites.items()
        }

    def plan(self) -> dict[str, Any]:
        """What would be done: sites, pairs, steps and memory. Nothing is written."""
        sites = [
            (name, stack, len(rows), _range(row.n_heads for row in rows), _range(row.width for row in rows))
            for name, found in self.sites.items()
            for stack, rows in _by_stack(found).items()
        ]
        train, validation = self.datasets
        arguments = self.arguments
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        steps = arguments.max_steps
        if steps <= 0:
            steps = int(arguments.num_train_epochs * -(-len(train) // batch))
        trained = sum(parameter.numel() for parameter in self.model.parameters())
        frozen = (
            0 if self.teacher is None else sum(parameter.numel() for parameter in self.teacher.parameters())
        )
        summary: dict[str, Any] = {
            "training questions": len(train),
            "validation questions": 0 if validation is None else len(validation),
            "optimiser steps": steps,
            "examples per step": batch,
            "parameters trained": trained,
            "parameters of the teacher": frozen,
            "weights, gradients and Adam (MiB)": round((16 * trained + 4 * frozen) / 2**20, 1),
        }
        if len(self.pairing):
            recorded, maps = self._record_bytes(arguments.train_batch_size)
            summary["recorded queries and keys (MiB)"] = round(recorded / 2**20, 1)
            summary["their attention maps would take (MiB)"] = round(maps / 2**20, 1)
        return {
            "sites": sites,
            "pairs": [(str(pair.student), str(pair.teacher), pair.weight) for pair in self.pairing],
            "summary": summary,
        }

    def _records_of_one_batch(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Records of student and teacher on two training examples."""
        batch = self.collator([self.datasets[0][index] for index in range(min(2, len(self.datasets[0])))])
        batch.pop("label_weights", None)
        records = []
        for name, model, keys in (
            ("student", self.model, self.pairing.student_keys),
            ("teacher", self.teacher, self.pairing.teacher_keys),
        ):
            if model is None:
                continue
            chosen = [site for site in self.sites[name] if site.key in keys]
            with torch.no_grad(), Recorder(model, chosen, detach=True) as recorder:
                model(**batch)
                records.append(recorder.take(batch))
        return records[0], records[1]

    def _record_bytes(self, batch_size: int) -> tuple[int, int]:
        recorded = maps = 0
        for records in self._records_of_one_batch():
            for record in records.values():
                share = batch_size / record.n_batch
                recorded += int(share * 4 * (record.query.numel() + record.key.numel()))
                shape = record.map_shape
                maps += 4 * batch_size * shape[1] * shape[2] * shape[3]
        return recorded, maps

    # ------------------------------------------------------------------ doing

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Train, save, and return what came out.

        Args:
            resume: Go on from the last checkpoint of the output folder.

        Returns:
            ``output``, ``model`` (folders), ``accuracy`` (percent on the validation set, if there is one),
            ``examples_seen``, ``train_seconds``, ``parameters``, and ``curve``: (examples seen, accuracy).

        Raises:
            RecipeError: if the output exists and ``resume`` is off, or there is no checkpoint to resume from.
        """
        checkpoint = self._find_checkpoint(resume)
        trainer = self._trainer()
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(self.output / RECIPE_FILE, self.recipe.dump())
        with RunRecords(self.output / RECORDS_FILE) as records:
            self._write_start(records, checkpoint)
            trainer.add_callback(KeptRecords(records, lambda: trainer.alignment))
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=checkpoint)
            seconds = time.perf_counter() - started
            result = self._finish(trainer, seconds)
            records.write("timing", **{key: result[key] for key in ("train_seconds", "examples_seen")})
            if "accuracy" in result:
                records.write("metrics", final=True, accuracy=result["accuracy"])
        return result

    def _finish(self, trainer: DistillationTrainer, seconds: float) -> dict[str, Any]:
        state = trainer.state
        if self.datasets[1] is not None and not any(
            entry["step"] == state.global_step and "eval_accuracy" in entry for entry in state.log_history
        ):
            trainer.evaluate()
        folder = save_checkpoint(
            self.model, self.tokenizer, self.image_transform, self.output / MODEL_FOLDER, overwrite=True
        )
        per_step = self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
        per_step *= self.arguments.world_size
        curve = [
            (entry["step"] * per_step, entry["eval_accuracy"])
            for entry in state.log_history
            if "eval_accuracy" in entry
        ]
        result: dict[str, Any] = {
            "output": str(self.output),
            "model": str(self.output / folder.name),
            "examples_seen": state.global_step * per_step,
            "train_seconds": round(seconds, 1),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "curve": curve,
        }
        if curve:
            result["accuracy"] = round(curve[-1][1], 2)
        return result

    def _find_checkpoint(self, resume: bool) -> str | None:
        folder = self.output / CHECKPOINTS_FOLDER
        if not resume:
            if self.output.exists() and any(self.output.iterdir()):
                raise RecipeError(
                    f"output folder {self.output} is not empty, and nothing in it is overwritten. Give another with "
                    f"output=..., remove it, or go on with --resume."
                )
            return None
        checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if checkpoint is None:
            raise RecipeError(
                f"{folder} holds no checkpoint to resume from. Set training.save_steps lower than the number of "
                f"steps, with training.save_strategy=steps, and start again."
            )
        return str(checkpoint)

    def _trainer(self) -> DistillationTrainer:
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
            compute_metrics=None if validation is None else self._accuracy,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ShownProgress(self.console, "distilling" if self.with_teacher else "training"))
        return trainer

    def _accuracy(self, prediction: Any) -> dict[str, float]:
        """Official VQA accuracy in percent of what was generated."""
        validation = self.datasets[1]
        if validation is None:
            return {}
        tokens = torch.as_tensor(prediction.predictions)
        tokens = tokens.masked_fill(tokens < 0, int(self.tokenizer.pad_token_id or 0))
        said = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return {"accuracy": mean_accuracy((example.answers or () for example in validation.examples), said)}

    def _write_start(self, records: RunRecords, checkpoint: str | None) -> None:
        records.write("recipe", recipe=self.recipe.model_dump(mode="json"), with_teacher=self.with_teacher)
        records.write("environment", **environment(str(self.arguments.device)))
        records.write("seeds", seed=self.recipe.seed)
        if checkpoint is not None:
            records.write("note", resumed_from=Path(checkpoint).name)
        records.write("note", pairs=[_plain(pair) for pair in self.pairing])


def _plain(pair: SitePair) -> dict[str, Any]:
    return {"student": str(pair.student), "teacher": str(pair.teacher), "weight": pair.weight}


def _by_stack(sites: list[Site]) -> Mapping[str, list[Site]]:
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.key.stack, []).append(site)
    return stacks


def _range(values: Any) -> str:
    numbers = sorted(set(values))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
