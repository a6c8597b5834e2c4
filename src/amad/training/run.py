"""From a recipe to a trained model: everything between the YAML file and the checkpoint."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from amad.data.captions import CaptionDataset
from amad.data.paths import write_whole
from amad.data.pretraining import PretrainingDataset
from amad.data.pretraining_pairs import CaptionPairs
from amad.data.vqa import VqaDataset
from amad.errors import RecipeError
from amad.models.blip_regularization import check_stochastic_depth
from amad.models.load import save_checkpoint
from amad.recipe import Recipe, nearest_key
from amad.records import RunRecords, environment
from amad.training.arguments import DistillationArguments, check_makeable, make_arguments, refused_arguments
from amad.training.callbacks import AnnouncedEpoch, KeptRecords, ShownProgress
from amad.training.learned import GeneratingTask
from amad.training.models import weights_digest
from amad.training.parts import RunParts
from amad.training.plan import STACK_COLUMNS, record_bytes, stack_rows
from amad.training.resumption import (
    BAD_EXAMPLES_FILE,
    CHECKPOINTS_FOLDER,
    MODEL_FOLDER,
    RECIPE_FILE,
    RECORDS_FILE,
    check_new,
    check_teacher,
    find_checkpoint,
)
from amad.training.trainer import DistillationTrainer
from amad.training.values import checked_values, decoding_values


class TrainingRun:
    """One run of ``amad train`` or ``amad distill``.

    Nothing is loaded before it is needed and nothing is written before everything is loaded and checked; what is
    found only as training begins leaves nothing behind either. The folder ``output`` then has ``recipe.yaml``
    (resolved), ``records.jsonl``, ``bad_examples.jsonl`` where the recipe leaves bad examples out, ``checkpoints/`` if
    it asks for any, and at the end ``model/``, an ordinary checkpoint.

    Processes that ``torchrun`` or ``accelerate launch`` started share each step: each takes its own
    ``per_device_train_batch_size`` examples of it, and the first one writes and speaks for all.

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
        self.output = Path(recipe.output)
        if recipe.model is None and not recipe.distils:
            raise RecipeError(
                "the recipe has neither 'model' nor 'teacher' and 'student'. amad train needs model, or teacher "
                "and student; amad distill needs teacher and student."
            )
        if recipe.model is not None and recipe.distils:
            raise RecipeError(
                "the recipe has both 'model' and 'teacher' with 'student', and one model is trained. Leave out what is "
                "not to be trained."
            )
        if with_teacher and not recipe.distils:
            missing = "teacher" if recipe.teacher is None else "student"
            raise RecipeError(f"amad distill needs {missing!r} in the recipe. Add it, or use amad train.")
        if not with_teacher and recipe.objective.task is None:
            raise RecipeError("training without a teacher needs objective.task, which is null. Leave it out.")
        training = checked_values(recipe.training) | decoding_values(recipe)
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1 and not torch.accelerator.is_available():
            # Without it, accelerate lets each of them be on its own.
            training["use_cpu"] = True
        self.arguments: DistillationArguments = make_arguments(
            str(self.output / CHECKPOINTS_FOLDER), recipe.seed, training
        )
        if launched > 1 and launched != self.arguments.world_size:
            raise RecipeError(
                f"{launched} processes were launched (WORLD_SIZE), and {self.arguments.world_size} found one another. "
                "Launch them with torchrun or accelerate launch, which set RANK and LOCAL_RANK as well."
            )
        self.console = console if self.is_first else Console(quiet=True)
        self.parts = RunParts(recipe, with_teacher=with_teacher, console=self.console)
        self._n_gpus_seen = self.arguments.n_gpu
        if self._n_gpus_seen > 1:
            # Otherwise the trainer would split each batch over all of them in one process.
            self.arguments._n_gpu = 1
        if self.arguments.eval_strategy != "no" and not recipe.data.validates:
            raise RecipeError(
                f"training.eval_strategy is {self.arguments.eval_strategy.value}, and there is nothing to evaluate "
                f"on. Give {' or '.join(recipe.data.validation_keys)}, or leave training.eval_strategy out."
            )

    @property
    def processes(self) -> PartialState:
        """Those that a launcher started to share each step, and which of them this one is."""
        state = self.arguments.distributed_state
        assert state is not None
        return state

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return bool(self.processes.is_main_process)

    # ------------------------------------------------------------------ looking

    def plan(self) -> dict[str, Any]:
        """What would be done: ``sites`` (rows of ``STACK_COLUMNS``), ``pairs`` and a ``summary``.

        Nothing is written. Everything that a run checks before its first step is checked, but for the output
        folder and what only computing shows.
        """
        task, (train, validation) = self.parts.task, self.parts.datasets
        # Refuses where the scorer is missing.
        _ = task.is_scored
        with self._without_empty_folders():
            self._trainer()
        trained = self.parts.model.num_parameters()
        frozen = (
            0 if self.parts.teacher is None or not self.with_teacher else self.parts.teacher.num_parameters()
        )
        summary: dict[str, Any] = {
            f"training {task.training_items}": len(train),
            f"validation {task.items}": 0 if validation is None else len(validation),
            "optimiser steps": self._steps,
            "examples per step": self._examples_per_step,
            "parameters trained": trained,
            "parameters of the teacher": frozen,
            "weights, gradients and Adam (MiB)": round((16 * trained + 4 * frozen) / 2**20, 1),
        }
        if task.problems.skips:
            summary["bad examples left out"] = task.problems.n_bad
        if len(self.parts.pairing):
            records = [*self.parts.student_records().values(), *self.parts.teacher_records().values()]
            recorded, maps = record_bytes(records, self.arguments.train_batch_size)
            summary["recorded queries and keys (MiB)"] = round(recorded / 2**20, 1)
            summary["their attention maps would take (MiB)"] = round(maps / 2**20, 1)
        return {"sites": stack_rows(self.parts.sites), "pairs": self.pair_rows(), "summary": summary}

    def pair_rows(self) -> list[tuple[str, str, float]]:
        """Student site, teacher site and weight of every pair."""
        return [(str(pair.student), str(pair.teacher), pair.weight) for pair in self.parts.pairing]

    # ------------------------------------------------------------------ counting

    @property
    def _examples_per_step(self) -> int:
        arguments = self.arguments
        return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.parts.datasets[0]) / self._examples_per_step)

    @property
    def _steps(self) -> int:
        given, epochs = int(self.arguments.max_steps), float(self.arguments.num_train_epochs)
        return given if given > 0 else math.ceil(epochs * self._steps_per_epoch)

    def examples_seen(self, step: int) -> int:
        """Training examples seen after so many optimiser steps; the last step of an epoch may see fewer."""
        whole, rest = divmod(step, self._steps_per_epoch)
        n_examples = len(self.parts.datasets[0])
        return whole * n_examples + min(rest * self._examples_per_step, n_examples)

    # ------------------------------------------------------------------ doing

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Train, save, and return what came out.

        Args:
            resume: Go on from the last checkpoint of the output folder, or from the start where the run that is
                there was interrupted before its first.

        Returns:
            ``output``, ``model`` (folders), the task's figures on the validation set (if there is one to score
            against; ``accuracy`` in percent, ``CIDEr`` and ``Bleu_4``, or ``BLEU``), ``examples_seen``,
            ``train_seconds``, ``parameters``, ``bad_examples`` (how many were left out, where the recipe leaves
            them out), ``loss_not_finite_at_step`` (the first such step that was logged, where there is one), and
            ``curve``: (examples seen, the first of the figures).

        Raises:
            RecipeError: if the output exists and ``resume`` is off, or there is no run to resume.
            DataError: if the scorer of the task is not installed, or another process is at this run.
        """
        if not resume:
            check_new(self.output)
        checkpoint = self._checkpoint() if resume else None
        with self._without_empty_folders():
            trainer, shown = self._trainer()
            # Each process has looked at the folder before the first one writes into it.
            self.processes.wait_for_everyone()
            with contextlib.closing(shown), self._begun(trainer, checkpoint, resume) as records:
                started = time.perf_counter()
                if checkpoint is None or not trainer.restore(str(checkpoint), self._steps):
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                seconds = time.perf_counter() - started + self.parts.importance_seconds
                # Before anything else that could fail.
                if self.is_first:
                    save_checkpoint(
                        self.parts.model,
                        self.parts.tokenizer,
                        self.parts.image_transform,
                        self.output / MODEL_FOLDER,
                        overwrite=True,
                    )
                result = self._result(trainer, seconds)
                if records is not None:
                    self._write_end(records, result)
        return result

    def _checkpoint(self) -> Path | None:
        return find_checkpoint(self.output, self.recipe, self.with_teacher, self.processes.num_processes)

    def end(self) -> None:
        """Wait for the other processes that a launcher started, and leave them."""
        self.processes.wait_for_everyone()
        self.processes.destroy_process_group()

    @contextlib.contextmanager
    def _begun(
        self, trainer: DistillationTrainer, checkpoint: Path | None, resume: bool
    ) -> Iterator[RunRecords | None]:
        """The records of the run, with how it begins; None in a process that writes nothing.

        Where nothing is learned before an error, nothing is left: what is mended then may be the recipe.
        """
        if not self.is_first:
            yield None
            return
        self.output.mkdir(parents=True, exist_ok=True)
        with RunRecords(self.output / RECORDS_FILE) as records:
            # Now that no other process can be at it: another one may have begun while this one was loading.
            if (self.output / RECIPE_FILE).exists() != resume or (
                resume and self._checkpoint() != checkpoint
            ):
                raise RecipeError(
                    f"another process began, or went on with, the run in {self.output} while this one was loading. "
                    "Look what is there, and go on with --resume or give another output."
                )
            seeds = self._seeds()
            if resume and "teacher" in seeds:
                check_teacher(self.output, str(seeds["teacher"]))
            write_whole(self.output / RECIPE_FILE, self.recipe.dump())
            self._list_bad_examples()
            self._write_start(records, checkpoint, resume, seeds)
            trainer.add_callback(KeptRecords(records, lambda: trainer.alignment, self.examples_seen))
            try:
                yield records
            except Exception:
                # Whatever it is, it goes on up; an interruption keeps its folder for --resume.
                if not resume and trainer.state.global_step == 0:
                    for name in (RECIPE_FILE, RECORDS_FILE, BAD_EXAMPLES_FILE):
                        (self.output / name).unlink(missing_ok=True)
                raise

    def _write_end(self, records: RunRecords, result: dict[str, Any]) -> None:
        records.write("timing", **{key: result[key] for key in ("train_seconds", "examples_seen")})
        figures = {name: result[name] for name in self.parts.task.figures if name in result}
        if figures:
            signature = self.parts.task.signature
            records.write(
                "metrics", final=True, **figures, **({} if signature is None else {"signature": signature})
            )

    @contextlib.contextmanager
    def _without_empty_folders(self) -> Iterator[None]:
        """Leave no empty folder behind: the trainer makes them before it needs them."""
        try:
            yield
        finally:
            for folder in (self.output / CHECKPOINTS_FOLDER, self.output):
                if self.is_first and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _result(self, trainer: DistillationTrainer, seconds: float) -> dict[str, Any]:
        state, task = trainer.state, self.parts.task
        main = f"eval_{task.main_figure}"
        scored = [entry for entry in state.log_history if main in entry]
        curve = [(self.examples_seen(entry["step"]), entry[main]) for entry in scored]
        # What is saved may be an earlier model than the one that was evaluated last.
        best = self.arguments.load_best_model_at_end
        if task.is_scored and (best or not any(entry["step"] == state.global_step for entry in scored)):
            trainer.evaluate()
            scored.append(state.log_history[-1])
            if not best:
                curve.append((self.examples_seen(state.global_step), scored[-1][main]))
        result: dict[str, Any] = {
            "output": str(self.output),
            "model": str(self.output / MODEL_FOLDER),
            "examples_seen": self.examples_seen(state.global_step),
            "train_seconds": round(seconds, 1),
            "parameters": self.parts.model.num_parameters(),
            "curve": curve,
        }
        diverged = [entry["step"] for entry in state.log_history if not math.isfinite(entry.get("loss", 0.0))]
        if diverged:
            result["loss_not_finite_at_step"] = diverged[0]
            self.console.print(
                f"warning: the loss was no finite number at step {diverged[0]}, so the model is of no use. Give a "
                "smaller training.learning_rate, or clip with training.max_grad_norm=1.",
                style="bold red",
                soft_wrap=True,
            )
        if task.problems.skips:
            result["bad_examples"] = task.problems.n_bad
        if scored:
            result |= {
                name: round(scored[-1][f"eval_{name}"], digits) for name, digits in task.figures.items()
            }
        return result

    def _check_parts(self) -> None:
        """See that model, tokenizer, data and the trainer's arguments go together.

        Raises:
            RecipeError: if they do not.
        """
        self.parts.check_sight()
        self.parts.check_targets()
        check_stochastic_depth(self.parts.model, self.arguments.drop_path_rate)
        check_makeable(self.arguments, self.parts.model, self._steps)
        task, chosen = self.parts.task, self.recipe.objective
        if self.arguments.load_best_model_at_end and not task.is_scored:
            raise RecipeError(
                "training.load_best_model_at_end needs a validation set whose answers are known, to tell which model "
                "is the best, and there is none. Give one, or leave it out."
            )
        terms = [] if chosen.task is None else list(task.terms(chosen.task))
        with_teacher = {"logits": chosen.logits, "attention": chosen.attention, "hidden": chosen.hidden}
        terms += [name for name, term in with_teacher.items() if self.with_teacher and term is not None]
        generates = self._scores_texts and self.parts.model.can_generate()
        known = [
            "loss",
            *(task.figures if task.is_scored else ()),
            # Where answers are generated, no loss is computed.
            *(f"{what}_{term}" for term in terms for what in ("loss", "share") if not generates),
        ]
        for part in (self.arguments.metric_for_best_model or "loss").split("+"):
            if part.removeprefix("eval_") not in known:
                raise RecipeError(
                    f"training.metric_for_best_model {self.arguments.metric_for_best_model!r} is made of what is "
                    f"measured while training, and {part!r} is not: {nearest_key(part, known)}"
                )

    def _trainer(self) -> tuple[DistillationTrainer, ShownProgress]:
        self._check_parts()
        train, validation = self.parts.datasets
        objective, collator = self.parts.objective, self.parts.collator
        with refused_arguments():
            trainer = DistillationTrainer(
                model=self.parts.model,
                teacher_model=self.parts.teacher if self.with_teacher else None,
                args=self.arguments,
                objective=objective,
                train_dataset=train,
                eval_dataset=validation,
                data_collator=collator,
                processing_class=self.parts.tokenizer,
                compute_metrics=self._accuracy if self._scores_texts else None,
            )
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise RecipeError(
                    "accelerate is configured to split models (FSDP or DeepSpeed), and each process of a recipe holds "
                    "whole ones. Configure it for data parallel alone."
                )
            # What would refuse it in the middle of the beginning refuses it now.
            trainer.get_train_dataloader()
        trainer.prepare_terms()
        self._tell_of_devices(validation)
        trainer.decodes_plainly = True
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        doing = "distilling" if self.with_teacher else "training"
        shown = ShownProgress(self.console, doing, self.parts.task.main_figure)
        trainer.add_callback(shown)
        if isinstance(train, VqaDataset | CaptionDataset | PretrainingDataset | CaptionPairs):
            trainer.add_callback(AnnouncedEpoch(train.set_epoch))
        return trainer, shown

    def _tell_of_devices(self, validation: Any) -> None:
        """What a user would not expect of several GPUs or processes."""
        if self._n_gpus_seen > 1:
            self.console.print(
                f"{self._n_gpus_seen} GPUs are visible, and this process uses the first. On all of them: torchrun "
                f"--nproc-per-node {self._n_gpus_seen} -m amad ...",
                soft_wrap=True,
                highlight=False,
            )
        together = self.arguments.eval_batch_size * self.processes.num_processes
        filled = 0 if validation is None else -len(validation) % together
        if self.processes.num_processes > 1 and filled and not self._scores_texts:
            self.console.print(
                f"the figures on the validation set count {filled} of {len(validation)} examples once more, which fill "
                "up the last batches of all processes.",
                soft_wrap=True,
                highlight=False,
            )

    @property
    def _scores_texts(self) -> bool:
        """Whether texts are generated and scored; otherwise the objective gives the figures."""
        return isinstance(self.parts.task, GeneratingTask) and self.parts.task.is_scored

    def _accuracy(self, prediction: Any) -> dict[str, float]:
        """The task's figures of what was generated."""
        tokens = torch.as_tensor(prediction.predictions)
        tokens = tokens.masked_fill(tokens < 0, int(self.parts.tokenizer.pad_token_id or 0))
        said = self.parts.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        task = self.parts.task
        assert isinstance(task, GeneratingTask)
        assert task.validation is not None
        # The last batches of several processes are filled up with the first examples.
        scores = task.score(said[: len(task.validation)])
        scores.pop("signature", None)
        return scores

    def _list_bad_examples(self) -> None:
        """Write and say what was left out of the data; where nothing may be, nothing."""
        problems = self.parts.task.problems
        if not problems.skips:
            return
        path = self.output / BAD_EXAMPLES_FILE
        problems.write(path)
        if problems.n_bad:
            self.console.print(f"bad examples left out: {problems.n_bad}, listed in {path}", markup=False)

    def _seeds(self) -> dict[str, Any]:
        """The seed, and digests of the weights that are trained and of those that teach."""
        seeds = {"seed": self.recipe.seed, "start": weights_digest(self.parts.model)}
        if self.with_teacher and self.parts.teacher is not None:
            seeds["teacher"] = weights_digest(self.parts.teacher)
        return seeds

    def _write_start(
        self, records: RunRecords, checkpoint: Path | None, resume: bool, seeds: dict[str, Any]
    ) -> None:
        records.write("recipe", recipe=self.recipe.model_dump(mode="json"), with_teacher=self.with_teacher)
        n_processes = self.processes.num_processes
        records.write("environment", **environment(str(self.arguments.device)), processes=n_processes)
        records.write("seeds", **seeds)
        if self.parts.task.problems.skips:
            records.write("note", bad_examples=self.parts.task.problems.counts())
        if resume:
            records.write("note", resumed_from="the start" if checkpoint is None else checkpoint.name)
        for who, sites in self.parts.sites.items():
            model = self.parts.teacher if who == "teacher" and self.parts.teacher else self.parts.model
            rows = [dict(zip(STACK_COLUMNS, row, strict=True)) for row in stack_rows({who: sites})]
            records.write("model", who=who, parameters=model.num_parameters(), stacks=rows)
        pairs = [dict(zip(("student", "teacher", "weight"), row, strict=True)) for row in self.pair_rows()]
        records.write("note", pairs=pairs)
