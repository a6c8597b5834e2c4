import numpy as np
import pytest
from PIL import Image

from amad.data.augmentation import OPERATIONS, CropAndFlip, distort
from amad.data.sampling import uniform


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


def drawn(*numbers):
    """The draws, and after them none."""
    return iter(numbers)


def place(name):
    return (OPERATIONS.index(name) + 0.5) / len(OPERATIONS)


def distorted(name, sign=0.0, pixels=None):
    """By one operation; the second is drawn and not done."""
    image = Image.fromarray(ramp(40, 30) if pixels is None else pixels)
    return np.asarray(distort(image, drawn(place(name), 0.0, sign, place("rotate"), 0.5)))


@pytest.mark.parametrize("name", ["identity", "brightness", "sharpness"])
def test_at_this_strength_three_operations_change_nothing(name):
    assert np.array_equal(distorted(name), ramp(40, 30))


@pytest.mark.parametrize(("name", "axis"), [("translate-x", 1), ("translate-y", 0)])
def test_a_shift_moves_by_five_pixels_and_fills_with_grey(name, axis):
    pixels = np.moveaxis(ramp(40, 30), axis, 0)
    left, right = (np.moveaxis(distorted(name, sign), axis, 0) for sign in (0.0, 0.9))
    assert np.array_equal(left[:-5], pixels[5:])
    assert np.array_equal(right[5:], pixels[:-5])
    assert (left[-5:] == 128).all()
    assert (right[:5] == 128).all()


@pytest.mark.parametrize(("name", "axis"), [("shear-x", 0), ("shear-y", 1)])
def test_a_shear_moves_each_line_by_its_distance(name, axis):
    # A line along the other axis, at 20 of 40: the line of pixels at distance d is moved by 0.15 d.
    pixels = np.zeros((40, 40, 3), np.uint8)
    (pixels if axis else pixels.swapaxes(0, 1))[20] = 255
    for sign, toward in ((0.0, -1), (0.9, 1)):
        view = distorted(name, sign, pixels)[..., 0].astype(float)
        view = view if axis else view.T
        for distance in (5, 15, 25, 35):
            line = np.where(view[:, distance] == 128, 0, view[:, distance])
            centre = (line * np.arange(40)).sum() / line.sum()
            assert centre == pytest.approx(20 + toward * 0.15 * (distance + 0.5), abs=0.02)


def test_a_turn_is_by_fifteen_degrees_about_the_middle():
    pixels = np.zeros((41, 41, 3), np.uint8)
    pixels[20, 36] = 255
    for sign, toward in ((0.0, -1), (0.9, 1)):
        view = distorted("rotate", sign, pixels)[..., 0].astype(float)
        view[view == 128] = 0
        rows, columns = np.indices(view.shape)
        row, column = (view * rows).sum() / view.sum(), (view * columns).sum() / view.sum()
        assert np.degrees(np.arctan2(row - 20, column - 20)) == pytest.approx(toward * 15, abs=1)
        assert np.hypot(row - 20, column - 20) == pytest.approx(16, abs=0.3)


def test_contrast_is_stretched_and_histograms_are_made_equal():
    dull = np.repeat(np.linspace(100, 150, 40).round().astype(np.uint8), 30).reshape(40, 30, 1).repeat(3, 2)
    stretched = distorted("autocontrast", pixels=dull)
    assert (stretched.min(), stretched.max()) == (0, 255)
    skewed = np.where(np.arange(1000) < 900, np.arange(1000) % 50, 255).astype(np.uint8)
    equal = distorted("equalize", pixels=skewed.reshape(25, 40, 1).repeat(3, 2))
    assert np.median(equal) > 2 * np.median(skewed)


def test_two_operations_are_drawn_each_as_often_and_done_half_of_the_time():
    done = []
    for index in range(400):
        pixels = np.random.default_rng(index).integers(50, 200, (20, 20, 3), dtype=np.uint8)
        plain = CropAndFlip(20, 20, seed=1)(pixels, 0, index)
        done.append(
            not np.array_equal(CropAndFlip(20, 20, seed=1, randaugment=True)(pixels, 0, index), plain)
        )
    # Seven of ten change something, each of two with one half: 1 - 0.65^2.
    assert 0.5 < np.mean(done) < 0.65


def test_where_a_view_lies_tells_nothing_of_what_is_asked_at_the_same_seed():
    """An item of matching is true where a draw of the same seed, epoch and index is small."""
    augment = CropAndFlip(8, 8, seed=3)
    image = ramp(160, 120)
    shown = np.array([augment(image, 0, index)[..., 0].mean() for index in range(600)])
    for number in range(4):
        asked = np.array([uniform(3, 0, index, number) for index in range(600)])
        assert abs(np.corrcoef(shown, asked)[0, 1]) < 0.15
