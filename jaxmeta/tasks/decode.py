"""An image file -> a square of uint8, whatever the file holds: rotated as the camera says, in one colour space."""

import os
from typing import IO, Any

import numpy as np

# What torchvision's ImageFolder takes for images: `IMG_EXTENSIONS` there.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
COLOURS = {"RGB": (3,), "L": ()}  # the axes of a pixel

# By content, as names lie; others of Pillow's formats start programs (EPS) or are no photographs.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def decode(path: str | os.PathLike[str], size: int, color: str) -> np.ndarray:
    """uint8 [size, size, 3], or [size, size] in grey: the middle square of an image, its shorter side scaled to `size`.

    Any error that Pillow raises for what is broken is raised here.
    """
    from PIL import Image, ImageOps

    with open(path, "rb") as file, _open(file) as image:
        limit = Image.MAX_IMAGE_PIXELS  # above twice as many Pillow refuses by itself, before anything is unpacked
        if limit is not None and image.width * image.height > limit:
            raise ValueError(f"{image.width} x {image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS, {limit}")
        image.draft(color, (2 * size, 2 * size))  # a JPEG is decoded no larger than it is needed
        plain = _convert(ImageOps.exif_transpose(image), color)
        side = min(plain.size)
        left, top = (plain.width - side) / 2, (plain.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(plain.resize((size, size), Image.Resampling.LANCZOS, box))


def _open(file: IO[bytes]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:  # whose text is the whole path
        raise ValueError("no image, or of a format that is not read") from None


def _convert(image: Any, color: str) -> Any:
    """To grey or RGB: 16 bits are scaled, where Pillow would clip, and what is transparent shows white paper."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose range is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65_535:
            raise ValueError("pixels have 32 bits: save it with 8 or 16 bits")
        image = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    elif image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert(color)
