"""What a run is made of: models, data, tokenizer, pairing and loss, each made of the recipe when first asked for."""

import time
from functools import cached_property, partial

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord
from amad.capture.recorder import Recorder
from amad.capture.sites import Site, find_sites
from amad.data.augmentation import CropAndFlip
from amad.data.collate import FOR_THE_LOSS, Seq2SeqCollator
from amad.data.images import (
    ImageTransform,
    load_image_transform,
    new_blip_image_transform,
    new_image_transform,
)
from amad.data.tokens import train_tokenizer
from amad.data.wordpiece import add_blip_tokens, train_wordpiece
from amad.errors import RecipeError
from amad.losses.hidden import HiddenStates
from amad.losses.importance import HeadImportance
from amad.losses.logits import LogitsDistillation
from amad.losses.methods import attention_term
from amad.losses.objective import IGNORED_LABEL, Objective, Term
from amad.models.blip_images import resize_images
from amad.models.blip_pretraining import BlipForPretraining
from amad.models.blip_regularization import set_text_dropout
from amad.models.checkpoint import located
from amad.models.load import load_model, load_tokenizer, model_type
from amad.models.student import build_student, check_compatible, student_config
from amad.recipe import Recipe
from amad.recipe_data import DataSection, RecipeData
from amad.training.batches import first_examples, labels_of
from amad.training.blip import check_blip_task, fitted
from amad.training.importance import measure_importance
from amad.training.models import check_same_words, check_sight, new_collator, new_model
from amad.training.pairing import Pairing
from amad.training.progress import Waiting, counted
from amad.training.tasks import LearnedTask, TaskDataset, load_task

_TARGETS_LOOKED_AT = 32
_MOST_UNKNOWN = 0.3


class RunParts:
    """The parts of one run. Nothing is loaded before it is needed, and nothing is written.

    Attributes:
        importance_seconds: Seconds that measuring the teacher's heads took; 0 where it was not needed.

    Args:
        recipe: The run.
        with_teacher: Whether the student learns from the teacher; otherwise from the ground truth alone.
        console: Where a longer measurement, or a longer reading of data, shows how far it is.

    Raises:
        AmadError: from each part, if what the recipe says of it breaks a rule.
    """

    def __init__(self, recipe: Recipe, *, with_teacher: bool, console: Console | None = None) -> None:
        self.recipe = recipe
        self.with_teacher = with_teacher
        self.console = console or Console(stderr=True)
        self.importance_seconds = 0.0
        self._importance: dict[str, HeadImportance] = {}

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
        if self._is_new_blip or (self._home is not None and model_type(self._home) == "blip"):
            check_blip_task(self.recipe.data)
        folder = self._home or (model.tokenizer if model is not None else None)
        if folder is None:
            train = train_wordpiece if self._is_new_blip else train_tokenizer
            tokenizer: PreTrainedTokenizerBase = train(self.datasets[0].texts())
        else:
            tokenizer = load_tokenizer(folder)
        if self._is_new_blip:
            add_blip_tokens(tokenizer)
        self.task.check_words(tokenizer)
        return tokenizer

    @cached_property
    def image_transform(self) -> ImageTransform | None:
        """What makes pixels of images, as the checkpoint says, or at the size in the configuration.

        None where the data gives region features.
        """
        if self.recipe.data.regions is not None:
            return None
        if self._home is not None:
            changed = (
                None if self.recipe.distils or self.recipe.model is None else self.recipe.model.image_size
            )
            return load_image_transform(self._home, changed)
        config = (self.recipe.model.config or {}) if self.recipe.model is not None else {}
        size = config.get("image_size") or (config.get("vision_config") or {}).get("image_size")
        if not isinstance(size, int) or size < 1:
            raise RecipeError(
                f"model.config.image_size is {size!r}, so it is not known at what size images are read. Give the "
                f"height and width of images in pixels."
            )
        return new_blip_image_transform(size) if self._is_new_blip else new_image_transform(size)

    @property
    def _is_new_blip(self) -> bool:
        """Whether the model is a BLIP that is made from nothing."""
        model = self.recipe.model
        return self._home is None and model is not None and (model.config or {}).get("model_type") == "blip"

    @cached_property
    def task(self) -> LearnedTask:
        """What is learned, with its data and its score."""
        return self.task_of(self.recipe.data)

    def task_of(self, data: RecipeData) -> LearnedTask:
        """The task with other data, read as the run's own."""
        prepare = None if self.image_transform is None else self.image_transform.resize
        wait, augment = partial(counted, self.console), self._augmentation(data)
        return load_task(data, self.recipe.seed, prepare, wait, augment)

    def _augmentation(self, data: DataSection) -> CropAndFlip | None:
        augment = getattr(data, "augment", None)
        if augment is None:
            return None
        size = None if self.image_transform is None else self.image_transform.image_size
        if size is None:
            raise RecipeError(
                "data.augment shows parts of images at the size that the model reads, and there is none: the images "
                "are regions, or the checkpoint's preprocessor_config.json gives no height and width. Leave it out."
            )
        return CropAndFlip(*size, seed=self.recipe.seed, randaugment=augment == "crop-flip-randaugment")

    @property
    def datasets(self) -> tuple[TaskDataset, TaskDataset | None]:
        """The training and the validation set."""
        return self.task.train, self.task.validation

    @cached_property
    def collator(self) -> Seq2SeqCollator:
        """Makes batches; of one fixed length where a trained projection needs maps of one size."""
        data, attention = self.recipe.data, self.recipe.objective.attention
        projected = self.with_teacher and attention is not None and attention.variant == "projected"
        return new_collator(self.model, self.tokenizer, self.image_transform, data, pad_to_max=projected)

    @cached_property
    def model(self) -> PreTrainedModel:
        """What is trained, at its start: a function of the recipe and its seed alone."""
        recipe, student = self.recipe, self.recipe.student
        if student is not None and self.teacher is not None:
            if student.path is not None:
                own = fitted(load_model(student.path, dtype=torch.float32), recipe.data)
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
            loaded = fitted(load_model(recipe.model.path, dtype=torch.float32), recipe.data)
            if recipe.model.image_size is not None:
                resize_images(loaded, recipe.model.image_size)
            if recipe.model.dropout is not None:
                set_text_dropout(loaded, recipe.model.dropout)
            return loaded
        config_values = (recipe.model.config or {}) if recipe.model is not None else {}
        return new_model(config_values, self.tokenizer, recipe.data, recipe.seed)

    def check_sight(self) -> None:
        """See that every model reads what the data shows it.

        Raises:
            RecipeError: if one does not.
        """
        for model in (self.model, self.teacher):
            if model is not None:
                check_sight(model, self.recipe.data.regions, self.image_transform)
                self.task.check_model(model)

    def check_targets(self) -> None:
        """See that the tokenizer knows what is learned to be said, on a few training examples.

        Raises:
            RecipeError: if more than three tenths of their target tokens are unknown to it.
        """
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return
        examples = first_examples(self.datasets[0], _TARGETS_LOOKED_AT)
        labels = labels_of(self.collator(examples))
        said = labels != IGNORED_LABEL
        is_unknown = (labels == unknown) & said
        share = int(is_unknown.sum()) / max(int(said.sum()), 1)
        if share > _MOST_UNKNOWN:
            row = int(is_unknown.sum(1).argmax())
            read = self.tokenizer.decode(labels[row][said[row]])
            raise RecipeError(
                f"{100 * share:.0f} % of the target tokens of the first {len(examples)} training examples are unknown "
                f"to the tokenizer (one target reads {read!r}), and at most {100 * _MOST_UNKNOWN:.0f} % may be. Give a "
                f"{'teacher' if self.recipe.distils else 'model'} of this task and language."
            )

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Attention sites of the model, and of the teacher if there is one."""
        if self.teacher is None:
            return {"model": find_sites(self.model)}
        return {"student": find_sites(self.model), "teacher": find_sites(self.teacher)}

    @cached_property
    def pairing(self) -> Pairing:
        """Who learns from whom, each pair once; empty where neither attention nor hidden states are compared."""
        pairs = {
            (pair.student, pair.teacher): pair for pair in (*self.hidden_pairing, *self.attention_pairing)
        }
        return Pairing(tuple(pairs.values()))

    @cached_property
    def attention_pairing(self) -> Pairing:
        """The pairs of the attention term; empty without one."""
        term = self.recipe.objective.attention
        return Pairing(()) if not self.with_teacher or term is None else self._pair(term.stacks)

    @cached_property
    def hidden_pairing(self) -> Pairing:
        """The pairs of the term of hidden states; empty without one."""
        term = self.recipe.objective.hidden
        if not self.with_teacher or term is None:
            return Pairing(())
        shared = (
            dict.fromkeys(site.key.stack for site in self.sites[who] if site.key.stack.endswith(".self"))
            for who in ("student", "teacher")
        )
        mine, its = shared
        return self._pair(term.stacks or {stack: 1.0 for stack in mine if stack in its})

    def _pair(self, stacks: dict[str, float] | None) -> Pairing:
        if isinstance(self.model, BlipForPretraining):
            raise RecipeError(
                "BLIP's pre-training reads each caption three times, so its attention is not one map to compare. Set "
                "objective.attention and objective.hidden to null, or distil a model that was fine-tuned from it."
            )
        return Pairing.make(
            [site.key for site in self.sites["student"]],
            [site.key for site in self.sites["teacher"]],
            self.recipe.pairing,
            stacks,
            lambda stack: self.teacher_importance(stack).of_layers(),
        )

    def teacher_importance(self, stack: str) -> HeadImportance:
        """What each attention head of a stack of the teacher is worth, on training examples; measured once.

        Raises:
            RecipeError: if there is no teacher.
            CaptureError: if heads of one of the stack's sites cannot be silenced.
        """
        if stack not in self._importance:
            self._importance[stack] = self._measured_importance(stack)
        return self._importance[stack]

    def _measured_importance(self, stack: str) -> HeadImportance:
        if self.teacher is None:
            raise RecipeError(
                "importance is the teacher's, and the recipe has none. Give teacher and student."
            )
        started = time.perf_counter()
        on_gpu = torch.cuda.is_available() and not self.recipe.training.get("use_cpu", False)
        with Waiting(self.console) as progress:
            task = progress.add_task(f"measuring the teacher's heads, {stack}", note="")
            found = measure_importance(
                self.teacher.to("cuda" if on_gpu else "cpu"),
                [site for site in self.sites["teacher"] if site.key.stack == stack],
                self.collator,
                self.datasets[0],
                estimate=self.recipe.importance.estimate,
                n_examples=self.recipe.importance.examples,
                on_progress=lambda done, whole: progress.update(task, completed=done, total=whole),
            )
        # The trainer places it anew.
        self.teacher.to("cpu")
        if torch.distributed.is_initialized():
            # What each process measured may differ in its last digits, and with it the pairs.
            found = broadcast_object_list([found])[0]
        self.importance_seconds += time.perf_counter() - started
        return found

    @cached_property
    def objective(self) -> Objective:
        """The loss, with the parameters that it trains itself."""
        chosen = self.recipe.objective
        terms: dict[str, tuple[float, Term]] = {}
        if chosen.task is not None:
            terms |= self.task.terms(chosen.task)
        if self.with_teacher and chosen.logits is not None:
            terms["logits"] = (
                chosen.logits.weight,
                LogitsDistillation(chosen.logits.temperature, chosen.logits.divergence),
            )
        if self.with_teacher and chosen.attention is not None:
            attention = attention_term(
                self.attention_pairing.pairs,
                chosen.attention.method,
                chosen.attention.variant,
                temperature=chosen.attention.temperature,
                detach_alignment=chosen.attention.detach_alignment,
                projection=chosen.attention.projection,
                relation_heads=chosen.attention.relation_heads,
            )
            if chosen.attention.head_weights == "importance":
                stacks = dict.fromkeys(pair.teacher.stack for pair in self.attention_pairing)
                measured = [self.teacher_importance(stack).heads for stack in stacks]
                attention.weigh_heads({key: heads for one in measured for key, heads in one.items()})
            terms["attention"] = (chosen.attention.weight, attention)
        if self.with_teacher and chosen.hidden is not None:
            hidden = HiddenStates(self.hidden_pairing.pairs, loss=chosen.hidden.loss)
            terms["hidden"] = (chosen.hidden.weight, hidden)
        return Objective(terms)

    def student_records(self) -> dict[SiteKey, AttentionRecord]:
        """What the paired sites of the student record on one or two training examples."""
        return self._records(self.model, "student", self.pairing.student_keys)

    def teacher_records(self) -> dict[SiteKey, AttentionRecord]:
        """The same of the teacher; empty without one."""
        if self.teacher is None:
            return {}
        return self._records(self.teacher, "teacher", self.pairing.teacher_keys)

    def _records(
        self, model: PreTrainedModel, who: str, keys: list[SiteKey]
    ) -> dict[SiteKey, AttentionRecord]:
        """Records of a forward on one or two training examples."""
        batch = self.collator([self.datasets[0][index] for index in range(min(2, len(self.datasets[0])))])
        for name in FOR_THE_LOSS:
            batch.pop(name, None)
        chosen = [site for site in self.sites[who] if site.key in keys]
        with torch.no_grad(), Recorder(model, chosen, detach=True) as recorder:
            model(**batch)
            return recorder.take(batch)
