"""The baselines: their training against a loop by hand, heads of tasks against numpy; minibatches over all classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import assert_close

import jaxmeta
from jaxmeta import Examples, Task, adapt
from jaxmeta.nn import weighted_mean
from jaxmeta.training.checkpoint import restore_state, save_state

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

C, D, WAYS, RATE = 5, 4, 3, 0.3
SIZES = {"num_classes": C, "num_features": D, "num_ways": WAYS}
KEY = jax.random.key(1)
GENERATOR = np.random.default_rng(0)


def init_fn(key):
    return {"w": jax.random.normal(key, (2, D)), "scale": jnp.full(D, 0.9)}


def embed_fn(params, x):
    return jnp.tanh(x @ params["w"]) * params["scale"][None] + 0.5


def centred(params, x, weight=None):
    """By the mean of the batch, as a batch norm."""
    return embed_fn(params, x - weighted_mean(x, weight, (0,), keepdims=True))


def batch(size, num_classes):
    labels = GENERATOR.permutation(np.arange(size) % num_classes).astype(np.int32)
    return GENERATOR.normal(size=(size, 2)) + labels[:, None], labels


MINIBATCHES = Task((), jax.tree.map(lambda *leaves: np.stack(leaves), *(batch(6, C) for _ in range(2))))
EPISODE = Task(batch(7, WAYS), batch(8, WAYS))
LEARNERS = {"fine_tune": jaxmeta.fine_tune, "simple_shot": jaxmeta.simple_shot}


def trained(learner, num_steps=1):
    """The state after some steps on the same minibatches, and what the last reported."""
    state, metrics, update = learner.init(jax.random.key(0)), {}, jax.jit(learner.update)
    for step in range(num_steps):
        state, metrics = update(jax.random.fold_in(KEY, step), state, MINIBATCHES)
    return state, metrics


@pytest.mark.parametrize("frozen", [None, "w"])
def test_training_is_gradient_descent_on_the_cross_entropy_of_minibatches(frozen):
    learner = jaxmeta.fine_tune(init_fn, embed_fn, optimizer=optax.sgd(0.5), frozen=frozen, **SIZES)
    state = learner.init(jax.random.key(0))
    after, metrics = trained(learner)
    params, (weights, bias, _) = state.meta_params.params
    still = {} if frozen is None else {"w": init_fn(jax.random.split(jax.random.key(0))[0])["w"]}

    def loss(moving):
        theta, weights, bias = moving
        x, labels = MINIBATCHES.query
        logits = embed_fn(theta | still, x.reshape(-1, 2)) @ weights + bias[None]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), labels.reshape(-1)])

    moving = ({name: leaf for name, leaf in params.items() if leaf is not None}, weights, bias)
    value, grads = jax.value_and_grad(loss)(moving)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, moving, grads)
    found, head = after.meta_params.params
    assert_close(({name: found[name] for name in moving[0]}, head.weights, head.bias), expected)
    assert_close(metrics["loss"], value)
    assert np.all(bias == 0) and np.any(weights != 0)


def test_the_mean_of_the_features_is_that_of_the_minibatches_and_after_a_hundred_of_the_last_ones():
    """Each as it was when it was learned from: with θ before the step. Of one that was skipped nothing is kept."""
    learner = jaxmeta.simple_shot(init_fn, embed_fn, optimizer=optax.sgd(0.5), **SIZES)
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    means, x = [], MINIBATCHES.query[0].reshape(-1, 2)
    for _ in range(3):
        means.append(jnp.mean(embed_fn(state.meta_params.params.params, x), axis=0))
        state, _ = update(KEY, state, MINIBATCHES)
    assert_close(state.meta_params.constants.feature_mean, sum(means) / 3)
    late = state._replace(step=jnp.int32(5000))
    after, _ = update(KEY, late, MINIBATCHES)
    now = jnp.mean(embed_fn(state.meta_params.params.params, x), axis=0)
    assert_close(after.meta_params.constants.feature_mean, 0.99 * sum(means) / 3 + 0.01 * now)
    wrong = MINIBATCHES._replace(query=(MINIBATCHES.query[0] * np.nan, MINIBATCHES.query[1]))
    skipped, metrics = update(KEY, state, wrong)
    assert not metrics["is_finite"] and skipped.num_skipped == 1
    jax.tree.map(np.testing.assert_array_equal, skipped.meta_params, state.meta_params)
    began_wrong, _ = update(KEY, learner.init(jax.random.key(0)), wrong)
    assert_close(update(KEY, began_wrong, MINIBATCHES)[0].meta_params.constants.feature_mean, means[0])


def centroid_logits(transform, z, labels, queries, mean):
    """In numpy, one query and one class at a time."""
    if transform != "UN":
        centre = mean if transform == "CL2N" else np.zeros(D)
        z, queries = ([(v - centre) / np.linalg.norm(v - centre) for v in rows] for rows in (z, queries))
    rows = list(zip(z, labels, strict=True))
    means = [np.mean([v for v, label in rows if label == n], axis=0) for n in range(WAYS)]
    return np.array([[-sum((q - c) ** 2) for c in means] for q in queries])


@pytest.mark.parametrize("transform", ["UN", "L2N", "CL2N"])
def test_simple_shot_is_the_nearest_centroid_of_numpy(transform):
    learner = jaxmeta.simple_shot(init_fn, embed_fn, transform=transform, optimizer=optax.sgd(0.5), **SIZES)
    meta_params = trained(learner)[0].meta_params
    params, head = jax.jit(learner.adapt)(KEY, meta_params, EPISODE)
    (x, labels), (query_x, query_labels), _ = EPISODE
    embedded = [np.asarray(embed_fn(meta_params.params.params, images)) for images in (x, query_x)]
    expected = centroid_logits(transform, embedded[0], labels, embedded[1], meta_params.constants.feature_mean)
    assert_close(head(embed_fn(params, query_x)), expected)
    curves = jax.jit(learner.evaluate)(KEY, meta_params, EPISODE)
    np.testing.assert_allclose(curves["accuracy"], [1 / WAYS, np.mean(expected.argmax(axis=1) == query_labels)])
    assert_close(curves["loss"][0], np.log(float(WAYS)))


def head_loss(head, batch):
    (weights, bias), (x, labels) = head, batch
    log_p = jax.nn.log_softmax(embed_fn(init_fn(jax.random.split(jax.random.key(0))[0]), x) @ weights + bias[None])
    return -jnp.mean(log_p[jnp.arange(len(labels)), labels])


def test_a_head_is_fitted_as_by_a_loop_and_judged_after_each_step():
    learner = jaxmeta.fine_tune(init_fn, embed_fn, inner_optimizer=adapt.sgd(RATE), num_eval_steps=3, **SIZES)
    meta_params = learner.init(jax.random.key(0)).meta_params
    adapted, curves = jax.jit(
        lambda task: (learner.adapt(KEY, meta_params, task), learner.evaluate(KEY, meta_params, task))
    )(EPISODE)
    heads = [(jnp.zeros((D, WAYS)), jnp.zeros(WAYS))]
    for _ in range(3):
        heads.append(reference.adapt(head_loss, reference.sgd(RATE), heads[-1], (), [EPISODE.support]))
    assert_close((adapted.head.weights, adapted.head.bias), heads[-1])
    assert_close(curves["loss"], np.array([head_loss(head, EPISODE.query) for head in heads]))
    jax.tree.map(np.testing.assert_array_equal, adapted.params, meta_params.params.params)


def test_enough_steps_reach_the_minimum():
    """With weight decay the problem is strongly convex: at its minimum the gradient is that of the decay."""
    descent = adapt.from_optax(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0)))
    learner = jaxmeta.fine_tune(init_fn, embed_fn, inner_optimizer=descent, num_eval_steps=1000, **SIZES)
    _, (weights, bias, _) = jax.jit(learner.adapt)(KEY, learner.init(jax.random.key(0)).meta_params, EPISODE)
    grads = jax.grad(head_loss)((weights, bias), EPISODE.support)
    assert_close(grads, (-0.1 * weights, -0.1 * bias), rtol=1e-8)


def test_the_optimizer_of_the_paper_is_the_one_of_torch_but_for_its_first_step():
    """SGD of rate 0.01 with momentum and dampening of 0.9 and a weight decay of 0.001, written out."""
    learner = jaxmeta.fine_tune(init_fn, embed_fn, num_eval_steps=4, **SIZES)
    _, (weights, bias, _) = jax.jit(learner.adapt)(KEY, learner.init(jax.random.key(0)).meta_params, EPISODE)
    head, momentum = (jnp.zeros((D, WAYS)), jnp.zeros(WAYS)), (jnp.zeros((D, WAYS)), jnp.zeros(WAYS))
    for _ in range(4):
        grads = jax.grad(head_loss)(head, EPISODE.support)
        momentum = jax.tree.map(lambda m, g, p: 0.9 * m + 0.1 * (g + 0.001 * p), momentum, grads, head)
        head = jax.tree.map(lambda p, m: p - 0.01 * m, head, momentum)
    assert_close((weights, bias), head)


@pytest.mark.parametrize("name", LEARNERS)
def test_an_episode_of_fewer_classes_and_with_padding_is_the_one_without(name):
    learner = LEARNERS[name](init_fn, centred, **SIZES)
    narrow = LEARNERS[name](init_fn, centred, **SIZES | {"num_ways": 2})
    meta_params = learner.init(jax.random.key(0)).meta_params
    support, query = batch(4, 2), batch(6, 2)

    def padded(x, labels):
        x, labels = np.append(x, np.full((2, 2), 1e30), axis=0), np.append(labels, [99, 99]).astype(np.int32)
        return Examples(x, labels, np.array([1.0] * (len(x) - 2) + [0, 0]), np.int32(2))

    masked = Task(padded(*support), padded(*query))
    features = lambda params, task: learner.adapt(KEY, params, task).head(embed_fn(init_fn(KEY), query[0]))
    logits = jax.jit(features)(meta_params, masked)
    assert jnp.all(logits[:, 2] == -jnp.inf)
    head = jax.jit(narrow.adapt)(KEY, meta_params, Task(support)).head
    assert_close(logits[:, :2], head(embed_fn(init_fn(KEY), query[0])), rtol=1e-12)
    found = jax.jit(learner.evaluate)(KEY, meta_params, masked)
    expected = jax.jit(narrow.evaluate)(KEY, meta_params, Task(support, query))
    assert_close(found["loss"], expected["loss"], rtol=1e-12)
    np.testing.assert_allclose(found["accuracy"], expected["accuracy"], rtol=1e-6)


def test_a_minibatch_with_padding_is_the_one_without():
    """The mean of its features too."""
    learner = jaxmeta.simple_shot(init_fn, centred, optimizer=optax.sgd(0.5), **SIZES)
    x, labels = MINIBATCHES.query
    counts = np.array([1, 0, 1, 1, 0, 1], bool)
    masked = Examples(np.where(counts[:, None], x, 1e30), np.where(counts, labels, 99), np.tile(counts, (2, 1)) * 1.0)
    state = learner.init(jax.random.key(0))
    after = jax.jit(lambda *batches: [learner.update(KEY, state, Task((), batch)) for batch in batches])
    (found, metrics), (expected, of_cut) = after(masked, (x[:, counts], labels[:, counts]))
    assert_close((found.meta_params, metrics["loss"]), (expected.meta_params, of_cut["loss"]), rtol=1e-12)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_the_support_set_says_goes_into_the_embedding_of_shots_and_queries(name):
    conditioned = lambda params, support: params | {"scale": params["scale"] * jnp.mean(support[0])}
    learner = LEARNERS[name](init_fn, embed_fn, condition_fn=conditioned, frozen="w", **SIZES)
    plain = LEARNERS[name](init_fn, embed_fn, **SIZES)
    before, whole = (each.init(jax.random.key(0)).meta_params for each in (learner, plain))
    after = whole._replace(params=whole.params._replace(params=conditioned(whole.params.params, EPISODE.support)))
    judge = lambda learner, meta_params: learner.evaluate(KEY, meta_params, EPISODE)["loss"]
    found, expected = jax.jit(lambda: (judge(learner, before), judge(plain, after)))()
    assert_close(found, expected, rtol=1e-12)


def test_one_training_is_judged_both_ways_saved_and_restored(tmp_path):
    """From `fit` on `all_classes` to reports of the same episodes, whose classes were not trained on."""
    centres = GENERATOR.normal(size=(9, 1, 2)) * 3
    data = (centres + GENERATOR.normal(size=(9, 12, 2)) * 0.3).astype(np.float32)
    minibatches = jaxmeta.tasks.all_classes(data[:C], batch_size=8)
    episodes = jaxmeta.tasks.few_shot(data[C:], num_ways=WAYS, num_shots=1, num_queries=3)
    one, other = (make(init_fn, embed_fn, optimizer=optax.adam(0.1), **SIZES) for make in LEARNERS.values())
    arguments = {"num_outer_steps": 50, "num_tasks": 2, "chunk_size": 50, "progress": False}
    state, history = jaxmeta.fit(KEY, one, minibatches, **arguments)
    assert history["loss"][-1] < 0.5 * history["loss"][0] and set(history) >= {"loss", "accuracy"}
    reports = [jaxmeta.evaluate(KEY, learner, episodes, state.meta_params, num_tasks=20) for learner in (one, other)]
    assert reports[1].ahead_of(reports[0], "accuracy").keys() == {"mean", "ci95"}
    assert reports[1].metrics["accuracy"]["mean"][-1] > 0.6
    save_state(tmp_path, 1, state)
    restored = restore_state(tmp_path, jax.eval_shape(other.init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    with pytest.raises(ValueError, match="tasks must be minibatches over all training classes without a support set"):
        jaxmeta.fit(KEY, one, episodes, **arguments)
    with pytest.raises(ValueError, match="class numbers from 0 to 4"):
        jaxmeta.fit(KEY, other, jaxmeta.tasks.all_classes(data, batch_size=50), **arguments)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_does_not_fit_is_named(name):
    learner = LEARNERS[name](init_fn, embed_fn, **SIZES | {"num_features": 3})
    with pytest.raises(ValueError, match="num_features must be the 4 that embed_fn returns, got 3"):
        jax.eval_shape(learner.update, KEY, jax.eval_shape(learner.init, KEY), MINIBATCHES)
    learner = LEARNERS[name](init_fn, embed_fn, **SIZES)
    with pytest.raises(ValueError, match="class numbers from 0 to 2"):
        learner.check(learner.init(KEY).meta_params, Task(batch(8, 4), batch(8, 4)), True)


DATA = {
    "array": np.arange(4 * 3, dtype=np.uint8).reshape(4, 3),
    "dict": {name: np.arange(10 * c, 10 * c + n) for c, (name, n) in enumerate({"a": 1, "b": 7, "c": 3}.items())},
    "pair": (np.arange(9)[::-1].copy(), np.array([5, 5, 5, 2, 2, 9, 9, 9, 9])),
}


@pytest.mark.parametrize("form", DATA)
def test_minibatches_are_uniform_over_all_images_without_replacement_and_labels_are_classes(form):
    label_of = {
        "array": lambda x: x // 3,
        "dict": lambda x: x // 10,
        "pair": lambda x: np.array([2, 2, 2, 2, 0, 0, 1, 1, 1])[x],
    }[form]
    total, size = {"array": 12, "dict": 11, "pair": 9}[form], 4
    tasks = jaxmeta.tasks.all_classes(DATA[form], batch_size=size)
    drawn = jax.jit(jax.vmap(tasks.sample, (0, None)))(jax.random.split(KEY, 2000), tasks.data)
    x, labels = map(np.asarray, drawn.query)
    assert drawn.support == () and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, label_of(x))
    assert all(len(set(row)) == size for row in x.tolist())
    _, counts = np.unique(x, return_counts=True)
    share = size / total
    assert len(counts) == total and np.all(np.abs(counts / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000))
    again = jaxmeta.tasks.all_classes(tasks.data, batch_size=size).sample(KEY, tasks.data)
    jax.tree.map(np.testing.assert_array_equal, again, tasks.sample(KEY, tasks.data))
    with pytest.raises(ValueError, match=f"batch_size must be at most the {total} examples of data, got 13"):
        jaxmeta.tasks.all_classes(DATA[form], batch_size=13)
