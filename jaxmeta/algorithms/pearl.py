"""PEARL: adaptation by inference. A belief about the task, from what was seen of it, and an actor told a sample of it.

    q(z | c) ∝ Π_n N(z; μ(c_n), σ²(c_n))                       the encoder: a Gaussian factor for each transition c_n
    z ~ q(z | c),  a ~ π(a | s, z)                             acting: one z for an episode; from N(0, 1) at first
    min  mean_i L_SAC(batch_i, z_i) + λ Σ_i KL(q(z | c_i) ‖ N(0, 1))                               learning, over tasks

Each training task has two memories: all that was seen of it, of which soft actor-critic learns (`sac.py`), and what
was seen when it was last visited, of which beliefs are made, for they have to come from what the present policy does.
Of the encoder learns what the critics' loss and KL say, not what the actor's does.

Where the paper and its authors' code differ, this follows the code: the product has no factor of the prior (with no
context the belief is the prior); KL is summed over the tasks of a step while the critics' loss is a mean; a visit
clears the context, plays with z from the prior, then with z from the belief.

| variant                    | how                                                                                   |
|----------------------------|---------------------------------------------------------------------------------------|
| PEARL                      | `pearl(family, actor_critic, encoder, num_train_tasks=M)`                             |
| a belief without deviation | `context="deterministic"`: z is the mean of what the encoder says, without KL         |
| no context                 | `sac(family, actor_critic, num_train_tasks=M)`: one policy for all tasks              |
| soft actor-critic, alone   | the same with `num_train_tasks=1`                                                     |
| sparse rewards             | `critic_reward_fn`: the critics learn from another reward than the encoder sees       |
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.sac import (
    ActorCritic,
    Experience,
    bounded_space,
    experience_shapes,
    rescale,
    soft_actor_critic,
)
from jaxmeta.checks import (
    check_callable,
    check_choice,
    check_fields,
    check_integer,
    check_number,
    check_params,
    check_widths,
)
from jaxmeta.nn import MLP
from jaxmeta.outer import outer_step
from jaxmeta.outer.cost import default_memory_budget
from jaxmeta.rl.distributions import Gaussian
from jaxmeta.rl.env import Environment, Family, flatten
from jaxmeta.rl.replay import IndexedTask, MemoryPlan, Replay, add_rows, empty_replay, memory_plan, sample_rows
from jaxmeta.rl.rollout import Agent, Transition, rollout
from jaxmeta.rl.trials import trial
from jaxmeta.types import InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree

_log = logging.getLogger("jaxmeta")


class Encoder(NamedTuple):
    """What each transition says about the task.

    init:  (key) -> params
    apply: (params, experience [n]) -> (mean [n, L], variance [n, L]) of Gaussian factors
    latent_size: L
    """

    init: InitFn
    apply: Callable[[Params, Experience], tuple[jax.Array, jax.Array]]
    latent_size: int


def mlp_encoder(
    family: Family,
    *,
    latent_size: int = 5,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] = flax.linen.relu,
    with_next_observation: bool = False,
) -> Encoder:
    """A multi-layer perceptron of (observation, action, reward), with softplus for the variance.

    Args:
      family: whose transitions they are.
      latent_size: L.
      hidden: widths of the layers.
      activation: of the layers.
      with_next_observation: whether it sees that too: needed where tasks differ in their dynamics.

    Raises:
      ValueError: `family` is none or has no bounded real actions, or `latent_size` is no positive integer.

    >>> from jaxmeta.rl import families
    >>> encoder = mlp_encoder(families.navigation(), latent_size=3)
    """
    check_integer("latent_size", latent_size, minimum=1)
    check_widths("hidden", hidden)
    check_callable("activation", activation, "(array) -> array")
    network = MLP(tuple(hidden), 2 * latent_size, activation=activation)
    network_apply: Callable = network.apply
    zeros = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), experience_shapes(family))

    def features(rows: Experience) -> jax.Array:
        seen = [rows.next_observation] if with_next_observation else []
        return jnp.concatenate([rows.observation, rows.action, rows.reward[:, None], *seen], axis=1)

    def apply(params: Params, rows: Experience) -> tuple[jax.Array, jax.Array]:
        mean, variance = jnp.split(network_apply(params, features(rows)), 2, axis=1)
        return mean, jax.nn.softplus(variance)

    return Encoder(lambda key: network.init(key, features(zeros)), apply, latent_size)


def product_of_gaussians(mean: jax.Array, variance: jax.Array, mask: jax.Array) -> Gaussian:
    """The normalised product of factors N(mean_n, variance_n), `[n, L]`, of those where `mask` `[n]` is true.

        1/σ² = Σ_n 1/σ_n²,   μ = σ² Σ_n μ_n/σ_n²;   N(0, 1) if there is none

    >>> belief = product_of_gaussians(jnp.array([[0.0], [3.0]]), jnp.array([[1.0], [0.5]]), jnp.array([True, True]))
    >>> [round(float(x[0]), 4) for x in (belief.mean, jnp.exp(2 * belief.log_std))]
    [2.0, 0.3333]
    """
    precision = 1 / jnp.maximum(variance, 1e-7)
    total, weighted = (jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) for x in (precision, precision * mean))
    total = jnp.where(jnp.any(mask), total, 1)
    return Gaussian(weighted / total, -jnp.log(total) / 2)


def mean_of_points(mean: jax.Array, variance: jax.Array, mask: jax.Array) -> Gaussian:
    """The deterministic context: the mean of `mean` `[n, L]` where `mask` `[n]` is true, 0 if there is none."""
    point = jnp.sum(jnp.where(mask[:, None], mean, 0), axis=0) / jnp.maximum(jnp.sum(mask), 1)
    return Gaussian(point, jnp.full_like(point, -jnp.inf))


class Memory(NamedTuple):
    """What is kept beside the parameters, for M tasks.

    opt_state: of the optimizer
    target:    the critics' running average
    replay:    all that was seen of each task, with the reward that critics learn from
    context:   `[M, n]`, what was seen of each when it was last visited
    """

    opt_state: PyTree
    target: Params
    replay: Replay
    context: Experience


class AdaptedBelief(NamedTuple):
    """Parameters, what is believed of a task, and the episodes `[K, H]` from which; see `pearl_agent`."""

    params: Params
    belief: Gaussian
    transitions: Transition


def pearl(
    family: Family,
    actor_critic: ActorCritic,
    encoder: Encoder | None,
    *,
    num_train_tasks: int,
    context: Literal["probabilistic", "deterministic"] = "probabilistic",
    kl_weight: float = 0.1,
    num_prior_steps: int | None = None,
    num_posterior_steps: int | None = None,
    num_extra_steps: int = 0,
    num_gradient_steps: int = 100,
    num_batch_tasks: int = 16,
    batch_size: int = 64,
    num_context: int | None = None,
    capacity: int = 10_000,
    memory_budget: int | None = None,
    optimizer: optax.GradientTransformation = optax.adam(3e-4),
    discount: float = 0.99,
    reward_scale: float = 1.0,
    temperature: float | None = None,
    target_entropy: float | None = None,
    target_rate: float = 0.005,
    critic_reward_fn: Callable[[PyTree, Experience], jax.Array] | None = None,
    num_episodes: int = 3,
    num_exploration_episodes: int = 1,
    is_greedy: bool | None = None,
) -> MetaLearner:
    """Probabilistic embeddings for actor-critic meta-reinforcement-learning.

    An `update` visits the tasks that it is given (its "return" is that of the episodes with z from the belief,
    "return_before" with z from the prior), then takes gradient steps on tasks that were ever visited. `evaluate` plays
    K + 1 episodes of a new task, and after each of the first K the belief is inferred anew from all that was seen:
    {"return": [K + 1]}, the first under the prior.

    Rakelly, Zhou, Quillen, Finn, Levine, "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context
    Variables" (2019), algorithms 1 and 2, https://arxiv.org/abs/1903.08254

    Args:
      family: whose environment it is. Training tasks are `rl.indexed_tasks(...)`, test tasks the environment's params.
      actor_critic: see `mlp_actor_critic`, with the encoder's `latent_size`.
      encoder: see `mlp_encoder`; None for no context.
      num_train_tasks: M, the number of training tasks, each with its buffers.
      context: "probabilistic", or "deterministic" for a belief without deviation.
      kl_weight: λ, of the sum over tasks.
      num_prior_steps: environment steps of a visit with z from the prior; an episode's if None.
      num_posterior_steps: then with z from the belief that they lead to; an episode's if None.
      num_extra_steps: then more, of which no belief is made.
      num_gradient_steps: of an update.
      num_batch_tasks: tasks of a gradient step, drawn with replacement.
      batch_size: transitions of each for the critics and the actor.
      num_context: transitions of each for the encoder, drawn from the last visit; all of them if None.
      capacity: C, transitions in a task's buffer.
      memory_budget: bytes that the buffers may take; if None, half of the device's memory.
      optimizer: of all networks.
      discount, reward_scale, temperature, target_entropy, target_rate: see `soft_actor_critic`.
      critic_reward_fn: (params of the task, experience) -> the reward that critics learn from, in training; where tasks
        pay sparsely the authors' code learns from the dense reward, and sees the sparse one.
      num_episodes: K, episodes of context of `adapt` and `evaluate`.
      num_exploration_episodes: how many of them have z from the prior.
      is_greedy: whether `adapt` and `evaluate` act by the actor's mode; if None, where there is no context. Beliefs
        are learned from what actions that were sampled lead to, and the straighter ways of the mode mislead them.

    Returns:
      A `MetaLearner`. `adapt` gives an `AdaptedBelief`; `pearl_agent` acts by it.

    Raises:
      ValueError: an argument is wrong; buffers do not fit the memory; while tracing, training tasks are not indexed.

    >>> import jaxmeta
    >>> from jaxmeta.algorithms import mlp_actor_critic
    >>> from jaxmeta.rl import families, indexed_tasks
    >>> family = families.point_robot(is_sparse=False)
    >>> networks = mlp_actor_critic(family, latent_size=2, hidden=(8,)), mlp_encoder(family, latent_size=2, hidden=(8,))
    >>> learner = pearl(family, *networks, num_train_tasks=80, num_gradient_steps=2, batch_size=4, capacity=100)
    >>> tasks = indexed_tasks(family.train.data)
    >>> state, _ = jaxmeta.fit(jax.random.key(0), learner, tasks, num_outer_steps=2, num_tasks=3, progress=False)
    >>> report = jaxmeta.evaluate(jax.random.key(1), learner, family.test, state.meta_params, num_tasks=5)
    >>> report.samples["return"].shape
    (5, 4)
    """
    row = experience_shapes(family)
    environment, max_steps = family.environment, family.environment.max_steps
    num_prior_steps = max_steps if num_prior_steps is None else num_prior_steps
    num_posterior_steps = max_steps if num_posterior_steps is None else num_posterior_steps
    counts = {
        "num_prior_steps": num_prior_steps,
        "num_posterior_steps": num_posterior_steps,
        "batch_size": batch_size,
        "num_gradient_steps": num_gradient_steps,
        "num_batch_tasks": num_batch_tasks,
        "num_episodes": num_episodes,
        "num_exploration_episodes": num_exploration_episodes,
    }
    for name, count in counts.items():
        check_integer(name, count, minimum=1)
    check_integer("num_extra_steps", num_extra_steps, minimum=0)
    check_number("kl_weight", kl_weight)
    if not isinstance(is_greedy, bool | None):
        raise ValueError(f"is_greedy must be True, False or None, got {is_greedy!r}")
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(3e-4)")
    num_visited = num_prior_steps + num_posterior_steps
    num_context = num_visited if num_context is None else num_context
    _check_at_most("num_context", num_context, num_visited, "transitions of a visit")
    plan = _plan(row, num_train_tasks, capacity, num_visited + num_extra_steps, memory_budget)
    sac = soft_actor_critic(
        actor_critic,
        discount=discount,
        reward_scale=reward_scale,
        temperature=temperature,
        target_entropy=target_entropy,
        target_rate=target_rate,
    )
    prior, infer = _inference(encoder, context, actor_critic.latent_size)
    collect = _collector(
        actor_critic,
        prior,
        infer,
        environment,
        critic_reward_fn,
        num_steps=(num_prior_steps, num_posterior_steps, num_extra_steps),
    )
    act = _policy(actor_critic, environment, is_greedy=encoder is None if is_greedy is None else is_greedy)
    live = _tester(act, prior, infer, environment, row, num_exploration_episodes)
    has_kl = encoder is not None and context == "probabilistic"

    def init(key: jax.Array) -> MetaState:
        _say(str(plan))
        sac_key, encoder_key = jax.random.split(key)
        params = sac.init(sac_key) | ({} if encoder is None else {"encoder": encoder.init(encoder_key)})
        meta_params = MetaParams(check_params(params))
        visit = jax.tree.map(lambda leaf: jnp.zeros((num_train_tasks, num_visited, *leaf.shape), leaf.dtype), row)
        target = jax.tree.map(jnp.copy, meta_params.params["critic"])
        replay = empty_replay(row, num_train_tasks, capacity)
        return MetaState(
            jnp.int32(0), meta_params, Memory(optimizer.init(meta_params), target, replay, visit), jnp.int32(0)
        )

    def remember(memory: Memory, visited: tuple[jax.Array, Experience, Experience]) -> tuple[Memory, None]:
        """One task after the other, for the same may have been visited twice."""
        index, visit, rows = visited
        last = jax.tree.map(lambda old, new: old.at[index].set(new), memory.context, visit)
        return memory._replace(replay=add_rows(memory.replay, index, rows), context=last), None

    def draw(key: jax.Array, memory: Memory) -> tuple[Experience, Experience]:
        """Of a few of the tasks that were ever visited: context `[N, n]`, and what critics learn from, `[N, B]`."""
        task_key, context_key, batch_key = jax.random.split(key, 3)
        is_known = jnp.where(memory.replay.num_added > 0, 0.0, -jnp.inf)
        index = jax.random.categorical(task_key, is_known, shape=(num_batch_tasks,))
        keys = lambda key: jax.random.split(key, num_batch_tasks)
        batch = jax.vmap(sample_rows, (0, None, 0, None))(keys(batch_key), memory.replay, index, batch_size)
        which = jax.vmap(lambda key: jax.random.permutation(key, num_visited)[:num_context])(keys(context_key))
        return jax.tree.map(lambda rows: rows[index[:, None], which], memory.context), batch

    def loss_fn(meta_params: MetaParams, key: jax.Array, target: Params, context: Experience, batch: Experience):
        params = meta_params.params
        z_key, sac_key = jax.random.split(key)
        belief = jax.vmap(infer, (None, 0, None))(params, context, jnp.ones(num_context, bool))
        z = belief.sample(z_key)
        each = jnp.repeat(z, batch_size, axis=0)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        losses = sac.losses(sac_key, params, target, rows, each)
        kl = jnp.sum(jax.vmap(Gaussian.kl, (0, None))(belief, prior)) if has_kl else jnp.zeros(())
        metrics = {"critic_loss": losses.critic, "entropy": -losses.log_prob, "kl": kl / num_batch_tasks}
        return losses.critic + losses.actor + losses.temperature + kl_weight * kl, metrics

    def update(key: jax.Array, state: MetaState, tasks: IndexedTask) -> tuple[MetaState, Metrics]:
        _check_indexed(tasks, num_train_tasks)
        collect_key, learn_key = jax.random.split(key)
        keys = jax.random.split(collect_key, len(tasks.which))
        visits, rows, metrics = jax.vmap(collect, (0, None, 0))(keys, state.meta_params.params, tasks.params)
        memory, _ = jax.lax.scan(remember, state.opt_state, (jnp.argmax(tasks.which, axis=1), visits, rows))

        def step(carry: tuple[MetaState, Params], key: jax.Array) -> tuple[tuple[MetaState, Params], Metrics]:
            learned, target = carry
            draw_key, loss_key = jax.random.split(key)
            gradient = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, terms), grads = gradient(learned.meta_params, loss_key, target, *draw(draw_key, memory))
            learned, terms = outer_step(optimizer, learned, loss, terms, grads)
            return (learned, sac.track(target, learned.meta_params.params)), terms

        start = (state._replace(opt_state=memory.opt_state), memory.target)
        (learned, target), curves = jax.lax.scan(step, start, jax.random.split(learn_key, num_gradient_steps))
        is_finite = jnp.all(curves.pop("is_finite"))
        metrics = jax.tree.map(jnp.mean, metrics | curves) | {"is_finite": is_finite}
        memory = memory._replace(opt_state=learned.opt_state, target=target)
        return MetaState(state.step + 1, learned.meta_params, memory, state.num_skipped + ~is_finite), metrics

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: PyTree) -> AdaptedBelief:
        return AdaptedBelief(meta_params.params, *live(key, meta_params.params, task, num_episodes))

    def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
        _, transitions = live(key, meta_params.params, task, num_episodes + 1)
        return {"return": jnp.sum(transitions.reward, axis=1)}

    return MetaLearner(init, update, adapt_to, evaluate)


def sac(family: Family, actor_critic: ActorCritic, **kwargs) -> MetaLearner:
    """Soft actor-critic: `pearl` without context, one policy for all tasks. With one task, plain SAC.

    Args, returns and errors as for `pearl`.

    >>> from jaxmeta.algorithms import mlp_actor_critic
    >>> from jaxmeta.rl import families
    >>> family = families.pendulum()
    >>> learner = sac(family, mlp_actor_critic(family), num_train_tasks=1, num_batch_tasks=1)
    """
    return pearl(family, actor_critic, None, **kwargs)


def pearl_agent(family: Family, actor_critic: ActorCritic, adapted: AdaptedBelief) -> Agent:
    """What `adapt` found, as an agent for `rl.rollout`: z from the belief at the start of each episode.

    >>> import jaxmeta
    >>> from jaxmeta.algorithms import mlp_actor_critic
    >>> from jaxmeta.rl import families, trial
    >>> family = families.navigation()
    >>> networks = mlp_actor_critic(family)
    >>> learner = sac(family, networks, num_train_tasks=1)
    >>> task = family.test.sample(jax.random.key(0), family.test.data)
    >>> adapted = learner.adapt(jax.random.key(1), learner.init(jax.random.key(2)).meta_params, task)
    >>> agent = pearl_agent(family, networks, adapted)
    >>> rollout(jax.random.key(3), trial(family.environment), *agent, task)[1].reward.shape
    (100,)
    """
    act = _policy(actor_critic, family.environment, is_greedy=True)
    return Agent(act, (adapted.params, adapted.belief), adapted.belief.mean)


def experience_of(transitions: Transition) -> Experience:
    """Transitions `[T]` of one of these policies, whose extras are its actions in units of the action space."""
    observation, next_observation = (
        jax.vmap(flatten)(seen) for seen in (transitions.inputs.observation, transitions.next_observation)
    )
    return Experience(observation, transitions.extras, transitions.reward, next_observation, transitions.terminated)


def _inference(encoder: Encoder | None, context: str, latent_size: int) -> tuple[Gaussian, Callable]:
    """The prior, and (params, experience [n], mask [n]) -> belief."""
    check_choice("context", context, ("probabilistic", "deterministic"))
    if encoder is None:
        _check_latent_size(latent_size, 0, "0 where there is no encoder")
        prior = Gaussian(jnp.zeros(0), jnp.zeros(0))
        return prior, lambda params, rows, mask: prior
    check_fields("encoder", encoder, ("init", "apply"), "an Encoder, such as mlp_encoder(family)")
    _check_latent_size(latent_size, encoder.latent_size, "that of the encoder")
    combine = product_of_gaussians if context == "probabilistic" else mean_of_points

    def infer(params: Params, rows: Experience, mask: jax.Array) -> Gaussian:
        return combine(*encoder.apply(params["encoder"], rows), mask)

    zeros = jnp.zeros((1, latent_size))
    return combine(zeros, zeros, jnp.zeros(1, bool)), infer


def _policy(actor_critic: ActorCritic, environment: Environment, is_greedy: bool) -> Callable:
    """A policy of params (parameters, belief), whose carry is z, and whose extras are its actions in [−1, 1]."""
    space = bounded_space(environment)

    def policy(key: jax.Array, params: tuple[Params, Gaussian], z: jax.Array, inputs):
        z_key, action_key = jax.random.split(key)
        parameters, belief = params
        z = jnp.where(inputs.done, belief.sample(z_key), z)
        distribution = actor_critic.actor(parameters["actor"], flatten(inputs.observation)[None], z[None])
        action = (distribution.mode() if is_greedy else distribution.sample(action_key))[0]
        return rescale(action, space), z, action

    return policy


def _collector(
    actor_critic: ActorCritic,
    prior: Gaussian,
    infer: Callable,
    environment: Environment,
    critic_reward_fn: Callable | None,
    num_steps: tuple[int, int, int],
) -> Callable[[jax.Array, Params, PyTree], tuple[Experience, Experience, Metrics]]:
    """Algorithm 1, lines 4 to 10: (key, params, task) -> what beliefs are made of, all as critics see it, metrics."""
    if critic_reward_fn is not None:
        check_callable("critic_reward_fn", critic_reward_fn, "(params of the task, experience) -> reward")
    act = _policy(actor_critic, environment, is_greedy=False)

    def collect(key: jax.Array, params: Params, task: PyTree) -> tuple[Experience, Experience, Metrics]:
        def play(key: jax.Array, belief: Gaussian, num_steps: int) -> tuple[Experience, jax.Array]:
            episodes = trial(environment, num_steps=num_steps)
            _, transitions = rollout(key, episodes, act, (params, belief), prior.mean, task)
            return experience_of(transitions), jnp.sum(transitions.reward) / jnp.sum(transitions.inputs.done)

        join = lambda *parts: jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
        believe = lambda rows: infer(params, rows, jnp.ones(len(rows.reward), bool))
        prior_key, posterior_key, extra_key = jax.random.split(key, 3)
        before, return_before = play(prior_key, prior, num_steps[0])
        after, return_after = play(posterior_key, believe(before), num_steps[1])
        visit = join(before, after)
        rows = join(visit, play(extra_key, believe(visit), num_steps[2])[0]) if num_steps[2] else visit
        if critic_reward_fn is not None:
            rows = rows._replace(reward=jax.vmap(critic_reward_fn, (None, 0))(task, rows))
        return visit, rows, {"return_before": return_before, "return": return_after}

    return collect


def _tester(
    act: Callable,
    prior: Gaussian,
    infer: Callable,
    environment: Environment,
    row: Experience,
    num_exploration_episodes: int,
) -> Callable[[jax.Array, Params, PyTree, int], tuple[Gaussian, Transition]]:
    """Algorithm 2: (key, params, task, n) -> the belief after n episodes, and these, `[n, H]`."""
    one = trial(environment, num_episodes=1)

    def live(key: jax.Array, params: Params, task: PyTree, num_episodes: int) -> tuple[Gaussian, Transition]:
        def believe(rows: Experience, mask: jax.Array) -> Gaussian:
            return infer(params, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), mask.reshape(-1))

        def play(seen: tuple[Experience, jax.Array], step: tuple[jax.Array, jax.Array]):
            i, key = step
            is_exploring = i < num_exploration_episodes
            belief = jax.tree.map(lambda first, then: jnp.where(is_exploring, first, then), prior, believe(*seen))
            _, transitions = rollout(key, one, act, (params, belief), prior.mean, task)
            new = (experience_of(transitions), transitions.mask)
            return jax.tree.map(lambda old, new: old.at[i].set(new), seen, new), transitions

        shape = (num_episodes, one.num_steps)
        rows = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), row)
        steps = (jnp.arange(num_episodes), jax.random.split(key, num_episodes))
        seen, transitions = jax.lax.scan(play, (rows, jnp.zeros(shape, bool)), steps)
        return believe(*seen), transitions

    return live


def _plan(row: Experience, num_tasks: int, capacity: int, num_rows: int, budget: int | None) -> MemoryPlan:
    check_integer("num_train_tasks", num_tasks, minimum=1)
    check_integer("capacity", capacity, minimum=1)
    if budget is not None:
        check_integer("memory_budget", budget, minimum=1)
    if capacity < num_rows:
        raise ValueError(f"capacity must hold at least one visit, {num_rows:,} transitions, got {capacity:,}")
    return memory_plan(row, num_tasks, capacity, default_memory_budget() if budget is None else budget)


@functools.cache
def _say(message: str) -> None:
    """Once for each message, however often programs are traced."""
    _log.info(message)


def _check_at_most(name: str, value: int, most: int, what: str) -> None:
    check_integer(name, value, minimum=1)
    if value > most:
        raise ValueError(f"{name} must be at most the {most} {what}, got {value}")


def _check_latent_size(value: int, expected: int, what: str) -> None:
    if value != expected:
        raise ValueError(f"latent_size of actor_critic must be {what}, {expected}, got {value}")


def _check_indexed(tasks: IndexedTask, num_train_tasks: int) -> None:
    remedy = f"rl.indexed_tasks(...) of the {num_train_tasks} training tasks"
    if not isinstance(tasks, IndexedTask):
        raise ValueError(f"tasks must come from {remedy}, got {type(tasks).__name__}")
    if jnp.ndim(tasks.which) != 2 or jnp.shape(tasks.which)[1] != num_train_tasks:
        raise ValueError(f"tasks must come from {remedy}, got which of shape {jnp.shape(tasks.which)}")
