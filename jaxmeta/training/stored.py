"""Checkpoints in a directory, a folder for each: written by orbax beside the run, whole or not there at all, and with
a checksum of each array, so that what is read is what was written.

A folder has the number of its step as its name. orbax writes it under another name, which it loses when it is complete.
In it are flat dictionaries {path: array}, one for each tree, and `about`: the step, each array's dtype, shape and
CRC-32, what the run has to say beside, and the CRC-32 of all that.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.training.files import reason
from jaxmeta.types import PyTree
from jaxmeta.words import counted

_UNFINISHED = ".orbax-checkpoint-tmp"
_SECONDS_TO_COME_BACK = 0.2


class DamagedError(Exception):
    """A checkpoint that is not what was written."""


class Store:
    """Writes checkpoints, one at a time, while the caller goes on; all processes of a run call it alike.

    Every array is copied to the host before `begin` returns, for its buffer is soon another's, which on a CPU is what
    orbax would read.
    """

    def __init__(self, directory: Path, max_to_keep: int):
        import orbax.checkpoint as ocp

        self.directory, self.max_to_keep = directory.absolute(), max_to_keep
        self.writing: int | None = None
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet())
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.directory)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def begin(self, step: int, trees: Mapping[str, PyTree], about: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, once the one before is complete.

        Args:
          step: its number; there is none of it yet.
          trees: {name: a pytree of arrays}.
          about: what else is known, of JSON's types.

        Raises:
          OSError: it, or the one before, could not be written.
        """
        import orbax.checkpoint as ocp

        self.finish()
        flat = {name: {path: _on_host(leaf) for path, leaf in _flat(tree).items()} for name, tree in trees.items()}
        arrays = {name: {path: _entry(array) for path, array in leaves.items()} for name, leaves in flat.items()}
        text = json.dumps({"step": step, "arrays": arrays, **about})
        items: dict[str, Any] = {"about": ocp.args.JsonSave({"text": text, "crc32": zlib.crc32(text.encode())})}
        for name, leaves in flat.items():  # orbax writes no array without numbers, and no dictionary without arrays
            if some := {path: array for path, array in leaves.items() if array.size}:
                items[name] = ocp.args.PyTreeSave(some)
        self.writing = step
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (self.directory / str(step)).rmdir()  # an empty folder is no checkpoint, but in the way
        try:
            self._orbax.save(self.directory / str(step), args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._unwritten(error) from error

    def finish(self) -> None:
        """Waits until what was begun is complete, then removes all but the latest `max_to_keep`."""
        if self.writing is None:
            return
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error
        self.writing = None
        if jax.process_index() == 0:
            for step in steps_in(self.directory)[: -self.max_to_keep]:
                _remove(self.directory / str(step))

    def close(self) -> None:
        """Waits, and lets go of threads."""
        with self._quiet, contextlib.closing(self._orbax):
            self.finish()

    def _unwritten(self, error: Exception) -> OSError:
        step, self.writing = self.writing, None
        time.sleep(_SECONDS_TO_COME_BACK)
        if jax.process_index() == 0:
            _remove_unfinished(self.directory)
        whole = steps_in(self.directory)
        kept = f"; that of step {whole[-1]} is kept" if whole else ""
        return OSError(f"the checkpoint of step {step} could not be written to {self.directory}: {reason(error)}{kept}")


def steps_in(directory: Path) -> list[int]:
    """The steps that there are folders of, in their order: neither what is unfinished, nor what is empty or has another
    name. Whether they are whole is seen when they are read."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name) and path.is_dir()]
    return sorted(int(name) for name in names if any((directory / name).iterdir()))


def latest(directory: Path, likes: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any], list[int]] | None:
    """Of the latest whole checkpoint the trees and what is known about it, and the steps of damaged ones after it.

    Args:
      directory: that of a `Store`.
      likes: {name: a pytree with the structure, shapes and dtypes of the tree of that name}; those that are not in the
        checkpoint are left out.

    Returns:
      None where there is no checkpoint.

    Raises:
      ValueError: all are damaged, or the trees do not fit.
    """
    damaged: dict[int, str] = {}
    for step in reversed(steps_in(directory)):
        try:
            trees, about = _read(directory.absolute() / str(step), step, likes)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        for other, why in damaged.items():
            message = f"the checkpoint of step {other} in {directory} is damaged ({why}): that of step {step} is used"
            warnings.warn(message, stacklevel=3)
        return trees, about, list(damaged)
    if damaged:
        listed = "; ".join(f"{step}: {why}" for step, why in damaged.items())
        raise ValueError(
            f"directory must hold a whole checkpoint, but in {directory} every one is damaged ({listed}): restore the "
            "folder from a copy, or remove it to begin anew"
        )
    return None


def put_aside(directory: Path, steps: Sequence[int]) -> None:
    """Renames damaged checkpoints, so that others of their steps can be written."""
    for step in steps:
        aside = directory / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (directory / str(step)).rename(aside)


def _read(folder: Path, step: int, likes: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
    about = _read_about(folder)
    if about.get("step") != step:
        raise DamagedError(f"it is that of step {about.get('step')}, and was renamed")
    trees = {}
    for name in about["arrays"].keys() & likes.keys():
        written = about["arrays"][name]
        shapes = {path: jax.eval_shape(_numbers, leaf) for path, leaf in _flat(likes[name]).items()}
        _check_fits(folder, written, shapes)
        arrays = _read_arrays(folder, name, {path: shape for path, shape in shapes.items() if shape.size})
        for path, array in arrays.items():
            if _entry(array) != written[path]:
                raise DamagedError(f"the array at {path} has other numbers than were written")
        empty = {path: np.zeros(shape.shape, shape.dtype) for path, shape in shapes.items() if not shape.size}
        trees[name] = _unflat(likes[name], arrays | empty)
    return trees, about


def _read_about(folder: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    try:
        about = _quietly(folder, ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        text, checksum = about["text"], about["crc32"]
        if zlib.crc32(text.encode()) != checksum:
            raise DamagedError("the list of what is in it is not what was written")
        return json.loads(text)
    except (DamagedError, MemoryError):
        raise
    except Exception as error:
        raise DamagedError(f"the list of what is in it cannot be read: {reason(error)}") from error


def _read_arrays(folder: Path, name: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    if not shapes:
        return {}
    as_numpy = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in shapes}
    restore = ocp.args.PyTreeRestore(dict(shapes), restore_args=as_numpy)
    try:
        found = _quietly(folder, ocp.args.Composite(**{name: restore}))[name]
        return {path: np.asarray(found[path]) for path in shapes}
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedError(reason(error)) from error


def _quietly(folder: Path, args: Any) -> Any:
    """What orbax restores."""
    import orbax.checkpoint as ocp

    with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(folder, args=args)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what orbax logs, for what goes wrong is an exception, and said once.

    Its first line gives a root logger without handlers one, out of which comes whatever else is logged from there on.
    After an error, what it had begun beside comes back to a loop that is closed, which python shows as tracebacks.
    """
    handlers, hook, absl = logging.root.handlers.copy(), sys.unraisablehook, logging.getLogger("absl")
    is_other = lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
    absl.addFilter(is_other)
    sys.unraisablehook = lambda ignored: None if str(ignored.exc_value) == "Event loop is closed" else hook(ignored)
    try:
        yield
    except Exception:
        time.sleep(_SECONDS_TO_COME_BACK)
        raise
    finally:
        sys.unraisablehook = hook
        absl.removeFilter(is_other)
        for handler in logging.root.handlers.copy():
            if handler not in handlers:
                logging.root.removeHandler(handler)


def _check_fits(folder: Path, written: Mapping[str, list], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    text = lambda dtype, shape: f"{dtype}[{', '.join(map(str, shape))}]"
    there = {path: text(dtype, shape) for path, (dtype, shape, _) in written.items()}
    here = {path: text(*_described(shape)) for path, shape in shapes.items()}
    differing = [path for path in here | there if here.get(path) != there.get(path)]
    if differing:
        listed = [
            f"at {path} {there.get(path, 'nothing')} in place of {here.get(path, 'nothing')}" for path in differing
        ]
        more = f" and at {counted(len(listed) - 3, 'other path')}" if len(listed) > 3 else ""
        raise ValueError(
            f"{folder} holds another state: {', '.join(listed[:3])}{more}. It is read into the structure that it was "
            "written from: make the learner with the same network, optimizer and arguments"
        )


def _flat(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path) or "state": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _unflat(like: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    leaves = [_as(leaf, jnp.array(arrays[path])) for path, leaf in _flat(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _as(like: Any, numbers: jax.Array) -> jax.Array:
    """What `_numbers` made these of."""
    if not _is_key(like):
        return numbers
    impl: list[Any] = []  # which a shape does not tell
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(numbers, impl=impl[0])


def _numbers(leaf: Any) -> jax.Array:
    """An array of numbers, of keys their data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> np.ndarray:
    """A copy that no program writes to. Of an array that other processes hold a part of, all of it."""
    array = _numbers(leaf)
    if array.is_fully_addressable:
        return np.array(array)
    if array.is_fully_replicated:
        return np.array(array.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.array(multihost_utils.process_allgather(array, tiled=True))


def _described(array: Any) -> tuple[str, list[int]]:
    return str(array.dtype), list(array.shape)


def _entry(array: np.ndarray) -> list[Any]:
    """What is known of an array: its dtype, its shape, and a checksum of its bytes."""
    return [*_described(array), zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)]


def _remove(folder: Path) -> None:
    """A folder of a step, which has lost that name before the first of its files goes."""
    aside = folder.with_name(f"{folder.name}{_UNFINISHED}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(f"*{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)
