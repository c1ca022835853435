"""Baselines for few-shot classifiers: a classifier of all training classes, of which a task gets a head of its own.

    θ, W, b ← θ, W, b − β ∇ L(softmax(f_θ(x) W + b); y)      minibatches over all training classes: no tasks
    head_i = h(f_θ(support_i))                               for each task i, at test; θ stays

| the paper  | here          | the head of a task                                                              |
|------------|---------------|---------------------------------------------------------------------------------|
| Baseline   | `fine_tune`   | W_i, b_i after K gradient steps from 0, on the features of the support set      |
| SimpleShot | `simple_shot` | the nearest of the classes' means, of features that are centred and of length 1 |

They train alike, on `tasks.all_classes`, and have the same `meta_params`: train one, evaluate both. What `adapt`
returns predicts: `params, head = learner.adapt(key, meta_params, task)`, then `head(embed_fn(params, x))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt, nn
from jaxmeta.adapt.optimizers import InnerOptimizer, check_inner_optimizer
from jaxmeta.adapt.select import Where, unfreeze
from jaxmeta.algorithms.classifier import Classifier, check_minibatch, classifier, init, update
from jaxmeta.algorithms.closed_form import Adapted, AffineHead, EmbedFn, Prototypes, Shots, closed_form, prototypes
from jaxmeta.checks import check_arguments, check_choice, check_integer, check_meta_params, check_query, check_task
from jaxmeta.nn.weights import examples_of
from jaxmeta.signatures import names_options_of
from jaxmeta.types import Batch, Examples, InitFn, MetaLearner, MetaParams, Metrics, Params, Task


class NormalizedPrototypes(NamedTuple):
    """z -> −|u − c_n|² with u = (z − m) / |z − m|, `prototypes` c and `centre` m [D]."""

    prototypes: Prototypes
    centre: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, N]."""
        return self.prototypes(_normalized(z, self.centre))


def fine_tune(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_classes: int,
    num_features: int,
    num_ways: int,
    inner_optimizer: InnerOptimizer | None = None,
    num_eval_steps: int = 100,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    stochastic: bool = False,
    frozen: Where | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """The Baseline: a classifier of all training classes, whose head is fitted anew to the support set of a task.

        p(n | x) = softmax_n(f_θ(x) W + b)

    W and b, of all training classes, are trained with θ; of a task they start at 0 and take K steps down the cross
    entropy of the support set, while θ stays. It is no meta-learner, and what meta-learners are to be compared with.

    Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification" (2019), https://arxiv.org/abs/1904.04232

    Args:
      init_fn: (key) -> params θ of the embedding, any pytree of real arrays.
      embed_fn: (params, x [B, ...]) -> features [B, D], such as the `apply` of `nn.Conv4(num_classes=None)`.
      num_classes: C, training classes; labels of `update` are integers from 0 to C − 1.
      num_features: D, of the features, which the head of the training classes is made for.
      num_ways: the classes, or most classes, of a task in `adapt` and `evaluate`.
      inner_optimizer: of the head; if None the paper's, SGD of rate 0.01 with momentum 0.9, dampened by 0.9, and a
        weight decay of 0.001. Each step sees the whole support set.
      num_eval_steps: K, steps of `adapt` and `evaluate`, at least 1.
      condition_fn: (params, support) -> params, what the embedding knows of a task before it embeds anything, such as
        `nn.support_statistics`; nothing if None. It has no part in training.
      stochastic: the embedding draws, for dropout: (params, x, key). The key is None in `adapt` and `evaluate`.
      frozen: which parameters of the embedding are not trained, such as all of a pretrained one but its last block, as
        in `maml`; none if None.
      optimizer: the optax transformation of the training, which is told the loss as `value`; `optax.adam(1e-3)` if
        None.
      microbatch: minibatches that are vectorised at a time, see `outer.mean_over_tasks`; chosen for the backend if
        None.

    Returns:
      A `MetaLearner` whose `update` takes N stacked minibatches without a support set, `Task((), (x, y))`, those of
      `tasks.all_classes`; an episode it refuses. Its `adapt` returns `(params, head)`, and `head(embed_fn(params, x))`
      are the logits. Its `evaluate` judges an episode after 0 .. K steps, before the first by the uniform guess.

    Raises:
      ValueError: an argument is wrong; while tracing, features, labels or a task have a wrong shape.

    >>> learner = fine_tune(lambda key: 1.0, lambda params, x: params * x, num_classes=9, num_features=2, num_ways=2)
    >>> state = learner.init(jax.random.key(0))
    >>> images, labels = jnp.ones((1, 4, 2)), jnp.array([[0, 8, 3, 3]])
    >>> state, metrics = learner.update(jax.random.key(1), state, Task((), (images, labels)))
    >>> params, head = learner.adapt(jax.random.key(2), state.meta_params, Task((jnp.eye(2), jnp.array([1, 0]))))
    >>> jnp.argmax(head(params * jnp.array([[3.0, 1.0]])), axis=1).tolist()
    [1]
    """
    check_integer("num_ways", num_ways, minimum=1)
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    inner = _sgd_of_paper() if inner_optimizer is None else inner_optimizer
    check_inner_optimizer("inner_optimizer", inner)
    if condition_fn is not None:
        check_arguments("condition_fn", condition_fn, ("params", "support"), "it returns parameters")
    spec = classifier(
        init_fn,
        embed_fn,
        num_classes=num_classes,
        num_features=num_features,
        stochastic=stochastic,
        frozen=frozen,
        optimizer=optimizer,
        microbatch=microbatch,
    )
    head = _Head(num_ways, inner, num_eval_steps, condition_fn)
    return MetaLearner(
        init=lambda key: init(spec, key),
        update=lambda key, state, tasks: update(spec, key, state, tasks),
        adapt=lambda key, meta_params, task: _adapt(spec, head, meta_params, task),
        evaluate=lambda key, meta_params, task: _evaluate(spec, head, meta_params, task),
        check=lambda meta_params, task, is_test: _check(spec, head, meta_params, task, is_test),
    )


def _sgd_of_paper() -> InnerOptimizer:
    """torch.optim.SGD(lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001), but for its first, undampened step."""
    momentum = optax.ema(0.9, debias=False)
    return adapt.from_optax(optax.chain(optax.add_decayed_weights(0.001), momentum, optax.scale(-0.01)))


class Options(TypedDict, total=False):
    """What `simple_shot` has of `fine_tune`, as it is there."""

    stochastic: bool
    frozen: Where | None
    optimizer: optax.GradientTransformation | None
    microbatch: int | None


@names_options_of(fine_tune)
def simple_shot(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_classes: int,
    num_features: int,
    num_ways: int,
    transform: str = "CL2N",
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """SimpleShot: the nearest centroid in the features of a classifier of all training classes.

        u(x) = (f_θ(x) − m) / |f_θ(x) − m|,    c_n = mean of u(x) over the shots of class n,
        p(n | x) = softmax_n(−|u(x) − c_n|²)

    m is the mean of the features of the training images. The paper takes it by a pass over all of them at the end; a
    learner sees its minibatches alone, so that here it is a running mean of theirs, with the θ of their step and as
    they were augmented: at step t, m ← m + (mean of f_θ(x) − m) / min(t, 100), which goes back about 100 steps. It is
    `meta_params.constants.feature_mean`; put there what a pass has given to have the paper's. The rest, and the
    training, is as in `fine_tune`.

    Wang, Chao, Weinberger, van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
    Learning" (2019), https://arxiv.org/abs/1911.04623

    Args:
      init_fn: as in `fine_tune`.
      embed_fn: as in `fine_tune`.
      num_classes: as in `fine_tune`.
      num_features: as in `fine_tune`.
      num_ways: as in `fine_tune`.
      transform: what becomes of features at test: "CL2N", as above; "L2N", with m = 0; "UN", nothing, u(x) = f_θ(x).
      condition_fn: as in `fine_tune`.

    Returns:
      A `MetaLearner` as that of `fine_tune`, but that its `evaluate` has two entries: of the uniform guess, and with
      the centroids.

    Raises:
      ValueError: as `fine_tune`; `transform` is none of the three.

    >>> sizes = {"num_classes": 9, "num_features": 2, "num_ways": 2}
    >>> learner = simple_shot(lambda key: 1.0, lambda params, x: params * x, transform="L2N", **sizes)
    >>> task = Task((jnp.array([[5.0, 0.0], [0.0, 0.1]]), jnp.array([1, 0])))
    >>> params, head = learner.adapt(jax.random.key(1), learner.init(jax.random.key(0)).meta_params, task)
    >>> jnp.argmax(head(params * jnp.array([[2.0, 0.1]])), axis=1).tolist()
    [1]
    """
    check_choice("transform", transform, _TRANSFORMS)
    spec = classifier(init_fn, embed_fn, num_classes=num_classes, num_features=num_features, **options)
    of_task = closed_form(
        lambda params: (),
        _TRANSFORMS[transform],
        init_fn=init_fn,
        embed_fn=embed_fn,
        num_ways=num_ways,
        num_eval_ways=None,
        condition_fn=condition_fn,
        stochastic=spec.stochastic,
        frozen=None,
        optimizer=None,
        microbatch=None,
    )
    check_episode: Any = of_task.check

    def check(meta_params: MetaParams, task: Task, is_test: bool) -> None:
        if is_test:
            check_episode(_embedding_alone(meta_params), task, is_test)
        else:
            check_minibatch(spec, meta_params, task)

    return MetaLearner(
        init=lambda key: init(spec, key),
        update=lambda key, state, tasks: update(spec, key, state, tasks),
        adapt=lambda key, meta_params, task: of_task.adapt(key, _embedding_alone(meta_params), task),
        evaluate=lambda key, meta_params, task: of_task.evaluate(key, _embedding_alone(meta_params), task),
        check=check,
    )


_TRANSFORMS = {
    "UN": lambda mean, shots: prototypes(shots),
    "L2N": lambda mean, shots: _centroids(jnp.zeros_like(mean), shots),
    "CL2N": lambda mean, shots: _centroids(mean, shots),
}


def _centroids(centre: jax.Array, shots: Shots) -> NormalizedPrototypes:
    """c_n, of features around `centre` and of length 1."""
    return NormalizedPrototypes(prototypes(shots._replace(z=_normalized(shots.z, centre))), centre)


def _normalized(z: jax.Array, centre: jax.Array) -> jax.Array:
    """(z − m) / |z − m|, and 0 where that is 0."""
    z = z - centre[None].astype(z.dtype)
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z**2, axis=1, keepdims=True), 1e-24))


def _embedding_alone(meta_params: MetaParams) -> MetaParams:
    """The meta-parameters of a learner whose head is made of features, of which it knows the mean."""
    check_meta_params(meta_params)
    constants = meta_params.constants
    return MetaParams(meta_params.params.params, constants.feature_mean, constants.frozen)


class _Head(NamedTuple):
    """How `fine_tune` makes a head, of how many classes."""

    num_ways: int
    inner_optimizer: InnerOptimizer
    num_steps: int
    condition_fn: Callable | None


def _embedded(
    spec: Classifier, head: _Head, meta_params: MetaParams, support: Batch, batch: Batch
) -> tuple[Params, Examples]:
    """The embedding's parameters, as they are for a task, and a batch with features in the place of x."""
    params = unfreeze(meta_params.params.params, meta_params.constants.frozen)
    if head.condition_fn is not None:
        params = head.condition_fn(params, support)
    examples = examples_of("support" if batch is support else "query", batch)
    return params, examples._replace(x=spec.embed_fn(params, examples.x, None, examples.weight))


def _beginning(head: _Head, z: jax.Array) -> AffineHead:
    """W, b = 0: the uniform guess."""
    return AffineHead(jnp.zeros((z.shape[1], head.num_ways), z.dtype), jnp.zeros(head.num_ways, z.dtype))


_cross_entropy = nn.cross_entropy(lambda head, z: head(z))


def _fitted(head: _Head, shots: Examples, observe: Callable | None = None) -> tuple[AffineHead, adapt.Trace]:
    """W_i, b_i after K steps on the features of the shots."""
    params = _beginning(head, shots.x)
    start = MetaParams(params, head.inner_optimizer.init(params))
    draw = lambda source, params: shots
    state, trace = adapt.unroll(
        head.inner_optimizer, _cross_entropy, draw, start, jnp.arange(head.num_steps), observe=observe
    )
    return head.inner_optimizer.params(start, state.fast), trace


def _adapt(spec: Classifier, head: _Head, meta_params: MetaParams, task: Task) -> Adapted:
    check_meta_params(meta_params)
    check_task(task)
    params, shots = _embedded(spec, head, meta_params, task.support, task.support)
    fitted, _ = _fitted(head, shots)
    return Adapted(params, fitted._replace(num_ways=shots.num_ways))


def _evaluate(spec: Classifier, head: _Head, meta_params: MetaParams, task: Task) -> Metrics:
    """What the cross entropy reports after 0 .. K steps."""
    check_meta_params(meta_params)
    check_query(task)
    _, shots = _embedded(spec, head, meta_params, task.support, task.support)
    _, queries = _embedded(spec, head, meta_params, task.support, task.query)
    judge = lambda fitted, drawn=None: _cross_entropy(fitted, queries)[1]
    fitted, trace = _fitted(head, shots, judge)
    return jax.tree.map(lambda curve, end: jnp.append(curve, end), trace.observed, judge(fitted))


def _check(spec: Classifier, head: _Head, meta_params: MetaParams, task: Task, is_test: bool) -> None:
    """The labels, which `cross_entropy` looks at: of a minibatch, or of both sets of an episode."""
    if not is_test:
        check_minibatch(spec, meta_params, task)
        return
    check_query(task)

    def losses(meta_params: MetaParams) -> list[jax.Array]:
        batches = (task.support, task.query)
        embedded = [_embedded(spec, head, meta_params, task.support, batch)[1] for batch in batches]
        return [_cross_entropy(_beginning(head, examples.x), examples)[0] for examples in embedded]

    jax.eval_shape(losses, meta_params)
