"""The meta-gradient strategies that the benchmarks compare. A new one is a line here; each is a function of K."""

from collections.abc import Callable

import jax

from jaxmeta import adapt

Strategies = dict[str, Callable[[int], adapt.MetaGradient]]

EXACT: Strategies = {
    "auto": lambda k: adapt.auto(),
    "exact": lambda k: adapt.exact(),
    "exact, remat": lambda k: adapt.exact(remat=jax.checkpoint_policies.nothing_saveable),
    "exact, segments": lambda k: adapt.exact(num_segments="sqrt"),
    "mixed mode": lambda k: adapt.mixed_mode(),
    "mixed mode, gradients saved": lambda k: adapt.mixed_mode(save_gradients=True),
    "mixed mode, segments": lambda k: adapt.mixed_mode(num_segments="sqrt"),
    "mixed mode, segments, gradients saved": lambda k: adapt.mixed_mode(num_segments="sqrt", save_gradients=True),
}

APPROXIMATE: Strategies = {
    "first order": lambda k: adapt.first_order(),
    "truncated(1)": lambda k: adapt.truncated(1),
    "truncated(K/2)": lambda k: adapt.truncated(k // 2),
    "reptile": lambda k: adapt.reptile(),
    "evolution strategy, 16 pairs": lambda k: adapt.evolution_strategy(num_pairs=16, std=1e-3),
}
