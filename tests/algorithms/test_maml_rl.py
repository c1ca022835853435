"""MAML for reinforcement learning: its update against a loop that plays and differentiates step by step; replay; the
outer loops; what it learns where the answer is known. `test_maml_rl_exact.py` holds its estimators against enumeration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

import jaxmeta
from jaxmeta import PPO, TRPO, VPG, Advantages, Surrogate, adapt, rl

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, K, E, GAMMA, RATE = 3, 2, 4, 0.9, 0.3
STEPWISE = {
    "num_inner_steps": K,
    "num_episodes": E,
    "advantages": Advantages(discount=GAMMA),
    "inner_optimizer": adapt.sgd(RATE),
    "microbatch": N,  # left alone it is chosen, by a trace more
}
AS_THEY_ARE = Advantages(normalize=False)


def hall(max_steps=4):
    """A hall of three cells; the task says what a step to the right pays, and from the last cell it terminates."""

    def observe(cell):
        return jax.nn.one_hot(cell, 3)

    def reset(key, params):
        return observe(0), jnp.int32(0)

    def step(key, cell, action, params):
        reward = jnp.where(action == 1, params["pay"], 0.1) + 0.1 * jax.random.normal(key)
        cell = cell + action
        return observe(jnp.minimum(cell, 2)), jnp.minimum(cell, 2), reward, cell > 2

    return rl.Environment(reset, step, rl.Discrete(2), max_steps)


FAMILY = rl.family(hall(), lambda key: {"pay": jax.random.normal(key)})
POLICY = rl.mlp_policy(FAMILY, hidden=(4,))
TASKS = {"pay": jnp.array([1.0, -1.0, 0.5])}


def gradient_of(learner, key=1):
    """With `sgd(1)` outside, the difference of the parameters is the gradient."""
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(jax.random.key(key), state, in_precision(TASKS))
    return state.meta_params, jax.tree.map(jnp.subtract, state.meta_params, after.meta_params), metrics


def in_precision(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def learner(**kwargs):
    init_fn = lambda key: in_precision(POLICY.init(key))
    by_gradients = {} if isinstance(kwargs.get("outer"), TRPO) else {"outer": VPG(), "optimizer": optax.sgd(1.0)}
    return jaxmeta.maml_rl(init_fn, POLICY.apply, hall(), **{**STEPWISE, **by_gradients, **kwargs})


# The loop, written out: each episode is a Python list of its steps.


ONE = rl.trial(hall())
reset_fn, step_fn = jax.jit(ONE.reset), jax.jit(ONE.step)
act = jax.jit(lambda key, params, o: POLICY.apply(params, o).sample(key))
log_prob_of = jax.jit(lambda params, o, a: POLICY.apply(params, o).log_prob(a))


def play(key, params, task):
    """E episodes, each a list of (observation, action, reward), the reward to go added last."""
    episodes = []
    for episode_key in jax.random.split(key, E):
        reset_key, scan_key = jax.random.split(episode_key)
        inputs, state = reset_fn(reset_key, task)
        steps = []
        for step_key in jax.random.split(scan_key, ONE.num_steps):
            policy_key, env_key = jax.random.split(step_key)
            action = act(policy_key, params, inputs.observation)
            observation = inputs.observation
            inputs, state, outcome = step_fn(env_key, state, action, task)
            steps.append([observation, action, float(outcome.reward)])
            if outcome.terminated or outcome.truncated:
                break
        to_go = 0.0
        for step in reversed(steps):
            to_go = step[2] + GAMMA * to_go
            step.append(to_go)
        episodes.append(steps)
    return episodes


def with_advantages(episodes, baseline):
    """[(observation [S, D], action [S], advantage [S])] for each episode."""
    features = [
        [[*o, *np.square(o), t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0] for t, (o, *_) in enumerate(steps)]
        for steps in episodes
    ]
    to_go = [[step[3] for step in steps] for steps in episodes]
    weights = np.zeros(len(features[0][0]))
    if baseline == "linear":
        rows, targets = np.concatenate([np.array(f) for f in features]), np.concatenate([np.array(g) for g in to_go])
        weights = np.linalg.solve(rows.T @ rows + 1e-5 * np.eye(len(weights)), rows.T @ targets)
    advantages = [np.array(g) - np.array(f) @ weights for f, g in zip(features, to_go, strict=True)]
    every = np.concatenate(advantages)
    advantages = [(a - every.mean()) / (every.std() + 1e-8) for a in advantages]
    return [
        (jnp.stack([s[0] for s in steps]), jnp.stack([s[1] for s in steps]), a)
        for steps, a in zip(episodes, advantages, strict=True)
    ]


def loss_by_hand(params, episodes, estimator):
    total, count = 0.0, 0
    for observation, action, advantage in episodes:
        log_prob = jnp.stack([log_prob_of(params, o, a) for o, a in zip(observation, action, strict=True)])
        ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))
        if estimator == "biased":
            terms = log_prob * advantage
        elif estimator == "lvc":
            terms = ratio * advantage
        else:  # DiCE: the probability of all actions so far, less that of all but the last
            upto = jnp.cumsum(log_prob)
            magic = lambda x: jnp.exp(x - jax.lax.stop_gradient(x))
            terms = (magic(upto) - magic(upto - log_prob)) * advantage
        total, count = total - terms.sum(), count + len(advantage)
    return total / count


def brute_force(params, key, estimator, baseline):
    """The gradient of the mean over tasks, and the mean undiscounted return after adaptation."""
    sample_key, _ = jax.random.split(key)
    grads, returns = [], []
    for i, task_key in enumerate(jax.random.split(sample_key, N)):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], in_precision(TASKS))
        before_key, after_key = jax.random.split(task_key)
        fast, recorded = params, []
        descend = lambda theta, episodes: jax.tree.map(
            lambda p, g: p - RATE * g, theta, jax.grad(loss_by_hand)(theta, episodes, estimator)
        )
        for step_key in jax.random.split(before_key, K):
            recorded.append(with_advantages(play(step_key, fast, task), baseline))
            fast = descend(fast, recorded[-1])
        played = play(after_key, fast, task)
        after = with_advantages(played, baseline)
        returns.append(np.mean([sum(step[2] for step in steps) for steps in played]))

        def outer(theta, recorded=recorded, after=after, descend=descend):
            for episodes in recorded:
                theta = descend(theta, episodes)
            return loss_by_hand(theta, after, "lvc")

        grads.append(jax.grad(outer)(params))
    return jax.tree.map(lambda *g: sum(g) / N, *grads), np.mean(returns)


@pytest.mark.parametrize(
    ("estimator", "baseline"),
    [  # every estimator is held against enumeration in test_maml_rl_exact.py
        ("lvc", "linear"),
        pytest.param("dice", "linear", marks=pytest.mark.slow),
        pytest.param("biased", "none", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_update_is_that_of_a_loop_over_tasks_episodes_and_steps(x64, estimator, baseline):
    meta_params, grads, metrics = gradient_of(learner(surrogate=Surrogate(estimator=estimator), baseline=baseline))
    expected, mean_return = brute_force(meta_params.params, jax.random.key(1), estimator, baseline)
    assert_close(grads.params, expected, rtol=1e-7)
    assert_close(metrics["return"], mean_return, rtol=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"meta_gradient": adapt.mixed_mode(), "microbatch": 1}, marks=pytest.mark.slow),
        pytest.param({"meta_gradient": adapt.mixed_mode()}, marks=pytest.mark.slow),
        pytest.param({"microbatch": 1}, marks=pytest.mark.slow),
        pytest.param({"meta_gradient": adapt.auto()}, marks=pytest.mark.slow),
    ],
)
def test_other_ways_to_the_same_gradient(x64, how):
    surrogate = Surrogate(exploration_weight=1.0, inner_kl_weight=0.3)
    everything = {"surrogate": surrogate, "inner_optimizer": adapt.meta_sgd(RATE)}
    _, expected, _ = gradient_of(learner(**everything, microbatch=None))
    _, found, _ = gradient_of(learner(**everything, **how))
    assert_close(found, expected, rtol=1e-9)


@pytest.mark.slow
def test_first_order_is_another_gradient_and_anil_adapts_the_head_alone(x64):
    _, exact, _ = gradient_of(learner())
    _, constant, _ = gradient_of(learner(meta_gradient=adapt.first_order()))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, exact, constant)) > 1e-3 * optax.tree.norm(exact)

    anil = learner(inner_optimizer=adapt.adapt_only(adapt.sgd(RATE), "head"))
    state = anil.init(jax.random.key(0))
    adapted = jax.jit(anil.adapt)(jax.random.key(1), state.meta_params, {"pay": jnp.float64(1.0)}).params["params"]
    before = state.meta_params.params["params"]
    assert_close(adapted["hidden0"], before["hidden0"], rtol=0)
    assert np.abs(adapted["head"]["kernel"] - before["head"]["kernel"]).max() > 1e-3


def pulls(pays, num_pulls=1):
    """A bandit that pays what the task says of each arm, without noise; everything there is to see is 1."""
    reset = lambda key, params: (jnp.ones(1), ())
    step = lambda key, state, arm, params: (jnp.ones(1), (), params[arm], jnp.bool_(False))
    environment = rl.Environment(reset, step, rl.Discrete(len(pays[0])), num_pulls)
    return rl.finite_family(environment, jnp.array(pays), jnp.array(pays))


def logits(num_arms=2):
    return lambda key: jnp.zeros(num_arms), lambda params, observation: rl.distributions.Categorical(params)


def test_replayed_adaptation_is_live_adaptation(x64):
    """Only then are all ratios 1, and the outer loss of single pulls minus their mean return; and only then have the
    policies that acted no divergence from those of the replay."""
    family = pulls([[1.0, 0.3], [0.2, 0.9]])
    found = jaxmeta.maml_rl(
        *logits(),
        family.environment,
        num_inner_steps=3,
        num_episodes=5,
        baseline="none",
        advantages=AS_THEY_ARE,
        inner_optimizer=adapt.sgd(1.0),
        surrogate=Surrogate(inner_kl_weight=1e3),
        outer=PPO(num_epochs=2),
    )
    state = found.init(jax.random.key(0))
    _, metrics = jax.jit(found.update)(jax.random.key(1), state, jnp.array([[1.0, 0.3], [0.2, 0.9]]))
    assert_close(metrics["loss"], -metrics["return"], rtol=1e-12)


def test_a_value_bootstraps_at_the_time_limit_and_the_linear_baseline_does_not(x64):
    """Single pulls that pay 1, a value of 3: A = 1 + γ·3 − 3 and a target of 1 + γ·3, for the limit is no end."""
    family = pulls([[1.0, 1.0]])
    init_fn, apply_fn = logits()
    valued = lambda params, observation: (apply_fn(params, observation), jnp.asarray(3.0))
    tasks = jnp.ones((2, 2))

    def loss(value_weight=0.5, **kwargs):
        advantages = Advantages(discount=0.5, value_weight=value_weight, normalize=False)
        common = {"num_episodes": 4, "advantages": advantages, "outer": VPG()}
        found = jaxmeta.maml_rl(init_fn, environment=family.environment, **common, **kwargs)
        return jax.jit(found.update)(jax.random.key(1), found.init(jax.random.key(0)), tasks)[1]["loss"]

    assert_close(loss(apply_fn=valued, baseline="value", value_weight=2.0), -(1 + 1.5 - 3) + 2 * 0.25, rtol=1e-12)
    assert_close(loss(apply_fn=apply_fn, baseline="none"), -1.0, rtol=1e-12)


def test_the_trust_region_holds_after_adaptation():
    length = lambda transitions: {"length": jnp.sum(transitions.mask).astype(float)}
    found = learner(outer=TRPO(max_kl=0.01), metrics_fn=length)
    _, metrics = jax.jit(found.update)(jax.random.key(1), found.init(jax.random.key(0)), TASKS)
    assert metrics["is_accepted"] and 0.002 < metrics["kl"] <= 0.01
    # Steps are those that were played: before the first inner step, before the second, and after it.
    of_first_and_last = N * (metrics["length"] + metrics["length_before"])
    assert of_first_and_last < metrics["num_env_steps"] < of_first_and_last + N * E * hall().max_steps


@pytest.mark.parametrize("outer", [PPO(num_epochs=3), TRPO()], ids=["ppo", "trpo"])
def test_an_update_that_is_not_finite_is_skipped_and_counted_once(outer):
    found = learner(outer=outer, num_inner_steps=1)
    state = found.init(jax.random.key(0))
    tasks = {"pay": jnp.array([jnp.nan, 1.0, 1.0])}
    after, metrics = jax.jit(found.update)(jax.random.key(1), state, tasks)
    assert not metrics["is_finite"] and (after.step, after.num_skipped) == (1, 1)
    assert_close(after.meta_params, state.meta_params, rtol=0)


@pytest.mark.parametrize("constructor", [jaxmeta.promp, pytest.param(jaxmeta.e_maml, marks=pytest.mark.slow)])
def test_which_of_two_arms_pays_is_learned_by_one_step(constructor):
    """Told nothing, half of the pulls pay; a step on ten of them can tell, and without it nothing can."""
    family = pulls([[1.0, 0.0], [0.0, 1.0]], num_pulls=5)
    rate = {"inner_optimizer": adapt.sgd(8.0), "num_episodes": 2}
    found = constructor(*logits(), family.environment, outer=VPG(), optimizer=optax.adam(0.03), **rate)
    state, _ = jaxmeta.fit(jax.random.key(0), found, family.train, num_outer_steps=100, num_tasks=8, progress=False)
    tasks = family.test._replace(at=None, size=None)  # with repeats: the policy's draws are averaged
    curve = jaxmeta.evaluate(jax.random.key(1), found, tasks, state.meta_params, num_tasks=200).metrics["return"]
    assert abs(curve["mean"][0] - 2.5) < 0.5 and curve["mean"][1] > 4.5


def test_e_maml_credits_only_what_its_own_task_did(x64):
    """Where all tasks return the same there is nothing to credit, and its gradient is that of the same without."""
    family = pulls([[1.0, 1.0]])
    common = {"num_episodes": 4, "baseline": "none", "advantages": AS_THEY_ARE}
    common |= {"outer": VPG(), "optimizer": optax.sgd(1.0)}
    biased = Surrogate(estimator="biased")
    tasks = jnp.ones((3, 2))

    def updated(found, tasks):
        return jax.jit(found.update)(jax.random.key(1), found.init(jax.random.key(0)), tasks)[0].meta_params.params

    with_credit = jaxmeta.e_maml(*logits(), family.environment, **common)
    without = jaxmeta.maml_rl(*logits(), family.environment, surrogate=biased, **common)
    assert_close(updated(with_credit, tasks), updated(without, tasks), rtol=1e-12)
    tasks = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    different = updated(with_credit, tasks) - updated(without, tasks)
    assert np.abs(different).max() > 1e-3


def test_adapt_gives_the_policy_and_its_episodes_and_evaluate_every_step():
    counted = lambda transitions: {"right": jnp.mean(transitions.action.astype(float))}
    found = learner(num_eval_steps=3, metrics_fn=counted)
    meta_params = found.init(jax.random.key(0)).meta_params
    adapted = jax.jit(found.adapt)(jax.random.key(1), meta_params, {"pay": 1.0})
    assert adapted.transitions.reward.shape == (3, 4, E)
    assert POLICY.apply(adapted.params, jnp.zeros(3)).logits.shape == (2,)
    curves = jax.jit(found.evaluate)(jax.random.key(1), meta_params, {"pay": 1.0})
    assert {name: curve.shape for name, curve in curves.items()} == {"return": (4,), "right": (4,)}


@pytest.mark.parametrize(
    "arguments", [{}, pytest.param({"outer": TRPO()}, marks=pytest.mark.slow)], ids=["the default", "trpo"]
)
def test_one_compilation_nothing_on_the_host_and_seeds_together(num_compiled, arguments):
    found = learner(num_inner_steps=1, **arguments)
    run = lambda key: jaxmeta.fit(
        key, found, FAMILY.train, num_outer_steps=2, num_tasks=N, chunk_size=2, progress=False
    )
    run(jax.random.key(0))
    num_compiled()
    state, _ = run(jax.random.key(1))
    assert num_compiled() == 0

    update = jax.jit(found.update)
    arguments = jax.device_put((jax.random.key(1), state, TASKS))
    update(*arguments)
    with jax.transfer_guard("disallow"):
        update(*arguments)

    both, _ = run(jax.random.split(jax.random.key(0), 2))
    assert both.step.shape == (2,)


@pytest.mark.slow
def test_minibatches_are_shares_of_the_tasks(x64):
    """Three steps, each on another third of the tasks, are as small as they are three on all of them."""
    family = pulls([[1.0, 0.3], [0.2, 0.9], [0.5, 0.6]], num_pulls=2)
    common = {"num_episodes": 2, "baseline": "none", "optimizer": optax.sgd(1e-6)}
    moved = []
    for outer in (PPO(num_minibatches=3), PPO(num_epochs=3)):
        found = jaxmeta.maml_rl(*logits(), family.environment, outer=outer, **common)
        after, _ = jax.jit(found.update)(jax.random.key(1), found.init(jax.random.key(0)), family.train.data)
        moved.append(1e6 * after.meta_params.params)
    assert_close(*moved, rtol=1e-4)
    assert np.abs(moved[0]).max() > 0.01
    found = jaxmeta.maml_rl(*logits(), family.environment, outer=PPO(num_minibatches=2), **common)
    with pytest.raises(ValueError, match="num_minibatches must divide the number of tasks, 3, got 2"):
        jax.eval_shape(found.update, jax.random.key(1), found.init(jax.random.key(0)), family.train.data)


def waiting(num_steps):
    """Every step costs 1, and where the task says so a step to the right a little less; one sees where one is."""

    def reset(key, bonus):
        place = jax.random.uniform(key, (1,))
        return place, place

    def step(key, place, action, bonus):
        place = place + 0.1 * action
        return place, place, -1.0 + bonus * (action == 1), jnp.bool_(False)

    return rl.Environment(reset, step, rl.Discrete(2), num_steps)


@pytest.mark.slow
def test_where_no_action_made_a_difference_nothing_is_learned():
    """The error of the baseline is small against the returns, and was normalised to 1: TRPO took a full step."""
    found = jaxmeta.maml_rl(*logits(), waiting(60), num_episodes=3, outer=TRPO())
    state, update = found.init(jax.random.key(0)), jax.jit(found.update)
    after, metrics = update(jax.random.key(1), state, jnp.zeros(2))
    assert_close(after.meta_params, state.meta_params, rtol=0)
    assert metrics["kl"] == 0 and metrics["loss"] == 0 and not metrics["is_accepted"] and metrics["is_finite"]
    _, metrics = update(jax.random.key(1), state, jnp.array([0.0, 0.01]))  # a hundredth, in one of the tasks
    assert metrics["is_accepted"] and metrics["kl"] > 1e-3


def test_no_credit_is_divided_by_what_is_no_scale():
    """In neither task do episodes differ, but one task costs twice as much as the other."""
    costly = waiting(5)._replace(step=lambda key, place, action, cost: (place, place, cost, jnp.bool_(False)))
    found = jaxmeta.e_maml(*logits(), costly, num_episodes=3, outer=VPG(), optimizer=optax.sgd(1.0))
    _, metrics = jax.jit(found.update)(jax.random.key(1), found.init(jax.random.key(0)), jnp.array([-1.0, -2.0]))
    assert metrics["grad_norm"] == 0


def test_an_agent_acts_as_evaluate_does(x64):
    """One episode of `evaluate` before adaptation and one after it are the agents', with the same keys."""
    family, task = pulls([[1.0, 0.3]], num_pulls=8), jnp.array([1.0, 0.3])
    how = {"num_episodes": 1, "baseline": "none", "inner_optimizer": adapt.sgd(20.0)}
    found = jaxmeta.maml_rl(*logits(), family.environment, **how)
    meta_params = found.init(jax.random.key(0)).meta_params
    before_key, after_key = jax.random.split(jax.random.key(3))
    adapted = jax.jit(found.adapt)(before_key, meta_params, task)
    returns = jax.jit(found.evaluate)(jax.random.key(3), meta_params, task)["return"]

    @jax.jit
    def played(key, agent_params):
        agent = found.agent(meta_params)._replace(params=agent_params)
        return jnp.sum(rl.rollout(jax.random.split(key, 1)[0], rl.trial(family.environment), *agent, task)[1].reward)

    agents = found.agent(meta_params), found.agent(meta_params, adapted)
    keys = jax.random.split(before_key, 1)[0], after_key
    assert_close(jnp.stack([played(key, agent.params) for key, agent in zip(keys, agents, strict=True)]), returns)
    assert np.abs(agents[0].params[1] - agents[1].params[1]).max() > 0.1 and found.unit == "step"
    with pytest.raises(ValueError, match="adapted must be what adapt returned"):
        found.agent(meta_params, adapted.params)


BAD_POLICIES = {
    "a batch of one": (lambda params, o: rl.distributions.Categorical(jnp.zeros((1, 2))), "samples of shape \\(1,\\)"),
    "a real action": (lambda params, o: rl.distributions.Gaussian(jnp.zeros(2), jnp.zeros(2)), "shape \\(\\), of one"),
    "too many actions": (lambda params, o: rl.distributions.Categorical(jnp.zeros(3)), "2 logits, .* got 3"),
    "a value too many": (lambda params, o: (rl.distributions.Categorical(jnp.zeros(2)), 0.0), "a distribution"),
}


@pytest.mark.parametrize("name", BAD_POLICIES)
def test_a_policy_that_returns_something_else_is_named(name):
    apply_fn, says = BAD_POLICIES[name]
    found = jaxmeta.maml_rl(POLICY.init, apply_fn, hall())
    with pytest.raises(ValueError, match=f"apply_fn must return .*{says}"):
        jax.eval_shape(found.update, jax.random.key(1), found.init(jax.random.key(0)), TASKS)


def test_a_value_is_a_scalar():
    apply_fn = lambda params, o: (POLICY.apply(params, o), jnp.zeros(1))
    found = jaxmeta.maml_rl(POLICY.init, apply_fn, hall(), baseline="value")
    with pytest.raises(ValueError, match=r"apply_fn must return a value of shape \(\)"):
        jax.eval_shape(found.update, jax.random.key(1), found.init(jax.random.key(0)), TASKS)


def test_an_optimizer_is_of_what_has_a_rate():
    with pytest.raises(ValueError, match="optimizer must be None with TRPO"):
        learner(outer=TRPO(), optimizer=optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"got a Family: give family\.environment"):
        jaxmeta.maml_rl(*POLICY, FAMILY)


def test_what_is_wrong_is_said_while_tracing():
    found = jaxmeta.maml_rl(POLICY.init, lambda params, o: jnp.zeros(2), hall())
    with pytest.raises(ValueError, match="apply_fn must return a distribution"):
        found.update(jax.random.key(1), found.init(jax.random.key(0)), TASKS)
    with pytest.raises(ValueError, match="tasks must be stacked"):
        learner().update(jax.random.key(1), learner().init(jax.random.key(0)), {"pay": jnp.ones(())})
