"""The types that everything else meets in: tasks, meta-learners and what they carry.

A pluggable thing is a `NamedTuple` of pure functions; a state is a `NamedTuple` of arrays. Letters are the
same everywhere: N tasks, K inner steps, B examples. All of them show shapes and names, not numbers, see `words.short`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from jaxmeta.words import short

PyTree: TypeAlias = Any
Params: TypeAlias = Any
Batch: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]

InitFn: TypeAlias = Callable[[jax.Array], Params]
LossFn: TypeAlias = Callable[[Params, Batch], tuple[jax.Array, Metrics]]


class Task(NamedTuple):
    """A supervised task: adapt on `support`, judge on `query`.

    Attributes:
      support: a batch, any pytree of arrays with leading axis B, such as `(x [B, ...], y [B])`; all that `adapt` reads
      query: another batch, often of another size; `update` and `evaluate` need it, `adapt` does not
      info: what generated them (an amplitude and a phase, the classes of an episode). No learner reads it

    N tasks for `update` are one `Task` of arrays with one more leading axis, N.

    >>> import jax.numpy as jnp
    >>> x = jnp.linspace(0, 1, 12)[:, None]
    >>> Task(support=(x[:2], x[:2] ** 2), query=(x[2:], x[2:] ** 2))
    Task(support=(float32[2, 1], float32[2, 1]), query=(float32[10, 1], float32[10, 1]), info=())
    """

    support: Batch
    query: Batch = None
    info: PyTree = ()

    def __repr__(self) -> str:
        return short(self, width=300)


class Examples(NamedTuple):
    """A batch of examples of which some may be padding, so that sets of any size have one shape: `(x, y)` with weights.

    A pair `(x, y)` is `Examples(x, y)`: every example counts, and every class. The losses, norms, heads and networks of
    `jaxmeta` take either; of what is masked nothing is learned and nothing reported: loss, gradients and statistics are
    those of the batch without it.

    Attributes:
      x: inputs [B, ...]. What is in padded rows must be finite; `tasks` repeats an example there
      y: targets, or labels [B], integers
      weight: [B], how much each example counts, ≥ 0, and 0 for padding; each counts 1 if None. Means are weighted
        means, Σ w l / Σ w
      num_ways: an int32, of how many classes the episode is: labels are below it, and outputs of a network from it on
        have no part in it; all outputs if None

    >>> import jax.numpy as jnp
    >>> Examples(jnp.ones((4, 28, 28)), jnp.arange(4), weight=jnp.array([1, 1, 1, 0.0]), num_ways=jnp.int32(3))
    Examples(x=float32[4, 28, 28], y=int32[4], weight=float32[4], num_ways=int32(3))
    """

    x: PyTree
    y: PyTree
    weight: jax.Array | None = None
    num_ways: jax.Array | None = None

    def __repr__(self) -> str:
        return short(self, width=300)


class TaskDistribution(NamedTuple):
    """p(T), as pure functions and what they read.

    Attributes:
      sample: (key, data) -> task, one drawn at random, with `jax.random` and this key
      data: a pytree of arrays; an argument of compiled programs and never a constant inside them, so that a large data
        set costs no compile time
      at: (index, data) -> task, that of a number 0 .. size − 1, where there are finitely many; else None
      size: how many there are; None where tasks never repeat. `evaluate` goes through all of a finite distribution. A
        single task, that `sample` returns whatever its key, is said so: `size=1`
      names: of the tasks of a finite distribution, in their order, for reports; None if they have none
      sources: {name: its tasks}, where tasks come from several, see `tasks.mixture`, so that each is judged apart; else
        None

    Slopes that are all there, in an array:

    >>> import jax.numpy as jnp
    >>> def at(index, slopes):
    ...     x = jnp.linspace(-1, 1, 4)
    ...     return Task((x, slopes[index] * x), (x, slopes[index] * x))
    >>> def sample(key, slopes):
    ...     return at(jax.random.randint(key, (), 0, len(slopes)), slopes)
    >>> tasks = TaskDistribution(sample, jnp.array([-1.0, 0.5, 2.0]), at=at, size=3)
    >>> tasks
    TaskDistribution(sample=sample, data=float32[3], at=at, size=3)
    >>> tasks.at(2, tasks.data).query[1].tolist()[-1]
    2.0
    """

    sample: Callable[[jax.Array, PyTree], PyTree]
    data: PyTree = ()
    at: Callable[[jax.Array, PyTree], PyTree] | None = None
    size: int | None = None
    names: Sequence[str] | None = None
    sources: "Mapping[str, TaskDistribution] | None" = None

    def __repr__(self) -> str:
        optional = ("names", "sources")
        shown = {field: value for field, value in self._asdict().items() if value is not None or field not in optional}
        fields = (f"{field}={short(value, width=60)}" for field, value in shown.items())
        return f"TaskDistribution({', '.join(fields)})"


class MetaParams(NamedTuple):
    """What the outer loop learns, and what stays as it is.

    Attributes:
      params: the initialisation θ, what `init_fn` returned
      hyper: the inner optimizer's hyperparameters η, such as a learned rate per parameter; `()` if none
      constants: what the model has beside them and no gradient moves, such as a frozen backbone; `()` if nothing.
        Strategies and outer optimizers see `learned(meta_params)`, without them

    >>> import jaxmeta
    >>> learner = jaxmeta.meta_sgd(lambda key: {"w": 2.0}, lambda params, batch: (params["w"] ** 2, {}))
    >>> learner.init(jax.random.key(0)).meta_params
    MetaParams(params={'w': float32(2)}, hyper={'w': float32(0.01)}, constants=())
    """

    params: Params
    hyper: PyTree = ()
    constants: PyTree = ()

    def __repr__(self) -> str:
        return short(self)


def learned(meta_params: MetaParams) -> MetaParams:
    """What gradients and optimizers are of: `meta_params` without its constants.

    >>> learned(MetaParams(1.0, (), {"backbone": 2.0}))
    MetaParams(params=1.0, hyper=(), constants=())
    """
    return meta_params._replace(constants=())


class MetaState(NamedTuple):
    """What the outer loop carries from step to step: a pytree of arrays, to save and to go on from.

    Attributes:
      step: outer steps taken, an int32
      meta_params: what is learned
      opt_state: the outer optimizer's, and nothing else
      num_skipped: outer steps that were not finite and were not applied, an int32
      carry: what a learner keeps beside the optimizer's, such as a replay buffer; `()` if nothing

    S seeds that `fit` trains at once are one state of arrays with a leading axis S; `jax.tree.map(lambda x: x[0],
    state)` is the first of them.

    >>> import jax.numpy as jnp
    >>> MetaState(jnp.int32(7), MetaParams({"w": jnp.ones((64, 5))}), (), num_skipped=jnp.int32(0)).meta_params
    MetaParams(params={'w': float32[64, 5]}, hyper=(), constants=())
    """

    step: jax.Array
    meta_params: MetaParams
    opt_state: PyTree
    num_skipped: jax.Array
    carry: PyTree = ()

    def __repr__(self) -> str:
        return short(self, width=300)


class MetaLearner(NamedTuple):
    """Pure functions, to jit and vmap at will. Tasks given to `update` have a leading axis N; all others take one task.

    Attributes:
      init: (key) -> state, a `MetaState`
      update: (key, state, tasks) -> (state, metrics), one outer step; metrics are scalars
      adapt: (key, meta_params, task) -> params, adapted to the task
      evaluate: (key, meta_params, task) -> {metric: [K + 1]}, entry k after k units of adaptation
      agent: (meta_params, adapted or None) -> `rl.Agent`, which acts by what `adapt` returned, or, without that, as
        before any adaptation; None where there is nothing to act in
      unit: what adaptation is counted in: "step", "episode"
      check: (meta_params, task, is_test) -> None, looks at the values of a task that `update` is trained on, or that
        `evaluate` judges if `is_test`, and raises a `ValueError` where they are wrong, such as labels that the network
        has no outputs for; None where there is nothing to look at. `fit` and `evaluate` call it with one task, before
        anything compiles
      task_keys: (key, state, N) -> keys [N], by which `fit` draws the tasks of the next outer step, for a learner whose
        tasks last longer than one; None where they are new each time

    >>> import jax.numpy as jnp, jaxmeta
    >>> loss_fn = jaxmeta.nn.mean_squared_error(lambda params, x: params["w"] * x)
    >>> learner = jaxmeta.maml(lambda key: {"w": 0.0}, loss_fn, inner_optimizer=jaxmeta.adapt.sgd(0.25))
    >>> x = jnp.ones((3, 1))
    >>> task = Task(support=(x, 2 * x), query=(x, 2 * x))
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> learner.adapt(jax.random.key(1), meta_params, task)["w"].item()  # 0 − 0.25 · 2 (0 − 2)
    1.0
    >>> learner.evaluate(jax.random.key(1), meta_params, task)["mse"].tolist()
    [4.0, 1.0]
    """

    init: Callable[[jax.Array], MetaState]
    update: Callable[[jax.Array, MetaState, PyTree], tuple[MetaState, Metrics]]
    adapt: Callable[[jax.Array, MetaParams, PyTree], Params]
    evaluate: Callable[[jax.Array, MetaParams, PyTree], Metrics]
    agent: Callable[..., Any] | None = None
    unit: str = "step"
    check: Callable[[MetaParams, PyTree, bool], None] | None = None
    task_keys: Callable[[jax.Array, MetaState, int], jax.Array] | None = None

    def __repr__(self) -> str:
        return short(self, width=300)
