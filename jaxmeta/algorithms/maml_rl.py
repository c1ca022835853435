"""MAML for reinforcement learning: a policy from which a few policy-gradient steps learn a task.

    τ_k ~ π_{θ_k},  θ_{k+1} = θ_k − α ∇L(θ_k; τ_k)           the inner loop: E episodes, one step; K times, from θ_0 = θ
    θ ← θ + β ∇_θ mean_i E[R(τ'_i)],  τ' ~ π_{θ_K}           the outer loop, through the inner one

Episodes are played once, by the policy that is there; then the inner loop is run again on what was recorded, as a
function of θ, and that is differentiated. What is right about its second derivatives is the inner loss's choice,
`estimator`; what is done with the gradient is `outer`'s.

| the paper    | how                                                                                                   |
|--------------|-------------------------------------------------------------------------------------------------------|
| MAML         | `maml_rl(...)`: `outer=trpo()`; as first published `estimator="biased"`                               |
| E-MAML       | `e_maml(...)`: `exploration_weight`, what was played before gets credit for what came of it           |
| ProMP        | `promp(...)`: `estimator="lvc"`, `outer=ppo()`, `inner_kl_weight`                                     |
| DiCE         | `estimator="dice"`, `outer=vpg()`                                                                     |
| FOMAML       | `meta_gradient=adapt.first_order()`                                                                   |
| ANIL         | `inner_optimizer=adapt.adapt_only(adapt.sgd(0.1), "head")`                                            |
| Meta-SGD     | `inner_optimizer=adapt.meta_sgd(0.1)`                                                                 |
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.checks import check_callable, check_choice, check_integer, check_number, check_params
from jaxmeta.outer import mean_over_tasks, outer_step
from jaxmeta.rl import objectives
from jaxmeta.rl.distributions import each_step
from jaxmeta.rl.env import Environment, check_environment, flatten
from jaxmeta.rl.returns import discounted_returns, fit_linear_baseline, gae, linear_features
from jaxmeta.rl.rollout import Transition, rollout
from jaxmeta.rl.trials import trial
from jaxmeta.rl.trust_region import TrustRegionState, trust_region
from jaxmeta.types import InitFn, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree

# Inner losses, term by term: (log π, log π of the policy that acted, advantage) -> [T, E].
ESTIMATORS: dict[str, Callable] = {
    "biased": lambda log_prob, old_log_prob, advantage: objectives.reinforce(log_prob, advantage),
    "lvc": objectives.importance_weighted,
    "dice": lambda log_prob, old_log_prob, advantage: objectives.loaded_dice(log_prob, advantage),
}


class OuterUpdate(NamedTuple):
    """What is done with the tasks' episodes after adaptation: an optimizer, which may want the extra arguments of
    `rl.trust_region`, the loss of each step, and how many updates are made of the same episodes."""

    optimizer: optax.GradientTransformation
    loss_fn: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = objectives.importance_weighted
    num_updates: int = 1


def vpg(optimizer: optax.GradientTransformation = optax.adam(1e-3)) -> OuterUpdate:
    """One step along the policy gradient.

    >>> outer = vpg(optax.adam(1e-3))
    """
    return OuterUpdate(optimizer)


def ppo(
    optimizer: optax.GradientTransformation = optax.adam(1e-3), *, num_updates: int = 5, clip: float = 0.3
) -> OuterUpdate:
    """Several steps on the same episodes, with PPO's clipped loss; the inner loop is run again in each.

    Raises:
      ValueError: `num_updates` is no positive integer, or `clip` is negative.

    >>> outer = ppo(num_updates=3)
    """
    check_integer("num_updates", num_updates, minimum=1)
    check_number("clip", clip)
    loss_fn = lambda log_prob, old_log_prob, advantage: objectives.ppo_clip(
        log_prob, old_log_prob, advantage, clip=clip
    )
    return OuterUpdate(optimizer, loss_fn, num_updates)


def trpo(**kwargs) -> OuterUpdate:
    """The largest step for which the adapted policies stay close to those that acted: see `rl.trust_region`.

    >>> outer = trpo(max_kl=0.01)
    """
    return OuterUpdate(trust_region(**kwargs))


class Episodes(NamedTuple):
    """What a policy played and what is learned of it: advantages and the targets of values, `[T, E]`; `scale` is what
    advantages were divided by."""

    transitions: Transition
    advantage: jax.Array
    target: jax.Array
    scale: jax.Array


class AdaptedPolicy(NamedTuple):
    """Parameters after adaptation, and the episodes that it took, `[K, T, E]`."""

    params: Params
    transitions: Transition


def maml_rl(
    init_fn: InitFn,
    apply_fn: Callable[[Params, PyTree], Any],
    environment: Environment,
    *,
    inner_optimizer: InnerOptimizer = adapt.sgd(0.1),
    num_inner_steps: int = 1,
    num_eval_steps: int | None = None,
    num_episodes: int = 20,
    estimator: Literal["biased", "lvc", "dice"] = "lvc",
    outer: OuterUpdate = trpo(),
    exploration_weight: float = 0.0,
    inner_kl_weight: float = 0.0,
    discount: float = 0.99,
    lambda_: float = 1.0,
    baseline: Literal["linear", "none", "value"] = "linear",
    value_weight: float = 0.5,
    normalize_advantages: bool = True,
    metrics_fn: Callable[[Transition], Metrics] | None = None,
    meta_gradient: adapt.MetaGradient = adapt.exact(),
    microbatch: int | None = None,
) -> MetaLearner:
    """MAML for reinforcement learning, its estimators and its outer loops by argument.

    Its meta-gradient for one inner step of rate α is (I + α ∇²J(θ)) ∇J(θ'), J the expected return of a task.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.3,
    https://arxiv.org/abs/1703.03400

    Args:
      init_fn: (key) -> params of the policy, such as `rl.mlp_policy(family).init`.
      apply_fn: (params, observation) -> distribution over actions, see `rl.distributions`; with `baseline="value"`
        (distribution, value).
      environment: whose params are the tasks. An episode ends where it terminates, or after `max_steps`.
      inner_optimizer: how to step inside, and which parameters adapt (see `jaxmeta.adapt`).
      num_inner_steps: K, inner steps while meta-training.
      num_eval_steps: inner steps of `adapt` and `evaluate`; `num_inner_steps` if None.
      num_episodes: E, episodes that each inner step and the outer one learn from.
      estimator: the inner loss, by its Hessian: "biased" (log π · A), "lvc" (importance ratio), "dice" (all of it).
      outer: `vpg(...)`, `ppo(...)` or `trpo(...)`.
      exploration_weight: of E-MAML's term, see `e_maml`; there it is 1, and more looks for what no episode found.
      inner_kl_weight: of KL(π_acted ‖ π_{θ_k}) before each inner step, added to the outer loss (ProMP).
      discount: γ.
      lambda_: λ of generalised advantage estimation.
      baseline: "linear" is fitted to the returns of each task and each step, for which the time limit is an end as any
        other; "value" is a value that the policy's network returns, learned and adapted with it, which bootstraps from
        the observation at the time limit; or "none".
      value_weight: of the squared error of "value", inside and outside.
      normalize_advantages: to mean 0 and deviation 1 for each task and step.
      metrics_fn: (transitions of E episodes) -> {name: scalar}, what `update` and `evaluate` report beside "return",
        the mean of the undiscounted sum of an episode's rewards.
      meta_gradient: how to differentiate the inner loop (see `jaxmeta.adapt`).
      microbatch: tasks that are differentiated at a time, see `outer.mean_over_tasks`.

    Returns:
      A `MetaLearner` for tasks that are `environment`'s params. `adapt` returns an `AdaptedPolicy`; `evaluate`
      {"return": [K + 1]}. `update` reports the returns before and after adaptation.

    Raises:
      ValueError: an argument is wrong; while tracing, what a function of the user returned has a wrong shape.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> policy = mlp_policy(family, hidden=())
    >>> learner = maml_rl(policy.init, policy.apply, family.environment, num_episodes=4, outer=vpg())
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 3), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> bool(metrics["is_finite"]), sorted(metrics)
    (True, ['grad_norm', 'is_finite', 'loss', 'return', 'return_before'])
    """
    check_callable("init_fn", init_fn, "(key) -> params")
    check_callable("apply_fn", apply_fn, "(params, observation) -> distribution")
    check_environment("environment", environment)
    check_inner_optimizer("inner_optimizer", inner_optimizer)
    check_integer("num_inner_steps", num_inner_steps, minimum=1)
    num_eval_steps = num_inner_steps if num_eval_steps is None else num_eval_steps
    check_integer("num_eval_steps", num_eval_steps, minimum=1)
    check_integer("num_episodes", num_episodes, minimum=1)
    check_choice("estimator", estimator, ESTIMATORS)
    if not isinstance(outer, OuterUpdate):
        raise ValueError(f"outer must be vpg(...), ppo(...) or trpo(...), got {outer!r}")
    check_number("exploration_weight", exploration_weight)
    check_number("inner_kl_weight", inner_kl_weight)
    check_number("discount", discount)
    check_number("lambda_", lambda_)
    check_number("value_weight", value_weight)
    check_choice("baseline", baseline, ("linear", "none", "value"))
    check_callable("meta_gradient", meta_gradient, "(adapt, outer) -> task_gradient, such as jaxmeta.adapt.exact()")
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)
    report = _reporter(metrics_fn)
    actor = _Actor(apply_fn, has_value=baseline == "value")
    play = _player(actor, environment, num_episodes, baseline, discount, lambda_, normalize_advantages)

    def loss_of(terms_fn: Callable, params: Params, episodes: Episodes) -> jax.Array:
        """The mean over the steps of `episodes` of a policy's loss, and of its value's."""
        distribution, value = actor.on(params, episodes.transitions)
        old_log_prob, log_prob = (_log_prob(d, episodes.transitions.action) for d in (_old(episodes), distribution))
        terms = terms_fn(log_prob, old_log_prob, episodes.advantage)
        if actor.has_value:
            terms += value_weight * (value - episodes.target) ** 2
        return _mean(terms, episodes)

    def inner_loss(params: Params, episodes: Episodes) -> tuple[jax.Array, Metrics]:
        return loss_of(ESTIMATORS[estimator], params, episodes), {}

    def live(key: jax.Array, meta_params: MetaParams, task: PyTree, num_steps: int) -> tuple[Params, Episodes]:
        """The adapted parameters, and the episodes that each inner step learned from, `[K, T, E]`."""
        draw = lambda key, params: jax.lax.stop_gradient(play(key, params, task))
        keys = jax.random.split(key, num_steps)
        state, trace = adapt.unroll(inner_optimizer, inner_loss, draw, meta_params, keys)
        return inner_optimizer.params(meta_params, state.fast), trace.batch

    def observe(params: Params, episodes: Episodes) -> tuple[jax.Array, jax.Array]:
        """How much likelier `params` make the episodes, and KL(π_acted ‖ π)."""
        distribution, _ = actor.on(params, episodes.transitions)
        old, mask, action = _old(episodes), episodes.transitions.mask, episodes.transitions.action
        log_ratio = jnp.sum(jnp.where(mask, _log_prob(distribution, action) - _log_prob(old, action), 0))
        return log_ratio, _mean(_kl(old, distribution), episodes)

    def inner(meta_params: MetaParams, before: Episodes, judged: _Judged, **how) -> tuple[adapt.Adapted, InnerState]:
        """The inner loop again, on what was recorded."""
        if exploration_weight or inner_kl_weight:
            how["observe"] = observe
        replay = lambda episodes, params: episodes
        state, trace = adapt.unroll(inner_optimizer, inner_loss, replay, meta_params, before, **how)
        return adapt.Adapted(inner_optimizer.params(meta_params, state.fast), trace.observed), state

    def outer_loss(adapted: adapt.Adapted, judged: _Judged) -> tuple[jax.Array, Metrics]:
        loss = loss_of(outer.loss_fn, adapted.params, judged.after)
        if exploration_weight:
            loss -= exploration_weight * judged.credit * jnp.sum(adapted.observed[0])
        if inner_kl_weight:
            loss += inner_kl_weight * jnp.sum(adapted.observed[1])
        return loss, {}

    task_gradient = meta_gradient(inner, outer_loss)

    def sample(key: jax.Array, meta_params: MetaParams, task: PyTree) -> tuple[Episodes, Episodes, Metrics]:
        before_key, after_key = jax.random.split(key)
        params, before = live(before_key, meta_params, task, num_inner_steps)
        after = jax.lax.stop_gradient(play(after_key, params, task))
        first = jax.tree.map(lambda x: x[0], before.transitions)
        metrics = {f"{name}_before": value for name, value in report(first).items()} | report(after.transitions)
        return before, after, metrics

    def init(key: jax.Array) -> MetaState:
        params = check_params(init_fn(key))
        meta_params = MetaParams(params, inner_optimizer.init(params))
        return MetaState(jnp.int32(0), meta_params, outer.optimizer.init(meta_params), jnp.int32(0))

    def update(key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
        num_tasks = _num_tasks(tasks)
        sample_key, gradient_key = jax.random.split(key)
        before, after, metrics = jax.vmap(sample, (0, None, 0))(
            jax.random.split(sample_key, num_tasks), state.meta_params, tasks
        )
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        recorded = (before, _Judged(after, _credit(after, discount)))
        keys = jax.random.split(gradient_key, num_tasks)

        def gradient(meta_params: MetaParams, per_task: tuple):
            key, before, judged = per_task
            return task_gradient(key, meta_params, before, judged)

        def loss_fn(meta_params: MetaParams) -> jax.Array:
            return jnp.mean(jax.vmap(lambda b, j: outer_loss(inner(meta_params, b, j)[0], j)[0])(*recorded))

        def outputs_fn(meta_params: MetaParams) -> PyTree:
            adapted_to = lambda b, j: actor.on(inner(meta_params, b, j)[0].params, j.after.transitions)[0]
            return jax.vmap(adapted_to)(*recorded)

        def kl_fn(old: Any, new: Any) -> jax.Array:
            return jnp.mean(jax.vmap(lambda o, n, episodes: _mean(_kl(o, n), episodes))(old, new, after))

        def step(stepped: MetaState, _: None) -> tuple[MetaState, Metrics]:
            (loss, _), grads = mean_over_tasks(gradient, microbatch, stepped.meta_params, (keys, *recorded))
            functions = {"loss_fn": loss_fn, "outputs_fn": outputs_fn, "kl_fn": kl_fn}
            return outer_step(outer.optimizer, stepped, loss, {}, grads, **functions)

        stepped, curves = jax.lax.scan(step, state, length=outer.num_updates)
        is_finite = jnp.all(curves.pop("is_finite"))
        metrics |= {name: curve[0] for name, curve in curves.items()} | {"is_finite": is_finite}
        if isinstance(stepped.opt_state, TrustRegionState):
            metrics |= {"kl": stepped.opt_state.kl, "is_accepted": stepped.opt_state.is_accepted}
        return stepped._replace(step=state.step + 1, num_skipped=state.num_skipped + ~is_finite), metrics

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: PyTree) -> AdaptedPolicy:
        params, episodes = live(key, meta_params, task, num_eval_steps)
        return AdaptedPolicy(params, episodes.transitions)

    def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
        before_key, after_key = jax.random.split(key)
        params, before = live(before_key, meta_params, task, num_eval_steps)
        last = report(play(after_key, params, task).transitions)
        return jax.tree.map(jnp.append, jax.vmap(report)(before.transitions), last)

    return MetaLearner(init, update, adapt_to, evaluate)


class _Judged(NamedTuple):
    """A task's episodes after adaptation, and what they are to the credit of those before, see `_credit`."""

    after: Episodes
    credit: jax.Array


class _Actor(NamedTuple):
    """`apply_fn`, with or without a value."""

    apply_fn: Callable
    has_value: bool

    def at(self, params: Params, observation: PyTree) -> tuple[Any, jax.Array]:
        output = self.apply_fn(params, observation)
        distribution, value = output if self.has_value else (output, jnp.zeros(()))
        if not hasattr(distribution, "log_prob"):
            what = "(distribution, value)" if self.has_value else "a distribution, see jaxmeta.rl.distributions"
            raise ValueError(f"apply_fn must return {what}, got {output!r}")
        return distribution, value

    def on(self, params: Params, transitions: Transition) -> tuple[Any, jax.Array]:
        """At every step `[T, E]`."""
        over = lambda fn: jax.vmap(fn, (None, 0))
        return over(over(self.at))(params, transitions.inputs.observation)


def _player(
    actor: _Actor,
    environment: Environment,
    num_episodes: int,
    baseline: str,
    discount: float,
    lambda_: float,
    normalize: bool,
) -> Callable[[jax.Array, Params, PyTree], Episodes]:
    """(key, params, task) -> E episodes of the policy, with their advantages."""
    one = trial(environment, num_episodes=1)

    def policy(key: jax.Array, params: Params, carry: tuple, inputs):
        distribution, value = actor.at(params, inputs.observation)
        return distribution.sample(key), carry, (distribution, value)

    def values(params: Params, transitions: Transition, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        """V(s_t), and V(s'_t) where the time limit cut an episode off."""
        if baseline == "value":
            seen = transitions._replace(inputs=transitions.inputs._replace(observation=transitions.next_observation))
            return transitions.extras[1], actor.on(params, seen)[1]
        if baseline == "none":
            zeros = jnp.zeros_like(transitions.reward)
            return zeros, zeros
        observation = jax.vmap(jax.vmap(flatten))(transitions.inputs.observation)
        features = linear_features(observation, transitions.inputs.time)
        returns = discounted_returns(transitions.reward, done, discount=discount)
        value = features @ fit_linear_baseline(features, returns, transitions.mask)
        return value, jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])

    def play(key: jax.Array, params: Params, task: PyTree) -> Episodes:
        run = lambda key: rollout(key, one, policy, params, (), task)[1]
        transitions = jax.vmap(run, out_axes=1)(jax.random.split(key, num_episodes))
        done = transitions.terminated | transitions.truncated
        value, next_value = values(params, transitions, done)
        terminated = transitions.terminated if baseline == "value" else done
        advantage, target = gae(
            transitions.reward,
            value,
            next_value,
            terminated,
            transitions.truncated,
            discount=discount,
            lambda_=lambda_,
        )
        episodes = Episodes(transitions, advantage, target, jnp.ones(()))
        return _normalized(episodes) if normalize else episodes

    return play


def _normalized(episodes: Episodes) -> Episodes:
    centred = episodes.advantage - _mean(episodes.advantage, episodes)
    scale = jnp.sqrt(_mean(centred**2, episodes)) + 1e-8
    return episodes._replace(advantage=centred / scale, scale=scale)


def _credit(after: Episodes, discount: float) -> jax.Array:
    """What a task's return is above that of the other tasks, `[N]`, in the units of the outer loss.

    The others' return is a baseline that does not depend on what the task itself played before. The loss is a mean
    over steps, of advantages that were scaled; the return is one over episodes. The mean scale of all tasks, for that
    of a task whose episodes were all alike is 0.
    """
    reward, mask = after.transitions.reward, after.transitions.mask  # [N, T, E]
    weights = discount ** jnp.arange(reward.shape[1], dtype=reward.dtype)
    returns = jnp.mean(jnp.einsum("nte,t->ne", reward, weights), axis=1)
    others = (jnp.sum(returns) - returns) / max(len(returns) - 1, 1)
    return (returns - others) * reward.shape[2] / jnp.sum(mask, axis=(1, 2)) / jnp.mean(after.scale)


# Of distributions at all steps `[T, E]`, each asked for itself: what a policy returns is one step's.
_log_prob = each_step(lambda distribution, action: distribution.log_prob(action))
_kl = each_step(lambda old, new: old.kl(new))


def _old(episodes: Episodes) -> Any:
    """The distributions that acted."""
    return episodes.transitions.extras[0]


def _reporter(metrics_fn: Callable[[Transition], Metrics] | None) -> Callable[[Transition], Metrics]:
    if metrics_fn is not None:
        check_callable("metrics_fn", metrics_fn, "(transitions [T, E]) -> {name: scalar}")

    def report(transitions: Transition) -> Metrics:
        metrics = {} if metrics_fn is None else metrics_fn(transitions)
        return {**metrics, "return": jnp.mean(jnp.sum(transitions.reward, axis=0))}

    return report


def _num_tasks(tasks: PyTree) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"tasks must be stacked params, every array with the same leading axis N, got axes {sizes}")
    return sizes.pop()[0]


def _mean(x: jax.Array, episodes: Episodes) -> jax.Array:
    """Over the steps that were played, of `[T, E]`."""
    mask = episodes.transitions.mask
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)


def e_maml(*args, **kwargs) -> MetaLearner:
    """E-MAML: `maml_rl` in which what was played before adaptation gets credit for the return that it leads to.

    The expected return after adaptation depends on θ twice, E_{τ ~ π_θ} E_{τ' ~ π_{θ'(τ, θ)}} R(τ'), and so does its
    gradient:

        E[ ∇_θ log π_{θ'}(τ') R(τ') + R(τ') ∇_θ Σ_k Σ_e log π_{θ_k}(τ_{k,e}) ]

    with θ' differentiated at fixed episodes, whence `estimator="biased"`. The second sum goes over every episode that
    adaptation saw, for each moves θ'. The mean return of the other tasks of the step is its baseline.

    Stadie et al., "Some Considerations on Learning to Explore via Meta-Reinforcement Learning" (2018),
    https://arxiv.org/abs/1803.01118

    Args, returns and errors as for `maml_rl`.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = e_maml(*mlp_policy(family), family.environment, outer=vpg())
    """
    return maml_rl(*args, **{"estimator": "biased", "exploration_weight": 1.0, **kwargs})


def promp(*args, **kwargs) -> MetaLearner:
    """ProMP: `maml_rl` with low-variance curvature inside, and outside several steps of PPO that redo the inner loop.

        min  E[ −min(ρ A, clip(ρ) A) ] + η Σ_k KL(π_acted,k ‖ π_{θ_k}),  ρ = π_{θ'}(a | s) / π_acted(a | s)

    Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search" (2018),
    https://arxiv.org/abs/1810.06784

    Args, returns and errors as for `maml_rl`; η is `inner_kl_weight`.

    >>> from jaxmeta.rl import families, mlp_policy
    >>> family = families.navigation()
    >>> learner = promp(*mlp_policy(family), family.environment)
    """
    return maml_rl(*args, **{"estimator": "lvc", "outer": ppo(), "inner_kl_weight": 5e-4, **kwargs})
