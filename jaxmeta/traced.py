"""What a function does with its arguments, read off its trace: nothing is computed, and nothing compiled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

# Equations whose output is their first input, if it has its shape and dtype.
_COPIES = ("copy", "copy_p", "stop_gradient", "convert_element_type", "reshape", "broadcast_in_dim")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")


def trace(fn: Callable, *args: Any) -> tuple[Any, Any]:
    """The closed jaxpr of `fn`, run anew, for jax remembers that of the same function; and the shapes it returns."""
    return jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)


def used_inputs(jaxpr: Any, outputs: Sequence[bool] | None = None) -> list[bool]:
    """Whether each input has a part in the chosen outputs, in any if None.

    >>> used_inputs(trace(lambda x, y, z: (x + y, z), 1.0, 2.0, 3.0)[0], [True, False])
    [True, True, False]
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    outputs = [True] * len(jaxpr.outvars) if outputs is None else outputs
    return list(partial_eval.dce_jaxpr(jaxpr, list(outputs))[1])


def copied_inputs(jaxpr: Any, output: int) -> set[int]:
    """The inputs of which an output is one, unchanged; none if it is, or may be, anything else.

    >>> changed, _ = trace(lambda x, y: (x + y, jax.jit(lambda x: x)(y)), 1.0, 2.0)
    >>> copied_inputs(changed, 0), copied_inputs(changed, 1)
    (set(), {1})
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    number_of = {variable: i for i, variable in enumerate(jaxpr.invars)}

    def sources(variable: Any) -> set[int]:
        if hasattr(variable, "val"):  # a literal
            return set()
        if variable in number_of:
            return {number_of[variable]}
        return _of_all(sources, _handed_through(made_by[variable], variable)) if variable in made_by else set()

    return sources(jaxpr.outvars[output])


def _of_all(sources: Callable[[Any], set[int]], variables: Sequence[Any]) -> set[int]:
    """Of what is one of several variables; of nothing if one of them is something else."""
    found = [sources(variable) for variable in variables]
    return set().union(*found) if all(found) else set()


def _handed_through(equation: Any, variable: Any) -> list[Any]:
    """The inputs of an equation of which its output `variable` is one, none where it is computed."""
    name, inputs, which = equation.primitive.name, equation.invars, equation.outvars.index(variable)
    if name in _COPIES:
        alike = inputs[0].aval.shape == variable.aval.shape and inputs[0].aval.dtype == variable.aval.dtype
        return [inputs[0]] if alike else []
    if name == "select_n":  # where(is_over, state, state)
        return inputs[1:]
    if name == "cond":
        found = [copied_inputs(branch, which) for branch in equation.params["branches"]]
        return [inputs[1 + i] for i in set().union(*found)] if all(found) else []
    if name == "scan":  # what each of its steps hands on
        carried = equation.params["num_consts"] + which
        return [inputs[carried]] if copied_inputs(equation.params["jaxpr"], which) == {carried} else []
    inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
    return [inputs[i] for i in copied_inputs(inner, which)] if name in _CALLS and inner is not None else []


def contents(jaxpr: Any) -> Iterator[Any]:
    """Every number that stands in a trace and the name of all that is done, in what is called too.

    >>> [str(x) for x in contents(trace(lambda x: x + 2.0, 1.0)[0])]
    ['add', '2.0']
    """
    yield from getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        yield from (variable.val for variable in equation.invars if hasattr(variable, "val"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from contents(inner)
    yield from (variable.val for variable in jaxpr.outvars if hasattr(variable, "val"))


def same_contents(first: Any, second: Any) -> bool:
    """Whether two traces of a function have the same in them, as those of a pure one have."""
    pairs = list(contents(first)), list(contents(second))
    return len(pairs[0]) == len(pairs[1]) and all(map(_equal, *pairs))


def _equal(first: Any, second: Any) -> bool:
    if first is second or isinstance(first, jax.core.Tracer) or isinstance(second, jax.core.Tracer):
        return True
    if isinstance(first, jax.Array) and jax.dtypes.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    first, second = np.asarray(first), np.asarray(second)
    return first.shape == second.shape and first.tobytes() == second.tobytes()
