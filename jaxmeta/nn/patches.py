"""The patches that a kernel meets, cut out of images, and their product with the kernel: "im2col".

With a stride of 1 they are slices, whose derivative is a sum of pads. With a larger one JAX's are slices with steps and
pads with holes, of which XLA makes slow code slowly on a CPU. There images are laid out in cells of stride by stride
pixels: what a pixel of the kernel meets is then a slice of cells without steps. Back from patches they are summed for
each place in a cell, and then laid out as images. These two are primitives, each the transpose of the other, for JAX's
transpose of a slice of cells would pad it to all places of a cell. Beside steps and holes `conv4`'s step takes a fifth
less time to compile, and as long to run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product as pairs
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.devices import num_sharing

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]


class Taps(NamedTuple):
    """Where a kernel meets padded images: its pixel (i, j) and the patch (p, q) at (p sh + i dh, q sw + j dw)."""

    window: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], ...]
    size: tuple[int, int]  # H', W'


def taps_of(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int] = 1,
) -> Taps:
    """Of the kernel [kh, kw, C, F] on images [B, H, W, C]; checks that they fit."""
    check_images(x)
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(f"kernel must be [kh, kw, {x.shape[3]}, F] for x {x.shape}, got shape {kernel.shape}")
    (sh, sw), (kh, kw), (dh, dw) = pair("strides", strides), kernel.shape[:2], pair("kernel_dilation", dilation)
    reach = (kh - 1) * dh + 1, (kw - 1) * dw + 1
    top, left = _pads(padding, x.shape[1:3], reach, (sh, sw))
    height, width = x.shape[1] + sum(top) - reach[0], x.shape[2] + sum(left) - reach[1]
    if height < 0 or width < 0:
        raise ValueError(f"kernel {kernel.shape} must fit in x {x.shape}: pad x or use padding='SAME'")
    return Taps((kh, kw), (sh, sw), (dh, dw), (top, left), (height // sh + 1, width // sw + 1))


def check_images(x: jax.Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}: reshape it to four axes")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}: of uint8 images take x.astype(jnp.float32) / 255")


def num_shares(x: jax.Array) -> int:
    """By how many devices the images are shared."""
    num_devices = num_sharing() or 1
    return num_devices if len(x) >= num_devices else 1


def patches_of(x: jax.Array, taps: Taps) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', kh * kw * C]."""
    return _patches(_padded(x, taps), taps)


def product_by_rows(x: jax.Array, taps: Taps, kernel: jax.Array) -> jax.Array:
    """`product(patches_of(x, taps), kernel)` as a sum over the kernel's rows, for which a kh-th is cut."""
    padded, (kh, kw), (sh, sw), (dh, dw) = _padded(x, taps), taps.window, taps.strides, taps.dilation
    columns = _patches(padded, Taps((1, kw), (1, sw), (1, dw), taps.pads, (padded.shape[1], taps.size[1])))
    reach = (taps.size[0] - 1) * sh + 1
    rows = (lax.slice_in_dim(columns, i * dh, i * dh + reach, sh, axis=1) for i in range(kh))
    first, *rest = (product(row, kernel[i, None]) for i, row in enumerate(rows))
    return sum(rest, first)


def _padded(x: jax.Array, taps: Taps) -> jax.Array:
    return jnp.pad(x, ((0, 0), *taps.pads, (0, 0)))


def _patches(padded: jax.Array, taps: Taps) -> jax.Array:
    has_holes = taps.strides != (1, 1) and taps.window != (1, 1)
    cut = _cut.bind if has_holes else _by_steps
    return cut(padded, taps=taps, size=(padded.shape[1], padded.shape[2]))


def _by_steps(padded: jax.Array, *, taps: Taps, size: tuple[int, int]) -> jax.Array:
    """[..., H, W, C] -> [..., H', W', kh * kw * C]; slices of lax, for indexing with a stride may be a slow gather."""
    met, lead = [], padded.ndim - 3
    reach = [(number - 1) * stride + 1 for number, stride in zip(taps.size, taps.strides, strict=True)]
    for i, j in pairs(*map(range, taps.window)):
        first = i * taps.dilation[0], j * taps.dilation[1]
        limits = (*padded.shape[:lead], first[0] + reach[0], first[1] + reach[1], padded.shape[-1])
        met.append(lax.slice(padded, (*[0] * lead, *first, 0), limits, (*[1] * lead, *taps.strides, 1)))
    return jnp.concatenate(met, axis=-1)


def _back_by_steps(patches: jax.Array, *, taps: Taps, size: tuple[int, int]) -> jax.Array:
    channels = patches.shape[-1] // (taps.window[0] * taps.window[1])
    padded = jax.ShapeDtypeStruct((*patches.shape[:-3], *size, channels), patches.dtype)
    return jax.linear_transpose(partial(_by_steps, taps=taps, size=size), padded)(patches)[0]


def _by_cells(padded: jax.Array, *, taps: Taps, size: tuple[int, int]) -> jax.Array:
    """[..., H, W, C] -> [..., H', W', kh * kw * C]: what the kernel's pixel meets has one place in each cell."""
    cells, (height, width), channels = _cells(padded, taps, size), taps.size, padded.shape[-1]
    met = []
    for (down, p), (right, q) in _cells_met(taps):
        at = (p * taps.strides[1] + q) * channels
        met.append(cells[..., down : down + height, right : right + width, at : at + channels])
    return jnp.concatenate(met, axis=-1)


def _cells(padded: jax.Array, taps: Taps, size: tuple[int, int]) -> jax.Array:
    """[..., H, W, C] -> [..., H'', W'', sh * sw * C]."""
    (rows, columns), (sh, sw) = _num_cells(taps), taps.strides
    *lead, _, _, channels = padded.shape
    whole = _pad(padded, (0, rows * sh - size[0]), (0, columns * sw - size[1]))
    by_cell = jnp.swapaxes(whole.reshape(*lead, rows, sh, columns, sw, channels), -4, -3)
    return by_cell.reshape(*lead, rows, columns, sh * sw * channels)


def _back_by_cells(patches: jax.Array, *, taps: Taps, size: tuple[int, int]) -> jax.Array:
    """[..., H', W', kh * kw * C] -> [..., H, W, C], in each pixel the sum of what met it."""
    (rows, columns), (sh, sw), num_met = _num_cells(taps), taps.strides, taps.window[0] * taps.window[1]
    *lead, height, width, length = patches.shape
    channels = length // num_met
    places: dict[tuple[int, int], list[jax.Array]] = {place: [] for place in pairs(range(sh), range(sw))}
    for ((down, p), (right, q)), met in zip(_cells_met(taps), jnp.split(patches, num_met, axis=-1), strict=True):
        places[p, q].append(_pad(met, (down, rows - down - height), (right, columns - right - width)))
    nothing = jnp.zeros((*lead, rows, columns, channels), patches.dtype)
    by_cell = jnp.stack([sum(met[1:], met[0]) if met else nothing for met in places.values()], axis=-2)
    by_row = jnp.swapaxes(by_cell.reshape(*lead, rows, columns, sh, sw, channels), -4, -3)
    whole = by_row.reshape(*lead, rows * sh, columns * sw, channels)
    return _pad(whole, (0, size[0] - rows * sh), (0, size[1] - columns * sw))


def _cells_met(taps: Taps) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each pixel of the kernel: (cells down, place in a cell), (cells to the right, place)."""
    of_rows, of_columns = (
        [divmod(i * dilation, stride) for i in range(size)]
        for size, dilation, stride in zip(taps.window, taps.dilation, taps.strides, strict=True)
    )
    return list(pairs(of_rows, of_columns))


def _num_cells(taps: Taps) -> tuple[int, int]:
    """H'', W'', with which every patch has all of its cells."""
    last = _cells_met(taps)[-1]
    return taps.size[0] + last[0][0], taps.size[1] + last[1][0]


def _pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """By zeros, before and after; what is below 0 is taken away."""
    sides = [(0, 0)] * (x.ndim - 3) + [rows, columns, (0, 0)]
    return lax.pad(x, jnp.zeros_like(x, shape=()), [(*side, 0) for side in sides])


def _linear(name: str, by_steps: Callable[..., jax.Array], by_cells: Callable[..., jax.Array]) -> Primitive:
    """A linear map of images, over whatever axes are before theirs."""

    def abstract(x: jax.core.ShapedArray, **which: Any) -> jax.core.ShapedArray:
        return x.update(shape=jax.eval_shape(partial(by_steps, **which), jax.ShapeDtypeStruct(x.shape, x.dtype)).shape)

    def over_tasks(args: Sequence, axes: Sequence, **which: Any) -> tuple[jax.Array, int]:
        return primitive.bind(jnp.moveaxis(args[0], axes[0], 0), **which), 0

    primitive = Primitive(name)
    bind = lambda x, taps, size: primitive.bind(x, taps=taps, size=size)
    primitive.def_impl(jax.jit(bind, static_argnames=("taps", "size")))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = over_tasks
    mlir.register_lowering(primitive, mlir.lower_fun(by_steps, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(by_cells, multiple_results=False), platform="cpu")
    return primitive


_cut = _linear("cut_patches", _by_steps, _by_cells)
_put_back = _linear("put_patches_back", _back_by_steps, _back_by_cells)
ad.deflinear2(_cut, lambda dy, x, **which: [_put_back.bind(dy, **which)])
ad.deflinear2(_put_back, lambda dy, x, **which: [_cut.bind(dy, **which)])


def product(patches: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H', W', kh * kw * C] times [kh, kw, C, F] -> [B, H', W', F].

    Two axes, and the smaller one first in the weights: their gradient is then the product [small, large] of XLA's CPU
    backend, which is two to five times as fast as its transpose. Images that devices share keep their axis.
    """
    length, features = patches.shape[-1], kernel.shape[-1]
    rows = patches if num_shares(patches) > 1 else patches.reshape(-1, length)
    weights, axis = kernel.reshape(length, features), 0
    if features < length:
        weights, axis = kernel.transpose(3, 0, 1, 2).reshape(features, length), 1
    y = lax.dot_general(rows, weights, (((rows.ndim - 1,), (axis,)), ((), ())))
    return y.reshape(*patches.shape[:-1], features)


def _pads(padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> list:
    """Zeros (before, after) each of the two axes."""
    if isinstance(padding, bytes):  # whose numbers would be taken
        raise ValueError(f"padding must be 'SAME', 'VALID', an integer or two, or pairs of them, got {padding!r}")
    if isinstance(padding, str):
        check_choice("padding", padding, ("SAME", "VALID"))
        return lax.padtype_to_pads(size, window, strides, padding)
    sides = list(padding) if isinstance(padding, Sequence) else [padding, padding]
    pads = [tuple(side) if isinstance(side, Sequence) else (side, side) for side in sides]
    if len(pads) != 2 or any(len(pad) != 2 for pad in pads):
        raise ValueError(f"padding must be 'SAME', 'VALID', an integer or two, or pairs of them, got {padding!r}")
    for number in (*pads[0], *pads[1]):
        check_integer("padding", number, 0)
    return pads


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """An integer for both axes, or one for each."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or a pair of integers, got {value!r}")
    for number in pair:
        check_integer(name, number, 1)
    return int(pair[0]), int(pair[1])
