"""Who competes: jaxmeta, and the JAX that people write. PyTorch's libraries are in `peers`.

A contender builds one exact meta-step of a case from given weights: inner loop, meta-gradient, outer Adam. What it
builds has taken its first step, and tells the meta-gradient of it: the check of agreement and the clock see the same
program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

import jaxmeta
from benchmarks.shared.cases import Case, cast
from benchmarks.shared.measure import Program
from jaxmeta import Task
from jaxmeta.types import PyTree

OUTER_RATE = 1e-3
_LOOP, _LOOP_FLOPS = 10, 2e11  # steps of a loop; fewer where they are long, for there a loop gains nothing
_QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_FIRST_MOMENT = 1 - 0.9  # what Adam's first moment is, after one step, in gradients


class MetaStep(NamedTuple):
    """What a contender built. `gradient`, of the first step, is in numpy and the layout of the case's parameters."""

    program: Program
    gradient: PyTree


class Contender(NamedTuple):
    """build: (case, params, dtype) -> MetaStep; it raises `Unavailable` where it cannot run.

    Of several with one name, in different memory layouts, the fastest competes.
    """

    name: str
    build: Callable[[Case, PyTree, DTypeLike], MetaStep]
    layout: str = ""


class Unavailable(Exception):
    """A contender that is not installed, does not run here or has no such network; the message says what to do."""


def _jit(function: Callable, dtype: DTypeLike, **options: Any) -> Any:
    """`jax.jit`. What only shows that jaxmeta's meta-gradient is right is compiled quickly: a ResNet-12's, in float64,
    takes a CPU minutes to optimise. Plain JAX's would then take hours: its convolutions in float64 are plain loops."""
    is_check = dtype == np.float64 and jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=_QUICK_TO_COMPILE if is_check else None, **options)


def _learner(case: Case, params: PyTree, dtype: DTypeLike) -> jaxmeta.MetaLearner:
    return case.maml(init_fn=lambda key: cast(params, dtype), optimizer=optax.adam(OUTER_RATE))


def build_jaxmeta(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    learner = _learner(case, params, dtype)
    tasks = cast(case.tasks, dtype)
    key, update = jax.random.key(0), _jit(learner.update, dtype, donate_argnums=1)
    return _jax_meta_step(lambda state: update(key, state, tasks)[0], learner.init(key), lambda state: state.opt_state)


def build_jaxmeta_loop(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """Up to ten steps in one program, as `fit` runs them; the same program, asked for one, tells the gradient."""
    learner = _learner(case, params, dtype)
    key, tasks = jax.random.key(0), cast(case.tasks, dtype)

    @partial(_jit, dtype=dtype, donate_argnums=1)
    def loop(key: jax.Array, state: PyTree, tasks: Task, number: int) -> PyTree:
        return jax.lax.fori_loop(0, number, lambda _, state: learner.update(key, state, tasks)[0], state)

    number = max(1, min(_LOOP, int(_LOOP_FLOPS // case.flops())))
    one, several = (lambda state, number=number: loop(key, state, tasks, number) for number in (1, number))
    return _jax_meta_step(one, learner.init(key), lambda state: state.opt_state, several, number)


def build_jaxmeta_devices(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """The tasks shared by as many devices as divide them, or the examples of one task; of a CPU, each core is one."""
    available = range(2, jax.device_count() + 1)
    num_devices = max((n for n in available if case.num_tasks % n == 0 or case.num_tasks == 1), default=1)
    if num_devices == 1:
        raise Unavailable(f"{case.num_tasks} tasks and {jax.device_count()} devices: nothing to share")
    learner = _learner(case, params, dtype)
    with jaxmeta.over_devices(num_devices):
        key, state, tasks = jaxmeta.replicated(
            (jax.random.key(0), learner.init(jax.random.key(0)), cast(case.tasks, dtype))
        )
        update = _jit(learner.update, dtype, donate_argnums=1).lower(key, state, tasks).compile()
    return _jax_meta_step(lambda state: update(key, state, tasks)[0], state, lambda state: state.opt_state)


def build_plain(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    init, update = plain_update(case)
    update, tasks = jax.jit(update, donate_argnums=0), cast(case.tasks, dtype)
    return _jax_meta_step(lambda state: update(state, tasks), init(cast(params, dtype)), lambda state: state[1])


def plain_update(case: Case) -> tuple[Callable, Callable]:
    """`jax.grad(mean(vmap(task_loss)))`, the program of most tutorials: (params) -> state, (state, tasks) -> state."""
    optimizer, task_loss = optax.adam(OUTER_RATE), _plain_task_loss(case)

    def meta_loss(params: PyTree, tasks: Task) -> jax.Array:
        return jnp.mean(jax.vmap(task_loss, (None, 0))(params, tasks))

    def update(state: tuple, tasks: Task) -> tuple:
        params, opt_state = state
        grads = jax.grad(meta_loss)(params, tasks)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    return lambda params: (params, optimizer.init(params)), update


def plain_gradient(case: Case, params: PyTree, dtype: DTypeLike) -> PyTree:
    """The meta-gradient to hold all others against: the mean of `jax.grad(task_loss)`, one task after the other.

    Vectorised over two tasks, a ResNet-12's plain convolutions had not come to an end after 47 minutes on a CPU.
    """
    gradient = jax.jit(jax.grad(_plain_task_loss(case)))
    params, tasks = cast((params, case.tasks), dtype)
    each = [gradient(params, jax.tree.map(lambda x, i=i: x[i], tasks)) for i in range(case.num_tasks)]
    return jax.tree.map(lambda *grads: np.mean(grads, axis=0), *each)


def _plain_task_loss(case: Case) -> Callable[[PyTree, Task], jax.Array]:
    def task_loss(params: PyTree, task: Task) -> jax.Array:
        for _ in range(case.num_steps):
            grads = jax.grad(case.plain_loss)(params, task.support)
            params = jax.tree.map(lambda p, g: p - case.learning_rate * g, params, grads)
        return case.plain_loss(params, task.query)

    return task_loss


JAXMETA, PLAIN = Contender("jaxmeta", build_jaxmeta), Contender("plain JAX", build_plain)
JAXMETA_LOOP = Contender("jaxmeta, as fit", build_jaxmeta_loop)
JAXMETA_DEVICES = Contender("jaxmeta, over devices", build_jaxmeta_devices)


def relative_error(actual: PyTree, expected: PyTree) -> float:
    """||actual − expected|| / ||expected||, over all leaves."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))
    return float(norm(jax.tree.map(np.subtract, actual, expected)) / norm(expected))


def _jax_meta_step(
    update: Callable, state: PyTree, opt_state_of: Callable, several: Callable | None = None, num_steps: int = 1
) -> MetaStep:
    """`update` takes the first step, whose gradient Adam tells; timed is it, or `several`, of `num_steps`."""
    states = [jax.block_until_ready(update(state))]
    (adam, *_) = jax.tree.map(np.array, opt_state_of(states[0]))
    moment = adam.mu.params if isinstance(adam.mu, jaxmeta.MetaParams) else adam.mu
    timed = several or update

    def step() -> None:
        states[0] = timed(states[0])

    gradient = jax.tree.map(lambda m: np.asarray(m) / _FIRST_MOMENT, moment)
    program = Program(step, lambda: jax.block_until_ready(states[0]), num_steps)
    return MetaStep(program, gradient)
