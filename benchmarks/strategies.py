"""The meta-gradient strategies that the benchmarks compare. A new one is a line here.

Each is a function of K, the number of inner steps, because segments have to divide it.
"""

from collections.abc import Callable

from jaxmeta import adapt


def near_square_root(num_steps: int) -> int:
    """The divisor of K nearest to √K, the larger of two: so many segments keep memory for about 2√K steps.

    >>> near_square_root(100), near_square_root(20), near_square_root(7)
    (10, 5, 7)
    """
    divisors = (n for n in range(num_steps, 0, -1) if num_steps % n == 0)
    return min(divisors, key=lambda n: max(n * n, num_steps) / min(n * n, num_steps))


Strategies = dict[str, Callable[[int], adapt.MetaGradient]]

EXACT: Strategies = {
    "exact": lambda k: adapt.exact(),
    "exact, segments": lambda k: adapt.exact(num_segments=near_square_root(k)),
    "mixed mode": lambda k: adapt.mixed_mode(),
    "mixed mode, segments": lambda k: adapt.mixed_mode(num_segments=near_square_root(k)),
    "mixed mode, segments, gradients saved": lambda k: adapt.mixed_mode(
        num_segments=near_square_root(k), save_gradients=True
    ),
}

APPROXIMATE: Strategies = {
    "first order": lambda k: adapt.first_order(),
    "truncated(1)": lambda k: adapt.truncated(1),
    "truncated(K/2)": lambda k: adapt.truncated(k // 2),
    "reptile": lambda k: adapt.reptile(),
}
