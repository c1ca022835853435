"""Counts the floating-point operations of a function from its jaxpr: products and convolutions, loops times length.

XLA's own `cost_analysis` counts the body of a loop once; here a scan is its length times its body.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr

from jaxmeta.outer.cost import inner_jaxprs


def count_flops(fn: Callable, *args: Any) -> int:
    """Multiplications and additions of every matrix product and convolution that `fn(*args)` traces to.

    Elementwise work is not counted. Of a `cond` the dearest branch is.

    Args:
      fn: a function that JAX can trace.
      args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      2 for each multiplication and addition.

    Raises:
      ValueError: `fn` has a `while` loop with a product inside, whose length no one knows.

    >>> import jax.numpy as jnp
    >>> count_flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
    60
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def meta_step_flops(num_tasks: int, num_steps: int, support: int, query: int) -> int:
    """FLOPs* = T (K 9 F_support + 3 F_query): what an exact meta-gradient needs, whatever else a program does.

    With F one forward pass, an inner step is a gradient, 3F, and the two more passes of its transpose, 6F; the outer
    loss is a gradient. Recomputing earns no credit.

    >>> meta_step_flops(2, 1, support=1, query=1)
    24
    """
    return num_tasks * (num_steps * 9 * support + 3 * query)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // features  # a kernel holds its group's channels only
    inner = [_of_jaxpr(jaxpr) for jaxpr in inner_jaxprs(params)]
    if name == "while" and any(inner):
        raise ValueError("count_flops cannot count a while loop, whose length is not in the program: use a scan")
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner) if name == "cond" else sum(inner)
