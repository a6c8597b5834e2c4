import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from amad.data.collate import Seq2SeqCollator
from amad.data.images import new_image_transform
from amad.data.tokens import train_tokenizer
from amad.data.vqa import VqaDataset, VqaExample
from amad.errors import DataError
from amad.evaluation.evaluate import (
    Decoding,
    accuracy,
    answer_questions,
    blanked,
    generate_batches,
    generate_texts,
)

QUESTIONS = ["what color", "what", "how many circles are red", "is it", "red or blue"]


def example(number, question, answers=("red",) * 10, scores=None):
    return VqaExample(
        number, number, question, answers, scores if scores is not None else {"red": 1.0}, image=None
    )


@pytest.fixture
def answering():
    """A model that reads text alone, its tokenizer, questions and a collator."""
    torch.manual_seed(1)
    dataset = VqaDataset([example(10 + i, text) for i, text in enumerate(QUESTIONS)], training=False)
    tokenizer = train_tokenizer([*dataset.texts(), "blue two yes no"], 2, 2)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_heads=4,
        num_layers=1,
        num_decoder_layers=1,
        initializer_factor=4.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config), tokenizer, dataset, Seq2SeqCollator(tokenizer)


def test_answers_are_those_of_one_question_at_a_time_in_the_official_form(answering):
    model, tokenizer, dataset, collator = answering
    results = answer_questions(*answering, batch_size=2, max_new_tokens=4)
    model.eval()
    for index, result in enumerate(results):
        inputs = collator([{"text": dataset.text(index)}])
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert result == {
            "question_id": 10 + index,
            "answer": tokenizer.decode(tokens[0], skip_special_tokens=True),
        }
    assert len({result["answer"] for result in results}) > 1


def test_texts_are_those_of_generate_alone_whatever_the_size_of_batches(answering):
    model, tokenizer, dataset, collator = answering
    model.eval()
    differ = 0
    for seed in range(5):
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.15 if "shared" in name else 0.7)
        alone = {}
        for beams in (1, 5):
            alone[beams] = []
            for index in range(len(dataset)):
                batch = collator([{"text": dataset.text(index)}])
                tokens = model.generate(**batch, max_length=12, num_beams=beams)
                alone[beams] += tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for size in (1, 2, 5):
                assert generate_texts(*answering, Decoding(12, beams), batch_size=size) == alone[beams]
        differ += sum(greedy != beam for greedy, beam in zip(*alone.values(), strict=True))
    # Beams are searched, and find more than greed does.
    assert differ > 5


def test_of_a_checkpoints_own_decoding_nothing_counts_and_all_stays(answering):
    model = answering[0]
    alone = {beams: generate_texts(*answering, Decoding(9, beams)) for beams in (1, 3)}
    own = model.generation_config
    own.update(
        max_new_tokens=2, no_repeat_ngram_size=1, min_new_tokens=2, repetition_penalty=5.0, do_sample=True
    )
    for beams, expected in alone.items():
        assert generate_texts(*answering, Decoding(9, beams)) == expected
    assert model.generation_config is own
    assert own.max_new_tokens == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_may_be_any_items_and_be_read_ahead(answering, workers):
    whole = generate_texts(*answering, Decoding(5))
    said = generate_batches(*answering, Decoding(5), [[3, 1], [4]], workers=workers)
    assert list(said) == [[whole[3], whole[1]], [whole[4]]]


def test_the_model_is_left_in_the_mode_in_which_it_came(answering):
    model = answering[0]
    for training in (True, False):
        model.train(training)
        answer_questions(*answering, max_new_tokens=1)
        assert model.training is training


def test_progress_is_told_after_every_batch(answering):
    told = []
    answer_questions(
        *answering, batch_size=2, max_new_tokens=1, on_progress=lambda done, whole: told.append((done, whole))
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_a_blank_image_is_one_of_the_mean_colour_of_the_processor(answering):
    tokenizer = answering[1]
    transform = new_image_transform(4, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    collator = Seq2SeqCollator(tokenizer, transform)
    noise = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    batch = collator([{"text": "what", "image": image} for image in noise])
    mean = np.broadcast_to(np.array([51, 102, 153], np.uint8), (4, 4, 3))
    torch.testing.assert_close(blanked(batch)["pixel_values"], transform([mean, mean]), atol=1e-6, rtol=0)
    assert blanked(batch)["input_ids"] is batch["input_ids"]
    assert batch["pixel_values"].any()


def test_blank_regions_are_zero_and_as_many_as_before(answering):
    collator = answering[3]
    batch = collator(
        [{"text": "what", "vis_feats": np.ones((n, 3)), "boxes": np.ones((n, 4))} for n in (1, 2)]
    )
    blank = blanked(batch)
    assert not blank["vis_feats"].any()
    assert not blank["boxes"].any()
    assert blank["vis_attention_mask"].equal(batch["vis_attention_mask"])
    assert blank["vis_feats"].shape == (2, 2, 3)


def test_a_set_without_images_has_none_to_blank(answering):
    with pytest.raises(DataError, match="no images to blank"):
        generate_texts(*answering, Decoding(5), blank_images=True)


def results(*answers):
    return [{"question_id": number, "answer": answer} for number, answer in enumerate(answers)]


def test_accuracy_is_official_where_ten_answers_are_known():
    # Two of ten: leaving each annotator out, 2 times 1 of 3 and 8 times 2 of 3 make 0.6.
    two = example(0, "what", ("red",) * 2 + ("blue",) * 8)
    dataset = VqaDataset([two, example(1, "what")], training=False)
    assert accuracy(dataset, results("red", "red")) == pytest.approx(100 * (0.6 + 1) / 2)


def test_accuracy_is_the_soft_score_where_only_that_is_published():
    dataset = VqaDataset(
        [example(0, "what", None, {"red": 0.3, "blue": 1.0}), example(1, "what", None, {"red": 0.9})],
        training=False,
    )
    assert accuracy(dataset, results("red", "green")) == pytest.approx(15)


def test_without_any_answer_there_is_no_accuracy():
    dataset = VqaDataset([example(0, "what", None, {})], training=False)
    assert accuracy(dataset, results("red")) is None
