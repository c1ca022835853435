"""Inner optimizers: how gradients become adapted ("fast") weights, inside the inner loop.

| the paper                | the argument                                                      |
|--------------------------|-------------------------------------------------------------------|
| MAML                     | `sgd(learning_rate)`                                              |
| any optax transform      | `from_optax(optax.adam(1e-3, eps_root=1e-8))`                     |
| Meta-SGD                 | `meta_sgd(learning_rate)`, a learned rate for every parameter     |
| ANIL, by filter          | `adapt_only(sgd(learning_rate), "head")`                          |
| ANIL, by optax partition | `from_optax(optax.partition({"head": ..., "body": ...}, labels))` |

Parameters that do not adapt are meta-learned all the same: the outer loss sees them through `params`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_fields, check_number
from jaxmeta.types import MetaParams, Params, PyTree


class InnerState(NamedTuple):
    """What the inner loop carries: the fast weights and the optimizer's state."""

    fast: Params
    opt_state: PyTree


class InnerOptimizer(NamedTuple):
    """init:   (params) -> hyper, the hyperparameters that are meta-learned, `()` if none
    start:  (meta_params) -> InnerState, before the first step
    step:   (meta_params, state, grads) -> InnerState
    params: (meta_params, fast) -> all of the model's parameters
    """

    init: Callable[[Params], PyTree]
    start: Callable[[MetaParams], InnerState]
    step: Callable[[MetaParams, InnerState, Params], InnerState]
    params: Callable[[MetaParams, Params], Params]


def check_inner_optimizer(name: str, value: Any) -> None:
    check_fields(name, value, InnerOptimizer._fields, "for example sgd(0.01), or from_optax(...) around an optax one")


def from_optax(transform: optax.GradientTransformation) -> InnerOptimizer:
    """Any optax transformation, its state carried inside the inner loop and differentiated through.

    An Adam needs `eps_root > 0`: without it the second derivative at a zero gradient is infinite, and the outer steps
    that meet one are skipped as not finite.

    Raises:
      ValueError: `transform` is not an optax transformation.

    >>> optimizer = from_optax(optax.adam(1e-3, eps_root=1e-8))
    """
    check_fields("transform", transform, ("init", "update"), "an optax transformation, such as optax.sgd(0.01)")

    def start(meta_params: MetaParams) -> InnerState:
        return InnerState(meta_params.params, transform.init(meta_params.params))

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        updates, opt_state = transform.update(grads, state.opt_state, state.fast)
        return InnerState(optax.apply_updates(state.fast, updates), opt_state)

    return InnerOptimizer(lambda params: (), start, step, lambda meta_params, fast: fast)


def sgd(learning_rate: float | jax.Array) -> InnerOptimizer:
    """Gradient descent, θ' = θ − α ∇L(θ): the inner step of MAML.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Raises:
      ValueError: `learning_rate` is negative or not finite.

    >>> optimizer = sgd(0.01)
    """
    check_number("learning_rate", learning_rate)
    return from_optax(optax.sgd(learning_rate))


def meta_sgd(learning_rate: float) -> InnerOptimizer:
    """Gradient descent with a meta-learned rate for every parameter, θ' = θ − α ∘ ∇L(θ).

    α has the shape of θ, starts at `learning_rate`, and is learned by the outer loop together with θ. It may become
    negative, as in the paper.

    Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017),
    https://arxiv.org/abs/1707.09835

    Raises:
      ValueError: `learning_rate` is negative or not finite.

    >>> meta_sgd(0.01).init({"w": jnp.zeros(2)})["w"].tolist()
    [0.009999999776482582, 0.009999999776482582]
    """
    check_number("learning_rate", learning_rate)

    def init(params: Params) -> PyTree:
        return jax.tree.map(lambda p: jnp.full_like(p, learning_rate), params)

    def start(meta_params: MetaParams) -> InnerState:
        return InnerState(meta_params.params, ())

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        fast = jax.tree.map(lambda p, rate, g: p - rate * g, state.fast, meta_params.hyper, grads)
        return InnerState(fast, ())

    return InnerOptimizer(init, start, step, lambda meta_params, fast: fast)


def adapt_only(optimizer: InnerOptimizer, where: str | Callable[[str], bool] | PyTree) -> InnerOptimizer:
    """Restricts adaptation to some parameters; the others keep their meta-learned values. With the head alone: ANIL.

    Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
    (2019), https://arxiv.org/abs/1909.09157

    Args:
      optimizer: the inner optimizer; it sees the chosen parameters only.
      where: which leaves adapt. A string is the name of a part of the leaf's path; a function takes the whole path,
        such as `"params/head/kernel"`; anything else is a pytree of bools that is a prefix of the parameters.

    Raises:
      ValueError: `optimizer` is no inner optimizer, or `where` chooses nothing or does not fit the parameters.

    >>> optimizer = adapt_only(sgd(0.01), "head")
    >>> meta_params = MetaParams({"body": jnp.ones(1), "head": jnp.ones(1)})
    >>> optimizer.start(meta_params).fast
    {'body': None, 'head': Array([1.], dtype=float32)}
    """
    check_inner_optimizer("optimizer", optimizer)

    def chosen(meta_params: MetaParams) -> MetaParams:
        return meta_params._replace(params=_select(meta_params.params, where))

    def params(meta_params: MetaParams, fast: Params) -> Params:
        adapted = optimizer.params(chosen(meta_params), fast)
        merge = lambda kept, new: kept if new is None else new
        return jax.tree.map(merge, meta_params.params, adapted, is_leaf=lambda leaf: leaf is None)

    return InnerOptimizer(
        init=lambda params: optimizer.init(_select(params, where)),
        start=lambda meta_params: optimizer.start(chosen(meta_params)),
        step=lambda meta_params, state, grads: optimizer.step(chosen(meta_params), state, grads),
        params=params,
    )


def _select(params: Params, where: str | Callable[[str], bool] | PyTree) -> Params:
    """`params` with None, an empty pytree, for each leaf that does not adapt."""
    if isinstance(where, str):
        mask = _mask_of_paths(params, lambda path: where in path.split("/"))
    elif callable(where):
        mask = _mask_of_paths(params, where)
    else:
        mask = _broadcast_mask(params, where)
    if not any(jax.tree.leaves(mask)):
        paths = [_path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(f"where={where!r} chooses no parameter to adapt; the parameters are {', '.join(paths)}")
    return jax.tree.map(lambda keep, p: p if keep else None, mask, params)


def _mask_of_paths(params: Params, where: Callable[[str], bool]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(where(_path_string(path))), params)


def _path_string(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _broadcast_mask(params: Params, where: PyTree) -> PyTree:
    if not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(where)):
        raise ValueError(f"where must be a name, a function of a path or a pytree of bools, got {where!r}")
    try:
        return jax.tree.map(lambda keep, part: jax.tree.map(lambda _: keep, part), where, params)
    except (ValueError, TypeError) as error:
        raise ValueError(f"where={where!r} is no prefix of the parameters: {error}") from error
