"""Brute force, written without jaxmeta: a Python loop under `jax.grad`, updates by hand, an explicit Hessian.

An update is a pair `start(params) -> slots` and `step(params, slots, grads, hyper, k) -> (params, slots)`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sgd(rate):
    def step(params, slots, grads, hyper, k):
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), slots

    return lambda params: None, step


def adam(rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Kingma and Ba's Adam, with `eps_root` inside the square root."""

    def step(params, slots, grads, hyper, k):
        m, v = slots
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

        def move(p, m, v):
            return p - rate * (m / (1 - b1 ** (k + 1))) / (jnp.sqrt(v / (1 - b2 ** (k + 1)) + eps_root) + eps)

        return jax.tree.map(move, params, m, v), (m, v)

    return lambda params: (jax.tree.map(jnp.zeros_like, params),) * 2, step


def momentum(rate, decay):
    def step(params, slots, grads, hyper, k):
        slots = jax.tree.map(lambda m, g: g + decay * m, slots, grads)
        return jax.tree.map(lambda p, m: p - rate * m, params, slots), slots

    return lambda params: jax.tree.map(jnp.zeros_like, params), step


def clipped_adamw(rate, max_norm, decay, eps_root):
    """Loshchilov and Hutter's AdamW on gradients whose norm is at most `max_norm`."""
    start, adam_step = adam(rate, eps_root=eps_root)

    def step(params, slots, grads, hyper, k):
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / norm), grads)
        after, slots = adam_step(params, slots, grads, hyper, k)
        return jax.tree.map(lambda a, p: a - rate * decay * p, after, params), slots

    return start, step


def lslr():
    """A rate for every leaf and step, in `hyper`; the last goes on."""

    def step(params, slots, grads, hyper, k):
        return jax.tree.map(lambda p, a, g: p - a[min(k, len(a) - 1)] * g, params, hyper, grads), slots

    return lambda params: None, step


def meta_sgd():
    """A rate for every parameter, in `hyper`."""

    def step(params, slots, grads, hyper, k):
        return jax.tree.map(lambda p, a, g: p - a * g, params, hyper, grads), slots

    return lambda params: None, step


def adapt(loss, update, params, hyper, batches, num_constant=0):
    """One step for each of the `batches`; the first `num_constant` gradients are constants."""
    start, step = update
    slots = start(params)
    for k, batch in enumerate(batches):
        grads = jax.grad(loss)(params, batch)
        if k < num_constant:
            grads = jax.lax.stop_gradient(grads)
        params, slots = step(params, slots, grads, hyper, k)
    return params


def meta_gradient(loss, update, params, hyper, batches, query, num_constant=0):
    """(query loss after adaptation, its gradient in `params`, its gradient in `hyper`) of one task."""

    def query_loss(params, hyper):
        return loss(adapt(loss, update, params, hyper, batches, num_constant), query)

    value, (params_grad, hyper_grad) = jax.value_and_grad(query_loss, (0, 1))(params, hyper)
    return value, params_grad, hyper_grad


def mean_meta_gradient(loss, update, params, hyper, tasks, num_constant=0):
    """The mean of `meta_gradient` over a list of (batches, query)."""
    of_task = jax.jit(lambda *args: meta_gradient(loss, update, *args, num_constant))  # tasks of a shape share it
    results = [of_task(params, hyper, *task) for task in tasks]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *results)


def multi_step_meta_gradient(loss, update, params, hyper, batches, query, weights):
    """`meta_gradient` of the weighted sum of the query losses after each step."""

    def query_loss(params, hyper):
        adapted = [adapt(loss, update, params, hyper, batches[: k + 1]) for k in range(len(batches))]
        return sum(w * loss(params, query) for w, params in zip(weights, adapted, strict=True))

    value, (params_grad, hyper_grad) = jax.value_and_grad(query_loss, (0, 1))(params, hyper)
    return value, params_grad, hyper_grad


def least_squares_meta_gradient(theta, rate, support, query):
    """(I − α∇²L)∇L'(θ − α∇L(θ)) for L = mean (Φθ − y)², with the Hessian written out; `support` is (Φ, y)."""
    (phi, y), (query_phi, query_y) = jax.tree.map(np.asarray, (support, query))
    gradient = 2 / len(y) * phi.T @ (phi @ theta - y)
    hessian = 2 / len(y) * phi.T @ phi
    adapted = theta - rate * gradient
    query_gradient = 2 / len(query_y) * query_phi.T @ (query_phi @ adapted - query_y)
    return (np.eye(len(theta)) - rate * hessian) @ query_gradient


def relative_error(actual, expected):
    """The largest difference of two pytrees of one structure, leaf by leaf, over the largest entry of `expected`."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    actual, expected = (jax.tree.leaves(jax.tree.map(np.asarray, tree)) for tree in (actual, expected))
    errors = []
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype, (a.shape, e.shape, a.dtype, e.dtype)
        errors.append(np.max(np.abs(a - e)) / max(np.max(np.abs(e)), np.finfo(float).tiny))
    return max(errors)


def assert_close(actual, expected, rtol=1e-10):
    """Equal in each leaf up to `rtol` of its largest entry; 1e-10 leaves float64 six digits for a different order of
    sums."""
    error = relative_error(actual, expected)
    assert error <= rtol, f"relative error {error:.1e} > {rtol:.0e}"
