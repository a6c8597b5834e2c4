"""Value vectors, hidden states and output projections are those that the model used."""

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import set_checkpoint_early_stop

from amad.capture.backend import attend
from amad.capture.extras import mixing_projections
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites

# Their scores are read as a map, so that nothing says which of their tensors are values.
WITHOUT_VALUES = {"deberta_v2", "falcon"}
# torch's own attention mixes its heads inside a fused function, without a call of the projection.
FUSED = {"siglip": {"vision_head.cross"}}


def record(model, batch, *extras, **arguments):
    recorder = Recorder(model, find_sites(model), extras=extras, **arguments)
    # ViLT draws the order of its patches.
    torch.manual_seed(0)
    with recorder:
        output = model(**batch)
        return recorder.take(batch), output


def test_what_is_not_asked_for_is_not_there(zoo):
    model, batch = zoo.build("blip_vqa")
    for found in record(model, batch)[0].values():
        assert (found.value, found.hidden, found.mixing) == (None, None, None)


def test_maps_times_values_enter_the_projection_that_mixes_heads(family, zoo):
    """At every site: what enters the projection is the recorded map times the recorded values."""
    model, batch = zoo.build(family)
    sites = find_sites(model)
    projections = mixing_projections(model, sites)
    entered, left, handles = {}, {}, []
    for key, projection in projections.items():

        def keep(module, args, output, key=key):
            entered[key], left[key] = args[0], output - (0.0 if module.bias is None else module.bias)

        handles.append(projection.register_forward_hook(keep))
    with torch.no_grad():
        records, _ = record(model, batch, "value", "mixing")
    for handle in handles:
        handle.remove()
    assert projections.keys() == {site.key for site in sites}
    for site in sites:
        found = records[site.key]
        if family in WITHOUT_VALUES and found.value is None:
            continue
        assert found.value is not None
        assert found.mixing is not None
        if site.key.stack in FUSED.get(family, ()):
            continue
        rows = found.keep()
        context = attend(found, found.value)
        inside = entered[site.key].reshape(context.shape)
        torch.testing.assert_close(context[rows], inside[rows].float(), atol=1e-4, rtol=1e-4)
        added = torch.einsum("bqhw,hwf->bqf", context, found.mixing)
        torch.testing.assert_close(
            added[rows], left[site.key].reshape(added.shape)[rows], atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["t5", "vlt5", "bart", "bert", "vit", "llama", "clip", "gpt2"])
def test_hidden_states_are_those_that_the_model_returns(name, zoo):
    """Of all layers but the last, whose output some models normalise once more before they return it."""
    model, batch = zoo.build(name)
    with torch.no_grad():
        records, output = record(model, batch | {"output_hidden_states": True}, "hidden")
    part = "vision_model_output" if name == "clip" else None
    output = output if part is None else output[part]
    kinds = {"encoder.self": "encoder_hidden_states", "decoder.self": "decoder_hidden_states"}
    kinds["decoder.cross"] = "decoder_hidden_states"
    compared = 0
    for key, found in records.items():
        if part is not None and not key.stack.startswith("vision"):
            continue
        returned = output.get(kinds.get(key.stack, ""), None)
        returned = output["hidden_states"] if returned is None else returned
        assert found.hidden is not None, str(key)
        if key.layer < len(returned) - 2:
            torch.testing.assert_close(found.hidden, returned[key.layer + 1])
            compared += 1
    assert compared


@pytest.mark.parametrize(
    "name", ["blip_vqa", "blip_caption", "vilt", "layoutlmv3", "llava", "blip2_t5", "siglip"]
)
def test_every_layer_in_a_list_has_hidden_states(name, zoo):
    model, batch = zoo.build(name)
    with torch.no_grad():
        records, _ = record(model, batch, "hidden")
    for key, found in records.items():
        if key.stack == "vision_head.cross":
            assert found.hidden is None
        else:
            assert found.hidden is not None, str(key)
            assert found.hidden.shape[:2] == (found.n_batch, found.n_queries)


def test_windows_have_no_hidden_states_per_query(zoo):
    """The axes of a map over windows are not those of the layer's tokens."""
    model, batch = zoo.build("swin")
    assert all(found.hidden is None for found in record(model, batch, "hidden")[0].values())


@pytest.mark.parametrize("name", ["t5", "bert", "vilt"])
def test_gradients_flow_through_values_and_hidden_states_also_with_checkpointing(name, zoo):
    model, batch = zoo.build(name, train=True)
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        recorder = Recorder(model, find_sites(model), extras=("value", "hidden"))
        torch.manual_seed(0)
        with recorder:
            model(**batch)
            records = recorder.take(batch)
            loss = sum(
                found.value.square().mean() + found.hidden.square().mean() for found in records.values()
            )
            loss.backward()
            assert not any(recorder._layers._seen.values())
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-4)


def test_a_recomputation_that_goes_on_to_the_end_of_a_layer_is_not_heard(zoo):
    model, batch = zoo.build("bert", train=True)
    layers = model.bert.encoder.layer
    for index in range(len(layers)):
        layers[index] = checkpoint_wrapper(layers[index], checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    heard = []
    layers[0]._checkpoint_wrapped_module.register_forward_hook(lambda *_: heard.append(1))
    recorder = Recorder(model, find_sites(model), extras=("hidden",))
    with recorder, set_checkpoint_early_stop(False):
        model(**batch)
        records = recorder.take(batch)
        sum(found.hidden.square().mean() for found in records.values()).backward()
        assert len(heard) == 2
        assert not any(recorder._layers._seen.values())


def test_a_detached_record_has_no_gradient_behind_its_extras(zoo):
    model, batch = zoo.build("t5")
    records, _ = record(model, batch, "value", "hidden", "mixing", detach=True)
    for found in records.values():
        assert not any(extra.requires_grad for extra in (found.value, found.hidden, found.mixing))
        part = found.samples(slice(1, 2))
        torch.testing.assert_close(part.hidden, found.hidden[1:])
        assert part.mixing is found.mixing


def test_nothing_is_left_in_the_model(zoo):
    model, batch = zoo.build("bert")
    record(model, batch, "value", "hidden", "mixing")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(name.startswith("_amad") for m in model.modules() for name in vars(m))
