import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, ViTImageProcessorPil

from amad.data.images import ImageTransform, load_image_transform, new_image_transform, open_image
from amad.errors import CheckpointError, DataError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(size={"height": 20, "width": 24}),
        ViTImageProcessorPil(size={"height": 20, "width": 24}, do_normalize=False, resample=0),
        ViTImageProcessorPil(size={"height": 20, "width": 24}, do_rescale=False),
        BlipImageProcessorPil(size={"height": 16, "width": 16}),
        CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
        ViTImageProcessorPil(do_resize=False),
    ],
    ids=["vit", "rescaled only", "normalised only", "blip", "clip with a crop", "no resizing"],
)
def test_a_batch_comes_out_as_the_processor_alone_makes_it(processor):
    images = [noise(30, 40, 3), noise(30, 40, 3)[::-1].copy()]
    expected = torch.as_tensor(np.array(processor(images)["pixel_values"]))
    transform = ImageTransform(processor)
    scale = float(expected.abs().max())
    torch.testing.assert_close(transform(images), expected.float(), rtol=0, atol=1e-6 * scale)
    pictures = [Image.fromarray(image) for image in images]
    torch.testing.assert_close(transform(pictures), expected.float(), rtol=0, atol=1e-6 * scale)


def test_resizing_once_before_and_not_again_changes_nothing():
    transform = new_image_transform(12, 18)
    picture = Image.fromarray(noise(30, 40, 3))
    resized = transform.resize(picture)
    assert resized.shape == (12, 18, 3)
    assert torch.equal(transform([resized]), transform([picture]))


def test_black_and_white_are_minus_one_and_one_by_default():
    pixels = new_image_transform(4)([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    assert pixels.shape == (2, 3, 4, 4)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_the_input_is_not_changed():
    image = noise(4, 4, 3)
    before = image.copy()
    new_image_transform(4)([image])
    assert (image == before).all()


def test_saved_and_loaded_it_does_the_same(tmp_path):
    transform = new_image_transform(12, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    transform.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {
        "height": 12,
        "width": 12,
    }
    loaded = load_image_transform(tmp_path)
    assert loaded.image_size == (12, 12)
    assert torch.equal(loaded([noise(30, 40, 3)]), transform([noise(30, 40, 3)]))


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil"])
def test_whatever_back_end_a_checkpoint_was_saved_with_pillow_reads_it(tmp_path, name):
    settings = {"image_processor_type": name, "size": {"height": 12, "width": 10}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded, image = load_image_transform(tmp_path), noise(30, 40, 3)
    assert type(loaded.processor) is ViTImageProcessorPil
    assert torch.equal(loaded([image]), new_image_transform(12, 10)([image]))


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no preprocessor_config"):
        load_image_transform(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no image processor"):
        load_image_transform(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_proc')
    with pytest.raises(CheckpointError, match="names no image processor"):
        load_image_transform(tmp_path)


def test_images_of_different_size_make_no_batch():
    transform = ImageTransform(ViTImageProcessorPil(do_resize=False))
    with pytest.raises(DataError, match=r"come out as \[\(3, 4, 4\), \(3, 8, 8\)\]"):
        transform([noise(4, 4, 3), noise(8, 8, 3)])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_is_opened_as_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new(mode, (5, 3)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "image.png")
    pixels = np.asarray(open_image(tmp_path / "image.png"))
    assert np.array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "image.tif")
    with pytest.raises(
        DataError, match=rf"image\.tif: pixels must be of 8 bits and are of .* \(mode {mode}\)"
    ):
        open_image(tmp_path / "image.tif")


def test_settings_are_equal_for_equal_pixels_alone(tmp_path):
    one = new_image_transform(8)
    one.save_pretrained(tmp_path)
    assert load_image_transform(tmp_path).settings == one.settings
    assert new_image_transform(8, 9).settings != one.settings
    other = new_image_transform(8, mean=(0.4, 0.5, 0.5)).settings
    assert [key for key in other if other[key] != one.settings[key]] == ["image_mean"]


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_truncated_image_is_refused_by_name(tmp_path, kind, share):
    path = tmp_path / f"image.{kind}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    open_image(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"image\.{kind}: not a whole image"):
        open_image(path)


def test_a_missing_image_a_folder_and_a_text_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such image"):
        open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="not a whole image"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="not a whole image"):
        open_image(tmp_path / "text.png")


def test_an_image_made_to_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(DataError, match=r"large\.png: not a whole image"):
        open_image(tmp_path / "large.png")
