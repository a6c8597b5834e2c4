import numpy as np
import pytest
from PIL import Image

from amad.data.augmentation import CropAndFlip


def ramp(width, height):
    """Red says the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width).round()
    pixels[..., 1] = np.linspace(0, 250, height).round()[:, None]
    return pixels


def seen(view, width, height):
    """Columns and rows of the image that a view shows, as shares."""
    left, right = np.sort(view[:, [0, -1], 0].astype(float).mean(0)) / 250
    upper, lower = view[[0, -1], :, 1].astype(float).mean(1) / 250
    return (right - left) * width, (lower - upper) * height


@pytest.mark.parametrize(("width", "height"), [(200, 150), (100, 200)])
def test_views_are_parts_of_half_the_area_or_more_with_sides_near_to_equal(width, height):
    augment = CropAndFlip(32, 48)
    areas, mirrored = [], 0
    for index in range(200):
        view = augment(ramp(width, height), 0, index)
        assert view.shape == (32, 48, 3)
        assert view.dtype == np.uint8
        columns, rows = seen(view, width, height)
        areas.append(columns * rows / (width * height))
        mirrored += int(view[0, 0, 0] > view[0, -1, 0])
        assert 0.7 < columns / rows < 1.4
    # The outermost pixels are seen half: a view looks a little smaller than it is.
    assert 0.45 < min(areas) < 0.55
    assert max(areas) > (0.9 if height == 150 else 0.6)
    assert 70 < mirrored < 130


def test_a_view_depends_on_seed_epoch_and_index_alone():
    pixels = ramp(40, 30)
    augment = CropAndFlip(8, 8, seed=1)
    first = augment(pixels, 2, 3)
    augment(pixels, 5, 6)
    assert np.array_equal(augment(pixels, 2, 3), first)
    others = [augment(pixels, 3, 3), augment(pixels, 2, 4), CropAndFlip(8, 8, seed=2)(pixels, 2, 3)]
    assert not any(np.array_equal(first, other) for other in others)


def test_an_image_far_from_square_gives_its_middle():
    wide = ramp(300, 30)
    for index in range(4):
        view = CropAndFlip(16, 16)(wide, 0, index)
        middle = np.asarray(
            Image.fromarray(wide).crop((130, 0, 170, 30)).resize((16, 16), Image.Resampling.BICUBIC)
        )
        assert np.array_equal(view, middle) or np.array_equal(view, middle[:, ::-1])


def test_the_whole_image_unmirrored_is_a_plain_bicubic_resize():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    plain = np.asarray(Image.fromarray(pixels).resize((10, 10), Image.Resampling.BICUBIC))
    views = [CropAndFlip(10, 10, smallest=1.0)(pixels, 0, index) for index in range(200)]
    assert any(np.array_equal(view, plain) for view in views)
    assert any(np.array_equal(view, plain[:, ::-1]) for view in views)
