"""What every inner optimizer, strategy, meta-learner and task distribution promises: pure, jits, vmaps, keeps types."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import Task, adapt

pytestmark = pytest.mark.usefixtures("strict_shapes")

DATA = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
NUMBERS = 4 * np.arange(3600, dtype=np.float32).reshape(900, 4, 1)  # of 20 that are drawn here no two are the same
TASKS = {
    "sinusoid": jaxmeta.tasks.sinusoid(num_shots=4, num_queries=3),
    "linear": jaxmeta.tasks.linear(num_shots=4, num_queries=3),
    "quadratic": jaxmeta.tasks.quadratic(num_shots=4, num_queries=3),
    "few_shot": jaxmeta.tasks.few_shot(DATA, num_ways=3, num_shots=1, num_queries=2),
    "few_shot ragged": jaxmeta.tasks.few_shot(list(DATA), num_ways=3, num_shots=1, num_queries=2),
    "few_shot changed": jaxmeta.tasks.few_shot(
        np.arange(120, dtype=np.uint8).reshape(6, 5, 2, 2),
        num_ways=3,
        num_shots=1,
        num_queries=2,
        rotations=True,
        augment=jaxmeta.tasks.augment.random_flip(),
        groups=list("aaabbb"),
    ),
    "few_shot padded": jaxmeta.tasks.few_shot(DATA, num_ways=(2, 3), num_shots=1, num_queries=(1, 2)),
    "fixed": jaxmeta.tasks.fixed(Task((NUMBERS, NUMBERS + 1), (NUMBERS + 2, NUMBERS + 3))),
    "fixed padded": jaxmeta.tasks.fixed(
        [Task((x[: 1 + i % 2], x[: 1 + i % 2]), (x[2:], x[2:])) for i, x in enumerate(NUMBERS[:900])]
    ),
    "mixture": jaxmeta.tasks.mixture(
        {
            "waves": jaxmeta.tasks.sinusoid(num_shots=4, num_queries=3),
            "lines": jaxmeta.tasks.linear(num_shots=2, num_queries=3),
        }
    ),
}
INNER_OPTIMIZERS = {
    "sgd": adapt.sgd(0.1),
    "momentum": adapt.from_optax(optax.sgd(0.1, momentum=0.9)),
    "adam": adapt.from_optax(optax.adam(0.1, eps_root=1e-8)),
    "meta_sgd": adapt.meta_sgd(0.1),
    "lslr": adapt.lslr(0.1, num_inner_steps=2),
    "per_step": adapt.per_step(adapt.meta_sgd(0.1), "head", num_inner_steps=2),
    "proximal adam": adapt.proximal(adapt.from_optax(optax.adam(0.1, eps_root=1e-8)), 0.5),
    "adapt_only sgd": adapt.adapt_only(adapt.sgd(0.1), "head"),
    "adapt_only meta_sgd": adapt.adapt_only(adapt.meta_sgd(0.1), lambda path: path == "head"),
    "adapt_only adam": adapt.adapt_only(adapt.from_optax(optax.adam(0.1)), {"body": False, "head": True}),
}
STRATEGIES = {
    "exact": adapt.exact(),
    "mixed_mode": adapt.mixed_mode(),
    "remat": adapt.exact(remat=jax.checkpoint_policies.nothing_saveable),
    "segments": adapt.exact(num_segments=2),
    "mixed_mode segments": adapt.mixed_mode(num_segments=2, save_gradients=True),
    "forward_mode": adapt.forward_mode(lambda path: True),
    "evolution_strategy": adapt.evolution_strategy(num_pairs=2),
    "persistent_evolution_strategy": adapt.persistent_evolution_strategy(num_truncations=2, num_pairs=2),
    "truncated": adapt.truncated(1),
    "first_order": adapt.first_order(),
    "reptile": adapt.reptile(),
}


def loss_fn(params, batch):
    x, y = batch
    loss = jnp.mean((jnp.tanh(x * params["body"]) * params["head"] - y) ** 2)
    return loss, {"mse": loss}


def dropout_loss(params, batch, key):
    x, y = batch
    keep = 1.0 if key is None else jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    return loss_fn(params, (x * keep, y))


def embed_fn(params, x):
    return jnp.concatenate([jnp.tanh(x * params["body"]), x * params["head"]], axis=1)


def learners(dtype=jnp.float32):
    """Every inner optimizer with `exact`, every strategy around the most involved one, every constructor."""

    def init_fn(key):
        body, head = jax.random.normal(key, (2,), dtype)
        return {"body": body, "head": head}

    both = {"num_inner_steps": 2, "optimizer": optax.adam(1e-3), "microbatch": 2}  # not chosen by another trace
    pairs = {f"maml {name}": (inner, STRATEGIES["exact"]) for name, inner in INNER_OPTIMIZERS.items()}
    pairs |= {name: (INNER_OPTIMIZERS["adapt_only adam"], strategy) for name, strategy in STRATEGIES.items()}
    for name, (inner, strategy) in pairs.items():
        if name not in ("exact", "reptile"):
            yield name, jaxmeta.maml(init_fn, loss_fn, inner_optimizer=inner, meta_gradient=strategy, **both)
    for name in ("maml", "fomaml", "anil", "boil", "meta_sgd", "reptile"):
        yield name, getattr(jaxmeta, name)(init_fn, loss_fn, num_inner_steps=2, batch_size=2, microbatch=1)
    yield "imaml", jaxmeta.imaml(init_fn, loss_fn, num_inner_steps=2, solver=adapt.conjugate_gradient(2))
    yield "maml_plus_plus", jaxmeta.maml_plus_plus(init_fn, loss_fn, num_inner_steps=2, num_annealing_steps=10)
    yield "dropout", jaxmeta.maml(init_fn, dropout_loss, num_inner_steps=2, stochastic=True, microbatch=1)
    living = lambda params, meta_params, batch: loss_fn(jax.tree.map(jnp.add, params, meta_params), batch)
    yield "bilevel", jaxmeta.bilevel(lambda key, m: m, init_fn, living, num_inner_steps=2, num_problems=2)
    yield "cavia", jaxmeta.cavia(init_fn, loss_fn, context="head", num_inner_steps=2)
    of_heads = {"num_ways": 2, "optimizer": optax.adam(1e-3), "microbatch": 1}
    for name in ("protonet", "ridge", "proto_maml"):
        yield name, getattr(jaxmeta, name)(init_fn, embed_fn, **of_heads)
    for name, own in (("fine_tune", {"num_eval_steps": 1}), ("simple_shot", {})):
        yield name, getattr(jaxmeta, name)(init_fn, embed_fn, num_classes=2, num_features=2, **of_heads, **own)


BASELINES = ("fine_tune", "simple_shot")
CLASSIFIERS = ("protonet", "ridge", "proto_maml", *BASELINES)
LEARNERS = dict(learners())
over_learners = pytest.mark.parametrize("name", LEARNERS)
over_tasks = pytest.mark.parametrize("name", TASKS)


def types(tree):
    """Structure, and shape, dtype and weakness of each leaf."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tree))
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def of_model(params, name):
    """Without the head that some learners have beside the parameters."""
    return params.params if name in ("proto_maml", *BASELINES) else params


def make_tasks(num_tasks=2, name="maml", is_test=False):
    """Of the kind that the learner of this name takes."""
    x = jnp.linspace(-1, 1, 4 * num_tasks).reshape(num_tasks, 4, 1)
    if name in CLASSIFIERS:
        labels = jnp.tile(jnp.array([[0, 1, 0, 1]]), (num_tasks, 1))
        return Task((x, labels) if is_test or name not in BASELINES else (), (x + 0.1, labels))
    return Task((x, jnp.sin(3 * x)), (x + 0.1, jnp.sin(3 * x + 0.3)))


@pytest.fixture
def count_traces():
    """chex counts by the name of a function, of which learners and samplers share theirs."""
    chex.clear_trace_counter()


@over_learners
def test_an_update_is_pure_jits_keeps_its_types_and_compiles_once(name, count_traces):
    learner, key, tasks = LEARNERS[name], jax.random.key(1), make_tasks(name=name)
    update = jax.jit(chex.assert_max_traces(learner.update, n=1))
    init = jax.jit(learner.init)
    state = init(jax.random.key(0))
    chex.assert_trees_all_equal(init(jax.random.key(0)), state, strict=True)
    before = jax.tree.map(np.array, (state, tasks))
    after, metrics = update(key, state, tasks)
    assert types(after) == types(state)
    assert int(after.step) == 1 and int(after.num_skipped) == 0 and np.isfinite(metrics["loss"])
    chex.assert_trees_all_equal(update(key, state, tasks), (after, metrics), strict=True)
    update(key, *update(key, after, tasks)[:1], tasks)
    chex.assert_trees_all_equal((state, tasks), before)
    params, old = (of_model(state.meta_params.params, name) for state in (after, before[0]))
    assert params["body"] != old["body"]
    unused = ("cavia", "maml per_step")  # there it is the context, or has other values for each step
    assert (params["head"] != old["head"]) == (name not in unused)


@over_learners
def test_an_update_vmaps_over_seeds_and_adapt_and_evaluate_over_tasks(name):
    """By shape for all; one program of each kind is also compared with the separate runs, below."""
    learner, tasks = LEARNERS[name], make_tasks(6, name)
    states = jax.eval_shape(jax.vmap(learner.init), jax.random.split(jax.random.key(0), 3))
    keys, seeds_tasks = (
        jax.random.split(jax.random.key(1), 3),
        jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), tasks),
    )
    after, metrics = jax.eval_shape(jax.vmap(learner.update), keys, states, seeds_tasks)
    assert types(after) == types(states) and {metric.shape for metric in metrics.values()} == {(3,)}
    meta_params = learner.init(jax.random.key(0)).meta_params
    keys, tasks = jax.random.split(jax.random.key(1), 6), make_tasks(6, name, is_test=True)
    adapted = jax.eval_shape(jax.vmap(learner.adapt, (0, None, 0)), keys, meta_params, tasks)
    stacked = jax.eval_shape(
        lambda p: jax.tree.map(lambda x: jnp.stack([x] * 6), p), of_model(meta_params.params, name)
    )
    assert types(adapted.params if name in CLASSIFIERS else adapted) == types(stacked)
    curves = jax.eval_shape(jax.vmap(learner.evaluate, (0, None, 0)), keys, meta_params, tasks)
    expected = {"loss": (6, 2), "accuracy": (6, 2)} if name in CLASSIFIERS else {"mse": (6, 3)}
    assert {metric: curve.shape for metric, curve in curves.items()} == expected


@pytest.mark.parametrize("name", ["mixed_mode", "reptile", *CLASSIFIERS])
def test_vmapped_updates_are_the_separate_ones(name):
    """float32, one step, another order of sums: 1e-5."""
    learner, tasks = LEARNERS[name], make_tasks(4, name)
    keys, tasks = jax.random.split(jax.random.key(1)), jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), tasks)
    states = jax.jit(jax.vmap(learner.init))(jax.random.split(jax.random.key(0)))
    together = jax.jit(jax.vmap(learner.update))(keys, states, tasks)
    update = jax.jit(learner.update)
    for i in range(2):
        own = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        separate = update(keys[i], own(states), own(tasks))
        chex.assert_trees_all_close(own(together), separate, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "data"), [("bfloat16", "float32"), ("float32", "float64"), ("float64", "float32")])
def test_an_update_keeps_the_parameters_dtype_whatever_the_datas(x64, dtype, data):
    is_real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    for name, learner in learners(jnp.dtype(dtype)):
        tasks = jax.tree.map(lambda leaf: leaf.astype(data) if is_real(leaf) else leaf, make_tasks(name=name))
        state = jax.eval_shape(learner.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.meta_params)} == {jnp.dtype(dtype)}, name
        after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, tasks)
        assert types(after) == types(state), name


def test_python_numbers_as_parameters_compile_once():
    """Weakly typed parameters would become strong in the first update, and compile a second one."""
    learner = jaxmeta.meta_sgd(lambda key: {"body": 1.0, "head": 0.5}, loss_fn)
    state = learner.init(jax.random.key(0))
    after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, make_tasks())
    assert types(after) == types(state)


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
def test_an_inner_optimizer_keeps_the_types_of_its_state(name):
    optimizer = INNER_OPTIMIZERS[name]
    params = {"body": jnp.float32(0.5), "head": jnp.bfloat16(1.0)}
    meta_params = jaxmeta.MetaParams(params, optimizer.init(params))
    state = optimizer.start(meta_params)
    step = lambda state: optimizer.step(meta_params, state, jax.tree.map(jnp.ones_like, state.fast))
    after = jax.eval_shape(step, state)
    assert types(after) == types(state)
    assert types(jax.eval_shape(optimizer.params, meta_params, after.fast)) == types(params)


@functools.cache
def twenty_tasks(name):
    """Twenty keys, and the tasks that they are."""
    keys = jax.random.split(jax.random.key(0), 20)
    return keys, jax.jit(jax.vmap(TASKS[name].sample, (0, None)))(keys, TASKS[name].data)


@over_tasks
def test_a_sampler_is_pure_jits_vmaps_and_compiles_once(name, count_traces):
    tasks, (keys, together) = TASKS[name], twenty_tasks(name)
    sample = jax.jit(chex.assert_max_traces(tasks.sample, n=1))
    before = jax.tree.map(np.array, tasks.data)
    for i in range(3):
        task = sample(keys[i], tasks.data)
        chex.assert_trees_all_equal(sample(keys[i], tasks.data), task, strict=True)
        vmapped = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        chex.assert_trees_all_close(vmapped, task, rtol=1e-5, atol=1e-6)  # a vectorised sine rounds differently
    chex.assert_trees_all_equal(tasks.data, before)
    assert isinstance(task, Task) and not any(weak for *_, weak in types(task)[1])


@over_tasks
def test_a_key_is_a_task_and_support_and_query_differ(name):
    _, tasks = twenty_tasks(name)
    rows = lambda leaf: {np.asarray(row).tobytes() for row in leaf}
    assert len(rows(tasks.support[0])) == len(rows(tasks.query[0])) == 20
    if not name.startswith(("few_shot", "mixture")):  # 6 * 5 * 4 ordered triples of classes do collide, and sources
        assert all(len(rows(leaf)) == 20 for leaf in jax.tree.leaves(tasks.info))
    for support, query in zip(tasks.support[0], tasks.query[0], strict=True):
        assert not rows(support) & rows(query)


@over_tasks
def test_data_is_an_argument_and_no_constant(name):
    tasks = TASKS[name]
    constants = jax.make_jaxpr(tasks.sample)(jax.random.key(0), tasks.data).consts
    assert sum(np.size(constant) for constant in constants) < 10


@pytest.mark.parametrize("name", ["sinusoid", "linear", "quadratic"])
def test_regression_tasks_follow_the_default_precision(x64, name):
    task = jax.eval_shape(TASKS[name].sample, jax.random.key(0), ())
    assert {leaf.dtype for leaf in jax.tree.leaves(task)} == {jnp.dtype(float)}


@pytest.fixture
def no_key_reuse():
    """jax follows every key through every program, and stops where one is consumed twice."""
    with jax.debug_key_reuse(True):
        yield


def test_reuse_of_a_key_is_noticed(no_key_reuse):
    """The control of the tests below."""
    with pytest.raises(Exception, match="consumed") as error:
        jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key))(jax.random.key(0))
    assert type(error.value).__name__ == "KeyReuseError"


@over_tasks
def test_a_sampler_consumes_a_key_once(no_key_reuse, name):
    tasks = TASKS[name]
    jax.jit(lambda key: tasks.sample(key, tasks.data))(jax.random.key(0))


def test_a_whole_run_consumes_a_key_once(no_key_reuse):
    """`fit`, `evaluate`, and `adapt` with minibatches; of one seed and one task, because jax's checker takes the
    transposes in a `vmap` of a `scan` or of a `vmap` over keys for a reuse."""
    learner = LEARNERS["maml meta_sgd"]
    arguments = {"num_outer_steps": 2, "num_tasks": 2, "chunk_size": 2, "progress": False}
    state, _ = jaxmeta.fit(jax.random.key(0), learner, TASKS["linear"], **arguments)
    jaxmeta.evaluate(jax.random.key(1), learner, TASKS["linear"], state.meta_params, num_tasks=3)
    task = TASKS["linear"].sample(jax.random.key(2), ())
    jax.jit(LEARNERS["reptile"].adapt)(jax.random.key(4), LEARNERS["reptile"].init(jax.random.key(5)).meta_params, task)
