"""The order of training is a function of the seed alone."""

import pytest

from amad.records import read_records


def losses(amad, path, output, *overrides):
    amad.document("train", path, f"output={output}", *overrides)
    return [event["loss"] for event in read_records(f"{output}/records.jsonl") if "loss" in event]


@pytest.mark.parametrize("task", ["vqa", "captions"])
def test_workers_change_nothing_and_the_seed_does(amad, teacher_tree, scenes, task):
    # Two epochs: in the second, other answers are sampled and other captions come first.
    teacher_tree["training"] |= {"max_steps": 6, "per_device_train_batch_size": 54}
    if task == "captions":
        files = {name: {"captions": f"captions_{name}.json"} for name in ("train", "val")}
        teacher_tree["task"] = task
        teacher_tree["data"] = {"root": str(scenes), "train": files["train"], "max_input_tokens": 4}
    teacher_tree["data"].pop("validation", None)
    path = amad.write(teacher_tree)
    alone = losses(amad, path, "none")
    assert losses(amad, path, "two", "training.dataloader_num_workers=2") == alone
    assert losses(amad, path, "again") == alone
    assert losses(amad, path, "other", "seed=1") != alone
