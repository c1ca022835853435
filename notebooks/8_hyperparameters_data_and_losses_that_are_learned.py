# %% [markdown]
# # Hyperparameters, data and losses that are learned
#
# A penalty for each feature, a weight for each example of which half are labelled wrong, the weights of two auxiliary
# losses: each is learned by its gradient through the training that it governs, while that training goes on.
# Then the update rule itself. It takes about a minute on two CPU cores.

# %%
# Installs what is missing, as in Colab: jaxmeta from the checkout this notebook lies in, or from the package index.
import importlib.util
import pathlib
import subprocess
import sys

for package in ("jaxmeta",):
    if importlib.util.find_spec(package) is None:
        checkout = pathlib.Path.cwd().resolve().parent
        source = checkout if (checkout / package / "__init__.py").exists() else package
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", str(source)], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmeta
from jaxmeta import Task, TaskDistribution, adapt, bilevel, tasks

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## One problem inside another
#
# Training minimises an inner loss $L(\theta, \eta)$ in the parameters $\theta$ of a model. What we want to choose,
# $\eta$, sits in that loss, and is judged by another one, $L'$, on data that training does not see:
#
# $$\theta_{k+1} = \theta_k - \alpha \nabla_\theta L(\theta_k, \eta), \qquad
#   \eta \leftarrow \eta - \beta\, \nabla_\eta L'(\theta_K(\eta), \eta).$$
#
# `jaxmeta.bilevel` takes the two losses as functions `(params, meta_params, batch)`. After `num_inner_steps` steps of
# $\theta$ it takes one of $\eta$, and $\theta$ goes on from where it stands. It is a learner as `maml` is: `fit`,
# `evaluate`, checkpoints and reports are the same.
#
# The data of one problem are a task: what is trained on is its support set, what training is judged by its query set.
# In the first three problems there is one task and no other, a `tasks.single`.


# %%
def learn(learner, task, num_outer_steps, num_problems=1):
    return jaxmeta.fit(
        jax.random.key(0),
        learner,
        tasks.single(task),
        num_outer_steps=num_outer_steps,
        num_tasks=num_problems,
        progress=False,
    )


# %% [markdown]
# ## A penalty that the normal equations know too
#
# The strength $\lambda$ of ridge regression is the oldest hyperparameter, and its best value can be had by brute force,
# because for each $\lambda$ the solution is known. So we learn its logarithm and compare.

# %%
rng = np.random.default_rng(0)
x = rng.normal(size=(80, 10))
y = x @ rng.normal(size=10) + 2 * rng.normal(size=80)
task = Task(support=(x[:40], y[:40]), query=(x[40:], y[40:]))


def squared_error(params, batch):
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


ridge = bilevel(
    lambda key, log_strength: jnp.zeros(10),
    lambda key: jnp.array(-3.0),
    lambda params, log_strength, batch: (
        squared_error(params, batch) + jnp.exp(log_strength) * jnp.sum(params**2),
        {},
    ),
    outer_loss_fn=lambda params, log_strength, batch: (squared_error(params, batch), {}),
    num_inner_steps=10,
    inner_optimizer=adapt.sgd(0.1),
    meta_gradient=adapt.implicit(),
    optimizer=optax.adam(0.05),
)
state, history = learn(ridge, task, 300)


def by_the_normal_equations(strength):
    matrix = x[:40].T @ x[:40] / 40 + strength * np.eye(10)
    params = np.linalg.solve(matrix, x[:40].T @ y[:40] / 40)
    return np.mean((x[40:] @ params - y[40:]) ** 2)


strengths = np.exp(np.linspace(-6, 3, 2000))
errors = [by_the_normal_equations(strength) for strength in strengths]
print(f"learned:     strength {jnp.exp(state.meta_params.params):.4f}, error {history['loss'][-1]:.4f}")
print(f"brute force: strength {strengths[np.argmin(errors)]:.4f}, error {min(errors):.4f}")

# %% [markdown]
# `adapt.implicit()` differentiates the *solution* of the inner problem, not the way to it: it solves a linear system
# with the inner Hessian. Both the parameters and that solution are kept from one outer step to the next, so that ten
# steps of the one and five of the other are enough each time.
#
# ## Sixty penalties
#
# Brute force ends at two or three hyperparameters. A gradient does not care how many there are. Here are sixty
# features, of which six matter, and a hundred examples: we learn one penalty for all, then one for each.

# %%
rng = np.random.default_rng(1)
num_features = 60
true_params = np.zeros(num_features)
true_params[:6] = 2


def draw_logistic(number):
    x = rng.normal(size=(number, num_features)).astype(np.float32)
    return x, (x @ true_params + rng.logistic(size=number) > 0).astype(np.float32)


task, test = Task(draw_logistic(100), draw_logistic(200)), draw_logistic(2000)


def logistic_loss(params, batch):
    x, y = batch
    return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params, y))


def penalised(shape):
    return bilevel(
        lambda key, meta_params: jnp.zeros(num_features),
        lambda key: jnp.full(shape, -3.0),
        lambda params, meta_params, batch: (
            logistic_loss(params, batch) + jnp.sum(jax.nn.sigmoid(meta_params) * params**2),
            {},
        ),
        outer_loss_fn=lambda params, meta_params, batch: (logistic_loss(params, batch), {}),
        num_inner_steps=20,
        inner_optimizer=adapt.sgd(0.5),
        meta_gradient=adapt.implicit(),
        optimizer=optax.adam(0.03),
    )


for name, shape in (("one penalty for all", ()), ("one for each", (num_features,))):
    state, _ = learn(penalised(shape), task, 400)
    inner, _ = state.carry.inner  # where the problem stands, and the linear system's solution
    params = inner.fast[0]
    accuracy = np.mean((test[0] @ params > 0) == test[1])
    print(f"{name:20} test loss {logistic_loss(params, test):.3f}, accuracy {accuracy:.3f}")

# %%
figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
colors = ["tab:orange" if weight else "tab:gray" for weight in true_params]
axes.bar(range(num_features), jax.nn.sigmoid(state.meta_params.params), color=colors)
axes.set(xlabel="feature (those that matter in orange)", ylabel="penalty learned")
plt.show()

# %% [markdown]
# Sixty hyperparameters can be overfitted to the query set, as parameters can: the test set above is a third one, which
# neither loop has seen.
#
# ## A weight for each example
#
# Half of 500 labels are wrong, and nobody knows which. A hundred examples are known to be right. Each of the 500 gets a
# weight $\sigma(\eta_i)$ in the training loss, and the hundred say what the weights should be. This is *data cleaning*
# (Franceschi et al., 2017, https://arxiv.org/abs/1703.01785). The network's training is not convex and never ends, so
# here the window of five steps is differentiated exactly, which is what `bilevel` does if nothing else is asked for.

# %%
rng = np.random.default_rng(2)
num_classes, num_examples = 5, 500
centres = 1.2 * rng.normal(size=(num_classes, 20))


def draw_classes(number):
    y = rng.integers(0, num_classes, number)
    return (centres[y] + rng.normal(size=(number, 20))).astype(np.float32), y


(x, y), trusted, test = draw_classes(num_examples), draw_classes(100), draw_classes(2000)
is_wrong = rng.random(num_examples) < 0.5
labels = np.where(is_wrong, (y + rng.integers(1, num_classes, num_examples)) % num_classes, y)

network = jaxmeta.nn.MLP(hidden=(32,), num_outputs=num_classes)
init_fn = lambda key, meta_params: network.init(key, jnp.zeros((1, 20)))


def cross_entropies(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y)


cleaning = bilevel(
    init_fn,
    lambda key: jnp.zeros(num_examples),
    lambda params, meta_params, batch: (
        jnp.mean(jax.nn.sigmoid(meta_params) * cross_entropies(params, batch)),
        {},
    ),
    outer_loss_fn=lambda params, meta_params, batch: (jnp.mean(cross_entropies(params, batch)), {}),
    num_inner_steps=5,
    inner_optimizer=adapt.sgd(0.3),
    optimizer=optax.adam(0.05),
)
state, _ = learn(cleaning, Task((x, labels), trusted), 1500)
weights = np.asarray(jax.nn.sigmoid(state.meta_params.params))

# %% [markdown]
# How well do the weights tell wrong labels from right ones? The area under the ROC curve is the chance that an example
# with a right label weighs more than one with a wrong label. Then we train anew on what is thought right, and compare
# with training on everything, and on the examples that are right indeed.

# %%
ranks = np.argsort(np.argsort(weights))
area = 0.5 + (ranks[~is_wrong].mean() - ranks[is_wrong].mean()) / num_examples
print(f"area under the ROC curve: {area:.3f}")


@jax.jit
def accuracy_after_training(weights):
    loss_fn = lambda params: jnp.sum(weights * cross_entropies(params, (x, labels))) / jnp.sum(weights)
    step = lambda _, params: jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss_fn)(params))
    params = jax.lax.fori_loop(0, 500, step, init_fn(jax.random.key(1), ()))
    return jnp.mean(jnp.argmax(network.apply(params, test[0]), 1) == test[1])


for name, kept in (("all", np.ones(num_examples)), ("weight above 1/2", weights > 0.5), ("right indeed", ~is_wrong)):
    print(f"trained on {name:17} test accuracy {accuracy_after_training(jnp.float32(kept)):.3f}")

figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
bins = np.linspace(0, 1, 41)
axes.hist([weights[~is_wrong], weights[is_wrong]], bins, label=["right", "wrong"], color=["tab:blue", "tab:red"])
axes.set(xlabel="weight learned", ylabel="examples")
axes.legend(title="label", frameon=False)
plt.show()

# %% [markdown]
# ## The weights of auxiliary losses
#
# Twenty examples of what we care about, and two hundred that have other labels: three that depend on the same hidden
# features, three that are noise. Which of the two helps, and how much should it count? One network predicts all seven,
# and the weights of the two auxiliary losses are learned.
#
# A network trained for long would overfit its twenty examples whatever the weights; that is why each of four networks
# begins anew after 1,000 steps, one of them every 250, so that the weights are those for a training of that length.

# %%
rng = np.random.default_rng(3)
features, mixing = rng.normal(size=(10, 4)), rng.normal(size=(4, 3))


def draw_auxiliary(number):
    x = rng.normal(size=(number, 10)).astype(np.float32)
    hidden = np.tanh(x @ features)
    noise = rng.normal(size=(number, 3))
    return tuple(np.float32(part) for part in (x, hidden @ np.array([1, -1, 1, -1]), hidden @ mixing, noise))


few, many, query, test = (draw_auxiliary(number) for number in (20, 200, 50, 1000))
network = jaxmeta.nn.MLP(hidden=(32,), num_outputs=7)


def main_error(params, batch):
    x, y, _, _ = batch
    return jnp.mean((network.apply(params, x)[:, 0] - y) ** 2)


def with_auxiliary_losses(params, meta_params, batch):
    few, (x, _, related, noise) = batch
    outputs, weights = network.apply(params, x), jnp.exp(meta_params)
    of_related = jnp.mean((outputs[:, 1:4] - related) ** 2)
    of_noise = jnp.mean((outputs[:, 4:] - noise) ** 2)
    return main_error(params, few) + weights[0] * of_related + weights[1] * of_noise, {}


auxiliary = bilevel(
    lambda key, meta_params: network.init(key, jnp.zeros((1, 10))),
    lambda key: jnp.full(2, -1.0),
    with_auxiliary_losses,
    outer_loss_fn=lambda params, meta_params, batch: (main_error(params, batch), {}),
    num_inner_steps=50,
    num_problems=4,
    lifetime=1000,
    inner_optimizer=adapt.sgd(0.1),
    optimizer=optax.adam(0.05),
)
task = Task((few, many), query)
state, _ = learn(auxiliary, task, 300, num_problems=4)
related, noise = np.exp(state.meta_params.params)
print(f"weight of the related loss {related:.2f}, of the noise {noise:.2f}")

# %%
keys = jax.random.split(jax.random.key(1), 5)
for name, log_weights in (("none", (-30, -30)), ("both 1", (0, 0)), ("learned", state.meta_params.params)):
    meta_params = jaxmeta.MetaParams(jnp.asarray(log_weights, jnp.float32))
    params = jax.vmap(lambda key, meta_params=meta_params: auxiliary.adapt(key, meta_params, task))(keys)
    error = jnp.mean(jax.vmap(lambda params: main_error(params, test))(params))
    print(f"auxiliary losses {name:8} test error {error:.2f}")

# %% [markdown]
# ## An optimizer that is learned
#
# What makes a step of a gradient can be learned too. `adapt.learned_optimizer` is a small network that sees of each
# parameter its gradient, its averages and the time, and says how far to go; it starts as Adam. Its weights are the
# inner optimizer's hyperparameters, and they are the same for every parameter, so that what was learned on one network
# trains another.
#
# Here it is trained on networks of 16 units, each fitted to another random function in 50 steps, and judged by the error
# at points that were not seen. Each outer step begins anew, and is differentiated exactly from its end to its beginning.


# %%
def draw_function(key, data):
    x_key, inner_key, outer_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (100, 2))
    hidden = jnp.tanh(x @ jax.random.normal(inner_key, (2, 5)))
    y = hidden @ jax.random.normal(outer_key, (5, 1))
    return Task((x[:60], y[:60]), (x[60:], y[60:]))


def trained_by(inner_optimizer, num_units):
    network = jaxmeta.nn.MLP(hidden=(num_units,), activation=jnp.tanh)
    error = jaxmeta.nn.mean_squared_error(network.apply)
    return bilevel(
        lambda key, meta_params: network.init(key, jnp.zeros((1, 2))),
        lambda key: (),  # nothing but the optimizer is learned
        lambda params, meta_params, batch: error(params, batch),
        num_inner_steps=50,
        lifetime=50,
        num_problems=8,
        inner_optimizer=inner_optimizer,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    )


functions, learned = TaskDistribution(draw_function), adapt.learned_optimizer(0.05)
state, _ = jaxmeta.fit(
    jax.random.key(0), trained_by(learned, 16), functions, num_outer_steps=300, num_tasks=8, progress=False
)

# %% [markdown]
# The held-out network is four times as wide, and its functions are new. Beside it is Adam at its best of twelve rates,
# found on the very functions that both are judged on.

# %%
judge = lambda learner, meta_params: jaxmeta.evaluate(
    jax.random.key(1), learner, functions, meta_params, num_tasks=50
).metrics["mse"]["mean"]
adam = trained_by(adapt.from_optax(lambda log_rate: optax.adam(jnp.exp(log_rate)), 0.0), 64)
rates = np.logspace(-3, -0.5, 12)
of_adam = [judge(adam, jaxmeta.MetaParams((), jnp.log(rate))) for rate in rates]
best = int(np.argmin([curve[-1] for curve in of_adam]))
curves = {
    "learned": judge(trained_by(learned, 64), state.meta_params),
    f"Adam at its best rate, {rates[best]:.3f}": of_adam[best],
}

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for label, curve in curves.items():
    axes.semilogy(curve, label=label)
    print(f"{label:30} test error {curve[-1]:.4f}")
axes.set(xlabel="step of the held-out network", ylabel="test error")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The page *Learned optimizers* tells of a harder case, images of digits, and of what it took.
#
# ## Which gradient
#
# All that differed above was an argument, and every strategy of `jaxmeta.adapt` takes its place:
#
# | the inner problem | `meta_gradient` |
# |---|---|
# | is solved in the window, and has one solution | `adapt.implicit()`, warm: the cheapest |
# | is a training that goes on, judged soon | none: exact for the window, and truncated beyond it |
# | a long one, whose early steps matter late | `adapt.persistent_evolution_strategy(num_truncations=1)` |
# | few hyperparameters, long windows | `adapt.forward_mode()` |
# | does not fit into memory | `adapt.mixed_mode(num_segments="sqrt")` |
#
# Windows are shortsighted: a gradient of five steps prefers what helps within five steps, such as a small learning
# rate. The page *Bilevel problems* of the documentation says when that matters, and what to do.

# %% [markdown]
# It helps, and it is not a search: an agent that its first numbers keep from catching anything meets nothing by which they
# could be told to be bad. Started from 0.9 and 0.8, sensible ones, all of sixteen agents end above 0.97.

# %% [markdown]
# ## Which gradient
#
# All that differed above was an argument, and every strategy of `jaxmeta.adapt` takes its place:
#
# | the inner problem | `meta_gradient` |
# |---|---|
# | is solved in the window, and has one solution | `adapt.implicit()`, warm: the cheapest |
# | is a training that goes on, judged soon | none: exact for the window, and truncated beyond it |
# | a long one, whose early steps matter late | `adapt.persistent_evolution_strategy(num_truncations=1)` |
# | few hyperparameters, long windows | `adapt.forward_mode()` |
# | does not fit into memory | `adapt.mixed_mode(num_segments="sqrt")` |
#
# Windows are shortsighted: a gradient of five steps prefers what helps within five steps, such as a small learning
# rate. The page *Bilevel problems* of the documentation says when that matters, and what to do.
