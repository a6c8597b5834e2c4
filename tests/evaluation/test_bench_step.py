import pytest
import torch

from amad.capture.sites import find_sites
from amad.errors import RecipeError
from amad.evaluation import bench_measuring, bench_step
from amad.evaluation.bench_measuring import silent
from amad.evaluation.bench_step import MODES, Sizes, StepCase, TrainingStep, check_same, measure_times

TINY = Sizes(width=16, heads=2, layers=2, vocab=250, classes=5)


def tiny(model="vlt5", variant="kl", **changes):
    return StepCase(
        **{"model": model, "tokens": 13, "variant": variant, "batch": 2, "sizes": TINY, **changes}
    )


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", ["mse", "kl", "token"])
@pytest.mark.parametrize("model", ["vlt5", "vit"])
def test_operators_and_maps_take_the_same_step(model, variant):
    steps = {mode: TrainingStep(tiny(model, variant), mode) for mode in ("operators", "maps")}
    before = torch.cat([one.detach().flatten() for one in steps["operators"].student.parameters()])
    # At the start maps are nearly flat, and gradients what is left of large numbers.
    assert check_same(steps) < 1e-3
    after = [
        torch.cat([one.detach().flatten() for one in steps[mode].student.parameters()])
        for mode in ("operators", "maps")
    ]
    assert (after[0] - before).norm() > 0
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-4)


def test_every_layer_of_every_stack_is_distilled():
    step = TrainingStep(tiny(), "operators")
    assert len(find_sites(step.student)) == 6
    assert [str(pair.student) for pair in step.objective.pairs] == [
        f"{stack}[{layer}]" for stack in ("encoder.self", "decoder.self", "decoder.cross") for layer in (0, 1)
    ]


def test_attention_adds_to_the_loss_of_the_logits():
    losses = {mode: TrainingStep(tiny(), mode)().item() for mode in MODES}
    assert losses["operators"] > losses["logits"] > 0


def test_operators_that_differ_from_maps_are_not_timed(monkeypatch):
    right = bench_step.loss_of_maps
    monkeypatch.setattr(bench_step, "loss_of_maps", lambda *of: 1.2 * right(*of))
    with pytest.raises(RecipeError, match="What is wrong is not timed"):
        measure_times(tiny(), 1)


def test_a_gradient_that_differs_is_seen(monkeypatch):
    right = bench_step.loss_of_maps
    monkeypatch.setattr(bench_step, "loss_of_maps", lambda *of: right(*of).detach())
    with pytest.raises(RecipeError, match="What is wrong is not timed"):
        measure_times(tiny(), 1)


def test_times_of_every_mode_are_taken():
    found = measure_times(tiny("vit"), 2)
    assert set(found["seconds"]) == set(MODES)
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found["seconds"].values())
    assert found["missing"] == {}
    assert 0 <= found["difference"] < 1e-3


def test_maps_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setattr(bench_measuring, "free_bytes", lambda _: 1000)
    found = measure_times(tiny(), 1)
    assert set(found["seconds"]) == {"logits", "operators"}
    assert "GiB are free" in found["missing"]["maps"]
    assert found["difference"] is None


@pytest.mark.parametrize("tokens", [2, 13, 197])
def test_images_have_exactly_so_many_tokens(tokens):
    for model in ("vlt5", "vit"):
        step = TrainingStep(tiny(model, tokens=tokens, batch=1), "maps")
        maps = step._forward(step.student, step.student_recorder)[1]
        n_words = bench_step.N_WORDS if model == "vlt5" else 0
        assert maps[0].shape == (1, 2, tokens + n_words, tokens + n_words)


def test_patches_form_a_grid_as_square_as_they_can():
    assert [bench_step._grid(n) for n in (196, 576, 1023, 7)] == [(14, 14), (24, 24), (31, 33), (1, 7)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "gpt"}, "model 'gpt' is none of vlt5, vit"),
        ({"variant": "projected"}, "variant 'projected' is none of mse, kl, token"),
        ({"tokens": 1}, "tokens = 1"),
        ({"batch": 0}, "batch = 0"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, match):
    with pytest.raises(RecipeError, match=match):
        StepCase(**changes)


def test_no_round_is_refused_before_anything_runs():
    with pytest.raises(RecipeError, match="repeats = 0"):
        bench_step.bench_step(tiny(), 0)


def test_ratios_follow_from_what_was_measured(monkeypatch):
    def in_this_process(function, *arguments, on_progress=silent):
        return function(*arguments, on_progress)

    monkeypatch.setattr(bench_step, "in_own_process", in_this_process)
    monkeypatch.setattr(bench_measuring, "in_own_process", in_this_process)
    found = bench_step.bench_step(tiny(), 2)
    assert {"case", "clock", "versions", "machine", "commit", "difference"} <= set(found)
    assert all(found["median_seconds"][mode] > 0 for mode in MODES)
    for one, other in (("operators", "logits"), ("maps", "logits"), ("maps", "operators")):
        rounds = zip(found["seconds"][one], found["seconds"][other], strict=True)
        assert found["ratios"][f"{one}/{other}"] == pytest.approx(sum(a / b for a, b in rounds) / 2)
