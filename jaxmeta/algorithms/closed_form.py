"""Few-shot classifiers with a head in closed form: the embedding is meta-learned, the head computed from the shots.

    head_i = h(f_θ(support_i); η)                            for each task i, without an inner loop
    θ, η   ← θ, η − β ∇_{θ,η} mean_i L(head_i ∘ f_θ; query_i)

| the paper | here       | the head of a task                      | logits of z = f_θ(x) | η, learned beside θ |
|-----------|------------|-----------------------------------------|----------------------|---------------------|
| ProtoNet  | `protonet` | the mean c_n of each class              | −|z − c_n|²          | ()                  |
| R2-D2     | `ridge`    | W = argmin |Z W − Y|² + λ |W|²          | α z W                | log λ, log α        |

What `adapt` returns predicts: `params, head = learner.adapt(key, meta_params, task)`, then `head(embed_fn(params, x))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmeta import nn
from jaxmeta.checks import (
    check_callable,
    check_fields,
    check_integer,
    check_number,
    check_params,
    check_query,
    check_task,
    check_tasks,
)
from jaxmeta.outer import mean_over_tasks, outer_step
from jaxmeta.types import Batch, InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, Task

EmbedFn: TypeAlias = Callable[..., Any]  # (params, x) -> features [B, D]; a flax module's `apply` has further arguments


class Prototypes(NamedTuple):
    """z -> −|z − c_n|², with `means` c [num_ways, D]."""

    means: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, num_ways]."""
        return -jnp.sum((z[:, None] - self.means[None]) ** 2, axis=-1)


class LinearHead(NamedTuple):
    """z -> z W, with `weights` W [D, num_ways]."""

    weights: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, num_ways]."""
        return z @ self.weights


class Adapted(NamedTuple):
    """What `adapt` returns: the embedding's parameters, as they were or as `condition_fn` has them, and the head."""

    params: Params
    head: Prototypes | LinearHead


def protonet(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_ways: int,
    num_eval_ways: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    optimizer: optax.GradientTransformation = optax.adam(1e-3),
    microbatch: int | None = None,
) -> MetaLearner:
    """Prototypical networks: a class is the mean of its shots in an embedding, and the nearest mean is the answer.

        c_n = mean of f_θ(x) over the shots of class n,    p(n | x) = softmax_n(−|f_θ(x) − c_n|²)

    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning" (2017), https://arxiv.org/abs/1703.05175

    Args:
      init_fn: (key) -> params of the embedding, any pytree of real arrays.
      embed_fn: (params, x [B, ...]) -> features [B, D], such as the `apply` of `nn.Conv4(num_classes=None)`.
      num_ways: N, classes of a task while meta-training; the paper has more of them than at test. Labels are integers
        from 0 to N − 1; a class without a shot makes the loss NaN.
      num_eval_ways: classes of a task in `adapt` and `evaluate`; `num_ways` if None.
      condition_fn: (params, support) -> params, what the embedding knows of a task before it embeds anything, such as
        `nn.support_statistics`; nothing if None. It is differentiated through.
      optimizer: the outer optax transformation.
      microbatch: tasks that are vectorised at a time, all if None; on a CPU, 1 is often faster for convolutions.

    Returns:
      A `MetaLearner` for `Task`s of pairs (x, labels). Its `update` reports the query set's `loss` (cross entropy) and
      `accuracy`, averaged over tasks, with `grad_norm` and `is_finite`. Its `adapt` returns `(params, head)`, and
      `head(embed_fn(params, x))` are the logits. Its `evaluate` returns both metrics [2]: of the uniform guess, for
      without shots nothing is known of the classes, and with the head.

    Raises:
      ValueError: an argument is wrong; while tracing, features, labels or a task have a wrong shape.

    >>> learner = protonet(lambda key: jnp.ones(()), lambda params, x: params * x, num_ways=2)
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> task = Task((jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1])))
    >>> params, head = learner.adapt(jax.random.key(1), meta_params, task)
    >>> head.means.tolist(), head(params * jnp.array([[3.0]])).tolist()
    ([[1.0], [9.0]], [[-4.0, -36.0]])
    """

    def head_of(hyper: PyTree, z: jax.Array, one_hot: jax.Array) -> Prototypes:
        return Prototypes(one_hot.T @ z / jnp.sum(one_hot, axis=0)[:, None])

    ways = num_ways, num_eval_ways
    return _closed_form(init_fn, embed_fn, lambda params: (), head_of, *ways, condition_fn, optimizer, microbatch)


def ridge(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_ways: int,
    num_eval_ways: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    regularization: float = 1.0,
    scale: float = 10.0,
    optimizer: optax.GradientTransformation = optax.adam(1e-3),
    microbatch: int | None = None,
) -> MetaLearner:
    """R2-D2: ridge regression onto one-hot labels in an embedding; the loss is differentiated through its solution.

        W = (ZᵀZ + λI)⁻¹ ZᵀY,    p(n | x) = softmax_n(α f_θ(x) W)

    with Z = f_θ(shots) and λ, α > 0 learned together with θ. The paper also adds a learned β to all logits: it is the
    same for every class, so it cancels, and is left out.

    Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers" (2019),
    https://arxiv.org/abs/1805.08136

    Args:
      regularization: λ, where it starts.
      scale: α, where it starts.

      The others as in `protonet`. A class without a shot has the logit 0.

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

    def init_hyper(params: Params) -> PyTree:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        log = lambda value: jnp.log(jnp.asarray(value, dtype))
        return {"log_lambda": log(regularization), "log_scale": log(scale)}

    def head_of(hyper: PyTree, z: jax.Array, one_hot: jax.Array) -> LinearHead:
        return LinearHead(jnp.exp(hyper["log_scale"]) * ridge_weights(z, one_hot, jnp.exp(hyper["log_lambda"])))

    ways = num_ways, num_eval_ways
    return _closed_form(init_fn, embed_fn, init_hyper, head_of, *ways, condition_fn, optimizer, microbatch)


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


def _closed_form(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    init_hyper: Callable[[Params], PyTree],
    head_of: Callable[[PyTree, jax.Array, jax.Array], Any],
    num_ways: int,
    num_eval_ways: int | None,
    condition_fn: Callable[[Params, Batch], Params] | None,
    optimizer: optax.GradientTransformation,
    microbatch: int | None,
) -> MetaLearner:
    """The learner that all heads share: `head_of(hyper, features, one-hot labels)` is a function features -> logits."""
    check_callable("init_fn", init_fn, "(key) -> params")
    check_callable("embed_fn", embed_fn, "(params, x) -> features [B, D]")
    check_integer("num_ways", num_ways, minimum=1)
    num_eval_ways = num_ways if num_eval_ways is None else num_eval_ways
    check_integer("num_eval_ways", num_eval_ways, minimum=1)
    if condition_fn is not None:
        check_callable("condition_fn", condition_fn, "(params, support) -> params")
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)

    def embed(params: Params, x: jax.Array) -> jax.Array:
        z = embed_fn(params, x)
        if jnp.ndim(z) != 2:
            raise ValueError(f"embed_fn must return features [B, D], got shape {jnp.shape(z)}: flatten them")
        return z

    def fit(meta_params: MetaParams, support: Batch, num_ways: int) -> Adapted:
        x, labels = _pair(support)
        params = meta_params.params if condition_fn is None else condition_fn(meta_params.params, support)
        z = embed(params, x)
        _check_labels(labels, z, num_ways)
        head = head_of(meta_params.hyper, z, jax.nn.one_hot(labels, num_ways, dtype=z.dtype))
        return Adapted(params, head)

    loss_fn = nn.cross_entropy(lambda adapted, x: adapted.head(embed(adapted.params, x)))

    def task_loss(meta_params: MetaParams, task: Task) -> tuple[jax.Array, Metrics]:
        return loss_fn(fit(meta_params, task.support, num_ways), task.query)

    def init(key: jax.Array) -> MetaState:
        params = check_params(init_fn(key))
        meta_params = MetaParams(params, init_hyper(params))
        return MetaState(jnp.int32(0), meta_params, optimizer.init(meta_params), jnp.int32(0))

    def update(key: jax.Array, state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
        check_tasks(tasks)
        gradient = jax.value_and_grad(task_loss, has_aux=True)
        (loss, metrics), grads = mean_over_tasks(gradient, microbatch, state.meta_params, tasks)
        return outer_step(optimizer, state, loss, metrics, grads)

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: Task) -> Adapted:
        check_task(task)
        return fit(meta_params, task.support, num_eval_ways)

    def evaluate(key: jax.Array, meta_params: MetaParams, task: Task) -> Metrics:
        check_query(task)
        _, metrics = loss_fn(fit(meta_params, task.support, num_eval_ways), task.query)
        guess = {"loss": jnp.log(float(num_eval_ways)), "accuracy": 1 / num_eval_ways}
        return {name: jnp.stack([jnp.asarray(guess[name], after.dtype), after]) for name, after in metrics.items()}

    return MetaLearner(init, update, adapt_to, evaluate)


def _pair(support: Batch) -> tuple[jax.Array, jax.Array]:
    if not isinstance(support, tuple | list) or len(support) != 2:
        raise ValueError(f"support must be a pair (x, labels), got {type(support).__name__}")
    return support[0], jnp.asarray(support[1])


def _check_labels(labels: jax.Array, z: jax.Array, num_ways: int) -> None:
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
