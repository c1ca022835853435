"""Bilevel problems whose inner problem lives on: hyperparameters, data weights, learned losses, learned optimizers.

    θ_{k+1} = step(θ_k, ∇_θ L(θ_k, η; batch_k), η)           K inner steps, from where each of N problems stands
    η       ← η − β ∇_η mean_i L'(θ_{i,K}, η; query_i)       the outer loop, through these K steps

MAML is the one in which η is where θ starts, and starts there each time. Here θ goes on from one outer step to the
next, and begins anew after a lifetime, if ever; how the window of K steps is differentiated is an argument, as there.

| the literature                | how                                                                                |
|-------------------------------|------------------------------------------------------------------------------------|
| truncated unrolling           | `bilevel(...)`: exact within the window, nothing of what was before                |
| SOBA, AmIGO                   | `meta_gradient=adapt.implicit(solver=adapt.neumann_series(n))`, n = 1, and some    |
| StocBiO                       | the same with `warm_start=False`                                                   |
| persistent evolution strategy | `meta_gradient=adapt.persistent_evolution_strategy(num_truncations=1)`             |
| test-time training            | `stream=True, judged="met"`, `inner_optimizer=adapt.adapt_only(...)`               |
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.meta_gradients import check_meta_gradient
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.algorithms.maml import reported
from jaxmeta.algorithms.minibatches import minibatch
from jaxmeta.checks import (
    a_key,
    check_arguments,
    check_choice,
    check_flag,
    check_integer,
    check_loss_fn,
    check_meta_params,
    check_optional_counts,
    check_params,
    check_pure,
    check_query,
    check_stacked,
    check_state,
    check_task,
)
from jaxmeta.outer import chosen_optimizer, initial_state, outer_step, over_tasks
from jaxmeta.types import Batch, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, Task, learned


def bilevel(
    init_fn: Callable[[jax.Array, PyTree], Params],
    meta_init_fn: Callable[[jax.Array], PyTree],
    loss_fn: Callable,
    *,
    num_inner_steps: int,
    outer_loss_fn: Callable | None = None,
    inner_optimizer: InnerOptimizer | None = None,
    num_problems: int = 1,
    lifetime: int | None = None,
    staggered: bool = True,
    judged: Literal["last", "met"] = "last",
    batch_size: int | None = None,
    stream: bool = False,
    stochastic: bool = False,
    num_eval_steps: int | None = None,
    meta_gradient: adapt.MetaGradient | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """What N inner problems have in common is learned while they go on: a window of K inner steps for each outer step.

    What was before the window is a constant: the meta-gradient is exact for the window, and truncated beyond it, but
    for `adapt.persistent_evolution_strategy`, which sees the whole lifetime, and `adapt.implicit`, which is of the
    solution. Where a problem begins, its beginning is differentiated, so that with `lifetime=num_inner_steps` and an
    `init_fn` that returns what is learned this is `maml`.

    Franceschi, Frasconi, Salzo, Grazzi, Pontil, "Bilevel Programming for Hyperparameter Optimization and Meta-Learning"
    (2018), https://arxiv.org/abs/1806.04910

    A problem that is no longer finite begins anew, and the outer step that met it is skipped and counted.

    Args:
      init_fn: (key, meta_params) -> θ, the parameters of an inner problem that begins; it may ignore either.
      meta_init_fn: (key) -> η, what is learned, any pytree of real arrays; `()` where it is hyperparameters alone.
      loss_fn: L, (params, meta_params, batch) -> (scalar loss, {name: scalar}), which θ descends.
      num_inner_steps: K, inner steps for each outer step, at least 1.
      outer_loss_fn: L', in the same form, which η descends; `loss_fn` if None.
      inner_optimizer: how to step inside. Its hyperparameters, such as those of `adapt.from_optax(make, hyper)`, are
        learned beside η, in `meta_params.hyper`. `adapt.sgd(0.01)` if None.
      num_problems: N, inner problems that are trained side by side, the `num_tasks` of `fit`. Problem i is the i-th
        task of `update`, for as long as it lives: `fit` sees to it.
      lifetime: inner steps after which a problem begins anew, on another task, a multiple of K; never if None. With K
        every outer step begins anew, and nothing is carried.
      staggered: the first lifetimes are of different lengths, so that not all problems are of one age.
      judged: "last": η descends L' of the query set after the K steps. "met": the mean of L' of the batches that the K
        steps learn from, each met before it is learned: the loss on the way, as of an optimizer or of a stream.
      batch_size: examples of a minibatch that each inner step draws from the support set, as in `maml`; all if None.
      stream: the support set is a stream: its arrays have a leading axis of chunks before that of examples, at least as
        many as `lifetime`, and inner step t of a lifetime learns from chunk t.
      stochastic: the losses draw: (params, meta_params, batch, key), for noise, dropout, or rollouts. There is always a
        key, unlike in `maml`: `evaluate` judges by L' as it is learned by, at every step by the same key, so that
        entries of a curve differ in the parameters alone. An L' that is to judge without dropout leaves it out.
      num_eval_steps: inner steps of `adapt` and `evaluate`, from a beginning; `lifetime` if None, K if that is too.
      meta_gradient: how to differentiate the window (see `jaxmeta.adapt`); `adapt.auto()`, which is exact, if None.
      optimizer: the outer optax transformation, of η and the hyperparameters; `optax.adam(1e-3)` if None.
      microbatch: problems that are vectorised at a time, as in `maml`.

    Returns:
      A `MetaLearner` for `Task`s. `update` reports the outer `loss` and metrics, averaged over problems, and as
      "inner_loss" L before the window's last step, but for `adapt.implicit`, which keeps nothing of the steps. `adapt`
      returns θ. `evaluate` trains a problem from its beginning: entry k is judged after k inner steps, [K + 1] on the
      query set, or with `judged="met"` [K], on the batch that is met. The state's `carry` is a `Problems`.

    Raises:
      ValueError: an argument is wrong; while tracing, what a function of the user returned or a task has a wrong shape.

    The weight of an L2 penalty: θ = Σx² / (Σx² + λ) · 2 of the support set is best for the query set where it is 1.

    >>> loss_fn = lambda params, meta_params, batch: (
    ...     jnp.mean((params * batch[0] - batch[1]) ** 2) + jnp.exp(meta_params) * params ** 2, {})
    >>> outer_loss_fn = lambda params, meta_params, batch: (jnp.mean((params * batch[0] - batch[1]) ** 2), {})
    >>> learner = bilevel(
    ...     lambda key, meta_params: jnp.zeros(()), lambda key: jnp.array(-2.0), loss_fn, num_inner_steps=10,
    ...     outer_loss_fn=outer_loss_fn, inner_optimizer=adapt.sgd(0.1), optimizer=optax.adam(0.1))
    >>> x = jnp.ones((1, 4))  # one problem
    >>> state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    >>> for i in range(200):
    ...     state, metrics = update(jax.random.key(i), state, Task((x, 2 * x), (x, x)))
    >>> round(float(jnp.exp(state.meta_params.params)), 2), round(float(state.carry.inner.fast[0]), 2)
    (1.0, 1.0)
    """
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    check_integer("num_problems", num_problems, minimum=1)
    check_optional_counts(num_eval_steps=num_eval_steps, batch_size=batch_size, microbatch=microbatch)
    check_arguments("init_fn", init_fn, ("key", "meta_params"), "an inner problem begins by what is learned, or not")
    check_arguments("meta_init_fn", meta_init_fn, ("key",), "what is learned begins by a key alone")
    for name, flag in (("staggered", staggered), ("stream", stream), ("stochastic", stochastic)):
        check_flag(name, flag)
    check_choice("judged", judged, ("last", "met"))
    _check_lifetime(lifetime, num_inner_steps, stream, batch_size)
    arguments = ("params", "meta_params", "batch")
    checked_loss = lambda name, fn: check_loss_fn(name, fn, stochastic, arguments)
    inner_loss_fn = checked_loss("loss_fn", loss_fn)
    spec = _Bilevel(
        init_fn=init_fn,
        meta_init_fn=meta_init_fn,
        loss_fn=inner_loss_fn,
        outer_loss_fn=inner_loss_fn if outer_loss_fn is None else checked_loss("outer_loss_fn", outer_loss_fn),
        inner_optimizer=adapt.sgd(0.01) if inner_optimizer is None else inner_optimizer,
        num_problems=num_problems,
        num_inner_steps=num_inner_steps,
        num_eval_steps=num_eval_steps or lifetime or num_inner_steps,
        lifetime=lifetime,
        staggered=staggered,
        judged=judged,
        batch_size=batch_size,
        stream=stream,
        stochastic=stochastic,
        optimizer=chosen_optimizer(optimizer, optax.adam(1e-3)),
        microbatch=microbatch,
    )
    check_inner_optimizer("inner_optimizer", spec.inner_optimizer)
    task_gradient = _task_gradient(spec, adapt.auto() if meta_gradient is None else meta_gradient)
    return MetaLearner(
        init=lambda key: _init(spec, task_gradient, key),
        update=lambda key, state, tasks: _update(spec, task_gradient, key, state, tasks),
        adapt=lambda key, meta_params, task: _adapt(spec, key, meta_params, task),
        evaluate=lambda key, meta_params, task: _evaluate(spec, key, meta_params, task),
        check=partial(_check, spec),
        task_keys=None if lifetime == num_inner_steps else _task_keys,
    )


class Problems(NamedTuple):
    """Where the N inner problems of `bilevel` stand: the `carry` of its state. All arrays have a leading axis N.

    Attributes:
      inner: what the strategy carries of each: the `adapt.InnerState`, its `fast` the parameters θ that adapt, of most
        strategies; of `adapt.implicit` a pair of that and the linear system's solution; of
        `adapt.persistent_evolution_strategy` the particles, that of no perturbation first
      age: int32, inner steps since it began; 0: it begins with the next window
      lifetime: int32, the age at which it will begin anew
      key: data of its key, from which its task and its beginning are drawn

    >>> Problems((), age=jnp.zeros(4, int), lifetime=jnp.full(4, 100), key=jnp.zeros((4, 2))).age.tolist()
    [0, 0, 0, 0]
    """

    inner: PyTree
    age: jax.Array
    lifetime: jax.Array
    key: jax.Array


class _Bilevel(NamedTuple):
    """The choices of `bilevel`, checked; losses are (params, meta_params, batch, key) -> (loss, metrics)."""

    init_fn: Callable
    meta_init_fn: Callable
    loss_fn: Callable
    outer_loss_fn: Callable
    inner_optimizer: InnerOptimizer
    num_problems: int
    num_inner_steps: int
    num_eval_steps: int
    lifetime: int | None
    staggered: bool
    judged: str
    batch_size: int | None
    stream: bool
    stochastic: bool
    optimizer: optax.GradientTransformation
    microbatch: int | None


class _Given(NamedTuple):
    """What the losses of a problem read beside what is learned: strategies hand it on, and never look into it.

    task:      whose support set is learned from, and on whose query set the outcome is judged
    start_key: of its beginning
    query_key: of the query loss; None where there is none to take
    """

    task: Task
    start_key: jax.Array
    query_key: jax.Array | None = None


class _Source(NamedTuple):
    """What an inner step draws by: the step's key, and its number since the problem began."""

    key: jax.Array
    age: jax.Array


_FOR_GOOD = jnp.iinfo(jnp.int32).max


def _check_lifetime(lifetime: int | None, num_inner_steps: int, stream: bool, batch_size: int | None) -> None:
    if lifetime is None:
        if stream:
            raise ValueError("lifetime must be given for a stream, the chunks after which it begins anew, got None")
        return
    check_integer("lifetime", lifetime, minimum=1)
    if lifetime % num_inner_steps:
        raise ValueError(f"lifetime must be a multiple of num_inner_steps={num_inner_steps}, got {lifetime}")
    if stream and batch_size is not None:
        raise ValueError(f"batch_size must be None for a stream, whose chunks are its batches, got {batch_size}")


def _task_gradient(spec: _Bilevel, strategy: adapt.MetaGradient) -> adapt.TaskGradient:
    """The strategy's gradient of a window."""
    check_meta_gradient("meta_gradient", strategy)
    task_gradient = strategy(partial(_inner, spec), partial(_outer, spec))
    if not isinstance(task_gradient, adapt.TaskGradient):
        raise ValueError(
            f"meta_gradient must return an adapt.TaskGradient, for inner problems that live on, got {task_gradient!r}: "
            "one that has window and begin, as those of jaxmeta.adapt do"
        )
    return task_gradient


def _begun(spec: _Bilevel, meta_params: MetaParams, key: jax.Array) -> MetaParams:
    """What the inner optimizer of a problem starts from: θ_0 in the place of η, with the same hyperparameters."""
    params = check_params(spec.init_fn(key, meta_params.params))
    return MetaParams(params, meta_params.hyper)


def _init(spec: _Bilevel, task_gradient: adapt.TaskGradient, key: jax.Array) -> MetaState:
    """η, the inner optimizer's hyperparameters, and N problems that begin."""
    meta_key, problem_key = jax.random.split(key)
    params = spec.meta_init_fn(meta_key)
    params = check_params(params) if jax.tree.leaves(params) else params
    keys = jax.random.split(problem_key, spec.num_problems)
    of_first = _begun(spec, MetaParams(params), _start_key(keys[0])).params
    meta_params = MetaParams(params, spec.inner_optimizer.init(of_first))
    if not jax.tree.leaves(meta_params):
        raise ValueError("meta_init_fn must return what is learned, unless inner_optimizer learns, got neither")
    state = initial_state(spec.optimizer, meta_params)
    if spec.lifetime == spec.num_inner_steps:
        return state

    def begin(key: jax.Array) -> PyTree:
        start = spec.inner_optimizer.start(_begun(spec, meta_params, _start_key(key)))
        return task_gradient.begin(meta_params, start)

    count = jnp.arange(1, spec.num_problems + 1)
    lifetime = jnp.full(spec.num_problems, spec.lifetime or _FOR_GOOD, jnp.int32)
    if spec.lifetime and spec.staggered:
        windows = spec.lifetime // spec.num_inner_steps
        lifetime = (-(-windows * count // spec.num_problems) * spec.num_inner_steps).astype(jnp.int32)
    return state._replace(
        carry=Problems(jax.vmap(begin)(keys), jnp.zeros_like(lifetime), lifetime, jax.random.key_data(keys))
    )


def inner_params(
    key: jax.Array, init_fn: Callable, inner_optimizer: InnerOptimizer, meta_params: MetaParams, problems: Problems
) -> Params:
    """θ of the N problems where they stand, `[N, ...]`; of `key` the kind alone counts.

    Raises:
      ValueError: their strategy carries something else than their inner states.
    """
    if not isinstance(problems.inner, InnerState):
        raise ValueError(
            "meta_gradient must carry the inner loop's own state and nothing else, which adapt.implicit and "
            f"adapt.persistent_evolution_strategy do not, got {type(problems.inner).__name__}"
        )

    def one(key: jax.Array, inner: InnerState) -> Params:
        start = MetaParams(init_fn(_start_key(key), meta_params.params), meta_params.hyper)
        return inner_optimizer.params(start, inner.fast)

    return jax.vmap(one)(_keys(key, problems), problems.inner)


def _task_keys(key: jax.Array, state: MetaState, num_tasks: int) -> jax.Array:
    """Of the tasks of the problems: the same for as long as a problem lives."""
    keys = _keys(key, state.carry)
    if num_tasks != len(keys):
        raise ValueError(f"num_tasks must be the num_problems of the learner, {len(keys)}, got {num_tasks}")
    return jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)


def _start_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 1)


def _keys(like: jax.Array, problems: Problems) -> jax.Array:
    return jax.random.wrap_key_data(problems.key, impl=jax.random.key_impl(like))


def _unroll(
    spec: _Bilevel, start: MetaParams, meta_params: MetaParams, sources: _Source, given: _Given, **how: Any
) -> tuple[InnerState, adapt.Trace]:
    """θ_{k+1} = step(θ_k, ∇_θ L(θ_k, η; batch_k)), a step for each of the sources."""

    def draw(source: _Source, params: Params) -> tuple[Batch, jax.Array | None]:
        batch_key, loss_key = jax.random.split(source.key) if spec.stochastic else (source.key, None)
        support = given.task.support
        if spec.stream:
            return jax.tree.map(lambda chunks: chunks[source.age], support), loss_key
        return minibatch(batch_key, support, spec.batch_size), loss_key

    def loss(params: Params, drawn: tuple[Batch, jax.Array | None]) -> tuple[jax.Array, Metrics]:
        return spec.loss_fn(params, meta_params.params, *drawn)

    return adapt.unroll(spec.inner_optimizer, loss, draw, start, sources, **how)


def _inner(
    spec: _Bilevel, meta_params: MetaParams, sources: _Source, given: _Given, **how: Any
) -> tuple[adapt.Adapted, InnerState]:
    """θ_K, with the last step's inner loss, and the outer losses of the batches met on the way where those count."""
    met = lambda params, drawn: spec.outer_loss_fn(params, meta_params.params, *drawn)
    start = _begun(spec, meta_params, given.start_key)
    observe = met if spec.judged == "met" else None
    state, trace = _unroll(spec, start, meta_params, sources, given, observe=observe, **how)
    adapted = spec.inner_optimizer.params(start, state.fast)
    return adapt.Adapted((adapted, meta_params.params), (trace.observed, jax.lax.stop_gradient(trace.loss[-1:]))), state


def _outer(spec: _Bilevel, adapted: adapt.Adapted, given: _Given) -> tuple[jax.Array, Metrics]:
    """L'(θ_K, η; query), or the mean of those of the batches met."""
    met, inner_loss = adapted.observed
    if spec.judged == "met":
        loss, metrics = jax.tree.map(jnp.mean, met)
    else:
        loss, metrics = spec.outer_loss_fn(*adapted.params, given.task.query, given.query_key)
    return loss, ({"inner_loss": inner_loss[0]} if len(inner_loss) else {}) | metrics


def _update(
    spec: _Bilevel, task_gradient: adapt.TaskGradient, key: jax.Array, state: MetaState, tasks: Task
) -> tuple[MetaState, Metrics]:
    """η ← η − β ∇_η mean_i L'(θ_{i,K}, η; query_i), and the problems go on."""
    check_state(state)
    _check_tasks(spec, tasks)
    lives_on = spec.lifetime != spec.num_inner_steps
    fresh = jax.random.split(jax.random.fold_in(key, 0), spec.num_problems)
    none = jnp.zeros(spec.num_problems, jnp.int32)
    problems = state.carry if lives_on else Problems(None, none, none, fresh)
    starts = _keys(key, problems) if lives_on else fresh

    def gradient(meta_params: MetaParams, per_task: tuple):
        key, start_key, age, carry, task = per_task
        gradient_key, query_key, inner_key = jax.random.split(key, 3)
        keys = jax.random.split(inner_key, spec.num_inner_steps)
        sources = _Source(keys, age + jnp.arange(spec.num_inner_steps))
        given = _Given(task, _start_key(start_key), query_key)
        is_new = age == 0 if lives_on else None
        value, grads, carry = task_gradient.window(gradient_key, meta_params, sources, given, carry, is_new)
        return (value, grads), carry if lives_on else ()

    keys = jax.random.split(jax.random.fold_in(key, 1), spec.num_problems)
    per_task = keys, starts, problems.age, problems.inner, tasks
    means, inner = over_tasks(gradient, spec.microbatch, learned(state.meta_params), per_task)
    ((loss, metrics), grads) = means
    state, metrics = outer_step(spec.optimizer, state, loss, metrics, grads)
    return state._replace(carry=_gone_on(spec, problems, inner, fresh)) if lives_on else state, metrics


def _gone_on(spec: _Bilevel, problems: Problems, inner: PyTree, fresh: jax.Array) -> Problems:
    """The problems after a window: those whose time is over, or that are no longer finite, begin anew with the next."""
    age = problems.age + spec.num_inner_steps
    floats = [leaf for leaf in jax.tree.leaves(inner) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = [jnp.all(jnp.isfinite(leaf.reshape(spec.num_problems, -1)), axis=1) for leaf in floats]
    is_over = (age >= problems.lifetime) | ~jnp.all(jnp.stack(finite), axis=0)
    lifetime = jnp.where(is_over, spec.lifetime or _FOR_GOOD, problems.lifetime)
    key = jnp.where(is_over[:, None], jax.random.key_data(fresh), problems.key)
    return Problems(inner, jnp.where(is_over, 0, age), lifetime, key)


def _adapt(spec: _Bilevel, key: jax.Array, meta_params: MetaParams, task: Task) -> Params:
    check_meta_params(meta_params)
    check_task(task)
    return _trained(spec, key, meta_params, task, None)[0]


def _trained(
    spec: _Bilevel, key: jax.Array, meta_params: MetaParams, task: Task, judge: Callable | None
) -> tuple[Params, PyTree]:
    """θ of a problem that is trained from its beginning, and what `judge` saw of it before each step."""
    start_key, inner_key = jax.random.split(key)
    sources = _Source(jax.random.split(inner_key, spec.num_eval_steps), jnp.arange(spec.num_eval_steps))
    _check_chunks(spec, task.support, spec.num_eval_steps, "num_eval_steps")
    given = _Given(task, start_key)
    start = _begun(spec, meta_params, start_key)
    state, trace = _unroll(spec, start, meta_params, sources, given, observe=judge)
    return spec.inner_optimizer.params(start, state.fast), trace.observed


def _evaluate(spec: _Bilevel, key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
    """What the outer loss reports after 0 .. K steps of the query set, after 0 .. K − 1 of the batches that are met."""
    check_meta_params(meta_params)
    judge = lambda params, drawn: reported(*spec.outer_loss_fn(params, meta_params.params, *drawn))
    if spec.judged == "met":
        return _trained(spec, key, meta_params, task, judge)[1]
    check_query(task)
    query_key = jax.random.fold_in(key, 0)
    of_query = lambda params, drawn=None: judge(params, (task.query, query_key))
    params, curve = _trained(spec, key, meta_params, task, of_query)
    return jax.tree.map(lambda curve, end: jnp.append(curve, end), curve, of_query(params))


def _check_tasks(spec: _Bilevel, tasks: Task) -> None:
    check_task(tasks)
    if spec.judged == "last":
        check_query(tasks)
    num_tasks = check_stacked("tasks", tasks)
    if num_tasks != spec.num_problems:
        raise ValueError(
            f"tasks must be one for each of num_problems={spec.num_problems}, got {num_tasks}: fit takes "
            f"num_tasks={spec.num_problems}"
        )
    _check_chunks(spec, jax.tree.map(lambda x: x[0], tasks.support), spec.lifetime, "lifetime")


def _check_chunks(spec: _Bilevel, support: PyTree, num_steps: int | None, name: str) -> None:
    """A stream of a chunk for each inner step: jax would hand out the last one again where there is none."""
    if not spec.stream or num_steps is None:
        return
    num_chunks = check_stacked("the support set of a stream", support)
    if num_chunks < num_steps:
        raise ValueError(
            f"the support set of a stream must have a chunk for each of the {name}={num_steps} inner steps, got "
            f"{num_chunks}"
        )


def _check(spec: _Bilevel, meta_params: MetaParams, task: Task, is_test: bool) -> None:
    """L of the support set and L' of the query set, so that they can look at their values, such as labels."""
    batch = jax.tree.map(lambda chunks: chunks[0], task.support) if spec.stream else task.support
    judged = task.query if spec.judged == "last" else batch

    def losses(key: jax.Array, meta_params: MetaParams) -> list[jax.Array]:
        start = _begun(spec, meta_params, key)
        params = spec.inner_optimizer.params(start, spec.inner_optimizer.start(start).fast)
        given = params, meta_params.params
        return [spec.loss_fn(*given, batch, key)[0], spec.outer_loss_fn(*given, judged, key)[0]]

    check_pure("loss_fn", losses, a_key(), meta_params)
