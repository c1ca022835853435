"""Checks of arguments: a `ValueError` that names the argument, its value and the remedy, before anything compiles."""

import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.traced import same_contents, trace, used_inputs
from jaxmeta.types import Examples, MetaParams, MetaState, Task, TaskDistribution
from jaxmeta.words import counted, short


def check_integer(name: str, value: Any, minimum: int) -> None:
    """A whole number of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {short(value)}")


def check_optional_counts(**counts: Any) -> None:
    """Integers of at least 1, or None, by their names."""
    for name, count in counts.items():
        if count is not None:
            check_integer(name, count, minimum=1)


def check_number(name: str, value: Any, minimum: float = 0.0, maximum: float = math.inf) -> None:
    """A finite real number from `minimum` to `maximum`; of a traced one, a hyperparameter, only what is known.

    A jax array of shape () is a number, and one of another shape is none: it would broadcast.
    """
    if isinstance(value, jax.core.Tracer) and _is_number(value):
        return
    number = value.item() if isinstance(value, jax.Array) and _is_number(value) else value
    is_real = isinstance(number, numbers.Real) and not isinstance(number, bool) and math.isfinite(number)
    if not is_real or not minimum <= number <= maximum:
        limits = f">= {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        raise ValueError(f"{name} must be a finite number {limits}, got {short(value)}")


def _is_number(array: jax.Array) -> bool:
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    return array.shape == () and real


def check_share(name: str, value: Any) -> None:
    """A number from 0 to 1, such as a discount: not a percentage."""
    check_number(name, value, maximum=1)


def check_seed(name: str, value: Any) -> None:
    """A seed of `jax.random.key`, which of a larger or a negative one takes 32 bits: it would be another's."""
    check_integer(name, value, minimum=0)
    if value >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {value}: jax.random.key would take its last 32 bits alone")


def check_flag(name: str, value: Any) -> None:
    """A boolean: the text "False" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {short(value)}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """One of a few names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}, got {short(value)}")


def check_widths(name: str, value: Any) -> None:
    """The widths of a network's layers, none if empty."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a sequence of widths, such as (64, 64), got {short(value)}")
    for i, width in enumerate(value):
        check_integer(f"{name}[{i}]", width, minimum=1)


def check_callable(name: str, value: Any, signature: str) -> Callable:
    """A function with the given signature, and no class of such, as of a network: what that returns is a function."""
    if inspect.isclass(value) and any("__call__" in vars(base) for base in value.__mro__):
        raise ValueError(
            f"{name} must be a function {signature}, got the class {value.__name__}: give a function of an instance"
        )
    if not callable(value):
        raise ValueError(f"{name} must be a function {signature}, got {short(value)}")
    return value


def check_instance(name: str, value: Any, options: type) -> None:
    """A bundle of options, which has checked itself."""
    if not isinstance(value, options):
        raise ValueError(f"{name} must be a {options.__name__}(...), got {value!r}")


def check_fields(name: str, value: Any, fields: Collection[str], remedy: str) -> None:
    """Something that has the functions of one of the library's tuples."""
    if not all(callable(getattr(value, field, None)) for field in fields):
        raise ValueError(f"{name} must have {', '.join(fields)}: {remedy}; got {short(value)}")


def check_learner(name: str, value: Any) -> None:
    """A `MetaLearner`, or something with its four functions."""
    functions = ("init", "update", "adapt", "evaluate")
    check_fields(name, value, functions, "a jaxmeta.MetaLearner, such as jaxmeta.maml(...)")


def check_init_fn(init_fn: Any) -> Callable:
    """`init_fn`, which says so when it is called if it wants more than a key."""
    check_callable("init_fn", init_fn, "(key) -> params")

    def checked(key: jax.Array) -> Any:
        try:
            return init_fn(key)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise ValueError(
                "init_fn must be a function of a key alone, (key) -> params: give a network its input, as in "
                f"lambda key: network.init(key, x); called with a key it raised {type(error).__name__}: {error}"
            ) from error

    return checked


def check_loss_fn(
    name: str, loss_fn: Any, stochastic: bool = False, arguments: Sequence[str] = ("params", "batch")
) -> Callable:
    """`loss_fn` as (params, batch, key) -> (loss, metrics), which says while it is traced if it returns anything but
    a scalar and a dict of scalars. The key is handed on where the loss is `stochastic`."""
    check_callable(name, loss_fn, f"{_signature(arguments)} -> (loss, metrics)")
    check_takes_key(name, loss_fn, arguments, stochastic)

    def checked(*args: Any) -> Any:
        result = loss_fn(*args) if stochastic else loss_fn(*args[:-1])
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise ValueError(f"{name} must return (loss, metrics), metrics a dict, {{}} if none; got {short(result)}")
        for metric, value in (("loss", result[0]), *result[1].items()):
            if _as_array(metric, value, f"{name} must return scalars").shape != ():
                raise ValueError(f"{name} must return scalars; {metric} has shape {jnp.shape(value)}: take its mean")
        if not jnp.issubdtype(jnp.asarray(result[0]).dtype, jnp.floating):
            raise ValueError(f"{name} must return a real loss, got dtype {jnp.asarray(result[0]).dtype}")
        return result

    return checked


def check_takes_key(name: str, fn: Callable, arguments: Sequence[str], stochastic: bool) -> None:
    """A function of `arguments`, and of a key after them if `stochastic`, as far as its signature tells."""
    wanted = (*arguments, "key") if stochastic else arguments
    if _takes(fn, len(wanted)):
        return
    if stochastic:
        raise ValueError(
            f"{name} must take a key with stochastic=True, {_signature(wanted)}, got one of "
            f"{_signature(inspect.signature(fn))}: leave stochastic=False if it draws nothing"
        )
    remedy = ": say stochastic=True if the last is a key" if _takes(fn, len(wanted) + 1) else ""
    raise ValueError(
        f"{name} must be a function of {_signature(wanted)}, got one of {_signature(inspect.signature(fn))}{remedy}"
    )


def _takes(fn: Callable, num_arguments: int) -> bool:
    try:
        inspect.signature(fn).bind(*range(num_arguments))
    except TypeError:
        return False
    except ValueError:  # a builtin has no signature: its call will tell
        return True
    return True


def _signature(arguments: Sequence[str] | inspect.Signature) -> str:
    names = arguments.parameters if isinstance(arguments, inspect.Signature) else arguments
    return f"({', '.join(names)})"


def check_meta_params(value: Any) -> None:
    """What the outer loop has learned, and not the state or the parameters around or within it."""
    if not isinstance(value, MetaParams):
        raise ValueError(
            f"meta_params must be a jaxmeta.MetaParams, such as state.meta_params, got {type(value).__name__}"
        )


def check_state(value: Any) -> None:
    """The state that the outer loop carries."""
    if not isinstance(value, MetaState):
        raise ValueError(f"state must be a jaxmeta.MetaState, such as learner.init(key), got {type(value).__name__}")


def check_params(params: Any) -> Any:
    """`params` as arrays that can be differentiated, none weakly typed: an update must not change their types."""
    if not jax.tree.leaves(params):
        raise ValueError(f"init_fn must return a pytree with at least one array, got {short(params)}")
    _check_that_all_is_learned(params)

    def check(path: tuple, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "params"
        array = _as_array(name, leaf, "init_fn must return arrays")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"init_fn must return real arrays only; {name} has dtype {array.dtype}: split off what is "
                "not learned (nnx.split(model, nnx.Param, ...), eqx.partition(model, eqx.is_inexact_array))"
            )
        return jnp.asarray(array, array.dtype)

    return jax.tree_util.tree_map_with_path(check, params)


def _check_that_all_is_learned(params: Any) -> None:
    """Refuses a library's state among the parameters: it would be trained as one of them, and never be updated."""
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: bool(_state_of(node))):
        if state := _state_of(node):
            name = "/".join(filter(None, (jax.tree_util.keystr(path, simple=True, separator="/"), state)))
            raise ValueError(
                f"init_fn must return what is learned, and nothing else; {name} is state, which would be trained as a "
                "parameter and never updated. Normalise with what has none, jaxmeta.nn.BatchNorm or GroupNorm, or keep "
                "it out: {'params': variables['params']} of flax, nnx.split(model, nnx.Param, ...)[1] (merged again "
                "with copy=True, see help(jaxmeta.nn.norms)), the model of eqx.nn.make_with_state. What is learned "
                "beside a flax network has a name beside the network's: {'network': variables, 'loss': ...}"
            )


def _state_of(node: Any) -> str | None:
    """The name of the state that a node of a pytree is, or has beside "params"; None if there is none."""
    kinds = {(cls.__module__.split(".")[0], cls.__name__) for cls in type(node).__mro__}
    if kinds & _STATE and jax.tree.leaves(node):  # what a library has taken the arrays out of is no state any more
        return type(node).__name__
    if not isinstance(node, Mapping):
        return None
    collections = [name for name, part in node.items() if isinstance(part, Mapping) and jax.tree.leaves(part)]
    is_of_flax = "params" in collections
    return next((name for name in collections if name == "batch_stats" or (is_of_flax and name != "params")), None)


_STATE = {
    *(("flax", name) for name in ("BatchStat", "Cache", "Intermediate", "RngState")),
    *(("equinox", name) for name in ("State", "StateIndex")),
}


def _as_array(name: str, value: Any, what: str) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what}; {name} is {short(value)}") from error


def check_fits(name: str, tree: Any) -> None:
    """Arrays of numpy whose numbers jax keeps: without x64, 64-bit integers lose half of their bits in silence.

    >>> check_fits("y", np.array([3, 2**31 - 1]))
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iuf":
            continue
        kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if kept == leaf.dtype:
            continue
        limits = jnp.finfo(kept) if leaf.dtype.kind == "f" else jnp.iinfo(kept)
        beyond = leaf[np.isfinite(leaf) & ((leaf < limits.min) | (leaf > limits.max))]
        if beyond.size:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must hold numbers that are {kept}s in jax, got {beyond[0]} in "
                f"{leaf.dtype}: count from 0, or scale them, or jax.config.update('jax_enable_x64', True)"
            )


def check_key(name: str, value: Any, max_ndim: int = 1) -> None:
    """A typed random key, or an array of them with at most `max_ndim` axes."""
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not is_key or value.ndim > max_ndim:
        raise ValueError(f"{name} must be a typed key, such as jax.random.key(0), got {short(value)}")


def check_pure(name: str, fn: Callable, *args: Any) -> tuple[Any, Any]:
    """A function that is the same each time it is traced, as one that uses `np.random` is not.

    Args:
      name: of the function.
      fn: the function.
      args: what it takes, arrays or their shapes (`jax.eval_shape`'s).

    Returns:
      Its jaxpr, and the shapes of what it returns.
    """
    first, second = trace(fn, *args), trace(fn, *args)
    if not same_contents(first[0], second[0]):
        raise ValueError(
            f"{name} must be a pure function of its arguments, but traced twice it is not the same. What it draws with "
            "np.random is a constant once it is compiled: draw with jax.random and the key that it is given"
        )
    return first


def a_key() -> jax.ShapeDtypeStruct:
    """The shape of a key, for what is looked at before anything compiles."""
    return jax.eval_shape(jax.random.key, 0)


def check_uses_key(name: str, fn: Callable, *args: Any, remedy: str = "") -> None:
    """A pure function whose result depends on the key that is its first argument; args as for `check_pure`.

    >>> check_uses_key("sample_fn", jax.random.normal, jax.random.key(0))
    """
    if not used_inputs(check_pure(name, fn, *args)[0])[0]:
        raise ValueError(
            f"{name} must draw with jax.random and the key that it is given: what it returns does not depend on it and "
            f"would be the same every time{remedy}"
        )


def check_sampler(name: str, tasks: TaskDistribution, data: Any, remedy: str) -> None:
    """A pure `sample` of (key, data), which depends on its key where there is more than one task."""
    check_sample = check_pure if tasks.size == 1 else partial(check_uses_key, remedy=remedy)
    check_sample(f"{name}.sample", tasks.sample, a_key(), data)


def check_like(name: str, value: Any, expected: Any, remedy: str) -> None:
    """A pytree with the structure and the shapes of `expected`."""
    given, wanted = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (value, expected)
    )
    if [given, jax.tree.structure(value)] == [wanted, jax.tree.structure(expected)]:
        return
    seeds = {shape[:1] for shape in given.values()}
    if given.keys() == wanted.keys() and seeds != {()} and len(seeds) == 1:
        (size,) = seeds.pop()
        if all(given[path] == (size, *wanted[path]) for path in wanted):
            raise ValueError(
                f"{name} must be {remedy}, of one seed, got those of {size} seeds that were trained at once: "
                "jax.tree.map(lambda x: x[0], state) is the first"
            )
    differing = [path for path in wanted | given if given.get(path) != wanted.get(path)]
    where = [f"at {path} {given.get(path, 'nothing')} in place of {wanted.get(path, 'nothing')}" for path in differing]
    more = f" and at {counted(len(where) - 3, 'other path')}" if len(where) > 3 else ""
    difference = f"the shapes differ: {', '.join(where[:3])}{more}" if where else "the types of its nodes differ"
    raise ValueError(f"{name} must be {remedy}, got {short(value)}: {difference}")


def check_tasks(tasks: Task) -> int:
    """N, the leading axis that all arrays of `tasks` share."""
    check_query(tasks)
    return check_stacked("tasks", tasks)


def check_stacked(name: str, tree: Any) -> int:
    """N, the leading axis that all arrays of `tree` share."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{name} must be stacked, every array with the same leading axis N; the leading axes are {sizes}"
        )
    return sizes.pop()[0]


def check_task(task: Task) -> None:
    if not isinstance(task, Task):
        raise ValueError(f"task must be a jaxmeta.Task(support, query), got {type(task).__name__}")
    check_fits("task", task)


def check_query(task: Task) -> None:
    check_task(task)
    if not jax.tree.leaves(task.query):
        raise ValueError("task must have a query set to be judged on, got none: Task(support, query)")


def check_pairs(task: Task, is_stacked: bool) -> None:
    """That in the support set and the query set a pair (x, y) of arrays has an axis of examples.

    It is missed where one task is given in the place of several, whose examples would be tasks of one each. Of two
    arrays with axes beyond it the numbers of examples may differ: a batch can be any two sets, such as points within
    and points on a boundary.

    >>> check_pairs(Task((np.ones((3, 5, 2)), np.ones((3, 5)))), is_stacked=True)
    """
    axis, axes = (1, "N, B, ...") if is_stacked else (0, "B, ...")
    for name, batch in (("support", task.support), ("query", task.query)):
        is_pair = isinstance(batch, Examples) or (type(batch) is tuple and len(batch) == 2)
        pair = [np.shape(leaf)[axis:] for leaf in batch[:2] if hasattr(leaf, "shape")] if is_pair else []
        if len(pair) < 2 or pair[0][:1] == pair[1][:1] != () or min(map(len, pair)) > 1:
            continue
        remedy = ": of one task jax.tree.map(lambda leaf: leaf[None], task) makes N = 1" if is_stacked else ""
        raise ValueError(
            f"{name} of {'tasks' if is_stacked else 'task'} must be (x [{axes}], y [{axes}]), of as many examples "
            f"B, got {short(batch)}{remedy}"
        )


def check_arguments(name: str, fn: Callable, arguments: Sequence[str], remedy: str) -> None:
    """A function that takes these arguments, as far as its signature tells."""
    check_callable(name, fn, _signature(arguments))
    if not _takes(fn, len(arguments)):
        raise ValueError(
            f"{name} must be a function of {_signature(arguments)}, got one of {_signature(inspect.signature(fn))}: "
            f"{remedy}"
        )


def check_distribution(name: str, value: Any) -> None:
    """A `TaskDistribution`; a finite one says how many tasks there are, and which is which."""
    if not isinstance(value, TaskDistribution):
        raise ValueError(
            f"{name} must be a jaxmeta.TaskDistribution, such as jaxmeta.tasks.sinusoid(), got {short(value)}"
        )
    remedy = "one task from a key, and of data what it needs, as in lambda key, data: ..."
    check_arguments(f"{name}.sample", value.sample, ("key", "data"), remedy)
    if (value.at is None) != (value.size is None):
        raise ValueError(f"{name} must have both at and size where it is finite, or neither, got {value!r}")
    if value.at is not None:
        check_integer(f"{name}.size", value.size, minimum=1)
        check_arguments(f"{name}.at", value.at, ("index", "data"), "the task of a number, from data")
    if value.names is not None:
        check_names(f"{name}.names", value.names, value.size)
    if value.sources is not None:
        check_sources(f"{name}.sources", value.sources)


def check_names(name: str, value: Any, size: int | None) -> None:
    """A name for each of `size` tasks, no two of them the same.

    >>> check_names("names", ["north", "south"], 2)
    """
    if size is None:
        raise ValueError(f"{name} must be None where there is no size, for the names are those of the tasks of a list")
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{name} must be a list of strings, one for each task, got {short(value)}")
    if len(value) != size:
        raise ValueError(f"{name} must be as many as there are tasks, {size}, got {len(value)}")
    if twice := [entry for entry, count in Counter(value).items() if count > 1]:
        raise ValueError(f"{name} must differ, got {short(twice)} more than once")


def check_sources(name: str, value: Any) -> None:
    """{name: TaskDistribution}, of distributions that are no mixtures themselves.

    >>> check_sources("sources", {"lines": TaskDistribution(lambda key, data: key)})
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        raise ValueError(f'{name} must be a dictionary {{"name": tasks}}, got {short(value)}')
    for key, tasks in value.items():
        check_distribution(f"{name}[{key!r}]", tasks)
        if tasks.sources is not None:
            raise ValueError(
                f"{name}[{key!r}] is a mixture itself: name its sources, {', '.join(tasks.sources)}, beside the others"
            )


def check_metrics(name: str, metrics: Any, ndim: int) -> None:
    """What a learner's function reports: {name: scalar} of `update`, {name: [K + 1]} of `evaluate`."""
    shapes = {key: jnp.shape(value) for key, value in metrics.items()} if isinstance(metrics, dict) else None
    if not shapes or any(len(shape) != ndim for shape in shapes.values()):
        what = "scalars" if ndim == 0 else "curves [K + 1], entry k after k units of adaptation"
        raise ValueError(f"{name} must report a dict of {what}, got {short(metrics if shapes is None else shapes)}")


def check_labels(name: str, labels: Any, num_classes: int, weight: Any = None, num_ways: Any = None) -> None:
    """Integers from 0 to num_classes − 1, or below `num_ways`, where an example counts; traced ones pass.

    >>> check_labels("labels y", np.array([0, 2]), num_classes=3)
    """
    if isinstance(labels, jax.core.Tracer) or isinstance(weight, jax.core.Tracer):
        return
    found = np.unique(np.asarray(labels) if weight is None else np.asarray(labels)[np.asarray(weight) > 0])
    is_masked = num_ways is not None and not isinstance(num_ways, jax.core.Tracer)
    limit = int(num_ways) if is_masked else num_classes
    if found.size and (found[0] < 0 or found[-1] >= limit):
        listed = ", ".join(map(str, found if len(found) <= 8 else [*found[:3], "...", *found[-2:]]))
        outputs = f"{counted(limit, 'class', 'classes')} by num_ways" if is_masked else counted(limit, "output")
        raise ValueError(
            f"{name} must be class numbers from 0 to {limit - 1}, for there are {outputs}, got {listed}: number the "
            "classes of a task from 0, and have an output for each of them"
        )


def check_num_ways(name: str, value: Any, num_classes: int) -> None:
    """Of how many classes an episode is: a whole number, from 1 to those that there are outputs for."""
    is_number = isinstance(value, numbers.Number | np.ndarray | jax.Array)
    if not is_number or np.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise ValueError(f"{name} must be an integer, of how many classes the episode is, got {short(value)}")
    if not isinstance(value, jax.core.Tracer) and not 1 <= int(value) <= num_classes:
        raise ValueError(
            f"{name} must be from 1 to {num_classes}, for there are {counted(num_classes, 'output')}, got {int(value)}"
        )


def check_weight(name: str, value: Any, num_examples: int) -> None:
    """How much each example counts: finite numbers ≥ 0, not all of them 0, as far as they are known.

    >>> check_weight("weight", np.array([1.0, 0.0]), num_examples=2)
    """
    dtype = jnp.result_type(value)
    if jnp.shape(value) != (num_examples,) or not (jnp.issubdtype(dtype, jnp.floating) or dtype.kind in "biu"):
        raise ValueError(
            f"{name} must be numbers of shape [{num_examples}], one for each example, got {short(value)}: examples "
            "count as a whole, all tokens of a sequence alike"
        )
    if isinstance(value, jax.core.Tracer):
        return
    numbers = np.asarray(value, float)
    if not (np.all(numbers >= 0) and np.all(np.isfinite(numbers)) and np.any(numbers > 0)):
        listed = ", ".join(f"{number:g}" for number in np.unique(numbers)[:4])
        raise ValueError(f"{name} must be finite numbers >= 0, not all of them 0, got {listed}")
