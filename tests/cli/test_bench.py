import statistics

import pytest
import torch

from amad.evaluation import bench_measuring, bench_ops

TINY_OPS = (
    "bench",
    "ops",
    "--teacher-heads",
    4,
    "--student-heads",
    2,
    "--width",
    8,
    "--queries",
    20,
    "--keys",
    30,
)
ON_CPU = ("--device", "cpu", "--repeats", 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ops", "--op", "l1"), "op 'l1' is none of mse, kl, token."),
        (("ops", "--student-heads", 0), "student-heads = 0: give 1 or more."),
        (("ops", "--teacher-heads", -2), "teacher-heads = -2: give 1 or more."),
        (("ops", "--threads", 0), "threads = 0: work needs at least one."),
        (("ops", "--repeats", 0), "repeats = 0: a time needs at least one round."),
        (("ops", "--dtype", "float8"), "dtype 'float8' is none of float32, bfloat16, float16."),
        (("ops", "--device", "abacus"), "device 'abacus' is neither cpu nor cuda."),
        (("step", "--model", "gpt"), "model 'gpt' is none of vlt5, vit."),
        (("step", "--variant", "projected"), "variant 'projected' is none of mse, kl, token."),
        (("step", "--tokens", 0), "tokens = 0: give 2 or more."),
        (("step", "--threads", 0), "threads = 0: work needs at least one."),
    ],
)
def test_what_cannot_be_measured_is_refused(amad, arguments, told):
    assert told in amad.refuse("bench", *arguments)


def test_operators_as_a_table(amad, monkeypatch):
    def in_this_process(function, *arguments, on_progress=bench_measuring.silent):
        return function(*arguments, on_progress)

    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(bench_ops, "in_own_process", in_this_process)
    monkeypatch.setattr(bench_measuring, "in_own_process", in_this_process)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    before = torch.get_num_threads()
    shown = " ".join(amad.succeed(*TINY_OPS, *ON_CPU, "--threads", 2).split())
    torch.set_num_threads(before)
    for told in ("ours/sdpa", "torch.compile of naive", "no C++ compiler", "wall time", "off float64 by"):
        assert told in shown


@pytest.mark.slow
def test_operators_as_a_document(amad):
    found = amad.document(*TINY_OPS, *ON_CPU, "--op", "token")
    assert found["case"]["op"] == "token"
    assert (found["case"]["queries"], found["case"]["keys"]) == (20, 30)
    assert {"versions", "machine", "commit", "floors"} <= set(found)
    assert found["missing"] == {}
    for name in ("ours", "naive", "compile", "sdpa"):
        assert len(found["seconds"][name]) == 2
        assert found["median_seconds"][name] > 0
        assert found["peak_extra_bytes"][name] >= 0
    for ratio in ("ours/sdpa", "naive/ours", "compile/ours"):
        one, other = (found["seconds"][name] for name in ratio.split("/"))
        assert found["ratios"][ratio] == statistics.median(a / b for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_a_step_as_a_table(amad):
    # The title is folded at the width of the table, which the numbers decide.
    shown = " ".join(amad.succeed("bench", "step", "--model", "vit", "--tokens", 10, *ON_CPU).split())
    for told in ("logits and AMAD, operators", "operators/logits", "width 768", "CPU time of one thread"):
        assert told in shown
