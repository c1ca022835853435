"""Bad data, and bad returns of a user's functions: always a `ValueError` that says so, while traced at the latest.

Wrong arguments are generated in `test_wrong_arguments.py`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxmeta
from jaxmeta import Task, adapt, nn

pytestmark = pytest.mark.usefixtures("strict_shapes")

EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def init_fn(key):
    return {"body": jnp.ones(()), "head": jnp.ones(())}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((params["body"] * params["head"] * x - y) ** 2), {}


LEARNER = jaxmeta.maml(init_fn, loss_fn)
CLASSIFIER = {"init_fn": init_fn, "embed_fn": lambda params, x: params["head"] * x, "num_ways": 2}

junk = st.one_of(
    st.text(max_size=3), st.binary(max_size=2), st.just([]), st.just({}), st.just(()), st.just(object()), st.just(1j)
)
non_finite = st.sampled_from([math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
booleans = st.sampled_from([True, False, np.True_, np.False_])
floats = st.floats(allow_nan=False, allow_infinity=False)
not_callable = st.one_of(st.none(), junk, non_finite, booleans, floats, st.integers())

X = np.zeros((3, 4, 1), np.float32)
GOOD_TASKS = Task((X, X), (X, X))


def update(tasks=GOOD_TASKS, learner=LEARNER):
    jax.eval_shape(learner.update, jax.random.key(0), jax.eval_shape(learner.init, jax.random.key(0)), tasks)


def test_the_good_tasks_are_good():
    update()


@EXAMPLES
@given(st.integers(0, 3), st.integers(1, 5).filter(lambda n: n != 3))
def test_tasks_are_stacked_alike(which, size):
    leaves, structure = jax.tree.flatten(GOOD_TASKS)
    leaves[which] = np.zeros((size, 4, 1), np.float32)
    with pytest.raises(ValueError, match="tasks must be stacked"):
        update(jax.tree.unflatten(structure, leaves))


@EXAMPLES
@given(st.one_of(not_callable, st.just((X, X)), st.just({"support": X, "query": X})))
def test_what_is_no_task_is_refused(value):
    state = LEARNER.init(jax.random.key(0))
    for function, carried in (
        (LEARNER.update, state),
        (LEARNER.adapt, state.meta_params),
        (LEARNER.evaluate, state.meta_params),
    ):
        with pytest.raises(ValueError, match=r"task must be a jaxmeta.Task"):
            function(jax.random.key(0), carried, value)


def test_what_is_no_meta_params_or_no_state_is_refused():
    """The state in place of what is learned, what is learned in place of the state, the parameters in place of both."""
    of_heads = [constructor(**CLASSIFIER) for constructor in (jaxmeta.protonet, jaxmeta.ridge)]
    for learner in (LEARNER, *of_heads):
        state = learner.init(jax.random.key(0))
        for value in (state, state.meta_params.params):
            for function in (learner.adapt, learner.evaluate):
                with pytest.raises(ValueError, match=r"meta_params must be a jaxmeta.MetaParams, such as state.meta_"):
                    function(jax.random.key(0), value, jax.tree.map(lambda leaf: leaf[0], GOOD_TASKS))
        for value in (state.meta_params, state.meta_params.params):
            with pytest.raises(ValueError, match=r"state must be a jaxmeta.MetaState, such as learner.init"):
                learner.update(jax.random.key(0), value, GOOD_TASKS)


def test_an_initialisation_is_a_function_of_a_key_alone():
    """A flax module's own `init` asks for an input; an error of the user's own stays what it is."""
    for wrong in (nn.MLP((4,)).init, lambda key, x: x, lambda: {"w": 1.0}):
        with pytest.raises(ValueError, match=r"init_fn must be a function of a key alone.*network.init\(key, x\)"):
            jaxmeta.maml(wrong, loss_fn).init(jax.random.key(0))
    with pytest.raises(TypeError, match="unsupported operand"):
        jaxmeta.maml(lambda key: 1 + "a", loss_fn).init(jax.random.key(0))


@pytest.mark.parametrize("query", [None, (), {}])
def test_a_task_is_judged_on_a_query_set(query):
    with pytest.raises(ValueError, match="task must have a query set"):
        update(Task((X, X), query))
    with pytest.raises(ValueError, match="task must have a query set"):
        LEARNER.evaluate(jax.random.key(0), jaxmeta.MetaParams(init_fn(None)), Task((X[0], X[0]), query))


def test_a_single_number_per_task_set_is_not_stacked():
    with pytest.raises(ValueError, match="tasks must be stacked"):
        update(GOOD_TASKS._replace(info=np.float32(1.0)))
    with pytest.raises(ValueError, match="tasks must be stacked"):
        update(Task((np.float32(1), np.float32(1)), (np.float32(1), np.float32(1))))


@EXAMPLES
@given(st.integers(5, 100))
def test_a_minibatch_is_no_larger_than_the_support_set(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at most the 4 examples .* got {batch_size}"):
        update(learner=jaxmeta.maml(init_fn, loss_fn, batch_size=batch_size))


@EXAMPLES
@given(st.integers(2, 100).filter(lambda n: n != 3))
def test_a_microbatch_divides_the_tasks(microbatch):
    with pytest.raises(ValueError, match=f"microbatch must divide the number of tasks, 3, got {microbatch}"):
        update(learner=jaxmeta.maml(init_fn, loss_fn, microbatch=microbatch))


@EXAMPLES
@given(st.integers(1, 5), st.integers(1, 100))
def test_truncated_needs_as_many_steps(num_steps, more):
    num_exact = num_steps + more
    learner = jaxmeta.maml(init_fn, loss_fn, num_inner_steps=num_steps, meta_gradient=adapt.truncated(num_exact))
    with pytest.raises(ValueError, match=f"num_exact must be at most the {num_steps} inner steps, got {num_exact}"):
        update(learner=learner)


VECTOR, SCALAR = jnp.ones(2), jnp.float32(1.0)
BAD_RESULTS = {
    "a number": SCALAR,
    "a list": [SCALAR, {}],
    "three": (SCALAR, {}, {}),
    "no dict": (SCALAR, SCALAR),
    "None": None,
    "a vector": (VECTOR, {}),
    "a vector under the name of a good loss": (VECTOR, {"loss": SCALAR}),
    "an integer": (1, {}),
    "an integer array": (jnp.int32(1), {}),
    "a bool": (True, {}),
    "complex": (1j * SCALAR, {}),
    "text": ("loss", {}),
    "no loss": (None, {}),
    "a vector as metric": (SCALAR, {"accuracy": VECTOR}),
    "text as metric": (SCALAR, {"accuracy": "high"}),
    "None as metric": (SCALAR, {"accuracy": None}),
}


@pytest.mark.parametrize("result", BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_a_loss_function_returns_a_scalar_and_scalars(result):
    with pytest.raises(ValueError, match="loss_fn must return"):
        update(learner=jaxmeta.maml(init_fn, lambda params, batch: result))


@EXAMPLES
@given(
    st.one_of(
        st.sampled_from([None, (), {}, [], {"w": {}}, {"w": None}, "weights", {"w": "b"}, len, {"w": len}, object()]),
        st.integers(),
        booleans,
        st.just(jnp.arange(3)),
        st.just({"w": jnp.ones(2), "n": jnp.int32(3)}),
        st.just(jnp.ones(2, complex)),
        st.just({"w": jnp.ones(2), "key": jax.random.key(0)}),
        st.just(np.array(["a"])),
    )
)
def test_an_initialisation_returns_real_arrays(params):
    with pytest.raises(ValueError, match="init_fn must return"):
        jaxmeta.maml(lambda key: params, loss_fn).init(jax.random.key(0))


@pytest.mark.parametrize("loss", [nn.mean_squared_error, nn.sum_squared_error, nn.cross_entropy])
@pytest.mark.parametrize("apply_fn", [lambda params, x: params["body"] * x, lambda params, x: params["body"] * x[:, 0]])
def test_predictions_and_targets_do_not_broadcast(loss, apply_fn):
    """[B, 1] against [B], and the other way round: with labels too."""
    y = X[..., 0] if apply_fn(init_fn(None), X[0]).ndim == 2 else X
    y = y if loss is not nn.cross_entropy else y[..., None, None].astype(int)
    with pytest.raises(ValueError, match="y"):
        update(Task((X, y), (X, y)), jaxmeta.maml(init_fn, loss(apply_fn)))


@pytest.mark.parametrize("where", ["nothing", "hea", lambda path: False, {"head": True}, {"body": False, "head": 1}, 1])
def test_anil_adapts_something(where):
    """What it may be is known at once, what it chooses while the first task is traced."""
    with pytest.raises(ValueError, match="where|head"):
        update(learner=jaxmeta.anil(init_fn, loss_fn, head=where))


ONE_TASK = {
    "labels": (np.zeros((4, 2), np.float32), np.zeros(4, int)),
    "numbers": (np.zeros(4, np.float32), np.zeros(4, np.float32)),
    "several features": (np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)),
}


@pytest.mark.parametrize("pair", ONE_TASK.values(), ids=ONE_TASK)
def test_one_task_in_the_place_of_several_is_refused(pair):
    """Its four examples were four tasks of one each."""
    any_loss = lambda params, batch: (params["body"] * jnp.mean(batch[0]), {})
    learner = jaxmeta.maml(init_fn, any_loss)
    with pytest.raises(ValueError, match=r"support of tasks must be \(x \[N, B, ...\], y .*lambda leaf: leaf\[None"):
        update(Task(pair, pair), learner)
    update(jax.tree.map(lambda leaf: leaf[None], Task(pair, pair)), learner)


def test_inputs_and_targets_are_of_as_many_examples():
    """Where one of them has no axis but that; and two sets that are no such pair are as long as they are."""
    meta_params, wrong = jaxmeta.MetaParams(init_fn(None)), (X[0], jnp.ones(3))
    for call in (LEARNER.adapt, LEARNER.evaluate):
        with pytest.raises(ValueError, match=r"support of task must be \(x \[B, ...\], y \[B, ...\]\), of as many"):
            call(jax.random.key(0), meta_params, Task(wrong, wrong))
    points = (jnp.ones((4, 2)), jnp.ones((3, 2)))  # within, and on the boundary
    learner = jaxmeta.maml(init_fn, lambda params, sets: (params["body"] * sum(map(jnp.mean, sets)), {}))
    assert learner.adapt(jax.random.key(0), meta_params, Task(points, points)).keys() == meta_params.params.keys()


def test_numbers_of_a_task_that_jax_does_not_have_are_refused():
    pair = (X[0], np.full((4, 1), 2**40))
    with pytest.raises(
        ValueError, match=r"task.support\[1\] must hold numbers that are int32s in jax, got 1099511627776"
    ):
        LEARNER.adapt(jax.random.key(0), jaxmeta.MetaParams(init_fn(None)), Task(pair))


def test_a_number_may_be_traced_and_of_an_array_only_a_scalar():
    """A rate that is an argument of a compiled function is one still; a vector of them would broadcast."""
    step = lambda rate: adapt.sgd(rate).step(jaxmeta.MetaParams(1.0), adapt.InnerState(1.0, ((), ())), 2.0).fast
    assert jax.jit(step)(0.25) == 0.5 and jax.vmap(step)(jnp.array([0.25, 0.5])).tolist() == [0.5, 0.0]
    assert step(jnp.float32(0.25)) == 0.5
    for wrong in (jnp.ones(2), jnp.float32(-0.1), jnp.float32(jnp.nan), jnp.bool_(True), jnp.complex64(1)):
        with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got"):
            adapt.sgd(wrong)
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got"):
        jax.jit(step)(jnp.ones(2))
