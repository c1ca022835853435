"""Decoders: what the transitions of a trial are like, if the task is the one that a vector m stands for.

    log p(r | o, a, o', m) + log p(o' | o, a, m)            a likelihood, by which a belief over m is learned

Each of T transitions is decoded from each of K samples of m, K · T pairs. What the first layer makes of an m and what
it makes of a transition is computed once of each, and added; and where states have numbers, a network of m alone has an
output for each of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp

from jaxmeta.checks import check_choice, check_fields, check_flag, check_integer, check_number, check_widths
from jaxmeta.nn import MLP
from jaxmeta.rl.env import Continuous, Discrete, Family, check_family, clip_action, flatten, in_box_units
from jaxmeta.rl.rollout import Transition
from jaxmeta.types import InitFn, Params


class Step(NamedTuple):
    """A transition as a decoder sees it, or many with leading axes.

    Attributes:
      observation: `[O]`, as one vector
      action: `[A]`, one-hot, or in units of the action space: −1 is its low, 1 its high
      reward: `()`
      next_observation: `[O]`, before any reset
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array


class Decoder(NamedTuple):
    """What is said of T transitions, if the task is one of K vectors m.

    Attributes:
      init: (key) -> params
      log_prob: (params, m [K, L], steps [T]) -> [K, T], the log-likelihood of each `Step` under each m
      reward: (params, m [K, L], steps [T]) -> [K, T], the reward that is expected, whatever `steps.reward` is; or its
        probability to be positive
      latent_size: L
    """

    init: InitFn
    log_prob: Callable[[Params, jax.Array, Step], jax.Array]
    reward: Callable[[Params, jax.Array, Step], jax.Array]
    latent_size: int


def mlp_decoder(
    family: Family,
    *,
    latent_size: int = 5,
    hidden: Sequence[int] = (32, 32),
    reward: Literal["gaussian", "bernoulli"] = "gaussian",
    reward_of: Literal["transition", "next_state"] = "transition",
    with_next_observation: bool = False,
    std: float = 1.0,
) -> Decoder:
    """Multi-layer perceptrons of m and a transition, with relu: one for the reward, one for the next observation.

        r ~ N(f(o, a, o', m), σ²),  or  r > 0 with probability sigmoid(f);   o' ~ N(o + g(o, a, m), σ²)

    Args:
      family: whose transitions they are.
      latent_size: L ≥ 1, numbers of m.
      hidden: widths of the layers of each network.
      reward: "gaussian", or "bernoulli" for one that has two values, of which one is positive.
      reward_of: what the reward is a function of: "transition", (o, a, o'); or "next_state" for observations that are
        one-hot states, o' alone, of which f(m) has an output for each, as in the authors' gridworld: f(m) · o'.
      with_next_observation: whether that is decoded too: needed where tasks differ in their dynamics.
      std: σ > 0, in units of the reward and of the observation: with a small one beliefs tell more, for their KL counts
        less.

    Returns:
      A `Decoder`, which one of your own may stand for: `init`, (key) -> params; `log_prob`, (params, m [K, L], steps
      [T]) -> [K, T], the log-likelihood of each step (its fields are observation [T, O], action [T, A], reward [T] and
      next_observation [T, O]) under each m; `reward`, of the same arguments, what is expected; and `latent_size`, L.

    Raises:
      ValueError: `family` is none, a number is wrong, or `reward` or `reward_of` is no name.

    >>> from jaxmeta.rl import families
    >>> decoder = mlp_decoder(families.gridworld(), reward="bernoulli", reward_of="next_state")
    >>> cells = Step(jnp.eye(25), jnp.zeros((25, 5)), jnp.zeros(25), jnp.eye(25))  # to be there, whence and however
    >>> decoder.reward(decoder.init(jax.random.key(0)), jnp.zeros((1, 5)), cells).tolist()[0][:3]
    [0.5, 0.5, 0.5]
    """
    check_family("family", family)
    check_integer("latent_size", latent_size, minimum=1)
    check_widths("hidden", hidden)
    check_choice("reward", reward, ("gaussian", "bernoulli"))
    check_choice("reward_of", reward_of, ("transition", "next_state"))
    check_flag("with_next_observation", with_next_observation)
    check_number("std", std, minimum=1e-12)
    num_observed, num_actions = step_sizes(family)
    of_states = reward_of == "next_state"
    of_reward = MLP(tuple(hidden), num_observed if of_states else 1)
    of_next = MLP(tuple(hidden), num_observed)

    def init(key: jax.Array) -> Params:
        reward_key, next_key = jax.random.split(key)
        num_inputs = latent_size + num_observed + num_actions
        seen = latent_size if of_states else num_inputs + num_observed
        params = {"reward": of_reward.init(reward_key, jnp.zeros((1, seen)))}
        return params | ({"next": of_next.init(next_key, jnp.zeros((1, num_inputs)))} if with_next_observation else {})

    def outputs(params: Params, m: jax.Array, steps: Step) -> jax.Array:
        if of_states:
            return at_pairs(params["reward"], m, jnp.zeros((1, 0)))[:, 0] @ steps.next_observation.T
        seen = jnp.concatenate([steps.observation, steps.action, steps.next_observation], axis=1)
        return at_pairs(params["reward"], m, seen)[..., 0]

    def log_prob(params: Params, m: jax.Array, steps: Step) -> jax.Array:
        output = outputs(params, m, steps)
        if reward == "bernoulli":
            found = jax.nn.log_sigmoid(jnp.where(steps.reward[None] > 0, output, -output))
        else:
            found = _log_normal(steps.reward[None] - output, std)
        if with_next_observation:
            change = at_pairs(params["next"], m, jnp.concatenate([steps.observation, steps.action], axis=1))
            error = (steps.next_observation - steps.observation)[None] - change
            found += jnp.sum(_log_normal(error, std), axis=-1)
        return found

    def expected(params: Params, m: jax.Array, steps: Step) -> jax.Array:
        output = outputs(params, m, steps)
        return jax.nn.sigmoid(output) if reward == "bernoulli" else output

    return Decoder(init, log_prob, expected, latent_size)


def at_pairs(params: Params, m: jax.Array, x: jax.Array) -> jax.Array:
    """An `nn.MLP` of [m, x] for each m `[K, L]` and x `[T, D]`, `[K, T, outputs]`.

    >>> network = MLP((8,), 2)
    >>> m, x = jnp.arange(6.0).reshape(2, 3), jnp.arange(4.0).reshape(4, 1)
    >>> params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> found = network.apply(params, jnp.append(m[1], x[2])[None])[0]
    >>> bool(jnp.allclose(at_pairs(params, m, x)[1, 2], found, rtol=1e-5))
    True
    """
    layers = dict(params["params"])
    head = layers.pop("head")
    first, *others = [layers[f"hidden{i}"] for i in range(len(layers))] + [head]
    of_m, of_x = first["kernel"][: m.shape[1]], first["kernel"][m.shape[1] :]
    h = (m @ of_m)[:, None] + (x @ of_x + first["bias"][None])[None]
    for layer in others:
        h = flax.linen.relu(h) @ layer["kernel"] + layer["bias"][None, None]
    return h


def _log_normal(error: jax.Array, std: float) -> jax.Array:
    return -((error / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2


def step_sizes(family: Family) -> tuple[int, int]:
    """O and A of a `Step`.

    >>> from jaxmeta.rl import families
    >>> step_sizes(families.gridworld())
    (25, 5)
    """
    environment = family.environment
    observe = lambda key: flatten(environment.reset(key, family.train.sample(key, family.train.data))[0])
    space = environment.action_space
    num_actions = space.num_actions if isinstance(space, Discrete) else len(space.low)
    return jax.eval_shape(observe, jax.random.key(0)).shape[0], num_actions


def steps_of(transitions: Transition, action_space: Discrete | Continuous) -> Step:
    """The transitions of a trial `[T]`, as a decoder sees them.

    >>> from jaxmeta.rl import families, oracles, rollout, trial
    >>> family = families.navigation()
    >>> task = family.train.sample(jax.random.key(0), family.train.data)
    >>> agent = oracles.random_policy(family.environment.action_space)
    >>> _, played = rollout(jax.random.key(1), trial(family.environment, num_steps=7), *agent, task)
    >>> steps_of(played, family.environment.action_space).action.shape
    (7, 2)
    """
    if isinstance(action_space, Discrete):
        action = jax.nn.one_hot(transitions.action, action_space.num_actions)
    else:
        action = jax.vmap(lambda action: in_box_units(action_space, clip_action(action_space, action)))(
            transitions.action
        )
    observation, following = (
        jax.vmap(flatten)(x) for x in (transitions.inputs.observation, transitions.next_observation)
    )
    return Step(observation, action, transitions.reward, following)


def check_decoder(name: str, value: Any) -> None:
    """A `Decoder`, as far as its fields tell."""
    check_fields(name, value, ("init", "log_prob", "reward"), "a Decoder, such as mlp_decoder(family)")
    check_integer(f"latent_size of {name}", value.latent_size, minimum=1)
