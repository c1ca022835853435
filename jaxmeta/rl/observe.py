"""Normalisation: observations and rewards in units of what was seen of them so far, the one door for what networks see.

    x̂ = (o − μ_o) / σ_o,   r̂ = r / √(μ_r² + σ_r²)      what a network looks at, clipped
    r / σ_G                                             what is learned from, clipped; G_t = Σ_k γ^k r_{t+k}

Mean μ and deviation σ are those of all steps that were ever played in training, each counted once. They are kept in
`meta_params.constants`, stay as they are within an update, so that what acted is what learns, and at test; what an
update played is merged after it. A reward is divided and not shifted, for a shift would be another task.

What never varied is 0, and so is all before anything was seen: where rewards are normalised, the policy of a learner on
what it has just played learns nothing in the first update, which measures. So a change of scale changes nothing at all.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_fields, check_flag, check_number
from jaxmeta.rl.env import Family, check_family, flatten, unflatten
from jaxmeta.rl.rollout import Policy
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree


class Moments(NamedTuple):
    """Of numbers that were seen, those of some steps or of all so far.

    Attributes:
      num_steps: `()`, of how many steps, a real number.
      mean: `[...]`, in units of the numbers.
      variance: `[...]`, the mean square of what they differ from their mean by.
    """

    num_steps: jax.Array
    mean: jax.Array
    variance: jax.Array


class Seen(NamedTuple):
    """Moments of what was seen.

    Attributes:
      observation: of each of its D numbers, `[D]`.
      reward: of a step.
      to_go: of the discounted rewards from a step on, as the learner counts them.
    """

    observation: Moments
    reward: Moments
    to_go: Moments


class Normalization(NamedTuple):
    """How networks see observations and rewards, and what they learn from; `running_moments` makes one.

    Attributes:
      init: () -> moments of nothing, what is kept in `meta_params.constants`
      measure: (observation [T, ...], reward [T], to_go [T], mask [T]) -> moments of the steps that count
      merge: (moments, those of N tasks, stacked) -> of all together; as they were where the new are not finite
      observe: (moments, observation) -> the observation, as networks see it
      see: (moments, reward) -> the reward, as networks see it
      pay: (moments, reward) -> the reward that is learned from
    """

    init: Callable[[], PyTree]
    measure: Callable[[PyTree, jax.Array, jax.Array, jax.Array], PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    observe: Callable[[PyTree, PyTree], PyTree]
    see: Callable[[PyTree, jax.Array], jax.Array]
    pay: Callable[[PyTree, jax.Array], jax.Array]


def running_moments(
    family: Family, *, observations: bool = True, rewards: bool = True, max_deviations: float = 10.0
) -> Normalization:
    """Observations by their running mean and deviation, rewards by a running scale: `rl2(..., normalization=this)`.

    Every number of an observation has its own, integers too, and becomes a real one.

    Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations" (1983),
    https://doi.org/10.1080/00031305.1983.10483115, for moments that are merged without loss. The scale of rewards by
    that of returns: Engstrom et al., "Implementation Matters in Deep Policy Gradients" (2020),
    https://arxiv.org/abs/2005.12729

    Args:
      family: whose observations they are.
      observations: whether these are normalised.
      rewards: likewise, those that networks see and those that are learned from.
      max_deviations: > 0, what nothing normalised goes beyond.

    Raises:
      ValueError: `family` is none, a number is wrong, or nothing would be normalised.

    >>> from jaxmeta.rl import families
    >>> normalization = running_moments(families.navigation())
    >>> position, reward, played = jnp.array([[1.0, 5.0], [3.0, 5.0]]), jnp.array([4.0, 3.0]), jnp.ones(2, bool)
    >>> measured = normalization.measure(position, reward, reward, played)
    >>> moments = normalization.merge(normalization.init(), jax.tree.map(lambda x: x[None], measured))
    >>> moments.observation.mean.tolist(), normalization.observe(moments, jnp.array([5.0, 7.0])).tolist()
    ([2.0, 5.0], [3.0, 0.0])
    """
    check_family("family", family)
    check_flag("observations", observations)
    check_flag("rewards", rewards)
    check_number("max_deviations", max_deviations, minimum=1e-12)
    if not observations and not rewards:
        raise ValueError("observations or rewards must be True, got False for both: normalization=None leaves both")
    return Normalization(
        init=partial(_nothing, family),
        measure=_measure,
        merge=_merge,
        observe=partial(_observe, max_deviations) if observations else RAW.observe,
        see=partial(_see, max_deviations) if rewards else RAW.see,
        pay=partial(_pay, max_deviations) if rewards else RAW.pay,
    )


RAW = Normalization(
    init=lambda: (),
    measure=lambda observation, reward, to_go, mask: (),
    merge=lambda moments, measured: moments,
    observe=lambda moments, observation: observation,
    see=lambda moments, reward: reward,
    pay=lambda moments, reward: reward,
)
"""Nothing is normalised, and nothing kept."""


def chosen_normalization(value: Normalization | None) -> Normalization:
    """A learner's argument, looked at; `RAW` if it is None.

    >>> chosen_normalization(None).observe((), 3.0)
    3.0
    """
    if value is None:
        return RAW
    fields = ("init", "measure", "merge", "observe", "see", "pay")
    check_fields("normalization", value, fields, "a Normalization, such as rl.running_moments(family)")
    return value


def look(normalization: Normalization, moments: PyTree, inputs: Inputs) -> Inputs:
    """What a policy sees, through the door."""
    observation = normalization.observe(moments, inputs.observation)
    return inputs._replace(observation=observation, reward=normalization.see(moments, inputs.reward))


def looking(normalization: Normalization, policy: Policy) -> Policy:
    """The policy behind the door: its params are (moments, its own)."""

    def behind(
        key: jax.Array, params: tuple[PyTree, PyTree], carry: PyTree, inputs: Inputs, /
    ) -> tuple[jax.Array, PyTree, PyTree]:
        moments, own = params
        return policy(key, own, carry, look(normalization, moments, inputs))

    return behind


def moments_of(x: jax.Array, mask: jax.Array) -> Moments:
    """Of `x` `[T, ...]` where `mask` `[T]` is true.

    Twice over the numbers, and less one of them, so that a mean that is large costs no digits.

    >>> [x.item() for x in moments_of(jnp.array([1e6, 1e6 + 2, 0]), jnp.array([True, True, False]))]
    [2.0, 1000001.0, 1.0]
    """
    x = jnp.asarray(x, float)
    num_steps = jnp.sum(mask, dtype=x.dtype)
    over = lambda x: jnp.sum(jnp.where(_like(mask, x), x, 0), axis=0) / jnp.maximum(num_steps, 1)
    one = x[jnp.argmax(mask)]
    mean = one + over(x - one[None])
    return Moments(num_steps, jnp.where(num_steps > 0, mean, 0), over((x - mean[None]) ** 2))


def merged(moments: Moments) -> Moments:
    """Those of all together, of `moments` of disjoint steps, stacked along the first axis.

        n = Σ n_i,   μ = Σ n_i μ_i / n,   σ² = Σ n_i (σ_i² + (μ_i − μ)²) / n

    >>> both = merged(Moments(jnp.array([1.0, 3.0]), jnp.array([4.0, 0.0]), jnp.array([0.0, 1.0])))
    >>> [x.item() for x in both]
    [4.0, 1.0, 3.75]
    """
    num_steps = jnp.sum(moments.num_steps)
    weight = moments.num_steps / jnp.maximum(num_steps, 1)
    over = lambda x: jnp.sum(_like(weight, x) * x, axis=0)
    most = moments.mean[jnp.argmax(moments.num_steps)]
    mean = most + over(moments.mean - most[None])
    return Moments(num_steps, mean, over(moments.variance + (moments.mean - mean[None]) ** 2))


def _nothing(family: Family) -> Seen:
    observe = lambda key: flatten(family.environment.reset(key, family.train.sample(key, family.train.data))[0])
    shape = jax.eval_shape(observe, jax.random.key(0)).shape
    return Seen(*(Moments(jnp.zeros(()), jnp.zeros(of), jnp.zeros(of)) for of in (shape, (), ())))


def _measure(observation: PyTree, reward: jax.Array, to_go: jax.Array, mask: jax.Array) -> Seen:
    return Seen(*(moments_of(x, mask) for x in (jax.vmap(flatten)(observation), reward, to_go)))


def _merge(moments: Seen, measured: Seen) -> Seen:
    every = jax.tree.map(lambda old, new: jnp.append(old[None], new, axis=0), moments, measured)
    new = Seen(*(merged(of) for of in every))
    is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
    return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old).astype(old.dtype), new, moments)


def _observe(clip: float, moments: Seen, observation: PyTree) -> PyTree:
    mean, deviation = moments.observation.mean, _deviation(moments.observation)
    x = flatten(observation)
    if x.shape != mean.shape:
        raise ValueError(f"normalization must be of the family's observations, {x.size} numbers, got {mean.size}")
    return unflatten(_divided(x - mean, deviation, clip), observation)


def _see(clip: float, moments: Seen, reward: jax.Array) -> jax.Array:
    return _divided(reward, jnp.hypot(moments.reward.mean, jnp.sqrt(moments.reward.variance)), clip)


def _pay(clip: float, moments: Seen, reward: jax.Array) -> jax.Array:
    return _divided(reward, _deviation(moments.to_go), clip)


def _deviation(moments: Moments) -> jax.Array:
    """0 where it is but what the mean is rounded by."""
    deviation, mean = jnp.sqrt(moments.variance), jnp.abs(moments.mean)
    return jnp.where(deviation > jnp.finfo(mean.dtype).eps * mean, deviation, 0)


def _divided(x: jax.Array, scale: jax.Array, clip: float) -> jax.Array:
    return jnp.where(scale > 0, jnp.clip(x / jnp.where(scale > 0, scale, 1), -clip, clip), 0)


def _like(weight: jax.Array, x: jax.Array) -> jax.Array:
    return weight.reshape(-1, *[1] * (x.ndim - 1))
