"""How large an episode is: numbers, or ranges that each episode draws its own from."""

import numbers
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.words import short

Size: TypeAlias = int | tuple[int, int]


class Sizes(NamedTuple):
    """Numbers of classes, and of each support and query examples: integers, or pairs (lowest, highest), inclusive."""

    ways: Any
    shots: Any
    queries: Any

    @property
    def vary(self) -> bool:
        """Whether an episode draws any of them: then it is padded."""
        return any(isinstance(size, tuple) for size in self)

    @property
    def highest(self) -> tuple[int, int, int]:
        """Those of the shapes."""
        ways, shots, queries = (size[1] if isinstance(size, tuple) else size for size in self)
        return ways, shots, queries


def check_sizes(num_ways: Any, num_shots: Any, num_queries: Any) -> Sizes:
    """Each an integer ≥ 1, or a pair of such in ascending order."""
    given = {"num_ways": num_ways, "num_shots": num_shots, "num_queries": num_queries}
    for name, size in given.items():
        bounds = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
        is_integer = all(isinstance(bound, numbers.Integral) and not isinstance(bound, bool) for bound in bounds)
        if not is_integer or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(f"{name} must be an integer >= 1, or a pair of them, (lowest, highest), got {short(size)}")
    return Sizes(*given.values())


def draw_sizes(key: jax.Array, sizes: Sizes) -> Sizes:
    """An episode's own, int32, each uniform in its range."""

    def one(key: jax.Array, size: Any) -> jax.Array:
        low, high = size if isinstance(size, tuple) else (size, size)
        return jax.random.randint(key, (), low, high + 1, jnp.int32)

    return Sizes(*map(one, jax.random.split(key, 3), sizes))
