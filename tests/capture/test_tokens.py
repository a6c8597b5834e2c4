"""Which rows are real, and where the patches lie."""

import pytest
import torch
import transformers as hf

from amad.axes import SiteKey
from amad.capture.record import TokenLayout
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites


def records(model, batch, stacks=None):
    sites = [site for site in find_sites(model) if stacks is None or site.key.stack in stacks]
    with torch.no_grad(), Recorder(model, sites) as recorder:
        model(**batch)
        return recorder.take(batch)


def first(found, stack):
    return found[SiteKey(stack, 0)]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "clip", "blip_vqa", "deberta_v2", "falcon", "t5"])
def test_a_padded_token_is_no_row(name, zoo):
    model, batch = zoo.build(name)
    stack = {"llama": "decoder", "gpt2": "decoder", "falcon": "decoder", "t5": "encoder"}.get(name, "text")
    for record in records(model, batch, [f"{stack}.self"]).values():
        assert torch.equal(record.query_keep, batch["attention_mask"].bool())


@pytest.mark.parametrize("hidden", [-10000.0, torch.finfo(torch.float32).min, -torch.inf])
def test_padding_is_known_by_whatever_a_model_adds_to_hide_it(hidden, zoo):
    config = hf.MarkupLMConfig(**zoo.TEXT, max_depth=2, xpath_unit_hidden_size=4)
    model = hf.MarkupLMModel(config).eval()
    batch = {"input_ids": zoo.words(6), "attention_mask": zoo.real(6)}
    sites = find_sites(model)
    added = torch.zeros(2, 1, 1, 6).masked_fill(batch["attention_mask"][:, None, None] == 0, hidden)
    with torch.no_grad(), Recorder(model, sites) as recorder:
        model.encoder(torch.randn(2, 6, 32), added)
        found = recorder.take(batch)
    assert torch.equal(first(found, "text.self").query_keep, batch["attention_mask"].bool())


def test_without_padding_every_row_is_real(zoo):
    model, batch = zoo.build("bert")
    batch.pop("attention_mask")
    assert all(record.query_keep is None for record in records(model, batch).values())
    assert all(record.keep().all() for record in records(model, batch).values())


def test_labels_say_which_rows_of_a_decoder_are_real(zoo):
    for name in ("t5", "bart", "whisper", "vlt5", "blip2_t5"):
        model, batch = zoo.build(name)
        found = records(model, batch, ["decoder.self", "decoder.cross"])
        for record in found.values():
            assert torch.equal(record.query_keep, batch["labels"] != -100), name


def test_the_mask_of_a_decoder_goes_before_labels(zoo):
    model, batch = zoo.build("t5")
    batch["decoder_attention_mask"] = zoo.real(7, 4)
    for record in records(model, batch, ["decoder.self", "decoder.cross"]).values():
        assert torch.equal(record.query_keep, batch["decoder_attention_mask"].bool())


def test_labels_of_another_length_say_nothing(zoo):
    model, batch = zoo.build("t5")
    labels = batch.pop("labels")
    batch["decoder_input_ids"] = zoo.words(5)
    sites = [site for site in find_sites(model) if site.key.stack == "decoder.self"]
    with torch.no_grad(), Recorder(model, sites) as recorder:
        model(**batch)
        found = recorder.take(batch | {"labels": labels})
    assert all(record.query_keep is None for record in found.values())


def test_labels_of_a_decoder_without_encoder_say_nothing(zoo):
    model, batch = zoo.build("llama")
    labels = batch["input_ids"].clone()
    labels[:, :6] = -100
    for record in records(model, batch | {"labels": labels}).values():
        assert torch.equal(record.query_keep, batch["attention_mask"].bool())


def test_the_caption_decoder_of_blip_goes_by_its_own_mask(zoo):
    model, batch = zoo.build("blip_caption")
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    for record in records(model, batch | {"labels": labels}, ["decoder.self", "decoder.cross"]).values():
        assert torch.equal(record.query_keep, batch["attention_mask"].bool())


def test_a_cross_attention_takes_the_rows_of_its_part(zoo):
    model, batch = zoo.build("blip_vqa")
    batch["decoder_input_ids"] = batch["labels"].clone()
    batch["labels"][1, 4:] = -100
    found = records(model, batch)
    assert torch.equal(first(found, "text.cross").query_keep, batch["attention_mask"].bool())
    assert torch.equal(first(found, "decoder.cross").query_keep, batch["labels"] != -100)
    assert first(found, "vision.self").query_keep is None


def test_a_cross_attention_recorded_alone_asks_the_batch(zoo):
    model, batch = zoo.build("blip_vqa")
    found = records(model, batch, ["text.cross"])
    assert torch.equal(first(found, "text.cross").query_keep, batch["attention_mask"].bool())
    model, batch = zoo.build("t5")
    found = records(model, batch, ["decoder.cross"])
    assert torch.equal(first(found, "decoder.cross").query_keep, batch["labels"] != -100)
    model, batch = zoo.build("bert_decoder")
    found = records(model, batch, ["decoder.cross"])
    assert torch.equal(first(found, "decoder.cross").query_keep, batch["attention_mask"].bool())


def test_a_prompt_that_the_model_puts_before_the_labels_is_real(zoo):
    model, batch = zoo.build("t5")
    labels = batch["labels"].clone()
    labels[1, 3:] = -100
    sites = [site for site in find_sites(model) if site.key.stack == "decoder.cross"]
    longer = torch.cat([zoo.words(2), labels.clamp(min=0)], 1)
    with torch.no_grad(), Recorder(model, sites) as recorder:
        model(**{name: value for name, value in batch.items() if name != "labels"}, decoder_input_ids=longer)
        found = recorder.take(batch | {"labels": labels})
    expected = torch.cat([torch.ones(2, 2, dtype=torch.bool), labels != -100], 1)
    assert all(torch.equal(record.query_keep, expected) for record in found.values())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit", TokenLayout(1, 4, 4)),
        ("deit", TokenLayout(2, 4, 4)),
        ("dinov2", TokenLayout(1, 4, 4)),
        ("beit", TokenLayout(1, 4, 4)),
        ("siglip", TokenLayout(0, 4, 4)),
        ("clip", TokenLayout(1, 4, 4)),
        ("blip_vqa", TokenLayout(1, 4, 4)),
        ("llava", TokenLayout(1, 4, 4)),
        ("swin", None),
    ],
)
def test_class_tokens_come_before_the_grid(name, layout, zoo):
    model, batch = zoo.build(name)
    record = first(records(model, batch), "vision.self")
    assert record.query_layout == layout
    assert record.key_layout == layout
    assert layout is None or layout.n_tokens == record.n_queries


def test_detection_tokens_come_after_the_grid(zoo):
    config = hf.YolosConfig(**zoo.VISION | {"image_size": [32, 32]}, num_detection_tokens=3)
    found = records(hf.YolosModel(config), {"pixel_values": zoo.noise(2, 3, 32, 32)})
    assert first(found, "vision.self").query_layout == TokenLayout(1, 4, 4, after=3)


def test_the_images_say_how_large_the_grid_is(zoo):
    model, _ = zoo.build("vit")
    batch = {"pixel_values": zoo.noise(2, 3, 48, 24), "interpolate_pos_encoding": True}
    assert first(records(model, batch), "vision.self").query_layout == TokenLayout(1, 6, 3)


def test_a_grid_that_does_not_fit_is_none(zoo):
    model, _ = zoo.build("vit")
    recorder = Recorder(model, find_sites(model))
    with torch.no_grad(), recorder:
        model(pixel_values=zoo.noise(2, 3, 64, 64), interpolate_pos_encoding=True)
        # Nobody says that the image is larger than the configuration has it.
        assert first(recorder.take({}), "vision.self").query_layout is None


def test_vlt5_has_text_before_its_grid(zoo):
    model, batch = zoo.build("vlt5")
    assert model.visual_grid == (4, 4)
    found = records(model, batch)
    layout = TokenLayout(11, 4, 4)
    assert first(found, "encoder.self").query_layout == layout
    assert first(found, "encoder.self").key_layout == layout
    assert first(found, "decoder.cross").key_layout == layout
    assert first(found, "decoder.cross").query_layout is None
    assert first(found, "decoder.self").query_layout is None
    assert first(found, "decoder.self").key_layout is None
    keep = torch.cat([batch["attention_mask"].bool(), torch.ones(2, 16, dtype=torch.bool)], dim=1)
    assert torch.equal(first(found, "encoder.self").query_keep, keep)


def test_cross_attention_to_an_image_knows_the_grid_of_its_keys(zoo):
    layout = TokenLayout(1, 4, 4)
    found = records(*zoo.build("blip_caption"))
    assert first(found, "decoder.cross").key_layout == layout
    found = records(*zoo.build("blip_vqa"))
    assert first(found, "text.cross").key_layout == layout
    # The answer decoder of BLIP attends to the question.
    assert first(found, "decoder.cross").key_layout is None
    assert first(records(*zoo.build("blip2_t5")), "qformer.cross").key_layout == layout


def test_text_has_no_grid(zoo):
    record = first(records(*zoo.build("bert")), "text.self")
    assert record.query_layout is None
    assert record.key_layout is None
