"""Images: opened, resized once, turned into the numbers that a model reads."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import BlipImageProcessorPil, ViTImageProcessorPil

# By its module: without torchvision, transformers 5.17 exports a placeholder that refuses Pillow too.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from amad.errors import CheckpointError, DataError

Pixels = UInt8[np.ndarray, "row column 3"]


def open_image(path: Path) -> Image.Image:
    """The image, with every pixel decoded, as RGB.

    Transparency is dropped, not blended, and an orientation tag is not applied: both as in the original data
    pipelines.

    Raises:
        DataError: if the file is missing, truncated or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return decoded(path)


_NO_PICTURES = {"I": "32 bits", "F": "floating point"}


def decoded(path: Path) -> Image.Image:
    """``open_image`` for threads, around all of which the caller makes errors of Pillow's warnings."""
    try:
        with Image.open(path) as image:
            if image.mode in _NO_PICTURES:
                raise DataError(
                    f"{path}: pixels must be of 8 bits and are of {_NO_PICTURES[image.mode]} (mode {image.mode}), of "
                    "which nobody knows the range. Convert the image, or leave it out (data.on_bad_example=skip)."
                )
            if image.mode.startswith("I;16"):
                # Pillow's own conversion makes everything above 255 white.
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such image. Check the image folder and the file name template."
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: not a whole image ({error}). Fetch the file again or leave it out (data.on_bad_example=skip)."
        ) from None


_STEPS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


def _plain(value: Any) -> Any:
    """A value that can be compared, whatever classes it is in."""
    return list(value) if isinstance(value, list | tuple) else value if value is None else str(value)


class ImageTransform:
    """What ``preprocessor_config.json`` says, done to a batch.

    Wraps any image processor of transformers that runs on Pillow. The usual case, resizing to one height and
    width without cropping or padding, is done on the whole batch as one array, with equal results; ``resize``
    can then be applied once, before an image is cached, because resizing again to the same size changes
    nothing. Any other processor is called as it is.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        size = getattr(processor, "size", None)
        height, width = getattr(size, "height", None), getattr(size, "width", None)
        crops = getattr(processor, "do_center_crop", None) or getattr(processor, "do_pad", None)
        resizes = bool(getattr(processor, "do_resize", None))
        # Only processors that change no step of the common back-end may take the short way.
        plain = type(processor)._preprocess is ViTImageProcessorPil._preprocess
        self._size = (
            (int(height), int(width)) if plain and resizes and height and width and not crops else None
        )

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None if they depend on the image."""
        return self._size

    @property
    def settings(self) -> dict[str, Any]:
        """What decides on the pixels that come out: the processor's size and steps."""
        processor = self.processor
        found: dict[str, Any] = {"image_size": self.image_size}
        for step, values in _STEPS.items():
            done = bool(getattr(processor, step, False))
            found[step] = done
            found |= {value: _plain(getattr(processor, value, None)) if done else None for value in values}
        return found

    def resize(self, image: Image.Image) -> Pixels:
        """The image as an array, at the size of ``image_size``; at its own size where that is None."""
        if self._size is not None and (image.height, image.width) != self._size:
            height, width = self._size
            image = image.resize((width, height), resample=Image.Resampling(int(self.processor.resample)))
        return np.asarray(image)

    def __call__(self, images: Sequence[Pixels | Image.Image]) -> Float[Tensor, "batch 3 height width"]:
        """The images as a float32 tensor, rescaled and normalised as the processor says.

        Raises:
            DataError: if the images come out at different sizes and so make no batch.
        """
        if self._size is not None:
            height, width = self._size
            arrays = [
                image
                if isinstance(image, np.ndarray) and image.shape == (height, width, 3)
                else self.resize(image if isinstance(image, Image.Image) else Image.fromarray(image))
                for image in images
            ]
            return self._normalise(torch.from_numpy(np.stack(arrays)))
        # As pictures, because of a small array the processor cannot tell which axis holds the channels.
        pictures = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
        outputs = [torch.as_tensor(pixels) for pixels in self.processor(pictures)["pixel_values"]]
        sizes = sorted({tuple(pixels.shape) for pixels in outputs})
        if len(sizes) > 1:
            raise DataError(
                f"images of one batch must come out at one size but come out as {sizes}. "
                "Give a height and a width in preprocessor_config.json."
            )
        return torch.stack(outputs).float()

    def _normalise(self, pixels: UInt8[Tensor, "batch row column 3"]) -> Float[Tensor, "batch 3 row column"]:
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # One multiplication and one addition for both steps: v * scale / std - mean / std.
        scale = torch.full(
            (3,), self.processor.rescale_factor if self.processor.do_rescale else 1.0, dtype=torch.float64
        )
        shift = torch.zeros(3, dtype=torch.float64)
        if self.processor.do_normalize:
            mean = torch.tensor(self.processor.image_mean, dtype=torch.float64)
            std = torch.tensor(self.processor.image_std, dtype=torch.float64)
            scale, shift = scale / std, -mean / std
        return values.mul_(scale.float()[:, None, None]).add_(shift.float()[:, None, None])

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``preprocessor_config.json`` into ``folder``."""
        self.processor.save_pretrained(str(folder))


def new_image_transform(
    height: int,
    width: int | None = None,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> ImageTransform:
    """Resize, bilinear, to ``height`` by ``width`` (square when absent); by default then to [-1, 1]."""
    size = {"height": height, "width": width or height}
    return ImageTransform(ViTImageProcessorPil(size=size, image_mean=list(mean), image_std=list(std)))


def new_blip_image_transform(size: int) -> ImageTransform:
    """BLIP's: resize, bicubic, to a square, then by the mean and deviation of CLIP's images."""
    return ImageTransform(BlipImageProcessorPil(size={"height": size, "width": size}))


def load_image_transform(folder: Path | str, size: int | None = None) -> ImageTransform:
    """The transform that a checkpoint folder's ``preprocessor_config.json`` describes, run on Pillow.

    Args:
        folder: The checkpoint.
        size: Height and width in the place of its own.

    Raises:
        CheckpointError: if the folder has none or it cannot be read.
    """
    if not (Path(folder) / "preprocessor_config.json").is_file():
        raise CheckpointError(
            f"{folder}: has no preprocessor_config.json, so it is not known how images become numbers. "
            "Give the folder of a checkpoint that was saved with its image processor."
        )
    try:
        changes = {} if size is None else {"size": {"height": size, "width": size}}
        return ImageTransform(AutoImageProcessor.from_pretrained(str(folder), backend="pil", **changes))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json names no image processor that can be loaded ({error}). "
            "Save the checkpoint again with its image processor."
        ) from None
