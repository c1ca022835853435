# %% [markdown]
# # MAML from the equations
#
# This notebook computes the meta-gradient of MAML by hand, with the Hessian written out as a matrix, and checks that `jaxmeta` computes the same numbers.
# Then it looks at two shortcuts, truncation and first order, and measures their error.
# At the end it makes a common mistake on purpose, the gradient taken before adaptation, and shows what is learned by it.
# It takes about half a minute on two CPU cores.

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

# %% [markdown]
# JAX computes in 32-bit floating point by default. Here we want to see whether two numbers are *the same*, so we ask for 64 bits, before anything else is computed.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxmeta
from jaxmeta import adapt, nn, plotting

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler


def relative_error(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# %% [markdown]
# ## The two loops
#
# MAML learns an initialisation θ from which one gradient step (or a few) solves a new task. A task has two sets of examples:
# the *support* set with loss L, from which we adapt, and the *query* set with loss L′, on which the result is judged.
#
# ```
# inner loop   θ′ = θ − α ∇L(θ)              adapt to the task, with the inner rate α
# outer loop   θ ← θ − β ∇_θ L′(θ′)          move the initialisation, with the outer rate β
# ```
#
# The outer gradient is a derivative in θ, but L′ is evaluated at θ′, which depends on θ. By the chain rule,
#
# ```
# meta-gradient = (dθ′/dθ)ᵀ ∇L′(θ′) = (I − α ∇²L(θ)) ∇L′(θ′)
# ```
#
# ∇²L is the Hessian, the matrix of second derivatives; it is symmetric, so the transpose makes no difference.
#
# ## A task small enough to do by hand
#
# The smallest task with a Hessian is a quadratic bowl. Its matrix A says how steep it is in each direction.
# The support and the query set agree about A, but see the minimum in slightly different places, s and q, as two small samples would:
#
# ```
# L(θ) = ½ (θ − s)ᵀ A (θ − s)        ∇L(θ) = A (θ − s)        ∇²L(θ) = A
# L′(θ) = ½ (θ − q)ᵀ A (θ − q)       ∇L′(θ) = A (θ − q)
# ```

# %%
A = np.array([[1.0, 0.3], [0.3, 0.5]])
s, q = np.array([1.0, -1.0]), np.array([1.2, -0.9])
theta, rate = np.array([0.5, 2.0]), 0.4

adapted = theta - rate * A @ (theta - s)
query_gradient = A @ (adapted - q)
by_hand = (np.eye(2) - rate * A) @ query_gradient
print("θ′           ", adapted)
print("∇L′(θ′)      ", query_gradient)
print("meta-gradient", by_hand)

# %% [markdown]
# Now the same with `jaxmeta`. It needs a function that makes the initial parameters and a loss `(params, batch) -> (loss, metrics)`, where a batch may be any arrays.
# Here a batch is the pair `(A, minimum)`, and the parameters are θ itself.
#
# `learner.update` takes one outer step on a stack of tasks; our stack holds one task. With plain gradient descent of rate 1 as outer optimizer,
# the step is the meta-gradient: θ − θ_new.


# %%
def bowl_loss(theta, batch):
    matrix, minimum = batch
    return 0.5 * (theta - minimum) @ matrix @ (theta - minimum), {}


def meta_gradient_of(strategy, theta, loss_fn, tasks, rate, num_inner_steps):
    learner = jaxmeta.maml(
        lambda key: theta,
        loss_fn,
        inner_optimizer=adapt.sgd(rate),
        num_inner_steps=num_inner_steps,
        meta_gradient=strategy,
        optimizer=optax.sgd(1.0),
    )
    state = learner.init(jax.random.key(0))
    new_state, _ = jax.jit(learner.update)(jax.random.key(1), state, tasks)
    return np.asarray(state.meta_params.params - new_state.meta_params.params)


one_task = jaxmeta.Task(support=(A[None], s[None]), query=(A[None], q[None]))
strategies = {
    "auto (the default)": adapt.auto(),
    "exact": adapt.exact(),
    "mixed mode": adapt.mixed_mode(),
    "truncated(1)": adapt.truncated(1),
    "first order": adapt.first_order(),
}
of_bowl = {
    name: meta_gradient_of(strategy, jnp.asarray(theta), bowl_loss, one_task, rate, num_inner_steps=1)
    for name, strategy in strategies.items()
}
print(f"{'by hand':20}", by_hand)
for name, found in of_bowl.items():
    print(f"{name:20}", found, f"relative error {relative_error(found, by_hand):.1e}")

# %% [markdown]
# The first four are the number that we computed by hand, up to the rounding of 64-bit numbers. They are four ways to compute one and the same thing
# (`truncated(1)` is exact through the last inner step, and here there is only one).
#
# `first_order` is another number. It leaves out the Hessian, which makes it ∇L′(θ′). We check both, and, so that the derivation itself is not left to trust,
# the slope of the outer loss by finite differences.


# %%
def outer_loss(theta):
    return bowl_loss(theta - rate * A @ (theta - s), (A, q))[0]


step = 1e-6
differences = [(outer_loss(theta + step * e) - outer_loss(theta - step * e)) / (2 * step) for e in np.eye(2)]
assert relative_error(np.array(differences), by_hand) < 1e-8
for name in ("auto (the default)", "exact", "mixed mode", "truncated(1)"):
    assert relative_error(of_bowl[name], by_hand) < 1e-14, name
assert relative_error(of_bowl["first order"], query_gradient) < 1e-14
assert relative_error(of_bowl["first order"], by_hand) > 0.1

# %% [markdown]
# ## A network, and several inner steps
#
# A bowl has the same Hessian everywhere. A network has another one at each point that the inner loop passes, and the chain rule gives a product:
#
# ```
# meta-gradient = (I − α ∇²L(θ_0)) (I − α ∇²L(θ_1)) … (I − α ∇²L(θ_{K−1})) ∇L′(θ_K)
# ```
#
# For a tiny network we can still write every one of these matrices out, with `jax.hessian`. (For a network of useful size they would not fit into memory.)
# A task is a sine wave, to be learned from ten points, and the meta-gradient is the mean over 25 tasks, as in training.

# %%
network = nn.MLP((6, 6))
params = network.init(jax.random.key(0), jnp.ones((1, 1)))
start, unravel = ravel_pytree(params)
start = start.astype(float)  # all parameters as one vector, in 64 bits
loss_of_params = nn.mean_squared_error(network.apply)


def network_loss(vector, batch):
    return loss_of_params(unravel(vector), batch)


sine_waves = jaxmeta.tasks.sinusoid(num_shots=10)
sines = jax.vmap(lambda key: sine_waves.sample(key, sine_waves.data))(jax.random.split(jax.random.key(1), 25))
sine_rate, num_steps = 0.01, 20

gradients = jax.jit(jax.vmap(jax.grad(lambda vector, batch: network_loss(vector, batch)[0])))  # one for each task
hessians = jax.jit(jax.vmap(jax.hessian(lambda vector, batch: network_loss(vector, batch)[0])))

points, factors = [jnp.broadcast_to(start, (25, len(start)))], []  # θ_0 … θ_K, and I − α ∇²L(θ_k), of each task
for _ in range(num_steps):
    factors.append(np.eye(len(start)) - sine_rate * hessians(points[-1], sines.support))
    points.append(points[-1] - sine_rate * gradients(points[-1], sines.support))


def by_product(num_inner_steps, num_exact):
    """The product for K inner steps, with the last `num_exact` of its K factors; the others are left out."""
    vectors = gradients(points[num_inner_steps], sines.query)
    for k in reversed(range(num_inner_steps - num_exact, num_inner_steps)):
        vectors = jnp.einsum("tij,tj->ti", factors[k], vectors)
    return np.asarray(vectors.mean(axis=0))


print(f"{len(start)} parameters: {num_steps} Hessians of {len(start)} × {len(start)} for each task")
errors_to_hand = {}
for name, (strategy, num_exact) in {
    "exact": (adapt.exact(), num_steps),
    "mixed mode": (adapt.mixed_mode(), num_steps),
    "truncated(5)": (adapt.truncated(5), 5),
    "first order": (adapt.first_order(), 0),
}.items():
    found = meta_gradient_of(strategy, start, network_loss, sines, sine_rate, num_steps)
    errors_to_hand[name] = relative_error(found, by_product(num_steps, num_exact))
    print(f"{name:14} differs from its product of matrices by {errors_to_hand[name]:.1e}")
assert max(errors_to_hand.values()) < 1e-12

# %% [markdown]
# So this is what the strategies compute:
#
# - `exact` and `mixed_mode` keep all K factors. They never build a Hessian; they only multiply it by a vector, which costs a small multiple of a gradient.
# - `truncated(n)` keeps the last n factors and replaces the earlier ones by the identity.
# - `first_order` replaces all of them.
#
# ## What the shortcuts cost
#
# How far is each result from the exact one? We leave out factors of the product, for several numbers K of inner steps.

# %%
counts = [1, 2, 3, 5, 8, 12, 20]
exact_gradients = {k: by_product(k, k) for k in counts}
num_kept = {
    "truncated(K/2)": lambda k: k // 2,
    "truncated(5)": lambda k: min(5, k),
    "truncated(1)": lambda k: 1,
    "first order": lambda k: 0,
}
errors = {
    name: [relative_error(by_product(k, num_exact(k)), exact_gradients[k]) for k in counts]
    for name, num_exact in num_kept.items()
}
plotting.cost(counts, error=errors, title="Error of the meta-gradient, at a random initialisation")

# %%
print("inner steps K  ", *(f"{k:6}" for k in counts))
for name, values in errors.items():
    print(f"{name:15}", *(f"{value:6.2f}" for value in values))
assert errors["truncated(1)"][0] == 0 and max(errors["truncated(5)"][:4]) == 0
assert all(fewer < more for fewer, more in zip(errors["first order"], errors["first order"][1:], strict=False))

# %% [markdown]
# A relative error of 1 means that the error is as large as the gradient itself.
# First order starts at about 0.2 for one step and passes 1 at eight steps; a few exact steps at the end keep most of what it loses.
# These figures are of this network, this inner rate and this initialisation. A smaller inner rate makes the errors smaller, since each factor is then closer to the identity.
#
# A wrong gradient can still train well. First-order MAML does, as we will see below. It does not train towards the same point.
#
# ## A common mistake: the gradient before adaptation
#
# This is the mistake to know about when you write MAML yourself, or read a tutorial. The inner loop is there, but the gradient of the outer loss is taken at θ and not at θ′.
# For example, the query loss is computed with the model's own parameters, after the adapted ones were computed and put aside:
#
# ```
# right        (I − α ∇²L(θ)) ∇L′(θ′)
# first order                 ∇L′(θ′)
# mistaken                    ∇L′(θ)        the inner loop is computed, and makes no difference
# ```
#
# Summed over tasks, the mistaken one is the gradient of Σ L′(θ): ordinary training on all tasks at once, *joint training*. It does learn something, and the loss that it is told goes down, so the mistake is easy to miss.
# What it learns is the best compromise for parameters that do *not* adapt.
#
# When is that another point than the best initialisation for parameters that do? When some tasks adapt faster than others.
# Take bowls of two kinds. The first kind is steep along the first axis and flat along the second, and has its minimum near (1, 1). The second kind is the other way round, with its minimum near (−1, −1).
#
# - Without adaptation, the steep tasks decide in each direction, for there an error costs most.
# - With adaptation, one gradient step solves the steep directions nearly by itself. The initialisation should care about the flat ones, where the step gets nowhere.

# %%
rng = np.random.default_rng(0)
num_tasks, bowl_rate = 64, 0.9
theta_0 = np.array([0.6, 0.6])


def draw_bowl(kind):
    """(A, s, q) of one task."""
    steep, flat = rng.uniform(0.9, 1.1), rng.uniform(0.08, 0.12)
    angle = 0.2 * rng.normal()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([steep, flat] if kind == 0 else [flat, steep]) @ turn.T
    minimum = (1 if kind == 0 else -1) + 0.1 * rng.normal(size=2)
    return matrix, minimum + 0.05 * rng.normal(size=2), minimum + 0.05 * rng.normal(size=2)


matrices, s_all, q_all = (
    np.stack(arrays) for arrays in zip(*(draw_bowl(i % 2) for i in range(num_tasks)), strict=True)
)
bowls = jaxmeta.Task(support=(matrices, s_all), query=(matrices, q_all))

# %% [markdown]
# Such a mistake is not among the strategies of `jaxmeta`, so we write it. A strategy is given the inner loop (`adapt_to_task`) and the outer loss, and returns the loss and what it takes for the gradient.
# The loss it reports is the one after adaptation, so that all curves below show the same quantity.


# %%
def mistaken(adapt_to_task, outer):
    def task_gradient(key, meta_params, sources, task):
        adapted, _ = adapt_to_task(meta_params, sources, task)
        loss_at_start = lambda meta_params: outer(adapt.Adapted(meta_params.params), task)[0]  # the mistake: not θ′
        return outer(adapted, task), jax.grad(loss_at_start)(meta_params)

    return task_gradient


methods = {"exact": adapt.exact(), "first order": adapt.first_order(), "mistaken": mistaken}
paths, curves = {}, {}
for name, strategy in methods.items():
    learner = jaxmeta.maml(
        lambda key: jnp.asarray(theta_0),
        bowl_loss,
        inner_optimizer=adapt.sgd(bowl_rate),
        meta_gradient=strategy,
        optimizer=optax.sgd(1.5),
    )
    update, state = jax.jit(learner.update), learner.init(jax.random.key(0))
    path, losses = [state.meta_params.params], []
    for _ in range(250):
        state, metrics = update(jax.random.key(0), state, bowls)
        path.append(state.meta_params.params)
        losses.append(metrics["loss"])
    paths[name], curves[name] = np.stack(path), np.stack(losses)

figure = plotting.lines(
    {name: curve[:100] for name, curve in curves.items()},
    xlabel="outer step",
    ylabel="query loss after one inner step",
    title="64 bowls",
)
figure.axes[0].set_ylim(bottom=0)
figure

# %% [markdown]
# The mistaken gradient makes the loss after adaptation *worse* than it was at the start: no training at all would have been better.
# In the plane of the two parameters we see why.


# %%
def mean_loss(theta, num_inner_steps):
    """The query loss of all tasks, after 0 or 1 inner steps from `theta` [..., 2]."""
    away = theta[..., None, :] - s_all
    adapted = theta[..., None, :] - num_inner_steps * bowl_rate * np.einsum("tij,...tj->...ti", matrices, away)
    error = adapted - q_all
    return 0.5 * np.einsum("...ti,tij,...tj->...", error, matrices, error) / num_tasks


grid = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 61)] * 2), axis=-1)
figure, panels = plotting.figure(2, width=4.2, height=4.4)
for axes, num_inner_steps in zip(panels, (0, 1), strict=True):
    axes.contour(*np.moveaxis(grid, -1, 0), mean_loss(grid, num_inner_steps), 15, colors="#bbbbbb", linewidths=0.8)
    for name, style in plotting.styles(methods).items():
        axes.plot(*paths[name].T, color=style.color, linestyle=style.line, label=name)
        axes.plot(*paths[name][-1], marker=style.marker, color=style.color, markersize=9)
    title = "the loss after one inner step" if num_inner_steps else "the loss without an inner step"
    axes.set(xlabel="θ, first parameter", ylabel="θ, second parameter", aspect="equal", title=title)
    axes.plot(*theta_0, "o", color="black", label="start")
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
figure

# %% [markdown]
# Grey lines are lines of equal loss. The mistaken path runs straight to the minimum of the left picture, and the exact one to the minimum of the right picture. They lie on opposite sides.
#
# In this example every method's end point can be computed: the gradient of each is linear in θ, so we set it to zero and solve. With B = I − αA for each task and m = α A s:
#
# ```
# exact                Σ B A (B θ + m − q) = 0
# first order          Σ   A (B θ + m − q) = 0
# mistaken             Σ   A (  θ     − q) = 0
# ```

# %%
contractions = np.eye(2) - bowl_rate * matrices
moved = bowl_rate * np.einsum("tij,tj->ti", matrices, s_all)


def solve(weights, contraction, offset):
    """θ with Σ weights (contraction θ + offset) = 0."""
    return np.linalg.solve((weights @ contraction).sum(0), -np.einsum("tij,tj->i", weights, offset))


solutions = {
    "exact": solve(contractions @ matrices, contractions, moved - q_all),
    "first order": solve(matrices, contractions, moved - q_all),
    "mistaken": solve(matrices, np.eye(2), -q_all),
}
print(f"{'':18} {'ends at':>17}  {'solution':>17}   loss after adaptation")
print(f"{'(the start)':18} {'':17}  {'':17}   {mean_loss(theta_0, 1):.4f}")
after_adaptation = {}
for name, solution in solutions.items():
    end, after_adaptation[name] = paths[name][-1], mean_loss(paths[name][-1], 1)
    print(
        f"{name:18} ({end[0]:7.4f}, {end[1]:7.4f})  ({solution[0]:7.4f}, {solution[1]:7.4f})   {after_adaptation[name]:.4f}"
    )
    assert np.allclose(end, solution, atol=1e-6), name

assert after_adaptation["exact"] < after_adaptation["first order"] < mean_loss(theta_0, 1)
assert after_adaptation["mistaken"] > 1.5 * mean_loss(theta_0, 1)
assert after_adaptation["mistaken"] > 4 * after_adaptation["exact"]
assert mean_loss(solutions["mistaken"], 0) < mean_loss(solutions["exact"], 0)

# %% [markdown]
# Three gradients, three end points. First order stops in between: its loss after adaptation, about 0.049, is lower than at the start and higher than the 0.027 of the exact gradient.
# The mistaken one ends at 0.126, more than four times the loss of the exact one. It is the better of the two in the loss *without* adaptation, which is the only thing that it is told.
#
# This does not happen on every problem. If all tasks are equally steep, adaptation shrinks all errors alike, and the best compromise with and without it is the same point.
# A test on such tasks would not find the mistake:

# %%
same = np.broadcast_to(np.diag([1.0, 0.3]), matrices.shape)
contractions_of_same, moved_of_same = (
    np.eye(2) - bowl_rate * same,
    bowl_rate * q_all @ np.diag([1.0, 0.3]),
)  # here s = q
with_adaptation = solve(contractions_of_same @ same, contractions_of_same, moved_of_same - q_all)
without = solve(same, np.eye(2), -q_all)
print(with_adaptation, without)
assert np.allclose(with_adaptation, without)

# %% [markdown]
# ## The same on sine waves
#
# Does this matter for networks? We train the sine waves of the MAML paper (Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400), from ten points, with each of the three gradients.
# All else is equal: the network, the seed, the tasks, the number of outer steps.

# %%
sine_network = nn.MLP((40, 40))
reports, trained = {}, {}
for name, strategy in methods.items():
    learner = jaxmeta.maml(
        lambda key: sine_network.init(key, jnp.ones((1, 1))),
        nn.mean_squared_error(sine_network.apply),
        inner_optimizer=adapt.sgd(0.01),
        num_eval_steps=5,
        meta_gradient=strategy,
        optimizer=optax.adam(1e-3),
    )
    state, _ = jaxmeta.fit(jax.random.key(0), learner, sine_waves, num_outer_steps=1200, num_tasks=25, progress=False)
    reports[name] = jaxmeta.evaluate(jax.random.key(1), learner, sine_waves, state.meta_params, num_tasks=300)
    trained[name] = state.meta_params.params

figure = plotting.adaptation_curves(reports, title="Sine waves, trained for one inner step, 300 test tasks")
figure.axes[0].set_ylim(bottom=0)
figure

# %%
mse = {name: report.metrics["mse"]["mean"] for name, report in reports.items()}
for name, values in mse.items():
    print(f"{name:18}", *(f"{value:6.2f}" for value in values))
assert mse["exact"][1] < 1.2 and mse["first order"][1] < 1.8
assert mse["mistaken"][1] > 2 * mse["exact"][1] and mse["mistaken"][5] > 2 * mse["exact"][5]
assert mse["mistaken"][0] < 1.2 * mse["exact"][0]

# %% [markdown]
# Look at step 0 and step 1. Before adaptation, the exact and the mistaken gradient are equally good, at an error of about 3.
# After one step, the exact one is at about 0.85 and first order at about 1.3, while the mistaken one has become worse, about 3.6. After five steps it is at about 2.4, where the exact one is at about 0.55.
# (A thousand steps of training are few; the recipe `jaxmeta train maml-sinusoid` trains for longer.)
#
# What has the mistaken one learned? The best that one function can do for all sine waves is their mean. The amplitudes are uniform in [0.1, 5] and the phases in [0, π], which gives
#
# ```
# E[A sin(x − φ)] = 2.55 · (−2/π) cos x
# ```

# %%
x = np.linspace(-5, 5, 200)[:, None]
mean_wave = -2.55 * 2 / np.pi * np.cos(x[:, 0])
predictions = {name: np.asarray(sine_network.apply(params, x))[:, 0] for name, params in trained.items()}
figure, (axes,) = plotting.figure(1, width=6.4, height=3.4)
axes.plot(x, mean_wave, color="black", linestyle=":", linewidth=3, label="the mean of all sine waves")
for name, style in plotting.styles(methods).items():
    axes.plot(x, predictions[name], color=style.color, linestyle=style.line, label=name)
axes.set(xlabel="x", ylabel="prediction before adaptation")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
figure

# %%
distance = {name: float(np.sqrt(np.mean((values - mean_wave) ** 2))) for name, values in predictions.items()}
print("root mean squared distance from the mean wave:", {name: round(value, 2) for name, value in distance.items()})
assert distance["mistaken"] < 0.4

# %% [markdown]
# The mistaken gradient has learned the mean wave, and so has the exact one, nearly. *As functions* the two initialisations are almost the same.
# The difference is in what a gradient step does to them: only the exact meta-gradient, and less directly the first-order one, has been told about it.
# This is why a look at the initialisation alone does not show the mistake. Three ways to find it in your own code:
#
# - Compare your meta-gradient with finite differences of the outer loss *after* adaptation, as in the first part, on a model of a few parameters.
# - Change the inner rate α. A meta-gradient that does not change with it does not see the inner loop.
# - Plot the loss before and after adaptation on test tasks. If they do not separate as training goes on, the outer loop is not learning to adapt.
#
# ## What to take away
#
# - The meta-gradient is (I − α ∇²L(θ)) ∇L′(θ′), a product of such factors for several steps. `jaxmeta.maml` computes it exactly unless you ask for something else.
# - `first_order` and `truncated(n)` leave factors out. They are cheaper, often good enough, and end at another point.
# - ∇L′(θ), the gradient before adaptation, is joint training.
#
# What the exact gradient costs in time and memory, and how to keep it cheap when there are many inner steps, is notebook 5, *Differentiating the inner loop*.
