"""What the README's table names, each together with each: every pair of options is traced once; and `stochastic`."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import Task, adapt, nn
from jaxmeta.algorithms.cavia import context_only

pytestmark = pytest.mark.usefixtures("strict_shapes")

K, N, B = 2, 2, 4
X = jnp.linspace(-1.0, 1.0, N * B).reshape(N, B, 1)
TASKS = Task((X, jnp.sin(3 * X)), (X + 0.1, jnp.sin(3 * X + 0.3)))
CLASSES = jnp.tile(jnp.array([[0, 0, 1, 1]]), (N, 1))
LABELLED = Task((X, CLASSES), (X + 0.1, CLASSES))


def init_fn(key):
    return {"body": jnp.ones((1, 2)), "head": jnp.ones((2, 1)), "backbone": jnp.ones((1, 1)), "weight": jnp.ones(())}


def predict(params, x, key=None):
    noise = 0.0 if key is None else jax.random.normal(key)
    return jnp.tanh(x @ params["backbone"] @ params["body"] + noise) @ params["head"]


def embed(params, x, key=None):
    noise = 0.0 if key is None else jax.random.normal(key)
    return jnp.tanh(x @ params["backbone"] @ params["body"] + noise)


STRATEGIES = {
    "auto": adapt.auto(memory_budget=2**30),
    "mixed_mode": adapt.mixed_mode(),
    "segments": adapt.exact(num_segments="sqrt"),
    "first_order": adapt.first_order(),
    "truncated": adapt.truncated(1),
    "implicit": adapt.implicit(),
    "forward_mode": adapt.forward_mode(lambda path: "weight" in path or path.startswith("hyper")),
    "evolution_strategy": adapt.evolution_strategy(num_pairs=2),
    "reptile": adapt.reptile(),
}
LABELS = {"body": "still", "head": "moves", "backbone": "still", "weight": "still"}
WITHOUT_BACKBONE = LABELS | {"backbone": None}
OPTIMIZERS = {
    "sgd": adapt.sgd(0.1),
    "meta_sgd": adapt.meta_sgd(0.1),
    "lslr": adapt.lslr(0.1, K),
    "per_step": adapt.per_step(adapt.lslr(0.1, K), "body", K),
    "proximal": adapt.proximal(adapt.sgd(0.1), 1.0),
    "adapt_only": adapt.adapt_only(adapt.sgd(0.1), "head"),
    "partition": adapt.from_optax(
        optax.partition(
            {"moves": optax.sgd(0.1), "still": optax.set_to_zero()},
            lambda params: WITHOUT_BACKBONE if params["backbone"] is None else LABELS,
        )
    ),
    "adam": adapt.from_optax(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, eps_root=1e-8))),
    "context": context_only(adapt.sgd(1.0), "head"),
}
SQUARED = nn.mean_squared_error(predict)
of_support = lambda params, support: params | {"head": params["head"] + jnp.mean(support[0])}
OPTIONS = {
    "condition_fn": {"condition_fn": of_support},
    "start_fn": {"start_fn": lambda params, support: params | {"body": params["body"] * jnp.mean(support[0])}},
    "stochastic": {"stochastic": True},
    "batch_size": {"batch_size": 2},
    "microbatch": {"microbatch": 1},
    "frozen": {"frozen": "backbone"},
    "outer_loss_fn": {"outer_loss_fn": nn.sum_squared_error(predict)},
    "loss_weights": {"loss_weights": lambda step: jnp.full(K, 1 / K)},
}
REFUSED = {  # with the word that the refusal has
    ("implicit", "sgd"): "depends on what is learned",
    ("implicit", "meta_sgd"): "depends on what is learned",
    ("implicit", "partition"): "depends on what is learned",
    ("implicit", "lslr"): "without a state",
    ("implicit", "per_step"): "without a state",
    ("implicit", "adam"): "without a state",
    ("implicit", "loss_weights"): "loss_weights must return one weight",
    ("truncated", "loss_weights"): "loss_weights must return one weight",
}


def rows():
    """(strategy, inner optimizer, options): all strategies with all inner optimizers, options thrown in by a coin."""
    coins = np.random.default_rng(1).random((len(STRATEGIES), len(OPTIMIZERS), len(OPTIONS))) < 0.5
    for (i, strategy), (j, optimizer) in itertools.product(enumerate(STRATEGIES), enumerate(OPTIMIZERS)):
        yield strategy, optimizer, *(name for name, coin in zip(OPTIONS, coins[i, j], strict=True) if coin)


def test_the_rows_have_every_pair_of_options():
    together = {frozenset(pair) for row in rows() for pair in itertools.combinations(row, 2)}
    groups = (*itertools.product(STRATEGIES, OPTIMIZERS), *itertools.combinations(OPTIONS, 2))
    singles = itertools.product((*STRATEGIES, *OPTIMIZERS), OPTIONS)
    assert {frozenset(pair) for pair in (*groups, *singles)} <= together


def check(learner, tasks, evaluates=True):
    """By shape: a state stays what it was, and there is a curve of every metric."""
    state = jax.eval_shape(learner.init, jax.random.key(0))
    after, _ = jax.eval_shape(learner.update, jax.random.key(1), state, tasks)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    if not evaluates:
        return
    one = jax.tree.map(lambda leaf: leaf[0], tasks)
    curves = jax.eval_shape(learner.evaluate, jax.random.key(1), state.meta_params, one)
    assert {curve.shape for curve in curves.values()} in ({(K + 1,)}, {(2,)})


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=[] if name in ("auto", "truncated", "reptile") else pytest.mark.slow)
        for name in STRATEGIES
    ],
)
def test_every_pair_of_options_of_maml_traces(strategy):
    for _, optimizer, *options in (row for row in rows() if row[0] == strategy):
        arguments = {name: value for option in options for name, value in OPTIONS[option].items()}
        if strategy != "auto":
            arguments.setdefault("microbatch", N)  # else it is chosen, by a trace more
        learner = jaxmeta.maml(
            init_fn,
            SQUARED,
            num_inner_steps=K,
            inner_optimizer=OPTIMIZERS[optimizer],
            meta_gradient=STRATEGIES[strategy],
            **arguments,
        )
        words = [word for (one, other), word in REFUSED.items() if one == strategy and other in (optimizer, *options)]
        if words:
            with pytest.raises(ValueError, match="|".join(words)):
                check(learner, TASKS)
        else:
            check(learner, TASKS, evaluates=strategy == "reptile")  # which does not depend on the strategy


@pytest.mark.parametrize("name", ["protonet", "ridge"])
def test_every_option_of_a_closed_form_traces_with_all_others(name):
    init = lambda key: {k: v for k, v in init_fn(key).items() if k != "weight"}
    options = {
        "stochastic": True,
        "microbatch": 1,
        "frozen": "backbone",
        "num_eval_ways": 2,
        "condition_fn": of_support,
    }
    for left_out in ({}, *options):
        arguments = {option: value for option, value in options.items() if option != left_out}
        check(getattr(jaxmeta, name)(init, embed, num_ways=2, **arguments), LABELLED)


# A loss that draws.

STOCK = {"mean": nn.mean_squared_error, "sum": nn.sum_squared_error, "cross entropy": nn.cross_entropy}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_loss_hands_the_key_on(name):
    apply_fn = lambda params, x, key: x * (0.0 if key is None else jax.random.normal(key))
    loss_fn = STOCK[name](apply_fn)
    y = jnp.array([0, 1]) if name == "cross entropy" else jnp.ones((2, 2))
    batch, key = (jnp.eye(2), y), jax.random.key(3)
    by_hand = STOCK[name](lambda params, x: x * jax.random.normal(key))
    chex.assert_trees_all_equal(loss_fn((), batch, key), by_hand((), batch))
    chex.assert_trees_all_equal(loss_fn((), batch, None), STOCK[name](lambda params, x: 0 * x)((), batch))


@pytest.mark.parametrize("name", ["protonet", "ridge"])
def test_an_embedding_draws_for_support_and_query_and_not_at_test(name):
    """A shift of the whole embedding is no change where support and query have the same, for prototypes; the update
    with noise of size 0 is that without, and `evaluate` has none."""

    def embed(scale):
        shift = lambda key: 0.0 if key is None else scale * jax.random.normal(key)
        return lambda params, x, key: x * params + shift(key)

    plain = getattr(jaxmeta, name)(lambda key: jnp.ones(()), lambda params, x: x * params, num_ways=2)
    state, key = plain.init(jax.random.key(0)), jax.random.key(1)
    updated = lambda learner: jax.jit(learner.update)(key, state, LABELLED)[1]
    expected, one = updated(plain), jax.tree.map(lambda leaf: leaf[0], LABELLED)
    learners = [
        getattr(jaxmeta, name)(lambda key: jnp.ones(()), embed(scale), num_ways=2, stochastic=True)
        for scale in (0.0, 1.0)
    ]
    quiet, noisy = map(updated, learners)
    chex.assert_trees_all_close(quiet, expected, rtol=1e-6)
    assert abs(noisy["loss"] - expected["loss"]) > 1e-3
    curves = [jax.jit(learner.evaluate)(key, state.meta_params, one) for learner in (plain, learners[1])]
    chex.assert_trees_all_close(*curves, rtol=1e-6)


FORGOTTEN = {
    "a loss of three arguments": lambda: jaxmeta.maml(init_fn, lambda params, batch, key: (0.0, {})),
    "a loss of two": lambda: jaxmeta.maml(init_fn, lambda params, batch: (0.0, {}), stochastic=True),
    "a stock loss of three": lambda: jaxmeta.maml(init_fn, nn.mean_squared_error(lambda params, x, key: x)),
    "a stock loss of two": lambda: jaxmeta.maml(init_fn, nn.cross_entropy(lambda params, x: x), stochastic=True),
    "a flax module as it is": lambda: jaxmeta.maml(
        lambda key: nn.MLP(()).init(key, X[0]), nn.mean_squared_error(nn.MLP(()).apply), stochastic=True
    ),
    "an embedding of three": lambda: jaxmeta.protonet(init_fn, lambda params, x, key: x, num_ways=2),
    "an embedding of two": lambda: jaxmeta.ridge(init_fn, lambda params, x: x, num_ways=2, stochastic=True),
}


@pytest.mark.parametrize("case", FORGOTTEN)
def test_a_key_that_was_forgotten_is_answered_with_the_word(case):
    with pytest.raises(ValueError, match="stochastic"):
        learner = FORGOTTEN[case]()
        jax.eval_shape(learner.update, jax.random.key(1), jax.eval_shape(learner.init, jax.random.key(0)), TASKS)


# Labels of a head in closed form.


@pytest.mark.parametrize("name", ["protonet", "ridge"])
@pytest.mark.parametrize("label", [-1, 2, 7])
def test_a_label_out_of_range_does_not_vanish(name, label):
    """It had a row of zeros, and the loss of the others was reported: now the step is skipped, and counted."""
    learner = getattr(jaxmeta, name)(lambda key: jnp.ones(()), lambda params, x: x * params, num_ways=2)
    tasks = LABELLED._replace(support=(X, CLASSES.at[0, 1].set(label)))
    state, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    assert np.isnan(metrics["loss"]) and not metrics["is_finite"] and state.num_skipped == 1
