"""Which leaves of a pytree are meant: by names in their path, by a function of it, or by a pytree of bools."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_params
from jaxmeta.types import PyTree

Where: TypeAlias = str | Callable[[str], bool] | PyTree


def select(params: PyTree, where: Where, name: str = "where") -> PyTree:
    """`params` with None, an empty pytree, for each leaf that is not chosen.

    A string chooses the leaves in whose path it is: a part, such as "head", or several that follow one another, such
    as "layers/2" or Haiku's "mlp/~/linear_1".

    Raises:
      ValueError: `where`, which the message calls `name`, chooses nothing or does not fit.

    >>> select({"mlp/~/linear_1": {"w": 1.0}, "head": {"w": 2.0}}, "~/linear_1")
    {'head': {'w': None}, 'mlp/~/linear_1': {'w': 1.0}}
    """
    if isinstance(where, str):
        mask = _mask_of_paths(params, lambda path: f"/{where}/" in f"/{path}/")
    elif callable(where):
        mask = _mask_of_paths(params, where)
    else:
        mask = _broadcast_mask(params, where, name)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(f"{name}={where!r} chooses no parameter; the parameters are {_listed(params)}")
    return jax.tree.map(lambda keep, p: p if keep else None, mask, params)


def split(params: PyTree, where: Where, name: str = "where") -> tuple[PyTree, PyTree]:
    """The chosen leaves of `params` and the others, each with None in the places of the rest."""
    chosen = select(params, where, name)
    is_none = lambda leaf: leaf is None
    return chosen, jax.tree.map(lambda c, p: p if c is None else None, chosen, params, is_leaf=is_none)


def merge(chosen: PyTree, others: PyTree) -> PyTree:
    """`others` with the leaves of `chosen` in their places, wherever those are not None."""
    is_none = lambda leaf: leaf is None
    return jax.tree.map(lambda c, o: o if c is None else c, chosen, others, is_leaf=is_none)


def freeze(params: PyTree, frozen: Where | None) -> tuple[PyTree, PyTree]:
    """The parameters that are learned, and the constants: those that `frozen` chooses, `()` if it is None.

    Only what is learned has to be real: a constant may be of integers.

    Raises:
      ValueError: `frozen` chooses nothing, or everything, or does not fit the parameters.

    >>> freeze({"body": 1.0, "head": 2.0}, "body")
    ({'body': None, 'head': Array(2., dtype=float32)}, {'body': Array(1., dtype=float32), 'head': None})
    """
    if frozen is None:
        return check_params(params), ()
    constants, rest = split(params, frozen, "frozen")
    if not jax.tree.leaves(rest):
        raise ValueError(f"frozen={frozen!r} leaves nothing to learn; the parameters are {_listed(params)}")
    return check_params(rest), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), constants)


def unfreeze(params: PyTree, constants: PyTree) -> PyTree:
    """All parameters of the model: the learned ones and the constants, of which no derivative is taken.

    >>> unfreeze(*freeze({"body": 1.0, "head": 2.0}, "body"))["body"].item()
    1.0
    """
    return merge(params, jax.lax.stop_gradient(constants)) if jax.tree.leaves(constants) else params


def _listed(params: PyTree, most: int = 30) -> str:
    paths = [_path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _mask_of_paths(params: PyTree, where: Callable[[str], bool]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(where(_path_string(path))), params)


def _path_string(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _broadcast_mask(params: PyTree, where: PyTree, name: str) -> PyTree:
    if not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(where)):
        raise ValueError(f"{name} must be a name, a function of a path or a pytree of bools, got {where!r}")
    try:
        return jax.tree.map(lambda keep, part: jax.tree.map(lambda _: keep, part), where, params)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}={where!r} is no prefix of the parameters: {error}") from error
