"""Soft actor-critic: what is learned from a batch of experience, whoever collected it.

    y   = c r + γ (1 − terminated) [min_j Q'_j(s', a', z) − α log π(a' | s', z)],     a' ~ π(· | s', z)
    L_Q = Σ_j (Q_j(s, a, z) − y)²                                                     twin critics, j = 1, 2
    L_π = α log π(ã | s, z) − min_j Q_j(s, ã, z),                                     ã ~ π(· | s, z)
    L_α = −α (log π(ã | s, z) + H)                                                    H the entropy that is wanted
    Q' ← (1 − τ) Q' + τ Q                                                             after each step

Discrete actions are not drawn: each expectation over them is the sum over all, weighted by π, and critics say the
values of all at once (Christodoulou 2019, https://arxiv.org/abs/1910.07207),

    y = c r + γ (1 − terminated) Σ_a' π(a' | s', z) [min_j Q'_j(s', a', z) − α log π(a' | s', z)]

and L_π and L_α likewise.

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
from jaxmeta.rl.distributions import Categorical, TanhGaussian
from jaxmeta.rl.env import Continuous, Discrete, Family, check_family, flatten
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
    """H, in nats, that a learned α is to lead to: of a real action in units of the action space, −A if None; of a
    discrete one, half of the logarithm of how many there are in a state, if None."""
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
      action: `[A]`, in units of the action space: −1 is its low, 1 its high; discrete ones are one-hot
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
      actor: (params, observation, z) -> a distribution over `[B, A]` with `sample_and_log_prob` and `mode`; of discrete
        actions a `Categorical`, logits `[B, A]`
      critic: (params, observation, action, z) -> [B, 2], twin action values; of discrete actions (params, observation,
        z) -> [B, 2, A], those of all
      latent_size: L
    """

    init: InitFn
    actor: Callable[[Params, jax.Array, jax.Array], Any]
    critic: Callable[..., jax.Array]
    latent_size: int = 0


def mlp_actor_critic(
    family: Family,
    *,
    latent_size: int = 0,
    hidden: Sequence[int] = (256, 256),
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> ActorCritic:
    """Multi-layer perceptrons: an actor, and two critics. The actor of real actions is a tanh-Gaussian with its own
    deviation for every observation; that of discrete ones has a logit for each, and its critics a value.

    Args:
      family: whose observations and actions they are.
      latent_size: L ≥ 0, the length of z.
      hidden: widths of the layers of each network.
      activation: of the layers; relu if None.

    Returns:
      An `ActorCritic`, which one of your own may stand for: `init`, (key) -> {"actor": params, "critic": params};
      `actor`, (params, observation [B, D], z [B, L]) -> a distribution over actions [B, A] in [−1, 1], with
      `sample_and_log_prob` and `mode`; `critic`, (params, observation, action, z) -> [B, 2], twin action values; and
      `latent_size`, L. Of discrete actions `actor` gives a `Categorical`, and `critic`, (params, observation, z), the
      values of all, [B, 2, A].

    Raises:
      ValueError: `family` is none, or `latent_size` is negative.

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
    row, is_discrete = experience_shapes(family), isinstance(family.environment.action_space, Discrete)
    num_actions, num_inputs = row.action.shape[0], row.observation.shape[0] + latent_size
    actor_network = MLP(tuple(hidden), num_actions if is_discrete else 2 * num_actions, activation=activation)
    critic_network = MLP(tuple(hidden), num_actions if is_discrete else 1, activation=activation)
    actor_apply: Callable = actor_network.apply
    critic_apply: Callable = critic_network.apply

    def init(key: jax.Array) -> Params:
        keys, inputs = jax.random.split(key, 3), jnp.zeros((1, num_inputs))
        of_critic = inputs if is_discrete else jnp.zeros((1, num_inputs + num_actions))
        critics = (critic_network.init(key, of_critic) for key in keys[1:])
        return {"actor": actor_network.init(keys[0], inputs), "critic": tuple(critics)}

    def actor(params: Params, observation: jax.Array, z: jax.Array) -> TanhGaussian | Categorical:
        output = actor_apply(params, jnp.concatenate([observation, z], axis=1))
        if is_discrete:
            return Categorical(output)
        mean, log_std = jnp.split(output, 2, axis=1)
        return TanhGaussian(mean, jnp.clip(log_std, -5.0, 2.0))

    def critic(params: Params, observation: jax.Array, action: jax.Array, z: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([observation, action, z], axis=1)
        return jnp.concatenate([critic_apply(twin, inputs) for twin in params], axis=1)

    def critic_of_all(params: Params, observation: jax.Array, z: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([observation, z], axis=1)
        return jnp.stack([critic_apply(twin, inputs) for twin in params], axis=1)

    return ActorCritic(init, actor, critic_of_all if is_discrete else critic, latent_size)


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
    allowed: tuple[jax.Array, jax.Array] | None = None,
) -> Losses:
    """The losses above. Each gives a gradient to its own network only, and the critics' to z.

    Args:
      key: for the real actions that the actor draws.
      params: of `init_params`.
      target: Q', the critics' running average, with the structure of `params["critic"]`.
      batch: experience `[B]`.
      z: `[B, L]`, what is known of the task of each.
      actor_critic: the networks.
      options: γ, c, α and H.
      allowed: which discrete actions there are, `[B, A]` booleans, at the observation and at the next; all if None.
    """
    stop, critic = jax.lax.stop_gradient, params["critic"]
    key, next_key = jax.random.split(key)
    now, then = (None, None) if allowed is None else allowed
    temperature = options.temperature
    alpha = jnp.exp(params["log_temperature"]) if temperature is None else jnp.asarray(temperature, float)

    # What the critics are to say: the value of the next state by their running average, and its entropy.
    policy = policy_at(actor_critic, params["actor"], batch.next_observation, z, then)
    next_value, next_log_prob = expected(next_key, actor_critic, policy, target, batch.next_observation, z)
    next_value -= alpha * next_log_prob
    next_value = jnp.where(batch.terminated, 0, next_value)  # where there may be no action at all
    y = stop(options.reward_scale * batch.reward + options.discount * next_value)
    error = value_of_taken(actor_critic, critic, policy, batch, z) - y[:, None]

    # The actor's own action, judged by critics that do not learn from it.
    policy = policy_at(actor_critic, params["actor"], batch.observation, stop(z), now)
    value, log_prob = expected(key, actor_critic, policy, stop(critic), batch.observation, stop(z))
    entropy = wanted_entropy(options, policy, batch.action.shape[1])
    return Losses(
        critic=jnp.mean(jnp.sum(error**2, axis=1)),
        actor=jnp.mean(stop(alpha) * log_prob - value),
        temperature=-alpha * jnp.mean(stop(log_prob) + entropy),
        log_prob=jnp.mean(stop(log_prob)),
    )


def policy_at(
    actor_critic: ActorCritic, params: Params, observation: jax.Array, z: jax.Array, allowed: jax.Array | None
) -> Any:
    """π(· | s, z), of the actions `[B, A]` that are allowed."""
    policy = actor_critic.actor(params, observation, z)
    return policy if allowed is None else policy.only(allowed)


def expected(
    key: jax.Array, actor_critic: ActorCritic, policy: Any, critic: Params, observation: jax.Array, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """min_j Q_j and log π, `[B]`: of a real action that is drawn, or the means over all discrete ones."""
    if isinstance(policy, Categorical):
        value = actor_critic.critic(critic, observation, z).min(axis=1)
        return policy.expectation(value), -policy.entropy()
    action, log_prob = policy.sample_and_log_prob(key)
    return actor_critic.critic(critic, observation, action, z).min(axis=1), log_prob


def value_of_taken(
    actor_critic: ActorCritic, critic: Params, policy: Any, batch: Experience, z: jax.Array
) -> jax.Array:
    """Q_j of the actions in the batch, `[B, 2]`."""
    if isinstance(policy, Categorical):
        values = actor_critic.critic(critic, batch.observation, z)
        return jnp.sum(jnp.where(batch.action[:, None] > 0, values, 0), axis=2)
    return actor_critic.critic(critic, batch.observation, batch.action, z)


def wanted_entropy(options: SoftActorCritic, policy: Any, num_actions: int) -> float | jax.Array:
    """H, or for each discrete choice half of the most that there is."""
    if options.target_entropy is not None:
        return options.target_entropy
    if isinstance(policy, Categorical):
        num_allowed = jnp.sum(jnp.isfinite(policy.logits), axis=-1)
        return jnp.log(jnp.asarray(num_allowed, policy.logits.dtype)) / 2
    return -float(num_actions)


def track(target: Params, params: Params, rate: float) -> Params:
    """(1 − τ) Q' + τ Q, of all parameters of the critics.

    >>> track(jnp.array(1.0), jnp.array(3.0), rate=0.25).item()
    1.5
    """
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, params)


def experience_shapes(family: Family) -> Experience:
    """The shapes of one step in `family`.

    >>> from jaxmeta.rl import families
    >>> experience_shapes(families.pendulum()).observation.shape
    (3,)
    """
    check_family("family", family)
    environment, space = family.environment, family.environment.action_space
    shape = (space.num_actions,) if isinstance(space, Discrete) else np.shape(space.low)

    def row(key: jax.Array) -> Experience:
        observation = flatten(environment.reset(key, family.train.sample(key, family.train.data))[0])
        reward = jnp.zeros((), observation.dtype)
        return Experience(observation, jnp.zeros(shape), reward, observation, jnp.zeros((), bool))

    return jax.eval_shape(row, jax.random.key(0))


def rescale(action: jax.Array, space: Continuous) -> jax.Array:
    """An action in [−1, 1] as one of the action space.

    >>> rescale(jnp.array([-1.0, 0.5]), Continuous(np.array([-2.0, 0.0]), np.array([2.0, 4.0]))).tolist()
    [-2.0, 3.0]
    """
    return jnp.asarray(space.low + (space.high - space.low) / 2 * (action + 1), action.dtype)
