"""Signatures of learners that are another one with some of its arguments chosen: no `**options` to a reader."""

import inspect
import typing
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def names_options_of(constructor: Callable) -> Callable[[F], F]:
    """Puts in the place of a function's `**options: Unpack[SomeTypedDict]` the arguments that they are.

    Types and defaults are those of `constructor`, which they are passed on to, so that they are written there alone.

    >>> class Options(typing.TypedDict, total=False):
    ...     width: int
    >>> def network(depth: int = 2, width: int = 3) -> int:
    ...     return depth * width
    >>> @names_options_of(network)
    ... def shallow(**options: typing.Unpack[Options]) -> int:
    ...     return network(depth=1, **options)
    >>> print(inspect.signature(shallow))
    (*, width: int = 3) -> int
    """
    theirs = inspect.signature(constructor).parameters

    def with_signature(fn: F) -> F:
        signature = inspect.signature(fn)
        *own, options = signature.parameters.values()
        (names,) = typing.get_args(options.annotation)
        passed_on = [theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names.__annotations__]
        fn.__signature__ = signature.replace(parameters=[*own, *passed_on])  # type: ignore[attr-defined]
        return fn

    return with_signature
