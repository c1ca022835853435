"""Inner optimizers: how gradients become adapted ("fast") weights, inside the inner loop.

| the paper                | the argument                                                      |
|--------------------------|-------------------------------------------------------------------|
| MAML                     | `sgd(learning_rate)`                                              |
| any optax transform      | `from_optax(optax.adam(1e-3, eps_root=1e-8))`                     |
| Meta-SGD                 | `meta_sgd(learning_rate)`, a learned rate for every parameter     |
| MAML++                   | `lslr(learning_rate, num_inner_steps)`, a learned rate per layer and step |
| MAML++, per-step norms   | `per_step(lslr(...), "scale", num_inner_steps)`, other values each step |
| iMAML                    | `proximal(sgd(learning_rate), strength)`, drawn back to θ         |
| ANIL, by filter          | `adapt_only(sgd(learning_rate), "head")`                          |
| ANIL, by optax partition | `from_optax(optax.partition({"head": ..., "body": ...}, labels))` |
| a learned optimizer      | `learned_optimizer(learning_rate)`, a network that makes the step |

Parameters that do not adapt are meta-learned all the same: the outer loss sees them through `params`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.adapt.select import Where, check_where, merge, select, split
from jaxmeta.checks import check_callable, check_fields, check_integer, check_number
from jaxmeta.types import MetaParams, Params, PyTree


class InnerState(NamedTuple):
    """What the inner loop carries: the fast weights, which adapt, and the optimizer's state.

    Attributes:
      fast: the fast weights: what adapts, in the form that `InnerOptimizer.start` gave it.
      opt_state: the state of the inner optimizer, such as a momentum; `()` if it has none.
    """

    fast: Params
    opt_state: PyTree


class InnerOptimizer(NamedTuple):
    """How to step inside, as four pure functions of one task: what `inner_optimizer` of a learner is.

    Attributes:
      init: (params) -> hyper, the hyperparameters that are meta-learned, `()` if none
      start: (meta_params) -> InnerState, the fast weights before the first step
      step: (meta_params, state, grads) -> InnerState, where `grads` has the shapes of `state.fast`
      params: (meta_params, fast) -> all parameters that are learned, in the shapes of `meta_params.params`

    The fast weights may be any pytree, of some parameters or of others in their place, as long as `params` makes the
    model's of them. Whatever `step` and `params` read of `meta_params` gets a gradient of the outer loss.

    >>> sign_descent = InnerOptimizer(  # with one learned rate for all
    ...     init=lambda params: jnp.array(0.5),
    ...     start=lambda meta_params: InnerState(meta_params.params, ()),
    ...     step=lambda meta_params, state, grads: InnerState(
    ...         jax.tree.map(lambda p, g: p - meta_params.hyper * jnp.sign(g), state.fast, grads), ()),
    ...     params=lambda meta_params, fast: fast,
    ... )
    >>> params = jnp.array([1.0, 2.0])
    >>> meta_params = MetaParams(params, sign_descent.init(params))
    >>> sign_descent.step(meta_params, sign_descent.start(meta_params), jnp.array([5.0, -5.0])).fast.tolist()
    [0.5, 2.5]
    """

    init: Callable[[Params], PyTree]
    start: Callable[[MetaParams], InnerState]
    step: Callable[[MetaParams, InnerState, Params], InnerState]
    params: Callable[[MetaParams, Params], Params]


def check_inner_optimizer(name: str, value: Any) -> None:
    check_fields(name, value, InnerOptimizer._fields, "for example sgd(0.01), or from_optax(...) around an optax one")


def from_optax(
    transform: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation], hyper: PyTree = None
) -> InnerOptimizer:
    """Any optax transformation, its state carried inside the inner loop and differentiated through.

    An Adam needs `eps_root > 0`: without it the second derivative at a zero gradient is infinite, and the outer steps
    that meet one are skipped as not finite.

    Args:
      transform: the optax transformation. Its `update` is given gradients, state and fast weights. With `hyper` a
        function, (hyper) -> transformation, of what is learned about it: rates, momenta, decays, of which it takes what
        is positive as an `exp`.
      hyper: where the learned hyperparameters start, a pytree of real numbers or arrays; nothing is learned if None.

    Raises:
      ValueError: `transform` is not an optax transformation, or with `hyper` no function that returns one.

    >>> optimizer = from_optax(optax.adam(1e-3, eps_root=1e-8))
    >>> learned = from_optax(lambda hyper: optax.sgd(jnp.exp(hyper["log_rate"])), {"log_rate": -2.3})
    >>> learned.init({"w": jnp.zeros(2)})
    {'log_rate': Array(-2.3, dtype=float32)}
    """
    is_learned = hyper is not None
    start_of_hyper = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), hyper) if is_learned else ()
    if is_learned:
        check_callable("transform", transform, "(hyper) -> an optax transformation, for hyper is given")
    made: Any = transform(start_of_hyper) if is_learned else transform  # type: ignore[operator]
    check_fields("transform", made, ("init", "update"), "an optax transformation, such as optax.sgd(0.01)")

    def transform_of(meta_params: MetaParams) -> Any:
        return transform(meta_params.hyper) if is_learned else transform  # type: ignore[operator]

    def start(meta_params: MetaParams) -> InnerState:
        return InnerState(meta_params.params, transform_of(meta_params).init(meta_params.params))

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        updates, opt_state = transform_of(meta_params).update(grads, state.opt_state, state.fast)
        return InnerState(optax.apply_updates(state.fast, updates), opt_state)

    return InnerOptimizer(lambda params: start_of_hyper, start, step, lambda meta_params, fast: fast)


def sgd(learning_rate: float | jax.Array) -> InnerOptimizer:
    """Gradient descent, θ' = θ − α ∇L(θ): the inner step of MAML.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Args:
      learning_rate: α ≥ 0, how far to go for a gradient of 1.

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

    Args:
      learning_rate: α ≥ 0 of every parameter before the first outer step.

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


def lslr(learning_rate: float, num_inner_steps: int) -> InnerOptimizer:
    """Gradient descent with a meta-learned rate for every layer and step, θ_{k+1} = θ_k − α_{l,k} ∇_l L(θ_k).

    A layer is a leaf of the parameters; each α has the shape [K] and starts at `learning_rate`. Steps after the K-th,
    at test, go on with the last rate.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502

    Args:
      learning_rate: α ≥ 0 of every layer and step before the first outer step.
      num_inner_steps: K, the inner steps that have a rate of their own, at least 1.

    Raises:
      ValueError: `learning_rate` is negative or not finite, or `num_inner_steps` is no positive integer.

    >>> lslr(0.1, num_inner_steps=3).init({"w": jnp.zeros((2, 2))})["w"].shape
    (3,)
    """
    check_number("learning_rate", learning_rate)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)

    def init(params: Params) -> PyTree:
        return jax.tree.map(lambda p: jnp.full(num_inner_steps, learning_rate, p.dtype), params)

    def start(meta_params: MetaParams) -> InnerState:
        return InnerState(meta_params.params, jnp.int32(0))

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        k = jnp.minimum(state.opt_state, num_inner_steps - 1)
        fast = jax.tree.map(lambda p, rates, g: p - rates[k] * g, state.fast, meta_params.hyper, grads)
        return InnerState(fast, state.opt_state + 1)

    return InnerOptimizer(init, start, step, lambda meta_params, fast: fast)


def per_step(optimizer: InnerOptimizer, where: Where, num_inner_steps: int) -> InnerOptimizer:
    """Gives some parameters a meta-learned value of their own at each of θ_0 .. θ_K; they do not adapt.

    With the scales, biases and statistics of a batch norm chosen, this is MAML++'s per-step batch normalisation. The
    values start at those of the parameters. Steps after the K-th, at test, go on with the last.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502

    Args:
      optimizer: the inner optimizer of the other parameters.
      where: which leaves have a value per step, as in `adapt_only`.
      num_inner_steps: K, inner steps, at least 1; there are K + 1 values.

    Raises:
      ValueError: an argument is wrong, or `where` chooses nothing or does not fit the parameters.

    >>> optimizer = per_step(sgd(0.1), "scale", num_inner_steps=2)
    >>> optimizer.init({"scale": jnp.ones(4), "w": jnp.ones(4)}).values["scale"].shape
    (3, 4)
    """
    check_inner_optimizer("optimizer", optimizer)
    check_where("where", where)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)

    def others(meta_params: MetaParams) -> MetaParams:
        return MetaParams(split(meta_params.params, where)[1], meta_params.hyper.others)

    def value(meta_params: MetaParams, k: int | jax.Array) -> Params:
        return jax.tree.map(lambda values: values[jnp.minimum(k, num_inner_steps)], meta_params.hyper.values)

    def init(params: Params) -> PerStep:
        chosen, rest = split(params, where)
        copies = jax.tree.map(lambda p: jnp.repeat(p[None], num_inner_steps + 1, axis=0), chosen)
        return PerStep(copies, optimizer.init(rest))

    def start(meta_params: MetaParams) -> InnerState:
        fast, opt_state = optimizer.start(others(meta_params))
        return InnerState(PerStep(value(meta_params, 0), fast), (opt_state, jnp.int32(0)))

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        opt_state, k = state.opt_state
        stepped = optimizer.step(others(meta_params), InnerState(state.fast.others, opt_state), grads.others)
        return InnerState(PerStep(value(meta_params, k + 1), stepped.fast), (stepped.opt_state, k + 1))

    def params(meta_params: MetaParams, fast: Params) -> Params:
        return merge(fast.values, optimizer.params(others(meta_params), fast.others))

    return InnerOptimizer(init, start, step, params)


class PerStep(NamedTuple):
    """What `per_step` chose, and what belongs to the optimizer of the others."""

    values: PyTree
    others: PyTree


def proximal(optimizer: InnerOptimizer, strength: float) -> InnerOptimizer:
    """Draws the fast weights back to where they started: the inner loss becomes L(φ) + λ/2 |φ − θ|².

    Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients" (2019), https://arxiv.org/abs/1909.04630

    Args:
      optimizer: the inner optimizer, which sees the gradient of the whole.
      strength: λ ≥ 0; the larger, the nearer the fast weights stay to θ.

    Raises:
      ValueError: `optimizer` is no inner optimizer, or `strength` is negative or not finite.

    >>> optimizer = proximal(sgd(0.1), 2.0)
    >>> meta_params = MetaParams(jnp.array(1.0))
    >>> optimizer.step(meta_params, InnerState(jnp.array(2.0), optimizer.start(meta_params).opt_state), 0.0).fast.item()
    1.7999999523162842
    """
    check_inner_optimizer("optimizer", optimizer)
    check_number("strength", strength)
    if not isinstance(strength, jax.core.Tracer) and strength == 0:
        return optimizer  # as it is: nothing draws, and what differentiates a solution sees that

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        start = optimizer.start(meta_params).fast
        pulled = jax.tree.map(lambda g, p, p_0: g + strength * (p - p_0), grads, state.fast, start)
        return optimizer.step(meta_params, state, pulled)

    return optimizer._replace(step=step)


def adapt_only(optimizer: InnerOptimizer, where: Where) -> InnerOptimizer:
    """Restricts adaptation to some parameters; the others keep their meta-learned values. With the head alone: ANIL.

    Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
    (2019), https://arxiv.org/abs/1909.09157

    Args:
      optimizer: the inner optimizer; it sees the chosen parameters only.
      where: which leaves adapt. A string is a part of the leaf's path, such as "head", or several that follow one
        another, such as "layers/2"; a function takes the whole path, such as `"params/head/kernel"`; anything else is a
        pytree of bools that is a prefix of the parameters.

    Raises:
      ValueError: `optimizer` is no inner optimizer, or `where` chooses nothing or does not fit the parameters.

    >>> optimizer = adapt_only(sgd(0.01), "head")
    >>> meta_params = MetaParams({"body": jnp.ones(1), "head": jnp.ones(1)})
    >>> optimizer.start(meta_params).fast
    {'body': None, 'head': Array([1.], dtype=float32)}
    """
    check_inner_optimizer("optimizer", optimizer)
    check_where("where", where)

    def chosen(meta_params: MetaParams) -> MetaParams:
        return meta_params._replace(params=select(meta_params.params, where))

    def params(meta_params: MetaParams, fast: Params) -> Params:
        return merge(optimizer.params(chosen(meta_params), fast), meta_params.params)

    return InnerOptimizer(
        init=lambda params: optimizer.init(select(params, where)),
        start=lambda meta_params: optimizer.start(chosen(meta_params)),
        step=lambda meta_params, state, grads: optimizer.step(chosen(meta_params), state, grads),
        params=params,
    )
