"""CAVIA: a few context parameters φ, inputs of the network, adapt; all others, θ, are shared by the tasks.

    φ_i = 0 − α ∇_φ L(φ, θ; support_i) at φ = 0              the inner loop, K times, for each task i
    θ   ← θ − β ∇_θ mean_i L(φ_i, θ; query_i)                the outer loop, through the inner one

It is `maml` with an inner optimizer: φ is a part of the parameters that alone adapts, and starts at 0 for every task.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta import adapt
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.adapt.select import Where, check_where
from jaxmeta.algorithms.maml import Options, maml
from jaxmeta.signatures import names_options_of
from jaxmeta.types import InitFn, LossFn, MetaLearner, MetaParams


@names_options_of(maml)
def cavia(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    context: Where = "context",
    learning_rate: float = 1.0,
    meta_gradient: adapt.MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Fast context adaptation: `maml` in which only `context` adapts, from 0. Other arguments and errors as there.

    Of what `init_fn` returns for the context only the shape matters: it is never used and gets no gradient.

    Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning" (2019),
    https://arxiv.org/abs/1810.03642

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      context: which of the parameters are φ, in the form of `where` of `adapt.adapt_only`: by default those named
        "context", such as in `nn.MLP(num_context=5)`.
      learning_rate: α ≥ 0 of the context's gradient descent; φ is an input, so that 1 is not large.
      meta_gradient: as in `maml`.

    Raises:
      ValueError: as `maml` and `adapt.adapt_only`.

    >>> from jaxmeta import Task
    >>> init_fn = lambda key: {"context": jnp.zeros(()), "slope": jnp.ones(())}
    >>> def loss_fn(params, batch):
    ...     x, y = batch
    ...     return jnp.mean((params["slope"] * x + params["context"] - y) ** 2), {}
    >>> learner = cavia(init_fn, loss_fn, learning_rate=0.5)
    >>> task = (jnp.arange(3.0), jnp.arange(3.0) + 7)
    >>> params = learner.adapt(jax.random.key(0), learner.init(jax.random.key(1)).meta_params, Task(task))
    >>> round(params["context"].item(), 3), params["slope"].item()
    (7.0, 1.0)
    """
    check_where("context", context)
    inner_optimizer = context_only(adapt.sgd(learning_rate), context)
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=meta_gradient, **options)


def context_only(optimizer: InnerOptimizer, context: Where = "context") -> InnerOptimizer:
    """`adapt.adapt_only(optimizer, context)`, but the context starts at 0 and not at its meta-learned value.

    Raises:
      ValueError: `optimizer` is no inner optimizer, or `context` chooses nothing or does not fit the parameters.

    >>> optimizer = context_only(adapt.sgd(1.0))
    >>> optimizer.start(MetaParams({"context": jnp.ones(2), "slope": jnp.ones(())})).fast
    {'context': Array([0., 0.], dtype=float32), 'slope': None}
    """
    check_inner_optimizer("optimizer", optimizer)

    def start(meta_params: MetaParams) -> InnerState:
        return optimizer.start(meta_params._replace(params=jax.tree.map(jnp.zeros_like, meta_params.params)))

    return adapt.adapt_only(optimizer._replace(start=start), context)
