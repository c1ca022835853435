"""PEARL: beliefs against closed forms, Algorithms 1 and 2, buffers that do not mix, and what every learner promises.

The tasks are numbers that are paid as they are, so that a reward tells whose it is.
"""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import rl
from jaxmeta.algorithms.beliefs import Encoder, mean_of_points, mlp_encoder, product_of_gaussians
from jaxmeta.algorithms.pearl import (
    Memory,
    MetaTest,
    Replay,
    Visits,
    draw,
    experience_of,
    first_episodes,
    pearl,
    report,
    sac,
)
from jaxmeta.algorithms.sac import ActorCritic, Experience, SoftActorCritic, mlp_actor_critic
from jaxmeta.rl.distributions import TanhGaussian
from jaxmeta.rl.replay import Buffers
from jaxmeta.training.checkpoint import restore_state, save_state

pytestmark = pytest.mark.usefixtures("strict_shapes")


def payments(max_steps=4, ends_at=None):
    """Pays the task at every step. The observation is the time; where the task is negative, time `ends_at` ends it."""

    def reset(key, params):
        return jnp.zeros(1), jnp.zeros(1)

    def step(key, state, action, params):
        is_end = jnp.bool_(False) if ends_at is None else (state[0] + 1 >= ends_at) & (params < 0)
        return state + 1, state + 1, jnp.asarray(params, float), is_end

    box = rl.Continuous(np.full(1, -2.0, np.float32), np.full(1, 2.0, np.float32))
    return rl.family(rl.Environment(reset, step, box, max_steps), lambda key: jax.random.uniform(key, minval=0.5))


def paid_for_actions(**changes):
    """The same, and pays the action too."""
    base = payments(**changes)

    def step(key, state, action, params):
        observation, state, reward, terminated = base.environment.step(key, state, action, params)
        return observation, state, reward + action[0], terminated

    return base._replace(environment=base.environment._replace(step=step))


def told_by_z(**changes):
    """An actor whose mode is tanh z, nearly without deviation, and critics that know all but z."""

    def init(key):
        return {"actor": jnp.ones(()), "critic": (jnp.ones(()), jnp.ones(()))}

    def actor(scale, observation, z):
        return TanhGaussian(scale * z, jnp.full_like(z, -9.0))

    def critic(params, observation, action, z):
        return jnp.concatenate([w * (observation + action) for w in params], axis=1)

    return ActorCritic(init, actor, critic, latent_size=1)._replace(**changes)


def blind(scale, observation, z):
    """An actor that does not look at z."""
    return TanhGaussian(scale * observation, jnp.zeros_like(z))


def mean_reward(variance, context="probabilistic"):
    """What is paid, with a variance."""
    apply = lambda params, rows: (params * rows.reward[:, None], jnp.full((len(rows.reward), 1), variance))
    return Encoder(lambda key: jnp.ones(()), apply, latent_size=1, context=context)


def known(values):
    """Stacked training tasks in this order, as `update` takes them."""
    return rl.IndexedTask(jnp.arange(len(values)), jnp.asarray(values, jnp.float32), len(values))


SMALL = Replay(num_gradient_steps=2, batch_size=4, num_batch_tasks=3, capacity=32)


def small(family, actor_critic=None, encoder=None, **changes):
    """Of a few numbers, so that it compiles in no time."""
    actor_critic = told_by_z() if actor_critic is None else actor_critic
    encoder = mean_reward(variance=0.5) if encoder is None else encoder
    return pearl(family, actor_critic, encoder, **{"num_train_tasks": 3, "replay": SMALL, **changes})


@functools.cache
def usual():
    """A learner, and its `init` and `update` compiled, for all tests that do with it."""
    learner = small(payments(), replay=replace(SMALL, num_gradient_steps=10))
    return learner, jax.jit(learner.init), jax.jit(learner.update)


USUAL = rl.indexed_tasks(jnp.array([1.0, 2.0, 3.0]))


FACTORS = np.random.default_rng(0)
MEAN, VARIANCE = FACTORS.normal(size=(6, 3)), FACTORS.uniform(0.2, 3.0, size=(6, 3))
ALL = np.ones(6, bool)


def once(learner, tasks):
    """The state before and after an update, and its metrics."""

    def run(key):
        state = learner.init(key)
        return state, *learner.update(jax.random.key(1), state, tasks)

    return jax.jit(run)(jax.random.key(0))


def test_the_belief_is_the_normalised_product_of_the_factors(x64):
    """By quadrature in float64: mean and variance of the product of six densities."""
    grid = np.linspace(-15, 15, 20_001)[:, None, None]
    density = np.exp(-((grid - MEAN) ** 2) / (2 * VARIANCE)).prod(axis=1)
    density /= density.sum(axis=0)
    mean = (density * grid[:, 0]).sum(axis=0)
    variance = (density * (grid[:, 0] - mean) ** 2).sum(axis=0)
    belief = product_of_gaussians(jnp.asarray(MEAN), jnp.asarray(VARIANCE), jnp.asarray(ALL))
    np.testing.assert_allclose(belief.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(jnp.exp(2 * belief.log_std), variance, rtol=1e-10)


def test_kl_to_the_prior_by_quadrature(x64):
    belief = product_of_gaussians(jnp.asarray(MEAN), jnp.asarray(VARIANCE), jnp.asarray(ALL))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    mean, log_std = map(np.asarray, belief)
    z = mean + np.exp(log_std) * nodes[:, None]
    log_q = -((nodes[:, None]) ** 2) / 2 - log_std
    expected = (weights / weights.sum()) @ np.sum(log_q + z**2 / 2, axis=1)
    prior = product_of_gaussians(jnp.asarray(MEAN), jnp.asarray(VARIANCE), jnp.zeros(6, bool))
    np.testing.assert_allclose(belief.kl(prior), expected, rtol=1e-10)


def test_the_belief_has_no_order_narrows_and_sees_no_masked_factor(x64):
    product = lambda m, v, mask: product_of_gaussians(*map(jnp.asarray, (m, v, mask)))
    belief, order = product(MEAN, VARIANCE, ALL), np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(jnp.stack(product(MEAN[order], VARIANCE[order], ALL)), jnp.stack(belief), rtol=1e-12)
    deviations = [product(MEAN, VARIANCE, np.arange(6) < n).log_std for n in range(1, 7)]
    assert np.all(np.diff(deviations, axis=0) < 0)
    first = np.arange(6) < 4
    poisoned = [np.where(first[:, None], x, np.nan) for x in (MEAN, VARIANCE)]
    few = jnp.stack(product(MEAN[:4], VARIANCE[:4], ALL[:4]))
    np.testing.assert_allclose(jnp.stack(product(*poisoned, first)), few, rtol=1e-12)
    np.testing.assert_array_equal(jnp.stack(product(MEAN, VARIANCE, ~ALL)), np.zeros((2, 3)))  # N(0, 1)


def test_the_deterministic_context_is_a_mean_and_has_no_deviation(x64):
    belief = mean_of_points(jnp.asarray(MEAN), jnp.asarray(VARIANCE), jnp.asarray(np.arange(6) < 4))
    np.testing.assert_allclose(belief.sample(jax.random.key(0)), MEAN[:4].mean(axis=0), rtol=1e-12)
    none = mean_of_points(jnp.asarray(MEAN), jnp.asarray(VARIANCE), jnp.asarray(~ALL))
    np.testing.assert_array_equal(none.sample(jax.random.key(0)), np.zeros(3))


def test_a_visit_plays_with_z_from_the_prior_then_from_the_belief():
    """Algorithm 1, with actions that show z: a new one from N(0, 1) for each episode, then what was paid."""
    family, paid = payments(), jnp.array([-1.5, 0.5, 1.0])
    visits = Visits(num_prior_steps=16, num_posterior_steps=8, num_extra_steps=4)
    learner = small(family, encoder=mean_reward(variance=1e-9), visits=visits)
    state, metrics = once(learner, known(paid))[1:]
    context, rows = state.carry.context, state.carry.buffers.rows
    np.testing.assert_allclose(context.action[:, 16:, 0], np.tanh(paid)[:, None] * np.ones(8), atol=2e-3)
    np.testing.assert_allclose(rows.action[:, 24:28, 0], np.tanh(paid)[:, None] * np.ones(4), atol=2e-3)
    before = np.arctanh(context.action[:, :16, 0]).reshape(3, 4, 4)
    np.testing.assert_allclose(before.std(axis=2), 0, atol=2e-2)  # the same through an episode
    assert len(np.unique(before.mean(axis=2).round(2))) == 12 and 0.5 < before.std() < 1.6
    jax.tree.map(lambda seen, kept: np.testing.assert_array_equal(seen, kept[:, :24]), context, rows)
    np.testing.assert_allclose(metrics["return"], 4 * paid.mean(), rtol=1e-5)
    np.testing.assert_array_equal(state.carry.buffers.num_added, 28)
    assert metrics["num_env_steps"] == 3 * 28


def test_a_visit_infers_the_belief_for_each_episode_from_all_before_it():
    """By hand: z is 0, then the mean of all that was paid, which is the task and the action. A negative task ends its
    episodes after three of four steps; what is left of a turn is played by the same belief, and is of no return."""
    paid, encoder = [0.7, -0.4], mean_reward(variance=0.5, context="deterministic")
    visits = Visits(num_prior_steps=8, num_posterior_steps=12, num_extra_steps=2, infers_each_episode=True)
    learner = small(paid_for_actions(ends_at=3), encoder=encoder, visits=visits, num_train_tasks=2)
    state, metrics = once(learner, known(paid))[1:]
    context, returns = state.carry.context, []
    for task, actions, rewards in zip(paid, context.action[..., 0], context.reward, strict=True):
        seen = []
        for turn in range(5):
            z = np.mean(seen) if turn >= 2 else 0.0
            seen += [task + 2 * np.tanh(z)] * 4
            np.testing.assert_allclose(actions[4 * turn : 4 * turn + 4], np.tanh(z), atol=2e-3)
            returns += [(4 if task > 0 else 3) * seen[-1]] if turn >= 2 else []
        np.testing.assert_allclose(rewards, seen, atol=5e-3)
        extra = state.carry.buffers.rows.action[paid.index(task), 20:22, 0]
        np.testing.assert_allclose(extra, np.tanh(np.mean(seen)), atol=2e-3)
    np.testing.assert_allclose(metrics["return"], np.mean(returns), atol=2e-2)
    np.testing.assert_allclose(metrics["return_before"], (4 * 0.7 - 3 * 0.4) / 2, atol=2e-2)


def nine_of_ten():
    """An episode pays 1 at each step and ends at the ninth, of at most ten; its info says so."""

    def step(key, state, action, params):
        return state + 1, state + 1, jnp.ones(()), state[0] >= 8, {"has_ended": state[0] >= 8}

    base = payments(max_steps=10)
    return base._replace(environment=base.environment._replace(step=step))


def ended(transitions):
    """How many of the episodes `[H, E]` have ended, and how many steps they have."""
    has_ended = jnp.any(transitions.info["has_ended"] & transitions.mask, axis=0)
    return {"ended": jnp.mean(has_ended), "length": jnp.mean(jnp.sum(transitions.mask, axis=0))}


@pytest.mark.parametrize("has_context", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_returns_in_training_are_those_of_whole_episodes_as_at_test(has_context):
    """29 steps hold three episodes of nine, 17 one; what is left of them is of none, and neither counts."""
    visits, how = Visits(num_prior_steps=29, num_posterior_steps=17), {"replay": replace(SMALL, capacity=46)}
    if has_context:
        learner = small(nine_of_ten(), visits=visits, metrics_fn=ended, **how)
    else:
        networks = mlp_actor_critic(nine_of_ten(), hidden=(2,))
        learner = sac(nine_of_ten(), networks, num_train_tasks=3, visits=visits, metrics_fn=ended, **how)
    state, _, metrics = once(learner, known([1.0, 2.0, 3.0]))
    found = jax.jit(learner.evaluate)(jax.random.key(0), state.meta_params, jnp.float32(0.5))
    for name, value in {"return": 9, "ended": 1, "length": 9}.items():
        assert metrics[name] == metrics[f"{name}_before"] == value
        np.testing.assert_array_equal(found[name], np.full(4, value))
    assert metrics["num_env_steps"] == 3 * 46


def played(lengths, num_steps):
    """Transitions of a trial whose episodes have these lengths and pay 1 at each step but for those of one step."""
    done = np.zeros(sum(lengths) + 1, bool)
    done[np.cumsum([0, *lengths])] = True
    reward = np.concatenate([np.full(length, length > 1, np.float32) for length in lengths])
    inputs = rl.Inputs(None, None, None, None, jnp.asarray(done[:num_steps]), None)
    return rl.Transition(
        inputs, None, jnp.asarray(reward[:num_steps]), None, None, None, jnp.ones(num_steps, bool), {}, ()
    )


@pytest.mark.parametrize("num_steps", [3, 5, 6])
def test_the_return_of_a_visit_is_that_of_an_episode_however_long_episodes_are(num_steps):
    """By all that six fair coins can say: an episode has one step and pays nothing, or three that pay 1 each.

    Their mean is 1.5. The mean of all that were whole would be less, for the short ones are more likely to be.
    """
    coins = itertools.product((1, 3), repeat=6)
    returns = [report(played(lengths, num_steps), 3, None)["return"] for lengths in coins]
    np.testing.assert_allclose(np.mean(returns), 1.5, rtol=1e-6)


def test_a_visit_that_is_shorter_than_an_episode_has_no_return():
    assert report(played((3, 3), 5), 6, ended) == {"reward": 1.0}
    learner = small(payments(), visits=Visits(num_prior_steps=3), metrics_fn=lambda transitions: {"one": 1.0})
    state = jax.eval_shape(learner.init, jax.random.key(0))
    _, metrics = jax.eval_shape(learner.update, jax.random.key(1), state, known([1.0, 2.0, 3.0]))
    told = {"reward_before", "return", "one", "num_env_steps", "critic_loss", "entropy", "kl"}
    assert set(metrics) == told | {"loss", "grad_norm", "is_finite"}


def test_the_episodes_of_a_trial_side_by_side():
    """Of lengths 1, 3 and 2, at most 3."""
    found = first_episodes(played((1, 3, 2), 9 - 3), 2, 3)
    np.testing.assert_array_equal(found.mask, np.array([[1, 1], [0, 1], [0, 1]], bool))
    np.testing.assert_array_equal(found.reward, [[0, 1], [0, 1], [0, 1]])


def test_buffers_hold_their_own_task_and_the_context_the_last_visit():
    (_, init, update), tasks = usual(), known([1.0, 2.0, 3.0])
    only = lambda *index: jax.tree.map(lambda x: x[jnp.array(index)], tasks)
    state = init(jax.random.key(0))
    for i, visited in enumerate([(0, 2), (2, 0), (2, 2), (0, 0)]):
        state, metrics = update(jax.random.key(i), state, only(*visited))
        assert metrics["is_finite"]
    memory = state.carry
    np.testing.assert_array_equal(memory.buffers.num_added, [4 * 8, 0, 4 * 8])
    np.testing.assert_array_equal(memory.buffers.rows.reward, np.array([1, 0, 3])[:, None] * np.ones(32))
    np.testing.assert_array_equal(memory.context.reward, np.array([1, 0, 3])[:, None] * np.ones(8))
    last = jax.tree.map(lambda rows: rows[:, -8:], memory.buffers.rows)
    jax.tree.map(lambda seen, kept: np.testing.assert_array_equal(seen[::2], kept[::2]), memory.context, last)


@pytest.mark.parametrize("where", ["replay", "context"])
def test_a_poisoned_buffer_shows_where_its_task_is_drawn_and_only_there(where):
    _, init, update = usual()
    state = init(jax.random.key(0))
    poison = lambda x: x.at[1].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
    memory = state.carry
    if where == "replay":
        memory = memory._replace(buffers=memory.buffers._replace(rows=jax.tree.map(poison, memory.buffers.rows)))
    else:
        memory = memory._replace(context=jax.tree.map(poison, memory.context))
    tasks = jax.tree.map(lambda x: x[::2], known([1.0, 2.0, 3.0]))
    after, metrics = update(jax.random.key(1), state._replace(carry=memory), tasks)
    assert metrics["is_finite"] and after.num_skipped == 0
    visited = memory.buffers._replace(num_added=memory.buffers.num_added.at[1].set(5))
    after, metrics = update(jax.random.key(1), state._replace(carry=memory._replace(buffers=visited)), tasks)
    assert not metrics["is_finite"] and after.num_skipped == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.meta_params))


def test_a_visit_that_is_not_finite_is_told_and_not_remembered():
    """Task 1 pays NaN: the others learn on, and its buffers stay as they are."""
    _, init, update = usual()
    state = init(jax.random.key(0))
    after, metrics = update(jax.random.key(1), state, known([1.0, jnp.nan, 3.0]))
    assert not metrics["is_finite"] and after.num_skipped == 1
    np.testing.assert_array_equal(after.carry.buffers.num_added, [8, 0, 8])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.carry, after.meta_params)))
    assert after.meta_params.params["encoder"] != state.meta_params.params["encoder"]
    _, metrics = update(jax.random.key(2), after, known([1.0, 2.0, 3.0]))
    assert metrics["is_finite"]


def test_nothing_is_learned_from_nothing():
    """No visit was finite: what would be drawn was never written."""
    _, init, update = usual()
    state = init(jax.random.key(0))
    after, metrics = update(jax.random.key(1), state, known([jnp.nan] * 3))
    assert not metrics["is_finite"] and (after.step, after.num_skipped) == (1, 1)
    jax.tree.map(np.testing.assert_array_equal, after[1:3] + after[4:], state[1:3] + state[4:])


@pytest.mark.slow
def test_the_target_does_not_follow_steps_that_are_skipped():
    """All that was seen before is poison; the target is elsewhere, and would move were it to follow."""
    _, init, update = usual()
    state = init(jax.random.key(0))
    poison = lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
    target, buffers = jax.tree.map(jnp.zeros_like, state.carry.target), jax.tree.map(poison, state.carry.buffers)
    memory = state.carry._replace(target=target, buffers=buffers._replace(num_added=jnp.full(3, 32)))
    tasks = jax.tree.map(lambda x: x[:1], known([1.0, 2.0, 3.0]))
    after, metrics = update(jax.random.key(1), state._replace(carry=memory), tasks)
    assert not metrics["is_finite"]
    jax.tree.map(np.testing.assert_array_equal, after.carry.target, target)


def test_an_update_that_is_not_finite_is_not_applied():
    """Loss and gradient are; what the optimizer makes of them is not."""
    state, after, metrics = once(small(payments(), optimizer=optax.scale(jnp.inf)), known([1.0, 2.0, 3.0]))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert not metrics["is_finite"] and after.num_skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.meta_params, state.meta_params)
    jax.tree.map(np.testing.assert_array_equal, after.carry.target, state.carry.target)


@pytest.mark.slow
def test_training_sees_training_tasks_only():
    """Test tasks pay −1: no row of a run that was evaluated between has it."""
    minus_one = lambda _, data: jnp.float32(-1)
    learner, test = usual()[0], jaxmeta.TaskDistribution(minus_one, at=minus_one, size=1)

    def judge(state, _):
        jaxmeta.evaluate(jax.random.key(1), learner, test, state.meta_params, num_tasks=2)

    arguments = {"num_outer_steps": 6, "num_tasks": 2, "chunk_size": 2, "progress": False}
    state, _ = jaxmeta.fit(jax.random.key(0), learner, USUAL, callbacks=[judge], **arguments)
    memory = state.carry
    for rewards in (memory.buffers.rows.reward, memory.context.reward):
        np.testing.assert_array_equal(np.max(rewards, axis=1), [1, 2, 3])
        assert np.min(rewards) >= 0


@pytest.mark.parametrize(("what", "encoder_learns", "actor_learns"), [("critic", True, False), ("actor", False, True)])
def test_the_encoder_learns_from_the_critics_loss_and_not_from_the_actors(what, encoder_learns, actor_learns):
    """z enters one of the two alone, without KL. Where it enters the actor alone, the actor learns of it."""
    parts = {"actor": blind}
    if what == "critic":
        parts["critic"] = lambda params, observation, action, z: jnp.concatenate([w * z for w in params], axis=1)
    else:
        parts.pop("actor")
    soft = SoftActorCritic(temperature=0.0)
    learner = small(payments(), told_by_z(**parts), mean_reward(variance=0.1), kl_weight=0.0, sac=soft)
    state, after, _ = once(learner, known([1.0, 2.0, 3.0]))
    old, new = (s.meta_params.params for s in (state, after))
    assert (new["encoder"] != old["encoder"]) == encoder_learns
    assert (new["actor"] != old["actor"]) == actor_learns
    assert new["critic"][0] != old["critic"][0]


@pytest.mark.parametrize("variance", [pytest.param(1e-9, marks=pytest.mark.slow), 2.0])
def test_transitions_meet_a_sample_of_their_own_tasks_belief(variance):
    """Twin critics say z, and are told what a task pays, the belief's mean: they are off by its variance."""
    critic = lambda params, observation, action, z: jnp.concatenate([w * z for w in params], axis=1)
    learner = small(
        payments(),
        told_by_z(critic=critic),
        mean_reward(variance),
        sac=SoftActorCritic(discount=0.0),
        optimizer=optax.sgd(0.0),
        replay=replace(SMALL, num_gradient_steps=200),
    )
    _, _, metrics = once(learner, known([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(metrics["critic_loss"], 2 * variance / 8, rtol=0.3, atol=1e-6)  # 8 transitions


def test_the_target_follows_each_gradient_step():
    replay, soft = replace(SMALL, num_gradient_steps=1), SoftActorCritic(target_rate=0.25)
    learner = small(payments(), replay=replay, optimizer=optax.sgd(0.1), sac=soft)
    state, after, _ = once(learner, known([1.0, 2.0, 3.0]))
    old, new = (s.meta_params.params["critic"][0] for s in (state, after))
    assert new != old
    np.testing.assert_allclose(after.carry.target[0], old + 0.25 * (new - old), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("context", "moves"), [("probabilistic", True), ("deterministic", False)])
def test_kl_draws_the_belief_to_the_prior_where_there_is_one(context, moves):
    """Nobody looks at z: only KL moves the encoder, and makes what it says smaller."""
    learner = small(payments(), told_by_z(actor=blind), mean_reward(variance=1.0, context=context), kl_weight=1.0)
    _, after, metrics = once(learner, known([1.0, 2.0, 3.0]))
    assert (after.meta_params.params["encoder"] < 1) == moves
    assert (metrics["kl"] > 0) == moves


@pytest.mark.parametrize("num_batch_tasks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_kl_is_summed_over_the_tasks_of_a_gradient_step(num_batch_tasks):
    """Every task pays 1, so that beliefs have the mean w, and their KL the derivative w."""
    learner = small(
        payments(),
        told_by_z(actor=blind),
        mean_reward(variance=1.0),
        optimizer=optax.sgd(0.1),
        kl_weight=0.5,
        replay=replace(SMALL, num_gradient_steps=1, num_batch_tasks=num_batch_tasks),
    )
    _, after, metrics = once(learner, known([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(after.meta_params.params["encoder"], 1 - 0.1 * 0.5 * num_batch_tasks, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], (1 / 8 + 1 - 1 + np.log(8)) / 2, rtol=1e-5)  # of 8 transitions


@pytest.mark.slow
def test_context_is_drawn_from_the_whole_of_the_last_visit():
    """Two of eight transitions, paid 0 .. 3 twice: their mean squared is 2.79 on average, .25 of the first two."""
    base = payments()
    step = lambda key, state, action, params: (state + 1, state + 1, state[0], jnp.bool_(False))
    learner = small(
        base._replace(environment=base.environment._replace(step=step)),
        encoder=mean_reward(variance=1.0),
        optimizer=optax.sgd(0.0),
        replay=replace(SMALL, num_context=2, num_gradient_steps=100),
    )
    _, _, metrics = once(learner, known([1.0, 2.0, 3.0]))
    expected = (1 / 2 + 1.5**2 + 1.25 / 2 * 6 / 7 - 1 + np.log(2)) / 2
    np.testing.assert_allclose(metrics["kl"], expected, atol=0.3)  # five deviations of the mean of 300


def test_context_may_be_drawn_from_a_beginning_of_the_last_visit():
    """Two of the first n of four transitions, as often as all n and all pairs say."""
    row = Experience(jnp.zeros(1), jnp.zeros(1), jnp.zeros(()), jnp.zeros(1), jnp.bool_(False))
    rows = jax.tree.map(lambda leaf: jnp.zeros((1, 4, *leaf.shape), leaf.dtype), row)._replace(
        reward=jnp.arange(4.0)[None]
    )
    memory = Memory(target=(), buffers=Buffers(rows, jnp.array([4])), context=rows)
    replay = Replay(num_batch_tasks=40_000, batch_size=1, num_context=2, is_context_partial=True)
    context, _ = jax.jit(draw, static_argnums=2)(jax.random.key(0), memory, replay)
    found, expected = np.zeros((4, 4)), np.zeros((4, 4))
    np.add.at(found, tuple(np.asarray(context.reward, int).T), 1 / 40_000)
    for n in range(1, 5):
        expected[:n, :n] += 1 / n**2 / 4
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.35 * 0.65 / 40_000))


def test_evaluation_is_algorithm_2():
    """Against a plain loop, with the deterministic context, which draws nothing. One task ends its episodes early."""
    family = paid_for_actions(max_steps=5, ends_at=3)
    environment = family.environment
    networks = (
        mlp_actor_critic(family, latent_size=2, hidden=(8,)),
        mlp_encoder(family, latent_size=2, hidden=(8,), context="deterministic"),
    )
    learner = small(family, *networks, meta_test=MetaTest(num_episodes=3, num_exploration_episodes=2, is_greedy=True))
    meta_params = jax.jit(learner.init)(jax.random.key(3)).meta_params
    params = jax.tree.map(lambda x: 3 * x, meta_params.params)  # far from 0, where all that follows is alike
    evaluate = jax.jit(learner.evaluate)
    for task in (jnp.float32(0.7), jnp.float32(-0.7)):
        seen, returns = [], []
        for episode in range(4):
            points = [networks[1].apply(params["encoder"], jax.tree.map(lambda x: x[None], row))[0] for row in seen]
            z = jnp.mean(jnp.stack(points), axis=0) if episode >= 2 else jnp.zeros((1, 2))
            observation, state = environment.reset(None, task)
            total = 0.0
            for _ in range(5):
                action = networks[0].actor(params["actor"], observation[None], z).mode()[0]
                following, state, reward, terminated = environment.step(None, state, 2 * action, task)
                seen.append(Experience(observation, action, reward, following, terminated))
                observation, total = following, total + reward
                if terminated:
                    break
            returns.append(total)
        found = evaluate(jax.random.key(0), meta_params._replace(params=params), task)
        np.testing.assert_allclose(found["return"], returns, rtol=1e-5)
        assert returns[0] == returns[1] != returns[2] != returns[3]


def test_actions_are_sampled_at_test_where_a_belief_is_made_of_them():
    """As in meta-training; all else is determined. `test_without_an_encoder_there_is_no_context` has the mode."""
    encoder = mean_reward(variance=0.5, context="deterministic")
    learner = small(paid_for_actions(max_steps=5), encoder=encoder, meta_test=MetaTest(num_episodes=1))
    meta_params = learner.init(jax.random.key(0)).meta_params
    adapted = jax.jit(jax.vmap(learner.adapt, (0, None, None)))
    actions = adapted(jax.random.split(jax.random.key(1), 3), meta_params, jnp.float32(0.5)).transitions.extras
    assert np.all(np.ptp(actions, axis=0) > 0)


def test_an_adapted_belief_acts_with_a_new_z_in_each_episode():
    family = payments()
    learner = small(family, encoder=mean_reward(variance=1.0), meta_test=MetaTest(num_episodes=2))
    meta_params = learner.init(jax.random.key(1)).meta_params
    adapted = jax.jit(learner.adapt)(jax.random.key(0), meta_params, jnp.float32(0.5))
    np.testing.assert_allclose(adapted.belief.mean, [0.5], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(2 * adapted.belief.log_std), [1 / 8], rtol=1e-5)  # two episodes of four steps
    assert adapted.transitions.reward.shape == (2, 4)
    agent = learner.agent(meta_params, adapted, is_greedy=True)
    _, transitions = rl.rollout(
        jax.random.key(2), rl.trial(family.environment, num_episodes=400), *agent, jnp.float32(0.5)
    )
    z = np.arctanh(experience_of(transitions).action).reshape(400, 4)
    assert np.all(z == z[:, :1])
    assert abs(z.mean() - 0.5) < 4 * np.sqrt(1 / 8 / 400) and abs(z[:, 0].var() - 1 / 8) < 4 * np.sqrt(2 / 400) / 8


@pytest.mark.parametrize("has_context", [True, False])
def test_an_agent_acts_as_evaluation_does_and_under_the_prior_before_anything_is_seen(has_context):
    """Its return is that of evaluation's first episode, with the key of that; by the mode it is another."""
    family = paid_for_actions()
    learner = small(family) if has_context else sac(family, mlp_actor_critic(family), num_train_tasks=3, replay=SMALL)
    meta_params = jax.jit(learner.init)(jax.random.key(1)).meta_params
    key, task, choices = jax.random.key(2), jnp.float32(0.5), (None, True, False)
    assert learner.unit == "episode"

    def of(is_greedy):
        agent = learner.agent(meta_params, is_greedy=is_greedy)
        first = jax.random.split(key, 4)[0]
        return rl.rollout(first, rl.trial(family.environment), *agent, task)[1].reward.sum()

    returns = dict(zip(choices, map(float, jax.jit(lambda: [*map(of, choices)])()), strict=True))
    expected = jax.jit(learner.evaluate)(key, meta_params, task)["return"][0]
    np.testing.assert_allclose(returns[None], expected, rtol=1e-6)
    assert returns[None] == returns[not has_context] != returns[has_context]


def test_training_tasks_are_judged_as_any():
    learner = usual()[0]
    meta_params = learner.init(jax.random.key(0)).meta_params
    report = jaxmeta.evaluate(jax.random.key(1), learner, USUAL, meta_params, num_tasks=3)
    assert set(np.unique(report.samples["return"])) <= {4.0, 8.0, 12.0}


def test_critics_may_learn_from_another_reward_than_the_encoder_sees():
    learner = small(payments(), critic_reward_fn=lambda task, row: 10 * task + row.observation[0])
    _, state, _ = once(learner, known([1.0, 2.0, 3.0]))
    rows, context = (jax.tree.map(lambda x: x[:, :8], of) for of in (state.carry.buffers.rows, state.carry.context))
    np.testing.assert_array_equal(context.reward, jnp.arange(1.0, 4.0)[:, None] * jnp.ones(8)[None])
    np.testing.assert_array_equal(rows.reward, 10 * context.reward + rows.observation[..., 0])


def test_without_an_encoder_there_is_no_context():
    actor = lambda scale, observation, z: TanhGaussian(scale * (observation - 1), jnp.zeros_like(observation))
    learner = sac(paid_for_actions(), told_by_z(actor=actor, latent_size=0), num_train_tasks=3, replay=SMALL)
    _, state, metrics = once(learner, known([1.0, 2.0, 3.0]))
    assert sorted(state.meta_params.params) == ["actor", "critic", "log_temperature"]
    assert metrics["is_finite"] and metrics["kl"] == 0
    found = jax.jit(learner.evaluate)(jax.random.key(0), state.meta_params, jnp.float32(0.5))["return"]
    assert found.shape == (4,) and np.ptp(found) == 0  # the same episode again and again


def types(tree):
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tree))
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def test_an_update_is_pure_keeps_its_types_compiles_once_and_stays_on_the_device(num_compiled):
    (_, init, update), tasks = usual(), known([1.0, 2.0, 3.0])
    state, keys = init(jax.random.key(0)), [jax.random.key(1), jax.random.key(2)]
    before = jax.tree.map(np.array, state)
    after, metrics = update(keys[0], state, tasks)
    assert types(after) == types(state) and int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, before, state)
    jax.tree.map(np.testing.assert_array_equal, (after, metrics), update(keys[0], state, tasks))
    num_compiled()
    with jax.transfer_guard("disallow"):
        update(keys[1], after, tasks)
    assert num_compiled() == 0


@pytest.mark.parametrize("is_x64", [False, True])
def test_types_are_kept_and_seeds_and_tasks_vmap(is_x64, request):
    if is_x64:
        request.getfixturevalue("x64")
    family, keys = payments(), jax.random.split(jax.random.key(0))
    networks = mlp_actor_critic(family, latent_size=2, hidden=(8,)), mlp_encoder(family, latent_size=2, hidden=(8,))
    learner = small(family, *networks)
    tasks = jax.tree.map(lambda x: jnp.stack([x, x]), known([1.0, 2.0, 3.0]))
    state = jax.eval_shape(jax.vmap(learner.init), keys)
    after, metrics = jax.eval_shape(jax.vmap(learner.update), keys, state, tasks)
    assert types(after) == types(state) and {metric.shape for metric in metrics.values()} == {(2,)}
    meta_params = jax.eval_shape(learner.init, jax.random.key(0)).meta_params
    over_tasks = lambda fn: jax.eval_shape(jax.vmap(fn, (0, None, 0)), keys, meta_params, jnp.ones(2))
    assert over_tasks(learner.evaluate)["return"].shape == (2, 4)
    assert over_tasks(learner.adapt).belief.mean.shape == (2, 2)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """The buffers are part of what is saved: a run that was cut is the run that was not."""
    learner, arguments = usual()[0], {"num_tasks": 2, "chunk_size": 2, "progress": False}
    whole, _ = jaxmeta.fit(jax.random.key(0), learner, USUAL, num_outer_steps=4, **arguments)
    half, _ = jaxmeta.fit(jax.random.key(0), learner, USUAL, num_outer_steps=2, **arguments)
    save_state(tmp_path, 2, half)
    half = restore_state(tmp_path, jax.eval_shape(learner.init, jax.random.key(0)))
    rest, _ = jaxmeta.fit(jax.random.key(0), learner, USUAL, num_outer_steps=4, state=half, **arguments)
    jax.tree.map(np.testing.assert_array_equal, rest, whole)


def test_memory_is_planned_before_it_is_allocated(caplog):
    family = payments()
    with pytest.raises(ValueError, match=r"capacity must be at most 2,240, got 2,241: 3 tasks take .* MiB"):
        small(family, replay=Replay(capacity=2241, memory_budget=3 * 2240 * 17))
    learner = small(family, replay=Replay(capacity=2240, memory_budget=3 * 2240 * 17))
    with caplog.at_level("INFO", logger="jaxmeta"):
        state = jax.eval_shape(learner.init, jax.random.key(0))
    assert "replay: 3 tasks, 2,240 transitions each of 17 bytes" in caplog.text
    rows = jax.tree.leaves(state.carry.buffers.rows)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in rows) == 3 * 2240 * 17


def test_wrong_arguments_are_named():
    family = payments()
    networks, encoder = mlp_actor_critic(family, latent_size=2), mlp_encoder(family, latent_size=2)
    with pytest.raises(ValueError, match="latent_size of actor_critic must be that of the encoder, 3, got 2"):
        pearl(family, networks, mlp_encoder(family, latent_size=3), num_train_tasks=3)
    with pytest.raises(ValueError, match="latent_size of actor_critic must be 0 where there is no encoder"):
        sac(family, networks, num_train_tasks=3)
    with pytest.raises(ValueError, match="num_context of replay must be at most the 8 transitions of a visit, got 9"):
        pearl(family, networks, encoder, num_train_tasks=3, replay=Replay(num_context=9))
    with pytest.raises(ValueError, match="capacity of replay must hold at least one visit, 8 transitions, got 7"):
        pearl(family, networks, encoder, num_train_tasks=3, replay=Replay(capacity=7))
    visits = Visits(num_posterior_steps=6, infers_each_episode=True)
    with pytest.raises(ValueError, match="num_posterior_steps of visits must be a multiple of max_steps = 4.*, got 6"):
        pearl(family, networks, encoder, num_train_tasks=3, visits=visits)
    discrete = mlp_actor_critic(rl.families.bernoulli_bandit(), latent_size=2)
    with pytest.raises(ValueError, match="actor of actor_critic must be of actions that are real, and no Categorical"):
        pearl(family, discrete, encoder, num_train_tasks=3)


def test_what_networks_and_functions_return_is_looked_at():
    family, wide = payments(), mean_reward(variance=1.0)._replace(latent_size=2)
    with pytest.raises(ValueError, match=r"mean of encoder must have the shape \(2, 2\) for two rows, got \(2, 1\)"):
        small(family, mlp_actor_critic(family, latent_size=2, hidden=()), wide)
    with pytest.raises(ValueError, match=r"critic must have the shape \(2, 2\) for two rows, got \(2, 1\)"):
        small(family, told_by_z(critic=lambda params, observation, action, z: observation))
    for name, fn, message in (
        ("metrics_fn", lambda transitions: 1.0, "metrics_fn must return a dict"),
        ("metrics_fn", lambda transitions: {"kl": 1.0}, "metrics_fn must use other names .* got kl"),
        ("metrics_fn", lambda transitions: {"paid": transitions.reward}, r"scalars; paid has .*shape \(4, 1\)"),
        (
            "critic_reward_fn",
            lambda task, row: row.observation,
            r"critic_reward_fn must return a scalar .* got .*\(1,\)",
        ),
    ):
        learner = small(family, **{name: fn})
        state = jax.eval_shape(learner.init, jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(learner.update, jax.random.key(1), state, known([1.0, 2.0, 3.0]))


ONE = jax.tree.map(lambda x: x[0], known([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (jnp.ones(3), r"tasks must come from rl.indexed_tasks\(...\) of the 3 training tasks"),
        (known([1.0, 2.0]), r"tasks must come from rl.indexed_tasks\(...\) of the 3 training tasks, got one of 2"),
        (ONE, "tasks must have a leading axis N"),
    ],
)
def test_training_tasks_are_indexed_and_as_many_as_there_are_buffers(tasks, message):
    learner = small(payments())
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.update, jax.random.key(1), state, tasks)
