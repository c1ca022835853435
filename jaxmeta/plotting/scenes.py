"""How the states of environments are drawn: functions (axes, state, task), and which of them a state is drawn by."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmeta.plotting.looks import OWN, SHOTS
from jaxmeta.types import PyTree
from jaxmeta.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[..., None]
Trail = Callable[[Any], Any]

_GROUND = "#999999"
_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


class Scene(NamedTuple):
    """How a state is drawn, and where in the plane the agent is in it, if its way is to be drawn."""

    draw: Draw
    trail: Trail | None = None


def draw_plane(axes: "Axes", state: Any, task: PyTree) -> None:
    """A point in the plane, the state `[2]`, and a star at the task's `goal`, if it has one.

    Of `rl.families.navigation`, `point_robot` and `corners`, and of what is like them.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_plane(axes, np.array([0.5, 0.0]), {"goal": np.array([1.0, 1.0])})
    >>> [line.get_xydata().tolist() for line in axes.lines]
    [[[1.0, 1.0]], [[0.5, 0.0]]]
    """
    _draw_goal(axes, task)
    axes.plot(*np.asarray(state), "o", color=OWN.color, markersize=7, zorder=6)
    axes.set(aspect="equal")


def draw_grid(axes: "Axes", state: Any, task: PyTree, *, size: int = 5) -> None:
    """A grid of `size` by `size` cells, the agent in its cell `[2]`, and a star in the task's `goal`, if it has one.

    Of `rl.families.gridworld`; of a larger grid by `lambda axes, state, task: draw_grid(axes, state, task, size=9)`.

    Raises:
      ValueError: the cell is outside of the grid.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_grid(axes, np.array([0, 3]), {"goal": np.array([2, 2])})
    >>> axes.get_xticks().tolist(), axes.lines[-1].get_xydata().tolist()
    ([0, 1, 2, 3, 4], [[0.0, 3.0]])
    """
    cell = np.asarray(state)
    if np.any(cell < 0) or np.any(cell >= size):
        raise ValueError(f"size must be more than every coordinate of a cell, got {size} and the cell {cell.tolist()}")
    axes.grid(False)
    edges = np.arange(size + 1) - 0.5
    axes.hlines(edges, -0.5, size - 0.5, color=_GROUND, linewidth=0.8)
    axes.vlines(edges, -0.5, size - 0.5, color=_GROUND, linewidth=0.8)
    goal = goal_of(task)
    if goal is not None:
        axes.fill(*(goal + _CORNERS).T, color=SHOTS, alpha=0.25, linewidth=0)
        _draw_goal(axes, task)
    axes.plot(*cell, "o", color=OWN.color, markersize=9, zorder=6)
    middles = np.arange(size)
    limits = (-0.5, size - 0.5)
    axes.set(aspect="equal", xlim=limits, ylim=limits, xticks=middles, yticks=middles)
    axes.spines[:].set_visible(False)


def draw_cartpole(axes: "Axes", state: Any, task: PyTree) -> None:
    """A cart with its pole on a rail, between dashed lines where an episode ends: a state of gymnax's CartPole.

    The pole is as long as it is in the task. Of `rl.families.cartpole`, and of `rl.from_gymnax("CartPole-v1")`.

    >>> from types import SimpleNamespace
    >>> from matplotlib.figure import Figure
    >>> axes, state = Figure().subplots(), SimpleNamespace(x=1.0, theta=np.pi / 6)
    >>> draw_cartpole(axes, state, SimpleNamespace(length=0.5))
    >>> axes.lines[-1].get_xydata().round(2).tolist()  # the pole, 2 · length
    [[1.0, 0.0], [1.5, 0.87]]
    """
    params = getattr(task, "params", task)
    x, theta = float(state.x), float(state.theta)
    length, limit = 2 * float(getattr(params, "length", 0.5)), float(getattr(params, "x_threshold", 2.4))
    axes.grid(False)
    axes.axhline(0, color=_GROUND, linewidth=1)
    for end in (-limit, limit):
        axes.axvline(end, color=_GROUND, linestyle="--", linewidth=1)
    axes.fill([x - 0.3, x + 0.3, x + 0.3, x - 0.3], [-0.15, -0.15, 0.15, 0.15], color=OWN.color, zorder=4)
    axes.plot([x, x + length * np.sin(theta)], [0, length * np.cos(theta)], color=SHOTS, linewidth=4, zorder=5)
    axes.set(aspect="equal", xlim=(-1.15 * limit, 1.15 * limit), ylim=(-0.4, max(1.0, length) + 0.2), yticks=[])
    axes.spines["left"].set_visible(False)


def draw_pendulum(axes: "Axes", state: Any, task: PyTree) -> None:
    """A pendulum, upright at the angle 0, and a star where its end is to be: a state of gymnax's Pendulum.

    >>> from types import SimpleNamespace
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_pendulum(axes, SimpleNamespace(theta=np.pi / 2), None)
    >>> axes.lines[-1].get_xydata().round(2).tolist()
    [[0.0, 0.0], [-1.0, 0.0]]
    """
    theta = float(state.theta)
    axes.grid(False)
    axes.plot(0, 1, "*", color=SHOTS, markersize=13, zorder=3)
    axes.plot(0, 0, "o", color=_GROUND, markersize=8, zorder=6)
    axes.plot([0, -np.sin(theta)], [0, np.cos(theta)], color=OWN.color, linewidth=6, solid_capstyle="round", zorder=5)
    axes.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def scene_of(state: Any, draw: Draw | None, trail: Trail | None) -> Scene:
    """How states like this one are drawn: by `draw`, and if that is None by what they are."""
    found = _by_state(state) if draw is None else next((scene for scene in SCENES if scene.draw is draw), Scene(draw))
    if found is None:
        raise ValueError(
            "draw must be a function (axes, state, task) for states that are not known, such as "
            f'lambda axes, state, task: axes.plot(*state.position, "o"); got None for a state {short(state)}'
        )
    return found if trail is None else found._replace(trail=trail)


def _by_state(state: Any) -> Scene | None:
    if hasattr(state, "theta"):
        return CARTPOLE if hasattr(state, "x") else PENDULUM
    if getattr(state, "shape", None) != (2,):
        return None
    return GRID if np.issubdtype(state.dtype, np.integer) else PLANE


PLANE, GRID = Scene(draw_plane, np.asarray), Scene(draw_grid, np.asarray)
CARTPOLE, PENDULUM = Scene(draw_cartpole), Scene(draw_pendulum)
SCENES = (PLANE, GRID, CARTPOLE, PENDULUM)


def goal_of(task: PyTree) -> np.ndarray | None:
    """The task's field or entry `goal`, or its pin of that name, where it is a point `[2]`."""
    for holder in (task, getattr(task, "pins", None)):
        goal = holder.get("goal") if isinstance(holder, dict) else getattr(holder, "goal", None)
        if goal is not None and np.shape(goal) == (2,):
            return np.asarray(goal)
    return None


def _draw_goal(axes: "Axes", task: PyTree) -> None:
    goal = goal_of(task)
    if goal is not None:
        axes.plot(*goal, "*", color=SHOTS, markersize=17, zorder=4)
