"""Folders of runs as training writes them, made in no time: the events are those of a real run."""

import json

from PIL import Image

from amad.records import RunRecords

PAIRS = (("encoder.self", 0, 1), ("decoder.cross", 0, 1))


def recipe(**changes):
    tree = {
        "task": "vqa",
        "output": "runs/one",
        "seed": 0,
        "data": {
            "root": "scenes",
            "image_cache_gib": 1.0,
            "train": {"questions": "q.json"},
            "validation": None,
        },
        "model": None,
        "teacher": "runs/teacher/model",
        "student": {"heads": 2},
        "objective": {
            "task": {"weight": 1.0},
            "logits": {"weight": 1.0, "temperature": 2.0},
            "attention": {"weight": 1.0, "variant": "kl", "temperature": 1.0},
        },
        "pairing": "uniform",
        "training": {"learning_rate": 1e-3, "max_steps": 40, "logging_steps": 10},
    }
    return tree | changes


def begin(records, tree, with_teacher=True, resumed_from=None):
    records.write("recipe", recipe=tree, with_teacher=with_teacher)
    records.write("environment", python="3.11", amad="0.1", torch="2.13", commit="abc", device="cpu")
    records.write("seeds", seed=tree["seed"])
    sizes = {"student": 100_000, "teacher": 800_000} if tree["teacher"] else {"model": 800_000}
    for who, parameters in sizes.items():
        records.write("model", who=who, parameters=parameters, stacks=[])
    if resumed_from is not None:
        records.write("note", resumed_from=f"checkpoint-{resumed_from}")
    pairs = [
        {"student": f"{stack}[{student}]", "teacher": f"{stack}[{teacher}]", "weight": 1.0}
        for stack, student, teacher in PAIRS
    ]
    records.write("note", pairs=pairs if with_teacher else [])


def weights(step, n_teachers=4, n_students=2):
    """Rows that sum to one; the first student head gains with the steps."""
    first = 0.5 + min(step, 1000) / 10_000
    return [[first, *[(1 - first) / (n_students - 1)] * (n_students - 1)] for _ in range(n_teachers)]


def log(records, step, with_teacher=True, loss=None):
    loss = 10.0 / step if loss is None else loss
    if not with_teacher:
        records.write("step", step=step, examples=step * 64, loss=loss, loss_task=loss, share_task=1.0)
        return
    records.write(
        "step", step=step, examples=step * 64, loss=loss, loss_task=loss, share_task=0.5, loss_attention=loss,
        share_attention=0.5, grad_norm=1.0,
    )  # fmt: skip
    for stack, student, teacher in PAIRS:
        records.write(
            "alignment", step=step, stack=stack, student_layer=student, teacher_layer=teacher, entropy=0.9,
            largest=0.6, coverage=1.5, collapse=0.97, weights=weights(step), coverage_by_head=[1.0, 2.0, 1.5, 1.5],
            alike=[[1.0, 0.97], [0.97, 1.0]],
        )  # fmt: skip


def score(records, step, value):
    records.write("metrics", step=step, examples=step * 64, eval_loss=1.0, eval_accuracy=value)


def end(records, value):
    records.write("timing", train_seconds=12.5, examples_seen=2560)
    records.write("metrics", final=True, accuracy=value)


def write_run(folder, steps=40, accuracy=80.0, with_teacher=True, **changes):
    """A whole run, logged and scored every ten steps; its score grows to ``accuracy``."""
    with RunRecords(folder / "records.jsonl") as records:
        begin(records, recipe(**changes), with_teacher)
        for step in range(10, steps + 1, 10):
            log(records, step, with_teacher)
            score(records, step, accuracy * step / steps)
        end(records, accuracy)
    return folder


def side(site, peaks, n_words):
    """Heads that look at one patch of four each, and otherwise at the first word."""
    heads = [
        {"largest": 0.75, "share": 0.75, "patches": [255 * (patch == peak) for patch in range(4)],
         "words": [0.25] + [0.0] * (n_words - 1)}
        for peak in peaks
    ]  # fmt: skip
    return {"site": site, "grid": [2, 2], "heads": heads}


def write_examples(run, text="what color is it?"):
    """Four examples of which the first has attention; the student is wrong in the first two."""
    folder = run / "examples"
    folder.mkdir()
    Image.new("RGB", (80, 80), "white").save(folder / "0.jpg")
    words = [*text.split(), ""]
    pair = {
        "student": side("encoder.self[0]", [0, 3], len(words)),
        "teacher": side("encoder.self[1]", [0, 1, 2, 3], len(words)),
        "words": words,
        "cosines": [[1.0, 0.1], [0.2, 0.2], [0.3, 0.3], [0.1, 1.0]],
    }
    said = (("blue", "red"), ("green", "red"), ("red", "red"), ("red", "red"))
    rows = [
        {
            "index": index, "text": text, "expected": "red", "student": student, "teacher": teacher,
            "student_score": float(student == "red"), "teacher_score": 1.0, "image": "0.jpg" if index == 0 else None,
            "attention": [pair] if index == 0 else None,
        }
        for index, (student, teacher) in enumerate(said)
    ]  # fmt: skip
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run
