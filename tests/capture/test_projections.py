"""Eager modules that are read by their projections: masks, upstream's quirk, derived classes."""

import pytest
import torch
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from amad.axes import SiteKey
from amad.capture.families import FAMILIES, family_of
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites


def records(model, batch):
    with torch.no_grad(), Recorder(model, find_sites(model)) as recorder:
        model(**batch)
        return recorder.take(batch)


@pytest.mark.parametrize("name", ["blip_vqa", "blip_caption", "vilt", "layoutlmv3"])
def test_padded_words_are_not_visible(name, zoo):
    model, batch = zoo.build(name)
    stack = {"blip_vqa": "text.self", "blip_caption": "decoder.self"}.get(name, "encoder.self")
    record = records(model, batch)[SiteKey(stack, 1)]
    n_words = batch["attention_mask"].shape[1]
    seen = record.visible()[:, 0].any(1)
    assert torch.equal(seen[:, :n_words], batch["attention_mask"].bool())
    assert not record.rows()[0, ..., n_words - 3 : n_words].any()


def test_the_answer_decoder_of_blip_sees_padding_of_the_question_as_it_does_upstream(zoo):
    model, batch = zoo.build("blip_vqa")
    record = records(model, batch)[SiteKey("decoder.cross", 0)]
    assert record.mask is None
    assert record.rows()[0, ..., -3:].min() > 0


def test_a_derived_class_is_read_like_its_base():
    class Derived(BlipTextSelfAttention):
        pass

    assert family_of(Derived) is FAMILIES["BlipTextSelfAttention"]
    assert family_of(torch.nn.Linear) is None
