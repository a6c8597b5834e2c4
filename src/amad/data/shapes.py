"""A set of coloured shapes, written in the official formats, so that it is read by the loaders of the real
sets.

    OUT/images/shapes_{split}_{image_id:012d}.png      36 x 36, RGB
    OUT/questions_{split}.json annotations_{split}.json     VQA v2
    OUT/captions_{split}.json                          COCO captions, five per image
    OUT/{split}.en {split}.de image_splits.{split}.txt      Multi30K, one line per image
    OUT/baselines.json                                 what is reached without looking
    OUT/info.json                                      how it was made

``{split}`` is ``train`` or ``val``.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amad.data.baselines import Baselines, answer_baselines
from amad.data.paths import new_folder
from amad.data.shapes_render import IMAGE_PIXELS, render
from amad.data.shapes_scene import COLOURS, SHAPES, Scene, draw_scenes
from amad.data.shapes_text import CAPTIONS_PER_IMAGE, BalancedChoice, Question, sentences
from amad.data.vqa_files import N_ANNOTATORS, VqaExample
from amad.errors import DataError

IMAGE_NAME = "shapes_{split}_{image_id:012d}.png"
FORMAT_VERSION = 1
_CHUNK = 512


@dataclass(frozen=True)
class ShapesSummary:
    """What was written: counts per split, and what is reached without looking."""

    n_images: dict[str, int]
    n_questions: dict[str, int]
    baselines: Baselines


def write_shapes(
    out: Path,
    n_images: int,
    seed: int = 0,
    validation_share: float = 0.1,
    questions_per_image: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShapesSummary:
    """Write a set of ``n_images`` scenes, of which a share is the ``val`` split.

    Equal arguments give equal bytes, under one version of Pillow and its zlib. The set appears whole: it is
    written under a temporary name beside ``out`` and renamed.

    Args:
        out: The folder to make; it must not be there yet, or be empty.
        n_images: In both splits together, at least 2.
        seed: Of everything.
        validation_share: Share of the images in ``val``; at least one image is in each split.
        questions_per_image: At most so many; a scene without enough different questions gets fewer.
        on_progress: Called now and then with images done and in all.

    Raises:
        DataError: if ``out`` is not empty, or a number is out of range.
    """
    _check(n_images, seed, validation_share, questions_per_image)
    n_validation = min(max(1, round(validation_share * n_images)), n_images - 1)
    n_of = {"train": n_images - n_validation, "val": n_validation}
    examples: dict[str, list[VqaExample]] = {}
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        # One for both splits: a small one on its own would follow what scenes happen to offer.
        choose = BalancedChoice()
        done = 0
        for stream, (split, n_split) in enumerate(n_of.items()):
            random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
            writer = _SplitWriter(folder, split, done + 1, choose, questions_per_image)
            scenes = draw_scenes(n_split, random)
            tie_breaks = random.integers(1 << 30, size=(n_split, questions_per_image)).tolist()
            for start in range(0, n_split, _CHUNK):
                writer.add(scenes[start : start + _CHUNK], tie_breaks[start : start + _CHUNK])
                if on_progress is not None:
                    on_progress(done + min(start + _CHUNK, n_split), n_images)
            writer.finish()
            examples[split] = writer.examples
            done += n_split
        baselines = answer_baselines(examples["train"], examples["val"])
        info = {
            "description": "Coloured shapes on a 3 x 3 grid, generated.",
            "format_version": FORMAT_VERSION,
            "n_images": n_of,
            "seed": seed,
            "validation_share": validation_share,
            "questions_per_image": questions_per_image,
            "image_name": IMAGE_NAME,
            "image_pixels": IMAGE_PIXELS,
            "colors": list(COLOURS),
            "shapes": list(SHAPES),
        }
        _write_json(folder / "info.json", info)
        _write_json(folder / "baselines.json", asdict(baselines))
    return ShapesSummary(n_of, {split: len(rows) for split, rows in examples.items()}, baselines)


class _SplitWriter:
    """Collects the texts of one split while its images are written."""

    def __init__(
        self, folder: Path, split: str, first_image_id: int, choose: BalancedChoice, questions_per_image: int
    ) -> None:
        self.folder, self.split = folder, split
        self.examples: list[VqaExample] = []
        self._next_image_id = first_image_id
        self._questions_per_image = questions_per_image
        self._choose = choose
        self._images: list[dict[str, Any]] = []
        self._captions: list[tuple[int, str]] = []
        self._pairs: list[tuple[str, str]] = []
        self._asked: list[tuple[int, int, Question]] = []

    def add(self, scenes: list[Scene], tie_breaks: list[list[int]]) -> None:
        """Write the images of some scenes, and ask and say something about each."""
        for scene, pixels, ties in zip(scenes, render(scenes), tie_breaks, strict=True):
            image_id, self._next_image_id = self._next_image_id, self._next_image_id + 1
            name = IMAGE_NAME.format(split=self.split, image_id=image_id)
            (self.folder / "images" / name).write_bytes(_png(pixels))
            self._images.append(
                {
                    "id": image_id,
                    "file_name": name,
                    "height": IMAGE_PIXELS,
                    "width": IMAGE_PIXELS,
                    "license": 1,
                }
            )
            for number, question in enumerate(self._choose(scene, self._questions_per_image, ties)):
                self._asked.append((image_id * 1000 + number, image_id, question))
            said = sentences(scene)
            self._pairs.append(said[ties[0] % len(said)])
            self._captions += [
                (image_id, said[(ties[0] + step) % len(said)][0]) for step in range(CAPTIONS_PER_IMAGE)
            ]

    def finish(self) -> None:
        """Write the texts."""
        head = {
            "info": {"description": "Coloured shapes, generated.", "version": str(FORMAT_VERSION)},
            "license": {"name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
            "data_type": "shapes",
            "data_subtype": self.split,
        }
        _write_rows(
            self.folder / f"questions_{self.split}.json",
            {**head, "task_type": "Open-Ended"},
            questions=(
                {"image_id": image_id, "question": question.text, "question_id": question_id}
                for question_id, image_id, question in self._asked
            ),
        )
        _write_rows(
            self.folder / f"annotations_{self.split}.json",
            head,
            annotations=(
                {
                    "question_type": question.kind,
                    "multiple_choice_answer": question.answer,
                    "answers": _ten_times(question.answer),
                    "image_id": image_id,
                    "answer_type": question.answer_type,
                    "question_id": question_id,
                }
                for question_id, image_id, question in self._asked
            ),
        )
        _write_rows(
            self.folder / f"captions_{self.split}.json",
            {"info": head["info"], "licenses": [{"id": 1, **head["license"]}]},  # type: ignore[dict-item]
            images=self._images,
            annotations=(
                {"image_id": image_id, "id": number, "caption": caption}
                for number, (image_id, caption) in enumerate(self._captions, 1)
            ),
        )
        english, german = zip(*self._pairs, strict=True)
        _write_lines(self.folder / f"{self.split}.en", english)
        _write_lines(self.folder / f"{self.split}.de", german)
        names = (image["file_name"] for image in self._images)
        _write_lines(self.folder / f"image_splits.{self.split}.txt", names)
        self.examples = [
            VqaExample(question_id, image_id, question.text, None, {question.answer: 1.0}, None)
            for question_id, image_id, question in self._asked
        ]


def _check(n_images: int, seed: int, validation_share: float, questions_per_image: int) -> None:
    if n_images < 2:
        raise DataError(f"a set needs at least 2 images, one per split, but {n_images} were asked for.")
    if seed < 0:
        raise DataError(f"the seed must not be negative but is {seed}.")
    if not 0 < validation_share < 1:
        raise DataError(f"the validation share must be between 0 and 1 but is {validation_share}. Try 0.1.")
    if not 1 <= questions_per_image <= 10:
        raise DataError(f"questions per image must be from 1 to 10 but are {questions_per_image}.")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _ten_times(answer: str) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": annotator}
        for annotator in range(1, N_ANNOTATORS + 1)
    ]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _write_rows(path: Path, head: Mapping[str, Any], **lists: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object: what ``head`` has, then long lists, of which only a part is in memory as text."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1])
        for key, rows in lists.items():
            file.write(f",{json.dumps(key)}:[")
            for number, chunk in enumerate(_chunks(rows)):
                text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
                file.write(("," if number else "") + text[1:-1])
            file.write("]")
        file.write("}\n")


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, 1024)):
        yield chunk


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
