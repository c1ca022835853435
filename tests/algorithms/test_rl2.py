"""RL²: its update against a loop that plays and differentiates step by step; what acted is what is learned from; the
hidden state; E-RL²'s mask, truncation, TRPO; and what it learns where the best is known."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import PPO, TRPO, VPG, Advantages, nn, rl
from jaxmeta.algorithms.rl2 import clipped, rl2
from jaxmeta.rl.recurrent import recurrent_policy

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, E, H, GAMMA, LAMBDA = 4, 2, 3, 0.9, 0.8
T = E * H
JUDGED = Advantages(discount=GAMMA, gae_lambda=LAMBDA)
close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)


def hall():
    """A hall of three cells; the task says what a step to the right pays, and from the last cell it terminates."""

    def observe(cell):
        return jax.nn.one_hot(cell, 3)

    def reset(key, params):
        return observe(0), jnp.int32(0)

    def step(key, cell, action, params):
        reward = jnp.where(action == 1, params["pay"], 0.1) + 0.1 * jax.random.normal(key)
        cell = cell + action
        return observe(jnp.minimum(cell, 1)), jnp.minimum(cell, 1), reward, cell > 1

    return rl.Environment(reset, step, rl.Discrete(2), H, observe_time=True)


FAMILY = rl.family(hall(), lambda key: {"pay": jax.random.normal(key)})
PAY = np.array([1.0, -1.0, 0.5, 2.0])
CORES = {
    "gru": nn.gru(4),
    "lstm": nn.lstm(4),
    "min_gru": nn.min_gru(4, num_layers=1),
    "causal_transformer": nn.causal_transformer(T, num_units=4, num_layers=1, num_heads=2),
}


def tasks():
    return {"pay": jnp.asarray(PAY)}


def learner(**kwargs):
    return rl2(
        FAMILY,
        **{
            "num_episodes": E,
            "actor": nn.gru(4),
            "critic": nn.gru(3),
            "advantages": JUDGED,
            "outer": PPO(),
            "max_grad_norm": None,
            "optimizer": optax.sgd(1.0),
            **kwargs,
        },
    )


def random_state(learner, key=5):
    """Parameters as large as their gradients matter: those of `init` hardly look at the hidden state."""
    state = learner.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(state.meta_params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    leaves = [0.7 * jax.random.normal(key, leaf.shape, float) for key, leaf in zip(keys, leaves, strict=True)]
    return state._replace(meta_params=jax.tree.unflatten(structure, leaves))


# The loop, written out: one trial after the other, one step after the other.


def head(params, h):
    return h @ params["head"]["kernel"] + params["head"]["bias"]


class Steps(NamedTuple):
    """What happened in one trial, each a list."""

    x: list
    action: list
    log_prob: list
    reward: list
    episode: list


@functools.cache
def played_by_hand():
    """(episodes of a trial) -> (key, params, task) -> `Steps` until they are over."""

    def act(params, carry, x, key):
        carry, h = nn.gru(4).step(params["core"], carry, x)
        action = jax.random.categorical(key, head(params, h))
        return carry, action, jax.nn.log_softmax(head(params, h))[action]

    one = rl.trial(hall(), num_episodes=3)  # a trial knows no number of episodes but for its mask and its end
    act, step_fn, encode = jax.jit(act), jax.jit(one.step), jax.jit(one.encode)

    def play(key, params, task, num_episodes=E):
        reset_key, scan_key = jax.random.split(key)
        inputs, state = jax.jit(one.reset)(reset_key, task)
        carry, steps, episode = jnp.zeros(4), Steps([], [], [], [], []), 0
        for step_key in jax.random.split(scan_key, num_episodes * H):
            policy_key, env_key = jax.random.split(step_key)
            x = encode(inputs)
            carry, action, log_prob = act(params, carry, x, policy_key)
            inputs, state, outcome = step_fn(env_key, state, action, task)
            for values, value in zip(steps, (x, action, log_prob, outcome.reward, episode), strict=True):
                values.append(np.asarray(value))
            episode += bool(outcome.terminated | outcome.truncated)
            if episode == num_episodes:
                break
        return steps

    return play


def outputs_by_hand(params, core, xs, truncation=None):
    """Step by step, the carry cut from what comes before every `truncation` steps."""
    carry, outputs = core.start(()), []
    for t in range(len(xs)):
        if truncation and t % truncation == 0:
            carry = jax.lax.stop_gradient(carry)
        carry, h = core.step(params["core"], carry, xs[t])
        outputs.append(head(params, h))
    return jnp.stack(outputs)


@functools.partial(jax.jit, static_argnames="truncation")
def values_by_hand(params, xs, truncation=None):
    return outputs_by_hand(params, nn.gru(3), xs, truncation)[:, 0]


@functools.partial(jax.jit, static_argnames="truncation")
@functools.partial(jax.value_and_grad)
def sum_of_losses(params, xs, action, old_log_prob, advantage, target, is_played, weights, truncation=None):
    """Of the steps of one trial, filled up to T."""
    clip, value_weight, entropy_weight = weights
    log_probs = jax.nn.log_softmax(outputs_by_hand(params["actor"], nn.gru(4), xs, truncation))
    ratio = jnp.exp(log_probs[jnp.arange(T), action] - old_log_prob)
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    loss += value_weight * (values_by_hand(params["critic"], xs, truncation) - target) ** 2
    loss += entropy_weight * jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return jnp.sum(loss * is_played)


@jax.jit
def logits_by_hand(params, xs):
    return jax.nn.log_softmax(outputs_by_hand(params, nn.gru(4), xs))


def filled(values):
    return np.stack([*values, *[np.zeros_like(values[0])] * (T - len(values))])


def discounted_sum(deltas):
    return sum((GAMMA * LAMBDA) ** i * delta for i, delta in enumerate(deltas))


def learn_by_hand(
    state,
    trials,
    *,
    batches=(range(N),),
    clip=0.2,
    value_weight=0.5,
    entropy_weight=0.0,
    explore=0,
    truncation=None,
    max_grad_norm=np.inf,
):
    """The parameters after steps of gradient descent with rate 1, each on some of the trials; the first loss."""
    params, advantages, targets = state.meta_params.params, [], []
    for steps in trials:
        length = len(steps.reward)
        value = np.append(values_by_hand(params["critic"], filled(steps.x))[:length], 0.0)  # nothing after the trial
        reward = [r if episode >= explore else 0.0 for r, episode in zip(steps.reward, steps.episode, strict=True)]
        delta = [r + GAMMA * value[t + 1] - value[t] for t, r in enumerate(reward)]
        advantages.append(np.array([discounted_sum(delta[t:]) for t in range(length)]))
        targets.append(advantages[-1] + value[:-1])
    every = np.concatenate(advantages)
    advantages = [(a - every.mean()) / (every.std() + 1e-8) for a in advantages]
    losses = []
    for batch in batches:
        found = [
            sum_of_losses(
                params,
                *(filled(values) for values in trials[i][:3]),
                filled(advantages[i]),
                filled(targets[i]),
                np.arange(T) < len(targets[i]),
                (clip, value_weight, entropy_weight),
                truncation=truncation,
            )
            for i in batch
        ]
        count = sum(len(targets[i]) for i in batch)
        losses.append(sum(loss for loss, _ in found) / count)
        mean = jax.tree.map(lambda *grads, count=count: sum(grads) / count, *(grads for _, grads in found))
        for name, grads in mean.items():
            norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads)))
            mean[name] = jax.tree.map(lambda g, norm=norm: g * min(1, max_grad_norm / norm), grads)
        params = jax.tree.map(jnp.subtract, params, mean)
    return params, losses[0]


def shares(num_epochs, num_minibatches, key=1):
    """The trials of each step, as `update` with this key draws them."""
    _, learn_key = jax.random.split(jax.random.key(key))
    orders = [jax.random.permutation(key, N) for key in jax.random.split(learn_key, num_epochs)]
    return [share for order in orders for share in np.split(np.asarray(order), num_minibatches)]


# The arguments of `rl2`, and those of `learn_by_hand`.
CASES = {
    "one step, entropy and the value's weight": (
        {"outer": VPG(), "entropy_weight": 0.3, "advantages": dataclasses.replace(JUDGED, value_weight=2.0)},
        {"entropy_weight": 0.3, "value_weight": 2.0},  # at the policy that acted all ratios are 1
    ),
    "epochs of minibatches, where the clip bites": (
        {"outer": PPO(num_epochs=2, num_minibatches=2, clip=0.05)},
        {"clip": 0.05},
    ),
    "E-RL2, clipped": (
        {"num_exploration_episodes": 1, "max_grad_norm": 0.1},
        {"explore": 1, "max_grad_norm": 0.1},
    ),
    "truncated, an entropy's weight by a schedule": (
        {"truncation": 2, "entropy_weight": lambda step: 0.1 * step},
        {"truncation": 2, "entropy_weight": 0.1 * 3},
    ),
}


@functools.cache
def trials_by_hand(key=1):
    """Cached: what is played does not depend on how it is learned from."""
    play_key, _ = jax.random.split(jax.random.key(key))
    params = random_state(learner()).meta_params.params["actor"]
    keys = jax.random.split(play_key, N)
    return [played_by_hand()(keys[i], params, {"pay": PAY[i]}) for i in range(N)]


def to_the_right(transitions):
    """Of one trial."""
    return {"right": jnp.sum(transitions.action * transitions.mask)}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if i < 2 else pytest.mark.slow) for i, case in enumerate(CASES)]
)
def test_an_update_is_the_loop(x64, case):
    """Trials played, advantages over whole trials, loss and gradients: vectorised, and step by step."""
    kwargs, by_hand = CASES[case]
    learned = learner(metrics_fn=to_the_right, **kwargs)
    state = random_state(learned)._replace(step=jnp.int32(3))
    after, metrics = jax.jit(learned.update)(jax.random.key(1), state, tasks())
    trials = trials_by_hand()
    assert len({len(steps.reward) for steps in trials}) > 1  # some end early: what is masked is not learned from
    outer = kwargs.get("outer", PPO())
    batches = shares(outer.num_epochs, outer.num_minibatches)
    expected, loss = learn_by_hand(state, trials, batches=batches, **by_hand)
    jax.tree.map(close, after.meta_params.params, expected)
    close(metrics["loss"], loss)
    close(metrics["total"], np.mean([sum(steps.reward) for steps in trials]))
    close(metrics["right"], np.mean([sum(steps.action) for steps in trials]))
    assert metrics["num_env_steps"] == sum(len(steps.reward) for steps in trials)
    assert int(after.step) == 4 and int(after.num_skipped) == 0


def test_exploration_rewards_are_seen_and_not_counted(x64):
    """The cases above differ, and the reward is among the inputs of the next step in either."""
    updates = {name: learn_by_hand(random_state(learner()), trials_by_hand(), explore=name)[0] for name in (0, 1)}
    differ = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), *updates.values())
    assert all(jax.tree.leaves(differ))
    for steps in trials_by_hand():
        for reward, x in zip(steps.reward, steps.x[1:], strict=False):
            assert x[-3] == reward  # observation, action, no action, reward, done, time


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("min_gru", "lstm") else []) for name in CORES]
)
def test_what_acted_is_replayed_exactly(x64, name):
    """log π of every action, recorded step by step and computed from the whole sequence; the carry, too, is that of
    the whole trial, across its episodes."""
    core = CORES[name]
    learned = learner(actor=core)
    meta_params = random_state(learned).meta_params
    agent = learned.agent(meta_params)
    trial = rl.trial(hall(), num_episodes=E)
    keys = jax.random.split(jax.random.key(1), N)
    run = jax.jit(jax.vmap(lambda key, task: rl.rollout(key, trial, *agent, task), out_axes=(0, 1)))
    carry, played = run(keys, tasks())
    network = recurrent_policy(rl.Discrete(2), core)
    replayed = jax.jit(network.apply)(agent.params[1], played.extras.x).log_prob(played.action)
    np.testing.assert_allclose(replayed, played.extras.log_prob, rtol=1e-12, atol=1e-12)
    whole = jax.jit(core.sequence)(agent.params[1]["core"], core.start((N,)), played.extras.x)[0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), carry, whole)
    one = jax.tree.map(lambda x: x[0], (keys, tasks()))
    adapted = jax.jit(learned.adapt)(one[0], meta_params, one[1])
    jax.tree.map(close, adapted, jax.tree.map(lambda x: x[0], carry))


def test_evaluate_gives_the_return_of_each_episode(x64):
    learned = learner(num_eval_episodes=3)
    state = random_state(learned)
    params = state.meta_params.params["actor"]
    evaluate = jax.jit(learned.evaluate)
    for i in range(2):
        found = evaluate(jax.random.key(i), state.meta_params, {"pay": jnp.asarray(PAY[i])})
        steps = played_by_hand()(jax.random.key(i), params, {"pay": PAY[i]}, num_episodes=3)
        returns = [sum(r for r, e in zip(steps.reward, steps.episode, strict=True) if e == k) for k in range(3)]
        close(found["return"], returns)
        close(found["total"], [sum(returns)])


def test_truncation_beyond_the_trial_is_none(x64):
    """And within it, it is the loop whose carry is cut, above."""
    state = random_state(learner())
    after = {
        truncation: jax.jit(learner(truncation=truncation).update)(jax.random.key(1), state, tasks())[0]
        for truncation in (None, T)
    }
    jax.tree.map(np.testing.assert_array_equal, after[T].meta_params, after[None].meta_params)
    cut, _ = learn_by_hand(state, trials_by_hand(), truncation=2)
    whole, _ = learn_by_hand(state, trials_by_hand())
    kernel = lambda params: params["actor"]["core"]["input"]["kernel"]
    assert np.max(np.abs(kernel(cut) - kernel(whole))) > 1e-4


def test_trpo_stays_in_its_region_and_leaves_the_critic_to_the_optimizer(x64):
    learned = learner(outer=TRPO(max_kl=0.02, num_critic_epochs=2))
    state = random_state(learned)
    after, metrics = jax.jit(learned.update)(jax.random.key(1), state, tasks())
    assert bool(metrics["is_accepted"]) and 0.005 < float(metrics["kl"]) <= 0.02
    trials = trials_by_hand()
    divergence = []
    for steps in trials:
        old, new = (logits_by_hand(s.meta_params.params["actor"], filled(steps.x)) for s in (state, after))
        divergence += list(jnp.sum(jnp.exp(old) * (old - new), -1)[: len(steps.x)])
    close(metrics["kl"], np.mean(divergence))
    # PPO whose policy loss is 0 has the same critic.
    fitted, _ = learn_by_hand(state, trials, batches=shares(2, 1), value_weight=1.0)
    jax.tree.map(close, after.meta_params.params["critic"], fitted["critic"])


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    learned = learner()
    state = learned.init(jax.random.key(0))
    update = jax.jit(learned.update)
    after, metrics = update(jax.random.key(1), state, {"pay": jnp.array([1.0, jnp.nan, 1.0, 1.0])})
    assert int(after.num_skipped) == 1 and int(after.step) == 1 and not metrics["is_finite"]
    jax.tree.map(np.testing.assert_array_equal, after.meta_params, state.meta_params)
    after, metrics = update(jax.random.key(1), after, tasks())
    assert int(after.num_skipped) == 1 and metrics["is_finite"]


def distance(before, after):
    return optax.tree.norm(jax.tree.map(jnp.subtract, after, before))


@pytest.mark.slow
def test_trials_that_do_not_differ_teach_the_actor_nothing(x64):
    """Whatever is done, a step pays what the task says. Where all tasks say the same, advantages are the critic's error
    and nothing else, and only the critic has something to learn; where one says otherwise, both have."""
    environment = hall()._replace(
        reset=lambda key, params: (jnp.ones(3), jnp.int32(0)),
        step=lambda key, state, action, params: (jnp.ones(3), state, params["pay"], jnp.bool_(False)),
    )
    family = rl.family(environment, lambda key: {"pay": jax.random.normal(key)})
    learned = rl2(family, actor=nn.gru(4), critic=nn.gru(3), outer=TRPO(), optimizer=optax.sgd(1.0))
    state = random_state(learned)
    update, before = jax.jit(learned.update), state.meta_params.params
    after, metrics = update(jax.random.key(1), state, {"pay": jnp.full(N, -1.0)})
    after = after.meta_params.params
    assert distance(before["actor"], after["actor"]) == 0 and distance(before["critic"], after["critic"]) > 1e-3
    assert metrics["kl"] == 0 and not metrics["is_accepted"] and metrics["is_finite"]
    after, metrics = update(jax.random.key(1), state, {"pay": -1.0 + 0.1 * jnp.eye(N)[0]})
    assert distance(before["actor"], after.meta_params.params["actor"]) > 1e-3 and metrics["is_accepted"]


def test_what_a_user_measures_is_reported_beside_the_return():
    learned = learner(num_eval_episodes=3, metrics_fn=to_the_right)
    state = jax.eval_shape(learned.init, jax.random.key(0))
    curves = jax.eval_shape(learned.evaluate, jax.random.key(1), state.meta_params, {"pay": 1.0})
    assert {name: curve.shape for name, curve in curves.items()} == {"right": (1,), "return": (3,), "total": (1,)}
    for measured, says in (
        (lambda played: {"loss": 1.0}, "metrics_fn must use other names"),
        (lambda played: played.reward, "metrics_fn must return a dict"),
        (lambda played: {"pay": played.reward}, "pay has the shape"),
    ):
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(learner(metrics_fn=measured).update, jax.random.key(1), state, tasks())


def test_an_agent_begins_a_trial_or_goes_on_from_what_adapt_returned(x64):
    """A trial of two episodes is one of one, and another that goes on from it."""
    learned = learner(num_eval_episodes=1)
    meta_params, task = random_state(learned).meta_params, {"pay": jnp.asarray(PAY[0])}
    carry = jax.jit(learned.adapt)(jax.random.key(1), meta_params, task)
    close(learned.agent(meta_params).carry, np.zeros(4))
    jax.tree.map(np.testing.assert_array_equal, learned.agent(meta_params, carry).carry, carry)
    run = jax.jit(
        lambda carry: rl.rollout(jax.random.key(2), rl.trial(hall()), *learned.agent(meta_params, carry), task)
    )
    assert np.abs(run(carry)[1].extras.log_prob - run(None)[1].extras.log_prob).max() > 1e-4
    assert learned.unit == "episode"


def test_a_gradient_is_no_longer_than_its_bound():
    assert clipped(jnp.array([3.0, 4.0]), None).tolist() == [3.0, 4.0]
    np.testing.assert_allclose(clipped(jnp.array([0.3, 0.4]), 1.0), [0.3, 0.4], rtol=1e-6)


# Probes: tasks whose best policy is known, learned in seconds.


def two_doors(max_steps):
    """One of two actions pays 1, which of them is the task. The best: try one, and know: E or H minus a half."""

    def step(key, state, action, task):
        return jnp.ones(1), state, (action == task).astype(float), jnp.bool_(False)

    environment = rl.Environment(lambda key, task: (jnp.ones(1), ()), step, rl.Discrete(2), max_steps)
    return rl.finite_family(environment, jnp.arange(2), jnp.arange(2))


def trained(family, num_steps, num_tasks=64, **kwargs):
    learned = rl2(
        family,
        **{
            "actor": nn.gru(16),
            "outer": PPO(num_minibatches=2),
            "advantages": Advantages(gae_lambda=0.9),
            "optimizer": optax.adam(2e-2),
            **kwargs,
        },
    )
    state, _ = jaxmeta.fit(
        jax.random.key(0), learned, family.train, num_outer_steps=num_steps, num_tasks=num_tasks, progress=False
    )
    tasks = family.test._replace(at=None, size=None)  # with repeats: the policy's draws are averaged
    report = jaxmeta.evaluate(jax.random.key(1), learned, tasks, state.meta_params, num_tasks=200)
    return report.metrics["total"]["mean"][0]


@pytest.mark.parametrize(
    ("outer", "max_steps", "num_episodes"),
    [
        pytest.param(PPO(num_minibatches=2), 1, 4, marks=pytest.mark.slow),
        pytest.param(PPO(num_minibatches=2), 4, 1, marks=pytest.mark.slow),
        pytest.param(TRPO(max_kl=0.05, num_critic_epochs=4, num_critic_minibatches=2), 1, 4, marks=pytest.mark.slow),
    ],
    ids=["PPO, across episodes", "PPO, within one", "TRPO, across episodes"],
)
def test_learns_to_remember_what_paid(outer, max_steps, num_episodes):
    """Across episodes of one step, the only reward there is is the last one of an episode that is over."""
    total = trained(two_doors(max_steps), 60, num_episodes=num_episodes, outer=outer)
    assert 3.3 < total <= 3.75  # 3.5 on average; without memory 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "min_gru", "causal_transformer"])
def test_other_cores_learn_to_remember_too(name):
    core = {
        "lstm": nn.lstm(16),
        "min_gru": nn.min_gru(16),
        "causal_transformer": nn.causal_transformer(4, num_units=16, num_layers=1),
    }[name]
    assert trained(two_doors(4), 60, actor=core) > 3.3


@pytest.mark.slow
def test_learns_real_actions():
    """Paid −|a − goal| for a goal of ±0.5 that is found out by the first reward: at best about −0.5 in 4 steps,
    without memory −2."""

    def step(key, state, action, task):
        return jnp.ones(1), state, -jnp.abs(action[0] - task), jnp.bool_(False)

    space = rl.Continuous(np.full(1, -1, np.float32), np.full(1, 1, np.float32))
    environment = rl.Environment(lambda key, task: (jnp.ones(1), ()), step, space, 4)
    goals = jnp.array([-0.5, 0.5])
    assert trained(rl.finite_family(environment, goals, goals), 200) > -1.3
