"""Patches against indexing in NumPy, and back from them against the transposed matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import normal

from jaxmeta.nn import patches
from jaxmeta.nn.patches import patches_of, taps_of

pytestmark = pytest.mark.usefixtures("x64_module")

CASES = [
    # height, width, window, strides, dilation, pads
    (6, 7, (3, 3), (2, 2), (1, 1), ((0, 1), (1, 1))),
    (5, 6, (2, 4), (1, 3), (1, 1), ((0, 0), (3, 0))),
    (7, 5, (1, 2), (3, 2), (1, 1), ((0, 0), (0, 0))),  # with places in a cell that nothing meets
    (9, 8, (3, 2), (2, 2), (2, 3), ((0, 2), (1, 0))),
    (8, 9, (2, 2), (4, 3), (5, 1), ((2, 2), (4, 4))),  # and pixels that are in no patch
    (5, 4, (3, 2), (1, 1), (1, 2), ((1, 1), (0, 2))),
]


def indexed(x, taps):
    """What the definition says, pixel by pixel."""
    padded = np.pad(x, ((0, 0), *taps.pads, (0, 0)))
    (sh, sw), (dh, dw) = taps.strides, taps.dilation
    y = np.zeros((len(x), *taps.size, *taps.window, x.shape[-1]))
    for p, q, i, j in itertools.product(*map(range, (*taps.size, *taps.window))):
        y[:, p, q, i, j] = padded[:, p * sh + i * dh, q * sw + j * dw]
    return y.reshape(*y.shape[:3], -1)


def example(height, width, window, strides, dilation, pads):
    x, kernel = normal(0, 2, height, width, 3), jnp.zeros((*window, 3, 1))
    return x, taps_of(x, kernel, strides, pads, dilation)


@pytest.mark.parametrize("case", CASES)
def test_patches_are_what_the_kernel_meets(case):
    x, taps = example(*case)
    np.testing.assert_array_equal(jax.jit(patches_of, static_argnums=1)(x, taps), indexed(np.asarray(x), taps))


@pytest.mark.parametrize("case", CASES)
def test_cells_and_steps_are_one_map_and_its_transpose(case):
    """Its matrix is that of the map of every pixel."""
    x, taps = example(*case)
    padded = np.asarray(jnp.pad(x[0], (*taps.pads, (0, 0))))
    which = {"taps": taps, "size": padded.shape[:2]}
    pixels = np.eye(padded.size).reshape(-1, *padded.shape)
    unpadded = taps._replace(pads=((0, 0), (0, 0)))
    matrix = indexed(pixels, unpadded).reshape(padded.size, -1).T
    met = normal(1, *taps.size, matrix.shape[0] // np.prod(taps.size))
    ways = (
        (patches._by_cells, patches._back_by_cells),
        (patches._by_steps, patches._back_by_steps),
        (patches._cut.bind, patches._put_back.bind),
    )
    both = jax.jit(lambda: [(forward(padded, **which), back(met, **which)) for forward, back in ways])
    for cut, put_back in both():
        np.testing.assert_array_equal(cut.ravel(), matrix @ padded.ravel())
        np.testing.assert_allclose(put_back.ravel(), matrix.T @ met.ravel(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("platform", "by_cells"), [("cpu", True), ("cuda", False)])
def test_cells_are_of_a_cpu(platform, by_cells):
    x, taps = example(*CASES[0])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(patches_of(x, taps) ** 2)))
    text = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert ("interior = [0, 1, 1, 0]" in text) != by_cells
    assert ("stablehlo.transpose" in text) == by_cells
