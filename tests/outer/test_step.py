"""The outer step beside optax by hand: what an optimizer is told, which are refused, what is not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import MetaParams, MetaState, Task, adapt, nn, outer

pytestmark = pytest.mark.usefixtures("strict_shapes")


def init_fn(key):
    return {"body": jnp.float32(0.5), "head": jnp.float32(1.5)}


def predict(params, x):
    return params["body"] * params["head"] * x


X = jnp.linspace(-1.0, 1.0, 4)[None, :, None]
TASKS = Task((X, 2 * X), (X, 2 * X))


def learner(optimizer):
    return jaxmeta.maml(init_fn, nn.mean_squared_error(predict), optimizer=optimizer, meta_gradient=adapt.exact())


def test_a_polyak_step_is_as_long_as_the_loss_says():
    """θ − g f / |g|², with g and f from a step of plain descent."""
    key, descent = jax.random.key(1), learner(optax.sgd(1.0))
    state = descent.init(jax.random.key(0))
    after, metrics = descent.update(key, state, TASKS)
    grads = jax.tree.map(jnp.subtract, state.meta_params, after.meta_params)
    polyak = learner(optax.polyak_sgd(max_learning_rate=100.0))
    stepped, told = polyak.update(key, polyak.init(jax.random.key(0)), TASKS)
    rate = metrics["loss"] / metrics["grad_norm"] ** 2
    assert told["is_finite"] and 0.1 < rate < 100
    expected = jax.tree.map(lambda p, g: p - rate * g, state.meta_params, grads)
    chex.assert_trees_all_close(stepped.meta_params, expected, rtol=1e-5)


def test_a_plateau_of_the_loss_lowers_the_rate():
    """Its best loss is infinite at first, which is no fault of the step. At a rate of 0 the loss stays where it is."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0)
    still = learner(optax.chain(optax.sgd(0.0), plateau))
    state, scales = still.init(jax.random.key(0)), []
    assert np.isinf(state.opt_state[1].best_value)
    update = jax.jit(still.update)
    for _ in range(6):
        state, metrics = update(jax.random.key(1), state, TASKS)
        assert metrics["is_finite"]
        scales.append(float(state.opt_state[1].scale))
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25] and state.opt_state[1].best_value == metrics["loss"]


SIZES = {"num_classes": 3, "num_features": 1, "num_ways": 2}
CONSTRUCTORS = {
    name: lambda name=name, **arguments: getattr(jaxmeta, name)(init_fn, nn.mean_squared_error(predict), **arguments)
    for name in ("maml", "fomaml", "meta_sgd", "anil", "boil", "imaml", "reptile", "cavia")
} | {
    "maml_plus_plus": lambda **arguments: jaxmeta.maml_plus_plus(
        init_fn, nn.mean_squared_error(predict), num_annealing_steps=2, **arguments
    ),
    "protonet": lambda **arguments: jaxmeta.protonet(init_fn, predict, num_ways=2, **arguments),
    "proto_maml": lambda **arguments: jaxmeta.proto_maml(init_fn, predict, num_ways=2, **arguments),
    "fine_tune": lambda **arguments: jaxmeta.fine_tune(init_fn, predict, **SIZES, **arguments),
    "simple_shot": lambda **arguments: jaxmeta.simple_shot(init_fn, predict, **SIZES, **arguments),
    "ridge": lambda **arguments: jaxmeta.ridge(init_fn, predict, num_ways=2, **arguments),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_an_optimizer_that_searches_along_a_line_is_refused_at_construction(name):
    for optimizer in (optax.lbfgs(), optax.chain(optax.clip_by_global_norm(1.0), optax.lbfgs())):
        with pytest.raises(ValueError, match=r"optimizer must step from gradients.*value_fn"):
            CONSTRUCTORS[name](optimizer=optimizer)


def test_one_that_is_hidden_from_the_constructor_is_refused_when_it_is_used():
    labels = lambda params: (
        jax.tree.map(lambda leaf: "a", params.params["body"]) and jax.tree.map(lambda leaf: "a", params)
    )  # asks for a "body", which the constructor does not know
    hidden = learner(optax.partition({"a": optax.lbfgs()}, labels))
    state = hidden.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"optimizer must step from gradients.*value_fn"):
        jax.eval_shape(hidden.update, jax.random.key(1), state, TASKS)


IS_HEAD = MetaParams({"body": False, "head": True})
LABELS = MetaParams({"body": "body", "head": "head"})
BOTH = {"body": optax.sgd(0.1), "head": optax.adam(0.1)}
ADAM = optax.GradientTransformation(*optax.adam(0.1))
GOOD = {
    "partition": optax.partition(BOTH, LABELS),
    "partition by a function": optax.partition(BOTH, lambda params: LABELS),
    "multi_transform": optax.multi_transform(BOTH, LABELS),
    "masked": optax.masked(optax.sgd(0.1), IS_HEAD),
    "masked by a function": optax.masked(optax.sgd(0.1), lambda params: IS_HEAD),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.set_to_zero(), IS_HEAD), optax.adamw(0.1)),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 2),
    "MultiSteps as a transformation": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(learning_rate=optax.cosine_decay_schedule(0.1, 10)),
    "lookahead of zero": optax.apply_if_finite(optax.adam(0.1), 3),
    "weights by path": optax.GradientTransformation(
        ADAM.init, lambda grads, state, params: ADAM.update(grads._replace(hyper=()), state, params)
    ),
    "plateau": optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
    "prodigy": optax.contrib.prodigy(),
    "schedule free": optax.contrib.schedule_free_adamw(0.1),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_optimizer_of_some_parameters_or_with_a_state_of_its_own_is_not_refused(name):
    good = learner(GOOD[name])
    state = jax.eval_shape(good.init, jax.random.key(0))
    after, _ = jax.eval_shape(good.update, jax.random.key(1), state, TASKS)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


FLAWED = {
    "adam without an epsilon, no gradient": (optax.adam(0.1, eps=0.0), jnp.float32),
    "adam's epsilon is 0 in half precision": (optax.adam(0.1), jnp.float16),
}


@pytest.mark.parametrize("name", FLAWED)
def test_an_update_that_is_not_finite_is_skipped_and_counted_and_the_next_is_applied(name):
    """0 / 0, where the loss and the gradient are finite. The second gradient is of the order of one."""
    optimizer, dtype = FLAWED[name]
    before = outer.initial_state(optimizer, MetaParams(jnp.ones(2, dtype)))
    step = jax.jit(lambda state, grads: outer.outer_step(optimizer, state, jnp.float32(1.0), {}, MetaParams(grads)))
    updates, _ = optimizer.update(MetaParams(jnp.zeros(2, dtype)), before.opt_state, before.meta_params)
    assert not np.all(np.isfinite(updates.params))
    skipped, metrics = step(before, jnp.zeros(2, dtype))
    assert metrics["grad_norm"] == 0 and not metrics["is_finite"]
    chex.assert_trees_all_equal(skipped[1:3], before[1:3])
    assert (int(skipped.step), int(skipped.num_skipped)) == (1, 1)
    after, metrics = step(skipped, jnp.ones(2, dtype))
    assert metrics["is_finite"] and (int(after.step), int(after.num_skipped)) == (2, 1)
    np.testing.assert_allclose(np.float32(after.meta_params.params), 0.9, rtol=1e-3)


def test_a_rate_that_is_not_finite_is_not_applied():
    """Nothing changes in a skipped step, so that the optimizer's count does not leave 0 either: each is counted."""
    optimizer = optax.sgd(lambda count: jnp.where(count == 0, jnp.nan, 0.1))
    state = outer.initial_state(optimizer, MetaParams(jnp.ones(2)))
    for i in range(2):
        state, metrics = outer.outer_step(optimizer, state, jnp.float32(1.0), {}, MetaParams(jnp.ones(2)))
        assert not metrics["is_finite"] and (int(state.step), int(state.num_skipped)) == (i + 1, i + 1)
    np.testing.assert_array_equal(state.meta_params.params, np.ones(2))
    moved = state._replace(opt_state=jax.tree.map(jnp.ones_like, state.opt_state))
    after, metrics = outer.outer_step(optimizer, moved, jnp.float32(1.0), {}, MetaParams(jnp.ones(2)))
    assert metrics["is_finite"] and after.num_skipped == 2
    np.testing.assert_allclose(after.meta_params.params, 0.9, rtol=1e-6)


def test_a_state_that_overflows_is_not_kept():
    """Though the update beside it is finite: every later one would come of that state."""
    overflows = optax.GradientTransformation(lambda params: jnp.float16(300), lambda grads, state, _: (grads, state**2))
    state = outer.initial_state(overflows, MetaParams(jnp.ones(1)))
    after, metrics = outer.outer_step(overflows, state, jnp.float32(1.0), {}, MetaParams(jnp.ones(1)))
    assert not metrics["is_finite"] and after.num_skipped == 1
    chex.assert_trees_all_equal(after[1:3], state[1:3])


def test_constants_are_neither_stepped_nor_counted():
    meta_params = MetaParams({"w": jnp.ones(1)}, (), {"backbone": jnp.full(3, 2.0)})
    optimizer = optax.adamw(0.1, weight_decay=0.5)  # which would shrink whatever it sees
    state = outer.initial_state(optimizer, meta_params)
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} == {(), (1,)}
    after, metrics = outer.outer_step(optimizer, state, jnp.float32(1.0), {}, MetaParams({"w": jnp.full(1, 3.0)}))
    chex.assert_trees_all_equal(after.meta_params.constants, meta_params.constants)
    assert metrics["grad_norm"] == 3 and isinstance(after, MetaState)
