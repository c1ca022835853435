"""What readers of data sets have in common: the options of the episodes that they return, said once."""

from collections.abc import Callable
from typing import Any, TypedDict

from jaxmeta.tasks.augment import Augment
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.sizes import Size, check_sizes
from jaxmeta.types import TaskDistribution


class Upright(TypedDict, total=False):
    """What a reader has of `episodes`, as it is there."""

    num_ways: Size
    num_shots: Size
    num_queries: Size
    augment: Augment | None


class Options(Upright, total=False):
    """The same of one that leaves open whether rotations are classes."""

    rotations: bool


def episodes(
    read: Callable[[], Any],
    *,
    num_ways: Size = 5,
    num_shots: Size = 1,
    num_queries: Size = 15,
    augment: Augment | None = None,
    rotations: bool = False,
    groups: Any = None,
) -> TaskDistribution:
    """`few_shot` of what `read` returns. Sizes are looked at before, for reading takes seconds, or minutes."""
    check_sizes(num_ways, num_shots, num_queries)
    return few_shot(
        read(),
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        rotations=rotations,
        augment=augment,
        groups=groups,
    )
