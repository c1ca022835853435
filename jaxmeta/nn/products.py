"""The products of dense layers, each fast in every derivative, on a CPU too.

A dense layer multiplies three arrays by one another: weights [D, M], inputs [D, T] and outputs [M, T]; its derivatives,
of any order, are again a product of two of them with an array like the third. So do keys [D, M], queries [D, T] and the
pairs [M, T] of both in attention. There are three such products: here they are primitives, each the derivative of the
others, so that nothing but these three ever runs, and with the short axes first, as they are fast.
Where examples go first, `of_rows`, inputs [T, D], weights [D, M] and outputs [T, M] take the same three.

From `lax.dot_general`, JAX makes derivatives that sum over the first axis of the largest array. XLA's CPU backend does
so at a third of the speed: for pairs of 128 keys and 128 queries, D = 16, 22 in place of 60 GFLOP/s.
Small products over the first axis of both, such as the gradient of the weights from the rows of a few examples, take it
a third of the time if the first factor is transposed beforehand: of 25 tasks, 10 rows and 40 by 40 weights, 17 us in
place of 47. Of wide layers they do not, nor where a factor is a vector.
With hundreds of rows and few outputs, as of a policy's last layer, such a gradient takes a tenth of the time with the
outputs as the first factor: of 20,000 rows, 64 inputs and 2 outputs, 0.2 ms in place of 1.7.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_VECTOR, _WIDE = 8, 128  # of the numbers that a factor lends a product: fewer are a vector, more are a wide layer
_FEW = 16  # outputs of a layer that go first


def outputs(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """[..., D, M], [..., D, T] -> [..., M, T], summed over D.

    >>> outputs(jnp.ones((2, 3)), jnp.ones((2, 5))).shape
    (3, 5)
    """
    return _outputs.bind(*_alike(weights, inputs))


def to_inputs(weights: jax.Array, outputs: jax.Array) -> jax.Array:
    """[..., D, M], [..., M, T] -> [..., D, T], summed over M.

    >>> to_inputs(jnp.ones((2, 3)), jnp.ones((3, 5))).shape
    (2, 5)
    """
    return _to_inputs.bind(*_alike(weights, outputs))


def to_weights(inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """[..., D, T], [..., M, T] -> [..., D, M], summed over T.

    >>> to_weights(jnp.ones((2, 5)), jnp.ones((3, 5))).shape
    (2, 3)
    """
    return _to_weights.bind(*_alike(inputs, outputs))


def of_rows(inputs: jax.Array, weights: jax.Array) -> jax.Array:
    """[..., T, D], [..., D, M] -> [..., T, M], summed over D. Of many tasks that share the weights, it is one product.

    >>> of_rows(jnp.ones((5, 2)), jnp.ones((2, 3))).shape
    (5, 3)
    """
    return _to_inputs.bind(*_alike(inputs, weights))


def varying(x: jax.Array) -> frozenset[str]:
    """Over which axes of devices it is tracked that there are several of it, in `jax.shard_map` with `check_vma`.

    >>> varying(jnp.ones(2))
    frozenset()
    """
    kind = jax.typeof(x)
    axes = getattr(kind, "vma", None) or getattr(getattr(kind, "manual_axis_type", None), "varying", None)
    return frozenset(axes or ())


def _alike(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both varying over what either does: JAX's own products see to it, and sum the derivative of what did not."""
    axes = varying(x) | varying(y)
    x, y = (lax.pcast(a, tuple(axes - varying(a)), to="varying") if axes - varying(a) else a for a in (x, y))
    return x, y


def _product(name: str, x_axis: int, y_axis: int) -> Primitive:
    """The product of two arrays over an axis of each, -2 or -1; all axes before the last two go along."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        along = tuple(range(x.ndim - 2))
        return lax.dot_general(x, y, (((x.ndim + x_axis,), (y.ndim + y_axis,)), (along, along)))

    def shape(x: Any, y: Any) -> Any:
        if x.shape[:-2] != y.shape[:-2] or x.shape[x_axis] != y.shape[y_axis] or x.dtype != y.dtype:
            raise ValueError(f"{name} must be given arrays that fit, got {x.str_short()} and {y.str_short()}")
        return x.update(shape=(*x.shape[:-2], x.shape[-3 - x_axis], y.shape[-3 - y_axis]))

    def transposed(x: jax.Array, y: jax.Array) -> jax.Array:
        """The same, where XLA's CPU backend is slow for want of a transposition, which the barrier keeps apart."""
        rows, columns = x.shape[-1], y.shape[-1]
        if 1 < columns <= _FEW < rows and x.shape[-2] > _WIDE:
            return jnp.swapaxes(lax.optimization_barrier(product(y, x)), -1, -2)
        if min(rows, columns) < _VECTOR or max(rows, columns, x.shape[-2]) > _WIDE:
            return product(x, y)
        along = tuple(range(x.ndim - 2))
        x = lax.optimization_barrier(jnp.swapaxes(x, -1, -2))
        return lax.dot_general(x, y, (((x.ndim - 1,), (y.ndim - 2,)), (along, along)))

    def batched(arrays: tuple, axes: tuple) -> tuple[jax.Array, int]:
        if axes[1] is None and arrays[0].ndim == 3 and x_axis == -1:  # the rows of all tasks times one matrix
            x = jnp.moveaxis(arrays[0], axes[0], 0)
            y = primitive.bind(x.reshape(-1, x.shape[-1]), arrays[1])
            return y.reshape(*x.shape[:2], y.shape[-1]), 0
        (size,) = {x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None}
        first = lambda x, axis: jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return primitive.bind(*map(first, arrays, axes)), 0

    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(product, multiple_results=False))
    if x_axis == y_axis == -2:
        on_cpu = mlir.lower_fun(transposed, multiple_results=False)
        mlir.register_lowering(primitive, on_cpu, platform="cpu")
    batching.primitive_batchers[primitive] = batched
    return primitive


_outputs = _product("outputs", -2, -2)
_to_inputs = _product("to_inputs", -1, -2)
_to_weights = _product("to_weights", -1, -1)
# for the cotangent g of the result, that of the first factor and that of the second
ad.defbilinear(_outputs, lambda g, weights, inputs: to_weights(inputs, g), lambda g, w, x: to_inputs(w, g))
ad.defbilinear(_to_inputs, lambda g, weights, y: to_weights(g, y), lambda g, weights, y: outputs(weights, g))
ad.defbilinear(_to_weights, lambda g, inputs, y: to_inputs(g, y), lambda g, inputs, y: outputs(g, inputs))
