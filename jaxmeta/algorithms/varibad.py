"""VariBAD: a policy that is told what is believed of the task, and a belief that is learned by what it predicts.

    q(m | τ_:t) = N(μ_t, σ_t²),   (μ_t, σ_t) = h_φ(o_0, a_0, r_1, o_1, .., o_t)      a recurrent encoder
    ELBO_t = E_{m ~ q(m | τ_:t)}[Σ_i log p_ψ(r_{i+1}, o_{i+1} | o_i, a_i, m)] − λ KL(q(m | τ_:t) ‖ q(m | τ_:t−1))
    max_{φ, ψ}  E mean_t ELBO_t                                                     over the i of the whole trial
    a_t ~ π_θ(· | o_t, μ_t, log σ_t²)                                               PPO, over the whole trial, as RL²

At each step the belief has to predict the whole trial, what is to come too, of which only what is past was seen: it
says what the task may be, and how far that is known. q(m | τ_:−1) is N(0, 1). The policy learns from beliefs as from
observations: no gradient of it goes into the encoder.

| variant                                 | how                                                                      |
|-----------------------------------------|--------------------------------------------------------------------------|
| VariBAD                                 | `varibad(family, mlp_decoder(family), num_episodes=4)`                   |
| tasks that differ in their dynamics     | `mlp_decoder(family, with_next_observation=True)`                        |
| a hidden state that is told by rewards  | `rl2(family, num_episodes=4)`: no belief, and the policy's gradient alone |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.decoders import Decoder, Step, check_decoder, steps_of
from jaxmeta.algorithms.rl2 import (
    Experience,
    check_cores,
    check_max_grad_norm,
    check_trials,
    entropy_schedule,
    learn_by_gradients,
    measured,
    policy_network,
    told_of,
    trial_advantages,
    with_allowed,
)
from jaxmeta.checks import check_instance, check_integer, check_meta_params, check_number, check_stacked
from jaxmeta.devices import known_everywhere
from jaxmeta.nn.recurrent import Recurrent, feed_forward, gru
from jaxmeta.outer import chosen_optimizer, counted, for_each_task, mean_over_shares
from jaxmeta.rl.action_masks import ActionMask, check_action_mask
from jaxmeta.rl.distributions import Gaussian
from jaxmeta.rl.env import Environment, Family, check_family, flatten
from jaxmeta.rl.metrics import MetricsFn, beside, check_metrics_fn, metrics_of
from jaxmeta.rl.observe import Normalization, chosen_normalization, look
from jaxmeta.rl.on_policy import PPO, Advantages, descend, masked_mean, of_update
from jaxmeta.rl.recurrent import RecurrentNetwork, check_core, recurrent_belief, recurrent_value
from jaxmeta.rl.rollout import Agent, Policy, Transition, episode_of, episode_returns, rollout
from jaxmeta.rl.trials import Inputs, Trial, trial
from jaxmeta.types import MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """How beliefs are learned from the trials that were played.

    Raises:
      ValueError: a number is wrong.

    >>> ELBO(num_steps=8).kl_weight
    1.0
    """

    kl_weight: float = 1.0
    """λ ≥ 0, of what a belief says beyond the one before it, in nats; the authors' gridworld has 0.01."""
    num_steps: int | None = None
    """Steps t of a trial from whose beliefs it is predicted, drawn anew in each update; all of them if None."""
    num_kept: int = 1000
    """C, trials that are kept of all that were ever played, each as likely; as many as an update's tasks are drawn of
    them and learned from beside the new ones. None if 0: then what the policy no longer does is soon forgotten."""
    num_epochs: int = 1
    """How often all trials are learned from, at least 1."""
    num_minibatches: int = 1
    """Steps of the optimizer in an epoch, each on its share of the trials. It divides the number of tasks."""

    def __post_init__(self) -> None:
        check_number("kl_weight", self.kl_weight)
        check_integer("num_kept", self.num_kept, minimum=0)
        check_integer("num_epochs", self.num_epochs, minimum=1)
        check_integer("num_minibatches", self.num_minibatches, minimum=1)
        if self.num_steps is not None:
            check_integer("num_steps", self.num_steps, minimum=1)


class Carry(NamedTuple):
    """What is carried through a trial: what encoder and actor remember, and what was last believed, `[L]`."""

    encoder: PyTree
    actor: PyTree
    belief: Gaussian


class Believed(NamedTuple):
    """What is kept of a step, a transition's `extras`.

    Attributes:
      x: what the actor was told, observation and belief
      log_prob: log π of the action
      seen: what the encoder was told
      belief: q(m | what was seen up to here), a Gaussian over `[L]`
    """

    x: jax.Array
    log_prob: jax.Array
    seen: jax.Array
    belief: Gaussian


class Raw(NamedTuple):
    """A trial `[T]`, or trials `[N, T]`, as it was played, in the environment's units; `steps` are those of `steps_of`,
    and `mask` says which of them were played."""

    inputs: Inputs
    steps: Step
    mask: jax.Array


class Played(NamedTuple):
    """A trial `[T]`, or trials `[N, T]`, as beliefs are learned from it: what the encoder sees, what the decoder is to
    say, and which steps were played."""

    seen: jax.Array
    steps: Step
    mask: jax.Array


class Kept(NamedTuple):
    """Trials `[C, T]`, a sample of all that were ever played, and how many those were."""

    trials: Raw
    num_played: jax.Array


class Parts(NamedTuple):
    """What a learner is made of, all of it checked; see the arguments of `varibad`.

    `encoder` and `decoder`, `actor` and `critic` are the networks that learn, `policy` is how encoder and actor act, by
    (moments, their parameters), from the carry `start()`. `see` is what the encoder is given, (moments, inputs) ->
    `[D]`, and `tell` what actor and critic are, (moments, inputs, belief) -> `[D']`.
    """

    family: Family
    train_trial: Trial
    eval_trial: Trial
    num_episodes: int
    num_eval_episodes: int
    encoder: RecurrentNetwork
    decoder: Decoder
    elbo: ELBO
    model_optimizer: optax.GradientTransformation
    actor: RecurrentNetwork
    critic: RecurrentNetwork
    see: Callable[[PyTree, Inputs], jax.Array]
    tell: Callable[[PyTree, Inputs, Gaussian], jax.Array]
    policy: Policy
    start: Callable[[], Carry]
    outer: PPO
    optimizer: optax.GradientTransformation
    max_grad_norm: float | None
    advantages: Advantages
    entropy_weight: optax.Schedule
    normalization: Normalization
    metrics_fn: MetricsFn | None


def varibad(
    family: Family,
    decoder: Decoder,
    *,
    num_episodes: int = 1,
    num_eval_episodes: int | None = None,
    encoder: Recurrent | None = None,
    actor: Recurrent | None = None,
    critic: Recurrent | None = None,
    truncation: int | None = None,
    elbo: ELBO = ELBO(),
    advantages: Advantages = Advantages(gae_lambda=0.95),
    outer: PPO = PPO(num_minibatches=8),
    optimizer: optax.GradientTransformation | None = None,
    model_optimizer: optax.GradientTransformation | None = None,
    max_grad_norm: float | None = 0.5,
    entropy_weight: float | optax.Schedule = 0.0,
    normalization: Normalization | None = None,
    action_mask: ActionMask | None = None,
    metrics_fn: MetricsFn | None = None,
) -> MetaLearner:
    """Meta-learns what to believe of a task, and a policy that acts on it: approximately Bayes-optimally.

    Each `update` plays a trial of each task, takes steps of encoder and decoder up the ELBO, and PPO's of actor and
    critic on the beliefs that were acted on.

    Zintgraf, Shiarlis, Igl, Schulze, Gal, Hofmann, Whiteson, "VariBAD: A Very Good Method for Bayes-Adaptive Deep RL
    via Meta-Learning" (2020), https://arxiv.org/abs/1910.08348

    Args:
      family: whose environment's params are the tasks. `update` plays one trial of each task that it is given.
      decoder: see `mlp_decoder`; its `latent_size` is that of beliefs.
      num_episodes: episodes of a trial, at least 1.
      num_eval_episodes: episodes of a trial in `adapt` and `evaluate`; `num_episodes` if None.
      encoder: the recurrent network of beliefs, `nn.gru(64)` if None.
      actor: the network of the policy, which is told observation, time where it is observed, and belief;
        `nn.feed_forward(64)` if None. A recurrent one remembers beside the belief.
      critic: that of the value, with parameters of its own; of the actor's kind if None.
      truncation: environment steps that the encoder's gradients flow back at most, in blocks of this length, a divisor
        of a trial's; through the whole trial if None.
      elbo: how beliefs are learned.
      advantages: over the whole trial, as in `rl2`.
      outer: `PPO(...)`, eight minibatches by default.
      optimizer: steps actor and critic; Adam with rate 1e-3 if None.
      model_optimizer: steps encoder and decoder; Adam with rate 1e-3 if None.
      max_grad_norm: the Euclidean norm > 0 that the actor's and the critic's gradient are clipped to, each by itself.
        None does not clip.
      entropy_weight: ≥ 0, what a nat of the policy's entropy is worth; or an optax schedule of it, (step of `update`)
        -> weight.
      normalization: of observations and rewards, `rl.running_moments(family)`: of what encoder, actor and critic see,
        of what the decoder has to say, whose `std` is then in these units, and of rewards that are learned from. For
        one-hot states `rl.running_moments(family, observations=False)`. They are taken as they are if None.
      action_mask: (observation, as the environment gives it) -> `[A]` booleans, which of the discrete actions there
        are, as in `rl2`; all if None.
      metrics_fn: (transitions of a trial, `[T]`) -> {name: scalar}, what `update` and `evaluate` report beside their
        own; `transitions.extras.belief` are the beliefs.

    Returns:
      A `MetaLearner`. `evaluate` gives {"return": [E], "total": [1], "belief_std": [E]} of E episodes: the undiscounted
      sum of rewards of each, of all of them, and the geometric mean of the belief's deviations where each begins.
      `update` reports the means of the former over episodes and trials, `num_env_steps`, and of the model "elbo",
      "reconstruction" and "kl", means over steps and trials, in nats. `adapt` gives what is carried after a trial, its
      `belief` that at the last step; from it `agent(meta_params, carry)` goes on; `agent(meta_params)` begins a trial.
      An agent's transitions keep the beliefs, `extras.belief`.

    Raises:
      ValueError: an argument is wrong; while tracing, the tasks are not stacked, `num_minibatches` does not divide
        their number, or `metrics_fn` returns something else.

    >>> from jaxmeta.algorithms import mlp_decoder
    >>> from jaxmeta.rl import families
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> decoder = mlp_decoder(family, latent_size=3, reward="bernoulli")
    >>> learner = varibad(family, decoder, encoder=gru(4), outer=PPO(num_minibatches=2))
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 8), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> bool(metrics["is_finite"]), round(float(metrics["reconstruction"]) / 10, 1)  # nats a pull, log(1/2) at first
    (True, -0.7)
    >>> task = jax.tree.map(lambda leaf: leaf[0], tasks)
    >>> agent = learner.agent(state.meta_params)
    >>> rollout(jax.random.key(4), trial(family.environment), *agent, task)[1].extras.belief.mean.shape
    (10, 3)
    """
    _check(family, decoder, elbo, advantages, outer, max_grad_norm, action_mask, metrics_fn)
    num_eval_episodes = num_episodes if num_eval_episodes is None else num_eval_episodes
    check_trials(num_episodes, num_eval_episodes, 0)
    optimizer, normalization = chosen_optimizer(optimizer, optax.adam(1e-3)), chosen_normalization(normalization)
    model_optimizer = chosen_optimizer(model_optimizer, optax.adam(1e-3), name="model_optimizer")
    environment = family.environment
    train_trial, eval_trial = (trial(environment, num_episodes=n) for n in (num_episodes, num_eval_episodes))
    encoder, actor, critic = _chosen_cores(encoder, actor, critic, truncation, train_trial, eval_trial)
    _check_num_steps(elbo, train_trial.num_steps)
    of_belief = recurrent_belief(encoder, decoder.latent_size, truncation=truncation)
    of_policy = policy_network(environment.action_space, actor, None, action_mask)
    see = lambda moments, inputs: train_trial.encode(look(normalization, moments, inputs))
    tell = partial(what_is_told, environment, normalization, action_mask)
    parts = Parts(
        family,
        train_trial,
        eval_trial,
        num_episodes,
        num_eval_episodes,
        of_belief,
        decoder,
        elbo,
        model_optimizer,
        of_policy,
        recurrent_value(critic),
        see,
        tell,
        partial(act_on_belief, see, tell, of_belief, of_policy),
        partial(_start, encoder, actor, decoder.latent_size),
        outer,
        optimizer,
        max_grad_norm,
        advantages,
        entropy_schedule(entropy_weight),
        normalization,
        metrics_fn,
    )
    at_test = partial(_adapt, parts), partial(_evaluate, parts), partial(_agent, parts)
    return MetaLearner(partial(_init, parts), partial(_update, parts), *at_test, unit="episode")


def _chosen_cores(
    encoder: Recurrent | None,
    actor: Recurrent | None,
    critic: Recurrent | None,
    truncation: int | None,
    train_trial: Trial,
    eval_trial: Trial,
) -> tuple[Recurrent, Recurrent, Recurrent]:
    """Those that are given or their defaults, which fit the trials."""
    encoder = gru(64) if encoder is None else encoder
    actor = feed_forward(64) if actor is None else actor
    critic = actor if critic is None else critic
    check_core("encoder", encoder, max(train_trial.num_steps, eval_trial.num_steps))
    check_cores(actor, critic, truncation, train_trial, eval_trial)
    return encoder, actor, critic


def _init(parts: Parts, key: jax.Array) -> MetaState:
    policy_key, encoder_key, decoder_key = jax.random.split(key, 3)
    actor_key, critic_key = jax.random.split(policy_key)
    moments = parts.normalization.init()
    num_seen, num_told = _num_inputs(parts, moments)
    policy = {"actor": parts.actor.init(actor_key, num_told), "critic": parts.critic.init(critic_key, num_told)}
    model = {"encoder": parts.encoder.init(encoder_key, num_seen), "decoder": parts.decoder.init(decoder_key)}
    opt_state = {"policy": parts.optimizer.init(MetaParams(policy)), "model": parts.model_optimizer.init(model)}
    meta_params = MetaParams(policy | model, constants=moments)
    kept = nothing_kept(parts, meta_params) if parts.elbo.num_kept else ()
    return MetaState(jnp.int32(0), meta_params, opt_state, jnp.int32(0), kept)


def _update(parts: Parts, key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
    play_key, keep_key, model_key, policy_key = jax.random.split(key, 4)

    # A trial of each task, by the beliefs and the policy that there are.
    played, experience, moments, told, of_user = play(parts, play_key, state.meta_params, tasks)

    # Steps up the ELBO, of what the beliefs are, on these trials and on earlier ones, as the next policy sees them.
    kept = state.carry
    if parts.elbo.num_kept:
        kept, earlier = keep(keep_key, kept, played)
        played = jax.tree.map(lambda *trials: jnp.concatenate(trials), played, earlier)
    model, of_model, believed = learn_beliefs(parts, model_key, state, as_seen(parts, moments, played))

    # Steps of PPO, on the beliefs that were acted on.
    policy = state._replace(meta_params=MetaParams(_of(state, "actor", "critic")), opt_state=state.opt_state["policy"])
    entropy_weight = jnp.asarray(parts.entropy_weight(state.step))
    params, of_policy, learned = learn_by_gradients(parts, policy_key, policy, experience, entropy_weight)

    is_finite = learned["is_finite"] & believed.pop("is_finite")
    opt_state = {"policy": of_policy, "model": of_model}
    meta_params = MetaParams(params | model, constants=moments)
    stepped = counted(state._replace(carry=kept), meta_params, opt_state, is_finite)
    return stepped, beside(of_user, told | believed | learned | {"is_finite": is_finite})


def _of(state: MetaState, *names: str) -> dict[str, Params]:
    return {name: state.meta_params.params[name] for name in names}


# Playing.


def act_on_belief(
    see: Callable,
    tell: Callable,
    encoder: RecurrentNetwork,
    actor: RecurrentNetwork,
    key: jax.Array,
    params: tuple[PyTree, Params],
    carry: Carry,
    inputs: Inputs,
) -> tuple[jax.Array, Carry, Believed]:
    """As an `rl.Policy` of (moments, parameters): see, believe, and act on observation and belief."""
    moments, own = params
    seen = see(moments, inputs)
    of_encoder, belief = encoder.step(own["encoder"], carry.encoder, seen)
    x = tell(moments, inputs, belief)
    of_actor, distribution = actor.step(own["actor"], carry.actor, x)
    action = distribution.sample(key)
    return action, Carry(of_encoder, of_actor, belief), Believed(x, distribution.log_prob(action), seen, belief)


def what_is_told(
    environment: Environment,
    normalization: Normalization,
    action_mask: ActionMask | None,
    moments: PyTree,
    inputs: Inputs,
    belief: Gaussian,
) -> jax.Array:
    """What actor and critic are told: the observation, the time where it is observed, μ and log σ², and which actions
    there are where there is a mask."""
    time = [inputs.time / environment.max_steps] if environment.observe_time else []
    observation = normalization.observe(moments, inputs.observation)
    x = flatten((observation, *time, belief.mean, 2 * belief.log_std))
    return with_allowed(x, inputs, action_mask, environment.action_space)


def play(
    parts: Parts, key: jax.Array, meta_params: MetaParams, tasks: PyTree
) -> tuple[Raw, Experience, PyTree, Metrics, Metrics]:
    """A trial of each task: what beliefs are learned from, and the policy; the moments with it; the learner's metrics
    and the user's."""
    keys, moments = jax.random.split(key, check_stacked("tasks", tasks)), meta_params.constants
    played, *by_trial, (of_trials, of_user) = for_each_task(partial(play_one, parts), meta_params, (keys, tasks))
    trials, value = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), by_trial)  # [T, N], as networks take them
    paid = trials._replace(reward=parts.normalization.pay(moments, trials.reward))
    judged = trial_advantages(paid, value, parts.advantages)
    experience = Experience(trials.extras.x, trials.action, trials.extras.log_prob, *judged, trials.mask)
    moments = parts.normalization.merge(moments, of_trials)
    own = told_of(trials, parts.num_episodes)
    return known_everywhere((played, experience, moments, own, jax.tree.map(jnp.mean, of_user)))


def play_one(
    parts: Parts, meta_params: MetaParams, per_task: tuple[jax.Array, PyTree]
) -> tuple[Raw, Transition, jax.Array, tuple[PyTree, Metrics]]:
    """A trial `[T]`, twice, what the critic says there, and its moments with the user's metrics."""
    key, task = per_task
    trial = rollout(key, parts.train_trial, *_agent(parts, meta_params), task)[1]
    raw = Raw(trial.inputs, steps_of(trial, parts.family.environment.action_space), trial.mask)
    value = parts.critic.apply(meta_params.params["critic"], trial.extras.x)
    of_trial = measured(parts.normalization, trial, parts.advantages.discount)
    return raw, trial, value, (of_trial, metrics_of(parts.metrics_fn, trial))


# Beliefs.


def nothing_kept(parts: Parts, meta_params: MetaParams) -> Kept:
    """Room for C trials."""
    tasks = parts.family.train
    one = lambda key: play_one(parts, meta_params, (key, tasks.sample(key, tasks.data)))[0]
    room = lambda leaf: jnp.zeros((parts.elbo.num_kept, *leaf.shape), leaf.dtype)
    return Kept(jax.tree.map(room, jax.eval_shape(one, jax.random.key(0))), jnp.int32(0))


def keep(key: jax.Array, kept: Kept, played: Raw) -> tuple[Kept, Raw]:
    """With trials `[N, T]` among them, unless they are not finite; and as many that are drawn of all that are kept.

    Each that was ever played is kept with the same probability: the n-th takes the place of another with C / n. Vitter,
    "Random Sampling with a Reservoir" (1985), https://doi.org/10.1145/3147.3165
    """
    place_key, draw_key = jax.random.split(key)
    num_new, capacity = len(played.mask), len(kept.trials.mask)
    number = kept.num_played + jnp.arange(num_new)
    anywhere = jax.random.randint(place_key, (num_new,), 0, number + 1)
    all_finite = lambda trial: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trial)]))
    is_finite = jax.vmap(all_finite)(played)
    place = jnp.where(is_finite, jnp.where(number < capacity, number, anywhere), capacity)
    trials = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), kept.trials, played)
    is_there = jnp.any(trials.mask, axis=1)
    drawn = jax.random.categorical(draw_key, jnp.where(is_there, 0.0, -jnp.inf), shape=(num_new,))
    return Kept(trials, kept.num_played + num_new), jax.tree.map(lambda of: of[drawn], trials)


def as_seen(parts: Parts, moments: PyTree, trials: Raw) -> Played:
    """Trials `[N, T]` in units of the moments: what the decoder has to say, too."""
    each_step = lambda fn: jax.vmap(jax.vmap(partial(fn, moments)))
    steps, observe = trials.steps, each_step(parts.normalization.observe)
    steps = steps._replace(
        observation=observe(steps.observation),
        reward=parts.normalization.see(moments, steps.reward),
        next_observation=observe(steps.next_observation),
    )
    return Played(each_step(parts.see)(trials.inputs), steps, trials.mask)


def learn_beliefs(parts: Parts, key: jax.Array, state: MetaState, played: Played) -> tuple[Params, PyTree, Metrics]:
    """The optimizer's steps of encoder and decoder, on trials `[N, T]`."""
    keys = jax.random.split(key, len(played.mask) + 1)

    def loss_fn(params: Params, batch: tuple[jax.Array, Played]) -> tuple[jax.Array, Metrics]:
        of_trial = partial(elbo_of, params, encoder=parts.encoder, decoder=parts.decoder, options=parts.elbo)
        elbo, terms = jax.tree.map(jnp.mean, jax.vmap(of_trial)(*batch))
        return -elbo, terms

    params, opt_state, curves = descend(
        keys[0],
        parts.model_optimizer,
        partial(mean_over_shares, jax.value_and_grad(loss_fn, has_aux=True)),
        _of(state, "encoder", "decoder"),
        state.opt_state["model"],
        (keys[1:], played),
        axis=0,
        num_epochs=parts.elbo.num_epochs,
        num_minibatches=parts.elbo.num_minibatches,
    )
    first = of_update(curves)
    told = {name: first[name] for name in ("reconstruction", "kl", "is_finite")}
    return params, opt_state, told | {"elbo": -first["loss"], "model_grad_norm": first["grad_norm"]}


def elbo_of(
    params: Params,
    key: jax.Array,
    played: Played,
    *,
    encoder: RecurrentNetwork,
    decoder: Decoder,
    options: ELBO,
) -> tuple[jax.Array, Metrics]:
    """The mean of ELBO_t over the steps of one trial `[T]`, with one sample of m for each.

    The KL is of all steps, the reconstruction of those that are drawn.
    """
    which_key, m_key = jax.random.split(key)
    belief = encoder.apply(params["encoder"], played.seen)
    before = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), belief)  # N(0, 1) at first
    kl = masked_mean(belief.kl(before), played.mask)

    which = some_steps(which_key, played.mask, options.num_steps)
    log_prob = decoder.log_prob(params["decoder"], belief.sample(m_key)[which], played.steps)  # [K, T]
    of_whole_trial = jnp.sum(jnp.where(played.mask[None], log_prob, 0), axis=1)
    reconstruction = masked_mean(of_whole_trial, played.mask[which])
    return reconstruction - options.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}


def some_steps(key: jax.Array, mask: jax.Array, number: int | None) -> jax.Array:
    """The indices of so many of the steps that were played, drawn without replacement; where they are fewer, of others
    too; of all steps if None.

    >>> sorted(some_steps(jax.random.key(0), jnp.array([True, True, False]), 2).tolist())
    [0, 1]
    """
    if number is None:
        return jnp.arange(len(mask))
    lots = jnp.where(mask, jax.random.uniform(key, mask.shape), -1)
    return jax.lax.top_k(lots, number)[1]


# A new task.


def _start(encoder: Recurrent, actor: Recurrent, latent_size: int) -> Carry:
    prior = Gaussian(jnp.zeros(latent_size), jnp.zeros(latent_size))
    return Carry(encoder.start(()), actor.start(()), prior)


def _adapt(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> Carry:
    """What is remembered and believed at the end of a trial."""
    return rollout(key, parts.eval_trial, *_agent(parts, meta_params), task)[0]


def _evaluate(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
    _, played = rollout(key, parts.eval_trial, *_agent(parts, meta_params), task)
    of_user = {name: jnp.asarray(value)[None] for name, value in metrics_of(parts.metrics_fn, played).items()}
    begins = jnp.searchsorted(episode_of(played), jnp.arange(parts.num_eval_episodes))
    own = {
        "return": episode_returns(played, parts.num_eval_episodes),
        "total": jnp.sum(played.reward, keepdims=True),
        "belief_std": jnp.exp(jnp.mean(played.extras.belief.log_std, axis=-1))[begins],
    }
    return beside(of_user, own)


def _agent(parts: Parts, meta_params: MetaParams, adapted: Carry | None = None) -> Agent:
    """At the beginning of a trial, or going on from what `adapt` returned."""
    check_meta_params(meta_params)
    params = {name: meta_params.params[name] for name in ("encoder", "actor")}
    return Agent(parts.policy, (meta_params.constants, params), parts.start() if adapted is None else adapted)


def _num_inputs(parts: Parts, moments: PyTree) -> tuple[int, int]:
    """Of the encoder, and of actor and critic."""
    tasks, (of_trial, prior) = parts.family.train, (parts.train_trial, parts.start().belief)

    def inputs(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, _ = of_trial.reset(key, tasks.sample(key, tasks.data))
        return parts.see(moments, first), parts.tell(moments, first, prior)

    seen, told = jax.eval_shape(inputs, jax.random.key(0))
    return len(seen), len(told)


def _check(
    family: Family,
    decoder: Decoder,
    elbo: ELBO,
    advantages: Advantages,
    outer: PPO,
    max_grad_norm: float | None,
    action_mask: ActionMask | None,
    metrics_fn: MetricsFn | None,
) -> None:
    check_family("family", family)
    check_decoder("decoder", decoder)
    check_instance("elbo", elbo, ELBO)
    check_instance("advantages", advantages, Advantages)
    check_instance("outer", outer, PPO)
    check_max_grad_norm(max_grad_norm)
    check_action_mask(action_mask, family.environment.action_space)
    check_metrics_fn(metrics_fn, "T")


def _check_num_steps(elbo: ELBO, num_steps: int) -> None:
    if elbo.num_steps is not None and elbo.num_steps > num_steps:
        raise ValueError(f"num_steps of elbo must be at most the {num_steps} of a trial, got {elbo.num_steps}")
