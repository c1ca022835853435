"""Tracked batch norm against moving averages by hand, in whole meta-training; flax's norms in every mode we need."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import assert_close

from jaxmeta import MetaParams, Task, adapt, maml
from jaxmeta.nn.layers import BatchNorm, ConvBatchNorm
from jaxmeta.nn.losses import mean_squared_error
from jaxmeta.nn.norms import TrackedBatchNorm, TrackedConvBatchNorm, collect_statistics, track_statistics

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

N, K, B = 3, 2, 5
INNER_RATE, OUTER_RATE, RATE = 0.1, 0.05, 0.3


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Network(nn.Module):
    """Two layers with tracked batch norm, or with batch norm where `mode` is "batch"."""

    mode: str

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            norm = BatchNorm(name=f"norm{i}") if self.mode == "batch" else TrackedBatchNorm(self.mode, name=f"norm{i}")
            x = jnp.tanh(norm(nn.Dense(4, use_bias=False, name=f"dense{i}")(x)))
        return nn.Dense(1, name="head")(x)


def forward(params, x, stored=None):
    """(prediction, [(mean, var) of each norm]) by hand, normalised with `stored` or with the batch."""
    params, observed = params["params"], []
    for i in range(2):
        x = x @ params[f"dense{i}"]["kernel"]
        observed.append((x.mean(0), x.var(0)))
        mean, var = observed[-1] if stored is None else stored[i]
        x = (x - mean[None]) / jnp.sqrt(var + 1e-5)[None]
        x = jnp.tanh(x * params[f"norm{i}"]["scale"][None] + params[f"norm{i}"]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], observed


def plain_loss(params, batch):
    return jnp.mean((forward(params, batch[0])[0] - batch[1]) ** 2)


def random_params(network, x):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def without_statistics(params):
    return {
        "params": {
            name: {key: leaf for key, leaf in layer.items() if key != "statistics"}
            for name, layer in params["params"].items()
        }
    }


def statistics_of(params):
    return [(layer["mean"], layer["var"]) for layer in (params["params"][f"norm{i}"]["statistics"] for i in range(2))]


def init_fn(key):
    return random_params(Network("collect"), jnp.zeros((B, 2)))


def make_tasks(seed=0):
    batch = lambda i: (0.5 + 2 * normal(10 * seed + i, N, B, 2), normal(10 * seed + i + 1, N, B, 1))
    return Task(batch(0), batch(2))


def learner(loss_fn, **arguments):
    return maml(
        arguments.pop("init_fn", init_fn),
        loss_fn,
        inner_optimizer=adapt.adapt_only(adapt.sgd(INNER_RATE), lambda path: "statistics" not in path),
        num_inner_steps=K,
        **arguments,
    )


def test_outer_steps_of_maml_are_the_moving_average_of_what_the_adapted_networks_observe():
    """Brute force: the inner loop, the meta-gradient and the average by hand, for three outer steps."""
    optimizer = track_statistics(optax.sgd(OUTER_RATE), rate=RATE)
    method = learner(collect_statistics(mean_squared_error, Network("collect").apply), optimizer=optimizer)
    state = method.init(jax.random.key(0))
    update = jax.jit(method.update)

    @jax.jit
    def by_hand(params, statistics, tasks):
        separate = [jax.tree.map(lambda leaf, i=i: leaf[i], tasks) for i in range(N)]
        sgd, pairs = reference.sgd(INNER_RATE), [([task.support] * K, task.query) for task in separate]
        _, grads, _ = reference.mean_meta_gradient(plain_loss, sgd, params, (), pairs)
        observed = []
        for batches, (x, _) in pairs:
            adapted = reference.adapt(plain_loss, sgd, params, (), batches)
            observed.append(forward(adapted, x)[1])
        mean = jax.tree.map(lambda *leaves: sum(leaves) / N, *observed)
        moved = jax.tree.map(lambda old, new: (1 - RATE) * old + RATE * new, statistics, mean)
        return jax.tree.map(lambda p, g: p - OUTER_RATE * g, params, grads), moved

    params, statistics = without_statistics(state.meta_params.params), statistics_of(state.meta_params.params)
    for step in range(3):
        tasks = make_tasks(step)
        state, _ = update(jax.random.key(step), state, tasks)
        params, statistics = by_hand(params, statistics, tasks)
        assert_close(statistics_of(state.meta_params.params), statistics, rtol=1e-12)
        assert_close(without_statistics(state.meta_params.params), params, rtol=1e-12)


@pytest.mark.parametrize("strategy", [adapt.exact(), adapt.mixed_mode(), adapt.first_order(), adapt.truncated(1)])
def test_collecting_changes_neither_the_loss_nor_the_other_gradients(strategy):
    """With `optax.sgd(1)` outside, the difference of the parameters is the gradient."""
    tasks, how = make_tasks(), {"optimizer": optax.sgd(1.0), "meta_gradient": strategy}
    collecting = learner(collect_statistics(mean_squared_error, Network("collect").apply), **how)
    plain = learner(
        mean_squared_error(Network("batch").apply), init_fn=lambda key: without_statistics(init_fn(key)), **how
    )

    def step(method):
        before = method.init(jax.random.key(0))
        after, metrics = jax.jit(method.update)(jax.random.key(1), before, tasks)
        grads = jax.tree.map(jnp.subtract, before.meta_params.params, after.meta_params.params)
        return without_statistics(grads), {name: metrics[name] for name in ("loss", "mse")}

    assert_close(step(collecting), step(plain), rtol=1e-12)


def test_the_inner_loop_leaves_the_statistics_alone():
    method = learner(collect_statistics(mean_squared_error, Network("collect").apply))
    state = method.init(jax.random.key(0))
    task = jax.tree.map(lambda leaf: leaf[0], make_tasks())
    adapted = jax.jit(method.adapt)(jax.random.key(1), state.meta_params, task)
    jax.tree.map(np.testing.assert_array_equal, statistics_of(adapted), statistics_of(state.meta_params.params))
    assert not np.allclose(adapted["params"]["norm0"]["scale"], state.meta_params.params["params"]["norm0"]["scale"])


def test_collecting_normalises_with_the_batch_and_running_with_what_was_stored():
    params, x = init_fn(None), normal(50, B, 2)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.abs(p) if jax.tree_util.keystr(path[-1:], simple=True) == "var" else p, params
    )
    collecting, _ = Network("collect").apply(params, x, mutable="pull")
    running = Network("running").apply(params, x)
    assert_close(collecting, forward(params, x)[0])
    assert_close(running, forward(params, x, statistics_of(params))[0])
    assert_close(running[:1], Network("running").apply(params, x[:1]))


def test_running_statistics_are_constants_to_the_loss():
    params, x = Network("running").init(jax.random.key(0), jnp.zeros((B, 2))), normal(50, B, 2)
    grads = jax.grad(lambda params: jnp.sum(Network("running").apply(params, x) ** 2))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(statistics_of(grads)))
    assert np.any(grads["params"]["norm0"]["scale"])


@pytest.mark.parametrize("calls", ["of the network", "of the layer"])
def test_several_applications_are_observed_by_their_mean(calls):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = TrackedBatchNorm("collect")
            return layer(x) if calls == "of the network" else layer(x[:2]) + layer(x[2:])

    def loss(apply_fn):
        halves = lambda params, x: apply_fn(params, x[:2]) + apply_fn(params, x[2:])
        return mean_squared_error(halves if calls == "of the network" else apply_fn)

    x, y = normal(0, 4, 3), normal(1, 2, 3)
    params = {"params": {"TrackedBatchNorm_0": random_params(TrackedBatchNorm("collect"), x)["params"]}}
    grads = jax.grad(lambda params: collect_statistics(loss, Twice().apply)(params, (x, y))[0])(params)
    stored, gradient = (tree["params"]["TrackedBatchNorm_0"]["statistics"] for tree in (params, grads))
    observed = {"mean": (x[:2].mean(0) + x[2:].mean(0)) / 2, "var": (x[:2].var(0) + x[2:].var(0)) / 2}
    assert_close(gradient, jax.tree.map(jnp.subtract, stored, observed), rtol=1e-12)


@pytest.mark.parametrize(("channels", "filters"), [(1, 12), (3, 4)])
def test_tracked_conv_batch_norm_is_conv_batch_norm_with_statistics(channels, filters):
    arguments = {"features": filters, "kernel_size": (3, 3), "strides": 2, "padding": "VALID", "epsilon": 1e-3}
    x = normal(0, 2, 7, 6, channels)
    layer = TrackedConvBatchNorm(mode="collect", **arguments)
    params = random_params(layer, x)
    others = {"params": {key: leaf for key, leaf in params["params"].items() if key != "statistics"}}
    plain = ConvBatchNorm(**arguments)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), x)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(jnp.shape, others)
    assert_close(layer.apply(params, x, mutable="pull")[0], plain.apply(others, x))


def test_learned_rates_of_statistics_are_left_to_the_users_optimizer():
    optimizer = track_statistics(optax.sgd(1.0), rate=0.1)
    meta_params = MetaParams(*({"w": jnp.ones(1), "statistics": {"mean": jnp.ones(1)}} for _ in range(2)))
    updates, _ = optimizer.update(meta_params, optimizer.init(meta_params), meta_params)
    moves = {"w": -1.0, "statistics": {"mean": -0.1}}, {"w": -1.0, "statistics": {"mean": -1.0}}
    assert_close(updates, MetaParams(*jax.tree.map(lambda move: jnp.array([move]), moves)))


def test_adam_and_clipping_see_nothing_of_the_statistics():
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    params, grads = {"w": normal(0, 3)}, {"w": normal(1, 3)}
    tracked = {"w": params["w"], "statistics": jnp.ones(2)}, {"w": grads["w"], "statistics": 1e6 * jnp.ones(2)}
    optimizer = track_statistics(clipped)
    expected, _ = clipped.update(grads, clipped.init(params), params)
    updates, _ = optimizer.update(tracked[1], optimizer.init(tracked[0]), tracked[0])
    assert_close(updates["w"], expected["w"])


def test_wrong_uses_are_refused():
    x, key = jnp.ones((2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="mode must be one of collect, running"):
        TrackedBatchNorm("batch").init(key, x)
    with pytest.raises(ValueError, match="x must be"):
        TrackedBatchNorm("running").init(key, x[0])
    collecting = TrackedBatchNorm("collect")
    params = collecting.init(key, x)
    assert list(params) == ["params"]
    with pytest.raises(ValueError, match="mode='collect' gives its statistics to a loss"):
        collecting.apply(params, x)
    with pytest.raises(ValueError, match="collected nothing"):
        collect_statistics(mean_squared_error, TrackedBatchNorm("running").apply)(params, (x, x))
    with pytest.raises(ValueError, match="loss must call its apply_fn"):
        collect_statistics(lambda apply_fn: lambda params, batch: (0.0, {}), collecting.apply)(params, (x, x))
    with pytest.raises(ValueError, match="track_statistics found no parameter"):
        track_statistics(optax.sgd(0.1)).init({"w": x})


def by_definition(x, scale, bias, groups, over):
    """(x - mean) / sqrt(var + 1e-6) for [B, T, C] with C in `groups`, mean and var over the axes `over` of
    [B, T, groups, C / groups]."""
    batch, length, channels = x.shape
    x = x.reshape(batch, length, groups, channels // groups)
    x = (x - x.mean(over, keepdims=True)) / jnp.sqrt(x.var(over, keepdims=True) + 1e-6)
    return x.reshape(batch, length, channels) * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("layer", "groups", "over"),
    [
        (nn.LayerNorm(use_fast_variance=False), 1, (2, 3)),
        (nn.GroupNorm(num_groups=2, use_fast_variance=False), 2, (1, 3)),
    ],
    ids=["layer", "group"],
)
def test_flaxs_norms_are_exact_to_second_order_with_parameters_that_differ_per_task(layer, groups, over):
    """Why there are none of ours: value, gradient, forward over reverse and reverse over reverse, under `vmap`."""
    x, scale, bias = 100 + normal(0, N, 2, 5, 6), normal(1, N, 6), normal(2, N, 6)
    flax = lambda x, scale, bias: layer.apply({"params": {"scale": scale, "bias": bias}}, x)
    ours = lambda x, scale, bias: by_definition(x, scale, bias, groups, over)

    def derivatives(function):
        scalar = lambda *arguments: jnp.sum(jnp.sin(function(*arguments)))

        def of_one(arguments, direction):
            gradient = lambda arguments: jax.grad(scalar, (0, 1, 2))(*arguments)
            first, forward_over_reverse = jax.jvp(gradient, (arguments,), (direction,))
            return scalar(*arguments), first, forward_over_reverse, jax.vjp(gradient, arguments)[1](direction)

        direction = tuple(normal(5 + i, *leaf.shape) for i, leaf in enumerate((x, scale, bias)))
        return jax.jit(jax.vmap(of_one))((x, scale, bias), direction)

    # 1e-9: a mean of 100 costs float64 a few digits
    assert_close(derivatives(flax), derivatives(ours), rtol=1e-9)


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm, lambda **how: nn.GroupNorm(num_groups=2, **how)], ids=["layer", "group"]
)
def test_flaxs_fast_variance_costs_the_digits_that_norms_py_says(layer):
    """In float32 with features 1e4 + noise: one unit in the last place of 1e4 is 1e-3, and of its square 8."""
    x = (1e4 + normal(0, 2, 5, 6)).astype(jnp.float32)
    params = layer().init(jax.random.key(0), x)
    exact = layer(dtype=jnp.float64).apply(params, x.astype(jnp.float64))
    error = lambda fast: np.abs(layer(use_fast_variance=fast).apply(params, x) - exact).max()
    assert error(False) < 1e-2 and error(True) > 0.1
