"""Agents that move: a GIF of what a rollout with states has kept, drawn by matplotlib and written by pillow."""

import base64
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxmeta.checks import check_callable, check_integer, check_number
from jaxmeta.plotting.frame import check_filled, plain
from jaxmeta.plotting.looks import OWN
from jaxmeta.plotting.scenes import SCENES, Scene, scene_of
from jaxmeta.types import PyTree
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from PIL.Image import Image

_DOTS_PER_INCH = 100
_WIDTH = 3.2  # of a panel, in inches
_NUM_COLORS = 64  # shared by all frames: a palette for each would be most of a small file
_AT_END = 1.0  # seconds that the end of an episode is shown at least


class Animation(NamedTuple):
    """Pictures that follow one another. A notebook shows them moving.

    Attributes:
      frames: the pictures, pillow's, all of one size.
      durations: milliseconds that each is shown.

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
      frames_per_second: pictures that are shown in a second.
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
    Animation(4 frames of 320 x 380 pixels, 1.3 s)
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
    frames = _frames(films, list(named), jax.tree.map(np.asarray, task), title, shown)
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
    if not all(
        hasattr(transitions, field) for field in ("inputs", "reward", "terminated", "truncated", "mask", "state")
    ):
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
    where = scene.trail
    is_seen = _same(steps.inputs.observation, steps.state)
    starts = [*np.flatnonzero(steps.inputs.done).tolist(), len(steps.reward)]
    pictures: list[_Picture] = []
    before: list[np.ndarray] = []
    for episode, (first, end) in enumerate(itertools.pairwise(starts), 1):
        states = [at(steps.state, i) for i in range(first, end)]
        followed = jax.tree.leaves(at(steps.next_observation, end - 1))
        states.append(jax.tree.unflatten(jax.tree.structure(states[-1]), followed) if is_seen else states[-1])
        way = np.stack([np.asarray(where(state), float) for state in states]) if where else np.zeros((0, 2))
        total = np.concatenate([[0.0], np.cumsum(steps.reward[first:end])])
        for step, state in enumerate(states):
            is_last = step == end - first
            over = " (end)" if is_last and (steps.terminated[end - 1] or steps.truncated[end - 1]) else ""
            words = f"episode {episode}, step {step}{over}\nreturn {_signed(total[step])}"
            pictures.append(_Picture(state, words, way[: step + 1], tuple(before), is_last))
        before.append(way)
    return _Film(pictures, scene)


def _same(observations: PyTree, states: PyTree) -> bool:
    """Whether a state is what is observed, so that what follows the last step is known too."""
    one, other = jax.tree.leaves(observations), jax.tree.leaves(states)
    return len(one) == len(other) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _signed(number: float) -> str:
    return f"{number:.1f}".replace("-", "−")


def _frames(
    films: Sequence[_Film], names: Sequence[str], task: PyTree, title: str | None, shown: Sequence[int]
) -> "list[Image]":
    """One figure, whose artists are other ones in each frame: its axes and ticks stay, which would take longest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=_DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(films), squeeze=False).ravel())
    panels = [_Panel(panel, film, task) for panel, film in zip(axes, films, strict=True)]
    around = _around(panels, shown)
    wide, high = np.ptp(around, axis=0)
    shape = 1.0 if axes[0].get_aspect() == "auto" else float(np.clip(high / wide, 0.3, 1.5))
    words = 0.65 + 0.2 * any(names) + 0.3 * (title is not None)
    figure.set_size_inches(_WIDTH * len(films), round((_WIDTH - 0.4) * shape + words, 1))
    if title is not None:
        figure.suptitle(title, fontsize=11)
    is_known = all(film.scene in SCENES for film in films)  # these change no axes: what is behind them is drawn once
    frames, behind = [], None
    for i in shown:
        for panel, name in zip(panels, names, strict=True):
            panel.draw(i)
            panel.hold(around)
            above = panel.film.at(i).words
            panel.axes.set_title(f"{name}\n{above}" if name else above, fontsize=9, y=1.0)
        changing = [artist for panel in panels for artist in panel.changing()]
        if behind is None:
            canvas.draw()
            figure.set_layout_engine("none")  # what the first frame was given all keep
            if is_known:
                for artist in changing:
                    artist.set_visible(False)
                canvas.draw()
                for artist in changing:
                    artist.set_visible(True)
                behind = canvas.copy_from_bbox(figure.bbox)
        if behind is not None:
            canvas.restore_region(behind)
            for artist in changing:
                figure.draw_artist(artist)
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return _in_few_colors(frames)


class _Panel:
    """Axes on which the pictures of a film are drawn, one after the other."""

    def __init__(self, axes: "Axes", film: _Film, task: PyTree):
        self.axes, self.film, self.task = axes, film, task
        plain(axes)
        self.own = set(axes.get_children())

    def changing(self) -> "list[Artist]":
        """What is not the same in all frames, from the back to the front."""
        drawn = [artist for artist in self.axes.get_children() if artist not in self.own]
        return sorted([*drawn, self.axes.title], key=lambda artist: artist.get_zorder())

    def draw(self, i: int) -> None:
        picture, axes = self.film.at(i), self.axes
        for artist in set(axes.get_children()) - self.own:
            artist.remove()
        axes.set_prop_cycle(None)
        axes.set_autoscalex_on(True)
        axes.set_autoscaley_on(True)
        for way in picture.before:
            axes.plot(*way.T, color=OWN.color, linewidth=1, alpha=0.25, zorder=2)
        if len(picture.way):
            axes.plot(*picture.way.T, color=OWN.color, linewidth=1.6, alpha=0.8, zorder=3)
        self.film.scene.draw(axes, picture.state, self.task)

    def hold(self, around: np.ndarray) -> None:
        """The limits, where what was drawn has set none of its own."""
        if self.axes.get_autoscalex_on():
            self.axes.set_xlim(*around[:, 0])
        if self.axes.get_autoscaley_on():
            self.axes.set_ylim(*around[:, 1])


def _around(panels: "Sequence[_Panel]", shown: Sequence[int]) -> np.ndarray:
    """[[x0, y0], [x1, y1]] around everything that is drawn in any frame; a square where x and y have one scale."""
    limits = []
    for panel in panels:
        for i in shown:  # the data's limits grow with all that was ever drawn
            panel.draw(i)
            if not panel.axes.get_autoscalex_on() and not panel.axes.get_autoscaley_on():
                break
        limits.append(np.array([panel.axes.get_xlim(), panel.axes.get_ylim()]))
    low, high = np.min(limits, axis=(0, 2)), np.max(limits, axis=(0, 2))
    axes = panels[0].axes
    if axes.get_aspect() != "auto" and axes.get_autoscalex_on() and axes.get_autoscaley_on():
        half = np.max(high - low) / 2
        low, high = (low + high) / 2 - half, (low + high) / 2 + half
    return np.stack([low, high])


def _in_few_colors(frames: Sequence[np.ndarray]) -> "list[Image]":
    """RGB frames in the colours that are most of some of them, each pixel in the nearest: white stays white."""
    from PIL import Image

    coded = [frame.astype(np.int32) @ (65536, 256, 1) for frame in frames]
    some = np.concatenate([coded[round(i)].ravel() for i in np.linspace(0, len(coded) - 1, 5)])
    codes, counts = np.unique(some, return_counts=True)
    colors = _rgb(codes[np.argsort(-counts, kind="stable")[:_NUM_COLORS]])
    images = []
    for frame in coded:
        there, at = np.unique(frame, return_inverse=True)
        nearest = np.argmin(np.sum((_rgb(there)[:, None] - colors) ** 2, axis=-1), axis=1).astype(np.uint8)
        image = Image.fromarray(nearest[at].reshape(frame.shape))
        image.putpalette(colors.astype(np.uint8).tobytes())
        images.append(image)
    return images


def _rgb(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1)
