"""Which leaves of a pytree are meant: by names in their path, by a function of it, or by a pytree of bools."""

from collections.abc import Callable
from inspect import isclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_params
from jaxmeta.types import PyTree
from jaxmeta.words import short

Where: TypeAlias = str | Callable[[str], bool] | PyTree


def check_where(name: str, value: Any) -> None:
    """A name, a function of a path or a pytree of bools; whether it chooses anything is known with the parameters."""
    if isinstance(value, str) or (callable(value) and not isclass(value)):
        return
    leaves = jax.tree.leaves(value)
    if not leaves or not all(isinstance(leaf, bool) for leaf in leaves):
        raise ValueError(
            f'{name} must be a name such as "head", a function of a path or a pytree of bools, got {short(value)}'
        )


def select(params: PyTree, where: Where, name: str = "where") -> PyTree:
    """`params` with None, an empty pytree, for each leaf that is not chosen.

    A string chooses the leaves in whose path it is: a part, such as "head", or several that follow one another, such
    as "layers/2" or Haiku's "mlp/~/linear_1".

    Raises:
      ValueError: `where`, which the message calls `name`, chooses nothing or does not fit.

    >>> select({"mlp/~/linear_1": {"w": 1.0}, "head": {"w": 2.0}}, "~/linear_1")
    {'head': {'w': None}, 'mlp/~/linear_1': {'w': 1.0}}
    """
    where_path = _of_path(where)
    if callable(where_path):
        mask = jax.tree_util.tree_map_with_path(lambda path, _: bool(where_path(_path_string(path))), params)
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


def complement(where: Where) -> Where:
    """All leaves that `where` does not choose. Whether it chooses any is for `select(params, where)` to say.

    >>> select({"body": 1.0, "head": 2.0}, complement("head"))
    {'body': 1.0, 'head': None}
    """
    where_path = _of_path(where)
    if callable(where_path):
        return lambda path: not where_path(path)
    return jax.tree.map(lambda chosen: not chosen, where)


def in_part(part: str, where: str | Callable[[str], bool]) -> Where:
    """`where` of a node that is named `part`, as one of the pytree that the node is in.

    >>> select({"params": {"w": 1.0}, "head": {"w": 2.0}}, in_part("params", lambda path: path == "w"))
    {'head': {'w': None}, 'params': {'w': 1.0}}
    """
    where_path: Any = _of_path(where)

    def of_whole(path: str) -> bool:
        first, _, rest = path.partition("/")
        return first == part and where_path(rest)

    return of_whole


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


def _of_path(where: Where) -> Where:
    """A string as the function of a path that it stands for; any other as it is."""
    return (lambda path: f"/{where}/" in f"/{path}/") if isinstance(where, str) else where


def _path_string(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _broadcast_mask(params: PyTree, where: PyTree, name: str) -> PyTree:
    check_where(name, where)
    try:
        return jax.tree.map(lambda keep, part: jax.tree.map(lambda _: keep, part), where, params)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}={where!r} is no prefix of the parameters: {error}") from error
