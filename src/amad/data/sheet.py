"""Examples of each split on one page, to see with one's own eyes whether pictures and texts belong together."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

from PIL import Image

from amad.data.captions import CaptionExample
from amad.data.images import open_image
from amad.data.regions import RegionFeatures, Regions
from amad.data.translation import TranslationExample
from amad.data.vqa import VqaExample

SHOWN = 24
WIDTH = 320

SheetExample = VqaExample | CaptionExample | TranslationExample
Item = TypeVar("Item")


def sheet_page(
    title: str, splits: Mapping[str, Sequence[SheetExample]], regions: Regions | None = None
) -> str:
    """An HTML page, images included, with up to 24 examples of each split, evenly spaced over it.

    Evenly, because files that lose step with each other in their middle begin well.

    Args:
        title: Its heading.
        splits: The examples of each split by its name; all images must be whole.
        regions: Draw the boxes of these in the place of images.

    Raises:
        DataError: if an image or its region features cannot be read.
    """
    sections = "".join(_section(name, examples, regions) for name, examples in splits.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{sections}</body></html>\n"
    )


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """``n`` of the items, evenly spaced from the first to the last; all where there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[position * (len(items) - 1) // (n - 1)] for position in range(n)]


def _section(name: str, examples: Sequence[SheetExample], regions: Regions | None) -> str:
    shown = spread(examples, SHOWN)
    cards = "".join(_card(example, regions) for example in shown)
    count = f"{len(shown)} of {len(examples):,}" if len(shown) < len(examples) else f"all {len(shown)}"
    return (
        f'<section><h2>{escape(name)} <small>{count}</small></h2><div class="cards">{cards}</div></section>'
    )


def _card(example: SheetExample, regions: Regions | None) -> str:
    if regions is not None:
        picture = _boxes(regions[example.stem])
    elif example.image is not None:
        picture = _picture(example.image)
    else:
        picture = '<div class="none">no image</div>'
    name = example.image_name or ""
    where = example.entry if name in example.entry else f"{example.entry} · {name}"
    return f'<article>{picture}<div class="said">{_said(example)}<p class="where">{escape(where)}</p></div></article>'


def _boxes(found: RegionFeatures) -> str:
    width, height = found.size
    corners = found.boxes * [width, height, width, height]
    drawn = "".join(
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'
        for x1, y1, x2, y2 in corners.tolist()
    )
    return f'<svg viewBox="0 0 {width} {height}"><rect class="edge" width="100%" height="100%"/>{drawn}</svg>'


def _picture(path: Path) -> str:
    image = open_image(path)
    # Small images are shown pixel by pixel, large ones smaller.
    if image.width > WIDTH:
        image = image.resize(
            (WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.save(file, "JPEG" if image.width > 96 else "PNG", quality=85)
    kind = "jpeg" if image.width > 96 else "png"
    coded = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind};base64,{coded}">'


def _said(example: SheetExample) -> str:
    if isinstance(example, VqaExample):
        scored = sorted(example.scores.items(), key=lambda item: -item[1])
        answers = "".join(f"<li>{escape(answer)} <small>{score:.1f}</small></li>" for answer, score in scored)
        return _text("h3", example.question) + (
            f"<ul>{answers}</ul>" if answers else '<p class="where">no answer</p>'
        )
    if isinstance(example, CaptionExample):
        captions = "".join(_text("li", caption) for caption in example.captions)
        return f"<ol>{captions}</ol>" if captions else '<p class="where">no caption</p>'
    return _text("p", example.source) + _text("p", example.target, ' class="target"')


def _text(tag: str, text: str, more: str = "") -> str:
    """Text in the direction that its script is written in."""
    return f'<{tag} dir="auto"{more}>{escape(text)}</{tag}>'


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.4 system-ui, "DejaVu Sans", sans-serif; margin: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .7rem; }
small, .where { color: gray; font-weight: normal; font-size: .8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem; }
article { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
img, svg, .none { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--soft); }
img[src*="image/png"] { image-rendering: pixelated; }
rect { fill: #48c2; stroke: #48c; vector-effect: non-scaling-stroke; } .edge { fill: none; stroke: gray; }
.none { display: grid; place-items: center; color: gray; }
.said { padding: .6rem .8rem; } h3 { font-size: .95rem; margin: 0 0 .3rem; }
p { margin: .3rem 0; } ul, ol { margin: 0; padding-left: 1.2rem; } .target { border-left: 3px solid var(--line);
padding-left: .6rem; } .where { margin: .5rem 0 0; }
"""
