"""What checkpoints cost: `python -m benchmarks.checkpoints [RECIPE ...]`, a line for each recipe.

A checkpoint's processor time, training and writing threads together, over what so many processors have in the seconds
between two: the overhead at the default interval, however busy the machine is. And how long it takes to go on.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import jax

from jaxmeta.devices import num_cores
from jaxmeta.recipes import RECIPES
from jaxmeta.training import Checkpointer, restore_state
from jaxmeta.training.stored import Store

NUM_SAVES = 20


def measure(recipe: str) -> str:
    learner = RECIPES[recipe].config().build().learner
    state = jax.jit(learner.init)(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(Store(Path(folder), max_to_keep=3)) as store:
            store.begin(0, {"state": state}, {})  # imports and threads, once in a run
            store.finish()
            cpu, blocked = time.process_time(), 0.0
            for step in range(1, NUM_SAVES + 1):
                start = time.perf_counter()
                store.begin(step, {"state": state}, {})
                blocked += time.perf_counter() - start
                store.finish()
            cpu = (time.process_time() - cpu) / NUM_SAVES
        start = time.perf_counter()
        restore_state(folder, jax.eval_shape(learner.init, jax.random.key(0)))
        restored = time.perf_counter() - start
    share = cpu / (Checkpointer(".").every_seconds * num_cores())
    return (
        f"{recipe:18} {size / 2**20:8.2f} MiB  {1e3 * cpu:7.1f} ms of processors, "
        f"{1e3 * blocked / NUM_SAVES:6.1f} ms blocked: {share:.3%} of a run; restored in {1e3 * restored:.0f} ms"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or ("maml-sinusoid", "maml-glyphs"):
        print(measure(name), flush=True)
