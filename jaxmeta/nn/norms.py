"""Batch norm with statistics that are collected while meta-training and used at test, which is not transductive.

The statistics are leaves of the parameters, under the name "statistics", so no meta-learner has to know of them:

- `TrackedBatchNorm(mode="collect")` normalises with the batch, as `BatchNorm` does, and leaves behind how far the
  stored statistics are from those of the batch;
- `collect_statistics` adds that to the loss, as a term that is zero and whose gradient is (stored − observed);
- `track_statistics` steps along it in the outer loop, which is the usual moving average;
- `mode="running"`, with the same parameters, normalises with what was stored.

Where no statistics of a batch are wanted at all, `flax.linen.LayerNorm` and `flax.linen.GroupNorm` are exact and fast
with parameters that differ per task; give them `use_fast_variance=False`, or a large mean costs all digits.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxmeta.checks import check_callable, check_choice, check_fields, check_integer, check_number
from jaxmeta.nn.layers import Conv, Initializer, Padding
from jaxmeta.types import Batch, LossFn, Metrics, Params, PyTree


class TrackedBatchNorm(nn.Module):
    """`BatchNorm` that can also use stored statistics: parameters "scale", "bias", "statistics" {"mean", "var"}, [C].

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    In the mode "collect" mean and var (without Bessel's correction) are those of the batch, over every axis but the
    last, and go to `collect_statistics`, without which the network refuses to be applied. In the mode "running" they
    are the stored ones, constants to any gradient: a prediction does not depend on the other inputs of its batch.

    Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift"
    (2015), https://arxiv.org/abs/1502.03167

    >>> layer = TrackedBatchNorm(mode="running")
    >>> params = layer.init(jax.random.key(0), jnp.ones((2, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'bias': (3,), 'scale': (3,), 'statistics': {'mean': (3,), 'var': (3,)}}}
    """

    mode: str
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        check_choice("mode", self.mode, ("collect", "running"))
        if x.ndim < 2:
            raise ValueError(f"x must be [..., C] with at least one axis of examples, got shape {x.shape}")
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        statistics = self.param("statistics", _standard, x.shape[-1:])
        if self.mode == "running":
            used = lax.stop_gradient(statistics)
        else:
            used = _moments(x)
            self._collect(statistics, used)
        along_last = lambda vector: vector.reshape((1,) * (x.ndim - 1) + vector.shape)
        multiplier = scale * lax.rsqrt(used["var"] + self.epsilon)
        return (x - along_last(used["mean"])) * along_last(multiplier) + along_last(bias)

    def _collect(self, statistics: PyTree, observed: PyTree) -> None:
        """Leaves 1/2 |statistics - observed|² in the collection "pull"."""
        if self.is_initializing():
            return
        if not self.is_mutable_collection("pull"):
            raise ValueError(
                "mode='collect' gives its statistics to a loss: make it with collect_statistics(loss, network.apply), "
                "or apply the network with mode='running'"
            )
        difference = jax.tree.map(lambda stored, new: stored - lax.stop_gradient(new), statistics, observed)
        self.sow("pull", "distance", optax.tree.norm(difference, squared=True) / 2)


class TrackedConvBatchNorm(nn.Module):
    """`Conv` without bias, then `TrackedBatchNorm`: the parameters of `ConvBatchNorm` and "statistics".

    >>> layer = TrackedConvBatchNorm(features=2, kernel_size=(3, 3), mode="running")
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> sorted(params["params"])
    ['bias', 'kernel', 'scale', 'statistics']
    """

    features: int
    kernel_size: int | tuple[int, int]
    mode: str
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    epsilon: float = 1e-5
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        check_integer("features", self.features, 1)
        conv = Conv(
            self.features, self.kernel_size, self.strides, self.padding, use_bias=False, kernel_init=self.kernel_init
        )
        norm = TrackedBatchNorm(self.mode, self.epsilon)
        nn.share_scope(self, conv)
        nn.share_scope(self, norm)
        return norm(conv(x))


def collect_statistics(loss: Callable[[Callable], LossFn], apply_fn: Callable) -> LossFn:
    """`loss(apply_fn)` with the gradient (stored − observed) for the statistics of every `TrackedBatchNorm`.

        L + p − stop_gradient(p),   p = 1/2 |statistics − stop_gradient(observed)|²

    The loss and the gradients of all other parameters are unchanged. Keep the statistics out of the inner loop with
    `adapt_only`, so that what is observed is the query set by the adapted network; `track_statistics` outside does then

        statistics ← (1 − rate) statistics + rate · mean over tasks of observed.

    Not for `reptile`, whose outer step takes no gradient and so collects nothing.

    Args:
      loss: such as `cross_entropy`, or your own (apply_fn) -> loss_fn. It may call `apply_fn` several times (then the
        mean is observed), but not inside a transformation of its own, such as `vmap`.
      apply_fn: the `apply` of a flax network with `TrackedBatchNorm`s, of mode "collect".

    Returns:
      (params, batch) -> (loss, metrics).

    Raises:
      ValueError: an argument is no function; while tracing, where nothing was collected.

    >>> from jaxmeta import adapt, maml, nn
    >>> train = nn.Conv4(num_classes=5, num_filters=8, statistics="collect")
    >>> learner = maml(
    ...     lambda key: train.init(key, jnp.zeros((1, 28, 28))),
    ...     nn.collect_statistics(nn.cross_entropy, train.apply),
    ...     inner_optimizer=adapt.adapt_only(adapt.sgd(0.4), lambda path: "statistics" not in path),
    ...     optimizer=nn.track_statistics(optax.adam(1e-3)),
    ... )
    >>> test = nn.Conv4(num_classes=5, num_filters=8, statistics="running")  # takes the parameters of `train`
    >>> state = jax.eval_shape(learner.init, jax.random.key(0))
    >>> jax.eval_shape(test.apply, state.meta_params.params, jnp.zeros((1, 28, 28))).shape
    (1, 5)
    """
    check_callable("loss", loss, "(apply_fn) -> loss_fn, such as cross_entropy")
    check_callable("apply_fn", apply_fn, "(params, x) -> prediction, the apply of a flax module")

    def loss_fn(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        pulls = []

        def collecting(params: Params, x: jax.Array) -> jax.Array:
            prediction, collected = apply_fn(params, x, mutable="pull")
            pulls.append(_total(collected))
            return prediction

        value, metrics = loss(collecting)(params, batch)
        if not pulls:
            raise ValueError(f"loss must call its apply_fn, such as cross_entropy does, got {loss!r}")
        pull = jnp.mean(jnp.stack(pulls))
        return value + (pull - lax.stop_gradient(pull)), metrics

    return loss_fn


def track_statistics(optimizer: optax.GradientTransformation, *, rate: float = 0.01) -> optax.GradientTransformation:
    """An outer optimizer that moves statistics by `rate` towards those observed, and all else by `optimizer`.

        statistics ← statistics − rate · gradient = (1 − rate) statistics + rate · observed

    Statistics are the parameters with "statistics" in their path; their learned hyperparameters, if there are any, are
    left to `optimizer`. See `collect_statistics`.

    Args:
      optimizer: the outer optax transformation for all other parameters, which alone it sees.
      rate: of the moving average, in [0, 1]; one minus what other libraries call momentum or decay.

    Raises:
      ValueError: `optimizer` is no optax transformation, `rate` is outside [0, 1], or (by its `init`) there are no
        statistics to track.

    >>> optimizer = track_statistics(optax.adam(1e-3), rate=0.1)
    >>> params = {"w": jnp.ones(1), "statistics": jnp.ones(1)}
    >>> grads = {"w": jnp.ones(1), "statistics": jnp.array([1.0 - 3.0])}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> round(updates["statistics"].item(), 3)
    0.2
    """
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    check_number("rate", rate)
    if not isinstance(rate, jax.Array) and rate > 1:
        raise ValueError(f"rate must be at most 1, the weight of what is new in a moving average, got {rate!r}")
    return optax.partition({"statistics": optax.sgd(rate), "others": optimizer}, _labels)


def _labels(params: PyTree) -> PyTree:
    """Who steps each leaf of the parameters, or of `MetaParams`: "statistics" or "others"."""

    def label(path: tuple, _: jax.Array) -> str:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return "statistics" if "statistics" in names and names[0] != "hyper" else "others"

    labels = jax.tree_util.tree_map_with_path(label, params)
    if "statistics" not in jax.tree.leaves(labels):
        raise ValueError("track_statistics found no parameter with 'statistics' in its path: use TrackedBatchNorm")
    return labels


def _standard(key: jax.Array, shape: tuple[int, ...]) -> PyTree:
    """Mean zero and variance one."""
    return {"mean": jnp.zeros(shape, jnp.float32), "var": jnp.ones(shape, jnp.float32)}


def _moments(x: jax.Array) -> PyTree:
    """Mean and variance over every axis but the last, in two passes."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, keepdims=True)
    return {"mean": mean.reshape(-1), "var": jnp.mean(jnp.square(x - mean), axes)}


def _total(collected: PyTree) -> jax.Array:
    """The sum over layers of what `TrackedBatchNorm`s have left, the mean where a layer was applied several times."""
    distances = jax.tree.leaves(collected, is_leaf=lambda leaf: isinstance(leaf, tuple))
    if not distances:
        raise ValueError("apply_fn must be of a network with TrackedBatchNorm(mode='collect'), it collected nothing")
    return sum((jnp.mean(jnp.stack(calls)) for calls in distances), start=jnp.zeros(()))
