"""What the recorder gives is what the model did: maps, gradients, under every way of running."""

import pytest
import torch
from torch import nn

from amad.axes import SiteKey
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import CaptureError

CHECKPOINTED = [
    "t5",
    "vlt5",
    "bart",
    "bert",
    "gpt2",
    "vit",
    "blip_vqa",
    "llama",
    "clip",
    "vilt",
    "deberta_v2",
]


def record(model, batch, **kwargs):
    recorder = Recorder(model, find_sites(model), **kwargs)
    # ViLT draws the order of its patches.
    torch.manual_seed(0)
    with recorder:
        model(**batch)
        return recorder.take(batch)


def objective(maps, keep):
    """A fixed random weighting of all map entries in kept rows."""
    total = 0.0
    for number, (key, probabilities) in enumerate(sorted(maps.items())):
        weight = torch.randn(probabilities.shape, generator=torch.Generator().manual_seed(number))
        total = total + (probabilities.float() * weight * keep[key][:, None, :, None]).sum()
    return total


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(first, second, tolerance):
    largest = max(float(g.abs().max()) for g in second.values())
    assert largest > 1e-3
    for name in first.keys() | second.keys():
        zero = torch.zeros(())
        difference = (first.get(name, zero) - second.get(name, zero)).abs().max()
        assert float(difference) <= tolerance * largest, name


def traces(model):
    """How many hooks each module has, and which of our attributes."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return hooks, [name for m in model.modules() for name in vars(m) if name.startswith("_amad")]


def test_recomputed_maps_equal_those_of_an_eager_run(mapped_family, zoo):
    eager, batch = zoo.build(mapped_family, "eager")
    fused, _ = zoo.build(mapped_family)
    fused.load_state_dict(eager.state_dict())
    with torch.no_grad():
        torch.manual_seed(0)
        expected = zoo.eager_maps(eager, find_sites(eager), batch)
        records = record(fused, batch)
    assert expected.keys() == records.keys()
    for key, found in records.items():
        rows = found.keep()[:, None, :, None]
        assert found.map_shape == expected[key].shape
        assert rows.any()
        difference = (found.rows() - expected[key]) * rows
        assert float(difference.abs().max()) <= 2e-6, str(key)


def test_gradients_through_query_and_key_equal_those_through_eager_maps(mapped_family, zoo):
    eager, batch = zoo.build(mapped_family, "eager")
    fused, _ = zoo.build(mapped_family)
    fused.load_state_dict(eager.state_dict())
    records = record(fused, batch)
    keep = {key: found.keep() for key, found in records.items()}
    objective({key: found.rows() for key, found in records.items()}, keep).backward()
    torch.manual_seed(0)
    objective(zoo.eager_maps(eager, find_sites(eager), batch), keep).backward()
    assert_same_gradients(gradients(fused), gradients(eager), 5e-6)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_nothing_and_records_no_call_twice(name, zoo):
    model, batch = zoo.build(name, train=True)
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        recorder = Recorder(model, find_sites(model))
        torch.manual_seed(0)
        with recorder:
            output = model(**batch)
            records = recorder.take(batch, require_grad=True)
            maps = {key: found.rows() for key, found in records.items()}
            loss = objective(maps, {key: found.keep() for key, found in records.items()})
            logits = output[0] if output[0].ndim else output[1]
            (loss + logits.float().square().mean()).backward()
            # Backward has run the forward again; the recorder must not have heard of it.
            assert not any(recorder._calls.values())
        results.append(gradients(model))
    assert_same_gradients(results[1], results[0], 2e-6)


def test_reentrant_checkpointing_is_refused_with_the_remedy(zoo):
    model, batch = zoo.build("t5", train=True)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        with pytest.raises(CaptureError, match=r"encoder.self\[0\].*'use_reentrant': False"):
            recorder.take(batch, require_grad=True)


def test_a_frozen_site_is_refused_as_frozen(zoo):
    model, batch = zoo.build("vit", train=True)
    model.requires_grad_(False)
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        with pytest.raises(CaptureError, match="all its parameters are frozen"):
            recorder.take(batch, require_grad=True)


@pytest.mark.parametrize("name", ["t5", "vlt5", "vit", "llama", "blip_vqa", "siglip"])
def test_under_bfloat16_autocast_maps_stay_those_of_its_queries_and_keys(name, zoo):
    model, batch = zoo.build(name)
    exact = record(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recorder = Recorder(model, find_sites(model))
        with recorder:
            model(**batch)
            records = recorder.take(batch)
            maps = {key: found.rows() for key, found in records.items()}
    for key, found in records.items():
        assert maps[key].dtype == torch.float32
        # Inside autocast as outside of it.
        assert torch.equal(maps[key], found.rows())
        rows = found.keep()[:, None, :, None]
        assert float(((maps[key] - exact[key].rows()) * rows).abs().max()) < 0.15
        sums = maps[key].sum(-1)[found.keep()[:, None].expand(maps[key].shape[:3])]
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_teachers_record_has_no_gradient(zoo):
    model, batch = zoo.build("t5")
    for found in record(model, batch, detach=True).values():
        assert not found.query.requires_grad
        assert not found.key.requires_grad
        assert found.position_bias is None or not found.position_bias.requires_grad


def test_recorders_of_teacher_and_student_nest(zoo):
    student, batch = zoo.build("bert")
    teacher, _ = zoo.build("bert")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    alone = record(student, batch), record(teacher, batch)
    inner, outer = Recorder(teacher, find_sites(teacher), detach=True), Recorder(student, find_sites(student))
    with outer:
        with inner:
            student(**batch)
            teacher(**batch)
            taught = inner.take(batch)
        learned = outer.take(batch)
    for key in taught:
        assert torch.equal(learned[key].query, alone[0][key].query)
        assert torch.equal(taught[key].query, alone[1][key].query)
        assert not torch.equal(learned[key].query, taught[key].query)


@pytest.mark.parametrize("name", ["bert", "blip_vqa", "siglip", "deberta_v2"])
def test_two_recorders_on_one_model_are_independent(name, zoo):
    model, batch = zoo.build(name)
    sites = find_sites(model)
    outer, inner = Recorder(model, sites), Recorder(model, sites[:1])
    with outer:
        with inner:
            model(**batch)
            few = inner.take(batch)
        many = outer.take(batch)
        model(**batch)
        again = outer.take(batch)
    assert list(few) == [sites[0].key]
    assert many.keys() == again.keys() == {site.key for site in sites}
    assert torch.equal(few[sites[0].key].rows(), many[sites[0].key].rows())


def test_nothing_is_left_in_the_model(family, zoo):
    model, batch = zoo.build(family)
    # Some models of transformers put hooks of their own into themselves when they first run.
    model(**batch)
    before = traces(model)
    recorder = Recorder(model, find_sites(model))
    with recorder:
        assert traces(model) != before
        model(**batch)
    assert traces(model) == before
    assert before[1] == []
    assert not any(recorder._calls.values())


@pytest.mark.parametrize("name", ["t5", "blip_vqa", "siglip", "deberta_v2"])
def test_nothing_is_left_after_an_exception(name, zoo):
    model, batch = zoo.build(name)
    reference = record(model, batch)
    before = traces(model)
    last = find_sites(model)[-1].module

    def fail(*args):
        raise RuntimeError("in the middle of the forward pass")

    def step():
        with Recorder(model, find_sites(model)):
            model(**batch)

    handle = last.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        step()
    handle.remove()
    assert traces(model) == before
    assert torch.overrides._get_current_function_mode_stack() == []
    again = record(model, batch)
    assert all(torch.equal(again[key].rows(), reference[key].rows()) for key in reference)


def test_recording_changes_nothing_that_the_model_computes(family, zoo):
    model, batch = zoo.build(family)
    with torch.no_grad():
        torch.manual_seed(0)
        bare = model(**batch)[0]
        torch.manual_seed(0)
        with Recorder(model, find_sites(model)):
            recorded = model(**batch)[0]
    assert torch.equal(bare, recorded)


def test_two_forward_passes_without_a_take_are_refused_by_name(zoo):
    model, batch = zoo.build("bert")
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        model(**batch)
        with pytest.raises(
            CaptureError, match=r"text.self\[0\] \(bert.encoder.layer.0.attention.self\) ran 2"
        ):
            recorder.take(batch)
        model(**batch)
        assert len(recorder.take(batch)) == 2


def test_a_site_that_did_not_run_is_refused_by_name(zoo):
    model, batch = zoo.build("clip")
    with Recorder(model, find_sites(model)) as recorder:
        model.get_image_features(batch["pixel_values"])
        with pytest.raises(CaptureError, match=r"text.self\[0\] .* did not run"):
            recorder.take(batch)


def test_records_are_taken_inside_the_block(zoo):
    model, batch = zoo.build("bert")
    with Recorder(model, find_sites(model)) as recorder:
        model(**batch)
    with pytest.raises(CaptureError, match="inside the recorder's 'with' block"):
        recorder.take(batch)


def test_one_recorder_does_not_nest_in_itself(zoo):
    model, _ = zoo.build("bert")
    recorder = Recorder(model, find_sites(model))
    with recorder, pytest.raises(CaptureError, match="Use a second Recorder"), recorder:
        pass


def test_a_recorder_of_no_sites_records_nothing():
    model = nn.Linear(2, 2)
    with Recorder(model, []) as recorder:
        model(torch.zeros(1, 2))
        assert recorder.take() == {}


def test_only_chosen_sites_are_recorded(zoo):
    model, batch = zoo.build("t5")
    sites = [site for site in find_sites(model) if site.key.stack == "decoder.cross"]
    with Recorder(model, sites) as recorder:
        model(**batch)
        records = recorder.take(batch)
    assert list(records) == [SiteKey("decoder.cross", layer) for layer in range(3)]


def test_a_wrapped_model_gives_the_records_of_the_bare_one(zoo):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **batch):
            return self.module(**batch)

    model, batch = zoo.build("vlt5")
    bare, wrapped = record(model, batch), record(Wrapper(model), batch)
    for key, found in bare.items():
        assert torch.equal(found.rows(), wrapped[key].rows())
        assert torch.equal(found.keep(), wrapped[key].keep())
        assert found.query_layout == wrapped[key].query_layout


def test_dispatched_blip_gives_the_records_of_the_eager_one(zoo):
    from amad.models.blip import dispatch_attention

    eager, batch = zoo.build("blip_vqa")
    dispatched, _ = zoo.build("blip_vqa")
    dispatch_attention(dispatched)
    assert {site.backend for site in find_sites(dispatched)} == {"interface"}
    first, second = record(eager, batch), record(dispatched, batch)
    assert first.keys() == second.keys()
    for key, found in first.items():
        assert torch.equal(found.keep(), second[key].keep())
        assert found.key_layout == second[key].key_layout
        rows = found.keep()[:, None, :, None]
        assert float(((found.rows() - second[key].rows()) * rows).abs().max()) < 2e-6


def test_a_compiled_model_is_recorded_in_one_graph(zoo):
    model, batch = zoo.build("t5")
    batch = {key: value for key, value in batch.items() if key != "labels"}
    batch |= {"decoder_input_ids": zoo.words(7), "use_cache": False}
    expected = record(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with Recorder(model, find_sites(model)) as recorder:
        compiled(**batch)
        records = recorder.take(batch)
    for key, found in expected.items():
        torch.testing.assert_close(records[key].rows(), found.rows(), atol=1e-6, rtol=0)
