import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from amad.data.collate import Seq2SeqCollator
from amad.data.tokens import train_tokenizer
from amad.data.vqa import VqaDataset, VqaExample
from amad.errors import RecipeError, ShapeError
from amad.evaluation.evaluate import Decoding, generate_texts
from amad.evaluation.fidelity import (
    TokenFidelity,
    batched,
    compare_tokens,
    measure_fidelity,
    text_probabilities,
)
from amad.metrics.fidelity import Calibration

QUESTIONS = ["what color", "what", "how many circles are red", "is it", "red or blue"]
ANSWERS = ["red", "red circles", "", "no", "blue red or"]


def log(*rows):
    return torch.tensor([rows], dtype=torch.float64).log()


def test_two_tokens_worked_by_hand():
    found = TokenFidelity()
    student = log([0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    teacher = log([0.125, 0.75, 0.125], [0.2, 0.6, 0.2], [0.8, 0.1, 0.1])
    found.add(student, teacher, torch.tensor([[0, 1, -100]]), shift_labels=False)
    # The first token: 1/8 ln 1/4 + 3/4 ln 3 + 1/8 ln 1/2. The second: equal. The third is no target.
    divergence = 0.75 * math.log(3) - 0.375 * math.log(2)
    assert found.kl_sum == pytest.approx(divergence)
    assert found.summary() == {
        "n_tokens": 2,
        "token_agreement_percent": 50,
        "kl_nats_per_token": pytest.approx(divergence / 2),
    }
    # The student is right at both, at 0.5 and 0.6; the teacher at the second alone.
    assert found.student.accuracy_percent == 100
    assert found.student.error_percent == pytest.approx(45)
    assert found.teacher.accuracy_percent == 50
    assert found.teacher.overconfidence_percent == pytest.approx(17.5)


def test_shifted_labels_are_those_one_position_on():
    student, teacher = log([0.9, 0.1], [0.2, 0.8], [0.3, 0.7]), log([0.9, 0.1], [0.6, 0.4], [0.5, 0.5])
    found = TokenFidelity()
    found.add(student, teacher, torch.tensor([[1, -100, 1]]), shift_labels=True)
    # Only the last label is predicted, by the second position.
    assert found.n_tokens == 1
    assert found.n_equal == 0
    assert found.kl_sum == pytest.approx(entropy([0.6, 0.4], [0.2, 0.8]))


@given(st.integers(0, 10_000))
def test_the_divergence_is_that_of_scipy_and_never_below_zero(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    found = TokenFidelity()
    found.add(student, teacher, torch.zeros(2, 3, dtype=torch.long), shift_labels=False)
    expected = entropy(teacher.softmax(-1), student.softmax(-1), axis=-1).sum()
    assert found.kl_sum == pytest.approx(expected)
    assert found.kl_sum >= 0
    same = TokenFidelity()
    same.add(student, student, torch.zeros(2, 3, dtype=torch.long), shift_labels=False)
    assert (same.kl_sum, same.n_equal) == (0, 6)


def test_more_tokens_than_are_taken_at_once_are_all_taken():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 700, 5, generator=generator) for _ in range(2))
    labels = torch.randint(0, 5, (3, 700), generator=generator)
    found = TokenFidelity()
    found.add(student, teacher, labels, shift_labels=False)
    assert found.n_tokens == found.student.n == found.teacher.n == 2100
    assert found.n_equal == int((student.argmax(-1) == teacher.argmax(-1)).sum())
    assert found.student.accuracy_percent == pytest.approx(
        100 * float((student.argmax(-1) == labels).double().mean())
    )


@pytest.fixture(scope="module")
def asked():
    """Questions with their answers, the third without any; a collator; and models that share its words."""
    examples = [
        VqaExample(number, number, question, None, {answer: 1.0} if answer else {}, image=None)
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    dataset = VqaDataset(examples, training=False)
    tokenizer = train_tokenizer(dataset.texts(), 2, 2)

    def model(width, seed):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=4,
            d_ff=32,
            num_heads=2,
            num_layers=1,
            num_decoder_layers=1,
            dropout_rate=0.3,
            initializer_factor=3.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        return T5ForConditionalGeneration(config).eval()

    return dataset, Seq2SeqCollator(tokenizer), model(8, 1), model(16, 2)


def summary(found):
    return found.summary(), found.student.summary(), found.teacher.summary()


def test_it_is_what_one_question_at_a_time_says(asked):
    dataset, collator, student, teacher = asked
    found = compare_tokens(student, teacher, batched(dataset, collator, 5))
    n, equal, divergence, sure, right = 0, 0, 0.0, [], []
    for index, answer in enumerate(ANSWERS):
        if not answer:
            continue
        batch = collator([dataset[index]])
        batch.pop("label_weights")
        with torch.no_grad():
            mine, its = (model(**batch).logits[0].double().softmax(-1) for model in (student, teacher))
        n += len(mine)
        equal += int((mine.argmax(-1) == its.argmax(-1)).sum())
        divergence += entropy(its, mine, axis=-1).sum()
        sure += mine.max(-1).values.tolist()
        right += (mine.argmax(-1) == batch["labels"][0]).tolist()
    by_hand = Calibration()
    by_hand.add(sure, right)
    assert found.summary() == pytest.approx(
        {
            "n_tokens": n,
            "token_agreement_percent": 100 * equal / n,
            "kl_nats_per_token": divergence / n,
        },
        rel=1e-4,
    )
    assert found.student.summary() == pytest.approx(by_hand.summary(), rel=1e-4)


def test_the_size_of_batches_changes_nothing(asked):
    dataset, collator, student, teacher = asked
    one, other = (compare_tokens(student, teacher, batched(dataset, collator, size)) for size in (1, 3))
    for first, second in zip(summary(one), summary(other), strict=True):
        assert first == pytest.approx(second, rel=1e-4)


def test_a_model_and_itself_do_not_differ(asked):
    dataset, collator, student, _ = asked
    found = compare_tokens(student, student, batched(dataset, collator, 2))
    assert found.summary()["token_agreement_percent"] == 100
    assert found.kl_sum == 0
    assert found.student.summary() == found.teacher.summary()


def test_batches_are_taken_one_at_a_time_and_modes_are_given_back(asked):
    dataset, collator, student, teacher = asked
    taken, told = [], []

    def batches():
        for batch in batched(dataset, collator, 2):
            taken.append(len(batch["labels"]))
            yield batch

    student.train()
    compare_tokens(student, teacher, batches(), on_progress=lambda done: told.append((done, len(taken))))
    assert told == [(2, 1), (4, 2), (5, 3)]
    assert student.training
    assert not teacher.training
    student.eval()


def test_without_ground_truth_nothing_is_known(asked):
    _, collator, student, teacher = asked
    dataset = VqaDataset([VqaExample(0, 0, "what", None, {}, image=None)], training=False)
    found = compare_tokens(student, teacher, batched(dataset, collator, 1))
    assert found.summary() == {"n_tokens": 0, "token_agreement_percent": None, "kl_nats_per_token": None}


def llama(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=11, initializer_range=1.0)).eval()


def blip(seed):
    torch.manual_seed(seed)
    text = {"hidden_size": 8, "encoder_hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 11, "initializer_range": 1.0}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize("make", [llama, blip])
def test_a_decoder_alone_predicts_the_next_token(make):
    student, teacher = make(1), make(2)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids < 5, -100)}
    if make is blip:
        batch["pixel_values"] = torch.randn(2, 3, 8, 8)
    found = compare_tokens(student, teacher, [batch])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        mine, its = (model(**inputs).logits.double().softmax(-1) for model in (student, teacher))
    # Positions 1 and 2 of the first predict 5 and 6; 0 to 2 of the second 8, 9 and 10.
    expected = (
        entropy(its[0, 1:3], mine[0, 1:3], axis=-1).sum() + entropy(its[1, :3], mine[1, :3], axis=-1).sum()
    )
    assert found.n_tokens == 5
    assert found.kl_sum == pytest.approx(expected, rel=1e-4)
    unshifted = compare_tokens(student, teacher, [batch], shift_labels=False)
    assert unshifted.n_tokens == 6


def test_classes_are_tokens_of_one_position():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    models = [
        ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5)) for _ in "ab"
    ]
    batch = {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 1, 4])}
    found = compare_tokens(*models, [batch])
    with torch.no_grad():
        mine, its = (model.eval()(batch["pixel_values"]).logits.double().softmax(-1) for model in models)
    assert found.n_tokens == 3
    assert found.kl_sum == pytest.approx(entropy(its, mine, axis=-1).sum(), rel=1e-4)


def test_the_probability_of_a_text_is_the_product_of_those_of_its_tokens_one_by_one(asked):
    dataset, collator, student, _ = asked
    texts = ["red", "how many circles are red blue or what red", "", "no no", "what"]
    found = text_probabilities(student, batched(dataset, collator, 2, texts=texts))
    for index, text in enumerate(texts):
        ids = collator.tokenizer(text)["input_ids"]
        assert ids[-1] == collator.tokenizer.eos_token_id
        said, product = [collator.tokenizer.pad_token_id], 1.0
        for token in ids:
            inputs = collator([{"text": dataset.text(index)}])
            with torch.no_grad():
                logits = student(**inputs, decoder_input_ids=torch.tensor([said])).logits[0, -1]
            product *= float(logits.double().softmax(-1)[token])
            said.append(token)
        assert found[index] == pytest.approx(product, rel=1e-4)


def test_a_text_of_the_greatest_length_keeps_its_last_word(asked):
    dataset, collator, student, _ = asked
    short = Seq2SeqCollator(collator.tokenizer, max_target_tokens=3)
    single = VqaDataset(dataset.examples[:1], training=False)
    found, whole = (
        text_probabilities(student, batched(single, one, 1, texts=["red or blue"]))
        for one in (short, collator)
    )
    assert found == pytest.approx(whole)
    assert short.max_target_tokens == 3
    shorter = Seq2SeqCollator(collator.tokenizer, max_target_tokens=1)
    found, uncut, cut = (
        text_probabilities(student, batched(single, one, 1, texts=["red or blue"], max_length=most))
        for one, most in ((shorter, 12), (collator, 0), (shorter, 0))
    )
    assert found == pytest.approx(uncut, rel=1e-5, abs=0.0)
    assert found != pytest.approx(cut, rel=1e-2, abs=0.0)


def test_probabilities_of_all_texts_of_one_token_stay_within_one(asked):
    dataset, collator, student, _ = asked
    words = [word for word in collator.tokenizer.get_vocab() if word.isalpha()]
    single = VqaDataset(dataset.examples[:1], training=False)
    found = [text_probabilities(student, batched(single, collator, 1, texts=[word]))[0] for word in words]
    assert 0 < sum(found) <= 1


def test_progress_of_probabilities_is_told(asked):
    dataset, collator, student, _ = asked
    told = []
    text_probabilities(student, batched(dataset, collator, 2, texts=["red"] * 5), told.append)
    assert told == [2, 4, 5]


def test_what_cannot_be_compared_is_refused(asked):
    dataset, collator, student, _ = asked
    batch = next(iter(batched(dataset, collator, 2)))
    with pytest.raises(ShapeError, match="ocabularies differ"):
        compare_tokens(llama(0), student, [batch])
    with pytest.raises(ShapeError, match="vocabularies differ: 3 != 4"):
        TokenFidelity().add(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=int), False)
    del batch["labels"]
    with pytest.raises(RecipeError, match="Give labels"):
        compare_tokens(student, student, [batch])


def test_the_whole_of_it_for_questions(asked):
    dataset, collator, student, teacher = asked
    said = ["red", "red circles", "no", "yes", "blue red or"], ["red", "circles", "no", "no", "blue"]
    waits = []

    @contextlib.contextmanager
    def wait(what, total):
        told = []
        yield lambda done, whole: told.append((done, whole))
        waits.append((what, total, told[-1]))

    found = measure_fidelity(
        student, teacher, dataset, lambda texts: batched(dataset, collator, 2, texts=texts), said, wait
    )
    assert found["agreement_percent"] == 40
    assert found["agreement_interval_percent"][0] < 40 < found["agreement_interval_percent"][1]
    tokens = compare_tokens(student, teacher, batched(dataset, collator, 2))
    assert found["n_tokens"] == tokens.n_tokens
    assert found["kl_nats_per_token"] == tokens.kl_sum / tokens.n_tokens
    # The third question has no answer. Of the others the student has three right, the teacher two.
    for who, model, texts, right in (
        ("student", student, said[0], [1, 1, 0, 1]),
        ("teacher", teacher, said[1], [1, 0, 1, 0]),
    ):
        sure = text_probabilities(model, batched(dataset, collator, 2, texts=texts))
        by_hand = Calibration()
        by_hand.add([*sure[:2], *sure[3:]], right)
        assert found["calibration"][who]["answers"] == by_hand.summary()
        assert found["calibration"][who]["tokens"] == getattr(tokens, who).summary()
    assert waits == [
        ("comparing predictions", 5, (5, 5)),
        ("confidence of the student", 5, (5, 5)),
        ("confidence of the teacher", 5, (5, 5)),
    ]


def test_what_greedy_decoding_said_is_what_the_model_is_sure_of(asked):
    dataset, collator, student, _ = asked
    said = generate_texts(student, collator.tokenizer, dataset, collator, Decoding(max_length=8))
    others = [said[-1], *said[:-1]]
    sure, of_others = (
        text_probabilities(student, batched(dataset, collator, 2, texts=texts)) for texts in (said, others)
    )
    differing = [index for index in range(5) if said[index] != others[index]]
    assert differing
    assert sum(sure[index] > of_others[index] for index in differing) > len(differing) / 2


def test_only_the_image_is_blanked():
    class Seen:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"text": "what", "target": "red", "image": index + 1}

    def pixels(images):
        return torch.tensor(images, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)

    collator = Seq2SeqCollator(train_tokenizer(["what red"], 2, 2), pixels)
    shown, blank = (list(batched(Seen(), collator, 2, blank_images=hidden)) for hidden in (False, True))
    assert [batch["pixel_values"][:, 0, 0, 0].tolist() for batch in shown] == [[1, 2], [3]]
    assert all(not batch["pixel_values"].any() for batch in blank)
    assert torch.equal(shown[0]["input_ids"], blank[0]["input_ids"])
    assert torch.equal(shown[1]["labels"], blank[1]["labels"])
