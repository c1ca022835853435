"""MAML's family: its update against brute force, models of every kind, closed forms, what `evaluate` reports."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from reference import assert_close

import jaxmeta
from jaxmeta import Task, adapt

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, B = 4, 6


def init_fn(key):
    body_key, head_key = jax.random.split(key)
    return {"body": jax.random.normal(body_key, (1, 4)), "head": jax.random.normal(head_key, (4, 1))}


def loss_fn(params, batch):
    x, y = batch
    loss = jnp.mean((jnp.tanh(x @ params["body"]) @ params["head"] - y) ** 2)
    return loss, {"mse": loss, "size": jnp.sum(params["head"] ** 2)}


def plain_loss(params, batch):
    return loss_fn(params, batch)[0]


def make_tasks(dtype=None):
    tasks = jax.vmap(jaxmeta.tasks.sinusoid(num_shots=B, num_queries=7).sample, (0, None))(
        jax.random.split(jax.random.key(3), N), ()
    )
    return jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), tasks)


def one(tasks, i=0):
    return jax.tree.map(lambda leaf: leaf[i], tasks)


@pytest.mark.parametrize(
    ("arguments", "num_constant"),
    [({}, 0), ({"microbatch": 2}, 0), ({"meta_gradient": adapt.first_order()}, 3)],
    ids=["exact", "microbatch", "first order"],
)
def test_an_update_is_the_mean_over_tasks_of_brute_force(x64, arguments, num_constant):
    """With `optax.sgd(1)` outside, the difference of the parameters is the gradient."""
    inner_optimizer = adapt.meta_sgd(0.1)
    learner = jaxmeta.maml(
        init_fn, loss_fn, inner_optimizer=inner_optimizer, num_inner_steps=3, optimizer=optax.sgd(1.0), **arguments
    )
    tasks, state = make_tasks(), learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(jax.random.key(1), state, tasks)
    grads = jax.tree.map(jnp.subtract, state.meta_params, after.meta_params)
    loss, *expected = reference.mean_meta_gradient(
        plain_loss,
        reference.meta_sgd(),
        *state.meta_params[:2],
        [([task.support] * 3, task.query) for task in (one(tasks, i) for i in range(N))],
        num_constant,
    )
    assert_close(tuple(grads[:2]), tuple(expected))
    assert_close((metrics["loss"], metrics["mse"], metrics["grad_norm"]), (loss, loss, optax.tree.norm(expected)))


def flax_linen():
    network = jaxmeta.nn.MLP((4,))
    apply = lambda params, x: network.apply(params, x)
    return lambda key: network.init(key, jnp.ones((1, 1))), apply


def flax_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.body, self.head = nnx.Linear(1, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.tanh(self.body(x)))

    split = lambda key: nnx.split(Network(nnx.Rngs(params=key)), nnx.Param, ...)
    graphdef, _, rest = split(jax.random.key(0))
    return lambda key: split(key)[1], lambda params, x: nnx.merge(graphdef, params, rest)(x)


def equinox():
    class Network(eqx.Module):
        body: eqx.nn.Linear
        head: eqx.nn.Linear

        def __call__(self, x):
            return self.head(jnp.tanh(self.body(x)))

    def make(key):
        body_key, head_key = jax.random.split(key)
        network = Network(eqx.nn.Linear(1, 4, key=body_key), eqx.nn.Linear(4, 1, key=head_key))
        return eqx.partition(network, eqx.is_inexact_array)

    static = make(jax.random.key(0))[1]
    return lambda key: make(key)[0], lambda params, x: jax.vmap(eqx.combine(params, static))(x)


def plain():
    return init_fn, lambda params, x: jnp.tanh(x @ params["body"]) @ params["head"]


@pytest.mark.parametrize("model", [flax_linen, flax_nnx, equinox, plain])
def test_models_of_every_kind_learn_adapt_and_are_evaluated(model):
    init_fn, apply_fn = model()
    loss_fn = jaxmeta.nn.mean_squared_error(apply_fn)
    learner = jaxmeta.maml(init_fn, loss_fn, num_inner_steps=2, num_eval_steps=3, optimizer=optax.sgd(0.1))
    head_only = jaxmeta.anil(init_fn, loss_fn, learning_rate=0.01, num_inner_steps=3)
    tasks, key = make_tasks(), jax.random.key(1)

    @jax.jit
    def program(state, task):
        after, metrics = learner.update(key, state, tasks)
        adapted = learner.adapt(key, after.meta_params, task)
        query_loss = loss_fn(adapted, task.query)[0]
        head = head_only.adapt(key, after.meta_params, task)
        return after, metrics, adapted, query_loss, learner.evaluate(key, after.meta_params, task), head

    state = learner.init(jax.random.key(0))
    after, metrics, adapted, query_loss, curves, head = program(state, one(tasks))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(adapted) == jax.tree.structure(head) == jax.tree.structure(state.meta_params.params)
    assert np.isfinite(metrics["loss"]) and metrics["is_finite"]
    change = lambda new, old: [bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (new, old)), strict=True)]
    assert all(change(after.meta_params, state.meta_params)) and all(change(adapted, after.meta_params.params))
    in_head = ["head" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(head)]
    assert change(head, after.meta_params.params) == in_head and any(in_head) and not all(in_head)
    assert curves["mse"].shape == (4,)
    np.testing.assert_allclose(curves["mse"][-1], query_loss, rtol=1e-5)


def test_evaluate_is_the_query_set_after_each_step(x64):
    learner = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=adapt.sgd(0.1), num_inner_steps=2, num_eval_steps=4)
    meta_params, task = learner.init(jax.random.key(0)).meta_params, one(make_tasks())
    curves = learner.evaluate(jax.random.key(1), meta_params, task)
    params = [
        reference.adapt(plain_loss, reference.sgd(0.1), meta_params.params, (), [task.support] * k) for k in range(5)
    ]
    expected = [loss_fn(p, task.query)[1] for p in params]
    assert_close(curves, {name: np.array([metrics[name] for metrics in expected]) for name in ("mse", "size")})
    assert_close(learner.adapt(jax.random.key(1), meta_params, task), params[-1])


def test_a_loss_without_metrics_is_reported_itself():
    learner = jaxmeta.maml(init_fn, lambda params, batch: (plain_loss(params, batch), {}))
    curves = learner.evaluate(jax.random.key(1), learner.init(jax.random.key(0)).meta_params, one(make_tasks()))
    assert {name: curve.shape for name, curve in curves.items()} == {"loss": (2,)}


@pytest.mark.parametrize("degree", [1, 2])
def test_polynomial_optimum_is_what_one_step_reaches_and_the_best(x64, degree):
    """20,000 tasks, float64: the mean is within 4 standard errors of the closed form; another rate or another
    initialisation is worse, on the same tasks, by more than 4 standard errors of the difference."""
    num_shots, noise, num_tasks = 8, 0.3, 20_000
    rate, mse = jaxmeta.tasks.polynomial_optimum(degree, num_shots, noise)
    tasks = [jaxmeta.tasks.linear, jaxmeta.tasks.quadratic][degree - 1](num_shots=num_shots, num_queries=5, noise=noise)
    features = lambda x: x ** jnp.arange(degree + 1.0)[None]
    polynomial_loss = jaxmeta.nn.mean_squared_error(lambda theta, x: features(x) @ theta[:, None])
    learner = jaxmeta.meta_sgd(lambda key: jnp.zeros(degree + 1), polynomial_loss)

    def after_one_step(rate, start):
        theta = jnp.full(degree + 1, start)
        meta_params = jaxmeta.MetaParams(theta, jnp.full(degree + 1, rate))
        report = jaxmeta.evaluate(
            jax.random.key(degree), learner, tasks, meta_params, num_tasks=num_tasks, batch_size=num_tasks
        )
        return report.samples["mse"][:, 1]

    standard_error = lambda values: values.std(ddof=1) / np.sqrt(num_tasks)
    best = after_one_step(rate, 0.0)
    assert abs(best.mean() - mse) < 4 * standard_error(best)
    for other in (after_one_step(0.7 * rate, 0.0), after_one_step(1.3 * rate, 0.0), after_one_step(rate, 0.3)):
        assert (other - best).mean() > 4 * standard_error(other - best)


def counting_loss(params, batch):
    """Its gradient says how often each of ten examples was drawn; the metric, whether x and y stay together."""
    x, y = batch
    return -jnp.sum(params[x]), {"apart": jnp.sum((x - y) ** 2)}


COUNTING_TASK = Task((jnp.arange(10), jnp.arange(10)), (jnp.arange(10), jnp.arange(10)))
COUNTING = {"inner_optimizer": adapt.sgd(1.0), "batch_size": 5}


def test_a_minibatch_is_drawn_without_replacement():
    learner = jaxmeta.maml(lambda key: jnp.zeros(10), counting_loss, num_inner_steps=1, **COUNTING)
    keys = jax.random.split(jax.random.key(0), 100)
    counts = jax.vmap(learner.adapt, (0, None, None))(keys, jaxmeta.MetaParams(jnp.zeros(10)), COUNTING_TASK)
    assert set(np.unique(counts)) == {0, 1} and np.all(counts.sum(axis=1) == 5)
    assert np.all(np.abs(counts.mean(axis=0) - 0.5) < 4 * np.sqrt(0.25 / 100))


def test_minibatches_differ_across_steps_and_tasks():
    four_steps = jaxmeta.maml(lambda key: jnp.zeros(10), counting_loss, num_inner_steps=4, **COUNTING)
    counts = four_steps.adapt(jax.random.key(0), jaxmeta.MetaParams(jnp.zeros(10)), COUNTING_TASK)
    assert counts.sum() == 20 and not set(np.unique(counts)) <= {0, 4}  # the same five at each step, and none else
    learner = jaxmeta.reptile(lambda key: jnp.zeros(10), counting_loss, step_size=1.0, num_inner_steps=2, **COUNTING)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), COUNTING_TASK)
    state, metrics = learner.update(jax.random.key(0), learner.init(jax.random.key(0)), tasks)
    assert np.any(state.meta_params.params % 1 == 0.5)  # the mean of two tasks that drew the same is whole
    assert metrics["apart"] == 0


NAMED = {
    "fomaml": ({}, {"meta_gradient": adapt.first_order()}),
    "meta_sgd": ({"learning_rate": 0.2}, {"inner_optimizer": adapt.meta_sgd(0.2)}),
    "anil": ({"head": "head", "learning_rate": 0.2}, {"inner_optimizer": adapt.adapt_only(adapt.sgd(0.2), "head")}),
    "boil": (
        {"head": lambda path: path == "head", "learning_rate": 0.2},
        {"inner_optimizer": adapt.adapt_only(adapt.sgd(0.2), {"body": True, "head": False})},
    ),
    "reptile": (
        {"step_size": 0.3, "num_inner_steps": 2},
        {"meta_gradient": adapt.reptile(), "num_inner_steps": 2, "optimizer": optax.sgd(0.3)},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_learner_is_maml_with_its_arguments(name):
    own, of_maml = NAMED[name]
    tasks, key = make_tasks(), jax.random.key(1)
    results = []
    for constructor, arguments in [(getattr(jaxmeta, name), own), (jaxmeta.maml, of_maml)]:
        learner = constructor(init_fn, loss_fn, **arguments)
        results.append(jax.jit(learner.update)(key, learner.init(jax.random.key(0)), tasks))
    jax.tree.map(np.testing.assert_array_equal, *results)
    moved = jax.tree.map(jnp.subtract, results[0][0].meta_params, learner.init(jax.random.key(0)).meta_params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(moved.params))


def test_boil_adapts_all_but_the_head_which_is_learned_through_it(x64):
    learner = jaxmeta.boil(init_fn, loss_fn, learning_rate=0.1, num_inner_steps=2, optimizer=optax.sgd(1.0))
    state, tasks = learner.init(jax.random.key(0)), make_tasks()
    grads, metrics = gradient_of(learner, tasks, state)
    params = state.meta_params.params

    def query_loss(params, task):
        of_body = lambda body, batch: plain_loss({"body": body, "head": params["head"]}, batch)
        body = reference.adapt(of_body, reference.sgd(0.1), params["body"], (), [task.support] * 2)
        return of_body(body, task.query)

    by_hand = jax.jit(jax.value_and_grad(query_loss))
    results = [by_hand(params, one(tasks, i)) for i in range(N)]
    loss, expected = jax.tree.map(lambda *leaves: sum(leaves) / N, *results)
    assert_close(grads[0], expected)
    assert_close(metrics["loss"], loss)
    adapted = learner.adapt(jax.random.key(1), state.meta_params, one(tasks))
    np.testing.assert_array_equal(adapted["head"], params["head"])
    assert np.all(adapted["body"] != params["body"])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("hea", "head='hea' chooses no parameter; the parameters are body, head"),
        ({"body": False, "head": False}, "head=.* chooses no parameter"),
        (lambda path: True, "where=.* chooses no parameter"),
    ],
)
def test_the_head_of_boil_is_a_part_of_the_parameters(head, message):
    with pytest.raises(ValueError, match=message):
        jaxmeta.boil(init_fn, loss_fn, head=head).init(jax.random.key(0))


def test_reptile_moves_towards_the_adapted_parameters(x64):
    learner = jaxmeta.reptile(init_fn, loss_fn, step_size=0.3, num_inner_steps=3, inner_optimizer=adapt.sgd(0.1))
    state, tasks = learner.init(jax.random.key(0)), make_tasks()
    after, _ = learner.update(jax.random.key(1), state, tasks)
    start = state.meta_params.params
    ends = [reference.adapt(plain_loss, reference.sgd(0.1), start, (), [one(tasks, i).support] * 3) for i in range(N)]
    expected = jax.tree.map(lambda p, *ends: p + 0.3 * (sum(ends) / N - p), start, *ends)
    assert_close(after.meta_params.params, expected)


def gradient_of(learner, tasks, state):
    """With `optax.sgd(1)` outside, the difference of the parameters."""
    after, metrics = jax.jit(learner.update)(jax.random.key(1), state, tasks)
    return tuple(jax.tree.map(jnp.subtract, state.meta_params, after.meta_params)), metrics


@jax.jit
def multi_step_by_hand(meta_params, task, weights):
    return reference.multi_step_meta_gradient(
        plain_loss, reference.lslr(), *meta_params[:2], [task.support] * 3, task.query, weights
    )


@pytest.mark.parametrize("meta_gradient", [adapt.exact(), adapt.mixed_mode(num_segments=2)], ids=["exact", "mixed"])
def test_the_multi_step_loss_and_its_gradient_are_those_of_brute_force(x64, meta_gradient):
    """At first, while the weights anneal, and at the end."""
    learner = jaxmeta.maml_plus_plus(
        init_fn,
        loss_fn,
        learning_rate=0.1,
        num_inner_steps=3,
        num_annealing_steps=100,
        optimizer=optax.sgd(1.0),
        meta_gradient=meta_gradient,
    )
    tasks, state = make_tasks(), learner.init(jax.random.key(0))
    for step, weights in ((0, [1 / 3, 1 / 3, 1 / 3]), (40, [0.2, 0.2, 0.6]), (10_000, [0.01, 0.01, 0.98])):
        np.testing.assert_allclose(jaxmeta.multi_step_weights(3, 100)(step), weights, rtol=1e-12)
        grads, metrics = gradient_of(learner, tasks, state._replace(step=jnp.int32(step)))
        results = [multi_step_by_hand(state.meta_params, one(tasks, i), np.array(weights)) for i in range(N)]
        loss, *expected = jax.tree.map(lambda *leaves: sum(leaves) / N, *results)
        assert_close(grads[:2], tuple(expected))
        assert_close(metrics["loss"], loss)


def test_weights_that_do_not_fit_the_steps_are_refused():
    learner = jaxmeta.maml(init_fn, loss_fn, num_inner_steps=3, loss_weights=lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match=r"loss_weights must return one weight for each of the 3 inner steps .*\(2,\)"):
        jax.eval_shape(learner.update, jax.random.key(0), learner.init(jax.random.key(0)), make_tasks())


def test_dropout_draws_anew_at_each_step_and_task_and_judges_without():
    """The loss adds noise · body: after K steps the body has moved by the rate times the sum of K different draws."""

    def noisy_loss(params, batch, key):
        noise = 0.0 if key is None else jax.random.normal(key)
        return jnp.sum(noise * params), {"judged": jnp.float32(key is None)}

    arguments = {"inner_optimizer": adapt.sgd(1.0), "num_inner_steps": 5, "stochastic": True}
    learner = jaxmeta.maml(lambda key: jnp.zeros(()), noisy_loss, **arguments)
    state, tasks = learner.init(jax.random.key(0)), make_tasks()
    adapt_all = jax.jit(jax.vmap(learner.adapt, (0, None, 0)))
    ends = [adapt_all(jax.random.split(jax.random.key(seed), N), state.meta_params, tasks) for seed in range(100)]
    ends = np.concatenate(ends)
    assert len(np.unique(ends)) == 400
    assert abs(ends.var() - 5) < 4 * 5 * np.sqrt(2 / 400)  # one draw for all steps would give 25
    curves = learner.evaluate(jax.random.key(0), state.meta_params, one(tasks))
    np.testing.assert_array_equal(curves["judged"], np.ones(6))
    _, metrics = learner.update(jax.random.key(0), state, tasks)
    assert metrics["judged"] == 0 and metrics["loss"] != 0


def test_imaml_is_the_implicit_gradient_through_a_proximal_loop(x64):
    """As the inner loop converges it becomes the exact gradient through it."""
    arguments = {"num_inner_steps": 400, "optimizer": optax.sgd(1.0)}
    learner = jaxmeta.imaml(
        init_fn, loss_fn, strength=50.0, learning_rate=0.01, solver=adapt.conjugate_gradient(8), **arguments
    )
    inner_optimizer = adapt.proximal(adapt.sgd(0.01), 50.0)
    exact = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=inner_optimizer, meta_gradient=adapt.exact(), **arguments)
    tasks, state = make_tasks(), learner.init(jax.random.key(0))
    actual, expected = (gradient_of(either, tasks, state)[0] for either in (learner, exact))
    assert_close(actual, expected, rtol=1e-6)
