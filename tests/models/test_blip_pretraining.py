import math
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import BlipConfig
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from amad.models.blip import dispatch_attention
from amad.models.blip_pretraining import (
    LARGEST_SCALE,
    BlipForPretraining,
    contrastive,
    drawn_negatives,
    fine_tuned,
    matching,
    next_negatives,
)
from amad.models.load import load_model, save_checkpoint

CLASSES = [
    transformers.BlipForQuestionAnswering,
    transformers.BlipForConditionalGeneration,
    transformers.BlipForImageTextRetrieval,
]
CLS, ENC, DEC, SEP, PAD = 2, 28, 29, 3, 0


def config():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return BlipConfig(
        text_config=sizes
        | {
            "num_hidden_layers": 1,
            "vocab_size": 30,
            "max_position_embeddings": 12,
            "bos_token_id": DEC,
            "sep_token_id": SEP,
            "eos_token_id": SEP,
            "pad_token_id": PAD,
        },
        vision_config=sizes
        | {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "initializer_range": 0.02},
        image_text_hidden_size=6,
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return dispatch_attention(BlipForPretraining(config())).eval()


def batch(n=5, images=None):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(4, 28, (n, 6), generator=generator)
    ids = torch.cat([torch.full((n, 1), CLS), words, torch.full((n, 1), SEP)], 1)
    keep = torch.ones_like(ids)
    ids[1, 5:], keep[1, 5:] = PAD, 0
    labels = ids[:, 1:].masked_fill(keep[:, 1:] == 0, -100)
    return {
        "input_ids": ids,
        "pair_input_ids": torch.cat([torch.full((n, 1), ENC), ids[:, 1:]], 1),
        "attention_mask": keep,
        "pixel_values": torch.randn(n, 3, 8, 8, generator=generator),
        "image_numbers": torch.tensor(images or list(range(n))),
        "labels": labels,
    }


def test_the_contrast_is_the_formula_in_float64():
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 6, 4))
    numbers, scale = [0, 1, 0, 2, 2, 2], 7.0
    found = contrastive(
        torch.tensor(images),
        torch.tensor(texts),
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(numbers),
    )
    for i in range(6):
        expected = 0.0
        for ours, others in ((images, texts), (texts, images)):
            cosines = [
                ours[i] @ others[j] / math.sqrt(ours[i] @ ours[i]) / math.sqrt(others[j] @ others[j])
                for j in range(6)
            ]
            whole = sum(math.exp(scale * cosine) for cosine in cosines)
            own = [j for j in range(6) if numbers[j] == numbers[i]]
            expected -= sum(math.log(math.exp(scale * cosines[j]) / whole) for j in own) / len(own) / 2
        assert found.losses[i].item() == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 99))
def test_of_different_images_it_is_the_loss_of_clip(seed):
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, 5, 3, generator=generator)
    found = contrastive(images, texts, torch.tensor(3.0), torch.arange(5))
    assert found.losses.mean().item() == pytest.approx(
        image_text_contrastive_loss(found.similarities).item(), rel=1e-5
    )


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(0, 99))
def test_a_negative_is_never_of_the_same_image(numbers, seed):
    torch.manual_seed(seed)
    numbers = torch.tensor(numbers)
    same = numbers[:, None] == numbers
    alone = same.all(1)
    for negatives in (drawn_negatives, next_negatives):
        for _ in range(5):
            chosen = negatives(20 * torch.randn(len(numbers), len(numbers)), same)
            assert (numbers[chosen] != numbers)[~alone].all()
            assert chosen[alone].equal(torch.arange(len(numbers))[alone])


def test_hard_negatives_are_drawn_by_their_similarity():
    similarities = torch.tensor([[5.0, 1.0, 0.0, -30.0]] * 4)
    same = torch.eye(4, dtype=torch.bool)
    n = 8000
    counts = Counter(int(drawn_negatives(similarities, same)[0]) for _ in range(n))
    chances = similarities[0].softmax(0) + 1e-4
    chances[0] = 0
    for column, chance in enumerate((chances / chances.sum()).tolist()):
        assert abs(counts[column] - n * chance) <= 4 * math.sqrt(n * chance * (1 - chance))
    # What seems impossible can still come.
    assert counts[3] > 0
    assert counts[1] > counts[2]


def test_the_next_negative_goes_round():
    numbers = torch.tensor([0, 0, 1, 2, 0])
    same = numbers[:, None] == numbers
    assert next_negatives(torch.zeros(5, 5), same).tolist() == [2, 2, 3, 4, 2]


def test_matching_by_hand():
    yes, no = [0.0, math.log(3.0)], [math.log(3.0), 0.0]
    # The first pair is right thrice, the second says yes to all, the third has no negatives.
    scores = torch.tensor([[yes, yes, yes], [no, yes, no], [no, yes, no]])
    there = torch.tensor([[True] * 3, [True, True, False], [True, True, False]])
    losses, (total, number) = matching(scores, there)
    right, wrong = math.log(4 / 3), math.log(4)
    assert losses.tolist() == pytest.approx([right, (right + 2 * wrong) / 3, right])
    assert (total.item(), number.item()) == (1.5, 2.0)


def test_what_always_says_the_same_is_right_half_of_the_time():
    for always in ([1.0, 0.0], [0.0, 1.0]):
        scores = torch.tensor(always).expand(3, 7, 2)
        _, (total, number) = matching(scores, torch.ones(3, 7, dtype=torch.bool))
        assert total / number == 0.5


def test_scores_are_those_of_the_model_for_retrieval(model):
    given = batch(images=[0, 1, 2, 0, 3])
    retrieval = fine_tuned(model, transformers.BlipForImageTextRetrieval)
    inputs = {name: given[name] for name in ("pixel_values", "attention_mask")}
    with torch.no_grad():
        output = model(**given)
        similarities = (
            retrieval(input_ids=given["input_ids"], **inputs, use_itm_head=False).itm_score
            * model.logit_scale.exp()
        )
        same = given["image_numbers"][:, None] == given["image_numbers"]
        expected = contrastive_of(similarities, same)
        assert output.sample_losses["contrast"].tolist() == pytest.approx(expected, rel=1e-4)
        # Of each text with the next image, of each image with the next text: 0 and 3 are of one image.
        following = [1, 2, 3, 4, 0]
        losses = []
        for texts, images, answer in (
            (range(5), range(5), 1),
            (following, range(5), 0),
            (range(5), following, 0),
        ):
            scores = retrieval(
                input_ids=given["pair_input_ids"][list(texts)],
                attention_mask=given["attention_mask"][list(texts)],
                pixel_values=given["pixel_values"][list(images)],
            ).itm_score
            losses.append(-scores.log_softmax(1)[:, answer])
        assert output.sample_losses["match"].tolist() == pytest.approx(
            torch.stack(losses).mean(0).tolist(), rel=1e-4
        )


def contrastive_of(similarities, same):
    targets = same / same.sum(1, keepdim=True)
    both = similarities.log_softmax(1) + similarities.T.log_softmax(1)
    return (-(targets * both).sum(1) / 2).tolist()


def test_captions_are_those_of_the_model_for_captions(model):
    given = batch()
    captions = fine_tuned(model, transformers.BlipForConditionalGeneration)
    start = torch.full((5, 1), DEC)
    with torch.no_grad():
        ours = model(**given).logits
        theirs = captions(pixel_values=given["pixel_values"], input_ids=start, labels=given["labels"]).logits
    real = given["labels"] >= 0
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)


def test_every_part_learns_and_the_scale_is_bounded(model):
    model.train()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    given = batch()
    output = model(**given)
    assert model.logit_scale.exp().item() == pytest.approx(LARGEST_SCALE)
    caption = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), given["labels"].flatten())
    (sum(loss.mean() for loss in output.sample_losses.values()) + caption).backward()
    still = [
        name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum()
    ]
    # Alone, a key's bias changes no softmax.
    assert [name for name in still if "key.bias" not in name] == []


def test_figures_are_sums_and_numbers(model):
    output = model(**batch(images=[0, 0, 0, 0, 0]))
    assert output.sample_figures["accuracy_match"].tolist() == [0, 0]
    assert output.sample_figures["accuracy_contrast"].tolist() == [10, 10]
    total, number = model(**batch()).sample_figures["accuracy_match"].tolist()
    assert number == 5
    assert 0 <= total <= 5


@pytest.mark.parametrize("model_class", CLASSES)
def test_each_model_of_blip_loads_its_parts_with_plain_transformers(model, model_class, tmp_path):
    folder = save_checkpoint(model, None, None, tmp_path / "model")
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    ours, converted = model.state_dict(), fine_tuned(model, model_class).state_dict()
    for name, value in loaded.state_dict().items():
        assert value.equal(ours[name])
        assert value.equal(converted[name])
    again = load_model(folder)
    assert type(again) is BlipForPretraining
    assert all(value.equal(again.state_dict()[name]) for name, value in ours.items())
