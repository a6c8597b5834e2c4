import json

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

from amad.errors import CheckpointError, RecipeError
from amad.evaluation import bench_models
from amad.evaluation.bench_measuring import silent
from amad.evaluation.bench_models import ModelsCase, Sweep, measure_peaks, measure_times, still_rises
from amad.evaluation.efficiency import count_checkpoint_bytes, count_flops, count_parameters

MEBIBYTE = 1 << 20


def t5(width):
    sizes = {"d_model": width, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 20}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("checkpoints")
    for name, width in (("big", 32), ("small", 8)):
        t5(width).save_pretrained(home / name)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(home / "vit")
    return {name: str(home / name) for name in ("big", "small", "vit")}


@pytest.fixture
def here(monkeypatch):
    """What a process of its own would do is done in this one."""

    def in_this_process(function, *arguments, on_progress=silent):
        return function(*arguments, on_progress)

    monkeypatch.setattr(bench_models, "in_own_process", in_this_process)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_costs_are_those_of_the_models_and_ratios_those_to_the_first(here, folders):
    case = ModelsCase(
        {name: folders[name] for name in ("big", "small")}, new_tokens=3, text_tokens=4, largest_batch=2
    )
    told = []
    found = bench_models.bench_models(case, 3, lambda *content: told.append(content))
    json.dumps(found)
    for name, width in (("big", 32), ("small", 8)):
        one, model = found["models"][name], t5(width)
        assert one["parameters"] == count_parameters(model)
        assert one["checkpoint_bytes"] == count_checkpoint_bytes(model)
        words = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
        assert one["flops"] == count_flops(model, words, 3)
        assert (one["class"], one["generates"], one["dtype"]) == (
            "T5ForConditionalGeneration",
            True,
            "float32",
        )
        assert len(one["latency_seconds"]) == 3
        assert 0 < one["latency_seconds_median"] <= one["latency_seconds_p95"]
        assert set(one["examples_per_second"]) == {1, 2}
        assert one["best_examples_per_second"] == max(one["examples_per_second"].values())
        assert one["best_examples_per_second"] == one["examples_per_second"][one["best_batch"]]
        assert one["stopped"] == "largest batch"
        assert one["peak_extra_bytes"] >= 0
    big, small = found["models"]["big"], found["models"]["small"]
    assert set(found["ratios"]) == {"small"}
    ratios = found["ratios"]["small"]
    for key in ("parameters", "checkpoint_bytes", "flops", "best_examples_per_second"):
        assert ratios[key] == small[key] / big[key]
    rounds = [a / b for a, b in zip(small["latency_seconds"], big["latency_seconds"], strict=True)]
    assert ratios["latency_seconds_median"] == sorted(rounds)[1]
    # A few kilobytes of activations are not told apart in a process.
    assert ratios["peak_extra_bytes"] is None
    assert found["missing"] == {}
    assert (found["clock"], found["inputs"]) == ("process", "random")
    assert ("batches of 2", 4, 4) in told
    assert told[-1] == ("memory", 2, 2)


def test_peaks_that_can_be_told_apart_have_a_ratio():
    def costs(peak):
        return dict.fromkeys(
            ("parameters", "checkpoint_bytes", "flops", "latency_seconds_p95", "best_examples_per_second"), 1
        ) | {"latency_seconds": [1.0, 1.0], "peak_extra_bytes": peak, "best_peak_extra_bytes": None}

    found = bench_models._ratios(costs(10 * MEBIBYTE), costs(20 * MEBIBYTE))
    assert found["peak_extra_bytes"] == 0.5
    assert found["best_peak_extra_bytes"] is None


def test_a_classifier_does_a_forward_pass(here, folders):
    case = ModelsCase({"vit": folders["vit"]}, largest_batch=1)
    one = measure_times(case, 2)["vit"]
    assert not one["generates"]
    model = ViTForImageClassification.from_pretrained(folders["vit"])
    assert one["flops"] == count_flops(model, {"pixel_values": torch.zeros(1, 3, 8, 8)}, None)


def test_given_inputs_are_repeated_and_their_targets_left_out(here, folders):
    rows = np.array([[3, 4, 5], [6, 7, 8]])
    case = ModelsCase(
        {"small": folders["small"]}, largest_batch=1, inputs={"small": {"input_ids": rows, "labels": rows}}
    )
    batch = bench_models._batch(case, "small", t5(8), 5)
    assert list(batch) == ["input_ids"]
    assert torch.equal(batch["input_ids"], torch.from_numpy(rows[[0, 1, 0, 1, 0]]))
    assert measure_times(case, 2)["small"]["flops"] == count_flops(
        t5(8), {"input_ids": torch.zeros(1, 3, dtype=torch.long)}, 10
    )


def test_peaks_grow_with_the_batch(folders):
    case = ModelsCase({"big": folders["big"]}, new_tokens=1, text_tokens=200)
    before = torch.get_num_threads()
    peaks = measure_peaks(case, "big", [1, 256])
    torch.set_num_threads(before)
    assert peaks[256] > 8 * MEBIBYTE + peaks[1]


@pytest.mark.parametrize(
    ("rates", "goes_on"),
    [
        ([5], True),
        ([5, 5], True),
        ([5, 5, 5.2], False),
        ([5, 9, 9.1], True),
        ([5, 9, 9.1, 9.2], False),
        # Two small rises are one that counts; a fall is none.
        ([5, 5.2, 5.3], True),
        ([9, 5, 8], False),
    ],
)
def test_larger_batches_are_tried_while_throughput_rises(rates, goes_on):
    assert still_rises(rates) is goes_on


def sweep(works, **case):
    found = Sweep(works, ModelsCase(dict.fromkeys(works, "-"), **case), lambda batch: 2)
    found.run()
    return found


def test_a_batch_that_does_not_fit_ends_the_climb_of_its_model_alone():
    def hungry(batch):
        def work():
            if batch > 2:
                raise torch.OutOfMemoryError("no room")

        return work

    found = sweep({"hungry": hungry, "frugal": lambda batch: lambda: None}, largest_batch=4)
    assert set(found.rates["hungry"]) == {1, 2}
    assert found.stopped["hungry"] == "memory"
    assert set(found.rates["frugal"]) == {1, 2, 4}
    assert len(found.latency["hungry"].seconds) == 2


def test_a_batch_that_is_expected_not_to_fit_is_never_tried(monkeypatch):
    asked = []

    def holding(batch):
        asked.append(batch)
        return lambda: torch.ones(batch * 40 * MEBIBYTE // 4)

    monkeypatch.setattr(bench_models, "free_bytes", lambda device: 100 * MEBIBYTE)
    found = sweep({"holding": holding}, largest_batch=16)
    # 40 MiB, 80 MiB, and then 160 MiB would not do.
    assert max(asked) == 2
    assert found.stopped["holding"] == "memory"


def test_inputs_that_a_model_cannot_read_are_refused(here, folders):
    case = ModelsCase({"small": folders["small"]}, inputs={"small": {"nonsense": np.zeros((1, 2))}})
    with pytest.raises(RecipeError, match=r"small cannot run on its inputs.*nonsense.*Name models"):
        measure_times(case, 2)


def test_a_folder_that_is_no_checkpoint_is_refused(here, tmp_path):
    with pytest.raises(CheckpointError, match="no_such"):
        bench_models.bench_models(ModelsCase({"a": str(tmp_path / "no_such")}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"checkpoints": {}}, "no model to measure"),
        ({"new_tokens": 0}, "new-tokens = 0"),
        ({"text_tokens": 0}, "text-tokens = 0"),
        ({"largest_batch": 0}, "largest-batch = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"device": "abacus"}, "neither cpu nor cuda"),
    ],
)
def test_a_case_that_cannot_be_is_refused(changes, match):
    with pytest.raises(RecipeError, match=match):
        ModelsCase(**{"checkpoints": {"a": "b"}, **changes})


def test_one_round_is_too_few():
    with pytest.raises(RecipeError, match="repeats = 1"):
        bench_models.bench_models(ModelsCase({"a": "b"}), 1)
