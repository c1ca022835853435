"""States on disk, and the checkpoints that `fit` writes and goes on from: no kill loses them, no damage is read."""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.checks import check_integer, check_number
from jaxmeta.training.files import locked
from jaxmeta.training.stored import Store, latest, put_aside, steps_in
from jaxmeta.types import MetaState, PyTree
from jaxmeta.words import short


def save_state(directory: str | os.PathLike, step: int, state: PyTree) -> None:
    """Writes `state` as the checkpoint of `step`, then removes earlier ones.

    It is complete before another goes, so that no kill loses both, and it has a checksum of every array. For a run that
    saves as it goes, give `fit` a `training.Checkpointer`.

    Args:
      directory: a folder of its own for the run, made if it is not there. In it is the latest checkpoint alone.
      step: its number, such as `int(state.step)`, outer steps taken: above that of what is there.
      state: a pytree of arrays, such as a `MetaState`; keys among them too.

    Raises:
      ValueError: `directory` holds a checkpoint of this step or of a later one.
      OSError: it could not be written, as on a full disk; what was there is kept.

    >>> import tempfile, jax.numpy as jnp
    >>> directory = tempfile.mkdtemp()
    >>> save_state(directory, 3, {"w": jnp.arange(2)})
    >>> restore_state(directory, {"w": jnp.zeros(2, int)})["w"].tolist()
    [0, 1]
    """
    check_integer("step", step, minimum=0)
    if not jax.tree.leaves(state):
        raise ValueError(f"state must be a pytree with at least one array, got {short(state)}")
    if (steps := steps_in(Path(directory))) and steps[-1] >= step:
        raise ValueError(
            f"step must be above {steps[-1]}, of which there is a checkpoint in {directory}, got {step}: restore_state "
            "reads the one of the highest step. Save another run into a folder of its own"
        )
    with contextlib.closing(Store(Path(directory), max_to_keep=1)) as store:
        store.begin(step, {"state": state}, {})


def restore_state(directory: str | os.PathLike, like: PyTree) -> PyTree:
    """The latest state in `directory`, with the structure, shapes and dtypes of `like` (arrays, or `jax.eval_shape`'s).

    Of S seeds that were trained at once, `like` is `jax.eval_shape(jax.vmap(learner.init), keys)`. A damaged checkpoint
    is named in a warning, and the one before it is read.

    Args:
      directory: that of `save_state`, or of a `training.Checkpointer`.
      like: a pytree of the same structure, shapes and dtypes: arrays, or what `jax.eval_shape` gives of them.

    Raises:
      ValueError: there is no whole checkpoint, or it does not fit.

    >>> import tempfile, jaxmeta
    >>> learner = jaxmeta.maml(lambda key: {"w": 0.0}, lambda params, batch: (params["w"] ** 2, {}))
    >>> state, directory = learner.init(jax.random.key(0)), tempfile.mkdtemp()
    >>> save_state(directory, int(state.step), state)
    >>> restore_state(directory, jax.eval_shape(learner.init, jax.random.key(0))).meta_params
    MetaParams(params={'w': float32(0)}, hyper=(), constants=())
    """
    if not Path(directory).is_dir():
        raise ValueError(f"directory must hold a checkpoint, but {directory} is no directory")
    found = latest(Path(directory), {"state": like})
    if found is None:
        raise ValueError(f"directory must hold a checkpoint, but there is none in {directory}")
    return found[0]["state"]


@dataclass(frozen=True)
class Checkpointer:
    """Where and when `fit` saves the run, so that the same call, made again, goes on as if it had never stopped.

    A checkpoint is the state, with `validate` the best state and the curve too, and a checksum of every array. It is
    written beside training, one at a time, whole or not at all: a kill loses what came after the last one; a damaged
    one is named in a warning and the one before it is used. One is written when the run ends, too. As long as `fit`
    runs it holds `directory` against a second run; the system lets go of a killed process's hold.

    `training.restore_state` reads the latest. Source: Orbax, https://orbax.readthedocs.io, which writes them.

    >>> import tempfile
    >>> Checkpointer(tempfile.mkdtemp(), every_steps=500).max_to_keep
    3
    """

    directory: str | os.PathLike
    """A folder of its own for the run, made if it is not there."""
    _: KW_ONLY
    every_seconds: float = 30.0
    """Seconds after which the end of a chunk is saved, at least 0."""
    every_steps: int | None = None
    """Outer steps, in place of seconds: the first end of a chunk at or after each multiple is saved."""
    max_to_keep: int = 3
    """The latest checkpoints that are kept, at least 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str | os.PathLike):
            raise ValueError(f"directory must be a path, got {short(self.directory)}")
        check_number("every_seconds", self.every_seconds)
        if self.every_steps is not None:
            check_integer("every_steps", self.every_steps, minimum=1)
        check_integer("max_to_keep", self.max_to_keep, minimum=1)


class Saver:
    """What `fit` does with a `Checkpointer`, in a directory that is locked."""

    def __init__(self, checkpointer: Checkpointer, run: Mapping[str, Any], like: MetaState):
        """Args: `run`, what makes two runs the same beside their learner and tasks; `like`, shapes of the state."""
        self.checkpointer, self.run = checkpointer, dict(run)
        directory = Path(checkpointer.directory)
        self.trees: dict[str, MetaState] = {}
        self.progress: dict[str, Any] = {}
        self.saved_step: int | None = None
        if (found := latest(directory, {"state": like, "best": like})) is not None:
            self.trees, about, damaged = found
            self._check_run(about.get("run"))
            self.progress, self.saved_step = about["progress"], about["step"]
            if jax.process_index() == 0:
                put_aside(directory, damaged)
        _wait_for_all()
        self.store = Store(directory, checkpointer.max_to_keep)
        self.last = time.monotonic()

    def _check_run(self, there: Mapping[str, Any] | None) -> None:
        if there is None:
            raise ValueError(
                f"checkpointer must be of this run, but {self.checkpointer.directory} holds a state that save_state "
                "wrote: name another directory, and give the state to fit(state=...)"
            )
        here = self.run
        differing = [name for name in here | dict(there) if here.get(name) != there.get(name)]
        if differing:
            listed = ", ".join(
                "another key"
                if name == "key" and name in there
                else f"{name} {there.get(name)} in place of {here.get(name)}"
                for name in differing
            )
            raise ValueError(
                f"checkpointer must be of this run, but {self.checkpointer.directory} holds checkpoints of one with "
                f"{listed}: name another directory, and give its state to fit(state=...) if it is to begin there"
            )

    def is_due(self, before: int, step: int) -> bool:
        """Whether to save at `step`, where the chunk began `before`; all processes are told the same."""
        every = self.checkpointer.every_steps
        if every is not None:
            return step // every > before // every
        is_late = time.monotonic() - self.last >= self.checkpointer.every_seconds
        if jax.process_count() == 1:
            return is_late
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(np.array(is_late)))

    def save(self, step: int, state: MetaState, best: MetaState | None, progress: Mapping[str, Any]) -> None:
        if step == self.saved_step:
            return
        trees = {"state": state} if best is None else {"state": state, "best": best}
        self.store.begin(step, trees, {"run": self.run, "progress": progress})
        self.saved_step, self.last = step, time.monotonic()


@contextlib.contextmanager
def saving(checkpointer: Checkpointer, run: Mapping[str, Any], like: MetaState) -> Iterator[Saver]:
    """A `Saver`, whose last checkpoint is complete when the block ends."""
    is_first = jax.process_index() == 0
    with locked(Path(checkpointer.directory), "directory") if is_first else contextlib.nullcontext():
        saver = Saver(checkpointer, run, like)
        with contextlib.closing(saver.store):
            yield saver


def of_key(key: jax.Array) -> int:
    """A number that tells keys apart."""
    return zlib.crc32(np.asarray(jax.random.key_data(key)).tobytes())


def _wait_for_all() -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("jaxmeta: checkpoints are found")
