"""GIFs of agents: what stands in each frame, where the agent is in it, and what is written to the file."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmeta import plotting, rl
from jaxmeta.plotting import animations


class Place(NamedTuple):
    position: jax.Array


def line(goal_ends=True):
    """Walk along a line; the state is no array, and what is seen of it is something else."""

    def reset(key, goal):
        return jnp.zeros(1), Place(jnp.zeros(()))

    def step(key, state, action, goal):
        position = state.position + action[0]
        return position[None] / 2, Place(position), -jnp.abs(position - goal), (position >= goal) & goal_ends

    return rl.Environment(reset, step, rl.Continuous(-np.ones(1), np.ones(1)), max_steps=4)


def play(environment, policy, task, **budget):
    trial = rl.trial(environment, **budget)
    return rl.rollout(jax.random.key(0), trial, policy, (), (), task, keep_states=True)[1]


right = lambda key, params, carry, inputs: (jnp.ones(1), carry, ())
up = lambda key, params, carry, inputs: (jnp.array([0.0, 0.1]), carry, ())


@pytest.fixture
def shown(monkeypatch):
    """What is drawn in each frame: the words above, the lines' points, the limits."""
    frames = []
    hold = animations._Panel.hold

    def watch(panel, around):
        hold(panel, around)
        limits = (panel.axes.get_xlim(), panel.axes.get_ylim())
        frames.append((panel, [line.get_xydata() for line in panel.axes.lines], limits))

    monkeypatch.setattr(animations._Panel, "hold", watch)
    return frames


def words(played):
    scene = lambda axes, state, task: None
    return [picture.words for picture in animations._film(animations._checked("played", played), scene, None).pictures]


def test_each_frame_says_the_episode_its_step_and_the_return_so_far():
    played = play(line(), right, 2.0, num_episodes=2)
    assert words(played) == [
        f"episode {episode}, step {step}\nreturn {total}"
        for episode in (1, 2)
        for step, total in (("0", "0.0"), ("1", "−1.0"), ("2 (end)", "−1.0"))
    ]


def test_what_is_cut_off_by_the_budget_has_no_end():
    assert words(play(line(goal_ends=False), right, 9.0, num_steps=2))[-1] == "episode 1, step 2\nreturn −15.0"


def test_an_episode_ends_at_the_time_limit():
    assert words(play(line(goal_ends=False), right, 9.0))[-1] == "episode 1, step 4 (end)\nreturn −26.0"


def test_the_agent_its_way_and_the_goal_are_where_they_are(shown):
    family = rl.families.navigation()
    task = rl.families.navigation().train.sample(jax.random.key(1), ())
    played = play(family.environment, up, task, num_steps=3)
    found = plotting.animation(played, task)
    positions = np.array([[0.0, 0.1 * k] for k in range(4)])  # the last is what was seen after the last step
    assert len(found.frames) == len(shown) == 4
    for k, (_, (way, goal, agent), limits) in enumerate(shown):
        np.testing.assert_allclose(way, positions[: k + 1], atol=1e-6)
        np.testing.assert_allclose(goal, [task.goal])
        np.testing.assert_allclose(agent, positions[[k]], atol=1e-6)
        assert limits == shown[0][2]
    (left, right_), (bottom, top) = shown[0][2]
    assert right_ - left == pytest.approx(top - bottom)  # one scale, a square
    for x, y in [*positions, task.goal]:
        assert left < x < right_ and bottom < y < top


def test_earlier_episodes_stay_as_ways(shown):
    family = rl.families.gridworld()
    task = family.train.at(5, family.train.data)
    stay_or_up = lambda key, params, carry, inputs: (jnp.int32(1), carry, ())
    plotting.animation(play(family.environment, stay_or_up, task, num_steps=18), task)
    cells = np.array([[0, min(k, 4)] for k in range(16)])
    _, (before, way, goal, agent), limits = shown[-1]
    np.testing.assert_array_equal(before, [*cells[:15], cells[14]])  # the state after the last step is not kept
    np.testing.assert_array_equal(way, [*cells[:3], cells[2]])
    np.testing.assert_array_equal(goal, [task.goal])
    np.testing.assert_array_equal(agent, cells[[2]])
    assert limits == ((-0.5, 4.5), (-0.5, 4.5))


def test_a_function_of_ones_own_draws_each_state_in_the_same_limits(shown):
    draw = lambda axes, state, task: axes.plot([state.position, task], [0.0, 1.0], "o")
    found = plotting.animation(play(line(), right, 3.0), 3.0, draw=draw, trail=lambda state: [state.position, 0.0])
    assert [lines[1].tolist() for _, lines, _ in shown] == [[[x, 0.0], [3.0, 1.0]] for x in (0.0, 1.0, 2.0, 2.0)]
    assert shown[-1][1][0].tolist() == [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    assert len({limits for *_, limits in shown}) == 1 and shown[0][2][0][0] < 0 < 3 < shown[0][2][0][1]
    assert len(found.frames) == 4


def test_limits_that_a_function_sets_are_kept(shown):
    def draw(axes, state, task):
        axes.plot(state.position, 0, "o")
        axes.set_xlim(state.position - 1, state.position + 1)

    plotting.animation(play(line(), right, 3.0), 3.0, draw=draw)
    assert [limits[0] for *_, limits in shown] == [(-1, 1), (0, 2), (1, 3), (1, 3)]
    assert len({limits[1] for *_, limits in shown}) == 1


def test_rollouts_beside_each_other_end_each_in_its_own_last_frame(shown):
    family = rl.families.navigation()
    task = family.train.sample(jax.random.key(1), ())
    long, short = (play(family.environment, up, task, num_steps=n) for n in (4, 2))
    found = plotting.animation({"long": long, "short": short}, task, frames_per_second=5)
    agents = [lines[-1][0, 1] for _, lines, _ in shown]
    np.testing.assert_allclose(agents[::2], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(agents[1::2], [0, 0.1, 0.2, 0.2, 0.2], atol=1e-6)
    assert [panel.axes.get_title().split("\n")[0] for panel, *_ in shown[-2:]] == ["long", "short"]
    assert found.durations == [200, 200, 1000, 200, 1000]  # ends are shown for a second


def test_long_rollouts_are_shown_in_fewer_frames():
    family = rl.families.navigation()
    task = family.train.sample(jax.random.key(1), ())
    found = plotting.animation(play(family.environment, up, task, num_steps=20), task, max_frames=6)
    assert len(found.frames) == 6  # steps 0, 4, 8, 12, 16 and the last


def test_the_file_is_a_small_gif_that_goes_round(tmp_path):
    family = rl.families.gridworld()
    task = family.train.at(5, family.train.data)
    go_right = lambda key, params, carry, inputs: (jnp.int32(2), carry, ())
    found = plotting.animation(play(family.environment, go_right, task, num_steps=3), task, title="a grid")
    found.save(tmp_path / "agent.gif")
    with Image.open(tmp_path / "agent.gif") as gif:
        assert gif.format == "GIF" and gif.info["loop"] == 0
        frames = []
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append((np.asarray(gif.convert("RGB")).astype(int), gif.info["duration"]))
    assert len(frames) == 4 and [duration for _, duration in frames] == [100, 100, 100, 1000] == found.durations
    assert (tmp_path / "agent.gif").stat().st_size < 20_000
    for written, frame in zip(frames, found.frames, strict=True):
        np.testing.assert_array_equal(written[0], np.asarray(frame.convert("RGB")))
    assert tuple(frames[0][0][0, 0]) == (255, 255, 255)  # paper stays white
    above = [np.sum(frame[30:65] < 128) for frame, _ in frames]  # the episode, its step, the return
    assert min(above) > 0.8 * max(above)
    agent = np.array([0x00, 0x72, 0xB2])
    middles = [np.mean(np.argwhere(np.all(frame == agent, axis=-1)), axis=0) for frame, _ in frames[:3]]
    assert middles[0][1] < middles[1][1] < middles[2][1]  # it moves to the right
    assert "data:image/gif;base64," in found._repr_html_()
    with pytest.raises(ValueError, match=r"path must end in .gif.*got 'agent.mp4'"):
        found.save("agent.mp4")


@pytest.mark.parametrize(
    ("family", "draw"),
    [
        (rl.families.navigation, plotting.draw_plane),
        (rl.families.point_robot, plotting.draw_plane),
        (rl.families.corners, plotting.draw_plane),
        (rl.families.gridworld, plotting.draw_grid),
        (rl.families.cartpole, plotting.draw_cartpole),
        (rl.families.pendulum, plotting.draw_pendulum),
    ],
)
def test_the_states_of_families_are_known(family, draw):
    environment, train, _ = family()
    task = train.sample(jax.random.key(0), train.data)
    _, state = environment.reset(jax.random.key(1), task)
    assert animations.scene_of(state, None, None).draw is draw
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw(axes, state, task)
    assert axes.lines


def test_a_pole_is_as_long_as_it_is_and_an_episode_ends_at_the_dashed_lines():
    from matplotlib.figure import Figure

    family = rl.families.cartpole()
    task = family.train.sample(jax.random.key(0), family.train.data)
    _, state = family.environment.reset(jax.random.key(1), task)
    axes = Figure().subplots()
    plotting.draw_cartpole(axes, state, task)
    foot, tip = axes.lines[-1].get_xydata()
    assert np.hypot(*(tip - foot)) == pytest.approx(2 * task.length)  # gymnax's length is half the pole's
    ends = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(ends, [-2.4, 2.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"played": {}}, "played must have at least one entry"),
        ({"played": 3}, "played must be the Transitions that jaxmeta.rl.rollout returned, got 3"),
        ({"draw": None}, r"draw must be a function \(axes, state, task\) for states that are not known"),
        ({"draw": "plane"}, r"draw must be a function \(axes, state, task\), got 'plane'"),
        ({"trail": 1}, "trail must be a function"),
        ({"frames_per_second": 0}, "frames_per_second must be a finite number"),
        ({"max_frames": 1}, "max_frames must be an integer >= 2"),
    ],
)
def test_an_animation_says_what_is_wrong(change, said):
    given = {"played": play(line(), right, 2.0), "task": 2.0, "draw": lambda axes, state, task: None}
    with pytest.raises(ValueError, match=said):
        plotting.animation(**{**given, **change})


def test_rollouts_without_states_or_of_many_environments_are_said():
    trial = rl.trial(line())
    run = lambda key, **options: rl.rollout(key, trial, right, (), (), 2.0, **options)[1]
    draw = lambda axes, state, task: None
    with pytest.raises(ValueError, match=r"played must have states: rollout\(..., keep_states=True\)"):
        plotting.animation(run(jax.random.key(0)), 2.0, draw=draw)
    many = jax.vmap(lambda key: run(key, keep_states=True), out_axes=1)(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"played\['mine'\] must be of one environment.*\[4, 3\].*x\[:, 0\]"):
        plotting.animation({"mine": many}, 2.0, draw=draw)
    found = plotting.animation(jax.tree.map(lambda x: x[:, 0], many), 2.0, draw=draw)
    assert len(found.frames) == 3


def test_a_cell_outside_of_the_grid_is_said():
    from matplotlib.figure import Figure

    with pytest.raises(
        ValueError, match=r"size must be more than every coordinate of a cell, got 5 and the cell \[0, 7\]"
    ):
        plotting.draw_grid(Figure().subplots(), np.array([0, 7]), None)
