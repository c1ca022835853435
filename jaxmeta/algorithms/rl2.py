"""RL²: a recurrent policy that learns within a trial. Its hidden state is what it has learned of the task.

    h_t = f_θ(h_{t−1}, o_t, a_{t−1}, r_{t−1}, d_{t−1}),  a_t ~ π_θ(· | h_t)     the inner loop: a trial, some episodes
    θ ← θ + β ∇_θ E_task E_trial[Σ_t γ^t r_t]                                   the outer loop: PPO or TRPO

One return goes over the whole trial, through the ends of its episodes, so that what is found out in one pays in the
next. The hidden state begins with the trial and with nothing else.

| the paper                                    | how                                                          |
|----------------------------------------------|--------------------------------------------------------------|
| RL² (Duan et al. 2016)                       | `rl2(..., algorithm="trpo", lambda_=0.3)`, GRUs of 256 units |
| learning to reinforcement learn (Wang 2016)  | `rl2(..., actor=nn.lstm(48), num_epochs=1)`                  |
| E-RL² (Stadie et al. 2018)                   | `num_exploration_episodes`                                   |
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_choice, check_fields, check_integer, check_number
from jaxmeta.nn.recurrent import Recurrent, gru
from jaxmeta.outer import outer_step
from jaxmeta.rl.env import Family, check_environment
from jaxmeta.rl.objectives import importance_weighted, ppo_clip
from jaxmeta.rl.policies import action_head
from jaxmeta.rl.returns import gae
from jaxmeta.rl.rollout import Agent, episode_of, episode_returns, rollout
from jaxmeta.rl.trials import Inputs, Trial, trial
from jaxmeta.rl.trust_region import trust_region
from jaxmeta.types import MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree


class Experience(NamedTuple):
    """What is learned from, `[T, N, ...]`, a trial in each column: what the policy saw, encoded, what it did and how
    likely that was; and the advantage of that, and what the value is fitted to. `mask` is false after the trial."""

    x: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array
    mask: jax.Array


def rl2(
    family: Family,
    *,
    num_episodes: int = 1,
    num_eval_episodes: int | None = None,
    actor: Recurrent = gru(128),
    critic: Recurrent | None = None,
    algorithm: Literal["ppo", "trpo"] = "ppo",
    discount: float = 0.99,
    lambda_: float = 0.95,
    num_epochs: int = 1,
    num_minibatches: int = 8,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float | optax.Schedule = 0.0,
    max_kl: float = 0.01,
    max_grad_norm: float | None = 0.5,
    truncation: int | None = None,
    num_exploration_episodes: int = 0,
    optimizer: optax.GradientTransformation = optax.adam(1e-3),
) -> MetaLearner:
    """Meta-learns a recurrent policy by reinforcement learning over whole trials.

    Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, "RL²: Fast Reinforcement Learning via Slow Reinforcement
    Learning" (2016), https://arxiv.org/abs/1611.02779. E-RL²: Stadie et al., "Some Considerations on Learning to
    Explore via Meta-Reinforcement Learning" (2018), https://arxiv.org/abs/1803.01118. PPO: Schulman et al., "Proximal
    Policy Optimization Algorithms" (2017), https://arxiv.org/abs/1707.06347

    Args:
      family: whose environment's params are the tasks. `update` plays one trial of each task that it is given.
      num_episodes: of a trial.
      num_eval_episodes: of a trial in `adapt` and `evaluate`; `num_episodes` if None.
      actor: the recurrent network of the policy, such as `nn.gru(128)`; a linear layer makes its output actions.
      critic: that of the value, with parameters of its own; of the actor's kind if None.
      algorithm: "ppo", or "trpo": one natural-gradient step of the actor on all trials, Adam on the critic's.
      discount: γ, over the whole trial.
      lambda_: λ of generalised advantage estimation, likewise.
      num_epochs: how often each trial is learned from.
      num_minibatches: steps of an epoch, each on its share of the trials.
      clip: ε of PPO.
      value_weight: of the squared error of the value.
      entropy_weight: of the policy's entropy; or an optax schedule of it, (step of `update`) -> weight.
      max_kl: the bound of TRPO.
      max_grad_norm: what the actor's and the critic's gradient are clipped to, each by itself: the value's may be a
        hundred times the policy's. None does not clip.
      truncation: steps that gradients flow back at most, in blocks of this length; through the whole trial if None.
      num_exploration_episodes: the first episodes of a trial whose rewards are seen but not counted (E-RL²).
      optimizer: the outer optimizer, which steps `num_epochs` · `num_minibatches` times in an update.

    Returns:
      A `MetaLearner`. `evaluate` gives {"return": [num_eval_episodes], "total": [1]}, the undiscounted sum of rewards
      of each episode of a trial and of all of them; `update` reports the means over episodes and trials. `adapt` gives
      the policy's carry after a trial, from which `rl2_agent(...)._replace(carry=carry)` goes on.

    Raises:
      ValueError: an argument is wrong; while tracing, the tasks are not stacked, or do not fit `num_minibatches`.

    >>> from jaxmeta.rl import families
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = rl2(family, actor=gru(4), num_minibatches=2)
    >>> state = learner.init(jax.random.key(0))
    >>> tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 8), family.train.data)
    >>> state, metrics = jax.jit(learner.update)(jax.random.key(2), state, tasks)
    >>> bool(metrics["is_finite"]), sorted(metrics)
    (True, ['entropy', 'grad_norm', 'is_finite', 'loss', 'return', 'total', 'value_loss'])
    """
    check_environment("environment of family", getattr(family, "environment", None))
    check_integer("num_episodes", num_episodes, minimum=1)
    num_eval_episodes = num_episodes if num_eval_episodes is None else num_eval_episodes
    check_integer("num_eval_episodes", num_eval_episodes, minimum=1)
    critic = actor if critic is None else critic
    check_choice("algorithm", algorithm, ("ppo", "trpo"))
    for name, count in (("num_epochs", num_epochs), ("num_minibatches", num_minibatches)):
        check_integer(name, count, minimum=1)
    numbers = {"discount": discount, "lambda_": lambda_, "clip": clip, "value_weight": value_weight}
    numbers |= {} if callable(entropy_weight) else {"entropy_weight": entropy_weight}
    for name, number in numbers.items():
        check_number(name, number)
    if max_grad_norm is not None:
        check_number("max_grad_norm", max_grad_norm, minimum=1e-12)
    check_integer("num_exploration_episodes", num_exploration_episodes, minimum=0)
    if num_exploration_episodes >= num_episodes:
        raise ValueError(f"num_exploration_episodes must be less than num_episodes, got {num_exploration_episodes}")
    check_fields("optimizer", optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    train_trial = trial(family.environment, num_episodes=num_episodes)
    eval_trial = trial(family.environment, num_episodes=num_eval_episodes)
    _check_core("actor", actor, max(train_trial.num_steps, eval_trial.num_steps))
    _check_core("critic", critic, train_trial.num_steps)
    _check_truncation(truncation, train_trial.num_steps)
    policy_net, value_net = _policy_network(family, actor, truncation), _value_network(critic, truncation)
    act = _acting(policy_net, train_trial.encode)
    trust = trust_region(max_kl=max_kl)

    def init(key: jax.Array) -> MetaState:
        actor_key, critic_key = jax.random.split(key)
        num_inputs = _num_inputs(family, train_trial)
        params = {"actor": policy_net.init(actor_key, num_inputs), "critic": value_net.init(critic_key, num_inputs)}
        meta_params = MetaParams(params)
        if algorithm == "ppo":
            opt_state = optimizer.init(meta_params)
        else:
            opt_state = {"actor": trust.init(params["actor"]), "critic": optimizer.init(params["critic"])}
        return MetaState(jnp.int32(0), meta_params, opt_state, jnp.int32(0))

    def play(key: jax.Array, params: Params, tasks: PyTree) -> tuple[Experience, Metrics]:
        """A trial of each task, and what is to be learned from it."""
        keys = jax.random.split(key, _num_tasks(tasks, num_minibatches))
        run = lambda key, task: rollout(key, train_trial, act, params["actor"], actor.start(()), task)[1]
        trials = jax.vmap(run, out_axes=1)(keys, tasks)
        is_counted = episode_of(trials) >= num_exploration_episodes
        value = value_net.apply(params["critic"], trials.extras.x)
        is_last = trials.mask & ~jnp.append(trials.mask[1:], jnp.zeros_like(trials.mask[:1]), axis=0)
        advantage, target = gae(
            jnp.where(is_counted, trials.reward, 0),
            value,
            jnp.append(value[1:], value[:1], axis=0),
            is_last,
            jnp.zeros_like(is_last),
            discount=discount,
            lambda_=lambda_,
        )
        advantage = _normalized(advantage, trials.mask)
        experience = Experience(trials.extras.x, trials.action, trials.extras.log_prob, advantage, target, trials.mask)
        total = jnp.mean(jnp.sum(trials.reward, axis=0))
        return experience, {"return": total / num_episodes, "total": total}

    def policy_loss(
        params: Params, batch: Experience, terms_fn: Callable, of_entropy: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        distribution = policy_net.apply(params, batch.x)
        terms = terms_fn(distribution.log_prob(batch.action), batch.log_prob, batch.advantage)
        entropy = _mean(distribution.entropy(), batch.mask)
        return _mean(terms, batch.mask) - of_entropy * entropy, {"entropy": entropy}

    def value_loss(params: Params, batch: Experience) -> tuple[jax.Array, Metrics]:
        loss = _mean((value_net.apply(params, batch.x) - batch.target) ** 2, batch.mask)
        return loss, {"value_loss": loss}

    def ppo_loss(meta_params: MetaParams, batch: Experience, of_entropy: jax.Array) -> tuple[jax.Array, Metrics]:
        terms_fn = lambda *args: ppo_clip(*args, clip=clip)
        of_policy, entropy = policy_loss(meta_params.params["actor"], batch, terms_fn, of_entropy)
        of_value, metrics = value_loss(meta_params.params["critic"], batch)
        return of_policy + value_weight * of_value, metrics | entropy

    clip_each = lambda grads: MetaParams({name: _clipped(of, max_grad_norm) for name, of in grads.params.items()})

    def descend(key: jax.Array, state: MetaState, loss_fn: Callable, clip_fn: Callable, experience: Experience):
        """The optimizer's steps, over all trials `num_epochs` times."""
        num_trials = experience.mask.shape[1]
        keys = jax.random.split(key, num_epochs)
        orders = jax.vmap(jax.random.permutation, (0, None))(keys, num_trials)

        def step(state: MetaState, chosen: jax.Array) -> tuple[MetaState, Metrics]:
            batch = jax.tree.map(lambda x: x[:, chosen], experience)
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.meta_params, batch)
            return outer_step(optimizer, state, loss, metrics, clip_fn(grads))

        return jax.lax.scan(step, state, orders.reshape(num_epochs * num_minibatches, -1))

    def climb(state: MetaState, experience: Experience, of_entropy: jax.Array) -> tuple[MetaState, Metrics]:
        """TRPO's step of the actor alone."""
        loss_fn = lambda params: policy_loss(params, experience, importance_weighted, of_entropy)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.meta_params)
        stepped, metrics = outer_step(
            trust,
            state,
            loss,
            metrics,
            grads,
            loss_fn=lambda params: loss_fn(params)[0],
            outputs_fn=lambda params: policy_net.apply(params, experience.x),
            kl_fn=lambda old, new: _mean(old.kl(new), experience.mask),
        )
        return stepped, metrics | {"kl": stepped.opt_state.kl, "is_accepted": stepped.opt_state.is_accepted}

    def update(key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
        play_key, learn_key = jax.random.split(key)
        params = state.meta_params.params
        experience, metrics = play(play_key, params, tasks)
        of_entropy = jnp.asarray(entropy_weight(state.step) if callable(entropy_weight) else entropy_weight)
        if algorithm == "ppo":
            loss_fn = partial(ppo_loss, of_entropy=of_entropy)
            stepped, curves = descend(learn_key, state, loss_fn, clip_each, experience)
        else:
            of = lambda name: state._replace(meta_params=params[name], opt_state=state.opt_state[name])
            clip_fn = lambda grads: _clipped(grads, max_grad_norm)
            fitted, curves = descend(learn_key, of("critic"), value_loss, clip_fn, experience)
            climbed, of_actor = climb(of("actor"), experience, of_entropy)
            curves |= jax.tree.map(lambda x: x[None], of_actor)
            stepped = climbed._replace(
                meta_params=MetaParams({"actor": climbed.meta_params, "critic": fitted.meta_params}),
                opt_state={"actor": climbed.opt_state, "critic": fitted.opt_state},
            )
        is_finite = jnp.all(curves.pop("is_finite"))
        metrics |= {name: curve[0] for name, curve in curves.items()} | {"is_finite": is_finite}
        return stepped._replace(step=state.step + 1, num_skipped=state.num_skipped + ~is_finite), metrics

    def adapt_to(key: jax.Array, meta_params: MetaParams, task: PyTree) -> PyTree:
        return rollout(key, eval_trial, act, meta_params.params["actor"], actor.start(()), task)[0]

    def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
        _, steps = rollout(key, eval_trial, act, meta_params.params["actor"], actor.start(()), task)
        return {"return": episode_returns(steps, num_eval_episodes), "total": jnp.sum(steps.reward, keepdims=True)}

    return MetaLearner(init, update, adapt_to, evaluate)


def rl2_agent(family: Family, actor: Recurrent, meta_params: MetaParams) -> Agent:
    """What `rl2(family, actor=actor)` has meta-learned, as an agent: `rollout(key, trial, *agent, task)` runs it.

    Its carry is that of a trial's beginning. In the place of it, what `adapt` returned goes on from there.

    >>> from jaxmeta.rl import families
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> learner = rl2(family, actor=gru(4))
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> task = family.test.sample(jax.random.key(1), family.test.data)
    >>> carry = learner.adapt(jax.random.key(2), meta_params, task)
    >>> agent = rl2_agent(family, gru(4), meta_params)._replace(carry=carry)
    >>> rollout(jax.random.key(3), trial(family.environment), *agent, task)[1].reward.shape
    (10,)
    """
    policy = _acting(_policy_network(family, actor, None), trial(family.environment).encode)
    return Agent(policy, meta_params.params["actor"], actor.start(()))


class _Network(NamedTuple):
    """A recurrent network with a linear layer.

    init:  (key, D) -> params
    step:  (params, carry, x [..., D]) -> (carry, output [..., O])
    apply: (params, xs [T, ..., D]) -> outputs [T, ..., O], from the start of a trial
    """

    init: Callable[[jax.Array, int], Params]
    step: Callable[[Params, PyTree, jax.Array], tuple[PyTree, Any]]
    apply: Callable[[Params, jax.Array], Any]


def _policy_network(family: Family, core: Recurrent, truncation: int | None) -> _Network:
    head = action_head(family.environment.action_space)
    return _network(core, head.num_outputs, head.init(), head.apply, truncation)


def _value_network(core: Recurrent, truncation: int | None) -> _Network:
    return _network(core, 1, {}, lambda params, output: output[..., 0], truncation)


def _network(core: Recurrent, num_outputs: int, more: Params, output_fn: Callable, truncation: int | None) -> _Network:
    def init(key: jax.Array, num_inputs: int) -> Params:
        core_key, head_key = jax.random.split(key)
        kernel = 0.01 * jax.random.normal(head_key, (core.num_outputs, num_outputs)) / core.num_outputs**0.5
        head = {"kernel": kernel, "bias": jnp.zeros(num_outputs)}
        return {"core": core.init(core_key, num_inputs), "head": head, **more}

    def outputs(params: Params, h: jax.Array) -> Any:
        bias = jnp.expand_dims(params["head"]["bias"], range(h.ndim - 1))
        return output_fn(params, h @ params["head"]["kernel"] + bias)

    def step(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, Any]:
        carry, h = core.step(params["core"], carry, x)
        return carry, outputs(params, h)

    def apply(params: Params, xs: jax.Array) -> Any:
        return outputs(params, _sequence(core, params["core"], xs, truncation))

    return _Network(init, step, apply)


def _sequence(core: Recurrent, params: Params, xs: jax.Array, truncation: int | None) -> jax.Array:
    """`core.sequence` from its start; gradients do not flow from one block of `truncation` steps to the one before."""
    start = core.start(xs.shape[1:-1])
    if truncation is None or truncation >= len(xs):
        return core.sequence(params, start, xs)[1]

    def block(carry: PyTree, xs: jax.Array) -> tuple[PyTree, jax.Array]:
        carry, hs = core.sequence(params, carry, xs)
        return jax.lax.stop_gradient(carry), hs

    _, hs = jax.lax.scan(block, start, xs.reshape(-1, truncation, *xs.shape[1:]))
    return hs.reshape(len(xs), *hs.shape[2:])


class _Acted(NamedTuple):
    """What is kept of a step: the encoded inputs, and log π of the action."""

    x: jax.Array
    log_prob: jax.Array


def _acting(network: _Network, encode: Callable[[Inputs], jax.Array]) -> Callable:
    def policy(key: jax.Array, params: Params, carry: PyTree, inputs: Inputs):
        x = encode(inputs)
        carry, distribution = network.step(params, carry, x)
        action = distribution.sample(key)
        return action, carry, _Acted(x, distribution.log_prob(action))

    return policy


def _normalized(advantage: jax.Array, mask: jax.Array) -> jax.Array:
    centred = advantage - _mean(advantage, mask)
    return centred / (jnp.sqrt(_mean(centred**2, mask)) + 1e-8)


def _clipped(grads: Params, max_norm: float | None) -> Params:
    if max_norm is None:
        return grads
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda g: g * jnp.minimum(1, max_norm / (norm + 1e-12)).astype(g.dtype), grads)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Over the steps that were played."""
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)


def _num_inputs(family: Family, of_trial: Trial) -> int:
    encoded = lambda key: of_trial.encode(of_trial.reset(key, family.train.sample(key, family.train.data))[0])
    return jax.eval_shape(encoded, jax.random.key(0)).shape[0]


def _num_tasks(tasks: PyTree, num_minibatches: int) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"tasks must be stacked params, every array with the same leading axis N, got axes {sizes}")
    num_tasks = sizes.pop()[0]
    if num_tasks % num_minibatches:
        raise ValueError(f"num_minibatches must divide the number of tasks, {num_tasks}, got {num_minibatches}")
    return num_tasks


def _check_core(name: str, core: Any, num_steps: int) -> None:
    check_fields(name, core, ("init", "start", "step", "sequence"), "a Recurrent, such as jaxmeta.nn.gru(128)")
    if core.max_steps is not None and core.max_steps < num_steps:
        raise ValueError(f"max_steps of {name} must be at least the trial's {num_steps} steps, got {core.max_steps}")


def _check_truncation(truncation: int | None, num_steps: int) -> None:
    if truncation is None:
        return
    check_integer("truncation", truncation, minimum=1)
    if truncation < num_steps and num_steps % truncation:
        raise ValueError(f"truncation must divide the trial's {num_steps} steps, got {truncation}")
