"""Losses against closed forms, their second derivatives, and the shapes that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.nn.losses import cross_entropy, mean_squared_error, one_hot, sum_squared_error

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)), jnp.float32)
LABELS = jnp.array([0, 1, 1, 0, 1, 0])


def linear(params, x):
    return x @ params


def test_squared_errors_are_the_mean_and_the_sum():
    errors = np.square(np.asarray(X) @ np.asarray(W) - np.asarray(Y))
    mean, mean_metrics = mean_squared_error(linear)(W, (X, Y))
    total, total_metrics = sum_squared_error(linear)(W, (X, Y))
    np.testing.assert_allclose([mean, mean_metrics["mse"], total_metrics["mse"]], errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(total, errors.sum(), rtol=1e-5)


def test_squared_error_has_the_hessian_of_least_squares():
    hessian = jax.jit(jax.hessian(lambda w: sum_squared_error(lambda w, x: x @ w)(w, (X, Y[:, 0]))[0]))(W[:, 0])
    np.testing.assert_allclose(hessian, 2 * X.T @ X, rtol=1e-5, atol=1e-5)


def test_cross_entropy_equals_its_formula():
    logits = np.asarray(X, np.float64) @ np.asarray(W, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss, metrics = cross_entropy(linear)(W, (X, LABELS))
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(6), LABELS]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(axis=1) == LABELS).mean())
    assert sorted(metrics) == ["accuracy", "loss"]


def test_cross_entropy_of_sequences_is_the_mean_over_tokens():
    """Logits [B, T, V] and labels [B, T]: next-token prediction."""
    logits = np.random.default_rng(3).normal(size=(2, 4, 3))
    labels = np.array([[0, 2, 1, 1], [2, 0, 0, 1]])
    terms = [np.log(np.exp(logits[b, t]).sum()) - logits[b, t, labels[b, t]] for b, t in np.ndindex(*labels.shape)]
    loss, metrics = cross_entropy(lambda params, x: params)(jnp.asarray(logits, jnp.float32), (X, labels))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(axis=-1) == labels).mean())


def test_cross_entropy_has_the_hessian_of_softmax():
    def loss(logits):
        return cross_entropy(lambda params, x: params)(logits, (X[:1], LABELS[:1]))[0]

    logits = jnp.array([[0.3, -1.2, 2.0]])
    p = jax.nn.softmax(logits[0])
    expected = jnp.diag(p) - jnp.outer(p, p)
    for hessian in jax.jit(lambda logits: (jax.hessian(loss)(logits), jax.jacrev(jax.jacrev(loss))(logits)))(logits):
        np.testing.assert_allclose(hessian[0, :, 0, :], expected, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_finite_for_extreme_logits():
    loss_fn = cross_entropy(lambda params, x: params * jnp.array([[1e4, -1e4]]))
    value, gradient = jax.jit(jax.value_and_grad(lambda w: loss_fn(w, (X[:1], jnp.array([1])))[0]))(1.0)
    np.testing.assert_allclose([value, gradient], [2e4, 2e4], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_labels_of_few_bits_among_many_classes(dtype):
    logits, labels = (
        jnp.asarray(np.random.default_rng(0).normal(size=(3, 300)), jnp.float32),
        np.array([0, 5, 127], dtype),
    )
    loss, metrics = jax.jit(lambda labels: cross_entropy(lambda params, x: logits)(W, (X, labels)))(labels)
    expected = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[np.arange(3), labels.astype(int)])
    np.testing.assert_allclose([loss, metrics["loss"]], [expected] * 2, rtol=1e-6)
    np.testing.assert_array_equal(one_hot(labels, 300), np.eye(300)[labels])


WRONG_LABELS = pytest.mark.parametrize("wrong", [-1, -2, 2, 300])


@WRONG_LABELS
def test_a_label_outside_the_range_is_named_where_it_is_known(wrong):
    for labels in (LABELS.at[3].set(wrong), np.asarray(LABELS.at[3].set(wrong))):
        with pytest.raises(
            ValueError, match=rf"labels y must be class numbers from 0 to 1, .* 2 outputs, got .*{wrong}"
        ):
            cross_entropy(linear)(W, (X, labels))
        with pytest.raises(ValueError, match="labels must be class numbers from 0 to 1"):
            one_hot(labels, 2)
        with pytest.raises(ValueError, match="labels y must be class numbers"):  # closed over, it is known in a trace
            jax.eval_shape(lambda w, labels=labels: cross_entropy(linear)(w, (X, labels)), W)


@WRONG_LABELS
def test_a_label_outside_the_range_is_no_number_where_it_is_traced(wrong):
    """Nor is its gradient, or an inner loop would learn from the other examples and be judged."""
    labels = LABELS.at[3].set(wrong)
    (loss, metrics), grads = jax.jit(jax.value_and_grad(cross_entropy(linear), has_aux=True))(W, (X, labels))
    assert np.isnan(loss) and np.isnan(metrics["loss"]) and np.isnan(metrics["accuracy"]) and np.all(np.isnan(grads))
    rows = jax.jit(lambda labels: one_hot(labels, 2))(labels)
    np.testing.assert_array_equal(np.isnan(rows), np.arange(6)[:, None] == np.array([[3, 3]]))


def test_a_loss_that_is_no_number_has_no_accuracy():
    """The largest of NaNs is the first: accuracy would be the share of class 0."""
    _, metrics = cross_entropy(linear)(W * np.nan, (X, LABELS))
    assert np.isnan(metrics["accuracy"])


@pytest.mark.parametrize("make", [mean_squared_error, sum_squared_error])
@pytest.mark.parametrize(("prediction", "target"), [((6, 1), (6,)), ((6,), (6, 1)), ((6, 2), (6, 1)), ((6,), ())])
def test_squared_errors_refuse_to_broadcast(make, prediction, target):
    loss_fn = make(lambda params, x: jnp.zeros(prediction))
    with pytest.raises(ValueError, match="target y"):
        jax.eval_shape(loss_fn, W, (X, jnp.zeros(target)))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ((6, 2), jnp.zeros((6, 1), int)),
        ((6, 2), jnp.zeros((6, 2))),
        ((6, 2), jnp.zeros(6)),
        ((6, 2), jnp.zeros(5, int)),
        ((), jnp.zeros((), int)),
    ],
)
def test_cross_entropy_refuses_what_are_not_class_numbers(logits, labels):
    with pytest.raises(ValueError, match="labels y"):
        jax.eval_shape(cross_entropy(lambda params, x: jnp.zeros(logits)), W, (X, labels))


@pytest.mark.parametrize("make", [mean_squared_error, sum_squared_error, cross_entropy])
def test_losses_refuse_what_is_not_a_function_or_a_pair(make):
    with pytest.raises(ValueError, match="apply_fn"):
        make(W)
    with pytest.raises(ValueError, match="batch"):
        make(linear)(W, X)
