"""Soft actor-critic: what is learned from a batch of experience, whoever collected it.

    y   = c r + γ (1 − terminated) [min_j Q'_j(s', a', z) − α log π(a' | s', z)],     a' ~ π(· | s', z)
    L_Q = Σ_j (Q_j(s, a, z) − y)²                                                     twin critics, j = 1, 2
    L_π = α log π(ã | s, z) − min_j Q_j(s, ã, z),                                     ã ~ π(· | s, z)
    L_α = −α (log π(ã | s, z) + H)                                                    H the entropy that is wanted
    Q' ← (1 − τ) Q' + τ Q                                                             after each step

z is what is known of the task beside the observation; without it (`[0]` numbers) this is plain soft actor-critic. L_Q
is differentiated with respect to z, so that whoever made z learns from it; L_π is not.

It is the version with two critics and a learned temperature: Haarnoja et al., "Soft Actor-Critic Algorithms and
Applications" (2018), https://arxiv.org/abs/1812.05905. PEARL's own code has an older one, with a network for V and a
temperature of 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_callable, check_integer, check_number, check_share, check_widths
from jaxmeta.nn import MLP
from jaxmeta.rl.distributions import TanhGaussian
from jaxmeta.rl.env import Continuous, Family, check_family, flatten
from jaxmeta.types import InitFn, Params


@dataclass(frozen=True, kw_only=True)
class SoftActorCritic:
    """The options of soft actor-critic.

    Raises:
      ValueError: a number is wrong.

    >>> SoftActorCritic(discount=0.9, reward_scale=10.0).temperature is None  # it is learned
    True
    """

    discount: float = 0.99
    """γ, for each step of the environment, in [0, 1]."""
    reward_scale: float = 1.0
    """c ≥ 0, a factor on the reward that critics learn from."""
    temperature: float | None = None
    """α ≥ 0, how much reward a nat of entropy is worth; learned, from 1 on, if None."""
    target_entropy: float | None = None
    """H, in nats, of an action in units of the action space, that a learned α is to lead to; −A if None."""
    target_rate: float = 0.005
    """τ, in [0, 1], how far the critics' running average follows them in a gradient step."""

    def __post_init__(self) -> None:
        for name in ("discount", "target_rate"):
            check_share(name, getattr(self, name))
        check_number("reward_scale", self.reward_scale)
        if self.temperature is not None:
            check_number("temperature", self.temperature)
        if self.target_entropy is not None:
            check_number("target_entropy", self.target_entropy, minimum=-np.inf)


class Experience(NamedTuple):
    """One step, or many with leading axes.

    Attributes:
      observation: `[D]`, as one vector
      action: `[A]` in units of the action space: −1 is its low, 1 its high
      reward: that which followed
      next_observation: `[D]`, before any reset
      terminated: whether nothing is worth anything afterwards
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    terminated: jax.Array


class ActorCritic(NamedTuple):
    """Networks, of observations `[B, D]`, actions `[B, A]` in [−1, 1] and a z for each, `[B, L]`.

    Attributes:
      init: (key) -> {"actor": params, "critic": params}
      actor: (params, observation, z) -> a distribution over `[B, A]` with `sample_and_log_prob` and `mode`
      critic: (params, observation, action, z) -> [B, 2], twin action values
      latent_size: L
    """

    init: InitFn
    actor: Callable[[Params, jax.Array, jax.Array], Any]
    critic: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    latent_size: int = 0


def mlp_actor_critic(
    family: Family,
    *,
    latent_size: int = 0,
    hidden: Sequence[int] = (256, 256),
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> ActorCritic:
    """Multi-layer perceptrons: a tanh-Gaussian actor with its own deviation for every observation, and two critics.

    Args:
      family: whose observations and actions they are; actions are real ones.
      latent_size: L ≥ 0, the length of z.
      hidden: widths of the layers of each network.
      activation: of the layers; relu if None.

    Returns:
      An `ActorCritic`, which one of your own may stand for: `init`, (key) -> {"actor": params, "critic": params};
      `actor`, (params, observation [B, D], z [B, L]) -> a distribution over actions [B, A] in [−1, 1], with
      `sample_and_log_prob` and `mode`; `critic`, (params, observation, action, z) -> [B, 2], twin action values; and
      `latent_size`, L.

    Raises:
      ValueError: `family` is none or has no bounded real actions, or `latent_size` is negative.

    >>> from jaxmeta.rl import families
    >>> networks = mlp_actor_critic(families.navigation(), hidden=(8,))
    >>> params = networks.init(jax.random.key(0))
    >>> networks.critic(params["critic"], jnp.zeros((5, 2)), jnp.zeros((5, 2)), jnp.zeros((5, 0))).shape
    (5, 2)
    """
    check_integer("latent_size", latent_size, minimum=0)
    check_widths("hidden", hidden)
    activation = flax.linen.relu if activation is None else activation
    check_callable("activation", activation, "(array) -> array")
    row = experience_shapes(family)
    num_actions = row.action.shape[0]
    actor_network = MLP(tuple(hidden), 2 * num_actions, activation=activation)
    critic_network = MLP(tuple(hidden), 1, activation=activation)
    num_inputs = row.observation.shape[0] + latent_size
    actor_apply: Callable = actor_network.apply
    critic_apply: Callable = critic_network.apply

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 3)
        critics = (critic_network.init(key, jnp.zeros((1, num_inputs + num_actions))) for key in keys[1:])
        return {"actor": actor_network.init(keys[0], jnp.zeros((1, num_inputs))), "critic": tuple(critics)}

    def actor(params: Params, observation: jax.Array, z: jax.Array) -> TanhGaussian:
        output = actor_apply(params, jnp.concatenate([observation, z], axis=1))
        mean, log_std = jnp.split(output, 2, axis=1)
        return TanhGaussian(mean, jnp.clip(log_std, -5.0, 2.0))

    def critic(params: Params, observation: jax.Array, action: jax.Array, z: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([observation, action, z], axis=1)
        return jnp.concatenate([critic_apply(twin, inputs) for twin in params], axis=1)

    return ActorCritic(init, actor, critic, latent_size)


class Losses(NamedTuple):
    """Means over a batch; `log_prob` is that of the actor's own actions."""

    critic: jax.Array
    actor: jax.Array
    temperature: jax.Array
    log_prob: jax.Array


def init_params(key: jax.Array, actor_critic: ActorCritic, options: SoftActorCritic) -> Params:
    """The parameters of the networks and, where it is learned, "log_temperature".

    >>> from jaxmeta.rl import families
    >>> params = init_params(jax.random.key(0), mlp_actor_critic(families.navigation()), SoftActorCritic())
    >>> sorted(params)
    ['actor', 'critic', 'log_temperature']
    """
    learned = {} if options.temperature is not None else {"log_temperature": jnp.zeros(())}
    return {**actor_critic.init(key), **learned}


def sac_losses(
    key: jax.Array,
    params: Params,
    target: Params,
    batch: Experience,
    z: jax.Array,
    *,
    actor_critic: ActorCritic,
    options: SoftActorCritic,
) -> Losses:
    """The losses above. Each gives a gradient to its own network only, and the critics' to z.

    Args:
      key: for the actions that the actor draws.
      params: of `init_params`.
      target: Q', the critics' running average, with the structure of `params["critic"]`.
      batch: experience `[B]`.
      z: `[B, L]`, what is known of the task of each.
      actor_critic: the networks.
      options: γ, c, α and H.
    """
    stop, actor, critic = jax.lax.stop_gradient, actor_critic.actor, actor_critic.critic
    key, next_key = jax.random.split(key)
    temperature, entropy = options.temperature, options.target_entropy
    alpha = jnp.exp(params["log_temperature"]) if temperature is None else jnp.asarray(temperature, float)
    entropy = -float(batch.action.shape[1]) if entropy is None else entropy

    # What the critics are to say: the value of the next state by their running average, and its entropy.
    next_action, next_log_prob = actor(params["actor"], batch.next_observation, z).sample_and_log_prob(next_key)
    next_value = critic(target, batch.next_observation, next_action, z).min(axis=1) - alpha * next_log_prob
    y = stop(options.reward_scale * batch.reward + options.discount * (1 - batch.terminated) * next_value)
    error = critic(params["critic"], batch.observation, batch.action, z) - y[:, None]

    # The actor's own action, judged by critics that do not learn from it.
    action, log_prob = actor(params["actor"], batch.observation, stop(z)).sample_and_log_prob(key)
    value = critic(stop(params["critic"]), batch.observation, action, stop(z)).min(axis=1)
    return Losses(
        critic=jnp.mean(jnp.sum(error**2, axis=1)),
        actor=jnp.mean(stop(alpha) * log_prob - value),
        temperature=-alpha * (jnp.mean(stop(log_prob)) + entropy),
        log_prob=jnp.mean(stop(log_prob)),
    )


def track(target: Params, params: Params, rate: float) -> Params:
    """(1 − τ) Q' + τ Q, of all parameters of the critics.

    >>> track(jnp.array(1.0), jnp.array(3.0), rate=0.25).item()
    1.5
    """
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, params)


def experience_shapes(family: Family) -> Experience:
    """The shapes of one step in `family`, which must have real actions.

    >>> from jaxmeta.rl import families
    >>> experience_shapes(families.pendulum()).observation.shape
    (3,)
    """
    check_family("family", family)
    environment, space = family.environment, family.environment.action_space
    if not isinstance(space, Continuous):
        raise ValueError(f"family must have real actions, for the actor is a density over a box of them; got {space!r}")

    def row(key: jax.Array) -> Experience:
        observation = flatten(environment.reset(key, family.train.sample(key, family.train.data))[0])
        reward = jnp.zeros((), observation.dtype)
        return Experience(observation, jnp.zeros(np.shape(space.low)), reward, observation, jnp.zeros((), bool))

    return jax.eval_shape(row, jax.random.key(0))


def rescale(action: jax.Array, space: Continuous) -> jax.Array:
    """An action in [−1, 1] as one of the action space.

    >>> rescale(jnp.array([-1.0, 0.5]), Continuous(np.array([-2.0, 0.0]), np.array([2.0, 4.0]))).tolist()
    [-2.0, 3.0]
    """
    return jnp.asarray(space.low + (space.high - space.low) / 2 * (action + 1), action.dtype)
