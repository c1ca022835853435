"""MAML and its family for supervised tasks: one constructor, the rest by its arguments.

    θ'_i = θ − α ∇L(θ; support_i)                            the inner loop, K times, for each task i
    θ   ← θ − β ∇_θ mean_i L'(θ'_i; query_i)                 the outer loop, through the inner one

L' is L unless there is an `outer_loss_fn`.

| the paper           | how                                                                                    |
|---------------------|----------------------------------------------------------------------------------------|
| MAML                | `maml(init_fn, loss_fn)`                                                               |
| FOMAML              | `fomaml(...)`: `meta_gradient=first_order()`                                           |
| truncated MAML      | `maml(..., meta_gradient=truncated(n))`                                                |
| Meta-SGD            | `meta_sgd(...)`: `inner_optimizer=adapt.meta_sgd(α)`                                   |
| ANIL                | `anil(...)`: `inner_optimizer=adapt_only(sgd(α), "head")`                              |
| BOIL                | `boil(...)`: the same with all but the head                                            |
| MAML++              | `maml_plus_plus(...)`: rates per layer and step, the loss after each step, annealed    |
| iMAML               | `imaml(...)`: `meta_gradient=adapt.implicit()`, a proximal inner loop                  |
| ES-MAML             | `maml(..., meta_gradient=adapt.evolution_strategy())`                                  |
| Reptile             | `reptile(...)`: `meta_gradient=adapt.reptile()`, minibatches inside, SGD outside       |
| Proto-MAML          | `proto_maml(...)`: a `start_fn`, which makes the head from prototypes                  |
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.meta_gradients import check_meta_gradient
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.adapt.select import Where, check_where, complement, freeze, select, unfreeze
from jaxmeta.algorithms.minibatches import minibatch
from jaxmeta.checks import (
    a_key,
    check_arguments,
    check_flag,
    check_init_fn,
    check_integer,
    check_loss_fn,
    check_meta_params,
    check_number,
    check_optional_counts,
    check_pairs,
    check_pure,
    check_query,
    check_share,
    check_state,
    check_task,
    check_tasks,
)
from jaxmeta.outer import chosen_optimizer, initial_state, mean_over_tasks, outer_step
from jaxmeta.signatures import names_options_of
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
    learned,
)


def maml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    outer_loss_fn: LossFn | None = None,
    inner_optimizer: InnerOptimizer | None = None,
    num_inner_steps: int = 1,
    num_eval_steps: int | None = None,
    batch_size: int | None = None,
    start_fn: Callable[[Params, Batch], Params] | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    stochastic: bool = False,
    frozen: Where | None = None,
    loss_weights: Callable[[jax.Array], jax.Array] | None = None,
    meta_gradient: adapt.MetaGradient | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """Model-agnostic meta-learning: an initialisation from which few gradient steps learn a task.

    Its exact meta-gradient for one inner step is (I − α ∇²L(θ)) ∇L'(θ − α ∇L(θ)).

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Args:
      init_fn: (key) -> params, any pytree of real arrays: of flax, of equinox, or a plain dictionary.
      loss_fn: L, (params, batch) -> (scalar loss, {name: scalar}), of the support set.
      outer_loss_fn: L', of the query set, in the same form; `loss_fn` if None. Parameters that only L reads, such as
        the weight of an auxiliary loss or a learned loss, are meta-learned through the inner loop: keep them from
        adapting, with `adapt.adapt_only`.
      inner_optimizer: how to step inside, and which parameters adapt (see `jaxmeta.adapt`); `adapt.sgd(0.01)` if None.
      num_inner_steps: K, inner steps while meta-training, at least 1.
      num_eval_steps: inner steps of `adapt` and `evaluate`; `num_inner_steps` if None.
      batch_size: examples of a minibatch that each inner step draws from the support set without replacement, among
        those that count where some are padding; the whole set if None.
      start_fn: (params, support) -> params, where the inner loop of a task starts, by what its whole support set says,
        such as with a head made of prototypes (`proto_maml`); from θ itself if None. It returns the same structure; a
        leaf may have another shape, and then that of θ only keeps its place. Frozen leaves stay as they are. The
        meta-gradient goes through it, whatever the strategy: with θ_0 = s(θ) that of `adapt.first_order` is
        ∇L'(θ'_i) ∂s/∂θ, that of `adapt.reptile` is (θ_0 − θ'_i) ∂s/∂θ; a `proximal` term draws back to θ_0.
      condition_fn: (params, support) -> params, what else the support set says of a task once it is adapted to, such as
        `nn.support_statistics`; nothing if None. With it the query set is judged, before and after each step, and
        `adapt` returns what it returns. It is differentiated through, and has no part in the inner loop.
      stochastic: the losses draw, for dropout: (params, batch, key). The key is None where `evaluate` judges.
      frozen: which parameters neither adapt nor are meta-learned, such as a backbone, in the form of `where` of
        `adapt.adapt_only`; none if None. They are kept in `meta_params.constants`, and count in no norm.
      loss_weights: (outer step) -> [K], the weights of the query losses after each inner step, whose sum is the outer
        loss; the last one alone if None. See `multi_step_weights`.
      meta_gradient: how to differentiate the inner loop (see `jaxmeta.adapt`); `adapt.auto()`, which is exact, if None.
      optimizer: the outer optax transformation, which is told the outer loss as `value`; `optax.adam(1e-3)` if None.
      microbatch: tasks that are vectorised at a time, a divisor of N; chosen for the backend if None, see
        `outer.mean_over_tasks`.

    Returns:
      A `MetaLearner` for `Task`s. Its `update` takes N stacked tasks and reports the query set's `loss` and metrics
      after adaptation, averaged over tasks, with `grad_norm` and `is_finite`. `evaluate` judges by the outer loss.

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
    check_optional_counts(num_eval_steps=num_eval_steps, batch_size=batch_size, microbatch=microbatch)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    check_flag("stochastic", stochastic)
    if frozen is not None:
        check_where("frozen", frozen)
    for name, of_support in (("start_fn", start_fn), ("condition_fn", condition_fn)):
        if of_support is not None:
            check_arguments(name, of_support, ("params", "support"), "it returns parameters")
    if loss_weights is not None:
        check_arguments(
            "loss_weights", loss_weights, ("step",), "it returns weights, as multi_step_weights(K, 100) does"
        )
    inner_loss_fn = judge_fn = check_loss_fn("loss_fn", loss_fn, stochastic)
    if outer_loss_fn is not None:
        judge_fn = check_loss_fn("outer_loss_fn", outer_loss_fn, stochastic)
    spec = _Maml(
        init_fn=check_init_fn(init_fn),
        loss_fn=inner_loss_fn,
        outer_loss_fn=judge_fn,
        inner_optimizer=adapt.sgd(0.01) if inner_optimizer is None else inner_optimizer,
        num_inner_steps=num_inner_steps,
        num_eval_steps=num_inner_steps if num_eval_steps is None else num_eval_steps,
        batch_size=batch_size,
        start_fn=start_fn,
        condition_fn=condition_fn,
        stochastic=stochastic,
        frozen=frozen,
        loss_weights=loss_weights,
        optimizer=chosen_optimizer(optimizer, optax.adam(1e-3)),
        microbatch=microbatch,
    )
    check_inner_optimizer("inner_optimizer", spec.inner_optimizer)
    strategy = adapt.auto() if meta_gradient is None else meta_gradient
    check_meta_gradient("meta_gradient", strategy)
    task_gradient = strategy(partial(_inner, spec), partial(_outer, spec))
    return MetaLearner(
        init=lambda key: _init(spec, key),
        update=lambda key, state, tasks: _update(spec, task_gradient, key, state, tasks),
        adapt=lambda key, meta_params, task: _adapt(spec, key, meta_params, task),
        evaluate=lambda key, meta_params, task: _evaluate(spec, key, meta_params, task),
        check=partial(_check, spec),
    )


class _Maml(NamedTuple):
    """The choices of `maml`, checked, for the functions below; losses are (params, batch, key) -> (loss, metrics)."""

    init_fn: Callable
    loss_fn: Callable
    outer_loss_fn: Callable
    inner_optimizer: InnerOptimizer
    num_inner_steps: int
    num_eval_steps: int
    batch_size: int | None
    start_fn: Callable | None
    condition_fn: Callable | None
    stochastic: bool
    frozen: Where | None
    loss_weights: Callable | None
    optimizer: optax.GradientTransformation
    microbatch: int | None


class _Given(NamedTuple):
    """What the losses of a task read beside what is learned: strategies hand it on, and never look into it.

    task:      whose support set is adapted to, and on whose query set the outcome is judged
    constants: the frozen parameters
    key:       of the query loss; None for none
    weights:   [K], of the query losses after each inner step; None for the last alone
    """

    task: Task
    constants: PyTree
    key: jax.Array | None = None
    weights: jax.Array | None = None


def _init(spec: _Maml, key: jax.Array) -> MetaState:
    """θ, and the inner optimizer's η."""
    params, constants = freeze(spec.init_fn(key), spec.frozen)
    return initial_state(spec.optimizer, MetaParams(params, spec.inner_optimizer.init(params), constants))


def _started(spec: _Maml, meta_params: MetaParams, given: _Given) -> MetaParams:
    """`meta_params` with θ_0, where the task's inner loop starts, in the place of θ."""
    if spec.start_fn is None:
        return meta_params
    whole = unfreeze(meta_params.params, given.constants)
    start = spec.start_fn(whole, given.task.support)
    wanted, got = (str(jax.tree.structure(params)) for params in (whole, start))
    if wanted != got:
        raise ValueError(
            f"start_fn must return parameters of the structure of those it is given, {wanted}, got {got}: only the "
            "shapes of leaves may be others"
        )
    is_none = lambda leaf: leaf is None
    learned_part = jax.tree.map(lambda p, s: None if p is None else s, meta_params.params, start, is_leaf=is_none)
    started = meta_params._replace(params=learned_part)
    first = spec.inner_optimizer.params(started, spec.inner_optimizer.start(started).fast)
    if jax.tree.map(jnp.shape, first) != jax.tree.map(jnp.shape, learned_part):
        raise ValueError(
            "inner_optimizer must start from what start_fn returns, got one that puts other shapes in its place, as "
            "adapt.per_step does where it has values of its own for leaves that start_fn makes"
        )
    return started


def _unroll(
    spec: _Maml, meta_params: MetaParams, keys: jax.Array, given: _Given, **how: Any
) -> tuple[InnerState, adapt.Trace]:
    """θ_{k+1} = θ_k − α ∇L(θ_k; support), a step for each of the keys."""

    def draw(key: jax.Array, params: Params) -> tuple[Batch, jax.Array | None]:
        batch_key, loss_key = jax.random.split(key) if spec.stochastic else (key, None)
        return minibatch(batch_key, given.task.support, spec.batch_size), loss_key

    def loss(params: Params, drawn: tuple[Batch, jax.Array | None]) -> tuple[jax.Array, Metrics]:
        return spec.loss_fn(unfreeze(params, given.constants), *drawn)

    return adapt.unroll(spec.inner_optimizer, loss, draw, meta_params, keys, **how)


def _model(spec: _Maml, params: Params, given: _Given) -> Params:
    """All parameters of the model that has adapted to a task, as it is judged and as `adapt` returns it."""
    params = unfreeze(params, given.constants)
    return params if spec.condition_fn is None else spec.condition_fn(params, given.task.support)


def _judge(spec: _Maml, params: Params, given: _Given) -> tuple[jax.Array, Metrics]:
    """L'(θ'; query)."""
    return spec.outer_loss_fn(_model(spec, params, given), given.task.query, given.key)


def _inner(
    spec: _Maml, meta_params: MetaParams, keys: jax.Array, given: _Given, **how: Any
) -> tuple[adapt.Adapted, InnerState]:
    """θ'_i, with the query losses on the way to it where they are weighed."""
    on_the_way = None if given.weights is None else lambda params, drawn: _judge(spec, params, given)[0]
    start = _started(spec, meta_params, given)
    state, trace = _unroll(spec, start, keys, given, observe=on_the_way, **how)
    return adapt.Adapted(spec.inner_optimizer.params(start, state.fast), trace.observed), state


def _outer(spec: _Maml, adapted: adapt.Adapted, given: _Given) -> tuple[jax.Array, Metrics]:
    """L'(θ'_i; query_i), or MAML++'s weighted sum of those after each inner step."""
    loss, metrics = _judge(spec, adapted.params, given)
    if given.weights is None:
        return loss, metrics
    return _weighted(given.weights, jnp.append(adapted.observed[1:], loss)), metrics


def _update(
    spec: _Maml, task_gradient: Callable, key: jax.Array, state: MetaState, tasks: Task
) -> tuple[MetaState, Metrics]:
    """θ ← θ − β ∇_θ mean_i L'(θ'_i; query_i)."""
    check_state(state)
    weights = None if spec.loss_weights is None else spec.loss_weights(state.step)

    def gradient(meta_params: MetaParams, per_task: tuple[jax.Array, Task]):
        key, task = per_task
        gradient_key, query_key, inner_key = jax.random.split(key, 3)
        keys = jax.random.split(inner_key, spec.num_inner_steps)
        given = _Given(task, meta_params.constants, query_key, weights)
        return task_gradient(gradient_key, learned(meta_params), keys, given)

    keys = jax.random.split(key, check_tasks(tasks))
    check_pairs(tasks, is_stacked=True)
    (loss, metrics), grads = mean_over_tasks(gradient, spec.microbatch, state.meta_params, (keys, tasks))
    return outer_step(spec.optimizer, state, loss, metrics, grads)


def _adapt(spec: _Maml, key: jax.Array, meta_params: MetaParams, task: Task) -> Params:
    check_meta_params(meta_params)
    check_task(task)
    check_pairs(task, is_stacked=False)
    given = _Given(task, meta_params.constants)
    start = _started(spec, learned(meta_params), given)
    state, _ = _unroll(spec, start, jax.random.split(key, spec.num_eval_steps), given)
    return _model(spec, spec.inner_optimizer.params(start, state.fast), given)


def _evaluate(spec: _Maml, key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
    """What the outer loss reports after 0 .. K steps."""
    check_meta_params(meta_params)
    check_query(task)
    check_pairs(task, is_stacked=False)
    given = _Given(task, meta_params.constants)
    start = _started(spec, learned(meta_params), given)
    judge = lambda params, drawn=None: reported(*_judge(spec, params, given))
    state, trace = _unroll(spec, start, jax.random.split(key, spec.num_eval_steps), given, observe=judge)
    last = judge(spec.inner_optimizer.params(start, state.fast))
    return jax.tree.map(lambda curve, end: jnp.append(curve, end), trace.observed, last)


def _check(spec: _Maml, meta_params: MetaParams, task: Task, is_test: bool) -> None:
    """L of the whole support set and L' of the query set, so that they can look at their values, such as labels."""
    check_query(task)
    check_pairs(task, is_stacked=False)

    def losses(key: jax.Array, meta_params: MetaParams) -> list[jax.Array]:
        given = _Given(task, meta_params.constants, None if is_test else key)
        start = _started(spec, learned(meta_params), given)
        params = spec.inner_optimizer.params(start, spec.inner_optimizer.start(start).fast)
        return [spec.loss_fn(unfreeze(params, given.constants), task.support, key)[0], _judge(spec, params, given)[0]]

    check_pure("loss_fn", losses, a_key(), meta_params)


def _weighted(weights: jax.Array, losses: jax.Array) -> jax.Array:
    if jnp.shape(weights) != losses.shape:
        raise ValueError(
            f"loss_weights must return one weight for each of the {losses.size} inner steps that the outer loss is "
            f"differentiated through, got shape {jnp.shape(weights)}"
        )
    return jnp.sum(jnp.asarray(weights, losses.dtype) * losses)


def reported(loss: jax.Array, metrics: Metrics) -> Metrics:
    """What a loss reports; the loss itself where it reports nothing."""
    return metrics or {"loss": loss}


class OfMaml(TypedDict, total=False):
    """What every learner below has of `maml`, as it is there."""

    outer_loss_fn: LossFn | None
    num_eval_steps: int | None
    batch_size: int | None
    start_fn: Callable[[Params, Batch], Params] | None
    condition_fn: Callable[[Params, Batch], Params] | None
    stochastic: bool
    frozen: Where | None
    microbatch: int | None


class Options(OfMaml, total=False):
    """What most of them have besides."""

    num_inner_steps: int
    loss_weights: Callable[[jax.Array], jax.Array] | None
    optimizer: optax.GradientTransformation | None


@names_options_of(maml)
def fomaml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    inner_optimizer: InnerOptimizer | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """First-order MAML: `maml` with `meta_gradient=adapt.first_order()`, ∇L'(θ') alone. Arguments and errors as there.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.2,
    https://arxiv.org/abs/1703.03400

    What the inner loss alone reads, such as the learned weight of one of its terms, gets no gradient.

    >>> learner = fomaml(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=adapt.first_order(), **options)


@names_options_of(maml)
def meta_sgd(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    learning_rate: float = 0.01,
    meta_gradient: adapt.MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Meta-SGD: `maml` that also learns a rate for each parameter. Other arguments and errors as there.

    Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017),
    https://arxiv.org/abs/1707.09835

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      learning_rate: α ≥ 0 of every parameter before the first outer step.
      meta_gradient: as in `maml`.

    >>> learner = meta_sgd(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    inner_optimizer = adapt.meta_sgd(learning_rate)
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=meta_gradient, **options)


@names_options_of(maml)
def anil(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    head: Where = "head",
    learning_rate: float = 0.01,
    meta_gradient: adapt.MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """ANIL, almost no inner loop: `maml` in which only the `head` adapts (see `adapt.adapt_only`). The rest as there.

    Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
    (2019), https://arxiv.org/abs/1909.09157

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      head: which parameters adapt, in the form of `where` of `adapt.adapt_only`: by default those named "head", the
        last layer of the networks in `jaxmeta.nn`.
      learning_rate: α ≥ 0 of the head's gradient descent.
      meta_gradient: as in `maml`.

    Raises:
      ValueError: as `maml` and `adapt.adapt_only`.

    >>> learner = anil(lambda key: {"body": 0.0, "head": 1.0}, lambda params, batch: (params["head"] ** 2, {}))
    """
    check_where("head", head)
    inner_optimizer = adapt.adapt_only(adapt.sgd(learning_rate), head)
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=meta_gradient, **options)


@names_options_of(maml)
def boil(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    head: Where = "head",
    learning_rate: float = 0.01,
    meta_gradient: adapt.MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """BOIL, body only in the inner loop: `maml` in which all but the `head` adapts. The opposite of `anil`.

    The head is meta-learned and the same for all tasks, so that a task can only be learned by changing its features.

    Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning" (2021),
    https://arxiv.org/abs/2008.08882

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      head: which parameters do not adapt, in the form of `where` of `adapt.adapt_only`: by default those named "head",
        the last layer of the networks in `jaxmeta.nn`.
      learning_rate: α ≥ 0 of the body's gradient descent.
      meta_gradient: as in `maml`.

    Raises:
      ValueError: as `maml` and `adapt.adapt_only`.

    >>> learner = boil(lambda key: {"body": 0.0, "head": 1.0}, lambda params, batch: (params["body"] ** 2, {}))
    """
    check_where("head", head)
    body_only = adapt.adapt_only(adapt.sgd(learning_rate), complement(head))

    def init(params: Params) -> PyTree:
        select(params, head, "head")  # what chooses nothing would leave everything to adapt
        return body_only.init(params)

    inner_optimizer = body_only._replace(init=init)
    return maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=meta_gradient, **options)


def multi_step_weights(num_inner_steps: int, num_outer_steps: int) -> Callable[[jax.Array], jax.Array]:
    """MAML++'s annealed weights of the query loss after each inner step: from 1/K each to the last one alone.

    At a share t = step / `num_outer_steps` of the way, at most 1, an early weight is max(1 − t, 0.03) / K; the last is
    what is missing to 1.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502; the floor is that
    of their code.

    Args:
      num_inner_steps: K, inner steps, at least 1.
      num_outer_steps: outer steps until the weights stay, at least 1.

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


@names_options_of(maml)
def maml_plus_plus(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    num_annealing_steps: int,
    learning_rate: float = 0.01,
    inner_optimizer: InnerOptimizer | None = None,
    num_inner_steps: int = 5,
    meta_gradient: adapt.MetaGradient | None = None,
    optimizer: optax.GradientTransformation | None = None,
    **options: Unpack[OfMaml],
) -> MetaLearner:
    """MAML++: `maml` that learns a rate per layer and step, and is judged after each step. Other arguments as there.

    Per-step batch normalisation is `inner_optimizer=adapt.per_step(adapt.lslr(...), ...)`; the paper's falling outer
    rate is the `optimizer`'s.

    Antoniou, Edwards, Storkey, "How to train your MAML" (2019), https://arxiv.org/abs/1810.09502

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      num_annealing_steps: outer steps until only the loss after the last inner step counts (`multi_step_weights`).
      learning_rate: α ≥ 0 of every layer and step before the first outer step.
      inner_optimizer: `adapt.lslr(learning_rate, num_inner_steps)` if None.
      num_inner_steps: K, inner steps, at least 1.
      meta_gradient: as in `maml`.
      optimizer: as in `maml`.

    Raises:
      ValueError: as `maml`.

    >>> learner = maml_plus_plus(lambda key: 0.0, lambda params, batch: (params**2, {}), num_annealing_steps=100)
    """
    check_integer("num_annealing_steps", num_annealing_steps, minimum=1)
    return maml(
        init_fn,
        loss_fn,
        inner_optimizer=adapt.lslr(learning_rate, num_inner_steps) if inner_optimizer is None else inner_optimizer,
        num_inner_steps=num_inner_steps,
        loss_weights=multi_step_weights(num_inner_steps, num_annealing_steps),
        meta_gradient=meta_gradient,
        optimizer=optimizer,
        **options,
    )


@names_options_of(maml)
def imaml(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    strength: float = 2.0,
    learning_rate: float = 0.01,
    solver: adapt.Solver | None = None,
    damping: float = 0.0,
    num_inner_steps: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    **options: Unpack[OfMaml],
) -> MetaLearner:
    """iMAML: `maml` through the solution of a proximal inner problem, min L(φ) + λ/2 |φ − θ|². Others as in `maml`.

    The meta-gradient is (I + ∇²L(φ) / λ)⁻¹ ∇L'(φ), by conjugate gradient. The inner loop must come near the solution:
    many steps, of a rate below 2 / (λ + the largest curvature).

    Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients" (2019), https://arxiv.org/abs/1909.04630

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      strength: λ > 0, of the term that draws back to θ; the solution depends on θ through it alone.
      learning_rate: α ≥ 0, of the inner gradient descent.
      solver: as in `adapt.implicit`; `adapt.conjugate_gradient(5)` if None.
      damping: δ ≥ 0, as in `adapt.implicit`; without it, conv4 did not learn on Omniglot.
      num_inner_steps: K, inner steps while meta-training; 1 is far too few for most problems.
      optimizer: as in `maml`.

    Raises:
      ValueError: as `maml`, `adapt.proximal` and `adapt.implicit`.

    >>> learner = imaml(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}), num_inner_steps=16)
    """
    check_number("strength", strength, minimum=1e-12)
    return maml(
        init_fn,
        loss_fn,
        inner_optimizer=adapt.proximal(adapt.sgd(learning_rate), strength),
        num_inner_steps=num_inner_steps,
        meta_gradient=adapt.implicit(solver=solver, damping=damping),
        optimizer=optimizer,
        **options,
    )


@names_options_of(maml)
def reptile(
    init_fn: InitFn,
    loss_fn: LossFn,
    *,
    step_size: float = 0.1,
    inner_optimizer: InnerOptimizer | None = None,
    num_inner_steps: int = 5,
    optimizer: optax.GradientTransformation | None = None,
    **options: Unpack[OfMaml],
) -> MetaLearner:
    """Reptile: θ ← θ + ε mean_i (θ'_i − θ), with ε = `step_size` unless an `optimizer` is given. Others as in `maml`.

    With one inner step and the whole support set it would be joint training: it needs `num_inner_steps` ≥ 2, best with
    `batch_size` smaller than the support set. Only what adapts is learned: a learned rate, or a learned weight of a
    loss, gets no gradient; `outer_loss_fn` is reported and does not teach.

    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms" (2018), https://arxiv.org/abs/1803.02999

    Args:
      init_fn: as in `maml`.
      loss_fn: as in `maml`.
      step_size: ε in [0, 1], the share of the way to the adapted parameters that an outer step goes; 1 goes all of it.
      inner_optimizer: as in `maml`.
      num_inner_steps: K, inner steps while meta-training, at least 2.
      optimizer: the outer optax transformation, given θ − θ' as gradient; `optax.sgd(step_size)` if None.

    Raises:
      ValueError: as `maml`; `step_size` is not in [0, 1]; `num_inner_steps` is less than 2.

    >>> learner = reptile(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    """
    check_share("step_size", step_size)
    check_integer("num_inner_steps", num_inner_steps, minimum=2)
    return maml(
        init_fn,
        loss_fn,
        inner_optimizer=inner_optimizer,
        num_inner_steps=num_inner_steps,
        meta_gradient=adapt.reptile(),
        optimizer=optax.sgd(step_size) if optimizer is None else optimizer,
        **options,
    )
