"""MAML and its family for supervised tasks: one constructor, the rest by its arguments.

    θ'_i = θ − α ∇L(θ; support_i)                            the inner loop, K times, for each task i
    θ   ← θ − β ∇_θ mean_i L(θ'_i; query_i)                  the outer loop, through the inner one

| the paper           | how                                                                                    |
|---------------------|----------------------------------------------------------------------------------------|
| MAML                | `maml(init_fn, loss_fn)`                                                               |
| FOMAML              | `fomaml(...)`: `meta_gradient=first_order()`                                           |
| truncated MAML      | `maml(..., meta_gradient=truncated(n))`                                                |
| Meta-SGD            | `meta_sgd(...)`: `inner_optimizer=adapt.meta_sgd(α)`                                   |
| ANIL                | `anil(...)`: `inner_optimizer=adapt_only(sgd(α), "head")`                              |
| MAML++              | `maml_plus_plus(...)`: rates per layer and step, the loss after each step, annealed    |
| iMAML               | `imaml(...)`: `meta_gradient=adapt.implicit()`, a proximal inner loop                  |
| ES-MAML             | `maml(..., meta_gradient=adapt.evolution_strategy())`                                  |
| Reptile             | `reptile(...)`: `meta_gradient=adapt.reptile()`, minibatches inside, SGD outside       |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.checks import (
    check_callable,
    check_fields,
    check_integer,
    check_loss_fn,
    check_number,
    check_params,
    check_query,
    check_task,
    check_tasks,
)
from jaxmeta.outer import mean_over_tasks, outer_step
from jaxmeta.types import (
    Batch,
    InitFn,
    LossFn,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    Params,
    Task,
)


def maml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    inner_optimizer: InnerOptimizer = adapt.sgd(0.01),
    num_inner_steps: int = 1,
    num_eval_steps: int | None = None,
    batch_size: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    stochastic: bool = False,
    loss_weights: Callable[[jax.Array], jax.Array] | None = None,
    meta_gradient: adapt.MetaGradient = adapt.auto(),
    optimizer: optax.GradientTransformation = optax.adam(1e-3),
    microbatch: int | None = None,
) -> MetaLearner:
    """Model-agnostic meta-learning: an initialisation from which few gradient steps learn a task.

    Its exact meta-gradient for one inner step is (I − α ∇²L(θ)) ∇L'(θ − α ∇L(θ)).

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Args:
      init_fn: (key) -> params, any pytree of real arrays: of flax, of equinox, or a plain dictionary.
      loss_fn: (params, batch) -> (scalar loss, {name: scalar}), for the support as for the query set.
      inner_optimizer: how to step inside, and which parameters adapt (see `jaxmeta.adapt`).
      num_inner_steps: K, inner steps while meta-training.
      num_eval_steps: inner steps of `adapt` and `evaluate`; `num_inner_steps` if None.
      batch_size: examples of a minibatch that each inner step draws from the support set without replacement; the
        whole set if None.
      condition_fn: (params, support) -> params, what else the support set says of a task once it is adapted to, such as
        `nn.support_statistics`; nothing if None. With it the query set is judged, before and after each step, and
        `adapt` returns what it returns. It is differentiated through, and has no part in the inner loop.
      stochastic: the loss draws, for dropout: `loss_fn(params, batch, key)`. The key is None where `evaluate` judges.
      loss_weights: (outer step) -> [K], the weights of the query losses after each inner step, whose sum is the outer
        loss; the last one alone if None. See `multi_step_weights`.
      meta_gradient: how to differentiate the inner loop (see `jaxmeta.adapt`); `auto()` is exact.
      optimizer: the outer optax transformation.
      microbatch: tasks that are vectorised at a time; chosen for the backend if None, see `outer.mean_over_tasks`.

    Returns:
      A `MetaLearner` for `Task`s. Its `update` takes N stacked tasks and reports the query set's `loss` and metrics
      after adaptation, averaged over tasks, with `grad_norm` and `is_finite`.

    Raises:
      ValueError: an argument is wrong; while tracing, what a function of the user returned or a task has a wrong shape.

    >>> import jax.numpy as jnp
    >>> init_fn = lambda key: {"w": jax.random.normal(key)}
    >>> def loss_fn(params, batch):
    ...     x, y = batch
    ...     return jnp.mean((params["w"] * x - y) ** 2), {}
    >>> learner = maml(init_fn, loss_fn, inner_optimizer=adapt.sgd(0.5), num_inner_steps=2)
    >>> state = learner.init(jax.random.key(0))
    >>> x = jnp.ones((8, 4))  # 8 tasks of 4 examples
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(1), state, Task((x, 2 * x), (x, 2 * x)))
    >>> metrics["loss"].item()
    0.0
    """
    check_callable("init_fn", init_fn, "(key) -> params")
    checked_loss_fn = check_loss_fn(loss_fn)
    check_inner_optimizer("inner_optimizer", inner_optimizer)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    num_eval_steps = num_inner_steps if num_eval_steps is None else num_eval_steps
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    if batch_size is not None:
        check_integer("batch_size", batch_size, minimum=1)
    if condition_fn is not None:
        check_callable("condition_fn", condition_fn, "(params, support) -> params")
    check_callable("meta_gradient", meta_gradient, "(adapt, outer) -> task_gradient, such as jaxmeta.adapt.exact()")
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    if loss_weights is not None:
        check_callable("loss_weights", loss_weights, "(outer step) -> weights [num_inner_steps]")
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)
    loss_of = checked_loss_fn if stochastic else lambda params, batch, key: checked_loss_fn(params, batch)

    condition = condition_fn or (lambda params, support: params)

    def judge(params: Params, task: Task, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        return loss_of(condition(params, task.support), task.query, key)

    def unroll(meta_params: MetaParams, keys: jax.Array, support: Batch, **how) -> tuple[InnerState, adapt.Trace]:
        def draw(key: jax.Array, params: Params) -> tuple[Batch, jax.Array | None]:
            batch_key, loss_key = jax.random.split(key) if stochastic else (key, None)
            return _minibatch(batch_key, support, batch_size), loss_key

        loss_fn = lambda params, drawn: loss_of(params, *drawn)
        return adapt.unroll(inner_optimizer, loss_fn, draw, meta_params, keys, **how)

    def inner(meta_params: MetaParams, keys: jax.Array, judged: _Judged, **how) -> tuple[adapt.Adapted, InnerState]:
        query_loss = lambda params, drawn: judge(params, judged.task, judged.key)[0]
        observe = {} if judged.weights is None else {"observe": query_loss}
        state, trace = unroll(meta_params, keys, judged.task.support, **observe, **how)
        return adapt.Adapted(inner_optimizer.params(meta_params, state.fast), trace.observed), state

    def outer(adapted: adapt.Adapted, judged: _Judged) -> tuple[jax.Array, Metrics]:
        loss, metrics = judge(adapted.params, judged.task, judged.key)
        if judged.weights is None:
            return loss, metrics
        return _weighted(judged.weights, jnp.append(adapted.observed[1:], loss)), metrics

    task_gradient = meta_gradient(inner, outer)

    def init(key: jax.Array) -> MetaState:
        params = check_params(init_fn(key))
        meta_params = MetaParams(params, inner_optimizer.init(params))
        return MetaState(jnp.int32(0), meta_params, optimizer.init(meta_params), jnp.int32(0))

    def update(key: jax.Array, state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
        weights = None if loss_weights is None else loss_weights(state.step)

        def gradient(meta_params: MetaParams, per_task: tuple[jax.Array, Task]):
            key, task = per_task
            gradient_key, query_key, inner_key = jax.random.split(key, 3)
            keys = jax.random.split(inner_key, num_inner_steps)
            return task_gradient(gradient_key, meta_params, keys, _Judged(task, query_key, weights))

        keys = jax.random.split(key, check_tasks(tasks))
        (loss, metrics), grads = mean_over_tasks(gradient, microbatch, state.meta_params, (keys, tasks))
        return outer_step(optimizer, state, loss, metrics, grads)

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: Task) -> Params:
        check_task(task)
        state, _ = unroll(meta_params, jax.random.split(key, num_eval_steps), task.support)
        return condition(inner_optimizer.params(meta_params, state.fast), task.support)

    def evaluate(key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
        check_query(task)
        observe = lambda params, drawn=None: _metrics(*judge(params, task, None))
        keys = jax.random.split(key, num_eval_steps)
        state, trace = unroll(meta_params, keys, task.support, observe=observe)
        last = observe(inner_optimizer.params(meta_params, state.fast))
        return jax.tree.map(lambda curve, end: jnp.append(curve, end), trace.observed, last)

    return MetaLearner(init, update, adapt_to, evaluate)


class _Judged(NamedTuple):
    """A task, the key of its query loss, and the weights of that loss after each inner step."""

    task: Task
    key: jax.Array
    weights: jax.Array | None


def _weighted(weights: jax.Array, losses: jax.Array) -> jax.Array:
    if jnp.shape(weights) != losses.shape:
        raise ValueError(
            f"loss_weights must return one weight for each of the {losses.size} inner steps that the outer loss is "
            f"differentiated through, got shape {jnp.shape(weights)}"
        )
    return jnp.sum(jnp.asarray(weights, losses.dtype) * losses)


def _metrics(loss: jax.Array, metrics: Metrics) -> Metrics:
    """What `loss_fn` reports; the loss itself where it reports nothing."""
    return metrics or {"loss": loss}


def _minibatch(key: jax.Array, batch: Batch, batch_size: int | None) -> Batch:
    if batch_size is None:
        return batch
    num_examples = len(jax.tree.leaves(batch)[0])
    if batch_size > num_examples:
        raise ValueError(f"batch_size must be at most the {num_examples} examples of the support set, got {batch_size}")
    chosen = jax.random.choice(key, num_examples, (batch_size,), replace=False)
    return jax.tree.map(lambda x: x[chosen], batch)


def fomaml(init_fn: InitFn, loss_fn: LossFn, **kwargs) -> MetaLearner:
    """First-order MAML: `maml` with `meta_gradient=adapt.first_order()`. Other arguments, errors and source as there.

    >>> learner = fomaml(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    return maml(init_fn, loss_fn, meta_gradient=adapt.first_order(), **kwargs)


def meta_sgd(init_fn: InitFn, loss_fn: LossFn, *, learning_rate: float = 0.01, **kwargs) -> MetaLearner:
    """Meta-SGD: `maml` that also learns a rate for each parameter, from `learning_rate` on. Other arguments as there.

    Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017),
    https://arxiv.org/abs/1707.09835

    >>> learner = meta_sgd(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    return maml(init_fn, loss_fn, inner_optimizer=adapt.meta_sgd(learning_rate), **kwargs)


def anil(init_fn: InitFn, loss_fn: LossFn, *, head="head", learning_rate: float = 0.01, **kwargs) -> MetaLearner:
    """ANIL, almost no inner loop: `maml` in which only the `head` adapts (see `adapt.adapt_only`). Others as there.

    Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
    (2019), https://arxiv.org/abs/1909.09157

    >>> learner = anil(lambda key: {"body": 0.0, "head": 1.0}, lambda params, batch: (params["head"] ** 2, {}))
    """
    return maml(init_fn, loss_fn, inner_optimizer=adapt.adapt_only(adapt.sgd(learning_rate), head), **kwargs)


def multi_step_weights(num_inner_steps: int, num_outer_steps: int) -> Callable[[jax.Array], jax.Array]:
    """MAML++'s annealed weights of the query loss after each inner step: from 1/K each to the last one alone.

    At a share t = step / `num_outer_steps` of the way, at most 1, an early weight is max(1 − t, 0.03) / K; the last is
    what is missing to 1.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502; the floor is that
    of their code.

    Args:
      num_inner_steps: K, inner steps.
      num_outer_steps: outer steps until the weights stay.

    Raises:
      ValueError: an argument is no positive integer.

    >>> multi_step_weights(4, 100)(0).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    check_integer("num_outer_steps", num_outer_steps, minimum=1)

    def weights(step: jax.Array) -> jax.Array:
        early = jnp.maximum(1 - jnp.asarray(step, float) / num_outer_steps, 0.03) / num_inner_steps
        return jnp.full(num_inner_steps, early).at[-1].set(1 - (num_inner_steps - 1) * early)

    return weights


def maml_plus_plus(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    learning_rate: float = 0.01,
    num_inner_steps: int = 5,
    num_annealing_steps: int,
    **kwargs,
) -> MetaLearner:
    """MAML++: `maml` that learns a rate per layer and step, and is judged after each step. Other arguments as there.

    Per-step batch normalisation is `inner_optimizer=adapt.per_step(adapt.lslr(...), ...)`; the paper's falling outer
    rate is the `optimizer`'s.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      learning_rate: where the inner rates start.
      num_inner_steps: K.
      num_annealing_steps: outer steps until only the loss after the last inner step counts (`multi_step_weights`).

    Raises:
      ValueError: as `maml`.

    >>> learner = maml_plus_plus(lambda key: 0.0, lambda params, batch: (params**2, {}), num_annealing_steps=100)
    """
    check_integer("num_annealing_steps", num_annealing_steps, minimum=1)
    kwargs.setdefault("inner_optimizer", adapt.lslr(learning_rate, num_inner_steps))
    loss_weights = multi_step_weights(num_inner_steps, num_annealing_steps)
    return maml(init_fn, loss_fn, num_inner_steps=num_inner_steps, loss_weights=loss_weights, **kwargs)


def imaml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    strength: float = 2.0,
    learning_rate: float = 0.01,
    solver: adapt.Solver = adapt.conjugate_gradient(5),
    damping: float = 0.0,
    **kwargs,
) -> MetaLearner:
    """iMAML: `maml` through the solution of a proximal inner problem, min L(φ) + λ/2 |φ − θ|². Others as in `maml`.

    The meta-gradient is (I + ∇²L(φ) / λ)⁻¹ ∇L'(φ), by conjugate gradient. The inner loop must come near the solution:
    many steps, of a rate below 2 / (λ + the largest curvature).

    Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients" (2019), https://arxiv.org/abs/1909.04630

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      strength: λ.
      learning_rate: α, of the inner gradient descent.
      solver: as in `adapt.implicit`.
      damping: as in `adapt.implicit`; without it, conv4 did not learn on Omniglot.

    Raises:
      ValueError: as `maml`, `adapt.proximal` and `adapt.implicit`.

    >>> learner = imaml(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}), num_inner_steps=16)
    """
    inner_optimizer = adapt.proximal(adapt.sgd(learning_rate), strength)
    meta_gradient = adapt.implicit(solver=solver, damping=damping)
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=meta_gradient, **kwargs)


def reptile(
    init_fn: InitFn, loss_fn: LossFn, *, step_size: float = 0.1, num_inner_steps: int = 5, **kwargs
) -> MetaLearner:
    """Reptile: θ ← θ + ε mean_i (θ'_i − θ), with ε = `step_size` unless an `optimizer` is given. Others as in `maml`.

    With one inner step and the whole support set it would be joint training: it needs `num_inner_steps` ≥ 2, best with
    `batch_size` smaller than the support set.

    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms" (2018), https://arxiv.org/abs/1803.02999

    Raises:
      ValueError: as `maml`; `step_size` is negative or not finite; `num_inner_steps` is less than 2.

    >>> learner = reptile(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    check_number("step_size", step_size)
    check_integer("num_inner_steps", num_inner_steps, minimum=2)
    kwargs.setdefault("optimizer", optax.sgd(step_size))
    return maml(init_fn, loss_fn, num_inner_steps=num_inner_steps, meta_gradient=adapt.reptile(), **kwargs)
