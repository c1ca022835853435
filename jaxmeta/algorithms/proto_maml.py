"""Proto-MAML: MAML whose linear head starts, in every task, as the prototypical network's.

    c_n = mean of f_θ(x) over the shots of class n           for each task i
    W, b = 2 c, −|c|²                                        so that z W + b = −|z − c_n|² + |z|², the same softmax
    (θ', W', b')_i = K inner steps from (θ, W, b)            on the support set, head and embedding together
    θ    ← θ − β ∇_θ mean_i L(θ'_i, W'_i, b'_i; query_i)     through the inner loop and through the prototypes

It is `maml` with a `start_fn`. What `adapt` returns predicts: `params, head = learner.adapt(key, meta_params, task)`,
then `head(embed_fn(params, x))`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt, nn
from jaxmeta.adapt.optimizers import InnerOptimizer
from jaxmeta.adapt.select import Where, check_where, freeze, in_part
from jaxmeta.algorithms.closed_form import Adapted, AffineHead, EmbedFn, embed, embedded, prototypes
from jaxmeta.algorithms.maml import maml
from jaxmeta.checks import check_arguments, check_callable, check_flag, check_init_fn, check_integer, check_takes_key
from jaxmeta.nn.weights import examples_of
from jaxmeta.signatures import names_options_of
from jaxmeta.types import Batch, InitFn, MetaLearner, MetaParams, Params, Task


class Options(TypedDict, total=False):
    """What it has of `maml`, as it is there."""

    inner_optimizer: InnerOptimizer | None
    num_inner_steps: int
    num_eval_steps: int | None
    batch_size: int | None
    loss_weights: Callable[[jax.Array], jax.Array] | None
    meta_gradient: adapt.MetaGradient | None
    optimizer: optax.GradientTransformation | None
    microbatch: int | None


@names_options_of(maml)
def proto_maml(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_ways: int,
    num_eval_ways: int | None = None,
    condition_fn: Callable[[Params, Batch], Params] | None = None,
    stochastic: bool = False,
    frozen: Where | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Proto-MAML: `maml` on an embedding and a linear head that starts from the prototypes of a task's support set.

        W_n = 2 c_n,  b_n = −|c_n|²,  c_n = mean of f_θ(x) over the shots of class n

    Before the first inner step it predicts as a prototypical network does, and from there embedding and head adapt;
    with an inner rate of 0 it is `protonet`. The meta-gradient goes through the prototypes, with `adapt.first_order()`
    too, which is what its authors trained with. Other arguments as in `maml`.

    Triantafillou, Zhu, Dumoulin, Lamblin, Evci, Xu, Goroshin, Gelada, Swersky, Manzagol, Larochelle, "Meta-Dataset: A
    Dataset of Datasets for Learning to Learn from Few Examples" (2020), https://arxiv.org/abs/1903.03096

    The inner optimizer sees parameters `(params, head)`: paths of the embedding's begin with "params/", those of the
    head are "head/weights" and "head/bias", so that `adapt.adapt_only(adapt.sgd(0.1), "head")` adapts the head alone. A
    rate that `adapt.meta_sgd` learns is one for all of the head's weights and one for its biases.

    Args:
      init_fn: (key) -> params θ of the embedding, any pytree of real arrays.
      embed_fn: (params, x [B, ...]) -> features [B, D], such as the `apply` of `nn.Conv4(num_classes=None)`.
      num_ways: classes N of a task while meta-training, at least 1, the most of any where tasks say `num_ways` of their
        own. Labels are integers from 0 to N − 1; another, or a class without a shot, makes the loss NaN.
      num_eval_ways: the classes, or most classes, of a task in `adapt` and `evaluate`; `num_ways` if None.
      condition_fn: (params, support) -> params of the embedding, what it knows of a task once it is adapted to, as in
        `maml`.
      stochastic: the embedding draws, for dropout: (params, x, key). The key is None for prototypes, and where
        `evaluate` judges.
      frozen: which parameters of the embedding neither adapt nor are meta-learned, as in `maml`; none if None.

    Returns:
      A `MetaLearner` for `Task`s of pairs (x, labels), or of `Examples`, as that of `maml`. Its `adapt` returns
      `(params, head)`, and `head(embed_fn(params, x))` are the logits. `meta_params.params` are such a pair too, of θ
      and of two zeros that keep the head's place.

    Raises:
      ValueError: as `maml` and `protonet`.

    >>> still = adapt.sgd(0.0)  # so that the head stays as it starts
    >>> learner = proto_maml(lambda key: 1.0, lambda params, x: params * x, num_ways=2, inner_optimizer=still)
    >>> task = Task((jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1])))
    >>> params, head = learner.adapt(jax.random.key(1), learner.init(jax.random.key(0)).meta_params, task)
    >>> head.weights.tolist(), head.bias.tolist()
    ([[2.0, 18.0]], [-1.0, -81.0])
    """
    check_callable("embed_fn", embed_fn, "(params, x) -> features [B, D]")
    check_flag("stochastic", stochastic)
    if frozen is not None:
        check_where("frozen", frozen)
    check_takes_key("embed_fn", embed_fn, ("params", "x"), stochastic)
    for name, count in (("num_ways", num_ways), ("num_eval_ways", num_eval_ways)):
        if name == "num_ways" or count is not None:
            check_integer(name, count, minimum=1)
    if condition_fn is not None:
        check_arguments("condition_fn", condition_fn, ("params", "support"), "it returns parameters")

    embedding = partial(embed, embed_fn, stochastic)

    def with_ways(num_ways: int) -> MetaLearner:
        return maml(
            partial(_init, check_init_fn(init_fn), frozen),
            nn.cross_entropy(partial(_predict, embedding) if stochastic else partial(_predict, embedding, key=None)),
            start_fn=partial(_start, embedding, num_ways),
            condition_fn=partial(_condition, condition_fn),
            stochastic=stochastic,
            frozen=None if frozen is None else _of_pair(frozen),
            **options,
        )

    training, test = with_ways(num_ways), with_ways(num_ways if num_eval_ways is None else num_eval_ways)
    return training._replace(adapt=test.adapt, evaluate=test.evaluate, check=partial(_check, training, test))


def _init(init_fn: Callable, frozen: Where | None, key: jax.Array) -> Adapted:
    """θ, and a zero in the place of each part of the head, which `_start` makes."""
    params = init_fn(key)
    learned, _ = freeze(params, frozen)
    nothing = jnp.zeros((), jnp.result_type(*jax.tree.leaves(learned)))
    return Adapted(params, AffineHead(nothing, nothing))


def _start(embedding: Callable, num_ways: int, pair: Adapted, support: Batch) -> Adapted:
    """W, b = 2 c, −|c|²."""
    means = prototypes(embedded(embedding, pair.params, support, num_ways)).means
    return pair._replace(head=AffineHead(2 * means.T, -jnp.sum(means**2, axis=1)))


def _predict(
    embedding: Callable, pair: Adapted, x: jax.Array, key: jax.Array | None, weight: jax.Array | None = None
) -> jax.Array:
    return pair.head(embedding(pair.params, x, key, weight))


def _condition(condition_fn: Callable | None, pair: Adapted, support: Batch) -> Adapted:
    """What else the support set says: of the embedding's parameters, and of how many classes the task is."""
    params = pair.params if condition_fn is None else condition_fn(pair.params, support)
    return Adapted(params, pair.head._replace(num_ways=examples_of("support", support).num_ways))


def _of_pair(frozen: Where) -> Where:
    """What is frozen of the embedding, as a part of (params, head)."""
    return in_part("params", frozen) if isinstance(frozen, str) or callable(frozen) else Adapted(frozen, False)


def _check(training: MetaLearner, test: MetaLearner, meta_params: MetaParams, task: Task, is_test: bool) -> None:
    """Labels below the number of ways of training, or of test."""
    check: Any = (test if is_test else training).check
    check(meta_params, task, is_test)
