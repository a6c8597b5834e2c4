"""What attention distillation adds to a whole training step, by the operators and by whole maps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from amad.axes import SitePair
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import AmadError, RecipeError
from amad.evaluation.bench_maps import loss_of_maps
from amad.evaluation.bench_measuring import (
    Progress,
    check_fits,
    check_machine,
    clock_for,
    in_own_process,
    memory_ratio,
    peak_extra_bytes,
    peaks_of,
    ratio,
    silent,
    surroundings,
    take_turns,
    use_threads,
)
from amad.evaluation.bench_ops import MAP_BYTES, OPS
from amad.evaluation.efficiency import Latency
from amad.losses.amad import AttentionAlignment
from amad.losses.logits import LogitsDistillation
from amad.losses.objective import Captured, Counts, Objective, Targets, Term
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

MODELS = ("vlt5", "vit")
MODES = ("logits", "operators", "maps")

TOLERANCE = 1e-2
"""How far loss and gradient by operators and by maps may be apart: maps in float32 lose digits as they grow."""

PATCH = 16
N_WORDS = 20
N_ANSWER = 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of teacher and student, which differ in their weights alone.

    Attributes:
        width: Of the hidden states.
        heads: Of every layer.
        layers: Of the encoder, and of VL-T5's decoder.
        vocab: Words of VL-T5.
        classes: Classes of the ViT.
    """

    width: int = 768
    heads: int = 12
    layers: int = 2
    vocab: int = 32200
    classes: int = 1000


@dataclass(frozen=True)
class StepCase:
    """One training step on one machine.

    Attributes:
        model: ``vlt5``, which reads 20 words beside the image and answers with 4, or ``vit``, a classifier.
        tokens: Image tokens; the ViT's class token is one of them.
        variant: ``mse``, ``kl`` or ``token``: the attention loss, at every layer.
        batch: Samples.
        threads: Threads of torch.
        device: ``cpu`` or ``cuda``.
        sizes: Of both models.

    Raises:
        RecipeError: if one of them is out of its range.
    """

    model: str = "vlt5"
    tokens: int = 197
    variant: str = "kl"
    batch: int = 1
    threads: int = 1
    device: str = "cpu"
    sizes: Sizes = Sizes()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise RecipeError(f"model {self.model!r} is none of {', '.join(MODELS)}.")
        if self.variant not in OPS:
            raise RecipeError(f"variant {self.variant!r} is none of {', '.join(OPS)}.")
        if self.tokens < 2:
            raise RecipeError(f"tokens = {self.tokens}: give 2 or more.")
        if self.batch < 1:
            raise RecipeError(f"batch = {self.batch}: give 1 or more.")
        check_machine(self.device, self.threads)


class TrainingStep:
    """Teacher forward, student forward, loss, backward and a step of AdamW, on one batch.

    Args:
        case: Models and batch; the same case makes the same.
        mode: ``logits``: distillation of predictions alone. ``operators``: and of attention at all layers, as the
            trainer does it. ``maps``: the same loss from the maps that eager attention returns.
    """

    def __init__(self, case: StepCase, mode: str) -> None:
        self.case, self.mode = case, mode
        attention = "eager" if mode == "maps" else "sdpa"
        self.teacher = _model(case, 1, attention).eval().requires_grad_(False)
        self.student = _model(case, 0, attention).train()
        self.batch = _batch(case)
        one_class = torch.zeros(case.batch, 1, dtype=torch.long, device=case.device)
        self.labels = self.batch.get("labels", one_class)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4)
        terms: dict[str, tuple[float, Term]] = {"logits": (1.0, LogitsDistillation())}
        student_sites, teacher_sites = find_sites(self.student), find_sites(self.teacher)
        self.n_sites = len(student_sites)
        if mode == "operators":
            pairs = [SitePair(site.key, site.key) for site in student_sites]
            terms["attention"] = (1.0, AttentionAlignment(pairs, variant=case.variant))  # type: ignore[arg-type]
        else:
            student_sites, teacher_sites = [], []
        self.objective = Objective(terms).to(case.device)
        self.student_recorder = Recorder(self.student, student_sites)
        self.teacher_recorder = Recorder(self.teacher, teacher_sites, detach=True)

    def __call__(self) -> Tensor:
        """The loss; gradients stay until the next step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            teacher, teacher_maps = self._forward(self.teacher, self.teacher_recorder)
        student, student_maps = self._forward(self.student, self.student_recorder)
        targets = Targets(self.labels)
        loss: Tensor = self.objective(student, teacher, targets, Counts.of(targets)).loss
        for mine, its in zip(student_maps, teacher_maps, strict=True):
            loss = loss + loss_of_maps(self.case.variant, mine, its) / len(student_maps)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def gradient(self) -> Tensor:
        """All gradients of the last step, one after the other."""
        found = [one.grad.flatten() for one in self.student.parameters() if one.grad is not None]
        return torch.cat(found)

    def _forward(self, model: PreTrainedModel, recorder: Recorder) -> tuple[Captured, list[Tensor]]:
        with recorder:
            output = model(**self.batch, **({"output_attentions": True} if self.mode == "maps" else {}))
            records = recorder.take(self.batch, require_grad=model.training)
        logits = output.logits if output.logits.ndim == 3 else output.logits[:, None]
        return Captured(logits, records), _maps(output) if self.mode == "maps" else []


def bench_step(case: StepCase, repeats: int = 5, on_progress: Progress = silent) -> dict[str, Any]:
    """Time and memory of a whole training step in each of :data:`MODES`, on the same models and batch.

    Before it is timed, loss and gradient by the operators are compared with those by maps. A ratio is the median over
    rounds of the ratio within a round. Peaks are beyond models and optimiser state, gradients included, each in
    a process of its own.

    Returns:
        One document of numbers and text, as ``amad bench step --json`` prints it.

    Raises:
        RecipeError: fewer rounds than one, or operators and maps that do not agree.
    """
    if repeats < 1:
        raise RecipeError(f"repeats = {repeats}: a time needs at least one round. Give 1 or more.")
    measured = in_own_process(measure_times, case, repeats, on_progress=on_progress)
    missing: dict[str, str] = measured["missing"]
    times = {name: Latency(seconds) for name, seconds in measured["seconds"].items()}
    peaks = peaks_of(measure_peak, case, times, missing, on_progress)
    return {
        "case": asdict(case),
        "clock": clock_for(case.device, case.threads),
        "repeats": repeats,
        "median_seconds": {name: times[name].median_seconds if name in times else None for name in MODES},
        "peak_extra_bytes": {name: peaks.get(name) for name in MODES},
        "ratios": {
            "operators/logits": ratio(times.get("operators"), times.get("logits")),
            "maps/logits": ratio(times.get("maps"), times.get("logits")),
            "maps/operators": ratio(times.get("maps"), times.get("operators")),
            "operators/logits memory": memory_ratio(peaks.get("operators"), peaks.get("logits")),
            "maps/logits memory": memory_ratio(peaks.get("maps"), peaks.get("logits")),
        },
        "difference": measured["difference"],
        "missing": missing,
        "seconds": {name: list(latency.seconds) for name, latency in times.items()},
        **surroundings(case.device),
    }


def measure_times(case: StepCase, repeats: int, on_progress: Progress = silent) -> dict[str, Any]:
    """``seconds`` of each mode in each round, why others are ``missing``, and the ``difference`` of operators and maps.

    Raises:
        RecipeError: as :func:`bench_step`.
    """
    use_threads(case.threads)
    chosen, missing = {}, {}
    for number, mode in enumerate(MODES):
        on_progress("preparing", number, len(MODES))
        try:
            if mode == "maps":
                check_fits(_map_bytes(case), case.device)
            chosen[mode] = TrainingStep(case, mode)
        except AmadError as error:
            missing[mode] = str(error)
    difference = check_same(chosen) if "maps" in chosen else None
    rounds = take_turns(chosen, repeats, clock_for(case.device, case.threads), case.device, on_progress)
    seconds = {mode: latency.seconds for mode, latency in rounds.items()}
    return {"seconds": seconds, "missing": missing, "difference": difference}


def check_same(steps: Mapping[str, "TrainingStep"]) -> float:
    """The larger one of the relative differences of loss and of gradient, by operators and by maps, in one step.

    Raises:
        RecipeError: if it is more than :data:`TOLERANCE`.
    """
    losses = {mode: steps[mode]().double() for mode in ("operators", "maps")}
    gradients = {mode: steps[mode].gradient().double() for mode in losses}
    apart = [
        float((one["operators"] - one["maps"]).norm() / one["maps"].norm()) for one in (losses, gradients)
    ]
    if not max(apart) <= TOLERANCE:
        raise RecipeError(
            f"loss and gradient by operators and by maps differ by {apart[0]:.1e} and {apart[1]:.1e}, and "
            f"{TOLERANCE:.0e} is allowed. What is wrong is not timed; please report it."
        )
    return max(apart)


def measure_peak(case: StepCase, mode: str, on_progress: Progress = silent) -> int:
    """Peak bytes of a step beyond models and optimiser state; call it in a process of its own.

    A step before it takes what libraries take once, and makes the optimiser's state.
    """
    use_threads(case.threads)
    step: Callable[[], Tensor] = (training := TrainingStep(case, mode))
    step()
    training.optimizer.zero_grad(set_to_none=True)
    return peak_extra_bytes(step, case.device)


def _model(case: StepCase, seed: int, attention: str) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = case.sizes
    if case.model == "vit":
        rows, columns = _grid(case.tokens - 1)
        model = ViTForImageClassification(
            ViTConfig(
                hidden_size=sizes.width,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                intermediate_size=4 * sizes.width,
                image_size=(rows * PATCH, columns * PATCH),
                patch_size=PATCH,
                num_labels=sizes.classes,
            )
        )
    else:
        model = VLT5ForConditionalGeneration(
            VLT5Config(
                vocab_size=sizes.vocab,
                d_model=sizes.width,
                d_kv=sizes.width // sizes.heads,
                d_ff=4 * sizes.width,
                num_heads=sizes.heads,
                num_layers=sizes.layers,
                num_decoder_layers=sizes.layers,
                dropout_rate=0.0,
            )
        )
    model.set_attn_implementation(attention)
    return model.to(case.device)  # type: ignore[no-any-return]


def _batch(case: StepCase) -> dict[str, Tensor]:
    """Random inputs, and for VL-T5 an answer."""
    generator = torch.Generator().manual_seed(2)
    if case.model == "vit":
        rows, columns = _grid(case.tokens - 1)
        shape = case.batch, 3, rows * PATCH, columns * PATCH
        return {"pixel_values": torch.randn(shape, generator=generator).to(case.device)}

    def words(length: int) -> Tensor:
        return torch.randint(1, case.sizes.vocab, (case.batch, length), generator=generator)

    corners = torch.rand(case.batch, case.tokens, 4, generator=generator)
    batch = {
        "input_ids": words(N_WORDS),
        "vis_feats": torch.rand(case.batch, case.tokens, VLT5Config().feat_dim, generator=generator),
        "boxes": torch.cat([corners[..., :2] / 2, corners[..., 2:] / 2 + 0.5], -1),
        "labels": words(N_ANSWER),
    }
    return {name: tensor.to(case.device) for name, tensor in batch.items()}


def _maps(output: Any) -> list[Tensor]:
    """Every map that a model returned."""
    names = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return [one for name in names for one in (output.get(name) or ())]


def _map_bytes(case: StepCase) -> int:
    length = case.tokens + (N_WORDS if case.model == "vlt5" else 0)
    return MAP_BYTES["naive"] * case.batch * 2 * case.sizes.heads * case.sizes.layers * length**2


def _grid(n_patches: int) -> tuple[int, int]:
    """Rows and columns of as many patches, as square as their number allows."""
    rows = next(rows for rows in range(math.isqrt(n_patches), 0, -1) if n_patches % rows == 0)
    return rows, n_patches // rows
