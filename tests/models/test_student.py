import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    LlamaConfig,
    PreTrainedModel,
    SwinConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from amad.axes import SiteKey
from amad.errors import RecipeError, ShapeError
from amad.models.sizes import source_layer
from amad.models.student import build_student, check_compatible, student_config
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration
from amad.training.pairing import Pairing

T5 = {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "vocab_size": 40,
    "decoder_start_token_id": 0,
}
ONE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
BERT = {**ONE, "vocab_size": 40, "max_position_embeddings": 16}
VIT = {**ONE, "image_size": 16, "patch_size": 8}
BLIP_TEXT = {**BERT, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
WORDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def t5_teacher(**changes):
    torch.manual_seed(1)
    return T5ForConditionalGeneration(T5Config(**{**T5, **changes})).eval()


def vlt5_teacher():
    torch.manual_seed(1)
    return VLT5ForConditionalGeneration(
        VLT5Config(**T5, visual_source="patches", image_size=16, patch_size=8)
    ).eval()


def blip_teacher(model_class=BlipForQuestionAnswering):
    torch.manual_seed(1)
    return model_class(BlipConfig(text_config=BLIP_TEXT, vision_config=VIT)).eval()


def bert_teacher():
    torch.manual_seed(1)
    return BertForMaskedLM(BertConfig(**BERT)).eval()


def vit_teacher():
    torch.manual_seed(1)
    return ViTModel(ViTConfig(**VIT)).eval()


KINDS = {
    "t5": (t5_teacher, {"input_ids": WORDS, "labels": WORDS}),
    "vlt5": (vlt5_teacher, {"input_ids": WORDS, "labels": WORDS, "pixel_values": PIXELS}),
    "bert": (bert_teacher, {"input_ids": WORDS, "labels": WORDS}),
    "vit": (vit_teacher, {"pixel_values": PIXELS}),
    "blip": (blip_teacher, {"input_ids": WORDS, "labels": WORDS, "pixel_values": PIXELS}),
}


def first_output(model: PreTrainedModel, batch):
    with torch.no_grad():
        found = model(**batch)
    return found.logits if hasattr(found, "logits") else found[0]


def test_t5_sizes_follow_heads_layers_and_width_by_hand():
    teacher = T5Config(**T5)
    config = student_config(teacher, heads=2, layers=0.5, width="1/2")
    assert (config.num_heads, config.num_layers, config.num_decoder_layers) == (2, 2, 2)
    # 32 / 2 = 16 wide, shared out among 2 heads; the feed-forward was twice as wide, and is.
    assert (config.d_model, config.d_kv, config.d_ff) == (16, 8, 32)
    assert (teacher.num_heads, teacher.d_model, teacher.num_layers) == (4, 32, 4)


def test_fewer_heads_at_the_same_width_are_wider_heads():
    assert student_config(T5Config(**T5), heads=2).d_kv == 16


def test_nothing_asked_for_changes_nothing():
    # t5-v1.1-small has heads that are not width over heads; they stay as they are.
    teacher = T5Config(**{**T5, "d_kv": 24})
    assert student_config(teacher).to_dict() == teacher.to_dict()


def test_stacks_can_have_layers_of_their_own():
    config = student_config(T5Config(**T5), layers={"decoder": 1})
    assert (config.num_layers, config.num_decoder_layers) == (4, 1)
    config = student_config(BartConfig(d_model=32, encoder_layers=4), layers={"encoder": 0.5, "decoder": 3})
    assert (config.encoder_layers, config.decoder_layers) == (2, 3)


def test_every_number_of_bart_follows():
    teacher = BartConfig(
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=8,
        encoder_ffn_dim=64,
        decoder_ffn_dim=96,
    )
    config = student_config(teacher, heads=0.5, width=0.5)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (2, 4)
    assert (config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim) == (16, 32, 48)


def test_blip_parts_are_sized_apart_and_stay_joined():
    config = student_config(
        BlipConfig(text_config=BLIP_TEXT, vision_config=VIT),
        layers={"vision": 1},
        heads={"text": 2},
        width={"vision": 0.5},
    )
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (1, 4)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (4, 2)
    assert (config.vision_config.hidden_size, config.text_config.hidden_size) == (16, 32)
    assert config.vision_config.intermediate_size == 32
    assert config.text_config.encoder_hidden_size == 16


def test_key_heads_keep_their_share_of_heads():
    teacher = LlamaConfig(**ONE, num_key_value_heads=2)
    config = student_config(teacher, heads=2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 16)


def test_layer_lists_keep_the_entries_of_the_layers_that_are_kept():
    teacher = LlamaConfig(**ONE)
    teacher.layer_types = ["a", "b", "c", "d"]
    assert student_config(teacher, layers=2).layer_types == ["b", "d"]


def test_further_attributes_win_and_are_known_by_alias():
    config = student_config(T5Config(**T5), heads=2, width=0.5, d_kv=4, dropout_rate=0.0)
    assert (config.d_kv, config.d_model, config.dropout_rate) == (4, 16, 0.0)
    config = student_config(T5Config(**T5), hidden_size=16)
    assert (config.d_model, config.d_ff, config.d_kv) == (16, 32, 4)
    config = student_config(
        BlipConfig(text_config=BLIP_TEXT, vision_config=VIT), vision_config={"num_hidden_layers": 2}
    )
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (2, 4)


REFUSED = {
    "a share that is no whole number": ({"heads": 0.3}, r"0\.3 of the teacher's 4 is 1\.2"),
    "no heads": ({"heads": 0}, "at least 1.*0 was asked for"),
    "a number written as a float": ({"heads": 2.0}, r"up to 1, and 2\.0.*the teacher has 4"),
    "more than all": ({"layers": "3/2"}, "up to 1, and 3/2"),
    "a word": ({"width": "half"}, "'half' is neither"),
    "a truth value": ({"width": True}, "True is neither"),
    "not a number": ({"width": math.nan}, "nan is neither"),
    "division by zero": ({"width": "1/0"}, "'1/0' is neither"),
    "heads that do not divide": ({"heads": 3}, "32 is no multiple of 3.*or give d_kv"),
    "a part that is not there": ({"layers": {"vision": 1}}, "'vision'.*encoder, decoder"),
    "one number for two stacks": (
        {"width": {"encoder": 16}},
        "one d_model for encoder and decoder, and 16 != 32",
    ),
    "an unknown attribute": ({"d_moddel": 16}, "no attribute 'd_moddel'. Did you mean 'd_model'"),
    "an attribute of another type": ({"d_ff": None}, "refuses d_ff=None"),
    "a width that is no number": ({"d_model": "wide"}, "d_model must be a whole number.*'wide'"),
    "a decoder deeper than its encoder": ({"layers": {"encoder": 1}}, "4 > 1"),
}


@pytest.mark.parametrize(("sizes", "message"), REFUSED.values(), ids=REFUSED)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        student_config(T5Config(**T5), **sizes)


def test_a_feed_forward_that_does_not_scale_is_refused_unless_given():
    teacher = T5Config(**{**T5, "d_ff": 63})
    with pytest.raises(RecipeError, match=r"63 \* 16 / 32 is 31\.5.*Give d_ff"):
        student_config(teacher, width=16)
    assert student_config(teacher, width=16, d_ff=40).d_ff == 40


def test_heads_that_do_not_divide_the_width_of_bert_are_refused():
    with pytest.raises(RecipeError, match=r"width of text.*32 is no multiple of 3"):
        student_config(BertConfig(**BERT), heads=3)


def test_a_model_whose_sizes_are_lists_is_refused():
    with pytest.raises(RecipeError, match="SwinConfig"):
        student_config(SwinConfig(), layers=0.5)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_share_that_gives_a_number_gives_what_the_number_gives(number, factor):
    teacher = T5Config(**{**T5, "num_layers": number * factor, "num_decoder_layers": number * factor})
    by_share = student_config(teacher, layers=f"1/{factor}").to_dict()
    assert by_share == student_config(teacher, layers=number).to_dict()


@given(st.integers(1, 24), st.integers(1, 24))
def test_copied_layers_ascend_and_end_at_the_last(n_student, n_teacher):
    layers = [source_layer(layer, n_student, n_teacher) for layer in range(n_student)]
    assert layers == sorted(layers)
    assert layers[-1] == n_teacher - 1
    assert min(layers) >= 0
    if n_student <= n_teacher:
        assert len(set(layers)) == n_student


@pytest.mark.parametrize(
    ("n_student", "n_teacher", "layers"),
    [(2, 4, [1, 3]), (2, 5, [2, 4]), (3, 4, [0, 2, 3]), (1, 6, [5]), (3, 2, [0, 0, 1])],
)
def test_copied_layers_by_hand(n_student, n_teacher, layers):
    assert [source_layer(layer, n_student, n_teacher) for layer in range(n_student)] == layers


@given(st.integers(1, 24), st.integers(1, 24))
def test_copied_layers_are_the_layers_that_uniform_pairing_compares(n_student, n_teacher):
    sites = [[SiteKey("encoder.self", layer) for layer in range(n)] for n in (n_student, n_teacher)]
    for pair in Pairing.make(*sites, rule="uniform").pairs:
        assert pair.teacher.layer == source_layer(pair.student.layer, n_student, n_teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_runs_and_survives_saving(kind, tmp_path):
    make, batch = KINDS[kind]
    teacher = make()
    config = student_config(teacher.config, heads=2, layers=0.5, width=0.5)
    student = build_student(teacher, config, seed=3)
    assert type(student) is type(teacher)
    assert not student.training
    assert sum(p.numel() for p in student.parameters()) < 0.5 * sum(p.numel() for p in teacher.parameters())
    before = first_output(student, batch)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(first_output(type(teacher).from_pretrained(tmp_path), batch), before)


def test_a_student_of_vlt5_loads_by_its_name_and_generates(tmp_path):
    teacher = vlt5_teacher()
    student = build_student(teacher, student_config(teacher.config, heads=2, layers=0.5, width=0.5))
    student.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    inputs = {"input_ids": WORDS, "pixel_values": PIXELS, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(**inputs), student.generate(**inputs))


def test_the_seed_alone_decides_the_weights():
    teacher = t5_teacher()
    config = student_config(teacher.config, width=0.5)
    state = torch.get_rng_state()
    first, same, other = (build_student(teacher, config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_student_gets_the_generation_settings_of_its_teacher():
    teacher = t5_teacher()
    teacher.generation_config.max_new_tokens = 7
    student = build_student(teacher, student_config(teacher.config, layers=2))
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config is not teacher.generation_config


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_copied_are_the_teacher(kind):
    make, batch = KINDS[kind]
    teacher = make()
    student = build_student(teacher, student_config(teacher.config), init="teacher")
    torch.testing.assert_close(first_output(student, batch), first_output(teacher, batch))


@pytest.mark.parametrize("make", [t5_teacher, vlt5_teacher])
def test_copied_layers_are_those_of_the_rule(make):
    teacher = make()
    student = build_student(teacher, student_config(teacher.config, layers=2), init="teacher")
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert not any("block.2" in name for name in ours)
    for layer, source in ((0, 1), (1, 3)):
        for stack in ("encoder", "decoder"):
            name = "layer.0.SelfAttention.k.weight"
            assert torch.equal(
                ours[f"{stack}.block.{layer}.{name}"], theirs[f"{stack}.block.{source}.{name}"]
            )
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(ours[bias], theirs[bias])
    assert torch.equal(ours["shared.weight"], theirs["shared.weight"])


def test_a_student_with_copied_layers_is_the_teacher_without_the_others():
    teacher = bert_teacher()
    student = build_student(teacher, student_config(teacher.config, layers=2), init="teacher")
    cut = copy.deepcopy(teacher)
    cut.bert.encoder.layer = torch.nn.ModuleList([cut.bert.encoder.layer[1], cut.bert.encoder.layer[3]])
    torch.testing.assert_close(
        first_output(student, {"input_ids": WORDS}), first_output(cut, {"input_ids": WORDS})
    )


def test_copying_layers_into_other_sizes_is_refused():
    teacher = t5_teacher()
    with pytest.raises(RecipeError, match="d_model of encoder differs: 16 != 32"):
        build_student(teacher, student_config(teacher.config, width=0.5), init="teacher")


def test_copying_weights_into_another_vocabulary_is_refused():
    teacher = t5_teacher()
    config = student_config(teacher.config, vocab_size=41)
    with pytest.raises(ShapeError, match=r"shared\.weight.*\[41, 32\].*\[40, 32\]"):
        build_student(teacher, config, init="teacher")


def test_a_start_that_is_not_known_is_refused():
    teacher = t5_teacher()
    with pytest.raises(RecipeError, match="random, teacher, and 'zero'"):
        build_student(teacher, teacher.config, init="zero")


def test_a_configuration_of_another_type_is_refused():
    with pytest.raises(RecipeError, match="T5Config, the student's a BertConfig"):
        build_student(t5_teacher(), BertConfig(**BERT))


def test_a_blip_for_questions_with_two_widths_is_refused():
    teacher = blip_teacher()
    config = student_config(teacher.config, width={"vision": 0.5})
    with pytest.raises(RecipeError, match="32 != 16"):
        build_student(teacher, config)
    captions = blip_teacher(BlipForConditionalGeneration)
    student = build_student(captions, config)
    assert torch.isfinite(first_output(student, {"input_ids": WORDS, "pixel_values": PIXELS})).all()


def test_a_student_of_a_dispatched_teacher_is_dispatched_too():
    from amad.models.blip import DispatchedBlipAttention, dispatch_attention

    teacher = dispatch_attention(blip_teacher())
    student = build_student(teacher, student_config(teacher.config, layers=1))
    assert any(isinstance(module, DispatchedBlipAttention) for module in student.modules())


def test_other_vocabularies_are_incompatible():
    with pytest.raises(ShapeError, match=r"41 != 40.*tokenizer"):
        check_compatible(t5_teacher(vocab_size=41), t5_teacher())
    with pytest.raises(ShapeError, match="None != 40"):
        check_compatible(vit_teacher(), blip_teacher())


def test_one_vocabulary_is_compatible_across_architectures():
    check_compatible(t5_teacher(), blip_teacher())
    check_compatible(t5_teacher(), vlt5_teacher())
    check_compatible(vit_teacher(), vit_teacher())


def test_a_vlt5_may_have_a_decoder_deeper_than_its_encoder_and_a_t5_may_not():
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 3}
    student = student_config(VLT5Config(**sizes), layers={"encoder": 1, "decoder": 2})
    assert (student.num_layers, student.num_decoder_layers) == (1, 2)
    with pytest.raises(RecipeError, match="cannot generate with more decoder layers than encoder layers"):
        student_config(T5Config(**sizes), layers={"encoder": 1, "decoder": 2})
