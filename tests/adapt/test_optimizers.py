"""Inner optimizers against optax by hand, and which parameters adapt, by name, by function, by pytree, by partition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import assert_close

from jaxmeta import adapt
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

PARAMS = {"body": {"w": jnp.array([[0.5, -0.3]])}, "head": {"w": jnp.array([[0.7], [0.2]]), "b": jnp.array([0.1])}}
X = np.linspace(-1, 1, 5)[:, None]
BATCHES = jax.tree.map(np.asarray, (np.stack([X, X + 0.1, X - 0.2]), np.stack([np.sin(3 * X)] * 3)))
QUERY = (X / 2, np.cos(X))
STEPS = [(BATCHES[0][k], BATCHES[1][k]) for k in range(3)]


@pytest.fixture(scope="module")
def params(x64_module):
    return jax.tree.map(lambda p: p.astype(float), PARAMS)


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["body"]["w"])
    return jnp.mean((hidden @ params["head"]["w"] + params["head"]["b"][None] - y) ** 2), {}


def plain_loss(params, batch):
    return loss_fn(params, batch)[0]


def adapted(optimizer, meta_params):
    state, _ = adapt.unroll(optimizer, loss_fn, lambda source, params: source, meta_params, BATCHES)
    return optimizer.params(meta_params, state.fast)


def meta_gradient(optimizer, meta_params, strategy=None):
    def inner(meta_params, sources, task, **how):
        state, _ = adapt.unroll(optimizer, loss_fn, lambda source, params: source, meta_params, sources, **how)
        return adapt.Adapted(optimizer.params(meta_params, state.fast)), state

    gradient = (strategy or adapt.exact())(inner, lambda adapted, query: loss_fn(adapted.params, query))
    return jax.jit(gradient)(jax.random.key(0), meta_params, BATCHES, QUERY)[1]


@pytest.mark.parametrize(
    "transform",
    [
        optax.adam(0.1, eps_root=1e-8),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.linear_schedule(0.1, 0.01, 2), weight_decay=0.1)),
    ],
    ids=["adam", "clip, adamw, schedule"],
)
def test_from_optax_steps_as_optax_does(params, transform):
    expected, opt_state = params, transform.init(params)
    for batch in STEPS:
        updates, opt_state = transform.update(jax.grad(plain_loss)(expected, batch), opt_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(adapted(adapt.from_optax(transform), MetaParams(params)), expected)


def test_sgd_and_momentum_step_as_by_hand(params):
    for optimizer, update in [
        (adapt.sgd(0.1), reference.sgd(0.1)),
        (adapt.from_optax(optax.sgd(0.1, momentum=0.8)), reference.momentum(0.1, 0.8)),
    ]:
        assert_close(adapted(optimizer, MetaParams(params)), reference.adapt(plain_loss, update, params, (), STEPS))


def test_meta_sgd_starts_as_sgd_and_has_a_rate_for_every_parameter(params):
    optimizer = adapt.meta_sgd(0.1)
    hyper = optimizer.init(params)
    assert jax.tree.map(lambda r: (r.shape, r.dtype), hyper) == jax.tree.map(lambda p: (p.shape, p.dtype), params)
    assert_close(adapted(optimizer, MetaParams(params, hyper)), adapted(adapt.sgd(0.1), MetaParams(params)))
    rates = jax.tree.map(lambda r: r * jnp.linspace(-1, 2, r.size).reshape(r.shape), hyper)
    expected = reference.adapt(plain_loss, reference.meta_sgd(), params, rates, STEPS)
    assert_close(adapted(optimizer, MetaParams(params, rates)), expected)


HEAD = {
    "name": "head",
    "function": lambda path: path.startswith("head/"),
    "prefix": {"body": False, "head": True},
    "whole pytree": {"body": {"w": False}, "head": {"w": True, "b": True}},
}


@pytest.mark.parametrize("where", HEAD.values(), ids=HEAD)
@pytest.mark.parametrize("name", ["adam", "meta_sgd"])
def test_adapt_only_steps_the_chosen_and_keeps_the_others(params, name, where):
    within = {"adam": adapt.from_optax(optax.adam(0.1, eps_root=1e-8)), "meta_sgd": adapt.meta_sgd(0.1)}[name]
    optimizer = adapt.adapt_only(within, where)
    meta_params = MetaParams(params, optimizer.init(params))
    result = adapted(optimizer, meta_params)
    np.testing.assert_array_equal(result["body"]["w"], params["body"]["w"])

    def head_loss(head, batch):
        return plain_loss({"body": params["body"], "head": head}, batch)

    update = {"adam": reference.adam(0.1, eps_root=1e-8), "meta_sgd": reference.sgd(0.1)}[name]
    assert_close(result["head"], reference.adapt(head_loss, update, params["head"], (), STEPS))
    assert all(
        np.all(leaf != 0) for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, result["head"], params["head"]))
    )


def test_adapt_only_a_part_of_the_path_not_of_a_name(params):
    optimizer = adapt.adapt_only(adapt.sgd(0.1), "w")
    result = adapted(optimizer, MetaParams(params))
    np.testing.assert_array_equal(result["head"]["b"], params["head"]["b"])
    assert np.all(result["head"]["w"] != params["head"]["w"]) and np.all(result["body"]["w"] != params["body"]["w"])
    with pytest.raises(ValueError, match=r"where='hea' chooses no parameter; .* body/w, head/b, head/w"):
        adapt.adapt_only(adapt.sgd(0.1), "hea").start(MetaParams(params))


@pytest.mark.parametrize("strategy", ["exact", "mixed_mode"])
def test_what_does_not_adapt_is_meta_learned(params, strategy):
    """Its meta-gradient is that of brute force, through the inner gradients of the head as well as directly."""

    def query_loss(params):
        head = reference.adapt(
            lambda head, batch: plain_loss({"body": params["body"], "head": head}, batch),
            reference.sgd(0.1),
            params["head"],
            (),
            STEPS,
        )
        return plain_loss({"body": params["body"], "head": head}, QUERY)

    grads = meta_gradient(adapt.adapt_only(adapt.sgd(0.1), "head"), MetaParams(params), getattr(adapt, strategy)())
    assert_close(grads.params, jax.grad(query_loss)(params))
    assert np.all(grads.params["body"]["w"] != 0)


def test_anil_by_filter_equals_anil_by_partition(params):
    labels = {"body": "frozen", "head": "adapts"}
    partition = optax.partition({"adapts": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)
    by_filter, by_partition = adapt.adapt_only(adapt.sgd(0.1), "head"), adapt.from_optax(partition)
    assert_close(adapted(by_filter, MetaParams(params)), adapted(by_partition, MetaParams(params)))
    assert_close(meta_gradient(by_filter, MetaParams(params)), meta_gradient(by_partition, MetaParams(params)))


@pytest.mark.parametrize("where", [{"nobody": True}, {"body": True}, {"body": 1, "head": 0}, 3, None, [True, False]])
def test_adapt_only_refuses_what_does_not_fit_the_parameters(params, where):
    with pytest.raises(ValueError, match="where"):
        adapt.adapt_only(adapt.sgd(0.1), where).start(MetaParams(params))


def test_lslr_is_a_rate_for_every_leaf_and_step_and_goes_on_with_the_last(params):
    optimizer = adapt.lslr(0.1, num_inner_steps=2)
    hyper = optimizer.init(params)
    assert {leaf.shape for leaf in jax.tree.leaves(hyper)} == {(2,)}
    assert_close(adapted(optimizer, MetaParams(params, hyper)), adapted(adapt.sgd(0.1), MetaParams(params)))
    rates = jax.tree.map(lambda r: r * jnp.array([0.5, 3.0]), hyper)
    rates["head"]["b"] = jnp.array([-0.2, 0.4])
    expected = reference.adapt(plain_loss, reference.lslr(), params, rates, STEPS)
    assert_close(adapted(optimizer, MetaParams(params, rates)), expected)


@pytest.mark.parametrize("strategy", [adapt.exact(), adapt.mixed_mode()], ids=["exact", "mixed_mode"])
def test_per_step_parameters_have_the_value_of_their_step_and_do_not_adapt(params, strategy):
    """Against a loop by hand, in which the body is another at each of three steps and at the end."""
    optimizer = adapt.per_step(adapt.sgd(0.1), "body", num_inner_steps=3)
    hyper = optimizer.init(params)
    assert_close(hyper.values["body"]["w"], np.stack([params["body"]["w"]] * 4))
    values = jnp.stack([params["body"]["w"] * (1 + 0.3 * k) for k in range(4)])
    meta_params = MetaParams(params, hyper._replace(values={**hyper.values, "body": {"w": values}}))

    def query_loss(values, head):
        for k, batch in enumerate(STEPS):
            grads = jax.grad(lambda head, k=k, batch=batch: plain_loss({"body": {"w": values[k]}, "head": head}, batch))
            head = jax.tree.map(lambda p, g: p - 0.1 * g, head, grads(head))
        return plain_loss({"body": {"w": values[3]}, "head": head}, QUERY)

    expected_values, expected_head = jax.grad(query_loss, (0, 1))(values, params["head"])
    grads = meta_gradient(optimizer, meta_params, strategy)
    assert_close(grads.hyper.values["body"]["w"], expected_values)
    assert_close(grads.params["head"], expected_head)
    assert not np.any(grads.params["body"]["w"])


def test_after_its_steps_per_step_stays_at_the_last_value(params):
    optimizer = adapt.per_step(adapt.sgd(0.1), "body", num_inner_steps=1)
    hyper = optimizer.init(params)
    values = jnp.stack([params["body"]["w"], 2 * params["body"]["w"]])
    meta_params = MetaParams(params, hyper._replace(values={**hyper.values, "body": {"w": values}}))
    assert_close(adapted(optimizer, meta_params)["body"]["w"], 2 * params["body"]["w"])


def test_proximal_descends_the_loss_with_its_penalty(params):
    optimizer = adapt.proximal(adapt.from_optax(optax.sgd(0.1, momentum=0.8)), 2.0)

    def penalised(moved, batch):
        squares = jax.tree.map(lambda p, p_0: jnp.sum((p - p_0) ** 2), moved, params)
        return plain_loss(moved, batch) + sum(jax.tree.leaves(squares))

    expected = reference.adapt(penalised, reference.momentum(0.1, 0.8), params, (), STEPS)
    assert_close(adapted(optimizer, MetaParams(params)), expected)
    assert np.max(np.abs(expected["head"]["w"] - adapted(adapt.sgd(0.1), MetaParams(params))["head"]["w"])) > 1e-3
