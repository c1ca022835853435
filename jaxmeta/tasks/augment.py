"""Random changes of an image that leave its class: functions (key, image) -> image, for `few_shot(augment=...)`.

They are of one image, [H, W] or [H, W, channels], uint8 or float, and return one of its shape and dtype; `few_shot`
maps them over all that it draws. Those of dm-pix that take a key and an image fit as they are, and a function of one's
own does: `lambda key, image: image + jax.random.normal(key, image.shape)`.

"A Closer Look at Few-shot Classification", Chen et al. 2019, https://arxiv.org/abs/1904.04232, trains with all three.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import a_key, check_arguments, check_integer, check_number, check_pure
from jaxmeta.words import short

Augment: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]

__all__ = ["chain", "color_jitter", "random_crop", "random_flip"]

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG, Pillow and torchvision


def chain(augments: Sequence[Augment]) -> Augment:
    """One after the other, each with a key of its own.

    Args:
      augments: functions (key, image) -> image.

    Raises:
      ValueError: they are no list, or one is no function of a key and an image.

    >>> augment = chain([random_crop(4), random_flip()])
    >>> augment(jax.random.key(0), jnp.zeros((32, 32, 3), jnp.uint8)).shape
    (32, 32, 3)
    """
    if not isinstance(augments, Sequence) or not augments:
        raise ValueError(f"augments must be a list of functions (key, image) -> image, got {short(augments)}")
    for i, augment in enumerate(augments):
        check_arguments(f"augments[{i}]", augment, ("key", "image"), "a key and one image")

    def chained(key: jax.Array, image: jax.Array) -> jax.Array:
        for augment, own in zip(augments, jax.random.split(key, len(augments)), strict=True):
            image = augment(own, image)
        return image

    return chained


def random_crop(padding: int) -> Augment:
    """A window of the image's own size, anywhere in the image with `padding` zeros on every side.

    Args:
      padding: pixels, at least 1: the image moves by at most as many, up or down, left or right.

    Raises:
      ValueError: `padding` is no such integer.

    >>> random_crop(1)(jax.random.key(0), jnp.array([[1, 2], [3, 4]])).tolist()
    [[0, 1], [0, 3]]
    """
    check_integer("padding", padding, 1)

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        others = image.ndim - 2
        padded = jnp.pad(image, [(padding, padding)] * 2 + [(0, 0)] * others)
        corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (*corner, *(0,) * others), image.shape)

    return crop


def random_flip() -> Augment:
    """Left to right, every other time.

    >>> random_flip()(jax.random.key(1), jnp.array([[1, 2, 3]])).tolist()
    [[3, 2, 1]]
    """
    return lambda key, image: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def color_jitter(brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> Augment:
    """Another light: x ← b x, then x ← m + c (x − m), then x ← g + s (x − g).

    b is uniform between 1 − `brightness` and 1 + `brightness`, c and s likewise; g = .299 R + .587 G + .114 B is the
    grey of a pixel, m the mean of g over the image. Of grey images, [H, W] or [H, W, 1], g is x: nothing is saturated.
    uint8 images are rounded and clipped to 0 … 255 at the end; floats are not, for they may have any range.

    Args:
      brightness: how far b may be from 1, from 0 to 1.
      contrast: how far c may be.
      saturation: how far s may be.

    Raises:
      ValueError: a number that is none or not in this range, or, when called, an image that is no such image.

    >>> color_jitter()(jax.random.key(0), jnp.full((2, 2, 3), 100, jnp.uint8))[0, 0].tolist()
    [136, 136, 136]
    """
    widths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, width in widths.items():
        check_number(name, width)
        if width > 1:
            raise ValueError(f"{name} must be at most 1, got {short(width)}: no factor 1 - {name} is negative")

    def jitter(key: jax.Array, image: jax.Array) -> jax.Array:
        is_integer = image.dtype == jnp.uint8
        if not (is_integer or jnp.issubdtype(image.dtype, jnp.floating)) or image.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"image must be [H, W], [H, W, 1] or [H, W, 3], uint8 or float, got {short(image)}")
        x = image.astype(jnp.float32) if is_integer else image
        reach = jnp.array(list(widths.values()), x.dtype)
        b, c, s = 1 + reach * jax.random.uniform(key, (3,), x.dtype, -1, 1)
        red, green, blue = _GREY

        def grey(x: jax.Array) -> jax.Array:
            is_grey = image.shape[2:] != (3,)
            return x if is_grey else red * x[..., :1] + green * x[..., 1:2] + blue * x[..., 2:]

        x = b * x
        mean = jnp.mean(grey(x))
        x = mean + c * (x - mean)
        x = grey(x) + s * (x - grey(x))
        return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8) if is_integer else x

    return jitter


def check_augment(augment: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """A pure function (key, image) -> image of the same shape and dtype."""
    check_arguments("augment", augment, ("key", "image"), "a key and one image, as in lambda key, image: ...")
    image = jax.ShapeDtypeStruct(shape, dtype)
    _, returned = check_pure("augment", augment, a_key(), image)
    if getattr(returned, "shape", None) != shape or returned.dtype != dtype:
        raise ValueError(
            f"augment must return an image like the one it is given, {short(image)}, got {short(returned)}: "
            ".astype(image.dtype) if it computes in floats"
        )
