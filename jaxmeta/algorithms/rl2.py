"""RL²: a recurrent policy that learns within a trial. Its hidden state is what it has learned of the task.

    h_t = f_θ(h_{t−1}, o_t, a_{t−1}, r_{t−1}, d_{t−1}),  a_t ~ π_θ(· | h_t)     the inner loop: a trial, some episodes
    θ ← θ + β ∇_θ E_task E_trial[Σ_t γ^t r_t]                                   the outer loop: PPO or TRPO

One return goes over the whole trial, through the ends of its episodes, so that what is found out in one pays in the
next. The hidden state begins with the trial and with nothing else.

| the paper                                    | how                                                          |
|----------------------------------------------|--------------------------------------------------------------|
| RL² (Duan et al. 2016)                       | `outer=TRPO()`, λ = 0.3, GRUs of 256 units                   |
| learning to reinforcement learn (Wang 2016)  | `outer=VPG()`, `actor=nn.lstm(48)`                           |
| E-RL² (Stadie et al. 2018)                   | `num_exploration_episodes`                                   |
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_instance, check_integer, check_meta_params, check_number, check_stacked
from jaxmeta.devices import known_everywhere
from jaxmeta.nn.recurrent import Recurrent, gru
from jaxmeta.outer import chosen_optimizer, counted, for_each_task, initial_state, mean_over_shares, shared_out
from jaxmeta.rl.action_masks import ActionMask, allowed_at, check_action_mask
from jaxmeta.rl.env import Continuous, Discrete, Family, check_family
from jaxmeta.rl.metrics import MetricsFn, beside, check_metrics_fn, metrics_of
from jaxmeta.rl.observe import Normalization, chosen_normalization, look
from jaxmeta.rl.on_policy import (
    PPO,
    TRPO,
    Advantages,
    PolicyStep,
    check_policy_step,
    descend,
    masked_mean,
    normalized,
    of_update,
)
from jaxmeta.rl.recurrent import (
    Acted,
    RecurrentNetwork,
    acting,
    check_core,
    only_allowed,
    recurrent_policy,
    recurrent_value,
)
from jaxmeta.rl.returns import discounted_returns, gae
from jaxmeta.rl.rollout import Agent, Policy, Transition, episode_of, episode_returns, rollout
from jaxmeta.rl.trials import Inputs, Trial, trial
from jaxmeta.rl.trust_region import kl_of, trust_region
from jaxmeta.types import MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, learned


class Experience(NamedTuple):
    """What is learned from, `[T, N, ...]`, a trial in each column: what the policy saw, encoded, what it did and how
    likely that was; and the advantage of that, and what the value is fitted to. `mask` is false after the trial."""

    x: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array
    mask: jax.Array


class Parts(NamedTuple):
    """What a learner is made of, all of it checked; see the arguments of `rl2`.

    `actor` and `critic` are the networks that learn, `policy` is how the actor acts, by (moments, its parameters), from
    the carry `start()`.
    """

    train_trial: Trial
    eval_trial: Trial
    num_episodes: int
    num_eval_episodes: int
    num_exploration_episodes: int
    num_inputs: Callable[[PyTree], int]
    actor: RecurrentNetwork
    critic: RecurrentNetwork
    policy: Policy
    start: Callable[[], PyTree]
    outer: PolicyStep
    optimizer: optax.GradientTransformation
    max_grad_norm: float | None
    advantages: Advantages
    entropy_weight: optax.Schedule
    normalization: Normalization
    metrics_fn: MetricsFn | None


def rl2(
    family: Family,
    *,
    num_episodes: int = 1,
    num_eval_episodes: int | None = None,
    num_exploration_episodes: int = 0,
    actor: Recurrent | None = None,
    critic: Recurrent | None = None,
    truncation: int | None = None,
    advantages: Advantages = Advantages(gae_lambda=0.95),
    outer: PolicyStep = PPO(num_minibatches=8),
    optimizer: optax.GradientTransformation | None = None,
    max_grad_norm: float | None = 0.5,
    entropy_weight: float | optax.Schedule = 0.0,
    normalization: Normalization | None = None,
    action_mask: ActionMask | None = None,
    metrics_fn: MetricsFn | None = None,
) -> MetaLearner:
    """Meta-learns a recurrent policy by reinforcement learning over whole trials.

    Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, "RL²: Fast Reinforcement Learning via Slow Reinforcement
    Learning" (2016), https://arxiv.org/abs/1611.02779. E-RL²: Stadie et al., "Some Considerations on Learning to
    Explore via Meta-Reinforcement Learning" (2018), https://arxiv.org/abs/1803.01118. PPO: Schulman et al., "Proximal
    Policy Optimization Algorithms" (2017), https://arxiv.org/abs/1707.06347

    Args:
      family: whose environment's params are the tasks. `update` plays one trial of each task that it is given.
      num_episodes: episodes of a trial, at least 1.
      num_eval_episodes: episodes of a trial in `adapt` and `evaluate`; `num_episodes` if None.
      num_exploration_episodes: the number of first episodes of a trial whose rewards are seen but not counted (E-RL²).
      actor: the recurrent network of the policy, `nn.gru(128)` if None; a linear layer makes its output actions.
      critic: that of the value, with parameters of its own; of the actor's kind if None.
      truncation: environment steps that gradients flow back at most, in blocks of this length, a divisor of a trial's;
        through the whole trial if None.
      advantages: over the whole trial, whose baseline is the critic; γ = 0.99 and λ = 0.95 by default. They are
        normalised over all trials together.
      outer: `PPO(...)`, eight minibatches by default; `TRPO(...)`: one natural-gradient step of the actor on all
        trials, the optimizer on the critic's; or `VPG()`.
      optimizer: steps actor and critic, or with `TRPO` the critic alone; Adam with rate 1e-3 if None.
      max_grad_norm: the Euclidean norm > 0 that the actor's and the critic's gradient are clipped to, each by itself:
        the value's may be a hundred times the policy's. None does not clip.
      entropy_weight: ≥ 0, what a nat of the policy's entropy is worth; or an optax schedule of it, (step of `update`)
        -> weight.
      normalization: of observations and rewards, `rl.running_moments(family)`; they are taken as they are if None.
      action_mask: (observation, as the environment gives it) -> `[A]` booleans, which of the discrete actions there
        are; all if None. The networks see it too. Where there is none at all the reward is NaN, and not learned from.
      metrics_fn: (transitions of a trial, `[T]`) -> {name: scalar}, what `update` and `evaluate` report beside their
        own; see `rl.Transition`.

    Returns:
      A `MetaLearner`. `evaluate` gives {"return": [num_eval_episodes], "total": [1]}, the undiscounted sum of rewards
      of each episode of a trial, entry k after k episodes, and of all of them; `update` reports the means over episodes
      and trials, and `num_env_steps`, the steps that were played. `adapt` gives the policy's carry after a trial, from
      which `agent(meta_params, carry)` goes on; `agent(meta_params)` begins one.

    Raises:
      ValueError: an argument is wrong; while tracing, the tasks are not stacked, `num_minibatches` does not divide
        their number, or `metrics_fn` returns something else.

    >>> from jaxmeta.rl import families
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = rl2(family, actor=gru(4), outer=PPO(num_minibatches=2))
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 8), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> bool(metrics["is_finite"]), sorted(metrics)  # doctest: +NORMALIZE_WHITESPACE
    (True, ['entropy', 'grad_norm', 'is_finite', 'loss', 'num_env_steps', 'return', 'total', 'value_loss'])
    >>> task = jax.tree.map(lambda leaf: leaf[0], tasks)
    >>> carry = learner.adapt(jax.random.key(3), state.meta_params, task)
    >>> agent = learner.agent(state.meta_params, carry)
    >>> rollout(jax.random.key(4), trial(family.environment), *agent, task)[1].reward.shape
    (10,)
    """
    check_family("family", family)
    num_eval_episodes = num_episodes if num_eval_episodes is None else num_eval_episodes
    check_trials(num_episodes, num_eval_episodes, num_exploration_episodes)
    check_instance("advantages", advantages, Advantages)
    check_policy_step("outer", outer)
    optimizer = chosen_optimizer(optimizer, optax.adam(1e-3))
    check_max_grad_norm(max_grad_norm)
    of_entropy = entropy_schedule(entropy_weight)
    normalization = chosen_normalization(normalization)
    space = family.environment.action_space
    check_action_mask(action_mask, space)
    check_metrics_fn(metrics_fn, "T")
    train_trial = trial(family.environment, num_episodes=num_episodes)
    eval_trial = trial(family.environment, num_episodes=num_eval_episodes)
    actor = gru(128) if actor is None else actor
    critic = actor if critic is None else critic
    check_cores(actor, critic, truncation, train_trial, eval_trial)

    network = policy_network(space, actor, truncation, action_mask)
    encode = partial(_encode, train_trial, normalization, action_mask, space)
    parts = Parts(
        train_trial,
        eval_trial,
        num_episodes,
        num_eval_episodes,
        num_exploration_episodes,
        partial(_num_inputs, family, train_trial, encode),
        network,
        recurrent_value(critic, truncation=truncation),
        partial(_act, network, encode),
        partial(actor.start, ()),
        outer,
        optimizer,
        max_grad_norm,
        advantages,
        of_entropy,
        normalization,
        metrics_fn,
    )
    init, update = partial(_init, parts), partial(_update, parts)
    at_test = partial(_adapt, parts), partial(_evaluate, parts), partial(_agent, parts)
    return MetaLearner(init, update, *at_test, unit="episode")


def _init(parts: Parts, key: jax.Array) -> MetaState:
    actor_key, critic_key = jax.random.split(key)
    moments = parts.normalization.init()
    num_inputs = parts.num_inputs(moments)
    params = {"actor": parts.actor.init(actor_key, num_inputs), "critic": parts.critic.init(critic_key, num_inputs)}
    meta_params = MetaParams(params, constants=moments)
    if not isinstance(parts.outer, TRPO):
        return initial_state(parts.optimizer, meta_params)
    of_actor, of_critic = trust_region(parts.outer).init(params["actor"]), parts.optimizer.init(params["critic"])
    return MetaState(jnp.int32(0), meta_params, {"actor": of_actor, "critic": of_critic}, jnp.int32(0))


def _update(parts: Parts, key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
    play_key, learn_key = jax.random.split(key)

    # A trial of each task, by the policy that there is.
    experience, moments, played, of_user = play(parts, play_key, state.meta_params, tasks)

    # One step in a trust region, or the optimizer's, on all of them.
    entropy_weight = jnp.asarray(parts.entropy_weight(state.step))
    learn = learn_by_trust_region if isinstance(parts.outer, TRPO) else learn_by_gradients
    params, opt_state, terms = learn(parts, learn_key, state, experience, entropy_weight)
    stepped = counted(state, MetaParams(params, constants=moments), opt_state, terms["is_finite"])
    return stepped, beside(of_user, played | terms)


def play(
    parts: Parts, key: jax.Array, meta_params: MetaParams, tasks: PyTree
) -> tuple[Experience, PyTree, Metrics, Metrics]:
    """A trial of each task, and what is to be learned from it; the moments with it; the learner's metrics and the
    user's."""
    keys, moments = jax.random.split(key, check_stacked("tasks", tasks)), meta_params.constants

    def run(meta_params: MetaParams, per_task: tuple[jax.Array, PyTree]) -> tuple[Transition, jax.Array, PyTree]:
        key, task = per_task
        played = rollout(key, parts.train_trial, *_agent(parts, meta_params), task)[1]
        value = parts.critic.apply(meta_params.params["critic"], played.extras.x)
        of_trial = measured(parts.normalization, played, parts.advantages.discount, parts.num_exploration_episodes)
        return played, value, (of_trial, metrics_of(parts.metrics_fn, played))

    *by_trial, (of_trials, of_user) = for_each_task(run, meta_params, (keys, tasks))
    trials, value = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), by_trial)  # [T, N], as networks take them
    paid = trials._replace(reward=parts.normalization.pay(moments, trials.reward))
    advantage, target = trial_advantages(paid, value, parts.advantages, parts.num_exploration_episodes)
    experience = Experience(trials.extras.x, trials.action, trials.extras.log_prob, advantage, target, trials.mask)
    own = told_of(trials, parts.num_episodes)
    moments = parts.normalization.merge(moments, of_trials)
    return known_everywhere((experience, moments, own, jax.tree.map(jnp.mean, of_user)))


def told_of(trials: Transition, num_episodes: int) -> Metrics:
    """What is reported of trials `[T, N]`."""
    total = jnp.mean(jnp.sum(trials.reward, axis=0))
    return {"return": total / num_episodes, "total": total, "num_env_steps": jnp.sum(trials.mask)}


def measured(
    normalization: Normalization, played: Transition, discount: float, num_exploration_episodes: int = 0
) -> PyTree:
    """The moments of one trial."""
    reward = counted_reward(played, num_exploration_episodes)
    to_go = discounted_returns(reward, is_last_of(played), discount=discount)
    return normalization.measure(played.inputs.observation, played.reward, to_go, played.mask)


def counted_reward(trials: Transition, num_exploration_episodes: int) -> jax.Array:
    """The rewards `[T, ...]`, 0 in the first episodes of a trial."""
    return jnp.where(episode_of(trials) >= num_exploration_episodes, trials.reward, 0)


def is_last_of(trials: Transition) -> jax.Array:
    """Whether each step `[T, ...]` is the last that is played of its trial."""
    return trials.mask & ~jnp.append(trials.mask[1:], jnp.zeros_like(trials.mask[:1]), axis=0)


def trial_advantages(
    trials: Transition, value: jax.Array, options: Advantages, num_exploration_episodes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Advantages, and what values are fitted to, both `[T, N]`: one return goes through the ends of episodes, and ends
    with the trial. The rewards of the first `num_exploration_episodes` do not count."""
    reward, is_last = counted_reward(trials, num_exploration_episodes), is_last_of(trials)
    advantage, target = gae(
        reward,
        value,
        jnp.append(value[1:], value[:1], axis=0),
        is_last,
        jnp.zeros_like(is_last),
        discount=options.discount,
        lambda_=options.gae_lambda,
    )
    if options.normalize:
        to_go = discounted_returns(reward, is_last, discount=options.discount)
        advantage, _ = normalized(advantage, trials.mask, to_go)
    return advantage, target


def policy_loss(
    actor: RecurrentNetwork, params: Params, batch: Experience, outer: PolicyStep, entropy_weight: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The surrogate loss of the actor, less its entropy."""
    distribution = actor.apply(params, batch.x)
    terms = outer.terms(distribution.log_prob(batch.action), batch.log_prob, batch.advantage)
    entropy = masked_mean(distribution.entropy(), batch.mask)
    return masked_mean(terms, batch.mask) - entropy_weight * entropy, {"entropy": entropy}


def value_loss(critic: RecurrentNetwork, params: Params, batch: Experience) -> tuple[jax.Array, Metrics]:
    """The squared error of the critic."""
    loss = masked_mean((critic.apply(params, batch.x) - batch.target) ** 2, batch.mask)
    return loss, {"value_loss": loss}


def mean_over_steps(fn: Callable, params: PyTree, batch: Experience) -> PyTree:
    """`fn(params, batch)`, the means over the steps of all trials, of which each device has its share."""
    return mean_over_shares(fn, params, batch, axis=1, weight_fn=lambda share: jnp.sum(share.mask))


Learned = tuple[Params, PyTree, Metrics]


class ByGradients(Protocol):
    """What of a learner's parts learns by gradients: of RL², and of what else acts in whole trials."""

    @property
    def actor(self) -> RecurrentNetwork: ...
    @property
    def critic(self) -> RecurrentNetwork: ...
    @property
    def outer(self) -> PolicyStep: ...
    @property
    def optimizer(self) -> optax.GradientTransformation: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def advantages(self) -> Advantages: ...


def learn_by_gradients(
    parts: ByGradients, key: jax.Array, state: MetaState, experience: Experience, entropy_weight: jax.Array
) -> Learned:
    """The optimizer's steps of actor and critic, as PPO makes them: L_policy + c L_value."""

    def loss_fn(meta_params: MetaParams, batch: Experience) -> tuple[jax.Array, Metrics]:
        params = meta_params.params
        of_policy, entropy = policy_loss(parts.actor, params["actor"], batch, parts.outer, entropy_weight)
        of_value, metrics = value_loss(parts.critic, params["critic"], batch)
        return of_policy + parts.advantages.value_weight * of_value, metrics | entropy

    def gradient_fn(meta_params: MetaParams, batch: Experience) -> tuple[tuple[jax.Array, Metrics], MetaParams]:
        loss, grads = mean_over_steps(jax.value_and_grad(loss_fn, has_aux=True), meta_params, batch)
        return loss, MetaParams({name: clipped(of, parts.max_grad_norm) for name, of in grads.params.items()})

    meta_params, opt_state, curves = descend(
        key,
        parts.optimizer,
        gradient_fn,
        learned(state.meta_params),
        state.opt_state,
        experience,
        axis=1,
        num_epochs=parts.outer.num_epochs,
        num_minibatches=parts.outer.num_minibatches,
    )
    return meta_params.params, opt_state, of_update(curves)


def learn_by_trust_region(
    parts: Parts, key: jax.Array, state: MetaState, experience: Experience, entropy_weight: jax.Array
) -> Learned:
    """TRPO's step of the actor on all trials, and the optimizer's steps of the critic."""
    params, outer = state.meta_params.params, parts.outer
    assert isinstance(outer, TRPO)
    critic, of_critic, fitted = fit_critic(parts, key, params["critic"], state.opt_state["critic"], experience)

    of_steps = lambda params, batch: policy_loss(parts.actor, params, batch, outer, entropy_weight)
    outputs_of = shared_out(parts.actor.apply, axis=1)
    actor, of_actor, climbed = descend(
        key,
        trust_region(outer),
        partial(mean_over_steps, jax.value_and_grad(of_steps, has_aux=True)),
        params["actor"],
        state.opt_state["actor"],
        experience,
        axis=1,
        num_epochs=1,
        num_minibatches=1,
        loss_fn=lambda params: (mean_over_steps(of_steps, params, experience)[0], outputs_of(params, experience.x)),
        kl_fn=lambda old, new: masked_mean(old.kl(new), experience.mask),
    )
    of_step = of_update(climbed)
    is_finite = fitted["is_finite"] & of_step["is_finite"]
    metrics = fitted | of_step | kl_of(of_actor) | {"is_finite": is_finite}
    return {"actor": actor, "critic": critic}, {"actor": of_actor, "critic": of_critic}, metrics


def fit_critic(parts: Parts, key: jax.Array, params: Params, opt_state: PyTree, experience: Experience) -> Learned:
    """The optimizer's steps of the critic alone."""
    assert isinstance(parts.outer, TRPO)

    def gradient_fn(params: Params, batch: Experience) -> tuple[tuple[jax.Array, Metrics], Params]:
        of_steps = jax.value_and_grad(partial(value_loss, parts.critic), has_aux=True)
        loss, grads = mean_over_steps(of_steps, params, batch)
        return loss, clipped(grads, parts.max_grad_norm)

    params, opt_state, curves = descend(
        key,
        parts.optimizer,
        gradient_fn,
        params,
        opt_state,
        experience,
        axis=1,
        num_epochs=parts.outer.num_critic_epochs,
        num_minibatches=parts.outer.num_critic_minibatches,
    )
    return params, opt_state, of_update(curves)


def clipped(grads: Params, max_norm: float | None) -> Params:
    """The gradient, no longer than `max_norm`.

    >>> clipped(jnp.array([3.0, 4.0]), 2.5).tolist()
    [1.5, 2.0]
    """
    if max_norm is None:
        return grads
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda g: g * jnp.minimum(1, max_norm / (norm + 1e-12)).astype(g.dtype), grads)


def _adapt(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> PyTree:
    """What the policy remembers at the end of a trial."""
    return rollout(key, parts.eval_trial, *_agent(parts, meta_params), task)[0]


def _evaluate(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
    _, played = rollout(key, parts.eval_trial, *_agent(parts, meta_params), task)
    of_user = {name: jnp.asarray(value)[None] for name, value in metrics_of(parts.metrics_fn, played).items()}
    returns = episode_returns(played, parts.num_eval_episodes)
    return beside(of_user, {"return": returns, "total": jnp.sum(played.reward, keepdims=True)})


def _agent(parts: Parts, meta_params: MetaParams, adapted: PyTree = None) -> Agent:
    """At the beginning of a trial, or going on from what `adapt` returned."""
    check_meta_params(meta_params)
    carry = parts.start() if adapted is None else adapted
    return Agent(parts.policy, (meta_params.constants, meta_params.params["actor"]), carry)


def entropy_schedule(entropy_weight: float | optax.Schedule) -> optax.Schedule:
    if callable(entropy_weight):
        return entropy_weight
    check_number("entropy_weight", entropy_weight)
    return lambda step: entropy_weight


def policy_network(
    space: Discrete | Continuous, actor: Recurrent, truncation: int | None, action_mask: ActionMask | None
) -> RecurrentNetwork:
    """Of a mask, one that is told what `with_allowed` appends."""
    network = recurrent_policy(space, actor, truncation=truncation)
    if isinstance(space, Discrete) and action_mask is not None:
        return only_allowed(network, space.num_actions)
    return network


def _encode(
    of_trial: Trial,
    normalization: Normalization,
    action_mask: ActionMask | None,
    space: Discrete | Continuous,
    moments: PyTree,
    inputs: Inputs,
) -> jax.Array:
    """What networks look at, `[D]`: the inputs through the door, and which actions there are."""
    return with_allowed(of_trial.encode(look(normalization, moments, inputs)), inputs, action_mask, space)


def with_allowed(
    x: jax.Array, inputs: Inputs, action_mask: ActionMask | None, space: Discrete | Continuous
) -> jax.Array:
    """And which actions there are, if there is a mask."""
    if action_mask is None or not isinstance(space, Discrete):
        return x
    return jnp.append(x, allowed_at(action_mask, inputs.observation, space.num_actions))


def _act(
    network: RecurrentNetwork, encode: Callable, key: jax.Array, params: PyTree, carry: PyTree, inputs: Inputs
) -> tuple[jax.Array, PyTree, Acted]:
    """The policy of (moments, parameters)."""
    moments, own = params
    return acting(network, partial(encode, moments))(key, own, carry, inputs)


def _num_inputs(family: Family, of_trial: Trial, encode: Callable, moments: PyTree) -> int:
    encoded = lambda key: encode(moments, of_trial.reset(key, family.train.sample(key, family.train.data))[0])
    return jax.eval_shape(encoded, jax.random.key(0)).shape[0]


def check_trials(num_episodes: int, num_eval_episodes: int, num_exploration_episodes: int) -> None:
    check_integer("num_episodes", num_episodes, minimum=1)
    check_integer("num_eval_episodes", num_eval_episodes, minimum=1)
    check_integer("num_exploration_episodes", num_exploration_episodes, minimum=0)
    if num_exploration_episodes >= num_episodes:
        raise ValueError(f"num_exploration_episodes must be less than num_episodes, got {num_exploration_episodes}")


def check_max_grad_norm(max_grad_norm: float | None) -> None:
    if max_grad_norm is not None:
        check_number("max_grad_norm", max_grad_norm, minimum=1e-12)


def check_cores(
    actor: Recurrent, critic: Recurrent, truncation: int | None, train_trial: Trial, eval_trial: Trial
) -> None:
    num_steps = train_trial.num_steps
    check_core("actor", actor, max(num_steps, eval_trial.num_steps))
    check_core("critic", critic, num_steps)
    if truncation is not None:
        check_integer("truncation", truncation, minimum=1)
        if truncation < num_steps and num_steps % truncation:
            raise ValueError(f"truncation must divide the trial's {num_steps} steps, got {truncation}")
