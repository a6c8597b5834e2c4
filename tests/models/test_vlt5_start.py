import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from amad.data.tokens import train_tokenizer
from amad.errors import CheckpointError
from amad.models.load import load_model, load_tokenizer, save_checkpoint
from amad.models.vlt5 import VLT5ForConditionalGeneration
from amad.models.vlt5_start import start_from_t5


@pytest.fixture
def t5(tmp_path):
    """A small T5 whose embedding has rows beyond its words, as the published ones have."""
    tokenizer = train_tokenizer(["a red bus on the road"], n_visual_ids=0)
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(tokenizer) + 28,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=1,
        decoder_start_token_id=0,
        feed_forward_proj="relu",
    )
    return save_checkpoint(T5ForConditionalGeneration(config), tokenizer, None, tmp_path / "t5")


def test_it_has_the_weights_of_the_t5_and_visual_tokens_at_the_end(t5, tmp_path):
    folder = start_from_t5(t5, tmp_path / "vlt5")
    model, tokenizer, theirs = load_model(folder), load_tokenizer(folder), load_model(t5)
    n_words = len(load_tokenizer(t5))
    assert type(model) is VLT5ForConditionalGeneration
    assert model.config.vocab_size == len(tokenizer) == n_words + 100
    for number in (0, 7, 99):
        assert tokenizer.convert_tokens_to_ids(f"<vis_extra_id_{number}>") == len(tokenizer) - 1 - number
    assert tokenizer("<vis_extra_id_7> a")["input_ids"][0] == len(tokenizer) - 8
    own = model.state_dict()
    for name, value in theirs.state_dict().items():
        if value.shape[0] == theirs.config.vocab_size:
            assert own[name][:n_words].equal(value[:n_words])
        else:
            assert own[name].equal(value)
    assert model.shared.weight is model.lm_head.weight
    assert own["shared.weight"][n_words:].std() > 0.5


def test_without_an_image_it_says_what_the_t5_says(t5, tmp_path):
    model, theirs = load_model(start_from_t5(t5, tmp_path / "vlt5")), load_model(t5)
    asked = load_tokenizer(t5)("a red bus", return_tensors="pt")["input_ids"]
    regions = {"vis_feats": torch.zeros(1, 2, 2048), "boxes": torch.zeros(1, 2, 4)}
    with torch.no_grad():
        ours = model(
            input_ids=asked, **regions, vis_attention_mask=torch.zeros(1, 2, dtype=torch.bool), labels=asked
        ).logits
        expected = theirs(input_ids=asked, labels=asked).logits
    n_words = len(load_tokenizer(t5))
    assert torch.allclose(ours[..., :n_words], expected[..., :n_words], atol=1e-5)


def test_equal_seeds_start_equally(t5, tmp_path):
    starts = [
        load_model(start_from_t5(t5, tmp_path / str(i), seed)).state_dict()
        for i, seed in enumerate((3, 3, 4))
    ]
    assert all(starts[0][name].equal(starts[1][name]) for name in starts[0])
    name = "encoder.visual_embedding.feat_embedding.0.weight"
    assert not starts[0][name].equal(starts[2][name])


def test_what_is_no_t5_is_refused(tmp_path, t5):
    tokenizer = load_tokenizer(t5)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    bert = save_checkpoint(BertModel(BertConfig(vocab_size=9, **sizes)), tokenizer, None, tmp_path / "bert")
    with pytest.raises(CheckpointError, match="is a BertModel, and VL-T5 starts from a T5"):
        start_from_t5(bert, tmp_path / "x")
    start_from_t5(t5, tmp_path / "vlt5")
    with pytest.raises(CheckpointError, match="is a VLT5ForConditionalGeneration"):
        start_from_t5(tmp_path / "vlt5", tmp_path / "x")


def test_a_t5_with_an_output_head_of_its_own_is_refused(tmp_path, t5):
    model = T5ForConditionalGeneration.from_pretrained(t5)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach() + 1)
    save_checkpoint(model, load_tokenizer(t5), None, tmp_path / "v1.1")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .* an output head of its own, as T5 v1\.1"):
        start_from_t5(tmp_path / "v1.1", tmp_path / "x")
    assert not (tmp_path / "x").exists()
