"""The default strategy: the exact meta-gradient, differentiated the way that these shapes ask for.

The rules are in the docstring of `auto`.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.adapt.meta_gradients import MetaGradient, TaskGradient, exact, mixed_mode, only_the_state
from jaxmeta.adapt.unroll import num_sources
from jaxmeta.checks import check_integer
from jaxmeta.outer.cost import CACHE_BYTES, default_memory_budget, peak_bytes
from jaxmeta.outer.tasks import TASKS, say_of_what_runs
from jaxmeta.types import MetaParams, PyTree
from jaxmeta.words import counted

_log = logging.getLogger("jaxmeta")

# By the operations that they take.
SCHEDULES = {
    "exact()": exact(),
    "mixed_mode(save_gradients=True)": mixed_mode(save_gradients=True),
    "mixed_mode()": mixed_mode(),
    'exact(num_segments="sqrt")': exact(num_segments="sqrt"),
    'mixed_mode(num_segments="sqrt")': mixed_mode(num_segments="sqrt"),
}
_PLAIN, _STEPS, _, _SEGMENTS, _ = SCHEDULES
_NEAR = CACHE_BYTES // 2


def auto(*, memory_budget: int | None = None) -> MetaGradient:
    """The exact meta-gradient by the schedule, of `exact` and `mixed_mode`, that suits the shapes. Never approximate.

    A few schedules give the same gradient at different prices. While tracing, the memory that each would need is
    estimated (`outer.cost.peak_bytes`), and the first rule that holds is taken:

    1. All that plain reverse mode keeps fits half of a processor's cache, or is less than what recomputed steps keep, K
       copies of the fast weights, of the inner optimizer's state and, if its derivative asks for them (Adam's does,
       that of plain gradient descent not), of the inner gradients: plain reverse mode, with the fewest operations.
    2. Recomputed steps do not fit either, and √K segments need half of their memory at most: segments.
    3. Otherwise recomputed steps: writing everything to memory and reading it back costs more. Where products take the
       time, as in wide layers (512 units, 1,000 examples), plain reverse mode is a tenth faster in thrice the memory.

    Where the schedule so chosen does not fit the memory budget, the first of the others that does is taken. The limits
    were measured on a CPU (`python -m benchmarks memory`). The choice, and why, is logged once by the logger "jaxmeta",
    at level INFO.

    Args:
      memory_budget: bytes for the inner loops of all tasks that are vectorised together; if None, half of the device's
        memory.

    Raises:
      ValueError: `memory_budget` is no positive integer.

    >>> strategy = auto(memory_budget=2**30)
    """
    if memory_budget is not None:
        check_integer("memory_budget", memory_budget, minimum=1)

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        traced_once = lambda schedule: jax.jit(schedule(adapt, outer).window, inline=True)
        windows = {name: traced_once(schedule) for name, schedule in SCHEDULES.items()}
        bytes_of_task = {}  # asked for several times, with more or fewer tasks around

        def peak_of_task(name: str, args: tuple) -> int:
            leaves, structure = jax.tree.flatten(args)
            shapes = name, structure, *((jnp.shape(leaf), jax.typeof(leaf).dtype) for leaf in leaves)
            if shapes not in bytes_of_task:
                bytes_of_task[shapes] = peak_bytes(lambda *args: windows[name](*args)[:2], *args)
            return bytes_of_task[shapes]

        def window(key, meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: Any):
            budget = default_memory_budget() if memory_budget is None else memory_budget
            args = (key, meta_params, sources, task, carry, is_new)
            num_steps, num_tasks = num_sources(sources), _num_tasks()
            name, reason = _choose(lambda name: (num_tasks or 1) * peak_of_task(name, args), num_steps, budget)
            if num_tasks:  # else it is traced for one task alone
                counts = f"{counted(num_steps, 'inner step')}, {counted(num_tasks, 'task')} at a time"
                say_of_what_runs(lambda: _say(f"auto: {name} for {counts}: {reason}"))
            return windows[name](*args)

        return TaskGradient(window, only_the_state)

    return strategy


def _choose(peak: Callable[[str], int], num_steps: int, budget: int) -> tuple[str, str]:
    """The schedule to take, and why; `peak` gives the bytes of one."""
    mib = lambda name: f"{peak(name) / 2**20:.3g} MiB"
    if num_steps == 1 or peak(_PLAIN) <= _NEAR:
        name, reason = _PLAIN, f"it keeps {mib(_PLAIN)}"
    elif peak(_PLAIN) <= peak(_STEPS):
        name, reason = _PLAIN, f"it keeps {mib(_PLAIN)}, not more than recomputed steps, {mib(_STEPS)}"
    elif peak(_STEPS) > _NEAR and _segments_may_halve(peak, num_steps) and 2 * peak(_SEGMENTS) <= peak(_STEPS):
        name, reason = _SEGMENTS, f"recomputed segments keep {mib(_SEGMENTS)}, steps {mib(_STEPS)}"
    else:
        name, reason = _STEPS, f"recomputed steps keep {mib(_STEPS)}, plain reverse mode {mib(_PLAIN)}"
    if peak(name) <= budget:
        return name, reason
    fitting = [other for other in SCHEDULES if peak(other) <= budget]
    name = fitting[0] if fitting else min(SCHEDULES, key=peak)
    relation = "within" if fitting else "though above"
    return name, f"it keeps {mib(name)}, {relation} the budget of {budget / 2**20:.3g} MiB"


def _segments_may_halve(peak: Callable[[str], int], num_steps: int) -> bool:
    """Whether segments can need half of what recomputed steps do: of short loops they cannot, which spares their trace.

    A segment that is run again keeps what plain reverse mode keeps of its L = K / S steps: L / K of that at least.
    """
    length = math.ceil(num_steps / round(math.sqrt(num_steps)))
    return 2 * length * peak(_PLAIN) <= num_steps * peak(_STEPS)


def _num_tasks() -> int | None:
    """How many tasks are vectorised together; None where `mean_over_tasks` is not around."""
    try:
        return jax.lax.axis_size(TASKS)
    except NameError:
        return None


@functools.cache
def _say(message: str) -> None:
    """Once for each message, however often programs are traced."""
    _log.info(message)
