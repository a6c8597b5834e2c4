"""What reading a set of the size of VQA v2 takes: seconds, and memory beyond that of the libraries.

    python benchmarks/read_vqa.py FOLDER [--shuffled]

Makes two files of its form and size up in FOLDER (443,757 questions, ten answers each, 82,783 images; 392 MB, seed 0),
with empty images, unless they are there. Reads them into an empty store and from it, as a recipe does, each in a
process of its own. With ``--shuffled`` the annotations are in another order than the questions, which is the worst
case; official files have one order.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_QUESTIONS, N_IMAGES = 443_757, 82_783


def write_files(folder: Path, shuffled: bool) -> tuple[Path, Path]:
    """The files of questions and of annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = folder / "questions.json"
    annotations = folder / ("annotations-shuffled.json" if shuffled else "annotations.json")
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        # Of images only the names are read here.
        for number in range(1, N_IMAGES + 1):
            (images / f"COCO_train2014_{number:012d}.jpg").touch()
    drawn = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    answers = ["yes", "no", *(f"a{i}" for i in range(3000))]
    if not questions.exists():
        rows = [
            {
                "image_id": i % N_IMAGES + 1,
                "question": f"What {' '.join(drawn.choices(words, k=5))}?",
                "question_id": i,
            }
            for i in range(N_QUESTIONS)
        ]
        questions.write_text(json.dumps({"data_subtype": "train2014", "questions": rows}))
    if not annotations.exists():
        order = list(range(N_QUESTIONS))
        if shuffled:
            drawn.shuffle(order)
        with annotations.open("w") as file:
            file.write('{"annotations": [')
            for number, i in enumerate(order):
                given = drawn.choices(answers, k=10)
                row = {
                    "question_type": "what is",
                    "multiple_choice_answer": given[0],
                    "answers": [
                        {"answer": one, "answer_confidence": "yes", "answer_id": k}
                        for k, one in enumerate(given, 1)
                    ],
                    "image_id": i % N_IMAGES + 1,
                    "answer_type": "other",
                    "question_id": i,
                }
                file.write((", " if number else "") + json.dumps(row))
            file.write("]}")
    return questions, annotations


def read(questions: Path, annotations: Path, store: Path) -> None:
    """Read the files as a recipe does, and print what it took."""
    import datasets

    from amad.recipe_data import VqaData
    from amad.training.splits import VqaSplits

    datasets.config.HF_DATASETS_CACHE = store
    data = VqaData(
        root=str(questions.parent), train={"questions": questions.name, "annotations": annotations.name}
    )
    before, start = _peak_mib(), time.perf_counter()
    n_questions = len(VqaSplits(data).train)
    seconds = time.perf_counter() - start
    sys.stdout.write(
        json.dumps(
            {"questions": n_questions, "seconds": round(seconds, 1), "mib": round(_peak_mib() - before)}
        )
        + "\n"
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    files = write_files(given.folder, given.shuffled)
    if given.store is not None:
        read(*files, given.store)
        return
    with tempfile.TemporaryDirectory() as store:
        for what in ("first reading", "from the store"):
            sys.stdout.write(f"{what}: ")
            sys.stdout.flush()
            subprocess.run([sys.executable, *sys.argv, "--store", store], check=True)


if __name__ == "__main__":
    main()
