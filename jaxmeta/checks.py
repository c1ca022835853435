"""Checks of arguments: a `ValueError` that names the argument, its value and the remedy, before anything compiles."""

import math
import numbers
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp


def check_integer(name: str, value: Any, minimum: int) -> None:
    """A whole number of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_number(name: str, value: Any, minimum: float = 0.0) -> None:
    """A finite real number of at least `minimum`; a jax array (a traced hyperparameter) passes as it is."""
    if isinstance(value, jax.Array):
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value) or value < minimum:
        raise ValueError(f"{name} must be a finite number >= {minimum:g}, got {value!r}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """One of a few names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}, got {value!r}")


def check_callable(name: str, value: Any, signature: str) -> Callable:
    """A function with the given signature."""
    if not callable(value):
        raise ValueError(f"{name} must be a function {signature}, got {value!r}")
    return value


def check_fields(name: str, value: Any, fields: Collection[str], remedy: str) -> None:
    """Something that has the functions of one of the library's tuples."""
    if not all(callable(getattr(value, field, None)) for field in fields):
        raise ValueError(f"{name} must have {', '.join(fields)}: {remedy}; got {value!r}")


def check_loss_fn(loss_fn: Any) -> Callable:
    """`loss_fn`, which now says while it is traced if it returned something other than (scalar loss, dict of scalars)."""
    check_callable("loss_fn", loss_fn, "(params, batch) -> (loss, metrics)")

    def checked(params: Any, batch: Any) -> Any:
        result = loss_fn(params, batch)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise ValueError(f"loss_fn must return (loss, metrics), metrics a dict, {{}} if none; got {result!r}")
        for name, value in {"loss": result[0], **result[1]}.items():
            if jnp.shape(value) != ():
                raise ValueError(f"loss_fn must return scalars; {name} has shape {jnp.shape(value)}: take its mean")
        if not jnp.issubdtype(jnp.result_type(result[0]), jnp.floating):
            raise ValueError(f"loss_fn must return a real loss, got dtype {jnp.result_type(result[0])}")
        return result

    return checked


def check_params(params: Any) -> Any:
    """`params`, all of whose leaves can be differentiated."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"init_fn must return a pytree with at least one array, got {params!r}")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"init_fn must return real arrays only; {name} has dtype {jnp.result_type(leaf)}: split off what is not "
                "learned (flax nnx.split(model, nnx.Param, ...), equinox eqx.partition(model, eqx.is_inexact_array))"
            )
    return params


def check_key(name: str, value: Any, max_ndim: int = 1) -> None:
    """A typed random key, or an array of them with at most `max_ndim` axes."""
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not is_key or value.ndim > max_ndim:
        raise ValueError(f"{name} must be a typed key, such as jax.random.key(0), got {value!r}")
