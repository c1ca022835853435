"""Few-shot classifiers with a head in closed form: the embedding is meta-learned, the head computed from the shots.

    head_i = h(f_θ(support_i); η)                            for each task i, without an inner loop
    θ, η   ← θ, η − β ∇_{θ,η} mean_i L(head_i ∘ f_θ; query_i)

| the paper | here       | the head of a task                      | logits of z = f_θ(x) | η, learned beside θ |
|-----------|------------|-----------------------------------------|----------------------|---------------------|
| ProtoNet  | `protonet` | the mean c_n of each class              | −‖z − c_n‖²          | ()                  |
| R2-D2     | `ridge`    | W = argmin ‖Z W − Y‖² + λ ‖W‖²          | α z W                | log λ, log α        |

What `adapt` returns predicts: `params, head = learner.adapt(key, meta_params, task)`, then `head(embed_fn(params, x))`.

Of `jaxmeta.Examples` with weights w the mean is Σ w z / Σ w, and the squares are Σ w ‖z W − y‖²; of fewer classes than
there are logits, by `num_ways`, the logits of the others are −inf.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmeta import nn
from jaxmeta.adapt.select import Where, check_where, freeze, unfreeze
from jaxmeta.checks import (
    a_key,
    check_arguments,
    check_callable,
    check_flag,
    check_init_fn,
    check_integer,
    check_meta_params,
    check_number,
    check_optional_counts,
    check_query,
    check_state,
    check_takes_key,
    check_task,
    check_tasks,
)
from jaxmeta.nn.losses import one_hot
from jaxmeta.nn.weights import apply_weighted, examples_of, mask_logits
from jaxmeta.outer import chosen_optimizer, initial_state, mean_over_tasks, outer_step
from jaxmeta.types import Batch, InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, Task, learned

EmbedFn: TypeAlias = Callable[..., Any]  # (params, x) -> features [B, D]; a flax module's `apply` has further arguments


class Prototypes(NamedTuple):
    """z -> −|z − c_n|², with `means` c [N, D]; −inf from class `num_ways` on, unless it is None."""

    means: jax.Array
    num_ways: jax.Array | None = None

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, N]."""
        return mask_logits(-jnp.sum((z[:, None] - self.means[None]) ** 2, axis=-1), self.num_ways)


class LinearHead(NamedTuple):
    """z -> z W, with `weights` W [D, N]; −inf from class `num_ways` on, unless it is None."""

    weights: jax.Array
    num_ways: jax.Array | None = None

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, N]."""
        return mask_logits(z @ self.weights, self.num_ways)


class Shots(NamedTuple):
    """What a head is made of: features z [B, D] and one-hot labels [B, N], both 0 where an example does not count.

    weight:   [B], of the examples; None where all count alike
    num_ways: of how many of the N classes the task is; None for all
    """

    z: jax.Array
    one_hot: jax.Array
    weight: jax.Array | None = None
    num_ways: jax.Array | None = None


class AffineHead(NamedTuple):
    """z -> z W + b, with `weights` W [D, N] and `bias` b [N]; −inf from class `num_ways` on, unless it is None."""

    weights: jax.Array
    bias: jax.Array
    num_ways: jax.Array | None = None

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, N]."""
        return mask_logits(z @ self.weights + self.bias[None], self.num_ways)


class Adapted(NamedTuple):
    """What `adapt` returns: the embedding's parameters, as they were or as `condition_fn` has them, and the head."""

    params: Params
    head: Any


def protonet(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_ways: int,
    num_eval_ways: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    stochastic: bool = False,
    frozen: Where | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """Prototypical networks: a class is the mean of its shots in an embedding, and the nearest mean is the answer.

        c_n = mean of f_θ(x) over the shots of class n,    p(n | x) = softmax_n(−|f_θ(x) − c_n|²)

    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning" (2017), https://arxiv.org/abs/1703.05175

    Args:
      init_fn: (key) -> params of the embedding, any pytree of real arrays.
      embed_fn: (params, x [B, ...]) -> features [B, D], such as the `apply` of `nn.Conv4(num_classes=None)`.
      num_ways: classes N of a task while meta-training, at least 1, the most of any where tasks say `num_ways` of their
        own; the paper has more of them than at test. Labels are integers from 0 to N − 1; another, or a class without a
        shot, makes the loss NaN.
      num_eval_ways: the classes, or most classes, of a task in `adapt` and `evaluate`; `num_ways` if None.
      condition_fn: (params, support) -> params, what the embedding knows of a task before it embeds anything, such as
        `nn.support_statistics`; nothing if None. It is differentiated through.
      stochastic: the embedding draws, for dropout: (params, x, key). The key is None in `adapt` and `evaluate`.
      frozen: which parameters are not meta-learned, as in `maml`; none if None.
      optimizer: the outer optax transformation, which is told the loss as `value`; `optax.adam(1e-3)` if None.
      microbatch: tasks that are vectorised at a time; chosen for the backend if None, see `outer.mean_over_tasks`.

    Returns:
      A `MetaLearner` for `Task`s of pairs (x, labels), or of `Examples`. Its `update` reports the query set's `loss`
      (cross entropy) and `accuracy`, averaged over tasks, with `grad_norm` and `is_finite`. Its `adapt` returns
      `(params, head)`, and `head(embed_fn(params, x))` are the logits. Its `evaluate` returns both metrics [2]: of the
      uniform guess, for without shots nothing is known of the classes, and with the head.

    Raises:
      ValueError: an argument is wrong; while tracing, features, labels or a task have a wrong shape.

    >>> learner = protonet(lambda key: jnp.ones(()), lambda params, x: params * x, num_ways=2)
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> task = Task((jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1])))
    >>> params, head = learner.adapt(jax.random.key(1), meta_params, task)
    >>> head.means.tolist(), head(params * jnp.array([[3.0]])).tolist()
    ([[1.0], [9.0]], [[-4.0, -36.0]])
    """
    return closed_form(
        _no_hyper,
        _prototypes,
        init_fn=init_fn,
        embed_fn=embed_fn,
        num_ways=num_ways,
        num_eval_ways=num_eval_ways,
        condition_fn=condition_fn,
        stochastic=stochastic,
        frozen=frozen,
        optimizer=optimizer,
        microbatch=microbatch,
    )


def _no_hyper(params: Params) -> PyTree:
    return ()


def _prototypes(hyper: PyTree, shots: Shots) -> Prototypes:
    return prototypes(shots)


def prototypes(shots: Shots) -> Prototypes:
    """c_n, of a class of the task; 0 of the others.

    >>> z, one_hot = jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> prototypes(Shots(z, one_hot)).means.tolist()
    [[1.0], [9.0]]
    """
    z, one_hot, weight, num_ways = shots
    if weight is not None:
        one_hot = one_hot * weight.astype(one_hot.dtype)[:, None]
    counts = jnp.sum(one_hot, axis=0)
    if num_ways is not None:
        counts = jnp.where(jnp.arange(len(counts)) < num_ways, counts, 1)
    return Prototypes(one_hot.T @ z / counts[:, None], num_ways)


def ridge(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_ways: int,
    num_eval_ways: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    regularization: float = 1.0,
    scale: float = 10.0,
    stochastic: bool = False,
    frozen: Where | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """R2-D2: ridge regression onto one-hot labels in an embedding; the loss is differentiated through its solution.

        W = (ZᵀZ + λI)⁻¹ ZᵀY,    p(n | x) = softmax_n(α f_θ(x) W)

    with Z = f_θ(shots) and λ, α > 0 learned together with θ. The paper also adds a learned β to all logits: it is the
    same for every class, so it cancels, and is left out.

    Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers" (2019),
    https://arxiv.org/abs/1805.08136

    A class without a shot has the logit 0; a label out of range makes the loss NaN.

    Args:
      init_fn: as in `protonet`.
      embed_fn: as in `protonet`.
      num_ways: as in `protonet`.
      num_eval_ways: as in `protonet`.
      condition_fn: as in `protonet`.
      regularization: λ > 0, where it starts.
      scale: α > 0, where it starts.
      stochastic: as in `protonet`.
      frozen: as in `protonet`.
      optimizer: as in `protonet`.
      microbatch: as in `protonet`.

    Returns:
      A `MetaLearner` as that of `protonet`.

    Raises:
      ValueError: as `protonet`; `regularization` or `scale` is not positive.

    >>> learner = ridge(lambda key: jnp.ones(()), lambda params, x: params * x, num_ways=2)
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> task = Task((jnp.eye(2), jnp.array([0, 1])))
    >>> params, head = learner.adapt(jax.random.key(1), meta_params, task)
    >>> jnp.round(head.weights, 3).tolist()
    [[5.0, 0.0], [0.0, 5.0]]
    """
    check_number("regularization", regularization, minimum=1e-12)
    check_number("scale", scale, minimum=1e-12)
    return closed_form(
        partial(_ridge_hyper, regularization, scale),
        _ridge_head,
        init_fn=init_fn,
        embed_fn=embed_fn,
        num_ways=num_ways,
        num_eval_ways=num_eval_ways,
        condition_fn=condition_fn,
        stochastic=stochastic,
        frozen=frozen,
        optimizer=optimizer,
        microbatch=microbatch,
    )


def _ridge_hyper(regularization: float, scale: float, params: Params) -> PyTree:
    """log λ and log α, in the type of the parameters."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    log = lambda value: jnp.log(jnp.asarray(value, dtype))
    return {"log_lambda": log(regularization), "log_scale": log(scale)}


def _ridge_head(hyper: PyTree, shots: Shots) -> LinearHead:
    """α W, by rows that are scaled by the roots of their weights."""
    z, one_hot, weight, num_ways = shots
    if weight is not None:
        z, one_hot = (rows * jnp.sqrt(weight).astype(rows.dtype)[:, None] for rows in (z, one_hot))
    weights = ridge_weights(z, one_hot, jnp.exp(hyper["log_lambda"]))
    return LinearHead(jnp.exp(hyper["log_scale"]) * weights, num_ways)


def ridge_weights(z: jax.Array, y: jax.Array, regularization: jax.Array | float) -> jax.Array:
    """argmin_W |z W − y|² + λ |W|², by the smaller of two systems: D features, or B examples.

        (zᵀz + λI)⁻¹ zᵀy  =  zᵀ (z zᵀ + λI)⁻¹ y            (Woodbury)

    Args:
      z: features [B, D].
      y: targets [B, N].
      regularization: λ > 0.

    Returns:
      W [D, N], solved in float32 at least.

    >>> ridge_weights(jnp.array([[2.0, 0.0]]), jnp.array([[5.0]]), 1.0).tolist()
    [[2.0], [0.0]]
    """
    num_examples, num_features = z.shape
    dtype = jnp.promote_types(jnp.result_type(z, y), jnp.float32)  # there is no solver for bfloat16
    z, y = z.astype(dtype), y.astype(dtype)
    solve = lambda gram, right: jax.scipy.linalg.solve(
        gram + regularization * jnp.eye(len(gram), dtype=dtype), right, assume_a="pos"
    )
    with jax.default_matmul_precision("highest"):  # a GPU's default has ten bits, too few for a system of equations
        return z.T @ solve(z @ z.T, y) if num_examples < num_features else solve(z.T @ z, z.T @ y)


class _ClosedForm(NamedTuple):
    """The choices of a learner, checked, for the functions below; `embed_fn` is (params, x, key, weight) -> z, and

    init_hyper: (params) -> η
    head_of:    (η, Shots) -> head, a function z -> logits
    """

    init_hyper: Callable
    head_of: Callable
    init_fn: Callable
    embed_fn: Callable
    num_ways: int
    num_eval_ways: int
    condition_fn: Callable | None
    stochastic: bool
    frozen: Where | None
    optimizer: optax.GradientTransformation
    microbatch: int | None


def closed_form(
    init_hyper: Callable[[Params], PyTree],
    head_of: Callable[[PyTree, Shots], Any],
    *,
    init_fn: InitFn,
    embed_fn: EmbedFn,
    num_ways: int,
    num_eval_ways: int | None,
    condition_fn: Callable[[Params, Batch], Params] | None,
    stochastic: bool,
    frozen: Where | None,
    optimizer: optax.GradientTransformation | None,
    microbatch: int | None,
) -> MetaLearner:
    """The learner that all heads share.

    Args:
      init_hyper: (params) -> η.
      head_of: (η, Shots) -> head, a function z -> logits.
      init_fn: as in `protonet`, and so are the others.
    """
    check_callable("embed_fn", embed_fn, "(params, x) -> features [B, D]")
    check_flag("stochastic", stochastic)
    if frozen is not None:
        check_where("frozen", frozen)
    check_takes_key("embed_fn", embed_fn, ("params", "x"), stochastic)
    check_integer("num_ways", num_ways, minimum=1)
    check_optional_counts(num_eval_ways=num_eval_ways, microbatch=microbatch)
    if condition_fn is not None:
        check_arguments("condition_fn", condition_fn, ("params", "support"), "it returns parameters")
    spec = _ClosedForm(
        init_hyper=init_hyper,
        head_of=head_of,
        init_fn=check_init_fn(init_fn),
        embed_fn=partial(embed, embed_fn, stochastic),
        num_ways=num_ways,
        num_eval_ways=num_ways if num_eval_ways is None else num_eval_ways,
        condition_fn=condition_fn,
        stochastic=stochastic,
        frozen=frozen,
        optimizer=chosen_optimizer(optimizer, optax.adam(1e-3)),
        microbatch=microbatch,
    )
    return MetaLearner(
        init=lambda key: _init(spec, key),
        update=lambda key, state, tasks: _update(spec, key, state, tasks),
        adapt=lambda key, meta_params, task: _adapt(spec, key, meta_params, task),
        evaluate=lambda key, meta_params, task: _evaluate(spec, key, meta_params, task),
        check=partial(_check, spec),
    )


def _init(spec: _ClosedForm, key: jax.Array) -> MetaState:
    """θ and η."""
    params, constants = freeze(spec.init_fn(key), spec.frozen)
    return initial_state(spec.optimizer, MetaParams(params, spec.init_hyper(params), constants))


def embed(
    embed_fn: EmbedFn, stochastic: bool, params: Params, x: jax.Array, key: jax.Array | None, weight: jax.Array | None
) -> jax.Array:
    """z = f_θ(x), [B, D]."""
    z = apply_weighted(embed_fn, params, x, *([key] if stochastic else []), weight=weight)
    if jnp.ndim(z) != 2:
        raise ValueError(f"embed_fn must return features [B, D], got shape {jnp.shape(z)}: flatten them")
    return z


def _fit(
    spec: _ClosedForm, meta_params: MetaParams, support: Batch, most_ways: int, key: jax.Array | None = None
) -> Adapted:
    """head_i = h(f_θ(support_i); η)."""
    params = unfreeze(meta_params.params, meta_params.constants)
    if spec.condition_fn is not None:
        params = spec.condition_fn(params, support)
    return Adapted(params, spec.head_of(meta_params.hyper, embedded(spec.embed_fn, params, support, most_ways, key)))


def embedded(embed_fn: Callable, params: Params, support: Batch, most_ways: int, key: jax.Array | None = None) -> Shots:
    """What a head of `most_ways` classes is made of, by an `embed_fn` (params, x, key, weight) -> z."""
    x, labels, weight, num_ways = examples_of("support", support)
    z, labels = embed_fn(params, x, key, weight), jnp.asarray(labels)
    _check_shots(labels, z, most_ways)
    rows = one_hot(labels, most_ways, z.dtype, weight, num_ways)
    return Shots(z if weight is None else jnp.where(weight[:, None] != 0, z, 0), rows, weight, num_ways)


def _judge(
    spec: _ClosedForm, adapted: Adapted, query: Batch, key: jax.Array | None = None
) -> tuple[jax.Array, Metrics]:
    """L(head_i ∘ f_θ; query_i), the cross entropy."""

    def apply_fn(adapted: Adapted, x: jax.Array, weight: jax.Array | None = None) -> jax.Array:
        return adapted.head(spec.embed_fn(adapted.params, x, key, weight))

    return nn.cross_entropy(apply_fn)(adapted, query)


def _update(spec: _ClosedForm, key: jax.Array, state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    """θ, η ← θ, η − β ∇_{θ,η} mean_i L(head_i ∘ f_θ; query_i)."""
    check_state(state)

    def gradient(meta_params: MetaParams, per_task: tuple[jax.Array, Task]):
        (support_key, query_key), task = per_task

        def loss(moving: MetaParams) -> tuple[jax.Array, Metrics]:
            whole = moving._replace(constants=meta_params.constants)
            return _judge(spec, _fit(spec, whole, task.support, spec.num_ways, support_key), task.query, query_key)

        return jax.value_and_grad(loss, has_aux=True)(learned(meta_params))

    keys = jax.random.split(key, (check_tasks(tasks), 2))
    (loss, metrics), grads = mean_over_tasks(gradient, spec.microbatch, state.meta_params, (keys, tasks))
    return outer_step(spec.optimizer, state, loss, metrics, grads)


def _adapt(spec: _ClosedForm, key: jax.Array, meta_params: MetaParams, task: Task) -> Adapted:
    check_meta_params(meta_params)
    check_task(task)
    return _fit(spec, meta_params, task.support, spec.num_eval_ways)


def _evaluate(spec: _ClosedForm, key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
    """Of the uniform guess, and with the head."""
    check_meta_params(meta_params)
    check_query(task)
    _, metrics = _judge(spec, _fit(spec, meta_params, task.support, spec.num_eval_ways), task.query)
    said = (examples_of(name, batch).num_ways for name, batch in (("query", task.query), ("support", task.support)))
    num_ways = next((ways for ways in said if ways is not None), spec.num_eval_ways)
    guess = {"loss": jnp.log(jnp.asarray(num_ways, float)), "accuracy": 1 / num_ways}
    return {name: jnp.stack([jnp.asarray(guess[name], after.dtype), after]) for name, after in metrics.items()}


def _check(spec: _ClosedForm, meta_params: MetaParams, task: Task, is_test: bool) -> None:
    """The labels of both sets, which `one_hot` and `cross_entropy` look at."""
    check_query(task)
    ways = spec.num_eval_ways if is_test else spec.num_ways
    jax.eval_shape(
        lambda given, key: _judge(spec, _fit(spec, given, task.support, ways, key), task.query, key),
        meta_params,
        a_key(),
    )


def _check_shots(labels: jax.Array, z: jax.Array, num_ways: int) -> None:
    if labels.shape != z.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels of the support set must be integers of shape [B] for features [B, D], got {labels.dtype} of shape "
            f"{labels.shape} for features {z.shape}: pass class numbers, not one-hot rows or [B, 1]"
        )
    if num_ways > len(labels):
        raise ValueError(
            f"num_ways (num_eval_ways at test) must be at most the {len(labels)} examples of the support set, got "
            f"{num_ways}: a class needs a shot"
        )
