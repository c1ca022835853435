"""What learners share that learn from what they have just played: advantages, and how a policy steps on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_flag, check_integer, check_number, check_share
from jaxmeta.devices import check_shares
from jaxmeta.outer import apply_gradient
from jaxmeta.rl.objectives import importance_weighted, ppo_clip
from jaxmeta.rl.trust_region import TrustRegion
from jaxmeta.types import Metrics, Params, PyTree

ALIKE_SCALE = 1e-8  # what advantages of 0 are divided by
_ROUNDING = 1e-5  # returns that differ by less, of the largest, are the same


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """How actions are judged: by generalised advantage estimation, see `rl.returns.gae`.

    Raises:
      ValueError: a field is wrong.

    >>> Advantages(discount=0.9).gae_lambda
    1.0
    """

    discount: float = 0.99
    """γ, for each step of the environment, in [0, 1]."""
    gae_lambda: float = 1.0
    """λ, in [0, 1]: 1 judges by all rewards to come, 0 by the next one and the value of where it leads."""
    value_weight: float = 0.5
    """≥ 0, of the squared error of the value, where that is learned by the same loss as the policy."""
    normalize: bool = True
    """Whether advantages have mean 0 and deviation 1, see `normalized`."""

    def __post_init__(self) -> None:
        for name in ("discount", "gae_lambda"):
            check_share(name, getattr(self, name))
        check_number("value_weight", self.value_weight)
        check_flag("normalize", self.normalize)


@dataclass(frozen=True, kw_only=True)
class VPG:
    """One step of the optimizer along the policy gradient, of all that was played.

    Attributes:
      num_epochs: 1: how often all that was played is learned from.
      num_minibatches: 1: steps of an epoch.

    >>> VPG().terms(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])), jnp.array([3.0])).tolist()
    [-6.0]
    """

    num_epochs: ClassVar[int] = 1
    num_minibatches: ClassVar[int] = 1

    def terms(self, log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
        """The loss of each step, see `rl.objectives`."""
        return importance_weighted(log_prob, old_log_prob, advantage)


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Several steps of the optimizer on what was played, with a loss that gains nothing far from the policy that acted.

    Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal Policy Optimization Algorithms" (2017),
    https://arxiv.org/abs/1707.06347

    Raises:
      ValueError: a field is wrong.

    >>> PPO(num_epochs=3).clip
    0.2
    """

    clip: float = 0.2
    """ε, in [0, 1]: the interval of the ratio of probabilities is 1 ± ε."""
    num_epochs: int = 1
    """How often all of it is learned from, at least 1."""
    num_minibatches: int = 1
    """Steps of an epoch, at least 1, each on its share of the tasks, drawn anew. It divides the number of tasks."""

    def __post_init__(self) -> None:
        check_share("clip", self.clip)
        check_integer("num_epochs", self.num_epochs, minimum=1)
        check_integer("num_minibatches", self.num_minibatches, minimum=1)

    def terms(self, log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
        """The loss of each step, see `rl.objectives`."""
        return ppo_clip(log_prob, old_log_prob, advantage, clip=self.clip)


@dataclass(frozen=True, kw_only=True)
class TRPO(TrustRegion):
    """The largest step for which the policy stays close to the one that acted: see `rl.trust_region`.

    Attributes:
      num_epochs: 1: how often all that was played is learned from, by the policy.
      num_minibatches: 1: steps of an epoch, of the policy.

    Raises:
      ValueError: a field is wrong.

    >>> TRPO(max_kl=0.02).num_cg_steps
    10
    """

    num_critic_epochs: int = 1
    """How often a critic of its own, as RL² has, learns from what was played; by the optimizer."""
    num_critic_minibatches: int = 1
    """Steps of such an epoch, each on its share of the tasks, drawn anew."""

    num_epochs: ClassVar[int] = 1
    num_minibatches: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_critic_epochs", self.num_critic_epochs, minimum=1)
        check_integer("num_critic_minibatches", self.num_critic_minibatches, minimum=1)

    def terms(self, log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
        """The loss of each step, see `rl.objectives`."""
        return importance_weighted(log_prob, old_log_prob, advantage)


PolicyStep: TypeAlias = VPG | PPO | TRPO


def check_policy_step(name: str, value: Any) -> None:
    """That `value` is a step of a policy.

    Args:
      name: what the message calls it.
      value: what is looked at.

    Raises:
      ValueError: it is neither a `VPG`, a `PPO` nor a `TRPO`.
    """
    if not isinstance(value, PolicyStep):
        raise ValueError(f"{name} must be jaxmeta.VPG(...), PPO(...) or TRPO(...), got {value!r}")


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Over the steps that were played.

    Args:
      x: numbers of any shape.
      mask: which of them count, in the same shape.

    >>> masked_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).item()
    2.0
    """
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)


def normalized(advantage: jax.Array, mask: jax.Array, to_go: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Advantages of mean 0 and deviation 1 over the steps that were played, and what they were divided by.

    Where all episodes had the same return to go at each of their steps, up to rounding, no action made a difference,
    and all advantages are 0. What is left of them there is the error of the baseline: its deviation may be a
    ten-thousandth of the returns, and divided by it the error would be learned from as if it were a signal. A single
    episode has no other to be compared with, and is always normalised.

    Args:
      advantage: `[T, E]`.
      mask: whether a step was played, in the same shape.
      to_go: the discounted rewards to go, in the same shape.

    >>> same = jnp.array([[11.3, 11.3], [5.0, 5.0]])  # two episodes
    >>> advantage, mask = jnp.array([[0.001, 0.001], [-0.001, -0.001]]), jnp.ones((2, 2), bool)
    >>> normalized(advantage, mask, same)[0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    >>> normalized(advantage, mask, same + jnp.array([[0.1, 0.0], [0.0, 0.0]]))[0].round(3).tolist()
    [[1.0, 1.0], [-1.0, -1.0]]
    """
    centred = advantage - masked_mean(advantage, mask)
    scale = jnp.sqrt(masked_mean(centred**2, mask)) + 1e-8
    if to_go.shape[1] == 1:
        return centred / scale, scale
    spread = jnp.max(jnp.max(to_go, axis=1) - jnp.min(to_go, axis=1))
    is_alike = spread <= _ROUNDING * jnp.max(jnp.abs(to_go))
    return jnp.where(is_alike, 0, centred / scale), jnp.where(is_alike, ALIKE_SCALE, scale)


def descend(
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    gradient_fn: Callable[[Params, PyTree], tuple[tuple[jax.Array, Metrics], Params]],
    params: Params,
    opt_state: PyTree,
    data: PyTree,
    *,
    axis: int,
    num_epochs: int,
    num_minibatches: int,
    **extra: Any,
) -> tuple[Params, PyTree, Metrics]:
    """The optimizer's steps over all of `data` `num_epochs` times, each on a share of its tasks.

    Args:
      key: random key of the shares; with a single one nothing is drawn.
      optimizer: what steps; a step that is not finite is not taken, see `outer.apply_gradient`.
      gradient_fn: (params, data of some tasks) -> ((loss, metrics), gradient).
      params: where to begin.
      opt_state: of the optimizer.
      data: a pytree of arrays with an axis of tasks.
      axis: which one that is.
      num_epochs: see `PPO`.
      num_minibatches: see `PPO`.
      **extra: for the optimizer, see `rl.trust_region`.

    Returns:
      The parameters, the state of the optimizer, and the metrics of all steps.

    Raises:
      ValueError: `num_minibatches` does not divide the number of tasks.

    >>> optimizer, w, data = optax.sgd(0.5), jnp.array(0.0), jnp.array([1.0, 3.0])
    >>> gradient_fn = lambda w, x: ((jnp.array(0.0), {}), w - x.mean())
    >>> how = {"axis": 0, "num_epochs": 2, "num_minibatches": 1}
    >>> descend(jax.random.key(0), optimizer, gradient_fn, w, optimizer.init(w), data, **how)[0].item()
    1.5
    """

    def step(loop: tuple, batch: PyTree) -> tuple[tuple, Metrics]:
        params, opt_state = loop
        (loss, metrics), grads = gradient_fn(params, batch)
        params, opt_state, terms = apply_gradient(optimizer, params, opt_state, loss, grads, **extra)
        return (params, opt_state), {**metrics, **terms}

    start = (params, opt_state)
    if num_minibatches == 1:
        (params, opt_state), curves = jax.lax.scan(lambda loop, _: step(loop, data), start, length=num_epochs)
        return params, opt_state, curves

    num_tasks = jax.tree.leaves(data)[0].shape[axis]
    if num_tasks % num_minibatches:
        raise ValueError(f"num_minibatches must divide the number of tasks, {num_tasks}, got {num_minibatches}")
    check_shares(num_tasks, num_minibatches)
    orders = jax.vmap(jax.random.permutation, (0, None))(jax.random.split(key, num_epochs), num_tasks)
    share = lambda chosen: jax.tree.map(lambda x: x[(slice(None),) * axis + (chosen,)], data)
    (params, opt_state), curves = jax.lax.scan(
        lambda loop, chosen: step(loop, share(chosen)), start, orders.reshape(num_epochs * num_minibatches, -1)
    )
    return params, opt_state, curves


def of_update(curves: Metrics) -> Metrics:
    """What an update of several steps reports: of the first, where it began; and whether all of them were finite.

    Args:
      curves: {name: [number of steps]}, as `descend` returns them; "is_finite" among them.

    >>> of_update({"loss": jnp.array([3.0, 2.0]), "is_finite": jnp.array([True, False])})["loss"].item()
    3.0
    """
    first = {name: curve[0] for name, curve in curves.items()}
    return first | {"is_finite": jnp.all(curves["is_finite"])}
