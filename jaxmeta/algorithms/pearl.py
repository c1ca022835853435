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
| a belief without deviation | `mlp_encoder(family, context="deterministic")`: z is the mean of what it says, no KL  |
| no context                 | `sac(family, actor_critic, num_train_tasks=M)`: one policy for all tasks              |
| soft actor-critic, alone   | the same with `num_train_tasks=1`                                                     |
| sparse rewards             | `critic_reward_fn`: the critics learn from another reward than the encoder sees       |
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.beliefs import Encoder, check_encoder, infer, prior_of
from jaxmeta.algorithms.sac import (
    ActorCritic,
    Experience,
    SoftActorCritic,
    experience_shapes,
    init_params,
    policy_at,
    rescale,
    sac_losses,
    track,
)
from jaxmeta.checks import (
    check_arguments,
    check_fields,
    check_flag,
    check_instance,
    check_integer,
    check_meta_params,
    check_number,
    check_params,
)
from jaxmeta.outer import apply_gradient, chosen_optimizer, counted, for_each_task, initial_state, mean_over_shares
from jaxmeta.outer.cost import default_memory_budget
from jaxmeta.rl.action_masks import ActionMask, allowed_at, check_action_mask
from jaxmeta.rl.distributions import Categorical, Gaussian
from jaxmeta.rl.env import Discrete, Environment, Family, flatten, unflatten
from jaxmeta.rl.metrics import MetricsFn, beside, check_metrics_fn, metrics_of
from jaxmeta.rl.observe import Normalization, chosen_normalization
from jaxmeta.rl.replay import Buffers, IndexedTask, MemoryPlan, add_rows, empty_buffers, memory_plan, sample_rows
from jaxmeta.rl.returns import discounted_returns
from jaxmeta.rl.rollout import Agent, Policy, Transition, episode_of, rollout
from jaxmeta.rl.trials import Inputs, Trial, trial
from jaxmeta.signatures import names_options_of
from jaxmeta.types import MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, learned

_log = logging.getLogger("jaxmeta")

CriticRewardFn = Callable[[PyTree, Experience], jax.Array]


# The options.


@dataclass(frozen=True, kw_only=True)
class Visits:
    """What is played of a training task when it is visited, in steps of the environment.

    Raises:
      ValueError: a number is wrong.

    >>> Visits(num_prior_steps=30).num_steps(max_steps=100)
    (30, 100, 0)
    """

    num_prior_steps: int | None = None
    """Environment steps with z from the prior; an episode's if None."""
    num_posterior_steps: int | None = None
    """Then with z from the belief that they lead to; an episode's if None."""
    num_extra_steps: int = 0
    """Then more, with z from the belief that all before lead to; of these no belief is made."""
    infers_each_episode: bool = False
    """Whether the belief of the posterior steps is inferred anew for each episode, from all before it, as at test; else
    once, from the steps under the prior. If so, the first two numbers are multiples of an episode's steps."""

    def __post_init__(self) -> None:
        for name in ("num_prior_steps", "num_posterior_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        check_integer("num_extra_steps", self.num_extra_steps, minimum=0)
        check_flag("infers_each_episode", self.infers_each_episode)

    def num_steps(self, max_steps: int) -> tuple[int, int, int]:
        """Of each of the three parts, where an episode has at most `max_steps`.

        Raises:
          ValueError: a belief is inferred for each episode, and a part is not of whole ones.
        """
        prior, posterior = (max_steps if n is None else n for n in (self.num_prior_steps, self.num_posterior_steps))
        for name, number in {"num_prior_steps": prior, "num_posterior_steps": posterior}.items():
            if self.infers_each_episode and number % max_steps:
                remedy = f"a multiple of max_steps = {max_steps}, or infers_each_episode=False"
                raise ValueError(f"{name} of visits must be {remedy}, got {number}")
        return prior, posterior, self.num_extra_steps


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is kept of the training tasks, and what is drawn of it to learn from.

    Raises:
      ValueError: a number is wrong.

    >>> Replay(capacity=1000).num_gradient_steps
    100
    """

    capacity: int = 10_000
    """C, transitions that the buffer of a task holds, at least those of a visit."""
    memory_budget: int | None = None
    """Bytes that the buffers may take; half of the device's memory if None."""
    num_gradient_steps: int = 100
    """Gradient steps of an outer step, at least 1."""
    num_batch_tasks: int = 16
    """Tasks of a gradient step, drawn with replacement from those that were ever visited."""
    batch_size: int = 64
    """Transitions of each, for the actor and the critics."""
    num_context: int | None = None
    """Transitions of each for the encoder, drawn from its last visit; all of them if None."""
    is_context_partial: bool = False
    """Whether they are drawn, with replacement, from a beginning of that visit, of any length as likely, for at test a
    belief is of what was seen so far; else from the whole."""

    def __post_init__(self) -> None:
        for name in ("capacity", "num_gradient_steps", "num_batch_tasks", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("memory_budget", "num_context"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        check_flag("is_context_partial", self.is_context_partial)


@dataclass(frozen=True, kw_only=True)
class MetaTest:
    """How a new task is met.

    Raises:
      ValueError: a field is wrong.

    >>> MetaTest(num_episodes=10, num_exploration_episodes=2).is_greedy is None
    True
    """

    num_episodes: int = 3
    """K, episodes of context, at least 1."""
    num_exploration_episodes: int = 1
    """How many of them are played with z from the prior."""
    is_greedy: bool | None = None
    """Whether the actor's mode acts; if None, where there is no context. Beliefs are learned from what actions that
    were sampled lead to, and the straighter ways of the mode mislead them."""

    def __post_init__(self) -> None:
        check_integer("num_episodes", self.num_episodes, minimum=1)
        check_integer("num_exploration_episodes", self.num_exploration_episodes, minimum=1)
        if not isinstance(self.is_greedy, bool | None):
            raise ValueError(f"is_greedy must be True, False or None, got {self.is_greedy!r}")


# The learner.


class Memory(NamedTuple):
    """What is kept beside parameters and optimizer, for M tasks.

    Attributes:
      target: the critics' running average
      buffers: all that was seen of each task, with the reward that critics learn from
      context: `[M, n]`, what was seen of each when it was last visited
    """

    target: Params
    buffers: Buffers
    context: Experience


class AdaptedBelief(NamedTuple):
    """What is believed of a task, and the episodes `[K, H]` from which."""

    belief: Gaussian
    transitions: Transition


def pearl(
    family: Family,
    actor_critic: ActorCritic,
    encoder: Encoder | None,
    *,
    num_train_tasks: int,
    kl_weight: float = 0.1,
    visits: Visits = Visits(),
    replay: Replay = Replay(),
    sac: SoftActorCritic = SoftActorCritic(),
    meta_test: MetaTest = MetaTest(),
    optimizer: optax.GradientTransformation | None = None,
    critic_reward_fn: CriticRewardFn | None = None,
    normalization: Normalization | None = None,
    action_mask: ActionMask | None = None,
    metrics_fn: MetricsFn | None = None,
) -> MetaLearner:
    """Probabilistic embeddings for actor-critic meta-reinforcement-learning.

    An `update` visits the tasks that it is given, then takes gradient steps on tasks that were ever visited. Its
    "return" is that of whole episodes, as in `evaluate`, with z from the belief; "return_before" with z from the prior.
    They are of the first ⌊T/H⌋ episodes of the T steps, which fit whatever happens (of later ones the short would be
    more likely to fit); where that is none, "reward" is told instead, the mean of a step. "num_env_steps" were played.

    `evaluate` plays K + 1 episodes of a new task, and after each of the first K the belief is inferred anew from all
    that was seen: {"return": [K + 1]}, the first under the prior.

    What is not finite is not learned from: neither a gradient step, nor a visit of which anything is not finite, which
    is not remembered. `is_finite` tells of both, and such an update is counted in `num_skipped`.

    Rakelly, Zhou, Quillen, Finn, Levine, "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context
    Variables" (2019), algorithms 1 and 2, https://arxiv.org/abs/1903.08254

    Args:
      family: whose environment it is. Training tasks are `rl.indexed_tasks(...)`, test tasks the environment's params.
      actor_critic: see `mlp_actor_critic`, with the encoder's `latent_size`.
      encoder: see `mlp_encoder`; None for no context.
      num_train_tasks: M, the number of training tasks, each with its buffers, at least 1.
      kl_weight: λ ≥ 0, of the sum over tasks; a deterministic context has no KL.
      visits: what is played of a training task.
      replay: what is kept of it, and what a gradient step draws of that.
      sac: the discount, the reward's scale, the temperature and the target network.
      meta_test: how `adapt` and `evaluate` meet a new task.
      optimizer: of all networks; adam(3e-4) if None.
      critic_reward_fn: (params of the task, experience) -> the reward that critics learn from, in training; where tasks
        pay sparsely the authors' code learns from the dense reward, and sees the sparse one.
      normalization: of observations and rewards, `rl.running_moments(family)`; they are taken as they are if None. What
        is kept is not normalised, and moments are merged after the visits, before what is kept is learned from.
      action_mask: (observation, as the environment gives it) -> `[A]` booleans, which of the discrete actions there
        are; all if None. Where there is none at all the reward is NaN, and such a visit is not remembered.
      metrics_fn: (transitions [H, E] of E whole episodes) -> {name: scalar}, what is told beside "return", by
        `evaluate` of each episode, by `update` of those that "return" is of, and as name_before of "return_before"'s.

    Returns:
      A `MetaLearner`. `adapt` gives a tuple (belief, transitions): a Gaussian over z, and the episodes `[K, H]` that
      it is from. `agent(meta_params, adapted)`, given that tuple, acts by it, with a new z for each
      episode, and without it under the prior; `is_greedy` says whether by the actor's mode, as `evaluate` if None.

    Raises:
      ValueError: an argument is wrong; buffers do not fit the memory; while tracing, training tasks are not indexed, or
        a function returns something else than it has to.

    >>> import jaxmeta
    >>> from jaxmeta.algorithms import mlp_actor_critic, mlp_encoder
    >>> from jaxmeta.rl import families, indexed_tasks
    >>> family = families.point_robot(is_sparse=False)
    >>> networks = mlp_actor_critic(family, latent_size=2, hidden=(8,)), mlp_encoder(family, latent_size=2, hidden=(8,))
    >>> replay = Replay(capacity=100, num_gradient_steps=2, batch_size=4)
    >>> learner = pearl(family, *networks, num_train_tasks=80, replay=replay)
    >>> tasks = indexed_tasks(family.train.data)
    >>> state, _ = jaxmeta.fit(jax.random.key(0), learner, tasks, num_outer_steps=2, num_tasks=3, progress=False)
    >>> report = jaxmeta.evaluate(jax.random.key(1), learner, family.test, state.meta_params, num_tasks=5)
    >>> report.samples["return"].shape
    (5, 4)
    """
    row, environment = experience_shapes(family), family.environment
    _check(num_train_tasks, kl_weight, visits, replay, sac, meta_test, critic_reward_fn, metrics_fn)
    check_action_mask(action_mask, environment.action_space)
    _check_networks(actor_critic, encoder, row, isinstance(environment.action_space, Discrete))
    optimizer, normalization = chosen_optimizer(optimizer, optax.adam(3e-4)), chosen_normalization(normalization)
    num_steps = visits.num_steps(environment.max_steps)
    plan = _plan(row, num_train_tasks, replay, num_steps)
    act = _policy(actor_critic, environment, normalization, action_mask)
    of_rows, prior = partial(believe, encoder, partial(as_seen, normalization)), prior_of(encoder)

    def init(key: jax.Array) -> MetaState:
        _say(str(plan))
        meta_params = MetaParams(_init_networks(key, actor_critic, encoder, sac), constants=normalization.init())
        memory = empty_memory(meta_params, row, num_train_tasks, replay.capacity, sum(num_steps[:2]))
        return initial_state(optimizer, meta_params)._replace(carry=memory)

    played = environment, act, of_rows, prior, row, metrics_fn

    # Algorithm 1.
    measure = partial(measured, normalization, sac.discount)
    collect = collect_of(visits, *played, measure=measure, critic_reward_fn=critic_reward_fn)
    of_mean = kl_weight * replay.num_batch_tasks  # λ weighs the sum of the KL over tasks, and losses are means
    loss_fn = partial(pearl_loss, actor_critic=actor_critic, encoder=encoder, sac=sac, kl_weight=of_mean)
    look = partial(looked_at, normalization, _allowed_rows(action_mask, family))
    step = partial(
        gradient_step, look=look, loss_fn=loss_fn, optimizer=optimizer, replay=replay, target_rate=sac.target_rate
    )
    update = partial(
        meta_train, collect=collect, merge=normalization.merge, step=step, num_gradient_steps=replay.num_gradient_steps
    )

    # Algorithm 2.
    adapt, evaluate, agent = meta_test_of(meta_test, *played)
    return MetaLearner(init, update, adapt, evaluate, agent, unit="episode")


class OfPearl(TypedDict, total=False):
    """What `sac` has of `pearl`, as it is there."""

    visits: Visits
    replay: Replay
    sac: SoftActorCritic
    meta_test: MetaTest
    optimizer: optax.GradientTransformation | None
    critic_reward_fn: CriticRewardFn | None
    normalization: Normalization | None
    action_mask: ActionMask | None
    metrics_fn: MetricsFn | None


@names_options_of(pearl)
def sac(
    family: Family,
    actor_critic: ActorCritic,
    *,
    num_train_tasks: int,
    **options: Unpack[OfPearl],
) -> MetaLearner:
    """Soft actor-critic: `pearl` without context, one policy for all tasks. With one task, plain SAC.

    Other arguments, returns and errors as for `pearl`.

    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), https://arxiv.org/abs/1812.05905

    Args:
      family: as in `pearl`.
      actor_critic: see `mlp_actor_critic`, with `latent_size=0`.
      num_train_tasks: M, the number of training tasks, each with its buffer, at least 1.

    >>> from jaxmeta.algorithms import mlp_actor_critic
    >>> from jaxmeta.rl import families
    >>> family = families.pendulum()
    >>> learner = sac(family, mlp_actor_critic(family), num_train_tasks=1, replay=Replay(num_batch_tasks=1))
    """
    return pearl(family, actor_critic, None, num_train_tasks=num_train_tasks, **options)


def _init_networks(
    key: jax.Array, actor_critic: ActorCritic, encoder: Encoder | None, sac: SoftActorCritic
) -> dict[str, Params]:
    sac_key, encoder_key = jax.random.split(key)
    params = init_params(sac_key, actor_critic, sac)
    return check_params(params if encoder is None else params | {"encoder": encoder.init(encoder_key)})


def empty_memory(meta_params: MetaParams, row: Experience, num_tasks: int, capacity: int, num_context: int) -> Memory:
    """Before anything is seen: the running average is at the critics, and there are no rows like `row`."""
    context = jax.tree.map(lambda leaf: jnp.zeros((num_tasks, num_context, *leaf.shape), leaf.dtype), row)
    target = jax.tree.map(jnp.copy, meta_params.params["critic"])
    return Memory(target, empty_buffers(row, num_tasks, capacity), context)


def _policy(
    actor_critic: ActorCritic, environment: Environment, normalization: Normalization, action_mask: ActionMask | None
) -> Callable:
    """A policy of params (meta-parameters, belief), whose carry is z, and whose extras are its actions as they are
    learned from."""
    space: Any = environment.action_space

    def act(key: jax.Array, params: tuple[MetaParams, Gaussian], z: jax.Array, inputs: Inputs, *, is_greedy: bool):
        z_key, action_key = jax.random.split(key)
        meta_params, belief = params
        z = jnp.where(inputs.done, belief.sample(z_key), z)
        observation = flatten(normalization.observe(meta_params.constants, inputs.observation))
        allowed = None
        if action_mask is not None:
            allowed = allowed_at(action_mask, inputs.observation, space.num_actions)[None]
        distribution = policy_at(actor_critic, meta_params.params["actor"], observation[None], z[None], allowed)
        action = (distribution.mode() if is_greedy else distribution.sample(action_key))[0]
        if isinstance(space, Discrete):
            return action, z, jax.nn.one_hot(action, space.num_actions)
        return rescale(action, space), z, action

    return act


def experience_of(transitions: Transition) -> Experience:
    """Transitions `[T]` of one of these policies, whose extras are its actions as they are learned from."""
    observation, next_observation = (
        jax.vmap(flatten)(seen) for seen in (transitions.inputs.observation, transitions.next_observation)
    )
    return Experience(observation, transitions.extras, transitions.reward, next_observation, transitions.terminated)


# What is seen of rows, which are kept as they are: by the encoder, and by actor and critics.


def as_seen(normalization: Normalization, moments: PyTree, rows: Experience) -> Experience:
    """Rows `[...]` as networks see them."""
    observe = jax.vmap(partial(normalization.observe, moments))
    seen = (observe(x.reshape(-1, x.shape[-1])).reshape(x.shape) for x in (rows.observation, rows.next_observation))
    observation, next_observation = seen
    reward = normalization.see(moments, rows.reward)
    return rows._replace(observation=observation, next_observation=next_observation, reward=reward)


def looked_at(
    normalization: Normalization,
    allowed_rows: Callable | None,
    moments: PyTree,
    context: Experience,
    batch: Experience,
) -> tuple[Experience, Experience, PyTree]:
    """What the encoder is given; what is learned from, whose reward is the one that is paid; and which actions there
    are, `[N, B, A]`, now and next."""
    paid = as_seen(normalization, moments, batch)._replace(reward=normalization.pay(moments, batch.reward))
    allowed = None
    if allowed_rows is not None:
        allowed = allowed_rows(batch.observation), allowed_rows(batch.next_observation)
    return as_seen(normalization, moments, context), paid, allowed


def _allowed_rows(action_mask: ActionMask | None, family: Family) -> Callable[[jax.Array], jax.Array] | None:
    """(observations as they are kept, `[N, B, D]`) -> `[N, B, A]`; None without a mask."""
    environment = family.environment
    if action_mask is None or not isinstance(environment.action_space, Discrete):
        return None
    num_actions = environment.action_space.num_actions
    observe = lambda key: environment.reset(key, family.train.sample(key, family.train.data))[0]
    like = jax.eval_shape(observe, jax.random.key(0))

    def allowed(x: jax.Array) -> jax.Array:
        observation = jax.tree.map(lambda x, of: x.astype(of.dtype), unflatten(x, like), like)
        return allowed_at(action_mask, observation, num_actions)

    return jax.vmap(jax.vmap(allowed))


def believe(
    encoder: Encoder | None, see: Callable, meta_params: MetaParams, rows: Experience, mask: jax.Array
) -> Gaussian:
    """q(z | c) of rows `[n]` as they were played, where `mask` is true."""
    return infer(meta_params.params, see(meta_params.constants, rows), mask, encoder)


def measured(
    normalization: Normalization, discount: float, rows: Experience, critic_reward: jax.Array, done: jax.Array
) -> PyTree:
    """The moments of what was played, `[T]`: of returns as the critics count them."""
    to_go = discounted_returns(critic_reward, done, discount=discount)
    return normalization.measure(rows.observation, rows.reward, to_go, jnp.ones_like(done))


# Algorithm 1, meta-training.


def meta_train(
    key: jax.Array,
    state: MetaState,
    tasks: IndexedTask,
    *,
    collect: Callable,
    merge: Callable,
    step: Callable,
    num_gradient_steps: int,
) -> tuple[MetaState, Metrics]:
    """Lines 3 to 22: visit tasks `[N]`, remember what was seen, and take gradient steps on all that is remembered."""
    _check_indexed(tasks, len(state.carry.buffers.num_added))
    collect_key, learn_key = jax.random.split(key)

    # Gathering data, from all tasks at once.
    visit = lambda meta_params, per_task: collect(per_task[0], meta_params, per_task[1])
    keys = jax.random.split(collect_key, len(tasks.index))
    visits = for_each_task(visit, state.meta_params, (keys, tasks.params))
    memory, all_finite = remember(state.carry, tasks.index, visits)
    moments = merge(state.meta_params.constants, visits.measured)

    # Training steps.
    start = Learned(learned(state.meta_params), state.opt_state, memory.target)
    keys = jax.random.split(learn_key, num_gradient_steps)
    after, curves = jax.lax.scan(lambda before, key: step(key, before, memory, moments), start, keys)

    is_finite = all_finite & jnp.all(curves.pop("is_finite"))
    num_env_steps = jnp.int32(visits.rows.reward.size)
    own = jax.tree.map(jnp.mean, curves) | {"num_env_steps": num_env_steps, "is_finite": is_finite}
    state = state._replace(carry=memory._replace(target=after.target))
    state = counted(state, after.meta_params._replace(constants=moments), after.opt_state, is_finite)
    return state, beside(jax.tree.map(jnp.mean, visits.metrics), own)


class Visit(NamedTuple):
    """What a visit to a task brings.

    Attributes:
      context: `[n]`, of what was played before the extra steps: what the next beliefs are made of
      rows: `[T]`, all of it, with the reward that critics learn from
      measured: moments of all of it
      metrics: of the episodes
    """

    context: Experience
    rows: Experience
    measured: PyTree
    metrics: Metrics


def collect_of(
    visits: Visits,
    environment: Environment,
    act: Callable,
    believe: Callable,
    prior: Gaussian,
    row: Experience,
    metrics_fn: MetricsFn | None,
    *,
    measure: Callable,
    critic_reward_fn: CriticRewardFn | None,
) -> Callable:
    """What gathers data from a task, by a policy and an inference."""
    play = partial(
        play_visit,
        environment=environment,
        act=partial(act, is_greedy=False),
        believe=believe,
        prior=prior,
        num_steps=visits.num_steps(environment.max_steps),
        infers_each_episode=visits.infers_each_episode,
        row=row,
    )
    tell = partial(report, max_steps=environment.max_steps, metrics_fn=metrics_fn)
    return partial(collect_visit, play=play, measure=measure, report=tell, critic_reward_fn=critic_reward_fn)


def play_visit(
    key: jax.Array,
    meta_params: MetaParams,
    task: PyTree,
    *,
    environment: Environment,
    act: Callable,
    believe: Callable,
    prior: Gaussian,
    num_steps: tuple[int, int, int],
    infers_each_episode: bool,
    row: Experience,
) -> list[Transition]:
    """Lines 4 to 8: play with z from the prior, then from what that leads to believe, then what is extra.

    Each part is turns `[n, T]` of one belief each: a single one, or one for each episode.
    """
    num_prior, num_posterior, num_extra = num_steps
    prior_key, posterior_key, extra_key = jax.random.split(key, 3)

    def play(key: jax.Array, belief: Gaussian, num_steps: int) -> Transition:
        steps = trial(environment, num_steps=num_steps)
        _, transitions = rollout(key, steps, act, (meta_params, belief), prior.mean, task)
        return jax.tree.map(lambda x: x[None], transitions)

    def from_all(*parts: Transition) -> Gaussian:
        rows = experience_of(_join(*map(_flat, parts)))
        return believe(meta_params, rows, jnp.ones(len(rows.reward), bool))

    if infers_each_episode:
        turn = trial(environment, num_steps=environment.max_steps)
        first, num_turns = num_prior // turn.num_steps, (num_prior + num_posterior) // turn.num_steps
        how: dict[str, Any] = {"turn": turn, "num_turns": num_turns, "num_prior_turns": first}
        how |= {"act": act, "believe": believe, "prior": prior, "row": row}
        both = in_turns(prior_key, meta_params, task, **how).transitions
        before, after = jax.tree.map(lambda x: x[:first], both), jax.tree.map(lambda x: x[first:], both)
    else:
        before = play(prior_key, prior, num_prior)
        after = play(posterior_key, from_all(before), num_posterior)
    return [before, after] + ([play(extra_key, from_all(before, after), num_extra)] if num_extra else [])


def collect_visit(
    key: jax.Array,
    meta_params: MetaParams,
    task: PyTree,
    *,
    play: Callable,
    measure: Callable,
    report: Callable,
    critic_reward_fn: CriticRewardFn | None,
) -> Visit:
    """Lines 4 to 10: gather data from one task."""
    parts = play(key, meta_params, task)
    context, rows = (experience_of(_join(*map(_flat, of))) for of in (parts[:2], parts))
    done = jnp.concatenate([_flat((part.terminated | part.truncated).at[:, -1].set(True)) for part in parts])
    reward = rows.reward if critic_reward_fn is None else _critic_reward(critic_reward_fn, task, rows)
    before, after = (jax.tree.map(partial(jnp.mean, axis=0), jax.vmap(report)(part)) for part in parts[:2])
    before = {f"{name}_before": value for name, value in before.items()}
    return Visit(context, rows._replace(reward=reward), measure(rows, reward, done), beside(after, before))


def report(transitions: Transition, max_steps: int, metrics_fn: MetricsFn | None) -> Metrics:
    """The mean return of the first ⌊T/H⌋ episodes, which T steps always hold, and what `metrics_fn` says of them.

    Where T steps hold no episode for certain: "reward", the mean of a step.
    """
    num_episodes = len(transitions.reward) // max_steps
    if not num_episodes:
        return {"reward": jnp.mean(transitions.reward)}
    episodes = first_episodes(transitions, num_episodes, max_steps)
    return beside(metrics_of(metrics_fn, episodes), {"return": jnp.mean(jnp.sum(episodes.reward, axis=0))})


def first_episodes(transitions: Transition, num_episodes: int, max_steps: int) -> Transition:
    """The first E episodes, `[H, E]`, of one trial's transitions `[T]`, T ≥ E H; masked where they are over."""
    episode = episode_of(transitions)
    start = jnp.searchsorted(episode, jnp.arange(num_episodes))
    where = jnp.minimum(start[None] + jnp.arange(max_steps)[:, None], len(episode) - 1)
    found = jax.tree.map(lambda x: x[where], transitions)
    mask = found.mask & (episode[where] == jnp.arange(num_episodes)[None])
    return found._replace(mask=mask, reward=jnp.where(mask, found.reward, 0))


def remember(memory: Memory, index: jax.Array, visits: Visit) -> tuple[Memory, jax.Array]:
    """Line 9: adds to the buffers, and replaces the contexts, of tasks `index` `[N]`; whether all visits were finite.

    One task after the other, for the same may have been visited twice. What is not finite is written nowhere.
    """
    is_finite = jax.vmap(_all_finite)((visits.context, visits.rows))
    nowhere = len(memory.buffers.num_added)

    def add(memory: Memory, visit: tuple[jax.Array, Experience, Experience]) -> tuple[Memory, None]:
        index, context, rows = visit
        last = jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), memory.context, context)
        return memory._replace(buffers=add_rows(memory.buffers, index, rows), context=last), None

    memory, _ = jax.lax.scan(add, memory, (jnp.where(is_finite, index, nowhere), visits.context, visits.rows))
    return memory, jnp.all(is_finite)


class Learned(NamedTuple):
    """What a gradient step changes."""

    meta_params: MetaParams
    opt_state: PyTree
    target: Params


def gradient_step(
    key: jax.Array,
    learned: Learned,
    memory: Memory,
    moments: PyTree,
    *,
    look: Callable,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    replay: Replay,
    target_rate: float,
) -> tuple[Learned, Metrics]:
    """Lines 12 to 21: draw tasks, contexts and batches, and step all networks. Nothing changes if it is not finite."""
    draw_key, loss_key = jax.random.split(key)
    drawn = jax.random.split(loss_key, replay.num_batch_tasks), *look(moments, *draw(draw_key, memory, replay))
    of_some = lambda given, drawn: jax.value_and_grad(loss_fn, has_aux=True)(*given, *drawn)
    (loss, terms), grads = mean_over_shares(of_some, (learned.meta_params, learned.target), drawn)
    loss = jnp.where(jnp.any(memory.buffers.num_added > 0), loss, jnp.nan)  # of nothing there is nothing to learn
    meta_params, opt_state, applied = apply_gradient(optimizer, learned.meta_params, learned.opt_state, loss, grads)

    tracked = track(learned.target, meta_params.params["critic"], target_rate)
    target = jax.tree.map(lambda new, old: jnp.where(applied["is_finite"], new, old), tracked, learned.target)
    return Learned(meta_params, opt_state, target), terms | applied


def draw(key: jax.Array, memory: Memory, replay: Replay) -> tuple[Experience, Experience]:
    """Of a few of the tasks that were ever visited: context `[N, n]`, and what critics learn from, `[N, B]`."""
    task_key, context_key, batch_key = jax.random.split(key, 3)
    is_known = jnp.where(memory.buffers.num_added > 0, 0.0, -jnp.inf)
    index = jax.random.categorical(task_key, is_known, shape=(replay.num_batch_tasks,))
    keys = lambda key: jax.random.split(key, replay.num_batch_tasks)
    batch = jax.vmap(sample_rows, (0, None, 0, None))(keys(batch_key), memory.buffers, index, replay.batch_size)
    which = jax.vmap(lambda key: draw_context(key, memory.context.reward.shape[1], replay))(keys(context_key))
    return jax.tree.map(lambda rows: rows[index[:, None], which], memory.context), batch


def draw_context(key: jax.Array, num_visited: int, replay: Replay) -> jax.Array:
    """Which of the transitions of a visit a context is of, `[n]`."""
    if not replay.is_context_partial:
        return jax.random.permutation(key, num_visited)[: replay.num_context]
    until_key, key = jax.random.split(key)
    until = jax.random.randint(until_key, (), 1, num_visited + 1)
    num_context = num_visited if replay.num_context is None else replay.num_context
    return jax.random.randint(key, (num_context,), 0, until)


def pearl_loss(
    meta_params: MetaParams,
    target: Params,
    keys: jax.Array,
    context: Experience,
    batch: Experience,
    allowed: PyTree = None,
    *,
    actor_critic: ActorCritic,
    encoder: Encoder | None,
    sac: SoftActorCritic,
    kl_weight: float,
) -> tuple[jax.Array, Metrics]:
    """The mean over tasks `[N]` of the losses of soft actor-critic on `batch` `[N, B]`, with z ~ q(z | context), and of
    `kl_weight` KL; with `allowed` of `sac_losses`."""
    params = meta_params.params
    has_kl = encoder is not None and encoder.context == "probabilistic"

    def of_task(key: jax.Array, context: Experience, batch: Experience, allowed: PyTree) -> tuple[jax.Array, Metrics]:
        z_key, sac_key = jax.random.split(key)
        belief = infer(params, context, jnp.ones(len(context.reward), bool), encoder)
        z = _repeat(belief.sample(z_key), len(batch.reward))
        how = {"actor_critic": actor_critic, "options": sac, "allowed": allowed}
        losses = sac_losses(sac_key, params, target, batch, z, **how)
        kl = belief.kl(prior_of(encoder)) if has_kl else jnp.zeros(())
        metrics = {"critic_loss": losses.critic, "entropy": -losses.log_prob, "kl": kl}
        return losses.critic + losses.actor + losses.temperature + kl_weight * kl, metrics

    return jax.tree.map(jnp.mean, jax.vmap(of_task)(keys, context, batch, allowed))


# Algorithm 2, meta-testing.


def meta_test_of(
    options: MetaTest,
    environment: Environment,
    act: Callable,
    believe: Callable,
    prior: Gaussian,
    row: Experience,
    metrics_fn: MetricsFn | None,
) -> tuple[Callable, Callable, Callable]:
    """What a `MetaLearner` has for it: `adapt`, `evaluate` and `agent`."""
    acts_greedily = not prior.mean.size if options.is_greedy is None else options.is_greedy
    meet = partial(
        meet_task,
        environment=environment,
        act=partial(act, is_greedy=acts_greedily),
        believe=believe,
        prior=prior,
        num_prior_turns=options.num_exploration_episodes,
        row=row,
    )

    def adapt(key: jax.Array, meta_params: MetaParams, task: PyTree) -> AdaptedBelief:
        check_meta_params(meta_params)
        return meet(key, meta_params, task, num_episodes=options.num_episodes)

    def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
        check_meta_params(meta_params)
        transitions = meet(key, meta_params, task, num_episodes=options.num_episodes + 1).transitions
        return jax.vmap(lambda episode: report(episode, environment.max_steps, metrics_fn))(transitions)

    def agent(meta_params: MetaParams, adapted: AdaptedBelief | None = None, is_greedy: bool | None = None) -> Agent:
        check_meta_params(meta_params)
        belief = prior if adapted is None else adapted.belief
        policy = partial(act, is_greedy=acts_greedily if is_greedy is None else is_greedy)
        return Agent(policy, (meta_params, belief), prior.mean)

    return adapt, evaluate, agent


def meet_task(
    key: jax.Array, meta_params: MetaParams, task: PyTree, *, environment: Environment, num_episodes: int, **how: Any
) -> AdaptedBelief:
    """Episodes of one task, each with z from what all before it lead to believe; and what they all lead to believe."""
    task = task.params if isinstance(task, IndexedTask) else task  # a training task may be judged too
    return in_turns(key, meta_params, task, turn=trial(environment, num_episodes=1), num_turns=num_episodes, **how)


def in_turns(
    key: jax.Array,
    meta_params: MetaParams,
    task: PyTree,
    *,
    turn: Trial,
    num_turns: int,
    num_prior_turns: int,
    act: Policy,
    believe: Callable,
    prior: Gaussian,
    row: Experience,
) -> AdaptedBelief:
    """Trials of one task, each with z from what all before it lead to believe; and what they all lead to believe."""

    def from_all(rows: Experience, mask: jax.Array) -> Gaussian:
        return believe(meta_params, _flat(rows), _flat(mask))

    def play(seen: tuple[Experience, jax.Array], step: tuple[jax.Array, jax.Array]):
        i, key = step
        is_exploring = i < num_prior_turns
        belief = jax.tree.map(lambda first, then: jnp.where(is_exploring, first, then), prior, from_all(*seen))
        _, transitions = rollout(key, turn, act, (meta_params, belief), prior.mean, task)
        new = (experience_of(transitions), transitions.mask)
        return jax.tree.map(lambda old, new: old.at[i].set(new), seen, new), transitions

    shape = (num_turns, turn.num_steps)
    rows = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), row)
    nothing = (rows, jnp.zeros(shape, bool))
    seen, transitions = jax.lax.scan(play, nothing, (jnp.arange(num_turns), jax.random.split(key, num_turns)))
    return AdaptedBelief(from_all(*seen), transitions)


# Small things, and what is looked at.


def _join(*parts: PyTree) -> Any:
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def _repeat(tree: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda x: jnp.repeat(x[None], number, axis=0), tree)


def _all_finite(tree: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _flat(tree: PyTree) -> PyTree:
    """Two leading axes as one."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _critic_reward(critic_reward_fn: CriticRewardFn, task: PyTree, rows: Experience) -> jax.Array:
    reward = jax.vmap(critic_reward_fn, (None, 0))(task, rows)
    if jnp.shape(reward) != rows.reward.shape:
        raise ValueError(f"critic_reward_fn must return a scalar for each row, got the shape {jnp.shape(reward)[1:]}")
    return jnp.asarray(reward, rows.reward.dtype)


def _plan(row: Experience, num_tasks: int, replay: Replay, num_steps: tuple[int, int, int]) -> MemoryPlan:
    """What the buffers take, which must hold a visit, of which the context is drawn."""
    if replay.capacity < sum(num_steps):
        raise ValueError(
            f"capacity of replay must hold at least one visit, {sum(num_steps):,} transitions, got {replay.capacity:,}"
        )
    num_context, num_visited = replay.num_context, sum(num_steps[:2])
    if num_context is not None and num_context > num_visited:
        raise ValueError(
            f"num_context of replay must be at most the {num_visited} transitions of a visit, got {num_context}"
        )
    budget = default_memory_budget() if replay.memory_budget is None else replay.memory_budget
    return memory_plan(row, num_tasks, replay.capacity, budget)


@cache
def _say(message: str) -> None:
    """Once for each message, however often programs are traced."""
    _log.info(message)


def _check(
    num_train_tasks: int,
    kl_weight: float,
    visits: Visits,
    replay: Replay,
    sac: SoftActorCritic,
    meta_test: MetaTest,
    critic_reward_fn: CriticRewardFn | None,
    metrics_fn: MetricsFn | None,
) -> None:
    """All but the networks."""
    check_integer("num_train_tasks", num_train_tasks, minimum=1)
    check_number("kl_weight", kl_weight)
    check_instance("visits", visits, Visits)
    check_instance("replay", replay, Replay)
    check_instance("sac", sac, SoftActorCritic)
    check_instance("meta_test", meta_test, MetaTest)
    if critic_reward_fn is not None:
        check_arguments("critic_reward_fn", critic_reward_fn, ("task", "experience"), "it returns the reward")
    check_metrics_fn(metrics_fn, "H, E")


def _check_networks(actor_critic: ActorCritic, encoder: Encoder | None, row: Experience, is_discrete: bool) -> None:
    """That they are some, and what they return of two rows, by shapes."""
    fields = ("init", "actor", "critic")
    check_fields("actor_critic", actor_critic, fields, "an ActorCritic, such as mlp_actor_critic(family)")
    if encoder is not None:
        check_encoder("encoder", encoder)
    latent_size, expected = actor_critic.latent_size, 0 if encoder is None else encoder.latent_size
    if latent_size != expected:
        what = "0 where there is no encoder" if encoder is None else "that of the encoder"
        raise ValueError(f"latent_size of actor_critic must be {what}, {expected}, got {latent_size}")

    def outputs(key: jax.Array) -> dict[str, jax.Array]:
        rows, z = (
            _repeat(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), row), 2),
            jnp.zeros((2, expected)),
        )
        params = actor_critic.init(key)
        policy = actor_critic.actor(params["actor"], rows.observation, z)
        if isinstance(policy, Categorical) != is_discrete:
            what = "discrete, and a Categorical" if is_discrete else "real, and no Categorical"
            raise ValueError(f"actor of actor_critic must be of actions that are {what}, got {type(policy).__name__}")
        arguments = (rows.observation, z) if is_discrete else (rows.observation, policy.sample(key), z)
        acted = {"logits of actor": policy.logits} if is_discrete else {"sample of actor": arguments[1]}
        found = acted | {"critic": actor_critic.critic(params["critic"], *arguments)}
        if encoder is not None:
            mean, variance = encoder.apply(encoder.init(key), rows)
            found |= {"mean of encoder": mean, "variance of encoder": variance}
        return found

    of_actor = (2, *row.action.shape)
    shapes = {"sample of actor": of_actor, "logits of actor": of_actor}
    shapes["critic"] = (2, *of_actor) if is_discrete else (2, 2)
    for name, leaf in jax.eval_shape(outputs, jax.random.key(0)).items():
        shape = shapes.get(name, (2, expected))
        if leaf.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} for two rows, got {leaf.shape}")


def _check_indexed(tasks: IndexedTask, num_train_tasks: int) -> None:
    remedy = f"rl.indexed_tasks(...) of the {num_train_tasks} training tasks"
    if not isinstance(tasks, IndexedTask):
        raise ValueError(f"tasks must come from {remedy}, got {type(tasks).__name__}")
    if tasks.num_tasks != num_train_tasks:
        raise ValueError(f"tasks must come from {remedy}, got one of {tasks.num_tasks}")
    if jnp.ndim(tasks.index) != 1:
        raise ValueError(f"tasks must have a leading axis N, got an index of shape {jnp.shape(tasks.index)}")
