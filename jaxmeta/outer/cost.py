"""What a function needs, from shapes alone: for defaults that are chosen while tracing, before anything compiles."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from jaxmeta.devices import memory_bytes
from jaxmeta.types import PyTree

CACHE_BYTES = 16 * 2**20  # about what a processor keeps near; above it, traffic to memory costs more than products
_VIEWS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "iota", "convert_element_type"}


def default_memory_budget() -> int:
    """Half of the memory of the device, in bytes; a CPU's is the machine's."""
    return memory_bytes() // 2


def num_bytes(tree: PyTree) -> int:
    """The bytes of all arrays in a pytree, or of shapes.

    >>> num_bytes({"w": jnp.zeros((2, 3)), "b": jax.ShapeDtypeStruct((4,), jnp.float32)})
    40
    """
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree) if _has_size(leaf.dtype))


def peak_bytes(fn: Callable, *args: Any) -> int:
    """The most bytes that intermediate results of `fn(*args)` take at a time, each freed after its last use.

    An estimate: XLA fuses some of them away, and may order the rest otherwise. Views are taken to cost nothing.

    >>> peak_bytes(lambda x: jnp.sum(jnp.sin(jnp.cos(x))), jnp.zeros(1000))
    8000
    """
    return _peak(jax.make_jaxpr(fn)(*args).jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    size: dict[Var, int] = {}
    last_use = {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, Var)}
    for i, equation in reversed(list(enumerate(jaxpr.eqns))):
        for var in equation.invars:
            if isinstance(var, Var):
                last_use.setdefault(var, i)
    live = peak = 0
    for i, equation in enumerate(jaxpr.eqns):
        if equation.primitive.name not in _VIEWS:
            size |= {var: num_bytes(var.aval) for var in equation.outvars}
            live += sum(size[var] for var in equation.outvars)
        peak = max(peak, live + max(map(_peak, inner_jaxprs(equation.params)), default=0))
        seen = (var for var in (*equation.invars, *equation.outvars) if isinstance(var, Var))
        live -= sum(size.pop(var, 0) for var in seen if last_use.get(var, i) == i)
    return peak


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters: the body of a loop, the branches of a `cond`, what is called."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _has_size(dtype: Any) -> bool:
    return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)  # keys are small
