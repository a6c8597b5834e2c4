import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from amad.data.images import load_image_transform
from amad.errors import CheckpointError
from amad.models.blip import DispatchedBlipAttention
from amad.models.load import load_empty_model, load_model, load_tokenizer, save_checkpoint
from amad.models.vlt5 import VLT5Config, VLT5ForConditionalGeneration

T5 = {
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 4,
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 40,
    "decoder_start_token_id": 0,
}


def t5():
    return T5ForConditionalGeneration(T5Config(**T5)).eval()


@pytest.fixture
def checkpoint(tmp_path):
    t5().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tokenizer():
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def edit_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, **options)
    return str(caught.value)


class RunsWhenOpened:
    """A pickle of this makes a folder when somebody unpickles it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_model_comes_back_as_it_was_saved(checkpoint):
    model = load_model(checkpoint)
    expected = T5ForConditionalGeneration.from_pretrained(checkpoint)
    assert type(model) is T5ForConditionalGeneration
    assert not model.training
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_vlt5_comes_back_with_nothing_imported_for_it(tmp_path):
    model = VLT5ForConditionalGeneration(
        VLT5Config(**T5, visual_source="patches", image_size=16, patch_size=8)
    )
    save_checkpoint(model, None, None, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is VLT5ForConditionalGeneration
    assert torch.equal(again.state_dict()["shared.weight"], model.state_dict()["shared.weight"])


def test_blip_comes_back_on_fast_attention(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(text_config={**size, "vocab_size": 9}, vision_config={**size, "image_size": 32})
    BlipForQuestionAnswering(config).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert any(isinstance(module, DispatchedBlipAttention) for module in model.modules())
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_weights_come_back_in_the_dtype_that_is_asked_for(checkpoint):
    assert load_model(checkpoint).dtype == torch.float32
    assert load_model(checkpoint, dtype=torch.bfloat16).dtype == torch.bfloat16
    t5().to(torch.bfloat16).save_pretrained(checkpoint)
    assert load_model(checkpoint).dtype == torch.bfloat16
    assert load_model(checkpoint, dtype=torch.float32).dtype == torch.float32


def test_shards_are_read(tmp_path):
    model = t5()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(load_model(tmp_path).shared.weight, model.shared.weight)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pt", "model.ckpt"])
def test_a_folder_of_pickled_weights_is_refused_and_not_opened(checkpoint, name, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(RunsWhenOpened(tmp_path / "opened")))
    message = refusal(checkpoint)
    assert "safetensors only" in message
    assert name in message
    assert "save_pretrained" in message
    assert not (tmp_path / "opened").exists()


def test_a_pickle_beside_safetensors_is_not_opened(checkpoint, tmp_path):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(RunsWhenOpened(tmp_path / "opened")))
    load_model(checkpoint)
    assert not (tmp_path / "opened").exists()


def test_a_file_of_pickled_weights_is_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    assert "safetensors only" in refusal(tmp_path / "model.pth")


def test_a_folder_of_pickles_without_a_configuration_is_refused_as_pickles(tmp_path):
    (tmp_path / "optimizer.pt").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle" in refusal(tmp_path)


def test_a_configuration_cannot_name_a_pickle_for_the_weights(checkpoint):
    (checkpoint / "adapter_model.bin").write_bytes(b"")
    edit_config(checkpoint, transformers_weights="adapter_model.bin")
    assert "adapter_model.bin is a pickle" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "what"), [("../model.safetensors", "lie in the folder"), ("a.bin", "is a pickle")]
)
def test_an_index_cannot_name_anything_but_safetensors_beside_it(checkpoint, name, what):
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "model.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"shared.weight": name}})
    )
    assert what in refusal(checkpoint)


def test_an_index_that_is_no_index_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json is no index" in refusal(checkpoint)


@pytest.mark.parametrize("path", ["./nothing", "a/b/c", "src/nothing"])
def test_a_folder_that_is_not_there_is_refused_without_a_network(path):
    assert f"no folder {path}" in refusal(path)


def test_a_path_that_is_not_there_is_never_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no folder" in refusal(tmp_path / "teacher")


def test_a_folder_without_a_configuration_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    assert "no config.json" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "cannot be loaded"),
        ("{}", "names no model_type"),
        ('{"model_type": "t6"}', "'t6', which neither transformers"),
        ('{"model_type": "t5"}', "one class under architectures"),
        ('{"model_type": "t5", "architectures": ["T6Model"]}', "'T6Model', which neither"),
        ('{"model_type": "t5", "architectures": ["pipeline"]}', "'pipeline', which neither"),
        ('{"model_type": "t5", "architectures": ["BertModel"]}', "type is 't5', and the class 'BertModel'"),
        ('{"model_type": "t5", "architectures": ["T5Model"], "d_model": "wide"}', "d_model"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(checkpoint, content, what):
    (checkpoint / "config.json").write_text(content)
    message = refusal(checkpoint)
    assert what in message
    assert str(checkpoint) in message


def test_code_that_a_checkpoint_brings_is_not_run_unless_asked_for(tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('the code of the checkpoint was run')")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    assert "trust_remote_code=True" in refusal(tmp_path)
    with pytest.raises(SystemExit, match="was run"):
        load_model(tmp_path, trust_remote_code=True)


def test_weights_cut_short_are_refused_by_name(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert f"{file} is no whole safetensors file" in refusal(checkpoint)
    file.write_bytes(b"")
    assert f"{file} is no whole safetensors file" in refusal(checkpoint)


def test_no_weights_at_all_are_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(checkpoint)


def test_missing_left_over_and_misshapen_weights_are_listed(checkpoint, caplog):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    lost = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del weights[lost]
    weights["encoder.more"] = torch.zeros(2)
    weights["encoder.final_layer_norm.weight"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    message = refusal(checkpoint)
    assert f"missing 1: {lost}" in message
    assert "left over 1: encoder.more" in message
    assert "encoder.final_layer_norm.weight (stored [3], needed [16])" in message
    assert not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(checkpoint, value, dtype):
    file = checkpoint / "model.safetensors"
    weights = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    weights["shared.weight"][3, 5] = value
    save_file(weights, file, metadata={"format": "pt"})
    message = refusal(checkpoint)
    assert "not all finite numbers: 1: shared.weight" in message
    assert "diverged" in message


def test_weights_left_over_can_be_left_out_by_name_but_not_missing_ones(checkpoint):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "head.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    assert "ignore_unexpected=True" in refusal(checkpoint)
    assert load_model(checkpoint, ignore_unexpected=True).shared.weight.shape == (40, 16)
    del weights["shared.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "missing" in refusal(checkpoint, ignore_unexpected=True)


def test_an_adapter_is_refused(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    assert "is an adapter" in refusal(checkpoint)


def test_a_whole_checkpoint_is_written_and_read(tmp_path, tokenizer):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    model = t5()
    out = save_checkpoint(model, tokenizer, processor, tmp_path / "run" / "model")
    assert out == tmp_path / "run" / "model"
    assert os.listdir(tmp_path / "run") == ["model"]
    assert torch.equal(T5ForConditionalGeneration.from_pretrained(out).shared.weight, model.shared.weight)
    assert AutoTokenizer.from_pretrained(out)("red").input_ids == [3]
    assert load_tokenizer(out)("red blue").input_ids == [3, 2]
    assert load_image_transform(out).image_size == (8, 8)


def test_a_tokenizer_may_lie_alone(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("red").input_ids == [3]


def test_a_checkpoint_has_the_rights_of_any_new_folder(tmp_path):
    (tmp_path / "other").mkdir()
    out = save_checkpoint(t5(), None, None, tmp_path / "model")
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_folder_without_a_tokenizer_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(checkpoint)


def test_a_model_can_be_looked_at_without_its_weights(checkpoint):
    for weights in checkpoint.glob("*.safetensors"):
        weights.unlink()
    model = load_empty_model(checkpoint)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_tokenizer_that_cannot_be_read_is_refused(checkpoint, tokenizer):
    tokenizer.save_pretrained(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer that cannot be read"):
        load_tokenizer(checkpoint)


def test_an_existing_checkpoint_is_kept_unless_asked_for(tmp_path):
    first, second = t5(), t5()
    out = save_checkpoint(first, None, None, tmp_path / "model")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_checkpoint(second, None, None, out)
    assert torch.equal(load_model(out).shared.weight, first.shared.weight)
    (out / "left.txt").write_text("from before")
    save_checkpoint(second, None, None, out, overwrite=True)
    assert torch.equal(load_model(out).shared.weight, second.shared.weight)
    assert not (out / "left.txt").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        save_checkpoint(t5(), None, None, tmp_path / "letters", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not one"):
        save_checkpoint(t5(), None, None, tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "letters")
    with pytest.raises(CheckpointError, match="is not one"):
        save_checkpoint(t5(), None, None, tmp_path / "link", overwrite=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "model").mkdir()
    save_checkpoint(
        ViTModel(
            ViTConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16
            )
        ),
        None,
        None,
        tmp_path / "model",
    )
    assert isinstance(load_model(tmp_path / "model"), ViTModel)


class Unsaveable:
    """A tokenizer on a full disk."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{")
        raise OSError("No space left on device")


@pytest.mark.parametrize("exists", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, exists):
    first = t5()
    if exists:
        save_checkpoint(first, None, None, tmp_path / "model")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(t5(), Unsaveable(), None, tmp_path / "model", overwrite=True)
    assert os.listdir(tmp_path) == (["model"] if exists else [])
    if exists:
        assert torch.equal(load_model(tmp_path / "model").shared.weight, first.shared.weight)


def test_a_rename_that_fails_puts_the_older_checkpoint_back(tmp_path, monkeypatch):
    first = t5()
    out = save_checkpoint(first, None, None, tmp_path / "model")
    rename = Path.rename

    def fail(path, target):
        if ".new-" in path.name:
            assert not out.exists()
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk is gone"):
        save_checkpoint(t5(), None, None, out, overwrite=True)
    assert os.listdir(tmp_path) == ["model"]
    assert torch.equal(load_model(out).shared.weight, first.shared.weight)
