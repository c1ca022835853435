"""Padding counts for nothing: a masked episode against the same one without its padding, and against a network without
the outputs that an episode has no classes for, in float64, for every supervised learner and every strategy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close

import jaxmeta
from jaxmeta import Examples, Task, adapt
from jaxmeta.algorithms.closed_form import ridge_weights
from jaxmeta.algorithms.minibatches import minibatch
from jaxmeta.nn import layers, losses, norms, weights

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

N, D, OUTPUTS, WAYS = 2, 3, 4, 3
SGD = {"optimizer": optax.sgd(1.0)}  # the difference of the parameters is the gradient
TWO = {"num_inner_steps": 2}
EXACT = {"meta_gradient": adapt.exact()}  # `auto`, the default, traces all that it chooses among


class Network(nn.Module):
    """An embedding with batch norm, of the support set or its own."""

    @nn.compact
    def __call__(self, x, *, weight=None):
        return jnp.tanh(norms.BatchNorm(name="norm")(nn.Dense(4, use_bias=False, name="body")(x), weight=weight))


def embed(params, x, weight=None):
    """The same without flax, which takes long to trace."""
    z = layers.batch_norm(x @ params["body"], params["scale"], params["bias"], 1e-2, weight)
    return jnp.tanh(z) + params["context"][None]


def logits(params, x, weight=None):
    return embed(params, x, weight) @ params["head"]


def of_maml(constructor=jaxmeta.maml, **options):
    """(number of outputs) -> learner."""
    return lambda num_outputs: constructor(init(num_outputs), losses.cross_entropy(logits), **SGD, **options)


def of_head(constructor, **options):
    return lambda num_outputs: constructor(init(num_outputs), embed, num_ways=num_outputs, **SGD, **options)


def of_flax(num_outputs):
    """By the statistics of the support set, in the inner loop too."""
    network = Network()
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, D)))
    init_fn = lambda key: {**jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes), **init(num_outputs)(key)}
    condition = norms.support_statistics(network.apply)
    variables = lambda params: {name: params[name] for name in ("params", "statistics") if name in params}

    def apply_fn(params, x, weight=None):
        return network.apply(variables(params), x, weight=weight) @ params["head"]

    def condition_fn(params, support):
        return {**params, **condition(variables(params), support)}

    loss_fn = losses.cross_entropy(apply_fn)
    return jaxmeta.maml(init_fn, loss_fn, condition_fn=condition_fn, inner_optimizer=adapt.sgd(0.3), **SGD, **EXACT)


# A learner is a line here, (number of outputs) -> learner, and a strategy one below.
LEARNERS = {
    "maml": of_maml(inner_optimizer=adapt.sgd(0.3), **EXACT),
    "maml, the support set's statistics": of_flax,
    "fomaml": of_maml(jaxmeta.fomaml, batch_size=4),
    "meta_sgd": of_maml(jaxmeta.meta_sgd, **EXACT),
    "anil": of_maml(jaxmeta.anil, **EXACT),
    "boil": of_maml(jaxmeta.boil, **EXACT),
    "maml_plus_plus": of_maml(jaxmeta.maml_plus_plus, num_annealing_steps=10, **TWO, **EXACT),
    "imaml": of_maml(jaxmeta.imaml, solver=adapt.conjugate_gradient(1), **TWO),
    "reptile": of_maml(jaxmeta.reptile, batch_size=3, **TWO),
    "cavia": of_maml(jaxmeta.cavia, **EXACT),
    "protonet": of_head(jaxmeta.protonet),
    "ridge": of_head(jaxmeta.ridge),
    "proto_maml": of_head(jaxmeta.proto_maml, inner_optimizer=adapt.sgd(0.3), **EXACT),
}
STRATEGIES = {
    "auto": (adapt.auto(), adapt.sgd(0.3)),
    "mixed_mode": (adapt.mixed_mode(), adapt.sgd(0.3)),
    "segments": (adapt.mixed_mode(num_segments=2, save_gradients=True), adapt.sgd(0.3)),
    "truncated": (adapt.truncated(1), adapt.sgd(0.3)),
    "first_order": (adapt.first_order(), adapt.sgd(0.3)),
    "forward_mode": (adapt.forward_mode(), adapt.lslr(0.3, num_inner_steps=2)),
    "implicit": (adapt.implicit(solver=adapt.conjugate_gradient(2)), adapt.proximal(adapt.sgd(0.3), 2.0)),
    "evolution_strategy": (adapt.evolution_strategy(num_pairs=1), adapt.sgd(0.3)),
    "persistent_evolution_strategy": (
        adapt.persistent_evolution_strategy(num_truncations=2, num_pairs=1),
        adapt.sgd(0.3),
    ),
    "reptile": (adapt.reptile(), adapt.sgd(0.3)),
}
QUICK = ("maml", "maml, the support set's statistics", "protonet", "ridge", "mixed_mode")


def each_of(names):
    """One of each kind in the check, all of them in `pytest -m slow`."""
    marks = lambda name: () if name in QUICK else pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in names])


def without_outputs(tree, num_ways=WAYS):
    """A tree without what belongs to outputs from `num_ways` on, be it parameters, rates or gradients."""

    def cut(path, leaf):
        is_head = "head" in jax.tree_util.keystr(path) and jnp.ndim(leaf) and leaf.shape[-1] == OUTPUTS
        return leaf[..., :num_ways] if is_head else leaf

    return jax.tree_util.tree_map_with_path(cut, tree)


def init(num_outputs):
    """Of the network with all outputs, without the last of them where there are fewer."""
    shapes = {"body": (D, 4), "scale": (4,), "bias": (4,), "context": (4,), "head": (4, OUTPUTS)}
    generator = np.random.default_rng(0)
    params = {name: jnp.asarray(generator.normal(size=shape)) for name, shape in shapes.items()}
    return lambda key: without_outputs(params, num_outputs)


def batches(generator, size, counts, num_ways=WAYS):
    """An `Examples` of `size` rows, with garbage among those that count, `counts` of each class; and these alone."""
    rows = np.sort(generator.choice(size, counts * num_ways, replace=False))
    x, y = np.full((size, D), np.nan), np.full(size, 99)
    x[::2] = 1e30
    x[rows], y[rows] = generator.normal(size=(len(rows), D)), generator.permutation(np.arange(len(rows)) % num_ways)
    weight = np.zeros(size, np.float32)
    weight[rows] = 1
    masked = Examples(x, y.astype(np.int32), weight, np.int32(num_ways))
    return masked, Examples(x[rows], masked.y[rows], None, masked.num_ways)


def episodes(counts=(2, 2), num_ways=(WAYS, WAYS)):
    """N masked tasks, and each without its padding."""
    generator = np.random.default_rng(1)
    pairs = [
        (batches(generator, 10, count, ways), batches(generator, 9, count, ways))
        for count, ways in zip(counts, num_ways, strict=True)
    ]
    masked, cut = ([Task(support[i], query[i]) for support, query in pairs] for i in range(2))
    return stacked(masked), cut


def stacked(tasks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


def plain(tasks):
    """Pairs (x, y)."""
    return Task(tuple(tasks.support[:2]), tuple(tasks.query[:2]))


def update(learner, tasks):
    """New meta-parameters and metrics."""
    after, metrics = learner.update(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    return after.meta_params, metrics


def results(learner, tasks):
    """These, and the curves of `evaluate`."""
    meta_params = learner.init(jax.random.key(0)).meta_params
    curves = jax.vmap(lambda task: learner.evaluate(jax.random.key(2), meta_params, task))(tasks)
    return update(learner, tasks), curves


def assert_same(actual, expected):
    """To 1e-12; an accuracy, whose type is float32 whatever the logits' is, to its last digit."""
    assert all_finite(actual)
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-7)):
        assert_close(*([leaf for leaf in jax.tree.leaves(x) if leaf.dtype == dtype] for x in (actual, expected)), rtol)


def all_finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@each_of(LEARNERS)
def test_a_masked_episode_is_that_without_its_padding_for_every_learner(name):
    learner, (masked, cut) = LEARNERS[name](OUTPUTS), episodes()
    of_masked, of_cut = jax.jit(lambda *tasks: [results(learner, tasks) for tasks in tasks])(masked, stacked(cut))
    assert_same(of_masked, of_cut)


@each_of(STRATEGIES)
def test_a_masked_episode_is_that_without_its_padding_for_every_strategy(name):
    strategy, inner_optimizer = STRATEGIES[name]
    learner = of_maml(meta_gradient=strategy, inner_optimizer=inner_optimizer, **TWO)(OUTPUTS)
    masked, cut = episodes()
    of_masked, of_cut = jax.jit(lambda *tasks: [update(learner, tasks) for tasks in tasks])(masked, stacked(cut))
    assert_same(of_masked, of_cut)


@each_of(["maml", "meta_sgd", "protonet", "ridge"])
def test_an_episode_of_fewer_classes_is_that_of_a_network_with_fewer_outputs(name):
    _, cut = episodes()
    of_masked = jax.jit(functools.partial(results, LEARNERS[name](OUTPUTS)))(stacked(cut))
    of_fewer = jax.jit(functools.partial(results, LEARNERS[name](WAYS)))(plain(stacked(cut)))
    assert_same(without_outputs(of_masked), of_fewer)


@pytest.mark.parametrize("name", [pytest.param("maml", marks=pytest.mark.slow), "protonet"])
def test_tasks_of_unequal_size_are_stacked(name):
    """Gradient and metrics are the means of those of each task alone."""
    learner, (masked, cut) = LEARNERS[name](OUTPUTS), episodes(counts=(3, 1), num_ways=(2, 4))
    alone = [stacked([task]) for task in cut]
    together, *each = jax.jit(lambda *tasks: [update(learner, tasks) for tasks in tasks])(masked, *alone)
    mean = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), 0).astype(leaves[0].dtype), *each)
    drop = lambda pair: (pair[0], {name: pair[1][name] for name in ("loss", "accuracy")})  # the norm is of the mean
    assert_same(drop(together), drop(mean))


# Losses, statistics and heads, against sums by numpy over what counts.

ROWS = 6
masks = st.lists(st.sampled_from([0.0, 1.0, 0.25]), min_size=ROWS, max_size=ROWS).filter(any)
often = settings(max_examples=25, deadline=None)
X = np.random.default_rng(2).normal(size=(ROWS, D))
W = np.random.default_rng(3).normal(size=(D, OUTPUTS))
Y = np.random.default_rng(4).normal(size=(ROWS, OUTPUTS))


def with_garbage(array, weight, garbage=np.nan):
    return np.where((np.asarray(weight) > 0).reshape((-1,) + (1,) * (array.ndim - 1)), array, garbage)


def compiled_loss(loss_fn):
    """A loss with metrics, its gradient at W, and its Hessian times W."""
    loss = lambda params, batch: loss_fn(params, batch)[0]
    return jax.jit(lambda batch: (loss_fn(W, batch), *jax.jvp(lambda w: jax.grad(loss)(w, batch), (W,), (W,))))


compiled = functools.cache(lambda make: compiled_loss(make(lambda params, x: x @ params)))


@often
@given(masks, st.integers(1, OUTPUTS), st.integers(0, 99))
def test_cross_entropy_is_that_of_what_counts(weight, num_ways, seed):
    """Loss, accuracy and gradient; the Hessian times W by that of the softmax."""
    labels = np.random.default_rng(seed).integers(0, num_ways, ROWS)
    batch = Examples(with_garbage(X, weight), with_garbage(labels, weight, 99), np.array(weight), np.int32(num_ways))
    (loss, metrics), gradient, product = compiled(losses.cross_entropy)(batch)
    z, w = (X @ W)[:, :num_ways], np.array(weight) / sum(weight)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    classes = np.eye(num_ways)[labels]
    np.testing.assert_allclose(loss, -(w * np.log(p[range(ROWS), labels])).sum(), rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], (w * (z.argmax(1) == labels)).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :num_ways], X.T @ (w[:, None] * (p - classes)), rtol=1e-12, atol=1e-14)
    curved = p * z - p * (p * z).sum(1, keepdims=True)
    np.testing.assert_allclose(product[:, :num_ways], X.T @ (w[:, None] * curved), rtol=1e-11, atol=1e-13)
    assert not np.any(gradient[:, num_ways:]) and not np.any(product[:, num_ways:])


@often
@given(masks)
def test_squared_errors_are_those_of_what_counts(weight):
    batch = Examples(with_garbage(X, weight), with_garbage(Y, weight, np.inf), np.array(weight))
    w, errors = np.array(weight)[:, None], X @ W - Y
    for make, total in ((losses.mean_squared_error, w.sum() * OUTPUTS), (losses.sum_squared_error, 1)):
        (loss, metrics), gradient, product = compiled(make)(batch)
        np.testing.assert_allclose(loss, (w * errors**2).sum() / total, rtol=1e-12)
        np.testing.assert_allclose(metrics["mse"], (w * errors**2).sum() / w.sum() / OUTPUTS, rtol=1e-12)
        np.testing.assert_allclose(gradient, 2 * X.T @ (w * errors) / total, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(product, 2 * X.T @ (w * (X @ W)) / total, rtol=1e-11, atol=1e-13)


def test_the_loss_of_sequences_is_weighted_by_example():
    generator = np.random.default_rng(5)
    z, labels, w = generator.normal(size=(2, 4, 3)), generator.integers(0, 3, (2, 4)), np.array([3.0, 1.0])
    loss_fn = losses.cross_entropy(lambda params, x: x)
    batches = (Examples(z, labels, w), (z[0], labels[0]), (z[1], labels[1]))
    loss, *terms = jax.jit(lambda: [loss_fn(None, batch)[0] for batch in batches])()
    np.testing.assert_allclose(loss, (3 * terms[0] + terms[1]) / 4, rtol=1e-12)


def test_what_a_network_returns_for_padding_does_not_matter():
    """Not even NaN that it makes by itself, in the loss and in two derivatives."""
    wrong = jnp.array([0, 0, jnp.nan, 0, jnp.inf, 0])[:, None]
    weight = jnp.array([1, 2, 0, 1, 0, 1.0])
    found = {}
    for name, extra in (("right", 0), ("wrong", wrong)):
        for make, y in ((losses.cross_entropy, jnp.array([0, 1, 2, 3, 0, 1])), (losses.mean_squared_error, Y)):
            compute = compiled_loss(make(lambda params, x, extra=extra: x @ params + extra))
            found[name, make] = compute(Examples(X, y, weight))
    for make in (losses.cross_entropy, losses.mean_squared_error):
        assert_close(found["wrong", make], found["right", make], rtol=1e-14)


def test_what_is_of_no_example_is_handed_on_as_it_is():
    x = {"rows": X, "table": np.arange(3.0), "scale": np.float64(2)}
    fn = lambda params, x: x["rows"] * x["table"][None] * x["scale"]
    found = weights.apply_weighted(fn, None, x, weight=jnp.array([0, 1, 1, 1, 1, 0.0]))
    np.testing.assert_array_equal(found[1:5], fn(None, x)[1:5])


@often
@given(masks)
def test_batch_norm_is_by_the_statistics_of_what_counts(weight):
    x, scale, bias = np.stack([X, X**2], 1), np.array([1.0, 2.0, -1.0]), np.arange(3.0)
    y = jitted_norm(with_garbage(x, weight), scale, bias, np.array(weight))
    mean = np.average(x, axis=0, weights=weight).mean(0)
    variance = np.average((x - mean) ** 2, axis=0, weights=weight).mean(0)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    counts = np.array(weight) > 0
    np.testing.assert_allclose(y[counts], expected[counts], rtol=1e-11, atol=1e-12)


jitted_norm = jax.jit(lambda x, scale, bias, weight: layers.batch_norm(x, scale, bias, 1e-5, weight))


@pytest.mark.parametrize("features", [2, 16])
def test_a_convolution_with_batch_norm_is_by_the_statistics_of_what_counts(features):
    """By its features, and by the moments of its patches; what does not count is normalised too."""
    generator = np.random.default_rng(6)
    x, kernel = generator.normal(size=(5, 4, 4, 1)), generator.normal(size=(3, 3, 1, features))
    scale, bias, weight = np.ones(features), np.zeros(features), jnp.array([1, 0, 2, 1, 0.0])

    def norm(x, kernel, weight=None):
        return layers.conv_batch_norm(x, kernel, scale, bias, weight=weight)

    whole = lambda kernel: norm(x, kernel, weight)[jnp.array([0, 2, 3])]
    cut = lambda kernel: norm(x[[0, 2, 2, 3]], kernel)[jnp.array([0, 1, 3])]  # a weight of two is an example twice
    both = jax.jit(lambda kernel: [jax.jvp(fn, (kernel,), (kernel**2,)) for fn in (whole, cut)])
    assert_close(*both(kernel), rtol=1e-11)
    normalised = layers.batch_norm(layers.conv(x, kernel), scale, bias, weight=weight)
    assert_close(norm(x, kernel, weight), normalised, rtol=1e-11)
    assert np.all(np.isfinite(norm(with_garbage(x, weight), kernel, weight)[jnp.array([0, 2, 3])]))


@often
@given(masks, st.sampled_from([1, OUTPUTS - 1, OUTPUTS]), st.integers(0, 99))
def test_heads_are_of_the_shots_that_count(weight, num_ways, seed):
    """Weighted means, and weighted least squares, by numpy; the others have no part: −inf."""
    labels = np.random.default_rng(seed).integers(0, num_ways, ROWS)
    w, counts = np.array(weight), np.array(weight) > 0
    support = Examples(with_garbage(X, weight), with_garbage(labels, weight, 99), w, np.int32(num_ways))
    prototypes, ridge = (head(support) for head in jitted_heads())
    for c in range(num_ways):
        its = counts & (labels == c)
        mean = np.average(X[its], axis=0, weights=w[its]) if its.any() else np.full(D, np.nan)
        np.testing.assert_allclose(prototypes.means[c], mean, rtol=1e-12, atol=1e-14)
    root = np.sqrt(w)[:, None]
    solved = np.linalg.solve(X.T @ (root**2 * X) + np.eye(D), X.T @ (root**2 * np.eye(OUTPUTS)[labels]))
    np.testing.assert_allclose(ridge.weights, solved, rtol=1e-11, atol=1e-13)
    for head in (prototypes, ridge):
        z = head(X)
        assert np.all(np.isneginf(z[:, num_ways:])) and not np.any(np.isneginf(z[:, :num_ways]))


@functools.cache
def jitted_heads():
    def head(constructor, **options):
        learner = constructor(lambda key: jnp.ones(()), lambda params, x: x * params, num_ways=OUTPUTS, **options)
        meta_params = learner.init(jax.random.key(0)).meta_params
        return jax.jit(lambda support: learner.adapt(jax.random.key(0), meta_params, Task(support)).head)

    return head(jaxmeta.protonet), head(jaxmeta.ridge, scale=1.0, regularization=1.0)


@pytest.mark.parametrize("rows", [3, 6])
def test_rows_of_zeros_leave_both_forms_of_a_ridge_as_they_are(rows):
    """More features than examples, and fewer: with padding the other form may be taken."""
    z, y = np.random.default_rng(7).normal(size=(rows, 5)), np.eye(6)[:rows, :2]
    padded = [np.concatenate([array, np.zeros((2, array.shape[1]))]) for array in (z, y)]
    assert_close(ridge_weights(*padded, 0.1), ridge_weights(z, y, 0.1), rtol=1e-12)


def test_the_uniform_guess_is_of_the_classes_that_there_are():
    masked, _ = episodes(num_ways=(2, 4), counts=(2, 1))
    learner = LEARNERS["protonet"](OUTPUTS)
    evaluate = lambda task: learner.evaluate(jax.random.key(0), learner.init(jax.random.key(0)).meta_params, task)
    curves = jax.jit(jax.vmap(evaluate))(masked)
    np.testing.assert_allclose(curves["loss"][:, 0], np.log([2, 4]), rtol=1e-12)
    np.testing.assert_allclose(curves["accuracy"][:, 0], [1 / 2, 1 / 4], rtol=1e-6)


# Minibatches.


def draws(batch, batch_size, num=2_000):
    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(jax.vmap(lambda key: minibatch(key, batch, batch_size)))(keys)


def test_a_minibatch_of_a_masked_set_is_that_of_the_set_alone():
    counts = np.array([0, 1, 1, 0, 1, 1, 0, 1], bool)
    x = np.arange(8)
    weight = np.where(counts, 0.5, 0.0)
    masked, alone = draws(Examples(x, x, weight, np.int32(3)), 3), draws((x[counts], x[counts]), 3)
    np.testing.assert_array_equal(masked.x, alone[0])
    np.testing.assert_array_equal(masked.weight, 0.5)
    np.testing.assert_array_equal(masked.num_ways, 3)


def test_a_minibatch_is_drawn_without_replacement_and_all_are_alike():
    """Each of the 10 pairs of 5 in a tenth of 2,000 draws, within four standard deviations."""
    x, _ = draws((np.arange(5), np.arange(5)), 2)
    pairs = np.sort(np.asarray(x), axis=1)
    assert np.all(pairs[:, 0] < pairs[:, 1])
    _, found = np.unique(pairs, axis=0, return_counts=True)
    assert len(found) == 10 and np.all(np.abs(found - 200) < 4 * np.sqrt(180))


def test_a_minibatch_of_more_than_count_has_the_others_with_weight_0():
    batch = draws(Examples(np.arange(4), np.arange(4), np.array([0, 1, 0, 1.0])), 3, num=20)
    np.testing.assert_array_equal(np.sort(batch.weight, axis=1), np.tile([0, 1, 1], (20, 1)))
    np.testing.assert_array_equal(batch.x % 2, batch.weight)  # 1 and 3


# What would be silently wrong is refused.

NETWORK = Network()
VARIABLES = jax.eval_shape(NETWORK.init, jax.random.key(0), X)
MASKED = Examples(X, np.zeros(ROWS, int), np.array([1, 1, 0, 1, 0, 1.0]))
HIDDEN = {
    "a lambda": lambda params, x: NETWORK.apply(params, x),
    "a function that does not hand it on": lambda params, x, weight=None: NETWORK.apply(params, x),
    "jit": jax.jit(lambda params, x: NETWORK.apply(params, x)),
    "checkpoint": jax.checkpoint(lambda params, x: NETWORK.apply(params, x)),
    "scan": lambda params, x: jax.lax.scan(_scanned, (params, x), None, length=1)[0][1],
}


def _scanned(carry, _):
    params, x = carry
    y = NETWORK.apply(params, x)
    return (params, jnp.concatenate([y, y], axis=1)[:, :D]), None


@pytest.mark.parametrize("name", HIDDEN)
def test_a_batch_norm_that_is_not_given_the_weights_of_the_batch_is_an_error(name):
    """Also in what was traced, and is cached, for a batch without weights."""
    loss_fn = losses.cross_entropy(HIDDEN[name])
    jax.eval_shape(loss_fn, VARIABLES, (X, MASKED.y))
    for transform in (lambda fn: fn, jax.jit, lambda fn: jax.grad(lambda *args: fn(*args)[0])):
        with pytest.raises(ValueError, match=r"weight must be given to a batch norm .* weight=weight"):
            jax.eval_shape(transform(loss_fn), VARIABLES, MASKED)
    jax.eval_shape(loss_fn, VARIABLES, (X, MASKED.y))


def test_heads_and_statistics_of_the_support_set_ask_for_the_weights_too():
    apply_fn = lambda params, x, **options: NETWORK.apply(params, x, **options)
    with pytest.raises(ValueError, match="weight must be given to a batch norm"):
        jax.eval_shape(norms.support_statistics(apply_fn), VARIABLES, MASKED)
    learner = jaxmeta.protonet(lambda key: NETWORK.init(key, X), HIDDEN["a lambda"], num_ways=2)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with pytest.raises(ValueError, match="weight must be given to a batch norm"):
        jax.eval_shape(lambda meta_params: learner.adapt(None, meta_params, Task(MASKED)), state.meta_params)


def test_where_all_of_another_batch_counts_it_is_said_so():
    def apply_fn(params, x):
        return NETWORK.apply(params, x[:2], weight=jnp.ones(2))[:1] + x[:, :1]

    jax.eval_shape(losses.cross_entropy(apply_fn), VARIABLES, MASKED)


def test_statistics_that_are_stored_need_no_weights():
    """One at a time they give what a batch gives, so padding has no part in them."""
    stored = jax.eval_shape(norms.support_statistics(NETWORK.apply), VARIABLES, MASKED)
    jax.eval_shape(losses.cross_entropy(HIDDEN["a lambda"]), stored, MASKED)


class Other(nn.Module):
    """With another method, and without weights."""

    def __call__(self, x):
        return x

    def weighted(self, x, weight=None):
        return x


TAKE = {
    "apply": (NETWORK.apply, True),
    "apply without": (Other().apply, False),
    "method": (functools.partial(Other().apply, method="weighted"), True),
    "method, a function": (functools.partial(Other().apply, method=Other.weighted), True),
    "partial": (functools.partial(lambda params, x, scale, weight=None: x, scale=2), True),
    "bound by partial": (functools.partial(NETWORK.apply, weight=np.ones(3)), False),
    "jit": (jax.jit(NETWORK.apply), True),
    "jit of partial": (jax.jit(functools.partial(NETWORK.apply, mutable=False)), True),
    "lambda": (lambda params, x: x, False),
    "keywords": (lambda params, x, **options: x, False),
    "keyword only": (lambda params, x, *, weight=None: x, True),
    "Conv4": (jaxmeta.nn.Conv4(5).apply, True),
    "ResNet12": (jaxmeta.nn.ResNet12(5).apply, True),
    "MLP": (jaxmeta.nn.MLP().apply, False),
    "builtin": (max, False),
}


@pytest.mark.parametrize("name", TAKE)
def test_who_takes_a_weight(name):
    fn, takes = TAKE[name]
    assert weights.takes_weight(fn) == takes


@pytest.mark.parametrize("network", [jaxmeta.nn.Conv4(2, 4, strided=False), jaxmeta.nn.ResNet12(2, (2,))])
def test_networks_of_images_hand_the_weights_to_their_norms(network):
    images = np.random.default_rng(8).uniform(size=(4, 16, 16))
    weight = np.array([1, 0, 1, 0.0])
    params = jax.jit(network.init)(jax.random.key(0), images)
    masked, alone = jax.jit(
        lambda params: (network.apply(params, images, weight=weight)[::2], network.apply(params, images[::2]))
    )(params)
    assert_close(masked, alone, rtol=1e-10)


WRONG = {
    "weight": ({"weight": np.ones(ROWS - 1)}, rf"batch.weight must be numbers of shape \[{ROWS}\]"),
    "of tokens": ({"weight": np.ones((ROWS, 2))}, "batch.weight must be numbers of shape"),
    "negative": ({"weight": np.arange(ROWS) - 1.0}, "batch.weight must be finite numbers >= 0, .* got -1"),
    "NaN": ({"weight": np.full(ROWS, np.nan)}, "batch.weight must be finite numbers"),
    "nothing": ({"weight": np.zeros(ROWS)}, "not all of them 0"),
    "too many ways": ({"num_ways": 5}, "num_ways must be from 1 to 4, for there are 4 outputs, got 5"),
    "no ways": ({"num_ways": jnp.int32(0)}, "num_ways must be from 1 to 4"),
    "ways of each": ({"num_ways": np.ones(ROWS, int)}, "num_ways must be an integer"),
    "labels": ({"num_ways": 2}, r"labels y must be class numbers from 0 to 1, .* 2 classes by num_ways, got .*3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_named(name):
    arguments, message = WRONG[name]
    batch = Examples(X, np.arange(ROWS) % 4)._replace(**arguments)
    with pytest.raises(ValueError, match=message):
        losses.cross_entropy(lambda params, x: x @ params)(W, batch)


def test_squared_errors_know_no_classes():
    with pytest.raises(ValueError, match="num_ways of a batch must be None"):
        losses.mean_squared_error(lambda params, x: x @ params)(W, Examples(X, Y, None, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_ways": np.int32(2)},
        {"num_ways": np.int32(9)},
        {"weight": np.zeros(ROWS)},
        {"weight": np.arange(ROWS) - 1.0},
    ],
)
def test_a_wrong_batch_is_no_number_where_it_is_traced(wrong):
    """Labels from num_ways on, more classes than outputs, nothing that counts, a negative weight."""
    batch = Examples(X, np.arange(ROWS) % 4, np.ones(ROWS), np.int32(4))._replace(**wrong)
    (loss, metrics), gradient, _ = compiled(losses.cross_entropy)(batch)
    assert np.isnan(loss) and np.isnan(metrics["accuracy"]) and np.all(np.isnan(gradient[:, :2]))


def test_labels_of_padding_are_not_looked_at_before_anything_compiles():
    """By `check`, of a task that is known; those of what counts are."""
    masked, _ = batches(np.random.default_rng(0), 8, 2)
    for name in ("maml", "protonet"):
        learner = LEARNERS[name](OUTPUTS)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        learner.check(state.meta_params, Task(masked, masked), is_test=False)
        y = np.where(masked.weight > 0, WAYS, 0)
        with pytest.raises(ValueError, match=r"class numbers from 0 to 2, .* 3 classes by num_ways, got 3"):
            learner.check(state.meta_params, Task(masked, masked._replace(y=y)), is_test=False)


def test_a_picture_of_an_episode_has_no_padding():
    images, labels = np.zeros((3, 4, 4)), np.array([0, 1, 0])
    masked = Examples(images, labels, np.array([1, 1, 0.0]), 2)
    figure = jaxmeta.plotting.episode(masked, masked, labels)
    assert len(figure.axes) == 4
