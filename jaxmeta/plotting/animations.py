"""Agents that move: a GIF of what a rollout with states has kept, drawn by matplotlib and written by pillow."""

import base64
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxmeta.checks import check_callable, check_integer, check_number
from jaxmeta.plotting.frame import check_filled, plain
from jaxmeta.plotting.looks import OWN
from jaxmeta.plotting.scenes import Scene, scene_of
from jaxmeta.types import PyTree
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_DOTS_PER_INCH = 100
_NUM_COLORS = 64  # shared by all frames: a palette for each would be most of the file
_AT_END = 1.0  # seconds that the end of an episode is shown at least


class Animation(NamedTuple):
    """Pictures, and for how many milliseconds each is shown. A notebook shows it moving.

    >>> from PIL import Image
    >>> Animation([Image.new("P", (4, 4), color) for color in (0, 1)], [100, 100])
    Animation(2 frames of 4 x 4 pixels, 0.2 s)
    """

    frames: "list[Image]"
    durations: list[int]

    def save(self, path: str | os.PathLike) -> None:
        """Writes a GIF that begins again at its end.

        Raises:
          ValueError: `path` does not end in .gif.
        """
        if not os.fspath(path).lower().endswith(".gif"):
            raise ValueError(f"path must end in .gif, which is what is written, got {os.fspath(path)!r}")
        self._write(path)

    def _write(self, file: Any) -> None:
        first, *rest = self.frames
        first.save(
            file, format="GIF", save_all=True, append_images=rest, duration=self.durations, loop=0, optimize=True
        )

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        seconds = sum(self.durations) / 1000
        return f"Animation({counted(len(self.frames), 'frame')} of {width} x {height} pixels, {seconds:.1f} s)"

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self._write(file)
        return f'<img src="data:image/gif;base64,{base64.b64encode(file.getvalue()).decode()}" alt="{self!r}">'


def animation(
    played: Any,
    task: PyTree,
    *,
    draw: Callable[..., None] | None = None,
    trail: Callable[[Any], Any] | None = None,
    title: str | None = None,
    frames_per_second: float = 10.0,
    max_frames: int = 200,
) -> Animation:
    """An agent that moves, from a rollout that has kept the states; `animation(...).save("agent.gif")` writes it.

    Above each picture stands which episode it is, how many steps of it were taken, and the sum of rewards so far. An
    episode's last picture stays for a second; rollouts of different lengths end each in their own last picture. States
    are kept from before each step: the last picture shows where the last step led only where that is what was observed,
    as in the plane, and else the state before it.

    Args:
      played: the `Transition`s `[T]` of `rl.rollout(..., keep_states=True)`, of any number of episodes; or several by
        their names, which move side by side, `{"before adaptation": first, "after 1 step": second}`.
      task: the task that was played, which the states are drawn with.
      draw: a function (axes, state, task) that draws one state, of an environment of your own. The axes are empty each
        time, and have the same limits in all pictures unless it sets some. If None, by what a state is: `draw_plane`
        of two real numbers, `draw_grid` of two integers, `draw_cartpole`, `draw_pendulum`.
      trail: (state) -> [x, y], where the agent is; the way of the episode so far is drawn, and that of those before it
        pale. If None, it is the state in the plane and on the grid, and no way elsewhere.
      title: above everything; none if None.
      frames_per_second: how fast it moves.
      max_frames: if there were more, only every second step is shown, or every third, and so on.

    Returns:
      An `Animation`, with `save(path)`, and its `frames`, pictures of pillow.

    Raises:
      ValueError: `played` has no states, is of many environments at once, or has states that are not known while `draw`
        is None.

    >>> from jaxmeta import rl
    >>> family = rl.families.navigation()
    >>> task = family.test.sample(jax.random.key(0), family.test.data)
    >>> agent, trial = rl.oracles.optimal_navigation(task), rl.trial(family.environment, num_steps=3)
    >>> _, played = rl.rollout(jax.random.key(1), trial, *agent, task, keep_states=True)
    >>> animation(played, task, title="told the goal")
    Animation(4 frames of 320 x 390 pixels, 1.3 s)
    """
    named = dict(played) if isinstance(played, Mapping) else {"": played}
    check_filled("played", named, '{"after 1 step": transitions}')
    check_number("frames_per_second", frames_per_second, minimum=0.1)
    check_integer("max_frames", max_frames, minimum=2)
    if draw is not None:
        check_callable("draw", draw, "(axes, state, task)")
    if trail is not None:
        check_callable("trail", trail, "(state) -> [x, y]")
    films = []
    for name, transitions in named.items():
        steps = _checked(f"played[{name!r}]" if name else "played", transitions)
        films.append(_film(steps, draw, trail))
    longest = max(len(film.pictures) for film in films)
    every = -(-longest // max_frames)
    shown = [i for i in range(longest) if i % every == 0 or i == longest - 1 or any(film.ends(i) for film in films)]
    frames = list(_frames(films, list(named), jax.tree.map(np.asarray, task), title, shown))
    pause = round(1000 / frames_per_second)
    at_end = max(pause, round(1000 * _AT_END))
    return Animation(frames, [at_end if any(film.ends(i) for film in films) else pause for i in shown])


class _Picture(NamedTuple):
    """What is drawn of one moment, and the words above it. way: `[n, 2]` of this episode; before: of earlier ones."""

    state: Any
    words: str
    way: np.ndarray
    before: Sequence[np.ndarray]
    is_end: bool


class _Film(NamedTuple):
    """The moments of one rollout, and how they are drawn."""

    pictures: list[_Picture]
    scene: Scene

    def at(self, i: int) -> _Picture:
        return self.pictures[min(i, len(self.pictures) - 1)]

    def ends(self, i: int) -> bool:
        return i < len(self.pictures) and self.pictures[i].is_end


def _checked(name: str, transitions: Any) -> Any:
    """The transitions as arrays, without the steps after the trial's last episode."""
    if not all(hasattr(transitions, field) for field in ("inputs", "reward", "mask", "state")):
        raise ValueError(f"{name} must be the Transitions that jaxmeta.rl.rollout returned, got {short(transitions)}")
    if not jax.tree.leaves(transitions.state):
        raise ValueError(f"{name} must have states: rollout(..., keep_states=True), got none")
    if np.ndim(transitions.reward) != 1:
        raise ValueError(
            f"{name} must be of one environment, with the axis [T] alone, got {list(np.shape(transitions.reward))}: "
            "take the first of many by jax.tree.map(lambda x: x[:, 0], transitions)"
        )
    arrays = jax.tree.map(np.asarray, transitions._replace(extras=(), info={}))
    return jax.tree.map(lambda leaf: leaf[: int(np.sum(arrays.mask))], arrays)


def _film(steps: Any, draw: Callable[..., None] | None, trail: Callable[[Any], Any] | None) -> _Film:
    at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    scene = scene_of(at(steps.state, 0), draw, trail)
    where = (lambda state: np.asarray(scene.trail(state), float)) if scene.trail else None
    is_seen = _same(steps.inputs.observation, steps.state)
    starts = [*np.flatnonzero(steps.inputs.done).tolist(), len(steps.reward)]
    pictures: list[_Picture] = []
    before: list[np.ndarray] = []
    for episode, (first, end) in enumerate(itertools.pairwise(starts), 1):
        states = [at(steps.state, i) for i in range(first, end)]
        states.append(at(steps.next_observation, end - 1) if is_seen else states[-1])
        way = np.stack([where(state) for state in states]) if where else np.zeros((0, 2))
        total = np.concatenate([[0.0], np.cumsum(steps.reward[first:end])])
        for step, state in enumerate(states):
            words = (
                f"episode {episode}, {'end' if step == end - first else 'step'} {step}\nreturn {_signed(total[step])}"
            )
            pictures.append(_Picture(state, words, way[: step + 1], tuple(before), is_end=step == end - first))
        before.append(way)
    return _Film(pictures, scene)


def _same(observations: PyTree, states: PyTree) -> bool:
    """Whether a state is what is observed, so that what follows the last step is known too."""
    one, other = jax.tree.leaves(observations), jax.tree.leaves(states)
    return jax.tree.structure(observations) == jax.tree.structure(states) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _signed(number: float) -> str:
    return f"{number:.1f}".replace("-", "−")


def _frames(
    films: Sequence[_Film], names: Sequence[str], task: PyTree, title: str | None, shown: Sequence[int]
) -> "Iterator[Image]":
    """One figure, drawn anew for each frame, in colours of one palette."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(
        figsize=(3.2 * len(films), 3.6 + 0.3 * (title is not None)), dpi=_DOTS_PER_INCH, layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(films), squeeze=False).ravel()
    if title is not None:
        figure.suptitle(title, fontsize=11)
    limits = _limits(figure, films, task, shown)
    images = []
    for i in shown:
        for panel, film, name in zip(axes, films, names, strict=True):
            _draw(panel, film.at(i), film.scene, task)
            _hold(panel, limits)
            panel.set_title(f"{name}\n{film.at(i).words}" if name else film.at(i).words, fontsize=9)
        canvas.draw()
        if figure.get_layout_engine() is not None:
            figure.set_layout_engine("none")  # what the first frame was given all keep
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    some = [images[round(i)] for i in np.linspace(0, len(images) - 1, 4)]
    palette = Image.fromarray(np.concatenate([np.asarray(image) for image in some])).quantize(_NUM_COLORS)
    for image in images:
        yield image.quantize(palette=palette, dither=Image.Dither.NONE)


def _draw(axes: "Axes", picture: _Picture, scene: Scene, task: PyTree) -> None:
    axes.clear()
    plain(axes)
    for way in picture.before:
        axes.plot(*way.T, color=OWN.color, linewidth=1, alpha=0.25, zorder=2)
    if len(picture.way):
        axes.plot(*picture.way.T, color=OWN.color, linewidth=1.6, alpha=0.8, zorder=3)
    scene.draw(axes, picture.state, task)


def _limits(figure: "Figure", films: Sequence[_Film], task: PyTree, shown: Sequence[int]) -> np.ndarray:
    """[[x0, y0], [x1, y1]] around everything that is drawn in any frame."""
    axes = figure.add_axes((0, 0, 1, 1))
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for film in films:
        for i in shown:
            _draw(axes, film.at(i), film.scene, task)
            around = np.array([axes.get_xlim(), axes.get_ylim()])
            low, high = np.minimum(low, around.min(axis=1)), np.maximum(high, around.max(axis=1))
    if axes.get_aspect() != "auto":
        half = np.max(high - low) / 2
        low, high = (low + high) / 2 - half, (low + high) / 2 + half
    axes.remove()
    return np.stack([low, high])


def _hold(axes: "Axes", limits: np.ndarray) -> None:
    """The limits, where what was drawn has set none of its own."""
    if axes.get_autoscalex_on():
        axes.set_xlim(*limits[:, 0])
    if axes.get_autoscaley_on():
        axes.set_ylim(*limits[:, 1])
