"""Rulesets of XLand-MiniGrid, beside xminigrid's own functions. Slow, and without the extra skipped."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import nn, rl
from jaxmeta.rl import families
from jaxmeta.rl.families.xland import GOALS, rulesets

SMALL = {"size": 6, "num_objects": 3, "num_shapes": 3, "num_colors": 2, "num_train": 20, "num_test": 10, "horizon": 12}
RULESETS = {"num_objects": 3, "num_rules": 2, "goals": ("hold", "near"), "num_shapes": 4, "num_colors": 2, "seed": 0}


@pytest.fixture
def xminigrid():
    return pytest.importorskip("xminigrid", reason="needs the extra xland")


slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("xminigrid")]
for_xland = lambda test: [test := mark(test) for mark in slow][-1]


def theirs(task, **options):
    """Their environment, without auto-reset, and its params with the ruleset."""
    import xminigrid
    from xminigrid.types import RuleSet

    env, params = xminigrid.make("XLand-MiniGrid-R1-9x9", height=6, width=6, max_steps=12, **options)
    rules = task.rules if len(task.rules) else np.zeros((1, 7), np.uint8)
    return env, params.replace(ruleset=RuleSet(goal=task.goal, rules=rules, init_tiles=task.objects))


def task_of(family, index=0):
    return jax.tree.map(lambda leaf: leaf[index], family.train.data)


def as_basis(view, shapes, colors):
    """What is seen, by a loop over cells."""
    what = [[float(tile == known) for known in (0, 2, *shapes)] for tile in view[..., 0].ravel()]
    return np.concatenate([np.ravel(what), np.ravel([[float(c == k) for k in colors] for c in view[..., 1].ravel()])])


@for_xland
@pytest.mark.parametrize("num_rules", [0, 2])
def test_an_episode_is_xminigrids_own_from_the_same_key_and_actions(num_rules):
    """Observation, grid, reward and both ends, step by step; and the task is not in the state."""
    family = families.xland(**SMALL, num_rules=num_rules)
    ids = families.xland(**SMALL, num_rules=num_rules, one_hot=False).environment
    task = task_of(family, 3)
    env, params = theirs(task)
    reset, step, ids_step = jax.jit(family.environment.reset), jax.jit(family.environment.step), jax.jit(ids.step)
    their_step, found = jax.jit(env.step), []
    for seed in range(4):
        key = jax.random.key(seed)
        observation, state = reset(key, task)
        their = env.reset(params, key)
        for time, action in enumerate(np.random.default_rng(seed).integers(0, 6, 12)):
            np.testing.assert_array_equal(state.grid, their.state.grid)
            basis = as_basis(np.asarray(their.observation), (3, 4, 5), (1, 2))
            np.testing.assert_array_equal(observation[:-4], basis)
            assert np.argmax(observation[-4:]) == their.state.agent.direction and observation[-4:].sum() == 1
            shown = ids_step(key, state, action, task)[0]
            observation, state, reward, terminated = step(key, state, action, task)
            their = their_step(params, their, action)
            np.testing.assert_array_equal(shown[:50].reshape(2, 5, 5), np.moveaxis(their.observation, -1, 0))
            assert reward == their.reward and terminated == (their.discount == 0)
            assert bool(their.last()) == (bool(terminated) or time == 11)
            found.append(float(reward))
            if terminated:
                break
        assert not {leaf.tobytes() for leaf in jax.tree.leaves(task)} & {
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)
        }


@for_xland
def test_the_ruleset_stays_in_all_episodes_of_a_trial_and_another_tasks_is_another():
    """The object that pays is the task's in each episode, and lies in another place; a distractor never pays."""
    family = families.xland(**SMALL, goals=("hold",))
    task = task_of(family)
    others = [tile for tile in task.objects if not np.array_equal(tile, task.goal[1:3])]
    wrong = task._replace(goal=np.concatenate([task.goal[:1], others[0], task.goal[3:]]))
    trial = rl.trial(family.environment, num_episodes=3)

    def in_front(state, tile):
        """The agent, put before the object: it lies up of it."""
        at = jnp.argmax(jnp.all(state.grid == tile, axis=-1))
        position = jnp.stack(jnp.divmod(at, 6)) + jnp.array([1, 0])
        return state.replace(agent=state.agent.replace(position=position, direction=jnp.int32(0)))

    @jax.jit
    def play(key, task, tile):
        def episode(state, key):
            start = state.env_state
            state = state._replace(env_state=in_front(start, tile))
            _, after, outcome = trial.step(key, state, jnp.int32(3), task)  # pick up
            return after, (outcome.reward, outcome.terminated, start.grid)

        _, state = trial.reset(key, task)
        return jax.lax.scan(episode, state, jax.random.split(key, 3))[1]

    key, tile = jax.random.key(0), task.goal[1:3]
    reward, terminated, grids = play(key, task, tile)
    np.testing.assert_allclose(reward, [1 - 0.9 / 12] * 3, rtol=1e-6)  # the first step of each
    assert terminated.all() and len({np.asarray(grid).tobytes() for grid in grids}) == 3
    for grid in grids:
        assert sorted(map(tuple, np.asarray(grid)[np.isin(grid[..., 0], (3, 4, 5))])) == sorted(
            map(tuple, task.objects)
        )
    assert not play(key, wrong, tile)[1][0] and play(key, wrong, others[0])[1].all()


@for_xland
def test_a_random_policys_return_is_that_of_a_loop_over_xminigrids_own_auto_reset():
    """400 trials of two episodes each: their wrapper resets with keys of its own, so the means are compared."""
    from xminigrid.wrappers import GymAutoResetWrapper

    family, num = families.xland(**SMALL, goals=("near",)), 400
    task = task_of(family)
    env, params = theirs(task)
    env = GymAutoResetWrapper(env)

    @jax.jit
    @jax.vmap
    def by_hand(key):
        def step(loop, key):
            timestep, ended, total = loop
            timestep = env.step(params, timestep, jax.random.randint(key, (), 0, 6))
            total = total + jnp.where(ended < 2, timestep.reward, 0)
            return (timestep, ended + timestep.last(), total), None

        start = (env.reset(params, key), jnp.int32(0), jnp.zeros(()))
        return jax.lax.scan(step, start, jax.random.split(jax.random.fold_in(key, 1), 24))[0][2]

    agent = rl.oracles.random_policy(family.environment.action_space)
    learner = rl.reference_learner(agent, family.environment, num_episodes=2, by_episode=True)
    evaluate = jax.jit(jax.vmap(lambda key: learner.evaluate(key, jaxmeta.MetaParams(()), task)["total"][0]))
    ours, own = (np.asarray(run(jax.random.split(jax.random.key(i), num))) for i, run in enumerate((evaluate, by_hand)))
    error = np.sqrt((ours.var() + own.var()) / num)
    assert own.mean() > 10 * error / 2 and abs(ours.mean() - own.mean()) < 4 * error


@for_xland
@pytest.mark.parametrize("one_hot", [True, False])
def test_rl2_takes_a_step_on_it(one_hot):
    family = families.xland(**SMALL, num_rules=1, one_hot=one_hot)
    learner = jaxmeta.rl2(family, num_episodes=2, actor=nn.gru(4), outer=jaxmeta.PPO(num_minibatches=2))
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(1), 4), family.train.data)
    _, metrics = jax.jit(learner.update)(jax.random.key(2), learner.init(jax.random.key(0)), tasks)
    assert metrics["is_finite"] and metrics["num_env_steps"] > 0


@for_xland
@pytest.mark.parametrize(("num_rooms", "num_cells"), [(2, 49), (4, 49)])
def test_rooms_have_doors_that_are_seen(num_rooms, num_cells):
    family = families.xland(size=9, num_rooms=num_rooms, view_size=7, num_train=5, num_test=5)
    observation, state = family.environment.reset(jax.random.key(0), task_of(family))
    assert observation.shape == (num_cells * (4 + 6 + 10) + 4,)
    assert (state.grid[..., 0] == 9).sum() == {2: 1, 4: 4}[num_rooms]


def test_rulesets_are_different_and_test_rulesets_no_training_rulesets():
    train, test = rulesets(300, 60, **RULESETS)
    rows = lambda of: [b"".join(leaf[i].tobytes() for leaf in of) for i in range(len(of.goal))]
    assert len({*rows(train), *rows(test)}) == 360
    lying = lambda of: {objects.tobytes() for objects in of.objects}
    assert not lying(train) & lying(test)
    again = rulesets(300, 60, **RULESETS)
    assert rows(again[0]) == rows(train) and rows(rulesets(300, 60, **RULESETS | {"seed": 1})[0]) != rows(train)
    assert set(train.goal[:, 0]) == set(GOALS.values())


def test_a_chain_of_rules_leads_from_what_lies_in_the_room_to_the_goal():
    """And of the chain only its beginning lies there."""
    train, _ = rulesets(50, 1, **RULESETS)
    for goal, rules, objects in zip(*train, strict=True):
        tile, lying = tuple(goal[1:3]), [tuple(tile) for tile in objects]
        assert len(set(lying)) == 3
        for rule in rules:  # the last link first
            assert tuple(rule[3:5]) == tile and tile not in lying and rule[0] in (1, 2)
            tile = tuple(rule[1:3])
        assert tile in lying


def test_all_rulesets_that_there_are_can_be_had_and_no_more():
    few = RULESETS | {"num_rules": 0, "num_shapes": 2, "goals": ("hold",)}  # of four objects three, one of which pays
    train, test = rulesets(9, 3, **few)
    assert len(train.goal) + len(test.goal) == 4 * 3
    with pytest.raises(ValueError, match=r"num_train and num_test must be at most the 12 rulesets .* got 12 and 1"):
        rulesets(12, 1, **few)
    with pytest.raises(ValueError, match=r"must be fewer, or .* 11 and 1 are not there: found were 9 and 1"):
        rulesets(11, 1, **few)
    with pytest.raises(ValueError, match=r"at most the 0 rulesets"):
        rulesets(1, 1, **few | {"num_rules": 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rooms": 3}, "num_rooms must be one of 1, 2, 4, got 3"),
        ({"num_rooms": 2, "size": 8}, "size must be an integer >= 9, got 8"),
        ({"view_size": 4}, "view_size must be odd"),
        ({"goals": "hold"}, "goals must be some of hold, near"),
        ({"goals": ("fly",)}, "goals must be one of hold, near, got 'fly'"),
        ({"num_colors": 11}, "num_colors must be at most 10"),
        ({"size": 5, "num_objects": 9}, "num_objects must be less than 9, the free cells of size 5, got 9"),
        ({"horizon": 0}, "horizon must be an integer >= 1, got 0"),
        ({"one_hot": 1}, "one_hot must be"),
    ],
)
def test_a_wrong_argument_is_named_before_xminigrid_is_looked_for(options, message):
    with pytest.raises(ValueError, match=message):
        families.xland(**options)


def test_where_xminigrid_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xminigrid.envs.xland", None)
    monkeypatch.setitem(sys.modules, "xminigrid", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[xland\]'"):
        families.xland()
