import copy
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import RecipeError
from amad.recipe import Recipe, check_recipe, dump_yaml, load_recipe, read_yaml
from amad.recipe_data import DATA_OF_TASK


def minimal(**more):
    return {
        "task": "vqa",
        "output": "runs/x",
        "data": {"root": "d", "train": {"questions": "q.json"}},
        **more,
    }


def test_a_minimal_recipe_gets_the_papers_defaults():
    recipe = check_recipe(minimal())
    assert recipe.objective.attention is not None
    assert recipe.objective.attention.variant == "kl"
    assert recipe.objective.attention.temperature == 1.0
    assert recipe.pairing == "uniform"


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        (("objectiv",), "objective"),
        (("data", "holdoutt"), "holdout"),
        (("data", "train", "imagez"), "images"),
        (("objective", "attention", "temprature"), "temperature"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(path, nearest):
    tree = minimal(objective={"attention": {}})
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = 1
    with pytest.raises(RecipeError, match=rf"unknown key '{'.'.join(path)}': did you mean '{nearest}'"):
        check_recipe(tree)


def test_every_broken_rule_is_named_at_once():
    tree = minimal(seed=-1, nonsense=3)
    with pytest.raises(RecipeError) as caught:
        check_recipe(tree)
    assert "seed = -1" in str(caught.value)
    assert "nonsense" in str(caught.value)


def test_overrides_reach_nested_keys_with_yaml_values(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    recipe = load_recipe(path, ["objective.attention=null", "training.max_steps=7", "student.heads=0.5"])
    assert recipe.objective.attention is None
    assert recipe.training == {"max_steps": 7}
    assert recipe.student is not None
    assert recipe.student.heads == 0.5


@pytest.mark.parametrize("override", ["seed", "=3", "task.deeper=1", "seed=[1"])
def test_a_malformed_override_is_refused(tmp_path, override):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    with pytest.raises(RecipeError, match="override"):
        load_recipe(path, [override])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_what_is_no_yaml_mapping_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_more_to_train_on_is_a_list_of_files():
    tree = minimal()
    files = {"format": "visual-genome", "questions": "qa.json", "images": ["VG_100K", "VG_100K_2"]}
    tree["data"] |= {"validation": {"questions": "v.json"}, "also_train": [files, {"questions": "v2.json"}]}
    data = check_recipe(tree).data
    assert [one.images for one in data.also_train] == [["VG_100K", "VG_100K_2"], ["images"]]
    assert data.train.weight is None
    again = check_recipe(yaml.safe_load(check_recipe(tree).dump()))
    assert again.data == data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"also_train": [{"questions": "v.json"}], "holdout": {"share": 0.1}}, "instead of data.holdout"),
        ({"also_train": [{"questions": "v.json", "imagez": "i"}]}, "imagez': did you mean 'images'"),
        ({"also_train": {"questions": "v.json"}}, "data.also_train"),
        (
            {"also_train": [{"format": "visual-genome", "questions": "q", "annotations": "a"}]},
            "has no annotations",
        ),
        ({"also_train": [{"questions": "v.json", "weight": -1}]}, "data.also_train.0.weight"),
        ({"train": {"questions": "q.json", "images": []}}, "data.train.images"),
    ],
)
def test_more_to_train_on_is_refused_by_name(change, words):
    tree = minimal()
    tree["data"] |= change
    with pytest.raises(RecipeError, match=words):
        check_recipe(tree)


def test_validation_and_holdout_exclude_each_other():
    tree = minimal()
    tree["data"] |= {"validation": {"questions": "v.json"}, "holdout": {"share": 0.1}}
    with pytest.raises(RecipeError, match="not both"):
        check_recipe(tree)


def test_a_yaml_tag_that_builds_objects_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("task: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)


@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10**6),
            "pairing": st.sampled_from(["uniform", "last", {"encoder.self": [(0, 1), (1, 3)]}]),
            "student": st.fixed_dictionaries(
                {
                    "heads": st.integers(1, 64) | st.floats(0.01, 0.99),
                    "width": st.none() | st.integers(8, 1024),
                }
            ),
        }
    )
)
def test_what_is_stored_with_a_run_reads_back_as_the_same_recipe(more):
    recipe = check_recipe(minimal(**more))
    assert Recipe.model_validate(yaml.safe_load(recipe.dump())) == recipe


@given(
    st.from_regex(r"[-+]?[0-9]*\.?[0-9]+[eE][-+]?[0-9]+[-a-z]*", fullmatch=True)
    | st.text(max_size=6)
    | st.floats(-1, 1)
)
def test_what_is_dumped_reads_back_as_it_was(value):
    found = read_yaml(dump_yaml({"label": value}))["label"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2E4", 2e4),
        ("-1.5e+2", -150.0),
        ("1e", "1e"),
        ("1e-3-long", "1e-3-long"),
        ("12e4ab", "12e4ab"),
    ],
)
def test_numbers_with_exponents_are_numbers(tmp_path, text, value):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(minimal()) + f"training:\n  learning_rate: {text}\n")
    recipe = load_recipe(path, [f"training.weight_decay={text}"])
    assert recipe.training == {"learning_rate": value, "weight_decay": value}


@pytest.mark.parametrize(
    ("more", "start"),
    [
        (
            {"pairing": "middle"},
            "recipe: pairing = 'middle': input should be 'uniform', 'last', 'first', 'important' or "
            "'important-encoder', or ",
        ),
        ({"student": {"heads": "x"}}, "recipe: student.heads = 'x': input should be a valid integer"),
    ],
)
def test_a_value_that_fits_none_of_several_kinds_is_refused_in_one_line(more, start):
    with pytest.raises(RecipeError) as caught:
        check_recipe(minimal(**more))
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


DATA = {
    "vqa": {"root": "d", "train": {"questions": "q.json"}},
    "captions": {"root": "d", "train": {"captions": "c.json"}},
    "translation": {"root": "d"},
}


@pytest.mark.parametrize(
    ("task", "path", "nearest"),
    [
        ("captions", ("data", "validaton"), "validation"),
        ("captions", ("data", "train", "splits"), "split"),
        ("captions", ("data", "max_validation_exampels"), "max_validation_examples"),
        ("translation", ("data", "sourc"), "source"),
        ("translation", ("data", "image_cache_gb"), "image_cache_gib"),
    ],
)
def test_an_unknown_key_of_a_tasks_data_is_refused_with_its_own_nearest_key(task, path, nearest):
    tree = minimal(task=task, data=copy.deepcopy(DATA[task]))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = 1
    with pytest.raises(RecipeError) as caught:
        check_recipe(tree)
    assert str(caught.value) == f"recipe: unknown key '{'.'.join(path)}': did you mean '{nearest}'?"


def test_data_of_another_task_is_refused_by_the_keys_of_this_one():
    with pytest.raises(RecipeError) as caught:
        check_recipe(minimal(task="captions"))
    assert str(caught.value).splitlines() == [
        "recipe: key 'data.train.captions' is missing: every recipe must give it.",
        "recipe: unknown key 'data.train.questions': did you mean 'captions'?",
    ]


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"method": "mean", "variant": "token"}, "variant 'token' is none of method 'mean': kl, mse"),
        (
            {"method": "mean", "temperature": 0.5},
            "temperature is of method 'amad' and changes nothing in 'mean'",
        ),
        ({"relation_heads": 4}, "relation_heads is of method 'relations' and changes nothing in 'amad'"),
        ({"method": "squeezed", "head_weights": "importance"}, "'squeezed' is no sum over teacher heads"),
        ({"method": "means"}, r"objective.attention.method = 'means': input should be 'amad', 'one_to_one'"),
    ],
)
def test_an_attention_method_is_refused_what_it_has_not(attention, message):
    with pytest.raises(RecipeError, match=message) as caught:
        check_recipe(minimal(objective={"attention": attention}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [DATA["captions"], {"nonsense": 1}, 3])
def test_an_unknown_task_is_refused_alone(data):
    with pytest.raises(RecipeError) as caught:
        check_recipe(minimal(task="caption", data=data))
    assert str(caught.value) == (
        "recipe: task = 'caption': input should be 'vqa', 'captions', 'translation' or 'pretraining'."
    )


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("captions", {"train": {"captions": "c", "format": "karpathy"}}, "format karpathy needs a split"),
        ("captions", {"train": {"captions": "c", "format": "blip", "split": "val"}}, "blip has no split"),
        ("captions", {"train": 3}, "data.train = 3: input should be a valid dictionary"),
        ("translation", {"images": None}, "data.images = None: input should be a valid string"),
        ("translation", {"source": "de"}, "must be two languages and are both 'de'"),
        ("translation", {"prompt": "translate"}, r"data\.prompt must contain \{source\}"),
        ("translation", {"validation": {"captions": "c"}}, "data.validation = .*valid string"),
    ],
)
def test_rules_of_each_tasks_data(task, data, message):
    with pytest.raises(RecipeError, match=message) as caught:
        check_recipe(minimal(task=task, data=DATA[task] | data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", DATA)
def test_the_data_of_each_task_reads_back_as_stored(task):
    recipe = check_recipe(minimal(task=task, data=DATA[task]))
    assert type(recipe.data) is DATA_OF_TASK[task]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_recipe(yaml.safe_load(recipe.dump())) == recipe
    limit = next(key for key in type(recipe.data).model_fields if key.startswith("max_validation"))
    limited = check_recipe(minimal(task=task, data=DATA[task] | {limit: 3}))
    assert limited.data != recipe.data
    assert limited.data.whole() == recipe.data


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_that_ships_is_valid_and_validates(path):
    recipe = load_recipe(path)
    assert recipe.data.validates
    assert recipe.task == "pretraining" or recipe.training["generation_max_length"] > 1


def test_an_objective_without_any_weight_is_refused():
    nothing = {"task": {"weight": 0.0}, "logits": None, "attention": {"weight": 0}}
    with pytest.raises(RecipeError, match="no term of it has a weight above 0"):
        check_recipe(minimal(objective=nothing))
    assert check_recipe(minimal(objective=nothing | {"hidden": {}})).objective.hidden
