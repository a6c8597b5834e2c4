import pytest
from PIL import Image

from amad.data import decoding
from amad.data.decoding import broken_images


@pytest.fixture
def images(tmp_path):
    """Four images: the second is truncated, the third is text."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.effect_noise((32, 32), 60).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[2].write_text("no image")
    return paths


def test_broken_images_are_named_with_what_is_wrong(images, monkeypatch):
    monkeypatch.setattr(decoding, "PORTION", 3)
    broken = broken_images([*images, *images])
    assert list(broken) == images[1:3]
    assert all(f"{path}: not a whole image" in problem for path, problem in broken.items())


def test_the_wait_counts_every_file_once(images):
    seen = []

    class Watch:
        def __init__(self, description, total):
            assert (description, total) == ("decoding images", 4)

        def __enter__(self):
            return lambda done, whole: seen.append((done, whole))

        def __exit__(self, *_):
            return None

    broken_images([*images, images[0]], Watch)
    assert seen[-1] == (4, 4)


def test_an_image_that_pillow_warns_of_is_broken_in_every_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path in paths:
        Image.new("RGB", (12, 12)).save(path)
    assert list(broken_images(paths)) == paths
