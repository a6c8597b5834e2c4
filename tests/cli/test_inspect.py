import pytest
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
}


def blip(kind):
    return kind(
        BlipConfig(
            text_config={"vocab_size": 40, "encoder_hidden_size": 16, **SIZES},
            vision_config={"image_size": 16, "patch_size": 8, **SIZES},
            projection_dim=8,
            image_text_hidden_size=8,
        )
    )


# Layers of each stack, in the order in which they are listed.
MODELS = {
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_heads=4, num_layers=2, num_decoder_layers=1
            )
        ),
        {"encoder.self": 2, "decoder.self": 1, "decoder.cross": 1},
    ),
    "bert": (lambda: BertForMaskedLM(BertConfig(vocab_size=40, **SIZES)), {"text.self": 2}),
    "vit": (lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)), {"vision.self": 2}),
    "blip-vqa": (
        lambda: blip(BlipForQuestionAnswering),
        {"vision.self": 2, "text.self": 2, "text.cross": 2, "decoder.self": 2, "decoder.cross": 2},
    ),
    "blip-captioning": (
        lambda: blip(BlipForConditionalGeneration),
        {"vision.self": 2, "decoder.self": 2, "decoder.cross": 2},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_attention_site_of_a_checkpoint_is_listed(amad, name):
    make, stacks = MODELS[name]
    model = make()
    model.save_pretrained("model")
    told = amad.document("inspect", "model")
    assert told["pairs"] == []
    rows = told["models"]["model"]
    assert [(row["stack"], row["layer"]) for row in rows] == [
        (stack, layer) for stack, layers in stacks.items() for layer in range(layers)
    ]
    assert {(row["heads"], row["key/value heads"], row["head width"], row["back-end"]) for row in rows} == {
        (4, 4, 4, "interface")
    }
    modules = dict(model.named_modules())
    assert all(row["module"] in modules for row in rows)
    assert len({row["module"] for row in rows}) == len(rows)


def test_the_sites_of_vl_t5_are_those_of_the_teacher_in_the_recipe(amad, taught, student_tree):
    alone = amad.document("inspect", taught.model)["models"]["model"]
    assert [(row["stack"], row["layer"]) for row in alone] == [
        *(("encoder.self", layer) for layer in range(2)),
        *((stack, layer) for stack in ("decoder.self", "decoder.cross") for layer in range(2)),
    ]
    told = amad.document("inspect", amad.write(student_tree))
    assert told["models"]["teacher"] == alone
    assert {row["heads"] for row in told["models"]["student"]} == {2}
    assert told["pairs"] == [
        {"student": f"{stack}[0]", "teacher": f"{stack}[1]", "weight": 1.0}
        for stack in ("encoder.self", "decoder.self", "decoder.cross")
    ]


def test_a_recipe_without_a_teacher_shows_its_model(amad, teacher_tree):
    told = amad.document("inspect", amad.write(teacher_tree), "model.config.num_heads=8")
    assert {row["heads"] for row in told["models"]["model"]} == {8}
    assert told["pairs"] == []


def test_the_table_names_the_modules_in_full(amad, taught):
    assert "decoder.block.1.layer.1.EncDecAttention" in amad.succeed("inspect", taught.model)


def test_overrides_of_a_checkpoint_are_refused(amad, taught):
    assert "overrides a key of a recipe" in amad.refuse("inspect", taught.model, "seed=1")


def test_a_missing_folder_is_named(amad, tmp_path):
    assert "absent" in amad.refuse("inspect", tmp_path / "absent")
