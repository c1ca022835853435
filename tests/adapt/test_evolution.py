"""Evolution strategies against exact gradients: within four standard errors, and exactly where the loss is linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close

from jaxmeta import adapt
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

NUM_STEPS = 6
OPTIMIZER = adapt.lslr(0.1, num_inner_steps=1)
CENTRES = np.random.default_rng(0).normal(size=(NUM_STEPS, 3))
META_PARAMS = {"phi": np.array([0.5, -1.0, 2.0])}, {"phi": np.array([0.05])}


def inner(meta_params, sources, task, **how):
    loss_fn = lambda params, centre: (jnp.sum((params["phi"] - centre) ** 2), {})
    draw = lambda k, params: jnp.asarray(CENTRES)[k]
    state, _ = adapt.unroll(OPTIMIZER, loss_fn, draw, meta_params, sources, **how)
    return adapt.Adapted(state.fast), state


def outer(adapted, task):
    loss = jnp.sum(adapted.params["phi"] * task)
    return loss, {"twice": 2 * loss}


def make_meta_params():
    return MetaParams(*jax.tree.map(jnp.asarray, META_PARAMS))


TASK = np.array([1.0, -2.0, 0.5])
SOURCES = np.arange(NUM_STEPS)


def exact_mean_over_truncations(num_truncations):
    """The mean of the outer losses after each truncation, and its gradient, by brute force."""

    def loss(meta_params):
        ends = np.split(SOURCES, num_truncations)
        losses = [outer(inner(meta_params, jnp.arange(end[-1] + 1), TASK)[0], TASK)[0] for end in ends]
        return sum(losses) / num_truncations

    return jax.value_and_grad(loss)(make_meta_params())


@pytest.mark.parametrize("num_truncations", [1, 3])
def test_the_mean_of_many_estimates_is_within_four_standard_errors(num_truncations):
    """The loss is linear in θ and of degree 6 in the rate; with σ = 0.001 smoothing moves its gradient by far less than
    the standard error."""
    if num_truncations == 1:
        strategy = adapt.evolution_strategy(num_pairs=16, std=1e-3)
    else:
        strategy = adapt.persistent_evolution_strategy(num_truncations=num_truncations, num_pairs=16, std=1e-3)
    gradient = strategy(inner, outer)
    estimate = lambda key: gradient(key, make_meta_params(), jnp.asarray(SOURCES), jnp.asarray(TASK))
    (losses, metrics), grads = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000))
    loss, expected = exact_mean_over_truncations(num_truncations)
    assert_close((losses[0], metrics["twice"][0]), (loss, 2 * loss))
    for samples, value in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        error = samples.std(axis=0) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(axis=0) - value) < 4 * error)
        assert np.all(error < 0.2 * np.max(np.abs(value)))  # else the test could not fail


def test_credit_goes_to_earlier_perturbations_only():
    """The control: with one perturbation for each truncation and no sum over the earlier ones, the initialisation
    would get the first truncation's share alone, a third of its gradient here."""
    first = exact_mean_over_truncations(3)[1].params["phi"]
    loss_of_first = lambda meta_params: outer(inner(meta_params, jnp.arange(2), TASK)[0], TASK)[0] / 3
    alone = jax.grad(loss_of_first)(make_meta_params()).params["phi"]
    assert np.max(np.abs(first - alone)) > 0.1 * np.max(np.abs(first))


def test_one_pair_on_a_linear_loss_is_the_projection():
    """L = a·θ at a rate of 0: the estimate is ε (ε·a), so its length is |ε|² times the cosine, and it is along ε."""
    meta_params = MetaParams({"phi": jnp.asarray(META_PARAMS[0]["phi"])}, {"phi": jnp.zeros(1)})
    frozen = lambda meta_params, *args, **how: inner(meta_params._replace(hyper={"phi": jnp.zeros(1)}), *args, **how)
    gradient = adapt.evolution_strategy(num_pairs=1, std=0.5)(frozen, outer)
    _, grads = gradient(jax.random.key(3), meta_params, jnp.asarray(SOURCES), jnp.asarray(TASK))
    direction = grads.params["phi"] / jnp.linalg.norm(grads.params["phi"])
    noise = direction * jnp.sqrt(jnp.linalg.norm(grads.params["phi"]) / jnp.abs(direction @ TASK))
    assert_close(noise * (noise @ TASK), grads.params["phi"])


def test_its_memory_does_not_depend_on_the_number_of_steps():
    gradient = adapt.evolution_strategy(num_pairs=2)(inner, outer)

    def memory(num_steps):
        lowered = jax.jit(gradient).lower(
            jax.random.key(0), make_meta_params(), jnp.arange(num_steps) % NUM_STEPS, jnp.asarray(TASK)
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(500) < 1.05 * memory(5) + 4000  # bytes: the sources


def test_truncations_that_do_not_divide_the_steps_are_refused():
    gradient = adapt.persistent_evolution_strategy(num_truncations=4)(inner, outer)
    with pytest.raises(ValueError, match="num_truncations must divide the 6 inner steps, got 4"):
        gradient(jax.random.key(0), make_meta_params(), jnp.asarray(SOURCES), jnp.asarray(TASK))
