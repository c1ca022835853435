"""Meta-gradients of an agent: what its loss is made of, γ and λ among it, learned while the agent learns.

    θ_{k+1} = step(θ_k, ∇_θ L(θ_k, η; τ_k)),  τ_k ~ π_{θ_k}       K inner steps, from where the agent stands
    L = mean_t −A_t log π_θ(a_t | s_t) + w_V (V_θ(s_t) − G_t)² − w_H H(π_θ(s_t))        A and G by γ and λ
    η ← η − β ∇_η L'(θ_K; τ'),  τ' ~ π_{θ_K}                      η of γ, λ, w_V, w_H; L' has other numbers, which stay

The actor-critic is learned once, and online: what was good for it when it knew nothing need not be later.

| the literature              | how                                                            |
|-----------------------------|----------------------------------------------------------------|
| Xu et al. 2018              | `learned=("discount", "gae_lambda")`                           |
| STAC                        | all four, and the rate by the `inner_optimizer`                |
| bootstrapped meta-gradients | `num_target_steps=8`, `matching="policy"`                      |
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.optimizers import InnerOptimizer
from jaxmeta.algorithms.actor_critic import A2C, LEARNED, AgentLosses, actor_critic_losses, play
from jaxmeta.algorithms.bilevel import bilevel, inner_params
from jaxmeta.algorithms.bootstrapped import bootstrapped
from jaxmeta.checks import check_choice, check_init_fn, check_integer, check_meta_params
from jaxmeta.devices import known_everywhere
from jaxmeta.outer import for_each_task
from jaxmeta.rl.actors import Actor, PolicyFn
from jaxmeta.rl.env import Environment
from jaxmeta.rl.observe import RAW, Normalization, chosen_normalization, looking
from jaxmeta.rl.returns import discounted_returns
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Trial, trial
from jaxmeta.types import InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, Task


def meta_gradient_rl(
    init_fn: InitFn,
    apply_fn: PolicyFn,
    environment: Environment,
    *,
    learned: Collection[str] = LEARNED,
    inner: A2C = A2C(),
    outer: A2C = A2C(gae_lambda=1.0, value_weight=0.0, entropy_weight=0.0),
    inner_optimizer: InnerOptimizer | None = None,
    num_inner_steps: int = 1,
    num_eval_steps: int = 100,
    num_agents: int = 1,
    num_episodes: int = 8,
    num_outer_episodes: int | None = None,
    num_target_steps: int = 0,
    target_optimizer: optax.GradientTransformation | None = None,
    matching: Literal["parameters", "policy"] = "parameters",
    meta_gradient: adapt.MetaGradient | None = None,
    optimizer: optax.GradientTransformation | None = None,
    normalization: Normalization | None = None,
    microbatch: int | None = None,
) -> MetaLearner:
    """An actor-critic that learns γ, λ, the weights of its loss and its rate while it learns: `bilevel` of an agent.

    One agent that lives on in one task is what the papers have; `num_agents` of them, each in a task of its own, share
    what is learned. The outer loss is the policy's, after K inner steps, on episodes apart. What is exact about its
    derivative, and what is data, is told at `actor_critic_losses`.

    Xu, van Hasselt, Silver, "Meta-Gradient Reinforcement Learning" (2018), https://arxiv.org/abs/1805.09801

    Args:
      init_fn: (key) -> params of the agent, such as `rl.mlp_policy_and_value(family).init`.
      apply_fn: (params, observation) -> (distribution, value), of one observation.
      environment: whose params are the tasks. An episode ends where it terminates, or after `max_steps`.
      learned: names of what is learned of L, of "discount", "gae_lambda", "value_weight", "entropy_weight": γ and λ as
        log-odds, and so within (0, 1), weights as logarithms. η is {name: that}.
      inner: the numbers of L, where those that are learned start.
      outer: the numbers of L', by which the outcome is judged. By default λ' = 1, so that the critic, which is learned
        by γ and λ, is but a baseline, and nothing but the policy counts.
      inner_optimizer: of the agent. Its hyperparameters, such as the rate of `adapt.from_optax(make, hyper)`, are
        learned beside η. Adam of rate 1e-3 if None.
      num_inner_steps: K, the agent's steps for each outer one, at least 1.
      num_eval_steps: steps of the agents that `adapt` and `evaluate` train.
      num_agents: N, the `num_tasks` of `fit`.
      num_episodes: E, that each inner step learns from, at least 1.
      num_outer_episodes: that an outer step is judged on; `num_episodes` if None.
      num_target_steps: L of bootstrapped meta-gradients: η descends the distance to where the agent would be after
        L − 1 more inner steps and one along L', see `bootstrapped`. With 0 it descends L' itself.
      target_optimizer: what takes these steps; Adam of rate 1e-3 if None.
      matching: by what that distance is: half the squared one of "parameters", or the KL of the target's "policy" to
        the agent's on its episodes.
      meta_gradient: how to differentiate the window (see `jaxmeta.adapt`); `adapt.exact()`, which plays nothing twice,
        if None. For a few numbers and a large K `adapt.forward_mode(...)` takes the memory of one step.
      optimizer: the outer optax transformation, of η and the hyperparameters; Adam of rate 1e-2 if None.
      normalization: of observations and rewards, `rl.running_moments(family)`; they are taken as they are if None. It
        measures episodes that agents play for it alone, as many after each update as that is judged on, with returns
        as L' discounts them.
      microbatch: agents that are vectorised at a time, as in `maml`.

    Returns:
      A `MetaLearner` for tasks that are `environment`'s params. `update` reports "return", of the outer episodes, and
      each number that is learned. The agents are in the state, `state.carry.inner.fast` with a leading axis N;
      `agent(meta_params, params)` acts with the params of one. `adapt` returns those of a new one, trained by what was
      learned; `evaluate` {"return": [num_eval_steps + 1]} of such, entry k after k of its steps.

    Raises:
      ValueError: an argument is wrong; while tracing, what a function of the user returned has a wrong shape.

    >>> from jaxmeta.rl import families, mlp_policy_and_value
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = meta_gradient_rl(*mlp_policy_and_value(family, hidden=(4,)), family.environment, num_eval_steps=2)
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 1), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> 0.98 < metrics["discount"] < 1, sorted(state.meta_params.params)
    (Array(True, dtype=bool), ['discount', 'entropy_weight', 'gae_lambda', 'value_weight'])
    """
    losses = actor_critic_losses(
        apply_fn,
        environment,
        learned=learned,
        inner=inner,
        outer=outer,
        num_episodes=num_episodes,
        num_outer_episodes=num_outer_episodes,
        normalization=normalization,
    )
    check_integer("num_agents", num_agents, minimum=1)
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    actor, episode = Actor(apply_fn, True, environment.action_space), trial(environment, num_episodes=1)
    num_judged = num_episodes if num_outer_episodes is None else num_outer_episodes
    parts = _Parts(
        init_fn=check_init_fn(init_fn),
        actor=actor,
        inner_optimizer=_ADAM if inner_optimizer is None else inner_optimizer,
        losses=losses,
        num_eval_steps=num_eval_steps,
        normalization=chosen_normalization(normalization),
        measure=partial(_measure, actor, episode, num_judged, outer.discount),
    )
    problem = bilevel(
        lambda key, meta_params: parts.init_fn(key),
        losses.meta_init_fn,
        losses.loss_fn,
        num_inner_steps=num_inner_steps,
        outer_loss_fn=_outer_loss_fn(losses, num_target_steps, target_optimizer, matching),
        inner_optimizer=parts.inner_optimizer,
        num_problems=num_agents,
        stochastic=True,
        num_eval_steps=num_eval_steps,
        meta_gradient=adapt.exact() if meta_gradient is None else meta_gradient,
        optimizer=optax.adam(1e-2) if optimizer is None else optimizer,
        microbatch=microbatch,
    )
    return _of_agents(parts, problem)


_ADAM = adapt.from_optax(optax.adam(1e-3, eps_root=1e-8))


class _Parts(NamedTuple):
    """What `meta_gradient_rl` is made of, all of it checked; see its arguments."""

    init_fn: InitFn
    actor: Actor
    inner_optimizer: InnerOptimizer
    losses: AgentLosses
    num_eval_steps: int
    normalization: Normalization
    measure: Callable


def _outer_loss_fn(
    losses: AgentLosses, num_target_steps: int, target_optimizer: optax.GradientTransformation | None, matching: str
) -> Callable:
    """L', or the distance to what is bootstrapped."""
    check_integer("num_target_steps", num_target_steps, minimum=0)
    check_choice("matching", matching, ("parameters", "policy"))
    if num_target_steps:
        return bootstrapped(
            losses.loss_fn,
            losses.outer_loss_fn,
            num_target_steps=num_target_steps,
            target_optimizer=optax.adam(1e-3) if target_optimizer is None else target_optimizer,
            distance=losses.policy_distance if matching == "policy" else None,
            stochastic=True,
        )
    if target_optimizer is not None or matching != "parameters":
        raise ValueError("num_target_steps must be at least 1 where target_optimizer or matching is given, got 0")
    return losses.outer_loss_fn


def _of_agents(parts: _Parts, problem: MetaLearner) -> MetaLearner:
    """`problem`, whose agents see by the moments, and which trains new ones at test."""
    return problem._replace(
        init=partial(_init, parts, problem),
        update=partial(_update, parts, problem),
        adapt=lambda key, meta_params, task: _trained(parts, key, meta_params, task)[0],
        evaluate=lambda key, meta_params, task: {"return": _trained(parts, key, meta_params, task)[1]},
        agent=partial(_agent, parts),
        check=partial(_check, parts, problem),
    )


def _init(parts: _Parts, problem: MetaLearner, key: jax.Array) -> MetaState:
    """That of `bilevel`, and moments of nothing."""
    state = problem.init(key)
    return state._replace(meta_params=state.meta_params._replace(constants=parts.normalization.init()))


def _update(
    parts: _Parts, problem: MetaLearner, key: jax.Array, state: MetaState, tasks: PyTree
) -> tuple[MetaState, Metrics]:
    """The outer step of `bilevel`, what the learned numbers are after it, and the moments."""
    given = jax.vmap(partial(_given, parts, state.meta_params))(tasks)
    stepped, metrics = problem.update(key, state, Task(given, given))
    numbers = parts.losses.numbers(stepped.meta_params.params)
    metrics |= {name: getattr(numbers, name) for name in stepped.meta_params.params}
    if parts.normalization is RAW:
        return stepped, metrics
    return _with_moments(parts, jax.random.fold_in(key, 2), stepped, given), metrics


def _given(parts: _Parts, meta_params: MetaParams, task: PyTree) -> PyTree:
    """A task of the losses."""
    return task if parts.normalization is RAW else (meta_params.constants, task)


def _with_moments(parts: _Parts, key: jax.Array, state: MetaState, given: PyTree) -> MetaState:
    """And those of what the agents play now."""
    agents = inner_params(
        key, lambda key, meta_params: parts.init_fn(key), parts.inner_optimizer, state.meta_params, state.carry
    )
    keys = jax.random.split(key, len(state.carry.age))
    measured = for_each_task(
        lambda _, per_task: parts.measure(parts.normalization, *per_task), (), (keys, agents, given)
    )
    moments = parts.normalization.merge(state.meta_params.constants, measured)
    return state._replace(meta_params=state.meta_params._replace(constants=known_everywhere(moments)))


def _measure(
    actor: Actor,
    episode: Trial,
    num_episodes: int,
    discount: float | jax.Array,
    normalization: Normalization,
    key: jax.Array,
    params: Params,
    given: PyTree,
) -> PyTree:
    """The moments of some episodes of one agent."""
    played = play(actor, episode, num_episodes, key, params, given, normalization)
    to_go = discounted_returns(played.reward, played.terminated | played.truncated, discount=discount)
    steps = played.inputs.observation, played.reward, to_go, played.mask
    return normalization.measure(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps))


def _check(parts: _Parts, problem: MetaLearner, meta_params: MetaParams, task: PyTree, is_test: bool) -> None:
    given = _given(parts, meta_params, task)
    if problem.check is not None:
        problem.check(meta_params, Task(given, given), is_test)


def _trained(parts: _Parts, key: jax.Array, meta_params: MetaParams, task: PyTree) -> tuple[Params, jax.Array]:
    """A new agent after `num_eval_steps`, and its returns, `[num_eval_steps + 1]`: of what each step learned from, and
    of as many episodes at the end."""
    check_meta_params(meta_params)
    init_key, train_key, last_key = jax.random.split(key, 3)
    start = MetaParams(parts.init_fn(init_key), meta_params.hyper)
    given = _given(parts, meta_params, task)
    loss = lambda params, key: parts.losses.loss_fn(params, meta_params.params, given, key)
    keys = jax.random.split(train_key, parts.num_eval_steps)
    state, trace = adapt.unroll(parts.inner_optimizer, loss, lambda key, params: key, start, keys)
    params = parts.inner_optimizer.params(start, state.fast)
    _, last = loss(params, last_key)
    return params, jnp.append(trace.metrics["return"], last["return"])


def _agent(parts: _Parts, meta_params: MetaParams, adapted: Params | None = None) -> Agent:
    """Acts with the parameters of an agent, those that `adapt` returned or of one in the state."""
    check_meta_params(meta_params)
    if adapted is None:
        raise ValueError(
            "adapted must be the params of an agent, which meta_params are not: adapt returns those of one"
        )
    return Agent(looking(parts.normalization, parts.actor.act), (meta_params.constants, adapted))
