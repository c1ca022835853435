"""Which leaves of a pytree are meant: by a name in their path, by a function of it, or by a pytree of bools."""

from collections.abc import Callable
from typing import TypeAlias

import jax

from jaxmeta.types import PyTree

Where: TypeAlias = str | Callable[[str], bool] | PyTree


def select(params: PyTree, where: Where) -> PyTree:
    """`params` with None, an empty pytree, for each leaf that is not chosen."""
    if isinstance(where, str):
        mask = _mask_of_paths(params, lambda path: where in path.split("/"))
    elif callable(where):
        mask = _mask_of_paths(params, where)
    else:
        mask = _broadcast_mask(params, where)
    if not any(jax.tree.leaves(mask)):
        paths = [_path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(f"where={where!r} chooses no parameter; the parameters are {', '.join(paths)}")
    return jax.tree.map(lambda keep, p: p if keep else None, mask, params)


def split(params: PyTree, where: Where) -> tuple[PyTree, PyTree]:
    """The chosen leaves of `params` and the others, each with None in the places of the rest."""
    chosen = select(params, where)
    is_none = lambda leaf: leaf is None
    return chosen, jax.tree.map(lambda c, p: p if c is None else None, chosen, params, is_leaf=is_none)


def merge(chosen: PyTree, others: PyTree) -> PyTree:
    """`others` with the leaves of `chosen` in their places, wherever those are not None."""
    is_none = lambda leaf: leaf is None
    return jax.tree.map(lambda c, o: o if c is None else c, chosen, others, is_leaf=is_none)


def _mask_of_paths(params: PyTree, where: Callable[[str], bool]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(where(_path_string(path))), params)


def _path_string(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _broadcast_mask(params: PyTree, where: PyTree) -> PyTree:
    if not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(where)):
        raise ValueError(f"where must be a name, a function of a path or a pytree of bools, got {where!r}")
    try:
        return jax.tree.map(lambda keep, part: jax.tree.map(lambda _: keep, part), where, params)
    except (ValueError, TypeError) as error:
        raise ValueError(f"where={where!r} is no prefix of the parameters: {error}") from error
