"""States on disk, with orbax: a new checkpoint is complete before the old one goes, so that no kill loses both."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxmeta.types import PyTree


def save_state(directory: str | os.PathLike, step: int, state: PyTree) -> None:
    """Writes `state` as the checkpoint of `step`, then removes earlier ones.

    Args:
      directory: a folder of its own for the run, made if it is not there. In it is the latest checkpoint alone.
      step: its number, such as `int(state.step)`: outer steps taken.
      state: a pytree of arrays, such as a `MetaState`.

    >>> import tempfile, jax.numpy as jnp
    >>> directory = tempfile.mkdtemp()
    >>> save_state(directory, 3, {"w": jnp.arange(2)})
    >>> restore_state(directory, {"w": jnp.zeros(2, int)})["w"].tolist()
    [0, 1]
    """
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))


def restore_state(directory: str | os.PathLike, like: PyTree) -> PyTree:
    """The latest state in `directory`, with the structure, shapes and dtypes of `like` (arrays, or `jax.eval_shape`'s).

    Of S seeds that were trained at once, `like` is `jax.eval_shape(jax.vmap(learner.init), keys)`.

    Args:
      directory: that of `save_state`.
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
    import orbax.checkpoint as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    if not Path(directory).is_dir():
        raise ValueError(f"directory must hold a checkpoint, but {directory} is no directory")
    with _manager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"directory must hold a checkpoint, but there is none in {directory}")
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))


@contextlib.contextmanager
def _manager(directory: str | os.PathLike) -> Iterator[Any]:
    """orbax's, which leaves the root logger as it was: the first line that orbax logs, shown or not, gives a root
    logger without handlers one, and from there on whatever else is logged comes out of it too."""
    import orbax.checkpoint as ocp

    handlers = logging.root.handlers.copy()
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    try:
        with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
            yield manager
    finally:
        for handler in logging.root.handlers.copy():
            if handler not in handlers:
                logging.root.removeHandler(handler)
