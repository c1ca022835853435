"""MAML for reinforcement learning: a policy from which a few policy-gradient steps learn a task.

    τ_k ~ π_{θ_k},  θ_{k+1} = θ_k − α ∇L(θ_k; τ_k)           the inner loop: E episodes, one step; K times, from θ_0 = θ
    θ ← θ + β ∇_θ mean_i E[R(τ'_i)],  τ' ~ π_{θ_K}           the outer loop, through the inner one

Episodes are played once, by the policy that is there; then the inner loop is run again on what was recorded, as a
function of θ, and that is differentiated. What is right about its second derivatives is the inner loss's choice, the
`estimator` of a `Surrogate`; what is done with the gradient is `outer`'s.

| the paper    | how                                                                                                   |
|--------------|-------------------------------------------------------------------------------------------------------|
| MAML         | `maml_rl(...)`: `outer=TRPO()`; as first published `Surrogate(estimator="biased")`                    |
| E-MAML       | `e_maml(...)`: `exploration_weight`, what was played before gets credit for what came of it           |
| ProMP        | `promp(...)`: `estimator="lvc"`, `outer=PPO(num_epochs=5, clip=0.3)`, `inner_kl_weight`               |
| DiCE         | `Surrogate(estimator="dice")`, `outer=VPG()`                                                          |
| FOMAML       | `meta_gradient=adapt.first_order()`                                                                   |
| ANIL         | `inner_optimizer=adapt.adapt_only(adapt.sgd(0.1), "head")`                                            |
| Meta-SGD     | `inner_optimizer=adapt.meta_sgd(0.1)`                                                                 |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.meta_gradients import check_meta_gradient
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.checks import (
    check_arguments,
    check_choice,
    check_init_fn,
    check_instance,
    check_integer,
    check_meta_params,
    check_number,
    check_params,
    check_stacked,
)
from jaxmeta.devices import known_everywhere
from jaxmeta.outer import chosen_optimizer, counted, for_each_task, initial_state, mean_over_tasks, shared_out
from jaxmeta.rl import objectives
from jaxmeta.rl.actors import Actor, PolicyFn, kl_between, log_prob_of
from jaxmeta.rl.env import Environment, check_environment, flatten
from jaxmeta.rl.metrics import MetricsFn, beside, check_metrics_fn, metrics_of
from jaxmeta.rl.observe import Normalization, chosen_normalization, looking
from jaxmeta.rl.on_policy import (
    ALIKE_SCALE,
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
from jaxmeta.rl.returns import discounted_returns, fit_linear_baseline, gae, linear_features
from jaxmeta.rl.rollout import Agent, Transition, rollout
from jaxmeta.rl.trials import Trial, trial
from jaxmeta.rl.trust_region import TrustRegionState, kl_of, trust_region
from jaxmeta.signatures import names_options_of
from jaxmeta.types import InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, learned

# Inner losses, term by term: (log π, log π of the policy that acted, advantage) -> [T, E].
ESTIMATORS: dict[str, Callable] = {
    "biased": lambda log_prob, old_log_prob, advantage: objectives.reinforce(log_prob, advantage),
    "lvc": objectives.importance_weighted,
    "dice": lambda log_prob, old_log_prob, advantage: objectives.loaded_dice(log_prob, advantage),
}


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """What the episodes before adaptation are to the outer loss.

    Raises:
      ValueError: a field is wrong.

    >>> Surrogate(estimator="dice").exploration_weight
    0.0
    """

    estimator: Literal["biased", "lvc", "dice"] = "lvc"
    """The inner loss, by what its Hessian keeps: log π · A, the importance ratio, or all of it."""
    exploration_weight: float = 0.0
    """≥ 0, of the credit that they get for the return that they lead to; E-MAML has 1, and more looks for what no
    episode found."""
    inner_kl_weight: float = 0.0
    """≥ 0, of KL(π_acted ‖ π_{θ_k}) in nats before each inner step, added to the outer loss; ProMP has 5e-4."""

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_number("exploration_weight", self.exploration_weight)
        check_number("inner_kl_weight", self.inner_kl_weight)


class Episodes(NamedTuple):
    """What is learned of: transitions, observations and rewards as `normalization` shows and pays them; advantages and
    the targets of values, `[T, E]`; `scale` is what advantages were divided by."""

    transitions: Transition
    advantage: jax.Array
    target: jax.Array
    scale: jax.Array


class Judged(NamedTuple):
    """A task's episodes after adaptation, and what they are to the credit of those before, see `credit_of`."""

    after: Episodes
    credit: jax.Array


class AdaptedPolicy(NamedTuple):
    """Parameters after adaptation, and the episodes that it took, `[K, T, E]`."""

    params: Params
    transitions: Transition


class Parts(NamedTuple):
    """What a learner is made of, all of it checked; see the arguments of `maml_rl`."""

    init_fn: InitFn
    actor: Actor
    episode: Trial
    inner_optimizer: InnerOptimizer
    num_inner_steps: int
    num_eval_steps: int
    num_episodes: int
    advantages: Advantages
    baseline: str
    surrogate: Surrogate
    outer: PolicyStep
    optimizer: optax.GradientTransformation
    normalization: Normalization
    metrics_fn: MetricsFn | None
    meta_gradient: adapt.MetaGradient
    microbatch: int | None


def maml_rl(
    init_fn: InitFn,
    apply_fn: PolicyFn,
    environment: Environment,
    *,
    inner_optimizer: InnerOptimizer | None = None,
    num_inner_steps: int = 1,
    num_eval_steps: int | None = None,
    num_episodes: int = 20,
    advantages: Advantages = Advantages(),
    baseline: Literal["linear", "none", "value"] = "linear",
    surrogate: Surrogate = Surrogate(),
    outer: PolicyStep = TRPO(),
    optimizer: optax.GradientTransformation | None = None,
    normalization: Normalization | None = None,
    metrics_fn: MetricsFn | None = None,
    meta_gradient: adapt.MetaGradient | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """MAML for reinforcement learning, its estimators and its outer loops by argument.

    Its meta-gradient for one inner step of rate α is (I + α ∇²J(θ)) ∇J(θ'), J the expected return of a task.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.3,
    https://arxiv.org/abs/1703.03400

    Args:
      init_fn: (key) -> params of the policy, such as `rl.mlp_policy(family).init`.
      apply_fn: (params, observation) -> distribution over actions, see `rl.distributions`; with `baseline="value"`
        (distribution, value). It sees one observation at a time.
      environment: whose params are the tasks. An episode ends where it terminates, or after `max_steps`.
      inner_optimizer: how to step inside, and which parameters adapt (see `jaxmeta.adapt`); `adapt.sgd(0.1)` if None.
      num_inner_steps: K, inner steps while meta-training, at least 1.
      num_eval_steps: inner steps of `adapt` and `evaluate`; `num_inner_steps` if None.
      num_episodes: E, episodes of a task that each inner step and the outer one learn from, at least 1.
      advantages: how actions are judged; γ = 0.99 and λ = 1 by default, normalised for each task and step.
      baseline: "linear" is fitted to the returns of each task and each step, for which the time limit is an end as any
        other; "value" is a value that the policy's network returns, learned and adapted with it, which bootstraps from
        the observation at the time limit; or "none".
      surrogate: the estimator of the inner loss, and what else the episodes before adaptation are to the outer loss.
      outer: `TRPO(...)`, `PPO(...)`, which runs the inner loop again in each of its steps, or `VPG()`.
      optimizer: what steps outside, with `PPO` and `VPG`; Adam with rate 1e-3 if None. `TRPO` has no rate.
      normalization: of observations and rewards, `rl.running_moments(family)`; they are taken as they are if None.
      metrics_fn: (transitions of E episodes, `[T, E]`) -> {name: scalar}, what `update` and `evaluate` report beside
        "return", the mean of the undiscounted sum of an episode's rewards; see `rl.Transition`.
      meta_gradient: how to differentiate the inner loop (see `jaxmeta.adapt`); `adapt.exact()` if None.
      microbatch: tasks that are differentiated at a time, a divisor of their number, see `outer.mean_over_tasks`.

    Returns:
      A `MetaLearner` for tasks that are `environment`'s params. `adapt` returns a tuple (params, transitions): the
      adapted parameters, and the episodes that it took, `[K, T, E]`. `agent(meta_params, adapted)`, given that tuple,
      acts as `evaluate` does; `evaluate` {"return": [K + 1]}. `update` reports the
      returns before and after adaptation, and `num_env_steps`, the steps that were played.

    Raises:
      ValueError: an argument is wrong; while tracing, what a function of the user returned has a wrong shape, or
        `num_minibatches` does not divide the number of tasks.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> from jaxmeta.rl.on_policy import VPG
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> policy = mlp_policy(family, hidden=())
    >>> learner = maml_rl(policy.init, policy.apply, family.environment, num_episodes=4, outer=VPG())
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 3), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> bool(metrics["is_finite"]), sorted(metrics)
    (True, ['grad_norm', 'is_finite', 'loss', 'num_env_steps', 'return', 'return_before'])
    >>> int(metrics["num_env_steps"])  # 3 tasks, 4 episodes of 10 pulls before adaptation, and 4 after it
    240
    """
    check_arguments("apply_fn", apply_fn, ("params", "observation"), "it returns a distribution over actions")
    check_environment("environment", environment)
    inner_optimizer = adapt.sgd(0.1) if inner_optimizer is None else inner_optimizer
    check_inner_optimizer("inner_optimizer", inner_optimizer)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    num_eval_steps = num_inner_steps if num_eval_steps is None else num_eval_steps
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    check_integer("num_episodes", num_episodes, minimum=1)
    check_instance("advantages", advantages, Advantages)
    check_choice("baseline", baseline, ("linear", "none", "value"))
    check_instance("surrogate", surrogate, Surrogate)
    check_policy_step("outer", outer)
    normalization = chosen_normalization(normalization)
    check_metrics_fn(metrics_fn, "T, E")
    meta_gradient = adapt.exact() if meta_gradient is None else meta_gradient
    check_meta_gradient("meta_gradient", meta_gradient)
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)
    parts = Parts(
        check_init_fn(init_fn),
        Actor(apply_fn, baseline == "value", environment.action_space),
        trial(environment, num_episodes=1),
        inner_optimizer,
        num_inner_steps,
        num_eval_steps,
        num_episodes,
        advantages,
        baseline,
        surrogate,
        outer,
        _optimizer(outer, optimizer),
        normalization,
        metrics_fn,
        meta_gradient,
        microbatch,
    )
    init, update = partial(_init, parts), partial(_update, parts)
    at_test = partial(_adapt, parts), partial(_evaluate, parts), partial(_agent, parts)
    return MetaLearner(init, update, *at_test)


# What a policy plays in one task, and how its actions are judged.


def play(parts: Parts, key: jax.Array, moments: PyTree, params: Params, task: PyTree) -> tuple[Transition, Episodes]:
    """E episodes of the policy as they were played, and as they are learned from, with advantages of its actions."""
    policy = looking(parts.normalization, parts.actor.act)
    run = lambda key: rollout(key, parts.episode, policy, (moments, params), (), task)[1]
    transitions = jax.vmap(run, out_axes=1)(jax.random.split(key, parts.num_episodes))
    return transitions, judged_by_return(parts, params, seen(parts, moments, transitions))


def seen(parts: Parts, moments: PyTree, transitions: Transition) -> Transition:
    """Episodes `[T, E]` as networks see them, with rewards as they are learned from."""
    observe = jax.vmap(jax.vmap(partial(parts.normalization.observe, moments)))
    return transitions._replace(
        inputs=transitions.inputs._replace(observation=observe(transitions.inputs.observation)),
        next_observation=observe(transitions.next_observation),
        reward=parts.normalization.pay(moments, transitions.reward),
    )


def judged_by_return(parts: Parts, params: Params, transitions: Transition) -> Episodes:
    """With the advantages of actions, by the baseline that was chosen."""
    done, to_go = transitions.terminated | transitions.truncated, returns_to_go(parts, transitions)
    value, next_value = baseline_values(parts.actor, params, transitions, to_go, parts.baseline)
    advantage, target = gae(
        transitions.reward,
        value,
        next_value,
        transitions.terminated if parts.baseline == "value" else done,
        transitions.truncated,
        discount=parts.advantages.discount,
        lambda_=parts.advantages.gae_lambda,
    )
    if not parts.advantages.normalize:
        return Episodes(transitions, advantage, target, jnp.ones(()))
    advantage, scale = normalized(advantage, transitions.mask, to_go)
    return Episodes(transitions, advantage, target, scale)


def returns_to_go(parts: Parts, transitions: Transition) -> jax.Array:
    """Discounted, to the end of the episode."""
    done = transitions.terminated | transitions.truncated
    return discounted_returns(transitions.reward, done, discount=parts.advantages.discount)


def measured(parts: Parts, transitions: Transition) -> PyTree:
    """The moments of episodes `[T, E]`."""
    steps = (transitions.inputs.observation, transitions.reward, returns_to_go(parts, transitions), transitions.mask)
    return parts.normalization.measure(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps))


def baseline_values(
    actor: Actor, params: Params, transitions: Transition, to_go: jax.Array, baseline: str
) -> tuple[jax.Array, jax.Array]:
    """V(s_t), and V(s_t+1) where the time limit cut an episode off; "linear" is fitted to the returns `to_go`."""
    if baseline == "value":
        return transitions.extras[1], actor.on(params, transitions.next_observation)[1]
    if baseline == "none":
        zeros = jnp.zeros_like(transitions.reward)
        return zeros, zeros
    observation = jax.vmap(jax.vmap(flatten))(transitions.inputs.observation)
    features = linear_features(observation, transitions.inputs.time)
    value = features @ fit_linear_baseline(features, to_go, transitions.mask)
    return value, jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])


# The inner loop: live, on episodes that each policy plays, and again, on what was recorded.


def policy_loss(
    actor: Actor, params: Params, episodes: Episodes, terms_fn: Callable, value_weight: float | jax.Array
) -> jax.Array:
    """The mean over the steps of `episodes` of a policy's loss, and of its value's."""
    transitions = episodes.transitions
    distribution, value = actor.on(params, transitions.inputs.observation)
    log_prob, old_log_prob = (log_prob_of(d, transitions.action) for d in (distribution, acted(episodes)))
    terms = terms_fn(log_prob, old_log_prob, episodes.advantage)
    if actor.has_value:
        terms += value_weight * (value - episodes.target) ** 2
    return masked_mean(terms, transitions.mask)


def inner_loss(parts: Parts, params: Params, episodes: Episodes) -> tuple[jax.Array, Metrics]:
    """L(θ; τ), by the estimator of its Hessian."""
    terms_fn = ESTIMATORS[parts.surrogate.estimator]
    return policy_loss(parts.actor, params, episodes, terms_fn, parts.advantages.value_weight), {}


def adapt_live(
    parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree, num_steps: int
) -> tuple[Params, tuple[Transition, Episodes]]:
    """The adapted parameters, and what was played, `[K, T, E]`, and what each inner step learned of it."""
    check_meta_params(meta_params)
    draw = lambda key, params: jax.lax.stop_gradient(play(parts, key, meta_params.constants, params, task))
    loss = lambda params, played: inner_loss(parts, params, played[1])
    keys = jax.random.split(key, num_steps)
    state, trace = adapt.unroll(parts.inner_optimizer, loss, draw, meta_params, keys)
    return parts.inner_optimizer.params(meta_params, state.fast), trace.batch


def adapt_again(
    parts: Parts, meta_params: MetaParams, before: Episodes, judged: Judged, **how: Any
) -> tuple[adapt.Adapted, InnerState]:
    """The inner loop again, on what was recorded, with what the outer loss wants to know of each step."""
    if parts.surrogate.exploration_weight or parts.surrogate.inner_kl_weight:
        how["observe"] = partial(observe, parts.actor)
    replay = lambda episodes, params: episodes
    state, trace = adapt.unroll(parts.inner_optimizer, partial(inner_loss, parts), replay, meta_params, before, **how)
    return adapt.Adapted(parts.inner_optimizer.params(meta_params, state.fast), trace.observed), state


def observe(actor: Actor, params: Params, episodes: Episodes) -> tuple[jax.Array, jax.Array]:
    """How much likelier `params` make the episodes, and KL(π_acted ‖ π)."""
    transitions, old = episodes.transitions, acted(episodes)
    distribution, _ = actor.on(params, transitions.inputs.observation)
    log_ratio = log_prob_of(distribution, transitions.action) - log_prob_of(old, transitions.action)
    kl = masked_mean(kl_between(old, distribution), transitions.mask)
    return jnp.sum(jnp.where(transitions.mask, log_ratio, 0)), kl


def acted(episodes: Episodes) -> Any:
    """The distributions that acted."""
    return episodes.transitions.extras[0]


# The outer loop: episodes of all tasks, then steps through the inner loop on them.


def outer_loss(parts: Parts, adapted: adapt.Adapted, judged: Judged) -> tuple[jax.Array, Metrics]:
    """The adapted policy's loss, with the terms of E-MAML and of ProMP."""
    surrogate = parts.surrogate
    loss = policy_loss(parts.actor, adapted.params, judged.after, parts.outer.terms, parts.advantages.value_weight)
    if surrogate.exploration_weight:
        loss -= surrogate.exploration_weight * judged.credit * jnp.sum(adapted.observed[0])
    if surrogate.inner_kl_weight:
        loss += surrogate.inner_kl_weight * jnp.sum(adapted.observed[1])
    return loss, {}


def credit_of(after: Episodes, discount: float | jax.Array) -> jax.Array:
    """What a task's return is above that of the other tasks, `[N]`, in the units of the outer loss.

    The others' return is a baseline that does not depend on what the task itself played before. The loss is a mean
    over steps, of advantages that were scaled; the return is one over episodes. The mean scale of all tasks, for that
    of a task whose episodes were all alike is 0; where all tasks are such there is nothing to credit.
    """
    reward, mask = after.transitions.reward, after.transitions.mask  # [N, T, E]
    weights = discount ** jnp.arange(reward.shape[1], dtype=reward.dtype)
    returns = jnp.mean(jnp.einsum("nte,t->ne", reward, weights), axis=1)
    others = (jnp.sum(returns) - returns) / max(len(returns) - 1, 1)
    above = jnp.where(jnp.mean(after.scale) > 2 * ALIKE_SCALE, returns - others, 0)
    return above * reward.shape[2] / jnp.sum(mask, axis=(1, 2)) / jnp.mean(after.scale)


def sample(
    parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree
) -> tuple[Episodes, Episodes, PyTree, tuple[Metrics, Metrics]]:
    """A task's episodes before and after adaptation, and their moments; the learner's metrics and the user's."""
    before_key, after_key = jax.random.split(key)
    params, (played, before) = adapt_live(parts, before_key, meta_params, task, parts.num_inner_steps)
    last, after = jax.lax.stop_gradient(play(parts, after_key, meta_params.constants, params, task))
    first = jax.tree.map(lambda x: x[0], played)
    reports = [
        {f"{name}_before": value for name, value in of_first.items()} | of_last
        for of_first, of_last in zip(report(parts, first), report(parts, last), strict=True)
    ]
    measure = partial(measured, parts)
    moments = jax.tree.map(lambda x, y: jnp.append(x, y[None], axis=0), jax.vmap(measure)(played), measure(last))
    return before, after, moments, (reports[0], reports[1])


def report(parts: Parts, transitions: Transition) -> tuple[Metrics, Metrics]:
    """Of E episodes: the mean return, and what `metrics_fn` says."""
    return {"return": jnp.mean(jnp.sum(transitions.reward, axis=0))}, metrics_of(parts.metrics_fn, transitions)


def _update(parts: Parts, key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
    num_tasks = check_stacked("tasks", tasks)
    sample_key, gradient_key = jax.random.split(key)

    # Every task is adapted to and played in, before and after.
    each = lambda meta_params, per_task: sample(parts, per_task[0], meta_params, per_task[1])
    per_task = jax.random.split(sample_key, num_tasks), tasks
    before, after, measures, reports = for_each_task(each, state.meta_params, per_task)
    own, of_user = jax.tree.map(lambda x: jnp.mean(x, axis=0), reports)
    num_env_steps = jnp.sum(before.transitions.mask) + jnp.sum(after.transitions.mask)

    # The outer steps, through the inner loop on what was played.
    judged = Judged(after, credit_of(after, parts.advantages.discount))
    of_each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), measures)
    moments = parts.normalization.merge(state.meta_params.constants, of_each)
    judged, moments, own, of_user, num_env_steps = known_everywhere((judged, moments, own, of_user, num_env_steps))
    keys = jax.random.split(gradient_key, num_tasks + 1)
    meta_params, opt_state, curves = descend(
        keys[-1],
        parts.optimizer,
        partial(meta_gradient_of, parts),
        learned(state.meta_params),
        state.opt_state,
        (keys[:-1], before, judged),
        axis=0,
        num_epochs=parts.outer.num_epochs,
        num_minibatches=parts.outer.num_minibatches,
        **trust_functions(parts, before, judged),
    )
    terms = own | of_update(curves) | {"num_env_steps": num_env_steps}
    if isinstance(opt_state, TrustRegionState):
        terms |= kl_of(opt_state)
    meta_params = meta_params._replace(constants=moments)
    return counted(state, meta_params, opt_state, terms["is_finite"]), beside(of_user, terms)


def meta_gradient_of(parts: Parts, meta_params: MetaParams, data: PyTree) -> tuple:
    """((loss, metrics), gradient), the means over the tasks of `data`: their keys and episodes."""
    task_gradient = parts.meta_gradient(partial(adapt_again, parts), partial(outer_loss, parts))

    def of_task(meta_params: MetaParams, per_task: tuple):
        key, before, judged = per_task
        return task_gradient(key, meta_params, before, judged)

    return mean_over_tasks(of_task, parts.microbatch, meta_params, data)


def trust_functions(parts: Parts, before: Episodes, judged: Judged) -> dict[str, Callable]:
    """What `rl.trust_region` asks for: the outer loss, and the adapted policies, which are to stay close to those that
    acted; through the inner loop."""

    def of_task(meta_params: MetaParams, per_task: tuple[Episodes, Judged]) -> tuple[jax.Array, Any]:
        before, judged = per_task
        adapted, _ = adapt_again(parts, meta_params, before, judged)
        distributions, _ = parts.actor.on(adapted.params, judged.after.transitions.inputs.observation)
        return outer_loss(parts, adapted, judged)[0], distributions

    def of_each(meta_params: MetaParams, per_task: tuple[Episodes, Judged]) -> tuple[jax.Array, Any]:
        """Each task has parameters of its own, whose gradients are as many products, which a CPU's cores share."""
        num_tasks = len(per_task[1].credit)
        own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_tasks, *jnp.shape(leaf))), meta_params)
        return jax.vmap(of_task)(own, per_task)

    def loss_fn(meta_params: MetaParams) -> tuple[jax.Array, Any]:
        losses, distributions = shared_out(of_each)(meta_params, (before, judged))
        return jnp.mean(losses), distributions

    def kl_fn(old: Any, new: Any) -> jax.Array:
        of_task = lambda old, new, mask: masked_mean(kl_between(old, new), mask)
        return jnp.mean(jax.vmap(of_task)(old, new, judged.after.transitions.mask))

    return {"loss_fn": loss_fn, "kl_fn": kl_fn}


# The rest of a learner.


def _init(parts: Parts, key: jax.Array) -> MetaState:
    params = check_params(parts.init_fn(key))
    hyper, constants = parts.inner_optimizer.init(params), parts.normalization.init()
    return initial_state(parts.optimizer, MetaParams(params, hyper, constants))


def _adapt(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> AdaptedPolicy:
    params, (played, _) = adapt_live(parts, key, meta_params, task, parts.num_eval_steps)
    return AdaptedPolicy(params, played)


def _evaluate(parts: Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
    before_key, after_key = jax.random.split(key)
    params, (played, _) = adapt_live(parts, before_key, meta_params, task, parts.num_eval_steps)
    last, _ = play(parts, after_key, meta_params.constants, params, task)
    reported = lambda transitions: beside(*reversed(report(parts, transitions)))
    return jax.tree.map(jnp.append, jax.vmap(reported)(played), reported(last))


def _agent(parts: Parts, meta_params: MetaParams, adapted: AdaptedPolicy | None = None) -> Agent:
    """Acts as in `evaluate`, by what `adapt` returned, or as before the first inner step."""
    check_meta_params(meta_params)
    if adapted is not None and not isinstance(adapted, AdaptedPolicy):
        raise ValueError(f"adapted must be what adapt returned, an AdaptedPolicy, got {type(adapted).__name__}")
    optimizer = parts.inner_optimizer
    initial = lambda: optimizer.params(meta_params, optimizer.start(meta_params).fast)
    policy = looking(parts.normalization, parts.actor.act)
    return Agent(policy, (meta_params.constants, initial() if adapted is None else adapted.params))


def _optimizer(outer: PolicyStep, optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    if isinstance(outer, TRPO):
        if optimizer is not None:
            raise ValueError("optimizer must be None with TRPO, whose step has no rate: its length is max_kl's")
        return trust_region(outer)
    return chosen_optimizer(optimizer, optax.adam(1e-3))


class OfMamlRL(TypedDict, total=False):
    """What both learners below have of `maml_rl`, as it is there."""

    inner_optimizer: InnerOptimizer | None
    num_inner_steps: int
    num_eval_steps: int | None
    num_episodes: int
    advantages: Advantages
    baseline: Literal["linear", "none", "value"]
    optimizer: optax.GradientTransformation | None
    normalization: Normalization | None
    metrics_fn: MetricsFn | None
    meta_gradient: adapt.MetaGradient | None
    microbatch: int | None


class Options(OfMamlRL, total=False):
    """What `e_maml` has besides."""

    outer: PolicyStep


@names_options_of(maml_rl)
def e_maml(
    init_fn: InitFn,
    apply_fn: PolicyFn,
    environment: Environment,
    *,
    exploration_weight: float = 1.0,
    **options: Unpack[Options],
) -> MetaLearner:
    """E-MAML: `maml_rl` in which what was played before adaptation gets credit for the return that it leads to.

    The expected return after adaptation depends on θ twice, E_{τ ~ π_θ} E_{τ' ~ π_{θ'(τ, θ)}} R(τ'), and so does its
    gradient:

        E[ ∇_θ log π_{θ'}(τ') R(τ') + R(τ') ∇_θ Σ_k Σ_e log π_{θ_k}(τ_{k,e}) ]

    with θ' differentiated at fixed episodes, whence `estimator="biased"`. The second sum goes over every episode that
    adaptation saw, for each moves θ'. The mean return of the other tasks of the step is its baseline.

    Stadie et al., "Some Considerations on Learning to Explore via Meta-Reinforcement Learning" (2018),
    https://arxiv.org/abs/1803.01118

    Args:
      init_fn: as in `maml_rl`.
      apply_fn: as in `maml_rl`.
      environment: as in `maml_rl`.
      exploration_weight: of the second term, ≥ 0; 1 is the gradient above.

    The other arguments, returns and errors as for `maml_rl`.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = e_maml(*mlp_policy(family), family.environment)
    """
    return maml_rl(
        init_fn,
        apply_fn,
        environment,
        surrogate=Surrogate(estimator="biased", exploration_weight=exploration_weight),
        **options,
    )


@names_options_of(maml_rl)
def promp(
    init_fn: InitFn,
    apply_fn: PolicyFn,
    environment: Environment,
    *,
    inner_kl_weight: float = 5e-4,
    outer: PolicyStep = PPO(num_epochs=5, clip=0.3),
    **options: Unpack[OfMamlRL],
) -> MetaLearner:
    """ProMP: `maml_rl` with low-variance curvature inside, and outside several steps of PPO that redo the inner loop.

        min  E[ −min(ρ A, clip(ρ) A) ] + η Σ_k KL(π_acted,k ‖ π_{θ_k}),  ρ = π_{θ'}(a | s) / π_acted(a | s)

    with `estimator="lvc"` inside.

    Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search" (2018),
    https://arxiv.org/abs/1810.06784

    Args:
      init_fn: as in `maml_rl`.
      apply_fn: as in `maml_rl`.
      environment: as in `maml_rl`.
      inner_kl_weight: η ≥ 0, of the divergence in nats.
      outer: as for `maml_rl`; by default five steps of PPO, clipped at 1 ± 0.3.

    The other arguments, returns and errors as for `maml_rl`.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> family = families.navigation()
    >>> learner = promp(*mlp_policy(family), family.environment)
    """
    return maml_rl(
        init_fn,
        apply_fn,
        environment,
        surrogate=Surrogate(estimator="lvc", inner_kl_weight=inner_kl_weight),
        outer=outer,
        **options,
    )
