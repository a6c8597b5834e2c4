import copy
import json

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import BertConfig, BertModel, BlipConfig

from amad.capture.check import self_check
from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.errors import RecipeError
from amad.models.blip_images import resize_images
from amad.models.blip_seq2seq import as_seq2seq, is_seq2seq
from amad.models.load import load_model, save_checkpoint
from amad.models.student import build_student, student_config

VOCAB, PAD, SEP, DEC, ENC = 40, 0, 2, 38, 39
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "bos_token_id": DEC,
    "eos_token_id": SEP,
    "sep_token_id": SEP,
    "pad_token_id": PAD,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
QUESTIONS, CAPTIONS = transformers.BlipForQuestionAnswering, transformers.BlipForConditionalGeneration


def plain(model_class, **text):
    model = model_class(BlipConfig(text_config=TEXT | text, vision_config=VISION)).eval().double()
    with torch.no_grad():
        # Maps far from uniform and answers far from alike: with the default 0.02 any mistake would hide.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def both(model_class, **text):
    model = plain(model_class, **text)
    return model, as_seq2seq(copy.deepcopy(model))


def random_words(*shape, seed=1):
    return torch.randint(3, DEC, shape, generator=torch.Generator().manual_seed(seed))


def pixels(n):
    return torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def questions(n, length=6):
    words = random_words(n, length)
    words[:, 0], words[:, -1] = ENC, SEP
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": pixels(n)}


def answers(n, length=4):
    words = random_words(n, length, seed=3)
    words[:, -1] = SEP
    return words


def after(start, labels):
    """What upstream reads and takes as labels: the start, then the labels."""
    return torch.cat([start, labels], 1)


def dec(n):
    return torch.full((n, 1), DEC)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_answers_have_the_logits_and_the_loss_of_upstream(smoothing):
    upstream, ours = both(QUESTIONS, label_smoothing=smoothing)
    batch, labels = questions(3), answers(3)
    seen = []
    upstream.text_decoder.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    loss = upstream(**batch, labels=after(dec(3), labels)).loss
    output = ours(**batch, labels=labels)
    # Upstream's last position reads the last label and predicts nothing.
    torch.testing.assert_close(output.logits, seen[0][:, :-1])
    torch.testing.assert_close(output.loss, loss)
    assert output.logits.std() > 0.1


def test_padded_answers_count_as_their_tokens_alone():
    _, ours = both(QUESTIONS)
    batch, labels = questions(2), answers(2)
    padded = torch.cat([labels, torch.full((2, 2), -100)], 1)
    torch.testing.assert_close(ours(**batch, labels=padded).loss, ours(**batch, labels=labels).loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captions_have_the_logits_and_the_loss_of_upstream(smoothing):
    upstream, ours = both(CAPTIONS, label_smoothing=smoothing)
    prompt, labels = torch.cat([dec(2), random_words(2, 3)], 1), answers(2)
    labels[1, 2:] = torch.tensor([SEP, -100])
    whole = after(prompt, labels)
    theirs = upstream(
        input_ids=whole.clamp(min=PAD),
        attention_mask=(whole != -100).long(),
        pixel_values=pixels(2),
        labels=after(torch.full_like(prompt, -100), labels),
    )
    output = ours(input_ids=prompt, pixel_values=pixels(2), labels=labels)
    real = labels != -100
    torch.testing.assert_close(output.logits[real], theirs.logits[:, 3:-1][real])
    torch.testing.assert_close(output.loss, theirs.loss)


def test_a_caption_begins_after_the_prompt_alone():
    _, ours = both(CAPTIONS)
    prompt, labels = torch.cat([dec(2), random_words(2, 3)], 1), answers(2)
    first = ours(input_ids=prompt, pixel_values=pixels(2)).logits
    assert first.shape == (2, 1, VOCAB)
    torch.testing.assert_close(
        first, ours(input_ids=prompt, pixel_values=pixels(2), labels=labels).logits[:, :1]
    )


def test_generated_captions_are_those_of_upstream_without_the_prompt():
    upstream, ours = both(CAPTIONS)
    prompt = torch.cat([dec(2), random_words(2, 3)], 1)
    options = {"max_length": 9, "min_length": 8, "num_beams": 3, "no_repeat_ngram_size": 1}
    theirs = upstream.generate(pixels(2), torch.cat([prompt, torch.full((2, 1), SEP)], 1), **options)
    before = prompt.clone()
    mine = ours.generate(input_ids=prompt, pixel_values=pixels(2), labels=answers(2), **options)
    assert torch.equal(theirs[:, :4], prompt)
    assert torch.equal(mine, theirs[:, 4:])
    assert torch.equal(prompt, before)
    assert len(mine.unique()) > 4


def test_generated_answers_are_those_of_upstream_and_padding_changes_none():
    upstream, ours = both(QUESTIONS)
    batch = questions(4)
    options = {"max_length": 6, "min_length": 6, "num_beams": 3, "no_repeat_ngram_size": 1}
    theirs = upstream.generate(**batch, **options)
    mine = ours.generate(**batch, labels=answers(4), **options)
    assert torch.equal(mine, theirs)
    padded = batch | {
        "input_ids": torch.cat([batch["input_ids"], random_words(4, 3)], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(4, 3, dtype=torch.long)], 1),
    }
    assert torch.equal(ours.generate(**padded, **options), theirs)
    assert not torch.equal(upstream.generate(**padded, **options), theirs)
    torch.testing.assert_close(
        ours(**padded, labels=answers(4)).logits, ours(**batch, labels=answers(4)).logits
    )


def test_a_question_with_several_answers_is_read_once():
    _, ours = both(QUESTIONS)
    batch, labels = questions(2), answers(3)
    counts = torch.tensor([2, 1])
    runs = []
    ours.vision_model.register_forward_pre_hook(lambda module, args, kwargs: runs.append(1), with_kwargs=True)
    together = ours(**batch, labels=labels, answer_counts=counts).logits
    assert len(runs) == 1
    repeated = {name: value[[0, 0, 1]] for name, value in batch.items()}
    torch.testing.assert_close(together, ours(**repeated, labels=labels).logits)


def log_likelihood(model, batch, labels):
    """Of each question's every candidate, by the loss of one candidate at a time."""
    n = len(batch["input_ids"])
    columns = []
    for label in labels:
        said = label[label != -100].expand(n, -1)
        logits = model(**batch, labels=said).logits
        columns.append(-functional.cross_entropy(logits.mT, said, reduction="none").sum(1))
    return torch.stack(columns, 1)


def candidates():
    """Fifteen answers, of two or three words, of which some begin alike."""
    rows = [[word, other] for word in range(4, 11) for other in (word + 9, 30 - word)] + [[4, 5, 6]]
    table = torch.full((len(rows), 4), -100)
    for row, words in zip(table, rows, strict=True):
        row[: len(words) + 1] = torch.tensor([*words, SEP])
    return table


def test_ranking_all_candidates_finds_the_most_likely(monkeypatch):
    _, ours = both(QUESTIONS)
    batch, labels = questions(12), candidates()
    expected = log_likelihood(ours, batch, labels).argmax(1)
    assert len(expected.unique()) > 2
    for rows in (512, 5):
        monkeypatch.setattr("amad.models.blip_seq2seq._RANKED_ROWS", rows)
        assert torch.equal(ours.rank(candidates=labels, n_first=15, **batch), expected)
        assert torch.equal(ours.rank(candidates=labels, n_first=128, **batch), expected)


def test_ranking_compares_the_candidates_whose_first_word_is_most_likely():
    _, ours = both(QUESTIONS)
    batch, labels = questions(12), candidates()[::2]
    whole = log_likelihood(ours, batch, labels)
    first = ours(**batch, labels=answers(12)).logits[:, 0].log_softmax(-1)[:, labels[:, 0]]
    for k in (1, 3):
        among = first.topk(k, 1).indices
        expected = among.gather(1, whole.gather(1, among).argmax(1, keepdim=True))[:, 0]
        assert torch.equal(ours.rank(candidates=labels, n_first=k, **batch), expected)
    assert not torch.equal(first.argmax(1), whole.argmax(1))


def test_ranking_is_blind_to_padding():
    _, ours = both(QUESTIONS)
    batch, labels = questions(12), candidates()
    padded = batch | {
        "input_ids": torch.cat([batch["input_ids"], random_words(12, 3)], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(12, 3, dtype=torch.long)], 1),
    }
    assert torch.equal(
        ours.rank(candidates=labels, n_first=4, **padded), ours.rank(candidates=labels, n_first=4, **batch)
    )


STACKS = {
    QUESTIONS: ["vision.self", "text.self", "text.cross", "decoder.self", "decoder.cross"],
    CAPTIONS: ["vision.self", "decoder.self", "decoder.cross"],
}


def batch_for(model_class):
    if model_class is CAPTIONS:
        prompt = torch.cat([dec(2), random_words(2, 3)], 1)
        labels = answers(2)
        labels[1, 2:] = torch.tensor([SEP, -100])
        return {"input_ids": prompt, "pixel_values": pixels(2), "labels": labels}
    batch = questions(2)
    batch["attention_mask"][1, 4:] = 0
    labels = answers(3)
    labels[2, 2:] = torch.tensor([SEP, -100])
    return batch | {"labels": labels, "answer_counts": torch.tensor([2, 1])}


@pytest.mark.parametrize("model_class", STACKS)
def test_every_stack_is_found_and_recorded_as_computed(model_class):
    _, ours = both(model_class)
    sites, batch = find_sites(ours), batch_for(model_class)
    assert list(dict.fromkeys(site.key.stack for site in sites)) == STACKS[model_class]
    differences = self_check(ours, sites, batch)
    assert all(value is not None and value < 1e-6 for value in differences.values())


def test_what_is_padding_is_known_at_every_stack():
    _, ours = both(QUESTIONS)
    batch = batch_for(QUESTIONS)
    with Recorder(ours, find_sites(ours)) as recorder:
        ours(**batch)
        records = {key.stack: record for key, record in recorder.take(batch).items()}
    assert records["vision.self"].query_keep is None
    real = batch["attention_mask"].bool()
    for stack in ("text.self", "text.cross"):
        assert torch.equal(records[stack].query_keep, real)
    for stack in ("decoder.self", "decoder.cross"):
        assert torch.equal(records[stack].query_keep, batch["labels"] != -100)
    # Two answers of the first question, one of the second, whose last two tokens are hidden.
    visible = records["decoder.cross"].visible(slice(0, 1))
    assert torch.equal(visible[:, 0, 0], real[[0, 0, 1]])


def test_captions_know_their_padding():
    _, ours = both(CAPTIONS)
    batch = batch_for(CAPTIONS)
    with Recorder(ours, find_sites(ours)) as recorder:
        ours(**batch)
        records = {key.stack: record for key, record in recorder.take(batch).items()}
    expected = torch.ones(2, 7, dtype=torch.bool)
    # Four words of the prompt and three of the labels are read; of the second caption two.
    expected[1, 6] = False
    for stack in ("decoder.self", "decoder.cross"):
        assert torch.equal(records[stack].query_keep, expected)


@pytest.mark.parametrize("model_class", STACKS)
def test_the_checkpoint_is_upstreams(model_class, tmp_path):
    upstream, ours = both(model_class)
    assert list(ours.state_dict()) == list(upstream.state_dict())
    save_checkpoint(ours, None, None, tmp_path / "ours")
    upstream.save_pretrained(tmp_path / "theirs")
    for name in ("config.json", "generation_config.json"):
        mine, theirs = (json.loads((tmp_path / one / name).read_text()) for one in ("ours", "theirs"))
        assert mine == theirs
    again, info = model_class.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float64
    )
    assert type(again) is model_class
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in upstream.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    loaded = load_model(tmp_path / "ours")
    assert is_seq2seq(loaded)
    batch = batch_for(model_class)
    torch.testing.assert_close(loaded(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("model_class", STACKS)
def test_a_student_of_it_is_of_its_form(model_class):
    teacher = both(model_class)[1].float()
    student = build_student(teacher, student_config(teacher.config, heads=2, layers=1, width=0.5))
    assert type(student) is type(teacher)
    batch = batch_for(model_class)
    batch["pixel_values"] = batch["pixel_values"].float()
    assert student(**batch).logits.shape == teacher(**batch).logits.shape
    copied = build_student(teacher, student_config(teacher.config), init="teacher")
    torch.testing.assert_close(copied(**batch).logits, teacher(**batch).logits)


def test_a_question_without_anything_to_say_is_refused():
    _, ours = both(QUESTIONS)
    with pytest.raises(RecipeError, match="Give labels or decoder_input_ids"):
        ours(**questions(1))


def test_other_models_keep_their_class():
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    model = BertModel(config)
    assert as_seq2seq(model) is model
    assert type(model) is BertModel
    assert not is_seq2seq(model)


@pytest.mark.parametrize("model_class", STACKS)
def test_another_size_of_images_is_what_upstream_interpolates(model_class, tmp_path):
    upstream, ours = both(model_class)
    resize_images(ours, 40)
    assert ours.config.vision_config.image_size == 40
    batch = batch_for(model_class)
    batch["pixel_values"] = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    stretched = as_seq2seq(copy.deepcopy(upstream))(**batch, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(ours(**batch).logits, stretched)
    save_checkpoint(ours, None, None, tmp_path / "ours")
    again = as_seq2seq(model_class.from_pretrained(tmp_path / "ours", dtype=torch.float64))
    torch.testing.assert_close(again(**batch).logits, stretched)


def test_the_size_that_it_has_leaves_a_model_alone():
    _, ours = both(QUESTIONS)
    before = ours.vision_model.embeddings.position_embedding
    resize_images(ours, 24)
    assert ours.vision_model.embeddings.position_embedding is before


def test_sizes_that_make_no_patches_and_other_models_are_refused():
    with pytest.raises(RecipeError, match="50 x 50 pixels do not divide into patches of 8 x 8"):
        resize_images(both(QUESTIONS)[1], 50)
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    with pytest.raises(RecipeError, match="the model is a BertModel"):
        resize_images(bert, 48)


def test_a_student_from_random_weights_sees():
    """transformers' default starts the vision part at 1e-10, with which images would be invisible."""
    teacher = as_seq2seq(QUESTIONS(BlipConfig(text_config=TEXT, vision_config=VISION)))
    assert teacher.vision_model.embeddings.patch_embedding.weight.std() < 1e-6
    student = build_student(teacher, student_config(teacher.config, layers=1))
    assert student.vision_model.embeddings.patch_embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    given = {"vision_config": {"initializer_range": 0.1}}
    assert student_config(teacher.config, **given).vision_config.initializer_range == 0.1
