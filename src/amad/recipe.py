"""A run, described: read from YAML, checked, overridden with ``key=value``, stored resolved with the run.

A recipe is data. Nothing in it is executed and no object is built from a string. Paths are relative to the
working directory, paths of data files to ``data.root``.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from amad.errors import RecipeError
from amad.losses.variants import VARIANTS, WITHOUT_HEAD_WEIGHTS, AttentionMethod, AttentionVariant
from amad.recipe_data import DATA_OF_TASK, NonNegative, RecipeData, Section, Task

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)]


class ModelRecipe(Section):
    """A model to train: a checkpoint to start from, or a configuration to build with random weights.

    Attributes:
        path: Checkpoint folder.
        config: Configuration with its ``model_type``; the vocabulary size comes from the tokenizer.
        tokenizer: Folder of a tokenizer; trained on the words of the training set when absent.
        image_size: Height and width of images in the place of those that the checkpoint reads; for BLIP.
        dropout: Probability of dropout in the text part in the place of the checkpoint's; for BLIP.
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    image_size: Annotated[int, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelRecipe":
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of model.path and model.config")
        if self.image_size is not None and self.path is None:
            raise ValueError(
                "model.image_size changes a checkpoint; model.config says itself at what size images are read"
            )
        if self.dropout is not None and self.path is None:
            raise ValueError("model.dropout changes a checkpoint; model.config says itself what is dropped")
        if self.tokenizer is not None and self.path is not None:
            raise ValueError("model.tokenizer is for model.config; the checkpoint of model.path has its own")
        return self


class StudentRecipe(Section):
    """The student: how much of the teacher it keeps, or a checkpoint of its own.

    Attributes:
        heads: Attention heads: a number, or a share of the teacher's up to 1.0.
        layers: Layers of every stack, likewise.
        width: Width of the hidden states, likewise; the feed-forward layers follow.
        config: Further configuration keys that differ from the teacher's.
        init: ``random``, or ``teacher`` to copy evenly spaced layers (equal width and heads only).
        path: A checkpoint folder instead of all of these.
    """

    heads: Fraction | None = None
    layers: Fraction | None = None
    width: Fraction | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    init: Literal["random", "teacher"] = "random"
    path: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "StudentRecipe":
        sized = self.heads or self.layers or self.width or self.config or self.init != "random"
        if self.path is not None and sized:
            raise ValueError("student.path leaves no room for student.heads, layers, width, config or init")
        return self


class TaskTerm(Section):
    """Cross entropy with the ground truth.

    ``reduction: sample`` is VL-T5's form for questions: mean over an answer's tokens, times its soft score, mean
    over the batch. ``sum`` is BLIP's: the sum over an answer's tokens in the place of the mean. ``token`` is the mean
    over all target tokens.
    """

    weight: NonNegative = 1.0
    reduction: Literal["token", "sample", "sum"] = "token"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class LogitsTerm(Section):
    """Divergence between the teacher's and the student's next-token distributions.

    Attributes:
        weight: Weight of the term in the loss.
        temperature: Of both distributions; the value is multiplied by its square.
        divergence: ``forward_kl``, KL(teacher || student); ``reverse_kl``, the other way round; or ``jsd``.
    """

    weight: NonNegative = 1.0
    temperature: Positive = 2.0
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"


class AttentionTerm(Section):
    """Distillation of attention: Attention Map Alignment Distillation, or a rival under the same conditions.

    Attributes:
        weight: Weight of the term in the loss.
        method: Who teaches whom: ``amad``, ``one_to_one``, ``mean``, ``nearest``, ``assigned``, ``head_mean``,
            ``learned``, ``relations`` or ``squeezed``; :mod:`amad.losses.methods` has the class of each.
        variant: What is compared: ``kl`` (all methods), ``mse`` (all but ``head_mean``, ``relations`` and
            ``squeezed``); for ``amad`` also ``projected`` and ``token``, for ``one_to_one`` also ``scores``.
        temperature: For ``amad``: of the softmax over student heads; 1 is the paper's.
        detach_alignment: For ``amad``: stop gradients through the alignment weights.
        projection: For ``amad``, ``projected``: ``full`` as in the paper, or ``factored``.
        relation_heads: For ``relations``: their number; the teacher's number of heads when absent.
        head_weights: How much each teacher head counts: all alike, or by its ``importance`` to the teacher's task.
        stacks: Weight of each stack; all stacks that both models have, at weight 1, when absent.
    """

    weight: NonNegative = 1.0
    method: AttentionMethod = "amad"
    variant: AttentionVariant = "kl"
    temperature: Positive = 1.0
    detach_alignment: bool = False
    projection: Literal["full", "factored"] = "full"
    relation_heads: Annotated[int, Field(gt=0)] | None = None
    head_weights: Literal["uniform", "importance"] = "uniform"
    stacks: dict[str, NonNegative] | None = None

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> "AttentionTerm":
        known = VARIANTS[self.method]
        if self.variant not in known:
            raise ValueError(
                f"variant {self.variant!r} is none of method {self.method!r}: {', '.join(known)}"
            )
        if self.head_weights != "uniform" and self.method in WITHOUT_HEAD_WEIGHTS:
            raise ValueError(
                f"method {self.method!r} is no sum over teacher heads: leave head_weights uniform, or out"
            )
        for method, keys in KEYS_OF_METHOD.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if changed and method != self.method:
                raise ValueError(
                    f"{changed[0]} is of method {method!r} and changes nothing in {self.method!r}"
                )
        return self


KEYS_OF_METHOD: dict[str, tuple[str, ...]] = {
    "amad": ("temperature", "detach_alignment", "projection"),
    "relations": ("relation_heads",),
}
"""Keys of the attention term that one method alone reads."""


class HiddenTerm(Section):
    """Distance of the student's hidden states, through a trained projection, from the teacher's.

    Attributes:
        weight: Weight of the term in the loss.
        loss: ``mse`` or ``cosine``.
        stacks: Weight of the layers of each stack; of all self-attention stacks that both models have, at weight 1,
            when absent.
    """

    weight: NonNegative = 1.0
    loss: Literal["mse", "cosine"] = "mse"
    stacks: dict[str, NonNegative] | None = None


class ObjectiveRecipe(Section):
    """The terms of the loss; a term set to null is left out."""

    task: TaskTerm | None = TaskTerm()
    logits: LogitsTerm | None = LogitsTerm()
    attention: AttentionTerm | None = AttentionTerm()
    hidden: HiddenTerm | None = None

    @model_validator(mode="after")
    def _learns_something(self) -> "ObjectiveRecipe":
        if not any(term is not None and term.weight for _, term in self):
            raise ValueError(
                "no term of it has a weight above 0, so nothing would be learned. Give one to a term"
            )
        return self


class ImportanceRecipe(Section):
    """How the importance of heads is measured, on training examples spread evenly over the set, before training starts.

    Attributes:
        estimate: ``ablation`` (one forward pass per head and batch) or ``gradient`` (one backward pass per batch).
        examples: At most so many.
    """

    estimate: Literal["ablation", "gradient"] = "ablation"
    examples: Annotated[int, Field(gt=0)] = 256


PairingRule = Literal["uniform", "last", "first", "important", "important-encoder"] | list[tuple[int, int]]


class Recipe(Section):
    """A whole run.

    Attributes:
        task: What is learned: ``vqa``, ``captions``, ``translation``, or ``pretraining`` for what others start from.
        output: Folder of the run; it must not exist yet.
        seed: Of weights, order and sampling.
        data: What it is learned from, in the form of the task.
        model: For ``amad train``: the model.
        teacher: For ``amad distill``: checkpoint folder of the teacher.
        student: For ``amad distill``: the student.
        objective: The loss.
        pairing: Which teacher layer teaches which student layer: one rule, or one per stack, or
            explicit [student layer, teacher layer] pairs per stack.
        importance: How the importance of the teacher's heads is measured, for what uses it.
        training: Arguments of the trainer by their Hugging Face names.
    """

    task: Task
    output: str
    seed: int = Field(0, ge=0, lt=2**32)
    data: RecipeData
    model: ModelRecipe | None = None
    teacher: str | None = None
    student: StudentRecipe | None = None
    objective: ObjectiveRecipe = ObjectiveRecipe()
    pairing: PairingRule | dict[str, PairingRule] = "uniform"
    importance: ImportanceRecipe = ImportanceRecipe()
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("data", mode="wrap")
    @classmethod
    def _data_of_the_task(cls, given: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        # Without a known task nothing is known of its data, and the recipe is refused for its task alone.
        task = info.data.get("task")
        return given if task is None else check(DATA_OF_TASK[task].model_validate(given))

    @property
    def distils(self) -> bool:
        """Whether there is a teacher and a student to learn from it."""
        return self.teacher is not None and self.student is not None

    def dump(self) -> str:
        """The resolved recipe as YAML."""
        return dump_yaml(self.model_dump(mode="json"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: A YAML file.
        overrides: ``key=value`` with dots between keys; the value is YAML (``objective.attention=null``).

    Raises:
        RecipeError: if the file is missing or no YAML mapping, an override is no ``key=value``, or a rule of the
            schema is broken; an unknown key is named with the nearest known one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Give the path of a YAML file, as in recipes/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error}.") from None
    try:
        tree = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}. Mend the file.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, not {type(tree).__name__}. See recipes/.")
    for override in overrides:
        _override(tree, override)
    return check_recipe(tree, source=str(path))


def check_recipe(tree: dict[str, Any], source: str = "recipe") -> Recipe:
    """The recipe that a tree of plain values describes; see :func:`load_recipe`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{source}: {line}" for line in _explain(error, tree.get("task")))
        ) from None


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with these ``key=value``, as :func:`load_recipe` takes them."""
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        _override(tree, override)
    return check_recipe(tree)


def nearest_key(unknown: str, known: Sequence[str]) -> str:
    """A half sentence that proposes the known key most like an unknown one."""
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}."


class _Loader(yaml.SafeLoader):
    """YAML as most people write numbers: 1e-3 is one, where YAML 1.1 reads text."""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what is text and would be read as a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(text: str) -> Any:
    """What a recipe reads in this text.

    Raises:
        YAMLError: if it is not YAML.
    """
    return yaml.load(text, _Loader)


def dump_yaml(tree: Any) -> str:
    """The text that :func:`read_yaml` reads as this."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"override {override!r} is not key=value. Write for instance training.max_steps=500."
        )
    try:
        parsed = read_yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"override {override!r}: the value is not valid YAML: {error}. Put text with braces, brackets or colons "
            f"in quotes, inside those of the shell: 'key=\"{{image_id}}.png\"'."
        ) from None
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"override {override!r}: {parent} is {child!r}, which has no keys below it.")
        node = child
    node[leaf] = parsed


def _explain(error: ValidationError, task: object) -> list[str]:
    lines = []
    # A value that may be of several kinds is refused once for each; that makes one line.
    refused: dict[str, tuple[object, list[str]]] = {}
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"] if not _UNION_BRANCH.search(str(part))]
        path = ".".join(place)
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {path!r}: {nearest_key(place[-1], _known_keys(place[:-1], task))}")
        elif problem["type"] == "missing":
            lines.append(f"key {path!r} is missing: every recipe must give it.")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]) + ("." if path == "" else f" (in {path})."))
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            refused.setdefault(path, (problem["input"], []))[1].append(message)
    lines += [f"{path} = {value!r}: {', or '.join(reasons)}." for path, (value, reasons) in refused.items()]
    return list(dict.fromkeys(lines))


# What pydantic adds to the place of a problem to tell the kinds of a union apart.
_UNION_BRANCH = re.compile(r"\[|^constrained-")


def _known_keys(place: Sequence[str], task: object) -> list[str]:
    section: type[BaseModel] = Recipe
    if place and place[0] == "data":
        section, place = DATA_OF_TASK[str(task)], place[1:]
    for part in place:
        if part.isdigit():
            # The place of an item in a list.
            continue
        field = section.model_fields.get(part)
        nested = (
            []
            if field is None
            else [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)]
        )
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)


def _kinds(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _kinds(part)]


def first_difference(before: Any, after: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key at which two trees differ, and both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            found = first_difference(before.get(name), after.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    return None if before == after else (key, before, after)
