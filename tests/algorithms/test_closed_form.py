"""Heads in closed form: against loops in float64, numpy's solver, finite differences, Gaussians with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close
from scipy.stats import norm

import jaxmeta
from jaxmeta import MetaParams, Task
from jaxmeta.algorithms.closed_form import ridge_weights

pytestmark = pytest.mark.usefixtures("strict_shapes")

CONSTRUCTORS = {"protonet": jaxmeta.protonet, "ridge": jaxmeta.ridge}
over_heads = pytest.mark.parametrize("name", CONSTRUCTORS)
N, WAYS = 4, 3


def init_fn(key):
    return {"w": jax.random.normal(key, (2, 5)), "b": jnp.full(5, 0.1)}


def embed_fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None])


def make_task(seed, num_shots=(2, 1, 3), num_queries=4):
    """Classes with different numbers of shots, in no order."""
    generator = np.random.default_rng(seed)

    def batch(counts):
        labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
        return jnp.asarray(generator.normal(size=(len(labels), 2)) + labels[:, None]), jnp.asarray(labels, jnp.int32)

    return Task(batch(num_shots), batch([num_queries] * len(num_shots)))


def make_tasks():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make_task(seed) for seed in range(N)))


# Brute force, in numpy: one example and one class at a time.


def embedding(params, x):
    return [np.tanh(row @ params["w"] + params["b"]) for row in np.asarray(x)]


def prototype_logits(params, hyper, task):
    (x, labels), (query_x, _) = task
    z, labels = embedding(params, x), np.asarray(labels)
    means = [
        sum(v for v, label in zip(z, labels, strict=True) if label == c) / np.sum(labels == c) for c in range(WAYS)
    ]
    return np.array([[-sum((q - c) ** 2) for c in means] for q in embedding(params, query_x)])


def ridge_logits(params, hyper, task):
    """The normal equations, one class at a time."""
    (x, labels), (query_x, _) = task
    z, labels = np.array(embedding(params, x)), np.asarray(labels)
    gram = z.T @ z + np.exp(hyper["log_lambda"]) * np.eye(z.shape[1])
    weights = [np.linalg.solve(gram, z.T @ (labels == c)) for c in range(WAYS)]
    return np.array([[np.exp(hyper["log_scale"]) * q @ w for w in weights] for q in embedding(params, query_x)])


LOGITS = {"protonet": prototype_logits, "ridge": ridge_logits}


def cross_entropy(logits, labels):
    return np.mean([np.log(np.sum(np.exp(row))) - row[label] for row, label in zip(logits, labels, strict=True)])


def mean_loss(name, meta_params, tasks):
    losses = []
    for i in range(N):
        task = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), tuple(tasks)[:2])
        losses.append(cross_entropy(LOGITS[name](*meta_params[:2], task), task[1][1]))
    return np.mean(losses)


def finite_differences(fn, tree, epsilon=1e-4):
    """Central, fourth order: the error is of the order of epsilon⁴, and of 1e-16 / epsilon."""
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: np.array(leaf, float), tree))
    grads = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, grad in zip(leaves, grads, strict=True):
        for i in np.ndindex(leaf.shape):
            values, at = {}, leaf[i]
            for k in (-2, -1, 1, 2):
                leaf[i] = at + k * epsilon
                values[k] = fn(jax.tree.unflatten(structure, leaves))
            leaf[i] = at
            grad[i] = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * epsilon)
    return jax.tree.unflatten(structure, grads)


def make_learner(name, **arguments):
    start = {"regularization": 0.3, "scale": 2.0} if name == "ridge" else {}
    return CONSTRUCTORS[name](init_fn, embed_fn, num_ways=WAYS, **start, **arguments)


@over_heads
def test_what_adapt_returns_predicts_the_logits_of_a_loop(x64, name):
    learner, task = make_learner(name), make_task(7)
    meta_params = learner.init(jax.random.key(0)).meta_params
    params, head = jax.jit(learner.adapt)(jax.random.key(1), meta_params, task)
    logits = head(embed_fn(params, task.query[0]))
    expected = LOGITS[name](*jax.tree.map(np.asarray, tuple(meta_params[:2])), task[:2])
    assert_close(logits, expected)
    jax.tree.map(np.testing.assert_array_equal, params, meta_params.params)


@over_heads
@pytest.mark.parametrize("microbatch", [None, 2])
def test_an_update_is_the_loss_of_a_loop_and_its_gradient_by_finite_differences(x64, name, microbatch):
    """With `optax.sgd(1)` outside, the difference of the meta-parameters is the gradient."""
    learner, tasks = make_learner(name, optimizer=optax.sgd(1.0), microbatch=microbatch), make_tasks()
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(jax.random.key(1), state, tasks)
    loss = lambda meta_params: mean_loss(name, meta_params, tasks)
    expected = finite_differences(loss, state.meta_params)
    assert_close(jax.tree.map(jnp.subtract, state.meta_params, after.meta_params), expected, rtol=1e-9)
    assert_close(metrics["loss"], np.asarray(loss(jax.tree.map(np.asarray, state.meta_params))))
    assert_close(metrics["grad_norm"], np.asarray(optax.tree.norm(expected)), rtol=1e-9)


@pytest.mark.parametrize("num_examples", [3, 4, 9])
def test_both_forms_of_ridge_regression_solve_the_normal_equations(x64, num_examples):
    """Fewer examples than features (Woodbury), as many, and more; zeros added to the features change the form only."""
    generator = np.random.default_rng(num_examples)
    z, y = generator.normal(size=(num_examples, 4)), generator.normal(size=(num_examples, 2))
    expected = np.linalg.solve(z.T @ z + 0.3 * np.eye(4), z.T @ y)
    assert_close(ridge_weights(jnp.asarray(z), jnp.asarray(y), 0.3), expected)
    wide = ridge_weights(jnp.asarray(np.pad(z, ((0, 0), (0, 20)))), jnp.asarray(y), 0.3)
    tall = ridge_weights(jnp.asarray(np.pad(z, ((0, 20), (0, 0)))), jnp.asarray(np.pad(y, ((0, 20), (0, 0)))), 0.3)
    assert_close(wide, np.pad(expected, ((0, 20), (0, 0))))
    assert_close(tall, expected)


def test_ridge_of_fewer_examples_solves_the_smaller_system():
    shapes = lambda b, d: str(jax.make_jaxpr(lambda z, y: ridge_weights(z, y, 1.0))(jnp.ones((b, d)), jnp.ones((b, 2))))
    assert "f32[3,3]" in shapes(3, 50) and "f32[50,50]" not in shapes(3, 50)
    assert "f32[3,3]" in shapes(50, 3) and "f32[50,50]" not in shapes(50, 3)


@over_heads
def test_the_order_of_examples_and_of_classes_does_not_matter(x64, name):
    learner, task = make_learner(name), make_task(5)
    meta_params = learner.init(jax.random.key(0)).meta_params

    def logits(support):
        params, head = learner.adapt(jax.random.key(1), meta_params, Task(support))
        return head(embed_fn(params, task.query[0]))

    x, labels = task.support
    order, classes = np.array([4, 2, 0, 5, 1, 3]), np.array([2, 0, 1])
    assert_close(logits((x[order], labels[order])), np.asarray(logits((x, labels))))
    assert_close(logits((x, jnp.asarray(classes)[labels]))[:, classes], np.asarray(logits((x, labels))))


@over_heads
def test_evaluate_is_the_uniform_guess_and_then_the_head(x64, name):
    learner, task = make_learner(name), make_task(3)
    meta_params = learner.init(jax.random.key(0)).meta_params
    curves = learner.evaluate(jax.random.key(1), meta_params, task)
    logits = LOGITS[name](*jax.tree.map(np.asarray, tuple(meta_params[:2])), task[:2])
    labels = np.asarray(task.query[1])
    assert_close(curves["loss"], np.array([np.log(WAYS), cross_entropy(logits, labels)]))
    np.testing.assert_allclose(curves["accuracy"], [1 / WAYS, np.mean(logits.argmax(1) == labels)], rtol=1e-6)


@over_heads
def test_tasks_at_test_may_have_other_numbers_of_classes(name):
    learner, task = make_learner(name, num_eval_ways=2), make_task(3, num_shots=(2, 3))
    meta_params = learner.init(jax.random.key(0)).meta_params
    params, head = learner.adapt(jax.random.key(1), meta_params, task)
    assert head(embed_fn(params, task.query[0])).shape == (8, 2)
    assert learner.evaluate(jax.random.key(1), meta_params, task)["accuracy"][0] == 0.5


@over_heads
def test_gaussians_are_classified_as_often_as_in_closed_form(name):
    """Two classes N(±δ/2, 1) with K shots each, and the identity as embedding. The answer is on the right side, with
    D = c_1 − c_0 and M = (c_0 + c_1) / 2 of the means of the shots, independent Gaussians, if D > 0 and

        z − M > 0 for the nearest mean, M ~ N(0, 1/2K),        z > 0 for ridge regression, whose weights are ∝ D,

    where z ~ N(δ/2, 1), or if D < 0 and the inverse.
    """
    distance, num_shots, num_tasks = 2.0, 2, 4000

    def sample(key, data):
        def batch(key, count):
            labels = jnp.repeat(jnp.arange(2), count)
            return (distance * (labels - 0.5) + jax.random.normal(key, (2 * count,)))[:, None], labels

        support_key, query_key = jax.random.split(key)
        return Task(batch(support_key, num_shots), batch(query_key, 50))

    learner = CONSTRUCTORS[name](lambda key: jnp.ones(()), lambda params, x: x, num_ways=2)
    meta_params = learner.init(jax.random.key(0)).meta_params
    tasks = jaxmeta.TaskDistribution(sample)
    found = jaxmeta.evaluate(jax.random.key(2), learner, tasks, meta_params, num_tasks=num_tasks).samples["accuracy"]
    ordered = norm.cdf(distance * np.sqrt(num_shots / 2))
    side = norm.cdf(distance / 2 / np.sqrt(1 + 1 / (2 * num_shots) * (name == "protonet")))
    expected = ordered * side + (1 - ordered) * (1 - side)
    assert abs(found[:, 1].mean() - expected) < 4 * found[:, 1].std(ddof=1) / np.sqrt(num_tasks)


FAULTS = {
    "features of three axes": (lambda params, x: x[:, None], (jnp.ones((3, 2)), jnp.arange(3)), "embed_fn must return"),
    "labels in one-hot rows": (embed_fn, (jnp.ones((3, 2)), jnp.eye(3, dtype=int)), "labels"),
    "labels that are not integers": (embed_fn, (jnp.ones((3, 2)), jnp.arange(3.0)), "labels"),
    "labels of other examples": (embed_fn, (jnp.ones((3, 2)), jnp.arange(4)), "labels"),
    "no pair": (embed_fn, jnp.ones((3, 2)), "support must be a pair"),
    "fewer shots than classes": (embed_fn, (jnp.ones((2, 2)), jnp.arange(2)), "num_ways"),
}


@over_heads
@pytest.mark.parametrize("fault", FAULTS)
def test_a_support_set_that_does_not_fit_is_refused(name, fault):
    embed, support, message = FAULTS[fault]
    learner = CONSTRUCTORS[name](init_fn, embed, num_ways=WAYS)
    with pytest.raises(ValueError, match=message):
        learner.adapt(jax.random.key(1), MetaParams(init_fn(jax.random.key(0))), Task(support))


def test_a_class_without_shots_is_not_silent():
    """The step is skipped, and counted."""
    learner, task = make_learner("protonet"), make_task(0, num_shots=(2, 4))
    state = learner.init(jax.random.key(0))
    after, metrics = learner.update(jax.random.key(1), state, jax.tree.map(lambda leaf: leaf[None], task))
    assert not metrics["is_finite"] and after.num_skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.meta_params, state.meta_params)


def test_conv4_without_classes_is_the_body_of_conv4():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 16, 16)), jnp.uint8)
    whole = jaxmeta.nn.Conv4(num_classes=5, num_filters=4)
    params = jax.jit(whole.init)(jax.random.key(0), images)["params"]
    head = params.pop("head")
    features = jax.jit(jaxmeta.nn.Conv4(num_classes=None, num_filters=4).apply)({"params": params}, images)
    expected = jax.jit(whole.apply)({"params": params | {"head": head}}, images)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], expected, rtol=1e-6)
