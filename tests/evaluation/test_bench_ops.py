import statistics

import pytest
import torch

from amad.errors import RecipeError
from amad.evaluation import bench_measuring, bench_ops
from amad.evaluation.bench_measuring import silent
from amad.evaluation.bench_ops import (
    OPS,
    OpsCase,
    check_correct,
    contender,
    floor,
    make_inputs,
    measure_times,
    ours_loss,
)

KEYS = {
    "case",
    "clock",
    "repeats",
    "median_seconds",
    "peak_extra_bytes",
    "ratios",
    "floors",
    "errors",
    "missing",
    "seconds",
    "versions",
    "machine",
    "commit",
}


def small(op="kl", **changes):
    sizes = {"batch": 2, "teacher_heads": 4, "student_heads": 2, "width": 8, "queries": 12, "keys": 10}
    return OpsCase(op, **{**sizes, **changes})


@pytest.fixture
def _no_compiler(monkeypatch):
    def refuse(*_, **__):
        def work(*_):
            raise RuntimeError("no C++ compiler\nand a long story")

        return work

    monkeypatch.setattr(torch, "compile", refuse)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", OPS)
def test_our_operators_pass_the_gate(op, dtype):
    value, gradient = check_correct(small(op, dtype=dtype))
    most = bench_ops.TOLERANCES[dtype]
    assert 0 <= value <= most[0]
    assert 0 < gradient <= most[1]


@pytest.mark.parametrize("op", OPS)
def test_the_gate_refuses_a_wrong_value(op, monkeypatch):
    monkeypatch.setattr(bench_ops, "ours_loss", lambda *of: ours_loss(*of) + 1e-3)
    with pytest.raises(RecipeError, match=rf"operator '{op}' is wrong at this shape: its value is off"):
        check_correct(small(op))


@pytest.mark.parametrize("op", OPS)
def test_the_gate_refuses_a_wrong_gradient_and_nothing_is_timed(op, monkeypatch):
    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.001

    def never(*_):
        raise AssertionError("timed what is wrong")

    monkeypatch.setattr(bench_ops, "ours_loss", lambda *of: Bent.apply(ours_loss(*of)))
    monkeypatch.setattr(bench_ops, "take_turns", never)
    with pytest.raises(RecipeError, match=r"its gradient is off by 1\.0e-03"):
        measure_times(small(op), 1)


def test_the_gate_refuses_what_is_not_a_number(monkeypatch):
    monkeypatch.setattr(bench_ops, "ours_loss", lambda *of: ours_loss(*of) * float("nan"))
    with pytest.raises(RecipeError, match="off by inf"):
        check_correct(small())


@pytest.mark.parametrize("op", OPS)
def test_contenders_compute_the_same(op):
    inputs = make_inputs(small(op))
    ours, naive = (contender(small(op), name, inputs)() for name in ("ours", "naive"))
    for mine, its in zip(ours, naive, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_attention_is_differentiated_to_query_key_and_value():
    inputs = make_inputs(small())
    gradients = contender(small(), "sdpa", inputs)()
    assert [one.shape for one in gradients] == [one.shape for one in inputs[:3]]


def test_inputs_are_the_same_at_every_call():
    for one, other in zip(make_inputs(small()), make_inputs(small()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("op", "shape", "to_student", "both"),
    [
        # Counts relative to attention of the student, and of student and teacher, worked out by hand.
        ("mse", (12, 12, 64), (12 * 64 + 8 * 12) / (14 * 64), 18 / 14),
        ("kl", (12, 12, 64), 1.30, 18 / 14),
        ("mse", (16, 3, 64), 2.18, 2.52),
        ("kl", (32, 16, 128), 1.79, 1.57),
    ],
)
def test_floors_by_hand(op, shape, to_student, both):
    teacher, student, width = shape
    found = floor(OpsCase(op, teacher_heads=teacher, student_heads=student, width=width))
    assert found == pytest.approx(to_student / both, rel=0.01)


def test_a_floor_does_not_depend_on_batch_and_length():
    assert floor(small("token")) == floor(small("token", batch=7, queries=3, keys=99))


@pytest.mark.usefixtures("_no_compiler")
def test_times_are_taken_and_a_failed_compilation_is_told():
    found = measure_times(small(), 3)
    assert set(found["seconds"]) == {"ours", "naive", "sdpa"}
    assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in found["seconds"].values())
    assert found["missing"] == {"compile": "torch.compile failed: RuntimeError: no C++ compiler"}
    assert set(found["errors"]) == {"value", "gradient"}


@pytest.mark.usefixtures("_no_compiler")
def test_maps_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setattr(bench_measuring, "free_bytes", lambda _: 1000)
    found = measure_times(small(), 1)
    assert set(found["seconds"]) == {"ours", "sdpa"}
    assert all("GiB are free" in found["missing"][name] for name in ("naive", "compile"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"op": "l1"}, "op 'l1' is none of mse, kl, token"),
        ({"student_heads": 0}, "student-heads = 0"),
        ({"teacher_heads": -1}, "teacher-heads = -1"),
        ({"queries": 0}, "queries = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"width": 0}, "width = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"dtype": "int8"}, "dtype 'int8' is none of"),
        ({"device": "abacus"}, "neither cpu nor cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, match):
    with pytest.raises(RecipeError, match=match):
        OpsCase(**changes)


def test_no_round_is_refused_before_anything_runs():
    with pytest.raises(RecipeError, match="repeats = 0"):
        bench_ops.bench_ops(small(), 0)


@pytest.mark.usefixtures("_no_compiler")
def test_ratios_follow_from_what_was_measured(monkeypatch):
    def in_this_process(function, *arguments, on_progress=silent):
        return function(*arguments, on_progress)

    monkeypatch.setattr(bench_ops, "in_own_process", in_this_process)
    monkeypatch.setattr(bench_measuring, "in_own_process", in_this_process)
    case = small(queries=200, keys=300)
    told = []
    found = bench_ops.bench_ops(case, 3, lambda what, *_: told.append(what))
    assert set(found) == KEYS
    assert {"comparing with float64", "preparing", "timing", "memory"} == set(told)
    assert set(found["missing"]) == {"compile"}
    seconds, ratios, peaks = found["seconds"], found["ratios"], found["peak_extra_bytes"]
    for name, median in found["median_seconds"].items():
        assert median == (None if name == "compile" else statistics.median(seconds[name]))
    assert peaks["compile"] is ratios["compile/ours"] is None
    for one, other in (("ours", "sdpa"), ("naive", "ours")):
        rounds = zip(seconds[one], seconds[other], strict=True)
        assert ratios[f"{one}/{other}"] == statistics.median(a / b for a, b in rounds)
    assert ratios["naive/ours memory"] == peaks["naive"] / peaks["ours"]
    assert found["floors"] == {"ours/sdpa": floor(case)}
