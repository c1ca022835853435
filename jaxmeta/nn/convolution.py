"""Convolution that is fast, and exact, where every task may have its own kernel and is differentiated twice.

In two ways, of which `is_wide` chooses one by shapes:

- Patches (`nn/patches.py`), times one matrix: slices, a concatenation and a product, which stay that under
  `vmap`, `scan`, and any mix of forward and reverse mode. Where each task has its own kernel it is a batched product,
  and `lax.conv_general_dilated` a grouped convolution, an order of magnitude slower on a CPU.
- XLA's own convolution, which packs patches in a processor's cache and never writes them. It is fast on a CPU as long
  as its kernel is shared, and only that way round: JAX's transpose rules make of the derivative of a kernel's gradient
  a convolution whose window is the image. But a convolution is bilinear, and so are its two gradients, and the
  derivatives of each of the three are the two others:

      y = conv(x, k)                <y, v> = <x, image(v, k)> = <k, kernel(x, v)>

  So these are three primitives, closed under derivatives of any order and mode, and each is a plain convolution.
  Where the kernel is batched they become patches.

Of a large product's rate, on one core, forward / to the images / to the kernel, 10 images (`lax` in chunks of 4 there):

| side, C -> F      | 84, 32 -> 32    | 84, 64 -> 64    | 42, 160 -> 160  | 21, 320 -> 320  |
|-------------------|-----------------|-----------------|-----------------|-----------------|
| patches           | .50 / .42 / .45 | .52 / .47 / .47 | .76 / .69 / .72 | .93 / .82 / .97 |
| `lax`             | .99 / .95 / .75 | .90 / .92 / .85 | .95 / .93 / .76 | .91 / .90 / .90 |

So it is the better way where a device has a core and channels are 16 or more, or patches more than a cache holds: 75
images of 84 pixels and 3 channels take 103 ms forward by patches and 70 by `lax`, 32 and 12 to the kernel.

One program with several threads is another matter: XLA's convolution of narrow layers keeps one of them busy. There it
is chosen where features are many and large, for the memory: in a step of ResNet-12 a fifth less, as fast.

Where devices share the images of a task, see `outer.over_tasks`, the compiler shares what is between convolutions; what
a convolution is to each of them is said here, by `_of_shares`, so that the chunks of a kernel's gradient are a
device's own, and one all-reduce sums it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmeta.devices import EVERYWHERE, SHARED, on_each, summed
from jaxmeta.nn.patches import (
    Padding,
    Taps,
    num_shares,
    patches_of,
    product,
    product_by_rows,
    taps_of,
)
from jaxmeta.nn.products import varying

Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]

_CACHE, _CHUNK = 32 * 2**20, 16 * 2**20  # bytes of patches: more than these are cut in chunks of so many
_NARROW, _FEW, _SMALL = 16, 64, 1000  # channels with a core, and without one; pixels
_IMAGES = 4  # whose part of a kernel's gradient is summed at a time: what they take fits a core's cache
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation), as patches times a matrix or by XLA's own, whichever is faster.

        y[b, p, q, f] = sum over i, j, c of x[b, p * stride + i * d, q * stride + j * d, c] * kernel[i, j, c, f]

    with x padded by zeros unless `padding` is "VALID". Equal to `lax.conv_general_dilated` with dimension numbers
    ("NHWC", "HWIO", "NHWC"), and without a grouped convolution under `vmap` over kernels. The patches are "im2col" of
    Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006,
    https://inria.hal.science/inria-00112631. Where they take more than 32 MiB, on a CPU, they are cut for a few images
    at a time, and cut once more on the way back instead of being kept. XLA's convolution runs on a CPU where the kernel
    has stride 1 and is shared by the batch, and each device has one core, as with `over_devices`, or features are many.

    Args:
      x: images [B, H, W, C].
      kernel: weights [kh, kw, C, F].
      strides: step between patches in pixels, one for both axes or a pair.
      padding: "SAME" (H' = ceil(H / stride)), "VALID" (only whole patches), zeros on each side, one for both axes or a
        pair, or a pair of pairs (before, after).
      kernel_dilation: d, step between the pixels that a kernel's neighbours meet, one for both axes or a pair.

    Returns:
      [B, H', W', F].

    Raises:
      ValueError: for shapes that do not fit, images of integers, a stride or dilation below 1 or an unknown padding.

    >>> conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), strides=2).shape
    (1, 2, 2, 2)
    >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding="VALID").item()
    9.0
    """
    return convolve(x, kernel, taps_of(x, kernel, strides, padding, kernel_dilation))


def convolve(x: jax.Array, kernel: jax.Array, taps: Taps) -> jax.Array:
    """The convolution of images and a kernel that fit."""
    if is_wide(x, kernel, taps):
        return _conv.bind(x, kernel, pads=taps.pads, num_shares=num_shares(x))
    return _by_patches(x, kernel, taps)


def is_wide(x: jax.Array, kernel: jax.Array, taps: Taps) -> bool:
    """Whether XLA's own convolution is the better way, see the head of this file."""
    if jax.default_backend() != "cpu" or taps.window == (1, 1) or (*taps.strides, *taps.dilation) != (1, 1, 1, 1):
        return False
    if x.dtype != kernel.dtype or varying(x) or varying(kernel):  # XLA's takes one dtype; what varies it does not say
        return False
    is_large = len(x) * _bytes_of_patches(x, kernel, taps) > _CACHE
    if num_shares(x) > 1 or _has_a_core():
        return is_large or x.shape[-1] >= _NARROW
    return is_large and x.shape[-1] >= _FEW and taps.size[0] * taps.size[1] >= _SMALL


def _has_a_core() -> bool:
    """Whether what is traced is a device's share: of a CPU, a core's."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[name] > 1 for name in mesh.manual_axes)


def _xla_conv(x: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _of_images(x: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    """By XLA, which is slow where channels are few: then by patches, of a few images at a time, which stay near."""
    if x.shape[-1] >= _NARROW:
        return _xla_conv(x, kernel, pads=pads)
    number = max(n for n in range(1, 2 * _IMAGES) if len(x) % n == 0)
    y = lax.map(lambda some: _plain_conv(some, kernel, pads=pads), x.reshape(-1, number, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _xla_to_images(dy: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    """Each pixel meets the kernel turned round."""
    reach = [(size - 1 - before, size - 1 - after) for size, (before, after) in zip(kernel.shape, pads, strict=False)]
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(dy, turned, (1, 1), reach, dimension_numbers=_LAYOUT)


def _xla_to_kernel(x: jax.Array, dy: jax.Array, *, pads: Pads) -> jax.Array:
    """A few images at a time."""
    of = functools.partial(_of_some_images, pads=pads)
    number, rest = divmod(len(x), _IMAGES)
    last = of(x[-rest:], dy[-rest:]) if rest else jnp.zeros(_to_kernel_shape(x, dy, pads=pads), x.dtype)
    if not number:
        return last
    some = lambda part, i: lax.dynamic_slice_in_dim(part, i * _IMAGES, _IMAGES)
    return lax.fori_loop(0, number, lambda i, total: total + of(some(x, i), some(dy, i)), last)


def _of_some_images(x: jax.Array, dy: jax.Array, pads: Pads) -> jax.Array:
    """Channels are the images of a convolution over images. In another layout, or fused, XLA's is a naive loop."""
    channels_first, turned = lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))
    return _xla_conv(channels_first, turned, pads=pads).transpose(1, 2, 0, 3)


def _conv_shape(x: jax.Array, kernel: jax.Array, *, pads: Pads) -> tuple[int, ...]:
    height, width = (x.shape[i] + sum(pads[i - 1]) - kernel.shape[i - 1] + 1 for i in (1, 2))
    return x.shape[0], height, width, kernel.shape[3]


def _to_images_shape(dy: jax.Array, kernel: jax.Array, *, pads: Pads) -> tuple[int, ...]:
    height, width = (dy.shape[i] - sum(pads[i - 1]) + kernel.shape[i - 1] - 1 for i in (1, 2))
    return dy.shape[0], height, width, kernel.shape[2]


def _to_kernel_shape(x: jax.Array, dy: jax.Array, *, pads: Pads) -> tuple[int, ...]:
    height, width = (x.shape[i] + sum(pads[i - 1]) - dy.shape[i] + 1 for i in (1, 2))
    return height, width, x.shape[3], dy.shape[3]


def _plain_conv(x: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    return _by_patches(x, kernel, taps_of(x, kernel, 1, pads))


def _plain_to_images(dy: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    x = jax.ShapeDtypeStruct(_to_images_shape(dy, kernel, pads=pads), dy.dtype)
    return jax.linear_transpose(lambda x: _plain_conv(x, kernel, pads=pads), x)(dy)[0]


def _plain_to_kernel(x: jax.Array, dy: jax.Array, *, pads: Pads) -> jax.Array:
    kernel = jax.ShapeDtypeStruct(_to_kernel_shape(x, dy, pads=pads), dy.dtype)
    return jax.linear_transpose(lambda kernel: _plain_conv(x, kernel, pads=pads), kernel)(dy)[0]


def _of_shares(by_xla: Callable, second_is_kernel: bool) -> Callable:
    """Each device its images, as many as any other: where they do not divide there are some of zeros."""

    def of_all(first: jax.Array, second: jax.Array, *, pads: Pads, num_shares: int) -> jax.Array:
        if num_shares == 1:
            return by_xla(first, second, pads=pads)
        filled = lambda images: jnp.pad(images, ((0, -len(images) % num_shares), (0, 0), (0, 0), (0, 0)))
        if second_is_kernel:
            each = on_each(lambda kernel, images: by_xla(images, kernel, pads=pads), SHARED)
            return each(second, filled(first))[: len(first)]
        each = on_each(lambda _, images: summed(by_xla(*images, pads=pads)), EVERYWHERE)
        return each((), (filled(first), filled(second)))

    return of_all


def _primitive(name: str, by_xla: Callable, shape: Callable, by_patches: Callable, second_is_kernel: bool) -> Primitive:
    """A bilinear map of two arrays; over tasks, images of one kernel are all images, anything else is patches."""

    def over_tasks(args: Sequence, axes: Sequence, *, pads: Pads, num_shares: int) -> tuple[jax.Array, int]:
        if second_is_kernel and axes[1] is None:
            axis = int(num_shares > 1)  # a device's images stay its own
            images = jnp.moveaxis(args[0], axes[0], axis)
            y = primitive.bind(images.reshape(-1, *images.shape[2:]), args[1], pads=pads, num_shares=num_shares)
            return y.reshape(*images.shape[:2], *y.shape[1:]), axis
        return jax.vmap(functools.partial(by_patches, pads=pads), tuple(axes))(*args), 0

    def abstract(*args: jax.core.ShapedArray, pads: Pads, num_shares: int) -> jax.core.ShapedArray:
        return jax.core.ShapedArray(shape(*args, pads=pads), args[0].dtype)

    lowered = _of_shares(by_xla, second_is_kernel)
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(lowered, static_argnames=("pads", "num_shares")))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = over_tasks
    mlir.register_lowering(primitive, mlir.lower_fun(lowered, multiple_results=False))
    return primitive


_conv = _primitive("conv", _of_images, _conv_shape, _plain_conv, True)
_to_images = _primitive("conv_to_images", _xla_to_images, _to_images_shape, _plain_to_images, True)
_to_kernel = _primitive("conv_to_kernel", _xla_to_kernel, _to_kernel_shape, _plain_to_kernel, False)

_PRODUCTS = {_conv, _to_images, _to_kernel, lax.dot_general_p, lax.conv_general_dilated_p}


def is_product(primitive: Primitive, *_: object, **__: object) -> bool:
    """A policy of `jax.checkpoint`: what takes arithmetic is kept, and what is between is computed anew."""
    return primitive in _PRODUCTS


# the derivative in each argument, of a cotangent: all others are of these
ad.defbilinear(
    _conv,
    lambda dy, x, kernel, **how: _to_images.bind(dy, kernel, **how),
    lambda dy, x, kernel, **how: _to_kernel.bind(x, dy, **how),
)
ad.defbilinear(
    _to_images,
    lambda dx, dy, kernel, **how: _conv.bind(dx, kernel, **how),
    lambda dx, dy, kernel, **how: _to_kernel.bind(dx, dy, **how),
)
ad.defbilinear(
    _to_kernel,
    lambda dk, x, dy, **how: _to_images.bind(dy, dk, **how),
    lambda dk, x, dy, **how: _conv.bind(x, dk, **how),
)


def _by_patches(x: jax.Array, kernel: jax.Array, taps: Taps) -> jax.Array:
    number = _images_at_a_time(x, kernel, taps)
    if number == len(x):
        return product(patches_of(x, taps), kernel)
    some = jax.checkpoint(lambda x: product_by_rows(x, taps, kernel))
    y = lax.map(some, x.reshape(-1, number, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _images_at_a_time(x: jax.Array, kernel: jax.Array, taps: Taps) -> int:
    """Of how many images to cut patches at a time: all, but on a CPU as many as fit its cache where all do not.

    Beyond the cache, patches are written to memory and read again, which takes longer than the products do.
    """
    one = _bytes_of_patches(x, kernel, taps)
    if jax.default_backend() != "cpu" or taps.window == (1, 1) or len(x) * one <= _CACHE or num_shares(x) > 1:
        return len(x)
    return max(n for n in range(1, len(x) + 1) if len(x) % n == 0 and n * one <= max(one, _CHUNK))


def _bytes_of_patches(x: jax.Array, kernel: jax.Array, taps: Taps) -> int:
    """Of one image."""
    return taps.size[0] * taps.size[1] * (kernel.size // kernel.shape[-1]) * x.dtype.itemsize
