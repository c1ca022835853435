"""Parameters that neither adapt nor are learned: the learner is that of a model whose code has them as numbers."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import Task, adapt
from jaxmeta.training.checkpoint import restore_state, save_state

pytestmark = pytest.mark.usefixtures("strict_shapes")

BODY = np.random.default_rng(0).normal(size=(2, 4))


def free_init(key):
    head_key, scale_key = jax.random.split(key)
    return {"head": jax.random.normal(head_key, (4, 1)), "scale": jax.random.normal(scale_key, (4,))}


def features(params, x):
    return jnp.tanh(x @ params["body"]) * params["scale"][None]


def loss_fn(params, batch):
    x, y = batch
    loss = jnp.mean((features(params, x) @ params["head"] - y) ** 2)
    return loss, {"mse": loss}


def whole_init(key):
    return {"body": jnp.asarray(BODY), **free_init(key)}


def with_body(fn):
    """The same function of the free parameters alone."""
    return lambda params, *args: fn({"body": jnp.asarray(BODY), **params}, *args)


def make_tasks(num_tasks=2):
    x, y = np.random.default_rng(1).normal(size=(2, num_tasks, 2, 6, 2))
    labels = jnp.tile(jnp.array([[0, 1, 0, 1, 1, 0]]), (num_tasks, 1))
    regression = Task(*((jnp.asarray(x[:, i]), jnp.asarray(y[:, i, :, :1])) for i in range(2)))
    return regression, Task((regression.support[0], labels), (regression.query[0], labels))


def same(frozen, free, tasks, moved):
    """An update and what it reports are those of the free learner; (state after it, the free one's)."""
    runs = []
    for learner in (frozen, free):
        before = learner.init(jax.random.key(0))
        after, metrics = jax.jit(learner.update)(jax.random.key(1), before, tasks)
        bare = {name: leaf for name, leaf in after.meta_params.params.items() if leaf is not None}
        runs.append((bare, *map(jax.tree.leaves, (after.meta_params.hyper, after.opt_state)), metrics))
        assert np.all(before.meta_params.params[moved] != after.meta_params.params[moved])
        if learner is frozen:
            chex.assert_trees_all_equal(after.meta_params.constants["body"], BODY)
            state = after
    chex.assert_trees_all_close(*runs, rtol=1e-10, atol=1e-14)
    return state, after


def same_use(frozen, free, states, task):
    """So are `evaluate`, and what `adapt` returns but for the frozen parameters, which it has too."""
    learners = zip((frozen, free), states, strict=True)
    keyed = [(learner, jax.random.key(1), state.meta_params, task) for learner, state in learners]
    curves = [jax.jit(learner.evaluate)(*arguments) for learner, *arguments in keyed]
    chex.assert_trees_all_close(*curves, rtol=1e-10)
    return [jax.jit(learner.adapt)(*arguments) for learner, *arguments in keyed]


CLIPPED = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))
STEP = optax.sgd(0.1)
CASES = {
    "auto, sgd": (adapt.auto(), adapt.sgd(0.1), CLIPPED),
    "mixed_mode, per_step": (
        adapt.mixed_mode(),
        adapt.per_step(adapt.meta_sgd(0.1), "scale", num_inner_steps=2),
        STEP,
    ),
    "forward_mode, adapt_only": (adapt.forward_mode(lambda path: True), adapt.adapt_only(adapt.sgd(0.1), "head"), STEP),
    "evolution_strategy, sgd": (adapt.evolution_strategy(num_pairs=1), adapt.sgd(0.1), STEP),
    "reptile, lslr": (adapt.reptile(), adapt.lslr(0.1, num_inner_steps=2), STEP),
}


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_parameter_is_a_number_to_strategies_and_optimizers(x64, case):
    strategy, inner_optimizer, optimizer = CASES[case]
    arguments = {
        "inner_optimizer": inner_optimizer,
        "num_inner_steps": 2,
        "meta_gradient": strategy,
        "optimizer": optimizer,
        "microbatch": None if case == "auto, sgd" else 2,  # None chooses, by a trace more
    }
    frozen = jaxmeta.maml(whole_init, loss_fn, frozen="body", **arguments)
    free = jaxmeta.maml(free_init, with_body(loss_fn), **arguments)
    tasks = make_tasks()[0]
    states = same(frozen, free, tasks, "head")
    if case == "auto, sgd":
        adapted, expected = same_use(frozen, free, states, jax.tree.map(lambda leaf: leaf[0], tasks))
        chex.assert_trees_all_close(adapted, {"body": jnp.asarray(BODY), **expected}, rtol=1e-10)


@pytest.mark.parametrize("name", ["protonet", "ridge"])
def test_so_it_is_in_an_embedding(x64, name):
    constructor = getattr(jaxmeta, name)
    frozen = constructor(whole_init, features, num_ways=2, frozen="body", optimizer=STEP)
    free = constructor(free_init, with_body(features), num_ways=2, optimizer=STEP)
    tasks = make_tasks()[1]
    states = same(frozen, free, tasks, "scale")
    adapted = same_use(frozen, free, states, jax.tree.map(lambda leaf: leaf[0], tasks))
    (params, head), (_, expected_head) = adapted
    chex.assert_trees_all_close(head, expected_head, rtol=1e-10)
    np.testing.assert_array_equal(params["body"], BODY)


def test_every_named_learner_takes_frozen_parameters():
    """By shape."""
    tasks = make_tasks()[0]
    for name in ("fomaml", "meta_sgd", "anil", "boil", "reptile", "imaml", "cavia", "maml_plus_plus"):
        own = (
            {"num_annealing_steps": 10} if name == "maml_plus_plus" else {"context": "head"} if name == "cavia" else {}
        )
        learner = getattr(jaxmeta, name)(whole_init, loss_fn, frozen="body", num_inner_steps=2, **own)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        assert state.meta_params.params["body"] is None and state.meta_params.constants["body"].shape == (2, 4)
        after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, tasks)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        one = jax.tree.map(lambda leaf: leaf[0], tasks)
        adapted = jax.eval_shape(learner.adapt, jax.random.key(1), state.meta_params, one)
        assert adapted["body"].shape == (2, 4)


def test_a_frozen_parameter_may_be_of_integers():
    """A quantised backbone: eight bits, and a low-rank part beside it that is learned."""

    def init_fn(key):
        return {"backbone": jnp.arange(8, dtype=jnp.int8).reshape(2, 4), "low_rank": jnp.ones((2, 1))}

    def loss_fn(params, batch):
        x, y = batch
        weights = params["backbone"].astype(float) / 8 + params["low_rank"]
        return jnp.mean((x @ weights - y) ** 2), {}

    for strategy in (adapt.exact(), adapt.mixed_mode(), adapt.evolution_strategy(num_pairs=2)):
        learner = jaxmeta.maml(init_fn, loss_fn, frozen="backbone", meta_gradient=strategy, num_inner_steps=2)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        assert state.meta_params.constants["backbone"].dtype == jnp.int8
        after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, make_tasks()[0])
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    with pytest.raises(ValueError, match="init_fn must return real arrays only; backbone has dtype int8"):
        jaxmeta.maml(init_fn, loss_fn).init(jax.random.key(0))


def test_statistics_that_are_frozen_are_no_state_that_would_be_trained():
    """Those of a pretrained flax backbone; learned they are refused."""
    init_fn = lambda key: {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.zeros(2)}}
    loss_fn = lambda params, batch: (jnp.sum(params["params"]["w"] - params["batch_stats"]["mean"]), {})
    state = jaxmeta.maml(init_fn, loss_fn, frozen="batch_stats").init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, state.meta_params.constants["batch_stats"]) == {"mean": (2,)}
    with pytest.raises(ValueError, match="batch_stats is state"):
        jaxmeta.maml(init_fn, loss_fn).init(jax.random.key(0))


@pytest.mark.parametrize("strategy", [adapt.exact(), adapt.mixed_mode()], ids=["exact", "mixed_mode"])
def test_no_derivative_of_a_frozen_parameter_is_taken(strategy):
    """As many products as where the code has it as a number: a gradient of its own would be one more a step."""
    tasks = make_tasks()[0]

    def num_products(init_fn, loss_fn, frozen=None):
        learner = jaxmeta.maml(init_fn, loss_fn, frozen=frozen, meta_gradient=strategy, num_inner_steps=2)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        return str(jax.make_jaxpr(learner.update)(jax.random.key(1), state, tasks)).count("dot_general")

    assert num_products(whole_init, loss_fn, "body") == num_products(free_init, with_body(loss_fn))


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("nothing", r"frozen='nothing' chooses no parameter; the parameters are body, head, scale"),
        (lambda path: True, r"frozen=.* leaves nothing to learn; the parameters are body, head, scale"),
        ({"body": True}, r"frozen=.* is no prefix of the parameters"),
        (1, r"frozen must be a name"),
    ],
)
def test_what_is_frozen_is_a_part_of_the_parameters(frozen, message):
    for make in (
        partial(jaxmeta.maml, whole_init, loss_fn),
        partial(jaxmeta.protonet, whole_init, features, num_ways=2),
    ):
        with pytest.raises(ValueError, match=message):
            make(frozen=frozen).init(jax.random.key(0))


def test_a_state_with_frozen_parameters_is_shared_by_devices_trained_from_many_seeds_saved_and_restored(tmp_path):
    learner = jaxmeta.maml(whole_init, loss_fn, frozen="body")
    state = learner.init(jax.random.key(0))
    with jaxmeta.over_devices():
        after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, make_tasks()[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    states = jax.eval_shape(jax.vmap(learner.init), jax.random.split(jax.random.key(0), 3))
    assert states.meta_params.constants["body"].shape == (3, 2, 4)
    save_state(tmp_path, 1, state)
    chex.assert_trees_all_equal(restore_state(tmp_path, jax.eval_shape(learner.init, jax.random.key(0))), state)
