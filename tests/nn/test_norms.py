"""Batch norm by the support set's statistics against hand-written loops; flax's norms in every mode we need, and its
state, which is no parameter."""

import textwrap

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from reference import assert_close

from jaxmeta import Task, adapt, maml, protonet, ridge
from jaxmeta.nn import Conv4, ResNet12, norms
from jaxmeta.nn.convolution import conv
from jaxmeta.nn.losses import mean_squared_error
from jaxmeta.nn.norms import BatchNorm, ConvBatchNorm, support_statistics

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

N, K, B = 3, 2, 5
RATE = 0.1


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Network(nn.Module):
    """A layer with batch norm, and a head."""

    num_outputs: int = 1

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(BatchNorm(name="norm")(nn.Dense(4, use_bias=False, name="body")(x)))
        return nn.Dense(self.num_outputs, name="head")(x)


NETWORK = Network()
CONDITION = support_statistics(NETWORK.apply)


def forward(params, x, stored=None):
    """(prediction, (mean, var)) by hand, normalised with `stored` or with the batch."""
    params = params["params"]
    x = x @ params["body"]["kernel"]
    mean, var = observed = (x.mean(0), x.var(0)) if stored is None else stored
    x = (x - mean[None]) / jnp.sqrt(var + 1e-5)[None]
    x = jnp.tanh(x * params["norm"]["scale"][None] + params["norm"]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], observed


def plain_loss(params, batch):
    return jnp.mean((forward(params, batch[0])[0] - batch[1]) ** 2)


def conditioned_loss(params, task):
    """The query loss by the statistics that the support set has with these parameters."""
    observed = forward(params, task.support[0])[1]
    return jnp.mean((forward(params, task.query[0], observed)[0] - task.query[1]) ** 2)


def adapted_by_hand(params, task, num_steps=K):
    return reference.adapt(plain_loss, reference.sgd(RATE), params, (), [task.support] * num_steps)


def random_params(network, x):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def init_fn(key):
    return random_params(NETWORK, jnp.zeros((B, 2)))


def make_tasks():
    batch = lambda i: (3 + 2 * normal(i, N, B, 2), normal(i + 1, N, B, 1))
    return Task(batch(0), batch(2))


def one():
    return jax.tree.map(lambda leaf: leaf[0], make_tasks())


def learner(loss=mean_squared_error, **arguments):
    return maml(
        init_fn,
        loss(NETWORK.apply),
        inner_optimizer=adapt.sgd(RATE),
        num_inner_steps=K,
        condition_fn=CONDITION,
        **{"optimizer": optax.sgd(1.0), **arguments},  # the difference of the parameters is the gradient
    )


def mean_over_tasks(loss):
    """(mean of loss(params, task), its gradient)."""
    mean = lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, make_tasks()))
    return jax.jit(jax.value_and_grad(mean))(init_fn(None))


def gradient_and_loss(method):
    before = method.init(jax.random.key(0))
    after, metrics = jax.jit(method.update)(jax.random.key(1), before, make_tasks())
    return jax.tree.map(jnp.subtract, before.meta_params.params, after.meta_params.params), metrics["loss"]


def test_the_meta_gradient_goes_through_the_statistics():
    """Against the inner loop, the statistics and the query loss by hand."""
    loss, gradient = mean_over_tasks(lambda params, task: conditioned_loss(adapted_by_hand(params, task), task))
    assert_close(gradient_and_loss(learner(meta_gradient=adapt.mixed_mode())), (gradient, loss), rtol=1e-10)


def test_the_loss_after_each_step_is_by_the_statistics_after_each_step():
    weights = jnp.array([0.3, 0.7])

    def by_hand(params, task):
        return sum(weights[k] * conditioned_loss(adapted_by_hand(params, task, k + 1), task) for k in range(K))

    loss, gradient = mean_over_tasks(by_hand)
    method = learner(loss_weights=lambda step: weights)
    assert_close(gradient_and_loss(method), (gradient, loss), rtol=1e-10)


@pytest.mark.parametrize(
    "strategy",
    [
        adapt.evolution_strategy(num_pairs=1),
        adapt.forward_mode(lambda path: path.endswith("head/bias")),
    ],
    ids=["evolution_strategy", "forward_mode"],
)
def test_strategies_without_a_derivative_judge_by_the_same_statistics(strategy):
    """What is learned stays what it was, and the loss is that by hand: statistics are no parameters."""
    method = learner(meta_gradient=strategy)
    state = method.init(jax.random.key(0))
    after, metrics = jax.jit(method.update)(jax.random.key(1), state, jax.tree.map(lambda leaf: leaf[:1], make_tasks()))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["is_finite"]
    assert_close(metrics["loss"], conditioned_loss(adapted_by_hand(init_fn(None), one()), one()), rtol=1e-10)


def test_adapt_returns_the_support_sets_statistics_and_evaluate_judges_by_them():
    method, task = learner(num_eval_steps=K + 1), one()
    arguments = jax.random.key(1), method.init(jax.random.key(0)).meta_params, task
    adapted, curve = jax.jit(lambda: (method.adapt(*arguments), method.evaluate(*arguments)))()
    steps = [adapted_by_hand(init_fn(None), task, k) for k in range(K + 2)]
    assert_close({"params": adapted["params"]}, steps[-1], rtol=1e-10)
    mean, var = forward(steps[-1], task.support[0])[1]
    assert_close(adapted["statistics"], {"norm": {"mean": mean, "var": var}}, rtol=1e-10)
    assert_close(curve["mse"], jnp.stack([conditioned_loss(step, task) for step in steps]), rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(NETWORK, (2,)), (Conv4(5, 4), (16, 16)), (ResNet12(2, (3,)), (4, 4))],
    ids=["dense", "conv4", "resnet12"],
)
def test_one_input_at_a_time_is_predicted_as_in_a_batch(network, shape):
    """To the last digits; without the statistics it is not."""
    support, query = 1 + normal(0, 5, *shape), normal(1, 3, *shape)
    params = random_params(network, support)

    @jax.jit
    def program(params):
        conditioned = support_statistics(network.apply)(params, (support, None))
        singly = [jax.lax.map(lambda x, p=p: network.apply(p, x[None])[0], query) for p in (conditioned, params)]
        together = [network.apply(p, query) for p in (conditioned, params)]
        return singly, together, [network.apply(p, support) for p in (conditioned, params)]

    singly, together, of_the_support_set = program(params)
    assert_close(singly[0], together[0], rtol=1e-12)
    assert not np.allclose(singly[1], together[1], rtol=1e-2)
    assert_close(*of_the_support_set, rtol=1e-9)  # there they are the batch's own


@pytest.mark.parametrize(("channels", "filters"), [(1, 12), (3, 4)])
def test_conv_batch_norm_stores_the_moments_of_its_convolution(channels, filters):
    arguments = {"strides": 2, "padding": "VALID"}
    layer = ConvBatchNorm(filters, (3, 3), epsilon=1e-3, **arguments)
    x, other = normal(0, 2, 7, 6, channels), normal(1, 1, 7, 6, channels)
    params = random_params(layer, x)
    conditioned = support_statistics(layer.apply)(params, x)
    kernel, scale, bias = (params["params"][name] for name in ("kernel", "scale", "bias"))
    y, z = (conv(images, kernel, **arguments) for images in (x, other))
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    assert_close(conditioned["statistics"], {"mean": mean, "var": var}, rtol=1e-10)
    over = lambda vector: vector[None, None, None]
    expected = over(scale) * (z - over(mean)) / jnp.sqrt(over(var) + 1e-3) + over(bias)
    assert_close(layer.apply(conditioned, other), expected, rtol=1e-10)


@pytest.mark.parametrize("method", [protonet, ridge])
def test_heads_in_closed_form_embed_by_the_support_sets_statistics(method):
    """The gradient is that of a loss by hand whose embedding is normalised by the shots."""
    network = Network(num_outputs=3)
    support, query = ((normal(i, 4, 2) + 3, jnp.array([0, 1, 0, 1])) for i in (0, 1))
    make = lambda embed_fn, condition_fn: method(
        lambda key: random_params(network, support[0]),
        embed_fn,
        num_ways=2,
        condition_fn=condition_fn,
        optimizer=optax.sgd(1.0),
    )
    learner = make(network.apply, support_statistics(network.apply))

    def embed_by_hand(params_and_shots, x):
        params, shots = params_and_shots
        return forward(params, x, forward(params, shots)[1])[0]

    by_hand = make(embed_by_hand, lambda params, support: (params, support[0]))

    @jax.jit
    def step(state):
        tasks = jax.tree.map(lambda leaf: leaf[None], Task(support, query))
        both = [method.update(jax.random.key(1), state, tasks)[0].meta_params for method in (learner, by_hand)]
        return both, learner.adapt(jax.random.key(1), state.meta_params, Task(support))

    (ours, expected), (params, head) = step(learner.init(jax.random.key(0)))
    assert_close(ours, expected, rtol=1e-9)
    predict = lambda x: head(network.apply(params, x))
    assert_close(predict(query[0])[:1], predict(query[0][:1]), rtol=1e-12)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = BatchNorm(name="norm")
        return layer(layer(x))


def test_wrong_uses_are_refused():
    x, key = jnp.ones((2, 3)), jax.random.key(0)
    params = Twice().init(key, x)
    Twice().apply(params, x)
    with pytest.raises(ValueError, match="norm is applied several times"):
        support_statistics(Twice().apply)(params, x)
    with pytest.raises(ValueError, match="x must be .* at least one axis of examples"):
        support_statistics(BatchNorm().apply)(BatchNorm().init(key, x), x[0])
    with pytest.raises(ValueError, match="apply_fn must be of a network with"):
        support_statistics(nn.Dense(1).apply)(nn.Dense(1).init(key, x), x)
    with pytest.raises(ValueError, match="params must be flax variables"):
        CONDITION([x], x)
    with pytest.raises(ValueError, match="apply_fn must take mutable"):
        support_statistics(lambda params, x: NETWORK.apply(params, x))


class Norms(nn.Module):
    """Flax's batch norm, and two other collections."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)(x)
        self.sow("intermediates", "x", x)
        self.variable("of its own", "mean", jnp.zeros, (3,), jnp.float32)
        return nn.Dense(1)(x)


class NNX(nnx.Module):
    """With batch norm and dropout, whose keys are of the stream "dropout"."""

    def __init__(self, rngs):
        self.body, self.head = (nnx.Linear(*size, rngs=rngs) for size in ((2, 3), (3, 1)))
        self.norm, self.dropout = nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(self.body(x))))


def make_nnx(key):
    return NNX(nnx.Rngs(params=key, dropout=0))


def variables_with(*collections):
    variables = Norms().init(jax.random.key(0), jnp.ones((2, 3), jnp.float32), mutable=True)
    return {name: variables[name] for name in ("params", *collections)}


def eqx_norm(constructor):
    return eqx.filter(constructor(3, axis_name="batch", mode="batch"), eqx.is_inexact_array)


STATES = {
    "running statistics": (lambda: variables_with("batch_stats"), "batch_stats"),
    "frozen": (lambda: flax.core.freeze(variables_with("batch_stats")), "batch_stats"),
    "of a part": (lambda: {"encoder": variables_with("batch_stats")}, "encoder/batch_stats"),
    "without parameters": (lambda: {"net": {"batch_stats": {"mean": jnp.ones(3)}}}, "net/batch_stats"),
    "what is sown": (lambda: variables_with("intermediates"), "intermediates"),
    "a collection of one's own": (lambda: variables_with("of its own"), "of its own"),
    "nnx": (lambda: nnx.state(make_nnx(jax.random.key(0)), (nnx.Param, nnx.BatchStat)), "norm/mean/BatchStat"),
    "nnx, a module": (lambda: make_nnx(jax.random.key(0)), "dropout/rngs/count/RngCount"),
    "equinox": (lambda: eqx_norm(eqx.nn.BatchNorm), "batch_state_index/StateIndex"),
    "equinox, beside": (lambda: eqx_norm(eqx.nn.make_with_state(eqx.nn.BatchNorm)), "1/State"),
}


@pytest.mark.parametrize(("make", "name"), STATES.values(), ids=STATES)
def test_the_state_of_a_library_is_no_parameter(make, name):
    with pytest.raises(ValueError, match=f"init_fn must return what is learned, and nothing else; {name} is state"):
        jax.eval_shape(maml(lambda key: make(), mean_squared_error(NETWORK.apply)).init, jax.random.key(0))


@pytest.mark.parametrize(
    "make",
    [
        variables_with,
        lambda: {"network": variables_with(), "loss": {"weight": jnp.ones(1)}},
        lambda: {**variables_with(), "weight": jnp.ones(1)},
        lambda: nnx.split(make_nnx(jax.random.key(0)), nnx.Param, ...)[1],
        lambda: eqx_norm(eqx.nn.make_with_state(eqx.nn.BatchNorm))[0],
    ],
    ids=["flax", "learned beside", "a number beside", "nnx", "equinox"],
)
def test_what_the_message_advises_is_taken(make):
    jax.eval_shape(maml(lambda key: make(), mean_squared_error(NETWORK.apply)).init, jax.random.key(0))


@pytest.mark.slow
def test_nnx_with_batch_norm_and_dropout_by_the_recipe_of_the_module():
    """Without a key the statistics of the batch, by hand; with one, dropout that differs from key to key."""
    recipe = {"jax": jax, "nnx": nnx, "Network": NNX}
    exec(textwrap.dedent(norms.__doc__[norms.__doc__.index("    make = ") :]), recipe)
    init_fn, apply_fn = recipe["init_fn"], recipe["apply_fn"]
    tasks = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), make_tasks())
    x = tasks.query[0][0]
    learner = maml(
        init_fn,
        lambda params, batch, key: (jnp.mean((apply_fn(params, batch[0], key) - batch[1]) ** 2), {}),
        stochastic=True,
        optimizer=optax.sgd(0.1),
    )

    @jax.jit
    def program():
        state = learner.init(jax.random.key(0))
        losses = [learner.update(jax.random.key(i), state, tasks)[1]["loss"] for i in (1, 1, 2)]
        params = state.meta_params.params
        body, head, norm = (nnx.to_pure_dict(params)[name] for name in ("body", "head", "norm"))
        h = x @ body["kernel"] + body["bias"][None]
        h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 1e-5)[None] * norm["scale"][None] + norm["bias"][None]
        return losses, apply_fn(params, x), h @ head["kernel"] + head["bias"][None]

    losses, prediction, by_hand = program()
    assert losses[0] == losses[1] != losses[2] and np.isfinite(losses).all()
    assert_close(prediction, by_hand, rtol=1e-4)


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
