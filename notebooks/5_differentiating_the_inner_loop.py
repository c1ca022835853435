# %% [markdown]
# # Differentiating the inner loop
#
# There are many ways to compute, or to approximate, the gradient through the inner loop of MAML. This notebook measures them on your machine: error, time and memory against the number of inner steps.
# You will see why memory decides when there are many steps, what the exact ways without much memory cost, and which approximation suits which problem.
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
# ## What is to be computed
#
# The inner loop takes K gradient steps on a task's support set. The meta-gradient is the derivative of the query loss at the end, with respect to where the loop started:
#
# ```
# θ_{k+1} = θ_k − α ∇L(θ_k)        for k = 0 … K−1
# meta-gradient = (I − α ∇²L(θ_0)) … (I − α ∇²L(θ_{K−1})) ∇L′(θ_K)
# ```
#
# (Notebook 1 derives it and checks it by hand.) Reverse-mode differentiation evaluates the product from the right, so it begins at the *last* step, and needs θ_k and everything that
# was computed from it at each step on the way back. To keep all of that is what takes the memory.
#
# In `jaxmeta` the inner loop is written once, and *how* it is differentiated is an argument, `meta_gradient`. So we can compare by changing one argument.
#
# Our problem is sine waves, a network with two hidden layers of 64 units, 50 examples to adapt to, and four tasks at a time.

# %%
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxmeta
from jaxmeta import adapt, nn, plotting

num_tasks = 4
network = nn.MLP((64, 64))
loss_fn = nn.mean_squared_error(lambda params, x: network.apply(params, x / 5))  # x is from −5 to 5
sine_waves = jaxmeta.tasks.sinusoid(num_shots=50, num_queries=50)
tasks = jax.vmap(lambda key: sine_waves.sample(key, sine_waves.data))(jax.random.split(jax.random.key(0), num_tasks))
params = network.init(jax.random.key(1), jnp.ones((1, 1)))
print(f"{ravel_pytree(params)[0].size:,} parameters")

# %% [markdown]
# One function measures everything. It compiles one outer step and asks three things of it:
#
# - **memory**: the compiler says how much space the program needs for intermediate results. It is known before the program runs, on CPU, GPU and TPU alike.
# - **time**: the median of a few runs.
# - **the gradient**: `optax.trace(decay=0.0)` is an outer optimizer whose state is the last gradient, so we read it from there.
#
# `microbatch=num_tasks` takes all tasks at once, so that figures are comparable. If you leave it out, `maml` takes as many at a time as suits the machine.


# %%
def measure(strategy, num_inner_steps, inner_optimizer):
    learner = jaxmeta.maml(
        lambda key: params,
        loss_fn,
        inner_optimizer=inner_optimizer,
        num_inner_steps=num_inner_steps,
        meta_gradient=strategy,
        optimizer=optax.trace(decay=0.0),
        microbatch=num_tasks,
    )
    arguments = jax.random.key(0), learner.init(jax.random.key(0)), tasks
    step = jax.jit(learner.update).lower(*arguments).compile()
    state, _ = step(*arguments)
    seconds = []
    while len(seconds) < 3 or (sum(seconds) < 0.05 and len(seconds) < 20):
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - start)
    return {
        "memory": step.memory_analysis().temp_size_in_bytes,
        "time": float(np.median(seconds)),
        "gradient": state.opt_state.trace,  # a MetaParams: of the initialisation, and of learned hyperparameters
    }


def compare(strategies, steps, inner_optimizer, what=lambda gradient: gradient):
    """{"memory", "time", "error"}, each {strategy: [a number for each of `steps`]}; errors are relative to the first."""
    found = {name: [measure(make(k), k, inner_optimizer) for k in steps] for name, make in strategies.items()}
    vector = lambda row: ravel_pytree(what(row["gradient"]))[0]
    reference = [vector(row) for row in next(iter(found.values()))]
    distance = lambda row, exact: float(jnp.linalg.norm(vector(row) - exact) / jnp.linalg.norm(exact))
    curves = {key: {name: [row[key] for row in rows] for name, rows in found.items()} for key in ("memory", "time")}
    errors = {name: [distance(*pair) for pair in zip(rows, reference, strict=True)] for name, rows in found.items()}
    return curves | {"error": errors}


def table(found, num_inner_steps, steps):
    i = steps.index(num_inner_steps)
    print(f"{f'{num_inner_steps} inner steps':30} {'MiB':>8} {'ms':>8} {'error':>9}")
    for name in found["memory"]:
        memory, seconds, error = (found[key][name][i] for key in ("memory", "time", "error"))
        print(f"{name:30} {memory / 2**20:8.2f} {1e3 * seconds:8.1f} {error:9.1e}")


# %% [markdown]
# ## Exact, in less memory
#
# The first group computes the exact meta-gradient, every one of them. They differ in what they keep and what they compute a second time.
#
# - `exact()` is plain reverse mode. It keeps all activations of all K steps.
# - `exact(num_segments="sqrt")` cuts the loop into √K segments. It keeps θ_k between segments only, and runs each segment again when the way back reaches it.
# - `mixed_mode()` keeps only θ_k of each step and computes the rest again. Its product of a Hessian and a vector is forward mode over reverse mode
#   (Kemaev et al. 2025, *Scalable Meta-Learning via Mixed-Mode Differentiation*, https://arxiv.org/abs/2505.00793).
# - `mixed_mode(num_segments="sqrt")` does both.
# - `auto()` is the default. It estimates the memory of each of these from the shapes, takes one, and says which to the logger "jaxmeta". We let the logger print.

# %%
logger = logging.getLogger("jaxmeta")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))

steps = [1, 4, 16, 64]
gradient_descent = adapt.sgd(0.05)
exact_strategies = {
    "exact": lambda k: adapt.exact(),
    "exact, segments": lambda k: adapt.exact(num_segments="sqrt"),
    "mixed mode": lambda k: adapt.mixed_mode(),
    "mixed mode, segments": lambda k: adapt.mixed_mode(num_segments="sqrt"),
    "auto": lambda k: adapt.auto(),
}
exact_ones = compare(exact_strategies, steps, gradient_descent)

# %%
plotting.cost(
    steps,
    memory=exact_ones["memory"],
    time=exact_ones["time"],
    highlight="auto",
    title="Exact meta-gradients of the initialisation",
)

# %%
table(exact_ones, 64, steps)
