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
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_callable, check_fields, check_integer, check_number, check_widths
from jaxmeta.nn import MLP
from jaxmeta.rl.distributions import TanhGaussian
from jaxmeta.rl.env import Continuous, Environment, Family, check_environment, flatten
from jaxmeta.types import InitFn, Params


class Experience(NamedTuple):
    """One step, or many with leading axes.

    observation:      `[D]`, as one vector
    action:           `[A]` in units of the action space: −1 is its low, 1 its high
    reward:           that which followed
    next_observation: `[D]`, before any reset
    terminated:       whether nothing is worth anything afterwards
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    terminated: jax.Array


class ActorCritic(NamedTuple):
    """Networks, of observations `[B, D]`, actions `[B, A]` in [−1, 1] and a z for each, `[B, L]`.

    init:   (key) -> {"actor": params, "critic": params}
    actor:  (params, observation, z) -> a distribution over `[B, A]` with `sample_and_log_prob` and `mode`
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
    activation: Callable[[jax.Array], jax.Array] = flax.linen.relu,
) -> ActorCritic:
    """Multi-layer perceptrons: a tanh-Gaussian actor with its own deviation for every observation, and two critics.

    Args:
      family: whose observations and actions they are; actions are real ones.
      latent_size: L, the length of z.
      hidden: widths of the layers of each network.
      activation: of the layers.

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


class SoftActorCritic(NamedTuple):
    """Pure functions of a batch.

    init:   (key) -> params, of the networks and, where it is learned, "log_temperature"
    losses: (key, params, target, batch [B], z [B, L]) -> Losses, each of which gives a gradient to its own network
            only, and the critic's to z
    track:  (target, params) -> target, the critics' running average
    """

    init: InitFn
    losses: Callable[[jax.Array, Params, Params, Experience, jax.Array], Losses]
    track: Callable[[Params, Params], Params]


def soft_actor_critic(
    actor_critic: ActorCritic,
    *,
    discount: float = 0.99,
    reward_scale: float = 1.0,
    temperature: float | None = None,
    target_entropy: float | None = None,
    target_rate: float = 0.005,
) -> SoftActorCritic:
    """The losses above.

    Args:
      actor_critic: see `mlp_actor_critic`.
      discount: γ.
      reward_scale: c, of the reward.
      temperature: α; learned, from 1 on, if None.
      target_entropy: H, of an action in units of the action space; −A if None.
      target_rate: τ.

    Raises:
      ValueError: an argument is wrong.

    >>> from jaxmeta.rl import families
    >>> sac = soft_actor_critic(mlp_actor_critic(families.navigation()))
    >>> sorted(sac.init(jax.random.key(0)))
    ['actor', 'critic', 'log_temperature']
    """
    fields = ("init", "actor", "critic")
    check_fields("actor_critic", actor_critic, fields, "an ActorCritic, such as mlp_actor_critic(family)")
    for name, value in (("discount", discount), ("reward_scale", reward_scale), ("target_rate", target_rate)):
        check_number(name, value)
    if temperature is not None:
        check_number("temperature", temperature)
    if target_entropy is not None:
        check_number("target_entropy", target_entropy, minimum=-np.inf)
    stop, actor, critic = jax.lax.stop_gradient, actor_critic.actor, actor_critic.critic

    def init(key: jax.Array) -> Params:
        learned = {} if temperature is not None else {"log_temperature": jnp.zeros(())}
        return {**actor_critic.init(key), **learned}

    def losses(key: jax.Array, params: Params, target: Params, batch: Experience, z: jax.Array) -> Losses:
        key, next_key = jax.random.split(key)
        alpha = jnp.exp(params["log_temperature"]) if temperature is None else jnp.asarray(temperature, float)
        entropy = -float(batch.action.shape[1]) if target_entropy is None else target_entropy

        next_action, next_log_prob = actor(params["actor"], batch.next_observation, z).sample_and_log_prob(next_key)
        next_value = critic(target, batch.next_observation, next_action, z).min(axis=1) - alpha * next_log_prob
        y = stop(reward_scale * batch.reward + discount * (1 - batch.terminated) * next_value)
        error = critic(params["critic"], batch.observation, batch.action, z) - y[:, None]

        action, log_prob = actor(params["actor"], batch.observation, stop(z)).sample_and_log_prob(key)
        value = critic(stop(params["critic"]), batch.observation, action, stop(z)).min(axis=1)
        return Losses(
            critic=jnp.mean(jnp.sum(error**2, axis=1)),
            actor=jnp.mean(stop(alpha) * log_prob - value),
            temperature=-alpha * (jnp.mean(stop(log_prob)) + entropy),
            log_prob=jnp.mean(stop(log_prob)),
        )

    def track(target: Params, params: Params) -> Params:
        return jax.tree.map(lambda old, new: old + target_rate * (new - old), target, params["critic"])

    return SoftActorCritic(init, losses, track)


def experience_shapes(family: Family) -> Experience:
    """The shapes of one step in `family`, which must have bounded real actions.

    >>> from jaxmeta.rl import families
    >>> experience_shapes(families.pendulum()).observation.shape
    (3,)
    """
    check_environment("environment of family", getattr(family, "environment", None))
    environment, space = family.environment, bounded_space(family.environment)

    def row(key: jax.Array) -> Experience:
        observation = flatten(environment.reset(key, family.train.sample(key, family.train.data))[0])
        reward = jnp.zeros((), observation.dtype)
        return Experience(observation, jnp.zeros(np.shape(space.low)), reward, observation, jnp.zeros((), bool))

    return jax.eval_shape(row, jax.random.key(0))


def bounded_space(environment: Environment) -> Continuous:
    """The environment's action space, which has to be a bounded box."""
    space = environment.action_space
    if not isinstance(space, Continuous) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"family must have real actions with finite bounds, got the action space {space!r}")
    return space


def rescale(action: jax.Array, space: Continuous) -> jax.Array:
    """An action in [−1, 1] as one of the action space.

    >>> rescale(jnp.array([-1.0, 0.5]), Continuous(np.array([-2.0, 0.0]), np.array([2.0, 4.0]))).tolist()
    [-2.0, 3.0]
    """
    return jnp.asarray(space.low + (space.high - space.low) / 2 * (action + 1), action.dtype)
