"""The Hugging Face trainer with a teacher."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, has_length

from amad.axes import SiteKey, SitePair
from amad.capture.check import self_check
from amad.capture.record import AttentionRecord
from amad.capture.recorder import Recorder
from amad.capture.sites import Site, find_sites
from amad.data.collate import FOR_THE_LOSS
from amad.errors import CaptureError, CheckpointError, PairingError, RecipeError
from amad.losses.aligned import AlignedAttention
from amad.losses.figures import AlignmentFigures
from amad.losses.objective import Captured, Counts, Objective, ObjectiveValue
from amad.losses.pairs import PairTerm
from amad.models.blip_regularization import stochastic_depth
from amad.models.labels import has_encoder
from amad.models.plain_decoding import plain_decoding
from amad.models.student import check_compatible
from amad.training.arguments import DistillationArguments
from amad.training.batches import (
    captured_of,
    check_shift,
    first_examples,
    labels_of,
    targets_of,
    with_padding,
)
from amad.training.schedule import hold_within_epochs

OBJECTIVE = "amad_objective"
"""Name under which the objective sits inside the student while it trains."""

OBJECTIVE_FILE = "objective.safetensors"
"""Where a checkpoint keeps the objective's own parameters."""


class DistillationTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Train a student on ground truth, a teacher's predictions and a teacher's attention.

    Everything of ``Seq2SeqTrainer`` works as usual; what :meth:`train` leaves behind and saves is the ordinary
    student. Data parallel is started with ``torchrun`` or ``accelerate launch``, as usual.

    Each term of the objective is divided by the number of tokens or samples of the whole optimiser step, over all
    accumulated batches and processes: four batches of two give the update of one batch of eight.

    While it trains, the objective is a submodule of the student and runs inside the student's forward, so that
    wrappers, clipping, checkpoints and resumption see its parameters. Checkpoints keep them in
    ``objective.safetensors`` beside the student, never in it.

    Attributes:
        decodes_plainly: Evaluation decodes as the arguments say; of the model's own ``generation_config`` the special
            tokens alone count. False, as in ``Seq2SeqTrainer``; recipes set it.

    Args:
        model: The student.
        teacher_model: The teacher; it is frozen and put in evaluation mode. None if no term needs one.
        args: Arguments of the run.
        objective: The loss; the sites of its pairs are recorded.
        kwargs: Further arguments of ``Seq2SeqTrainer``.

    Raises:
        RecipeError: if a term needs a teacher and there is none, a term shifts labels and the student does not or the
            other way round, an argument would be ignored, or under ``nn.DataParallel``.
        ShapeError: if student and teacher have different vocabularies.
        PairingError: if a pair names a site that a model lacks.
        CaptureError: from :meth:`train`, if the attention recorded at a site is not what the model computed.
    """

    loss_is_scaled_for_ga = True
    decodes_plainly = False

    def __init__(
        self,
        model: PreTrainedModel,
        teacher_model: PreTrainedModel | None = None,
        args: DistillationArguments | None = None,
        *,
        objective: Objective,
        **kwargs: Any,
    ) -> None:
        args = args or DistillationArguments(output_dir="trainer_output")
        if not isinstance(args, DistillationArguments):
            raise RecipeError(
                f"args must be DistillationArguments and are {type(args).__name__}. Give those."
            )
        if args.label_smoothing_factor or kwargs.get("compute_loss_func") is not None:
            raise RecipeError(
                "label_smoothing_factor and compute_loss_func would change nothing: the loss is the objective. Give "
                "label_smoothing to its TaskLoss, or a Term of your own."
            )
        check_shift(model, objective)
        if (
            args.lr_scheduler_interval == "epoch"
            and (kwargs.get("optimizers") or (None, None))[1] is not None
        ):
            raise RecipeError(
                "lr_scheduler_interval would change nothing: a scheduler is given in optimizers. Leave one of them out."
            )
        if args.n_gpu > 1:
            raise RecipeError(
                f"nn.DataParallel over {args.n_gpu} devices is not supported. Start one process per device with "
                f"'accelerate launch' or 'torchrun', or show one device only."
            )
        if objective.needs_teacher and teacher_model is None:
            raise RecipeError(
                "the objective compares with a teacher, but teacher_model is None. Pass a teacher."
            )
        if teacher_model is model:
            raise RecipeError("model and teacher_model are one object, which would be frozen. Load it twice.")
        if teacher_model is not None:
            check_compatible(model, teacher_model)
        super().__init__(model=model, args=args, **kwargs)
        self.objective = objective
        self._given_optimizer = self.optimizer
        self.teacher = None
        if teacher_model is not None:
            teacher_model.eval().requires_grad_(False)
            self.teacher = self.accelerator.prepare_model(teacher_model, evaluation_mode=True)
        self.pairs = objective.pairs
        self.student_sites = _choose(model, "student", [pair.student for pair in self.pairs])
        self.teacher_sites = _choose(teacher_model, "teacher", [pair.teacher for pair in self.pairs])
        extras = objective.extras
        self._student_recorder = Recorder(model, self.student_sites, extras=extras)
        self._teacher_recorder = (
            None
            if teacher_model is None
            else Recorder(teacher_model, self.teacher_sites, detach=True, extras=extras)
        )
        self.alignment: dict[SitePair, AlignmentFigures] = {}
        self._diagnosed_step = self._logged_step = 0
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self._figures: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self._evaluated_batches = self._steps_per_epoch = 0

    # ------------------------------------------------------------------ training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and return what ``Trainer.train`` returns; the student is an ordinary model again afterwards."""
        student = self.accelerator.unwrap_model(self.model)
        if self.args.check_capture and self.pairs:
            self.check_capture()
        self.prepare_terms()
        self._check_optimizer()
        with stochastic_depth(student, self.args.drop_path_rate):
            student.add_module(OBJECTIVE, self.objective.to(self.args.device))
            try:
                with self._hidden_from_others(student):
                    return super().train(*args, **kwargs)
            finally:
                delattr(student, OBJECTIVE)

    def _check_optimizer(self) -> None:
        """See that an optimizer that was given moves what the terms train.

        Raises:
            RecipeError: naming a term whose parameters it lacks.
        """
        if self._given_optimizer is None:
            return
        groups = self._given_optimizer.param_groups
        moved = {id(parameter) for group in groups for parameter in group["params"]}
        for name, term in self.objective.terms.items():
            if any(one.requires_grad and id(one) not in moved for one in term.parameters()):
                raise RecipeError(
                    f"the term {name!r} trains parameters of its own, and the optimizer in optimizers lacks them. Give "
                    "optimizer_cls_and_kwargs, or call prepare_terms() and hand objective.parameters() to it."
                )

    def restore(self, checkpoint: str, n_steps: int) -> bool:
        """Take what a checkpoint has, and the best student where that is asked for, if no step is left to do after it.

        ``Trainer.train`` would do one more.

        Args:
            checkpoint: Its folder.
            n_steps: Optimiser steps of the whole run.

        Returns:
            Whether it did.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.global_step < n_steps:
            return False
        self.state = state
        self._load_from_checkpoint(checkpoint)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return True

    @contextlib.contextmanager
    def _hidden_from_others(self, student: nn.Module) -> Iterator[None]:
        """Let whoever saves the student meanwhile, such as a callback, save the student alone."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # They hand the whole state to _save, which takes the objective out of it.
            yield
            return
        hook = student.register_state_dict_post_hook(_without_objective)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            hook.remove()

    def create_scheduler(self, *args: Any, **kwargs: Any) -> LRScheduler:
        """As ``Trainer``, at the interval that the arguments name."""
        made_before = self.lr_scheduler is not None
        scheduler: LRScheduler = super().create_scheduler(*args, **kwargs)
        if self.args.lr_scheduler_interval == "epoch" and not made_before:
            if not (self._steps_per_epoch and has_length(self.train_dataset)):
                raise RecipeError(
                    "lr_scheduler_interval epoch needs the number of steps of an epoch, which a stream does not have, "
                    "and nobody knows before train(). Leave it out, or give a data set with a length."
                )
            hold_within_epochs(scheduler, self._steps_per_epoch)
        return scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Parameters that decay: all but those that ``no_decay`` names, where the arguments have it."""
        spared = self.args.no_decay
        if spared is None:
            names: list[str] = super().get_decay_parameter_names(model)
            return names
        return [name for name, _ in model.named_parameters() if not any(part in name for part in spared)]

    def check_capture(self) -> dict[str, dict[SiteKey, float | None]]:
        """Compare recorded with computed attention at every paired site on a few training examples.

        Where these examples have no padding, once more with the last token of one hidden: models build no mask, or
        another one, for batches without padding.

        Returns:
            For ``student`` and ``teacher``, the largest relative difference at each site, or None where the site
            shows nothing to compare with.

        Raises:
            CaptureError: at the first site whose record is wrong.
        """
        batch = self._first_batch()
        sites = {"student": (self.model, self.student_sites)}
        if self.teacher is not None:
            sites["teacher"] = (self.teacher, self.teacher_sites)
        padded = with_padding(batch)
        differences = {}
        for who, (model, chosen) in sites.items():
            model = self.accelerator.unwrap_model(model)
            # As in training, where the student is wrapped only once this has passed.
            with self.accelerator.autocast():
                differences[who] = self_check(model, chosen, batch)
                if padded is not batch:
                    differences[who] = _larger(differences[who], self_check(model, chosen, padded))
        return differences

    def _first_batch(self) -> dict[str, Any]:
        """Model inputs of two training examples."""
        with self._without_chance():
            examples = first_examples(self.train_dataset, 2)
            if not examples:
                raise CaptureError("recorded attention is verified on training examples, and there are none.")
            batch = self._get_collator_with_removed_columns(self.data_collator)(examples)
        labels_of(batch)
        return self._model_inputs(self._prepare_inputs(batch))

    def _without_chance(self) -> contextlib.AbstractContextManager[None]:
        """What is drawn inside changes no number that is drawn afterwards."""
        devices = [self.args.device] if self.args.device.type != "cpu" else []
        return torch.random.fork_rng(devices=devices)

    def prepare_terms(self) -> None:
        """Make what terms train and nobody has made yet, before the optimizer is."""
        terms = [
            term
            for term in self.objective.terms.values()
            if isinstance(term, PairTerm) and term.is_trained and not any(True for _ in term.parameters())
        ]
        if not terms:
            return
        batch = self._first_batch()
        records: list[dict[SiteKey, AttentionRecord]] = []
        for model, recorder in ((self.model, self._student_recorder), (self.teacher, self._teacher_recorder)):
            if model is None or recorder is None:
                records.append({})
                continue
            with torch.no_grad(), self._without_chance(), self.accelerator.autocast(), recorder:
                self.accelerator.unwrap_model(model)(**batch)
                records.append(recorder.take(batch))
        for term in terms:
            term.prepare(*records)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The objective on one batch, already divided by the counts of the whole optimiser step."""
        student = self.accelerator.unwrap_model(model)
        counts = self._step_counts([inputs]) if num_items_in_batch is None else num_items_in_batch
        targets = targets_of(inputs)
        model_inputs = self._shifted_inputs(student, inputs)
        teacher = self._ask_teacher(inputs)

        def learn(**kwargs: Any) -> tuple[Any, ObjectiveValue]:
            with self._student_recorder:
                output = student.forward(**kwargs)
                records = self._student_recorder.take(inputs, require_grad=student.training)
            captured = captured_of(output, records)
            value = self.objective(captured, teacher, targets, Counts(tokens=counts[0], samples=counts[1]))
            if teacher is not None and self._is_diagnosed(student):
                self._diagnose(captured, teacher)
            return output, value

        with _forward_replaced(student, learn):
            output, value = model(**model_inputs)
        self._add(value, "train" if student.training else "eval")
        # Gradients and losses of processes are averaged, and each is a part of the whole.
        loss = value.loss * self.accelerator.num_processes
        return (loss, {"logits": output.get("logits")}) if return_outputs else loss

    def _ask_teacher(self, inputs: Mapping[str, Any]) -> Captured | None:
        if self.teacher is None or self._teacher_recorder is None or not self.objective.needs_teacher:
            return None
        teacher = self.accelerator.unwrap_model(self.teacher)
        with torch.no_grad(), self._teacher_recorder as recorder:
            output = self.teacher(**self._shifted_inputs(teacher, inputs))
            records = recorder.take(inputs)
        return captured_of(output, records)

    def _model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if name not in FOR_THE_LOSS}

    def _shifted_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of a forward that computes no loss of its own, where the model can do without labels."""
        chosen = self._model_inputs(inputs)
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None and "decoder_input_ids" not in chosen:
            chosen["decoder_input_ids"] = shift(labels=chosen.pop("labels"))
        if "use_cache" in inspect.signature(model.forward).parameters:
            # Keys and values of all layers, for a next token that nobody asks for.
            chosen.setdefault("use_cache", False)
        return chosen

    # ------------------------------------------------------------------ counts

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Target tokens and samples of an optimiser step, over all its batches and all processes."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        return self._step_counts(batch_samples).to(device)

    def _step_counts(self, batches: list[Mapping[str, Tensor]]) -> Tensor:
        counts = self._counts(batches)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return counts

    def _counts(self, batches: list[Mapping[str, Tensor]]) -> Tensor:
        shifts = any(getattr(term, "shift_labels", False) for term in self.objective.terms.values())
        counts = Counts.of(*map(targets_of, batches), shift_labels=shifts)
        return torch.tensor(counts, dtype=torch.float32, device=self.args.device)

    # ------------------------------------------------------------------ what is logged

    def _is_diagnosed(self, student: nn.Module) -> bool:
        """Whether what this step does will be logged."""
        if not (self.args.log_alignment and student.training):
            return False
        step = int(self.state.global_step) + 1
        if step == 1 and self.args.logging_first_step:
            return True
        if self.args.logging_strategy == IntervalStrategy.EPOCH:
            return bool(self.accelerator.gradient_state.end_of_dataloader) or step == self.state.max_steps
        return step % max(int(self.state.logging_steps or 1), 1) == 0

    def _diagnose(self, student: Captured, teacher: Captured) -> None:
        for term in self.objective.terms.values():
            if isinstance(term, AlignedAttention):
                self.alignment = term.diagnose(student, teacher)
                self._diagnosed_step = int(self.state.global_step) + 1

    def _add(self, value: ObjectiveValue, mode: str) -> None:
        sums = self._sums[mode]
        for name, part in value.parts.items():
            sums[name] = sums[name] + part if name in sums else part
        figures = self._figures[mode]
        for name, figure in value.figures.items():
            part = torch.stack(list(figure))
            figures[name] = figures[name] + part if name in figures else part
        if mode == "eval":
            self._evaluated_batches += 1

    def _means(self, mode: str, steps: int) -> dict[str, float]:
        """Each term's value and share of the loss since the sums were last cleared, which they then are."""
        sums = self._sums[mode]
        if not sums:
            return {}
        means = self.accelerator.gather(torch.stack(list(sums.values()))[None]).sum(0) / max(steps, 1)
        parts = dict(zip(sums, means.tolist(), strict=True))
        sums.clear()
        shown = self._shown_figures(mode)
        weights = self.objective.weights
        weighted = {name: weights[name] * part if weights[name] else 0.0 for name, part in parts.items()}
        whole = sum(weighted.values())
        figures = {}
        for name, part in parts.items():
            figures[f"loss_{name}"] = part
            if whole:
                figures[f"share_{name}"] = weighted[name] / whole
        return figures | shown

    def _shown_figures(self, mode: str) -> dict[str, float]:
        """The terms' own figures since they were last cleared, which they then are; none of what did not occur."""
        sums = self._figures[mode]
        if not sums:
            return {}
        totals = self.accelerator.gather(torch.stack(list(sums.values()))[None]).sum(0)
        names = list(sums)
        sums.clear()
        return {
            name: total / count for name, (total, count) in zip(names, totals.tolist(), strict=True) if count
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's value and share of the loss, and the alignment's figures, to what is logged."""
        if "loss" in logs:
            step = int(self.state.global_step)
            means = self._means("train", step - self._logged_step)
            logs.update(means)
            if not all(map(math.isfinite, means.values())):
                # Trainer puts the mean of the other steps, or zero, in the place of what is no number.
                logs["loss"] = math.nan
            self._logged_step = step
            if self._diagnosed_step != step:
                self.alignment = {}
            if self.alignment:
                figures = list(self.alignment.values())
                for name in ("entropy", "largest", "coverage", "collapse"):
                    logs[f"alignment_{name}"] = sum(getattr(one, name) for one in figures) / len(figures)
        super().log(logs, start_time)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        self._steps_per_epoch = num_update_steps_per_epoch
        epochs, steps = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args, **kwargs)
        # An earlier run may have ended between two logs.
        self._sums["train"].clear()
        self._figures["train"].clear()
        self._logged_step, self._diagnosed_step, self.alignment = int(self.state.global_step), 0, {}
        return epochs, steps

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As ``Seq2SeqTrainer``, with ``generation_min_length``."""
        if self.args.generation_min_length:
            kwargs.setdefault("min_length", self.args.generation_min_length)
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As ``Seq2SeqTrainer``, with more metrics.

        Each term's mean over batches and share of the loss, and ``metric_for_best_model`` where that is a sum.
        """
        self._sums["eval"].clear()
        self._figures["eval"].clear()
        self._evaluated_batches = 0
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        for name, value in self._means("eval", self._evaluated_batches).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        parts = [f"{metric_key_prefix}_{part.removeprefix('eval_')}" for part in chosen.split("+")]
        if len(parts) > 1 and all(part in output.metrics for part in parts):
            output.metrics[f"{metric_key_prefix}_{chosen}"] = sum(output.metrics[part] for part in parts)
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As ``Seq2SeqTrainer`` for an encoder-decoder that can generate; for any other model, logits are predicted.

        A decoder alone has what it is to say in its input. What only the objective reads is kept from ``generate``.
        """
        result: tuple[Tensor | None, Tensor | None, Tensor | None]
        student = self.accelerator.unwrap_model(model)
        if not (student.can_generate() and has_encoder(student)):
            result = Trainer.prediction_step(
                self, model, inputs, prediction_loss_only, ignore_keys=ignore_keys
            )
            return result
        if self.args.predict_with_generate and not prediction_loss_only:
            inputs = self._model_inputs(inputs)
        decoding = plain_decoding(model) if self.decodes_plainly else contextlib.nullcontext()
        with decoding:
            result = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs
            )
        return result

    # ------------------------------------------------------------------ checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        prefix = f"{OBJECTIVE}."
        if state_dict is None:
            student = self.accelerator.unwrap_model(self.model)
            state_dict = dict(student.state_dict())
            if hasattr(student, OBJECTIVE):
                state_dict |= {prefix + name: value for name, value in self.objective.state_dict().items()}
        super()._save(
            str(folder), {name: value for name, value in state_dict.items() if not name.startswith(prefix)}
        )
        own = {
            name.removeprefix(prefix): value.contiguous()
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        if own and self.args.should_save:
            save_file(own, folder / OBJECTIVE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_objective(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_objective(self.state.best_model_checkpoint)

    def _load_objective(self, folder: str) -> None:
        path = Path(folder) / OBJECTIVE_FILE
        if path.exists():
            self.objective.load_state_dict(load_file(path))
        elif self.objective.state_dict() and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise CheckpointError(
                f"{folder} has no {OBJECTIVE_FILE}, but the objective has parameters of its own. Give a "
                f"checkpoint that was written with this objective."
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The objective is not missing from the student's file: it has its own."""
        missing = [name for name in load_result.missing_keys if not name.startswith(f"{OBJECTIVE}.")]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def _without_objective(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}{OBJECTIVE}.")]:
        del state_dict[name]


def _choose(model: nn.Module | None, who: str, keys: list[SiteKey]) -> list[Site]:
    if not keys or model is None:
        return []
    sites = {site.key: site for site in find_sites(model)}
    for key in keys:
        if key not in sites:
            known = ", ".join(dict.fromkeys(site.stack for site in sites))
            raise PairingError(
                f"{key} is not an attention site of the {who}, whose stacks are {known or 'none'}."
            )
    return [sites[key] for key in dict.fromkeys(keys)]


def _larger(
    first: dict[SiteKey, float | None], second: dict[SiteKey, float | None]
) -> dict[SiteKey, float | None]:
    """Of each site the larger difference of two checks."""
    both = {key: [value for value in (first[key], second[key]) if value is not None] for key in first}
    return {key: max(values, default=None) for key, values in both.items()}


@contextlib.contextmanager
def _forward_replaced(student: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let one call of the wrapped student run ``forward``, which calls the student's own forward inside.

    Wrappers gather and release parameters around the call of the module that they wrap, so the objective's
    parameters must be used inside it. Within ``forward`` the student's own forward is in place again.
    """
    own = student.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            student.__dict__.pop("forward", None)
        else:
            student.forward = own

    def once(**kwargs: Any) -> Any:
        restore()
        return forward(**kwargs)

    student.forward = once
    try:
        yield
    finally:
        restore()
