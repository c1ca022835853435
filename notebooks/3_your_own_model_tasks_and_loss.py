# %% [markdown]
# # Your own model, tasks and loss
#
# Your own task distribution, and the same network in flax linen, flax nnx, equinox and plain arrays. The problem is a
# small one, calibrating sensors from a few readings, taken apart: dropout and normalisation; any optax optimizer in the
# inner loop; what adapts, what is meta-learned and what is frozen; a loss with a learned weight; and a list of tasks of
# unequal size.
# It takes about a minute and a half on two CPU cores. The sections after the second can be read in any order.

# %%
# Installs what is missing, as in Colab: jaxmeta from the checkout this notebook lies in, or from the package index.
import importlib.util
import pathlib
import subprocess
import sys

for package in ("jaxmeta", "equinox"):
    if importlib.util.find_spec(package) is None:
        checkout = pathlib.Path.cwd().resolve().parent
        source = checkout if (checkout / package / "__init__.py").exists() else package
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", str(source)], check=True)

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import jaxmeta

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## 1. Your own tasks
#
# Each sensor answers a true value x with a reading y of its own: with its own offset, gain, steepness and centre, and
# some noise. We have 40 pairs (x, y) of each of 400 sensors, in arrays as a laboratory would have measured them. For a
# new sensor there will be five pairs only. A task is one sensor: its support set are five pairs, its query set 20 others.


# %%
def curve(sensor, x):
    """What a sensor of this offset, gain, steepness and centre reads without noise."""
    offset, gain, steepness, centre = sensor
    return offset + gain * np.tanh(steepness * (x - centre))


rng = np.random.default_rng(0)
sensors = rng.uniform([-1, 0.5, 0.5, -1], [1, 3, 2, 1], size=(400, 4))
x = rng.uniform(-2, 2, size=(400, 40, 1))
y = curve(sensors.T[:, :, None, None], x) + 0.05 * rng.normal(size=x.shape)
measured = {"x": jnp.float32(x), "y": jnp.float32(y), "sensor": jnp.float32(sensors)}
print({name: array.shape for name, array in measured.items()})

# %% [markdown]
# A `TaskDistribution` is a function `sample(key, data)` that draws **one** task, and the data it draws from. `fit` runs
# it in the compiled program, for many tasks at once. So it has to be written with `jax.random` and `jnp`; draws of
# `np.random` would happen once and stay the same for ever (`fit` notices, and says so). Large arrays belong in `data`:
# then they are an argument of the program and not a constant inside it. Make them jax arrays: `sample` indexes them with
# a traced number, which numpy arrays refuse when you call it under `jax.vmap` yourself.


# %%
def sample(key, data):
    sensor_key, order_key = jax.random.split(key)
    i = jax.random.randint(sensor_key, (), 0, len(data["x"]))
    order = jax.random.permutation(order_key, 40)
    x, y = data["x"][i][order], data["y"][i][order]
    return jaxmeta.Task(support=(x[:5], y[:5]), query=(x[5:25], y[5:25]), info=data["sensor"][i])


train_tasks = jaxmeta.TaskDistribution(sample, {name: array[:300] for name, array in measured.items()})
test_tasks = jaxmeta.TaskDistribution(sample, {name: array[300:] for name, array in measured.items()})
task = test_tasks.sample(jax.random.key(0), test_tasks.data)
task

# %% [markdown]
# Training and test have the same `sample` and different sensors. `info` is for pictures and checks: no learner reads it.
#
# ## 2. Your own model, four times
#
# A model is two functions. `init_fn(key)` returns the parameters, any pytree of arrays. `apply_fn(params, x)` predicts.
# Here is one network, two hidden layers of 40 units with tanh, as four libraries write it.
#
# **Plain arrays**

# %%
widths = {"first": (1, 40), "second": (40, 40), "head": (40, 1)}


def plain_init(key):
    keys = jax.random.split(key, len(widths))
    return {
        name: {"kernel": jax.random.normal(key, size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
        for key, (name, size) in zip(keys, widths.items(), strict=True)
    }


def plain_apply(params, x):
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    return dense("head", jnp.tanh(dense("second", jnp.tanh(dense("first", x)))))


# %% [markdown]
# **flax linen.** `init` and `apply` are already what is needed.


# %%
class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(40, name="first")(x))
        x = jnp.tanh(linen.Dense(40, name="second")(x))
        return linen.Dense(1, name="head")(x)


linen_network = LinenNetwork()
linen_init = lambda key: linen_network.init(key, jnp.ones((1, 1)))
linen_apply = linen_network.apply

# %% [markdown]
# **flax nnx.** A model is an object. `nnx.split` takes it apart into its structure, its parameters, and whatever else it
# holds; `nnx.merge` puts it together again.


# %%
class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(1, 40, rngs=rngs)
        self.second = nnx.Linear(40, 40, rngs=rngs)
        self.head = nnx.Linear(40, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


nnx_split = lambda key: nnx.split(NnxNetwork(nnx.Rngs(params=key)), nnx.Param, ...)
graphdef, _, rest = nnx_split(jax.random.key(0))
nnx_init = lambda key: nnx_split(key)[1]
nnx_apply = lambda params, x: nnx.merge(graphdef, params, rest, copy=True)(x)

# %% [markdown]
# **equinox.** The model is a pytree itself. `eqx.partition` separates its arrays from its functions and sizes. Equinox
# layers take one example, so `apply_fn` maps over the batch.


# %%
class EquinoxNetwork(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(1, 40, key=keys[0])
        self.second = eqx.nn.Linear(40, 40, key=keys[1])
        self.head = eqx.nn.Linear(40, 1, key=keys[2])

    def __call__(self, x):
        return self.head(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


equinox_split = lambda key: eqx.partition(EquinoxNetwork(key), eqx.is_inexact_array)
static = equinox_split(jax.random.key(0))[1]
equinox_init = lambda key: equinox_split(key)[0]
equinox_apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)

# %% [markdown]
# Do they learn alike? The libraries draw their first parameters in different ways. To compare, we give all four the same
# numbers to start from: those of the plain arrays. This is also how to start from parameters that you have already.

# %%
numbers = plain_init(jax.random.key(0))
same_as = lambda params: jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(numbers))
transposed = [array for name in widths for array in (numbers[name]["kernel"].T, numbers[name]["bias"])]
models = {
    "plain arrays": (plain_init, plain_apply, numbers),
    "flax linen": (linen_init, linen_apply, {"params": numbers}),
    "flax nnx": (nnx_init, nnx_apply, same_as(nnx_init(jax.random.key(0)))),
    "equinox": (
        equinox_init,
        equinox_apply,
        jax.tree.unflatten(jax.tree.structure(equinox_init(jax.random.key(0))), transposed),
    ),
}


def maml_of(init_fn, apply_fn, **options):
    """The learner of this notebook: three inner steps of gradient descent, unless `options` say otherwise."""
    defaults = {
        "inner_optimizer": jaxmeta.adapt.sgd(0.05),
        "num_inner_steps": 3,
        "optimizer": optax.adam(3e-3),  # of the outer loop
    }
    return jaxmeta.maml(init_fn, jaxmeta.nn.mean_squared_error(apply_fn), **(defaults | options))


def trained(learner, state=None, num_outer_steps=600):
    return jaxmeta.fit(
        jax.random.key(0),
        learner,
        train_tasks,
        num_outer_steps=num_outer_steps,
        num_tasks=16,
        state=state,
        progress=False,
    )


states, histories = {}, {}
for name, (init_fn, apply_fn, params) in models.items():
    learner = maml_of(init_fn, apply_fn)
    state = learner.init(jax.random.key(0))
    state = state._replace(meta_params=state.meta_params._replace(params=params))
    states[name], histories[name] = trained(learner, state)
    print(f"{name:>12}: mse {histories[name]['mse'][0]:.5f} in the first outer step,", end=" ")
    print(f"{np.mean(histories[name]['mse'][-100:]):.5f} in the last hundred")

for history in histories.values():
    np.testing.assert_allclose(history["mse"][0], histories["plain arrays"]["mse"][0], rtol=1e-4)
    last = [np.mean(found["mse"][-100:]) for found in (history, histories["plain arrays"])]
    np.testing.assert_allclose(*last, rtol=0.05)
    assert last[0] < 0.2 * history["mse"][0]
jaxmeta.plotting.learning_curves(histories, names=["mse"], title="one network, four libraries, the same first numbers")

# %% [markdown]
# The four curves lie on one another. Which library you take makes no difference to what is computed.
#
# What has been learned, on three sensors that were not in training, before and after adaptation to five pairs:

# %%
learner, meta_params = maml_of(plain_init, plain_apply), states["plain arrays"].meta_params
points = np.linspace(-2, 2, 100)
new_tasks = [test_tasks.sample(key, test_tasks.data) for key in jax.random.split(jax.random.key(4), 3)]
fits = []
for task in new_tasks:
    adapted = learner.adapt(jax.random.key(0), meta_params, task)
    fits.append([plain_apply(params, points[:, None])[:, 0] for params in (meta_params.params, adapted)])
jaxmeta.plotting.regression_adaptation(
    points,
    np.stack([curve(task.info, points) for task in new_tasks]),
    [task.support for task in new_tasks],
    np.array(fits),
    steps=(0, 3),
    title="three new sensors, five pairs each",
)

# %%
report = jaxmeta.evaluate(jax.random.key(1), learner, test_tasks, meta_params)
assert report.metrics["mse"]["mean"][3] < 0.2 * report.metrics["mse"]["mean"][0]
report

# %% [markdown]
# ## 3. Dropout
#
# A loss that draws random numbers needs a key: say `stochastic=True`, and give `apply_fn` a third argument. Each inner
# step and each query loss then has a key of its own. `evaluate` passes `None` where it judges: no dropout there.


# %%
class WithDropout(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic):
        x = jnp.tanh(linen.Dense(40, name="first")(x))
        x = linen.Dropout(0.1, deterministic=deterministic)(x)
        return linen.Dense(1, name="head")(jnp.tanh(linen.Dense(40, name="second")(x)))


dropout_network = WithDropout()
dropout_init = lambda key: dropout_network.init(key, jnp.ones((1, 1)), deterministic=True)


def dropout_apply(params, x, key):
    return dropout_network.apply(params, x, deterministic=key is None, rngs=None if key is None else {"dropout": key})


learner = maml_of(dropout_init, dropout_apply, stochastic=True)
state = learner.init(jax.random.key(0))
tasks = jax.vmap(train_tasks.sample, (0, None))(jax.random.split(jax.random.key(1), 4), train_tasks.data)
update = jax.jit(learner.update)
losses = [update(jax.random.key(seed), state, tasks)[1]["loss"].item() for seed in (1, 1, 2)]
print("losses of one outer step under the keys 1, 1, 2:", losses)
assert losses[0] == losses[1] != losses[2]

# %% [markdown]
# The same key gives the same loss, another key another dropout. Do not give the argument `key` a default: with
# `key=None` and without `stochastic=True` the network would train without dropout, and nothing would say so. Without a
# default it is an error:

# %%
try:
    maml_of(dropout_init, dropout_apply).evaluate(jax.random.key(0), state.meta_params, task)
    raise AssertionError("a network that asks for a key got none")
except (TypeError, ValueError) as error:
    print(error)

# %% [markdown]
# ## 4. Normalisation
#
# Batch norm as in flax keeps running averages of its statistics, for use at test time. In meta-learning they are an
# average over *tasks*, whose statistics differ, and after adaptation they belong to no task at all. An optimizer must not
# touch them either. So jaxmeta refuses them among the parameters:


# %%
class FlaxBatchNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Dense(40)(x))
        return linen.Dense(1)(jnp.tanh(x))


network = FlaxBatchNorm()
try:
    maml_of(lambda key: network.init(key, jnp.ones((2, 1))), network.apply).init(jax.random.key(0))
    raise AssertionError("running statistics were taken for parameters")
except ValueError as error:
    print(error)

# %% [markdown]
# Three ways that work:
#
# - `jaxmeta.nn.BatchNorm`, which has no running averages: each batch is normalised by itself. At test the queries are
#   normalised by one another ("transductive"). A prediction then depends on the other queries in the batch.
# - the same with `condition_fn=jaxmeta.nn.support_statistics(network.apply)`: queries are normalised by the support
#   set's statistics, in training as at test. Each prediction stands alone.
# - `linen.LayerNorm` or `linen.GroupNorm`, which look at one example at a time. Give them `use_fast_variance=False`: the
#   fast formula loses all digits where the mean is large.
#
# We train all three, and predict the queries of 200 new tasks twice: together, and one at a time.


# %%
class Normalised(linen.Module):
    norm: str

    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            make = {"batch": jaxmeta.nn.BatchNorm, "layer": lambda: linen.LayerNorm(use_fast_variance=False)}
            x = jnp.tanh(make[self.norm]()(linen.Dense(40)(x)))
        return linen.Dense(1)(x)


def together_and_alone(learner, apply_fn, meta_params):
    """The mean squared error of queries that are predicted in one batch, and of the same ones one at a time."""

    @jax.jit
    @jax.vmap
    def errors(key):
        task = test_tasks.sample(key, test_tasks.data)
        params = learner.adapt(key, meta_params, task)
        x, y = task.query
        alone = jax.vmap(lambda one: apply_fn(params, one[None])[0])(x)
        return jnp.mean((apply_fn(params, x) - y) ** 2), jnp.mean((alone - y) ** 2)

    return [float(np.mean(values)) for values in errors(jax.random.split(jax.random.key(2), 200))]


batch, layer = Normalised("batch"), Normalised("layer")
cases = {
    "BatchNorm, the queries' statistics": (batch, {}),
    "BatchNorm, the support set's": (batch, {"condition_fn": jaxmeta.nn.support_statistics(batch.apply)}),
    "LayerNorm": (layer, {}),
}
found = {}
for name, (network, options) in cases.items():
    learner = maml_of(lambda key, network=network: network.init(key, jnp.ones((2, 1))), network.apply, **options)
    state, _ = trained(learner)
    found[name] = together_and_alone(learner, network.apply, state.meta_params)
    print(f"{name:>34}: mse {found[name][0]:.3f} together, {found[name][1]:.3f} one at a time")

for name, (together, alone) in found.items():
    if name == "BatchNorm, the queries' statistics":
        assert alone > 2 * together
    else:
        np.testing.assert_allclose(alone, together, rtol=1e-2)

# %% [markdown]
# By the queries' own statistics a single query is normalised to zero, so the prediction says nothing. It is fine in a
# batch, if your application has one. A flax nnx network with its own batch norm and dropout works too, on a copy:
# `help(jaxmeta.nn.norms)` has the lines, and figures on images.
#
# ## 5. Any optax optimizer in the inner loop
#
# `adapt.from_optax` takes any optax transformation. Its state, such as momentum, is carried through the inner loop and
# differentiated. Adam needs `eps_root > 0`: without it the derivative at a zero gradient is infinite.

# %%
inner_optimizers = {
    "momentum, clipped": jaxmeta.adapt.from_optax(
        optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.02, momentum=0.8))
    ),
    "Adam": jaxmeta.adapt.from_optax(optax.adam(0.03, eps_root=1e-8)),
}
reports = {"SGD, as above": report}
for name, inner_optimizer in inner_optimizers.items():
    learner = maml_of(plain_init, plain_apply, inner_optimizer=inner_optimizer)
    state, _ = trained(learner)
    reports[name] = jaxmeta.evaluate(jax.random.key(1), learner, test_tasks, state.meta_params)
    mse = reports[name].metrics["mse"]["mean"]
    assert mse[3] < 0.3 * mse[0]
jaxmeta.plotting.adaptation_curves(reports, title="600 tasks of new sensors")

# %% [markdown]
# Each learner was trained with its own inner optimizer, so each initialisation is made for it. Rates were not tuned: this
# is no ranking.
#
# ## 6. What adapts, what is meta-learned, what is frozen
#
# | a parameter | changes in the inner loop | changes in the outer loop |
# |---|---|---|
# | by default | yes | yes |
# | left out by `adapt.adapt_only`, or by `anil` | no | yes |
# | chosen by `frozen=` | no | no |
#
# They are chosen by name (`"head"`, or part of a path such as `"layers/2"`), or by a function of the path. Below, for
# each learner, the arrays that moved from the start, found by comparing them.


# %%
def moved(before, after):
    """Paths of the arrays that are not the same in both."""
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") for (path, a), b in pairs if not np.array_equal(a, b)
    }


loss_fn = jaxmeta.nn.mean_squared_error(plain_apply)
everything = moved(numbers, jax.tree.map(lambda array: array + 1, numbers))
biases = {path for path in everything if path.endswith("bias")}
head = {"head/bias", "head/kernel"}
first = {"first/bias", "first/kernel"}
only_biases = jaxmeta.adapt.adapt_only(jaxmeta.adapt.sgd(0.05), lambda path: path.endswith("bias"))
choices = {  # a learner; what should adapt; what should be meta-learned
    "maml": (maml_of(plain_init, plain_apply), everything, everything),
    "anil, head": (jaxmeta.anil(plain_init, loss_fn, head="head", learning_rate=0.05), head, everything),
    "adapt_only, biases": (maml_of(plain_init, plain_apply, inner_optimizer=only_biases), biases, everything),
    "frozen first layer": (maml_of(plain_init, plain_apply, frozen="first"), everything - first, everything - first),
}
key = jax.random.key(0)
for name, (learner, should_adapt, should_be_learned) in choices.items():
    state = learner.init(key)
    after, _ = jax.jit(learner.update)(key, state, tasks)
    adapted = moved(plain_init(key), jax.jit(learner.adapt)(key, state.meta_params, task))
    learned = moved(state.meta_params.params, after.meta_params.params)
    print(f"{name}\n    adapts:       {', '.join(sorted(adapted))}\n    meta-learned: {', '.join(sorted(learned))}")
    assert adapted == should_adapt and learned == should_be_learned
    assert not moved(state.meta_params.constants, after.meta_params.constants)

# %% [markdown]
# Frozen parameters are in `meta_params.constants`, apart from what is learned; `adapt` returns all of them together. The
# inner optimizer can have parameters as well, such as the learned rates of `jaxmeta.meta_sgd`: they are in
# `meta_params.hyper`.
#
# ## 7. A learned weight in the loss
#
# Suppose that beside three precise readings of a new sensor there are ten cheap ones, and we do not know how good those
# are. The inner loss weighs them with a number w between 0 and 1:
#
# ```
# L(θ, w) = (1 − w) · mean error of precise readings + w · mean error of cheap readings     inner, of the support set
# L'(θ)   = mean error of precise readings                                                  outer, of the query set
# ```
#
# w is a parameter like any other: we learn its logit, w = 1 / (1 + exp(−logit)). It does not adapt
# (`adapt_only(..., "network")`), so it is meta-learned: its gradient comes through the inner loop, since the outer loss
# does not read it.


# %%
def cheap_tasks(noise):
    """Tasks whose cheap readings have this standard deviation of noise in addition."""

    def sample_with_cheap(key, data):
        task_key, noise_key = jax.random.split(key)
        i = jax.random.randint(task_key, (), 0, len(data["x"]))
        order = jax.random.permutation(task_key, 40)
        x, y = data["x"][i][order], data["y"][i][order]
        cheap = (x[3:13], y[3:13] + noise * jax.random.normal(noise_key, (10, 1)))
        return jaxmeta.Task(support={"precise": (x[:3], y[:3]), "cheap": cheap}, query=(x[13:], y[13:]))

    return jaxmeta.TaskDistribution(sample_with_cheap, train_tasks.data)


outer_loss_fn = jaxmeta.nn.mean_squared_error(lambda params, x: plain_apply(params["network"], x))


def inner_loss_fn(params, support):
    precise, cheap = (outer_loss_fn(params, support[name])[0] for name in ("precise", "cheap"))
    w = jax.nn.sigmoid(params["logit"])
    return (1 - w) * precise + w * cheap, {}


def learned_weight(constructor, noise):
    """w after training; it starts at 0.5."""
    learner = constructor(
        lambda key: {"network": plain_init(key), "logit": jnp.zeros(())},
        inner_loss_fn,
        outer_loss_fn=outer_loss_fn,
        inner_optimizer=jaxmeta.adapt.adapt_only(jaxmeta.adapt.sgd(0.05), "network"),
        num_inner_steps=3,
        optimizer=optax.adam(5e-3),
    )
    options = {"num_outer_steps": 600, "num_tasks": 16, "progress": False}
    state, _ = jaxmeta.fit(jax.random.key(0), learner, cheap_tasks(noise), **options)
    return float(jax.nn.sigmoid(state.meta_params.params["logit"]))


good, bad = learned_weight(jaxmeta.maml, noise=0.0), learned_weight(jaxmeta.maml, noise=2.0)
first_order = learned_weight(jaxmeta.fomaml, noise=2.0)
print(f"cheap readings as good as the others: w = {good:.2f}")
print(f"with much noise:                      w = {bad:.2f}")
print(f"with much noise, first-order MAML:    w = {first_order:.2f}")
assert good > 0.5 > bad
assert first_order == 0.5

# %% [markdown]
# Where the cheap readings are as good as the others, w rises to about 0.74: near 10/13, their share of the readings.
# Where they are noisy it falls, here to about 0.18.
#
# First-order MAML leaves it where it was, at 0.5. It drops the derivative through the inner loop, and there is no other
# way from the outer loss to w. If something that you meant to learn does not move, look at `meta_gradient` first.

# %% [markdown]
# ## 8. A list of tasks, of unequal size
#
# Often there is no stream of tasks but a list: say thirty sensors of another laboratory, each with its name and as many
# readings as were taken of it, from 8 to 40. The first half of them is the support set, the rest the query set.

# %%
rng = np.random.default_rng(1)


def readings(num_pairs):
    """A task of one more sensor."""
    sensor, x = rng.uniform([-1, 0.5, 0.5, -1], [1, 3, 2, 1]), rng.uniform(-2, 2, size=(num_pairs, 1))
    y = curve(sensor, x) + 0.05 * rng.normal(size=x.shape)
    half = num_pairs // 2
    return jaxmeta.Task(support=(x[:half], y[:half]), query=(x[half:], y[half:]))


listed = [readings(num_pairs) for num_pairs in rng.integers(8, 41, 30)]
laboratory = jaxmeta.tasks.fixed(listed, names=[f"sensor {number}" for number in range(30)])
padded = laboratory.at(0, laboratory.data)
print(f"{len(listed[0].support[0])} pairs to adapt to, in {padded.support}")

# %% [markdown]
# One compiled program serves all: where a task is drawn it is padded to the size of the largest, and a weight says of
# each row whether it counts. The losses of `jaxmeta.nn` know what to do with such `Examples(x, y, weight)`, so a padded
# task is learned as the task that it was made of:

# %%
learner, known = maml_of(plain_init, plain_apply), states["plain arrays"].meta_params
curves = [learner.evaluate(jax.random.key(0), known, task)["mse"] for task in (listed[0], padded)]
print("mse after 0 to 3 steps, by itself and padded:", *np.round(curves, 4))
np.testing.assert_allclose(*curves, rtol=1e-4)

# %% [markdown]
# `split_tasks` divides the list. Twenty sensors are learned from, four say which outer step was the best, and the last
# six are the test. `evaluate` judges each of them once, in their order, and knows it by its name.

# %%
train_list, validation_list, test_list = jaxmeta.tasks.split_tasks(laboratory, counts=(20, 4, 6), seed=0)
state, _ = jaxmeta.fit(
    jax.random.key(0),
    learner,
    train_list,
    num_outer_steps=600,
    num_tasks=16,
    validate=jaxmeta.training.Validation(tasks=validation_list, metric="mse", best="lowest", every=100),
    progress=False,
)
report = jaxmeta.evaluate(jax.random.key(1), learner, test_list, state.meta_params)
print("kept: outer step", int(state.step))
assert report.names == test_list.names and report.num_tasks == 6
report.rows("mse", best="lowest")

# %%
of_many = jaxmeta.evaluate(jax.random.key(1), learner, test_list, known)
errors = {"20 sensors": report.metrics["mse"]["mean"][-1], "300 sensors, section 2": of_many.metrics["mse"]["mean"][-1]}
for name, error in errors.items():
    print(f"learned from {name}: mse {error:.3f}")
assert errors["300 sensors, section 2"] < errors["20 sensors"]

# %% [markdown]
# The same learner, having learned from 300 sensors, has less than half the error on these six. A list of twenty is little
# to learn to learn from; its table says which of the new sensors are unlike them.
