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
| Reptile             | `reptile(...)`: `meta_gradient=adapt.reptile()`, minibatches inside, SGD outside       |
"""

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.checks import check_callable, check_fields, check_integer, check_loss_fn, check_number, check_params
from jaxmeta.types import (
    Batch,
    InitFn,
    LossFn,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    Params,
    PyTree,
    Task,
)


def maml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    inner_optimizer: InnerOptimizer = adapt.sgd(0.01),
    num_steps: int = 1,
    num_eval_steps: int | None = None,
    batch_size: int | None = None,
    meta_gradient: adapt.MetaGradient = adapt.exact(),
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
      num_steps: K, inner steps while meta-training.
      num_eval_steps: inner steps of `adapt` and `evaluate`; `num_steps` if None.
      batch_size: examples of a minibatch that each inner step draws from the support set without replacement; the
        whole set if None.
      meta_gradient: how to differentiate the inner loop (see `jaxmeta.adapt`).
      optimizer: the outer optax transformation.
      microbatch: tasks that are vectorised at a time, N if None; on a CPU, 1 is often faster for convolutions.

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
    >>> learner = maml(init_fn, loss_fn, inner_optimizer=adapt.sgd(0.5), num_steps=2)
    >>> state = learner.init(jax.random.key(0))
    >>> x = jnp.ones((8, 4))  # 8 tasks of 4 examples
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(1), state, Task((x, 2 * x), (x, 2 * x)))
    >>> metrics["loss"].item()
    0.0
    """
    check_callable("init_fn", init_fn, "(key) -> params")
    loss_fn = check_loss_fn(loss_fn)
    check_inner_optimizer("inner_optimizer", inner_optimizer)
    check_integer("num_steps", num_steps, minimum=1)
    num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    if batch_size is not None:
        check_integer("batch_size", batch_size, minimum=1)
    check_callable("meta_gradient", meta_gradient, "(adapt, outer) -> task_gradient, such as jaxmeta.adapt.exact()")
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)

    def unroll(meta_params: MetaParams, sources: PyTree, task: Task, **how) -> tuple[InnerState, adapt.Trace]:
        draw = lambda key, params: _minibatch(key, task.support, batch_size)
        return adapt.unroll(inner_optimizer, loss_fn, draw, meta_params, sources, **how)

    def inner(meta_params: MetaParams, sources: PyTree, task: Task, **how) -> tuple[Params, InnerState]:
        state, _ = unroll(meta_params, sources, task, **how)
        return inner_optimizer.params(meta_params, state.fast), state

    def outer(params: Params, task: Task) -> tuple[jax.Array, Metrics]:
        return loss_fn(params, task.query)

    task_gradient = meta_gradient(inner, outer)

    def init(key: jax.Array) -> MetaState:
        params = check_params(init_fn(key))
        meta_params = MetaParams(params, inner_optimizer.init(params))
        return MetaState(jnp.int32(0), meta_params, optimizer.init(meta_params), jnp.int32(0))

    def update(key: jax.Array, state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
        num_tasks = _check_tasks(tasks)
        sources = jax.random.split(key, (num_tasks, num_steps))
        gradient = lambda meta_params, per_task: task_gradient(meta_params, *per_task)
        (loss, metrics), grads = adapt.mean_over_tasks(gradient, microbatch, state.meta_params, (sources, tasks))
        return adapt.outer_step(optimizer, state, loss, metrics, grads)

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: Task) -> Params:
        _check_task(task)
        return inner(meta_params, jax.random.split(key, num_eval_steps), task)[0]

    def evaluate(key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
        _check_query(task)
        metrics_of = lambda params: _metrics(*loss_fn(params, task.query))
        state, trace = unroll(meta_params, jax.random.split(key, num_eval_steps), task, observe=metrics_of)
        last = metrics_of(inner_optimizer.params(meta_params, state.fast))
        return jax.tree.map(lambda curve, end: jnp.append(curve, end), trace.observed, last)

    return MetaLearner(init, update, adapt_to, evaluate)


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


def _check_tasks(tasks: Task) -> int:
    """N, the leading axis that all arrays of `tasks` share."""
    _check_query(tasks)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"tasks must be stacked, every array with the same leading axis N; the leading axes are {sizes}"
        )
    return sizes.pop()[0]


def _check_task(task: Task) -> None:
    if not isinstance(task, Task):
        raise ValueError(f"task must be a jaxmeta.Task(support, query), got {type(task).__name__}")


def _check_query(task: Task) -> None:
    _check_task(task)
    if not jax.tree.leaves(task.query):
        raise ValueError("task must have a query set to be judged on, got none: Task(support, query)")


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


def reptile(init_fn: InitFn, loss_fn: LossFn, *, step_size: float = 0.1, num_steps: int = 5, **kwargs) -> MetaLearner:
    """Reptile: θ ← θ + ε mean_i (θ'_i − θ), with ε = `step_size` unless an `optimizer` is given. Others as in `maml`.

    With one inner step and the whole support set it would be joint training: it needs `num_steps` ≥ 2, best with
    `batch_size` smaller than the support set.

    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms" (2018), https://arxiv.org/abs/1803.02999

    Raises:
      ValueError: as `maml`; `step_size` is negative or not finite; `num_steps` is less than 2.

    >>> learner = reptile(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    check_number("step_size", step_size)
    check_integer("num_steps", num_steps, minimum=2)
    kwargs.setdefault("optimizer", optax.sgd(step_size))
    return maml(init_fn, loss_fn, num_steps=num_steps, meta_gradient=adapt.reptile(), **kwargs)
