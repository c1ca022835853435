# %% [markdown]
# # Differentiating the inner loop
#
# Error, time and memory of every way to compute or approximate the gradient through MAML's inner loop, against the
# number of inner steps, measured on your machine. You will see why memory decides when there are many steps, what the
# exact ways without much memory cost, and which approximation suits which problem.
# It takes about a minute on two CPU cores.

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
# The inner loop takes K gradient steps on a task's support set, from θ_0 to θ_K. The meta-gradient is the derivative of the query loss at the end, L′(θ_K), with respect to where the loop started.
# For plain gradient descent it is a product (notebook 1 derives it and checks it by hand):
#
# ```
# (I − α ∇²L(θ_0)) … (I − α ∇²L(θ_{K−1})) ∇L′(θ_K)
# ```
#
# Reverse-mode differentiation evaluates it from the right. It begins at the *last* step, and on the way back it needs what was computed at every step on the way there.
# To keep all of that until then is what takes the memory.
#
# Our task is a sine wave with 100 points to adapt to, for a network with two hidden layers of 64 units. The inner steps have a proximal term, as in iMAML, which pulls the parameters back to where they started.
# It costs nothing worth mentioning, and with it the loop converges to a point that depends on θ_0, which one of the methods below needs:
#
# ```
# θ_{k+1} = θ_k − α (∇L(θ_k) + λ (θ_k − θ_0))        for k = 0 … K−1
# ```

# %%
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxmeta
from jaxmeta import adapt, nn, plotting

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

network = nn.MLP((64, 64), activation=jnp.tanh)
params = network.init(jax.random.key(0), jnp.ones((1, 1)))
loss_fn = nn.mean_squared_error(lambda params, x: network.apply(params, x / 5))  # x is from −5 to 5
sine_waves = jaxmeta.tasks.sinusoid(num_shots=100, num_queries=100)
task = sine_waves.sample(jax.random.key(1), sine_waves.data)
proximal_steps = adapt.proximal(adapt.sgd(0.02), 3.0)  # α = 0.02, λ = 3
print(f"{ravel_pytree(params)[0].size:,} parameters")

# %% [markdown]
# In `jaxmeta` the inner loop is written once, in `adapt.unroll`, and *how* it is differentiated is a strategy. To a learner you give it as an argument, `maml(..., meta_gradient=strategy)`.
# Here we call the strategies directly, to look at one task's gradient and nothing else. A strategy takes two functions, the inner loop and the outer loss, and returns a function that computes the gradient.
#
# `measure` compiles this function and asks three things of it:
#
# - **memory**: the compiler says how much space the program needs for intermediate results. It knows before the program runs. It is for one task; N tasks at a time take N times as much.
# - **time**: the median of a few runs.
# - **the gradient**, so that we can compare it with that of `exact`.


# %%
def task_gradient(strategy, optimizer):
    """(key, meta_params, steps, task) -> ((loss, metrics), gradient)."""

    def inner_loop(meta_params, sources, task, **how):  # a step for each of the `sources`, all on the whole support set
        state, _ = adapt.unroll(optimizer, loss_fn, lambda _, params: task.support, meta_params, sources, **how)
        return adapt.Adapted(optimizer.params(meta_params, state.fast)), state

    return strategy(inner_loop, lambda adapted, task: loss_fn(adapted.params, task.query))


def measure(strategies, counts, optimizer):
    """{name: [(bytes, seconds, gradient) for each K of `counts`]}."""
    meta_params = jaxmeta.MetaParams(params, optimizer.init(params))
    arguments = {k: (jax.random.key(0), meta_params, jnp.arange(k), task) for k in counts}
    points = [(name, k) for name in strategies for k in counts]

    def compiled(point):
        name, k = point
        return jax.jit(task_gradient(strategies[name], optimizer)).lower(*arguments[k]).compile()

    with ThreadPoolExecutor() as pool:  # compiling takes longer than running: several at a time
        programs = list(pool.map(compiled, points))
    found = {name: [] for name in strategies}
    for (name, k), program in zip(points, programs, strict=True):
        _, gradient = program(*arguments[k])
        seconds = []
        while len(seconds) < 3 or (sum(seconds) < 0.1 and len(seconds) < 20):
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments[k]))
            seconds.append(time.perf_counter() - start)
        found[name].append((program.memory_analysis().temp_size_in_bytes, float(np.median(seconds)), gradient))
    return found


def curves(found, exact, part="params"):
    """What `plotting.cost` draws. `part`: the gradient of the initialisation ("params") or of what else is learned."""
    vector = lambda gradient: ravel_pytree(getattr(gradient, part))[0]
    distance = lambda a, b: float(jnp.linalg.norm(vector(a) - vector(b)) / jnp.linalg.norm(vector(b)))
    return {
        "memory": {name: [row[0] for row in rows] for name, rows in found.items()},
        "time": {name: [row[1] for row in rows] for name, rows in found.items()},
        "error": {
            name: [distance(row[2], best[2]) for row, best in zip(rows, exact, strict=True)]
            for name, rows in found.items()
        },
    }


def show(drawn, counts):
    print(f"{f'{counts[-1]} inner steps':25} {'MiB':>8} {'ms':>8} {'error':>9}")
    for name in drawn["memory"]:
        memory, seconds, error = (drawn[quantity][name][-1] for quantity in ("memory", "time", "error"))
        print(f"{name:25} {memory / 2**20:8.2f} {1e3 * seconds:8.1f} {error:9.1e}")


# %% [markdown]
# ## Exact, in less memory
#
# The strategies of the first group all compute the exact meta-gradient. They differ in what they keep and what they compute a second time.
#
# - `exact()` is plain reverse mode. It keeps what each of the K steps computed.
# - `exact(num_segments="sqrt")` cuts the loop into √K segments. It keeps θ between segments, and runs each segment again when the way back reaches it.
# - `mixed_mode()` keeps θ_k of each step, and computes the rest again. It multiplies the Hessian by a vector in forward mode over reverse mode
#   (Kemaev et al. 2025, *Scalable Meta-Learning via Mixed-Mode Differentiation*, https://arxiv.org/abs/2505.00793).
# - `mixed_mode(num_segments="sqrt")` does both.

# %%
counts = [4, 25, 144]
exact_ones = measure(
    {
        "exact": adapt.exact(),
        "exact, segments": adapt.exact(num_segments="sqrt"),
        "mixed mode": adapt.mixed_mode(),
        "mixed mode, segments": adapt.mixed_mode(num_segments="sqrt"),
    },
    counts,
    proximal_steps,
)
exact = exact_ones["exact"]
drawn = curves(exact_ones, exact)
plotting.cost(counts, memory=drawn["memory"], time=drawn["time"], title="The exact meta-gradient, in four ways")

# %%
show(drawn, counts)
memory = drawn["memory"]
assert max(max(errors) for errors in drawn["error"].values()) < 1e-3  # rounding of 32-bit numbers
assert memory["exact"][2] > 4 * memory["exact"][1] > 16 * memory["exact"][0]
assert memory["mixed mode"][2] < memory["exact"][2] / 3
assert memory["mixed mode, segments"][2] < memory["exact, segments"][2] < memory["exact"][2] / 4

# %% [markdown]
# Look at the slopes of the left panel: both axes are logarithmic, so what grows in proportion to K is a line of slope 1.
#
# - Plain reverse mode grows with K times the *activations* of a step, mixed mode with K times the *parameters*. So mixed mode saves most where inputs are long or support sets large.
# - With segments, memory grows with √K.
# - The error column is the rounding of 32-bit numbers. No accuracy is lost.
#
# Now the right panel. The other three do a part of the arithmetic twice, and while all fits a processor's cache, plain reverse mode is usually the fastest.
# Once it does not fit, they catch up or overtake it: what is not kept need not be written to memory and read again.
# Where the lines cross depends on your machine, and on what else it is doing.
#
# ## Who chooses: `auto`
#
# You need not choose among these. `adapt.auto()` is what `maml` uses unless told otherwise. It estimates, from the shapes and before anything compiles, how much memory each needs, takes one, and says which, and why,
# to the logger "jaxmeta" at level INFO. Give it a budget in bytes, and it takes one that fits.

# %%
logger = logging.getLogger("jaxmeta")
logger.setLevel(logging.INFO)
logger.handlers = [logging.StreamHandler(sys.stdout)]

one_task = jax.tree.map(lambda x: x[None], task)
for num_inner_steps, strategy in [(4, adapt.auto()), (144, adapt.auto()), (144, adapt.auto(memory_budget=2 * 2**20))]:
    learner = jaxmeta.maml(
        lambda key: params,
        loss_fn,
        inner_optimizer=proximal_steps,
        num_inner_steps=num_inner_steps,
        meta_gradient=strategy,
    )
    state = jax.eval_shape(learner.init, jax.random.key(0))
    jax.eval_shape(learner.update, jax.random.key(0), state, one_task)  # traces the program, without running it

# %% [markdown]
# (Each message is given once in a process, so the cell prints nothing when you run it a second time.)
#
# ## Approximations
#
# The second group gives up exactness. Their memory does not grow with K at all.
#
# - `truncated(4)` is exact through the last four steps, and takes the gradients of the earlier ones for constants.
# - `first_order()` takes all of them for constants.
# - `implicit()` does not look at the steps. If the loop has reached its solution, the solution's derivative follows from the condition that the gradient is zero there.
#   What is left to solve is a linear system with the Hessian, here by 5 steps of conjugate gradient (CG)
#   (Rajeswaran, Finn, Kakade, Levine 2019, *Meta-Learning with Implicit Gradients*, https://arxiv.org/abs/1909.04630).

# %%
approximate = measure(
    {
        "truncated(4)": adapt.truncated(4),
        "first order": adapt.first_order(),
        "implicit, 5 steps of CG": adapt.implicit(solver=adapt.conjugate_gradient(5)),
    },
    counts,
    proximal_steps,
)
beside_exact = {"exact": exact, **approximate}
drawn = curves(beside_exact, exact)
plotting.cost(counts, **drawn, title="Approximations beside the exact meta-gradient")

# %%
show(drawn, counts)
memory, error = drawn["memory"], drawn["error"]
for name in approximate:
    assert memory[name][2] < 1.5 * memory[name][1] and memory[name][2] < memory["exact"][2] / 4, name
assert error["truncated(4)"][0] < 1e-4  # four steps: nothing is cut off
assert error["truncated(4)"][2] > 0.3 and error["first order"][2] > 1
assert error["implicit, 5 steps of CG"][2] < error["implicit, 5 steps of CG"][0] / 10

# %% [markdown]
# The curves of the error go in opposite directions.
#
# - Truncation is exact while K ≤ 4. Then its error grows: to about 1 here, as large as the gradient itself. It levels out because the proximal term is a pull in every step, whatever came before; see notebook 1 for a loop without it.
# - First order has the largest error, about 3. That does not make it useless: what counts in the end is what is learned with it, see notebook 1.
# - The implicit gradient is far off while the loop is on its way, and becomes accurate as the loop converges, to about 0.0002 after 144 steps.
#   It depends on this: with a weaker proximal term, `adapt.proximal(adapt.sgd(0.02), 0.3)`, the loop converges more slowly, and its error after 144 steps is about 0.1.
#
# ## A few learned numbers: forward mode
#
# Reverse mode is the right choice when the gradient is of thousands of parameters. Sometimes only a few numbers are learned through the inner loop: an inner rate per layer, the weight of a loss.
# Then the derivatives can be carried *forward* along with the loop, and nothing has to be kept. Memory does not depend on K, and the result is exact. The time grows with the number of derivatives.
#
# `adapt.lslr` has a learned rate for each of the six arrays of parameters. We compare the gradients in these six numbers.

# %%
learned_rates = adapt.lslr(0.02, num_inner_steps=1)  # one rate for each layer, the same in all steps
of_rates = measure({"exact": adapt.exact(), "forward mode": adapt.forward_mode()}, [4, 144], learned_rates)
drawn = curves(of_rates, of_rates["exact"], part="hyper")
plotting.cost([4, 144], memory=drawn["memory"], time=drawn["time"], title="The meta-gradient of six learned rates")

# %%
show(drawn, [4, 144])
memory = drawn["memory"]["forward mode"]
assert max(drawn["error"]["forward mode"]) < 1e-3
assert memory[1] < 1.1 * memory[0] and memory[1] < drawn["memory"]["exact"][1] / 4

# %% [markdown]
# ## Without any derivative
#
# If the inner loop has no useful derivative at all, evolution strategies estimate the gradient from losses: perturb θ_0, adapt, compare. This works whatever happens inside the loop.
# The price is noise. With n parameters and m pairs of perturbations, the relative error is about √(n/m), far above 1 for a network.

# %%
num_pairs = 16
estimated = measure({"ES": adapt.evolution_strategy(num_pairs=num_pairs, std=1e-2)}, [25], proximal_steps)
drawn = curves(estimated, exact[1:2])
show(drawn, [25])
expected = np.sqrt(ravel_pytree(params)[0].size / num_pairs)
print(f"√(n/m) = {expected:.1f}")
assert expected / 2 < drawn["error"]["ES"][0] < expected * 2

# %% [markdown]
# ## What a network keeps
#
# All of this was about the loop. What a single pass keeps is a choice too. Of a residual network most of it lies between
# the convolutions: norms, activations, sums. `nn.ResNet12(recomputes=True)` keeps what the convolutions say, and computes
# the rest anew on the way back. `jax.vjp` returns the way back as a pytree of all that it has to hold until then, and for
# its shapes nothing has to run:


# %%
def held(network):
    """MiB that the way back through a batch of five images holds, the parameters among them."""
    images = jnp.zeros((5, 84, 84, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    backward = jax.eval_shape(lambda params: jax.vjp(network.apply, params, images)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)) / 2**20


kept = {recomputes: held(nn.ResNet12(num_classes=5, recomputes=recomputes)) for recomputes in (False, True)}
print(f"{kept[False]:.0f} MiB, and {kept[True]:.0f} MiB where it recomputes")
assert kept[True] < 0.6 * kept[False]

# %% [markdown]
# What becomes of it in a compiled meta-step is for XLA to order. Where devices share the images of a task it takes a third
# less memory, in the same time; on one device it takes more, and is best left off. The page *What do I do when memory runs
# out?* has the figures.

# %% [markdown]
# ## Which to choose
#
# | your case | take | because |
# |---|---|---|
# | you do not know | nothing, or `adapt.auto()` | exact, and it fits the memory |
# | there is less memory than `auto` assumes | `adapt.auto(memory_budget=...)` | exact, within the budget if any exact way is |
# | long inputs, large support sets | `adapt.mixed_mode()` | exact; keeps parameters, not activations |
# | hundreds of inner steps | `num_segments="sqrt"`, of either | exact; memory grows with √K |
# | a few learned numbers, a loop of any length | `adapt.forward_mode()` | exact; memory does not grow |
# | the loop converges to a solution | `adapt.implicit()` with `adapt.proximal` | memory does not grow; check that it converges |
# | early steps matter little | `adapt.truncated(n)` | biased; memory of n steps |
# | speed above all, or a first baseline | `adapt.first_order()` | biased; cheapest |
# | no derivative | `adapt.evolution_strategy()` | unbiased for the smoothed loss, and noisy |
#
# Each is given as `maml(..., meta_gradient=...)`, and nothing else changes. Two more ways to save memory are independent of this choice:
# `maml(..., microbatch=1)` takes the tasks one after another, with the same result, and `maml(..., batch_size=b)` takes each inner step on b examples, which is another inner loop.
#
# If memory runs out in spite of all this, compile the outer step without running it, as `measure` does, and look at `memory_analysis()` for growing K. It tells what a longer loop needs.
