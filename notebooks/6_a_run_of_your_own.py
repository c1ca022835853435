# %% [markdown]
# # A run of your own
#
# The training loop written by hand, validation with an early end, saving a run and going on in another process, many
# seeds at once, and what to do when memory runs out or a run diverges. All of it is what `jaxmeta.fit` does in one call,
# and what you do around that call in a project of your own.
# It takes about a minute and a half on two CPU cores.

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
import os
import tempfile
import warnings

# A second process runs below. On a GPU the first one would take nearly all memory when it starts; this leaves some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## The run, in a file of its own
#
# A run that goes on in another process has to build the same learner and the same tasks there. So we put both into a
# small module, and import it here as any other. The tasks are the sine waves of the MAML paper (Finn et al., 2017,
# https://arxiv.org/abs/1703.03400), with five points to adapt on.

# %%
folder = pathlib.Path(tempfile.mkdtemp())  # all files of this notebook lie here

(folder / "my_run.py").write_text("""
import jax.numpy as jnp
import optax

import jaxmeta

network = jaxmeta.nn.MLP(hidden=(40, 40))
init_fn = lambda key: network.init(key, jnp.zeros((1, 1)))
loss_fn = jaxmeta.nn.mean_squared_error(network.apply)

learner = jaxmeta.maml(
    init_fn,
    loss_fn,
    inner_optimizer=jaxmeta.adapt.sgd(0.01),
    num_inner_steps=2,
    optimizer=optax.adam(5e-3),
)
tasks = jaxmeta.tasks.sinusoid(num_shots=5)
""")
sys.path.insert(0, str(folder))

from my_run import init_fn, learner, loss_fn, tasks

# %% [markdown]
# ## The outer loop by hand
#
# A learner is a tuple of pure functions. Two of them make a training loop: `init(key)` gives a state, and
# `update(key, state, tasks)` gives the next one. Everything that changes is in the state: the meta-parameters θ, the
# outer optimizer's moments, the step counter.

# %%
key = jax.random.key(0)
init_key, run_key = jax.random.split(key)
learner.init(init_key)

# %% [markdown]
# Three things make the loop fast and right:
#
# - `jax.jit(learner.update)` compiles one outer step, with the inner loop and its derivative, into one program.
#   The first call waits for the compiler; later calls do not.
# - `donate_argnums=1` lets the program write the new state into the memory of the old one. The old state cannot be
#   used afterwards, which is fine, because we give it the name of the new one.
# - The key of each step is made from the step's number by `fold_in`. The draws of step 37 are then the same, however
#   the run got there, in one piece or with a stop in between.

# %%
sample_tasks = jax.jit(jax.vmap(tasks.sample, in_axes=(0, None)))
update = jax.jit(learner.update, donate_argnums=1)

state = learner.init(init_key)
losses = []
for _ in range(200):
    task_key, update_key = jax.random.split(jax.random.fold_in(run_key, state.step))
    batch = sample_tasks(jax.random.split(task_key, 20), tasks.data)  # 20 tasks, stacked along a leading axis
    state, metrics = update(update_key, state, batch)
    losses.append(metrics["loss"])
    if int(state.step) % 50 == 0:
        print(f"step {int(state.step)}: loss of the last 50 steps {np.mean(losses[-50:]):.3f}")

# %% [markdown]
# This loop is yours: print, plot, change the learning rate, stop when you like. If you need none of that, `fit` runs
# the same steps with the same keys, in compiled chunks without a trip to Python for every step. The two agree up to the
# rounding of two different programs.

# %%
state_of_fit, history = jaxmeta.fit(key, learner, tasks, num_outer_steps=200, num_tasks=20, progress=False)

# A single step agrees to rounding; over the steps of a run small differences grow.
np.testing.assert_allclose(history["loss"][:20], np.array(losses[:20]), rtol=1e-3)
jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-2),
    state.meta_params.params,
    state_of_fit.meta_params.params,
)
largest = max(abs(history["loss"] / np.array(losses) - 1))
print(f"largest relative difference of a loss: {largest:.1e}")

# %% [markdown]
# ## Validation, an early end, the best state
#
# With endless tasks, longer training rarely hurts. With few tasks a meta-learner overfits as any other learner does:
# it gets better on the tasks that it is trained on, and no better, or worse, on new ones. Let us make only twenty
# training tasks, as if that were all the data there is. `at` gives the task of a number, `sample` draws one of them.

# %%
twenty = sample_tasks(jax.random.split(jax.random.key(7), 20), tasks.data)


def at(index, data):
    return jax.tree.map(lambda leaf: leaf[index], data)


def sample(key, data):
    return at(jax.random.randint(key, (), 0, 20), data)


few_tasks = jaxmeta.TaskDistribution(sample, twenty, at=at, size=20)

# %% [markdown]
# `training.Validation` says on which tasks to judge, by which metric, whether low or high is good, how often, and after
# how many validations without a better one to stop (`patience`). It judges the state on the same tasks each time, so
# that the curve moves because the state does. In a project, validation tasks are neither training nor test tasks.

# %%
validation = jaxmeta.training.Validation(tasks=tasks, metric="mse", best="lowest", every=50, patience=6, num_tasks=200)
best, history = jaxmeta.fit(
    jax.random.key(0), learner, few_tasks, num_outer_steps=2000, num_tasks=20, validate=validation, progress=False
)
print(f"ended after step {history.num_steps}; the state returned is that of step {int(best.step)}")

# %%
steps = history.validation["step"]
on_training_tasks = [history["mse"][step - 50 : step].mean() for step in steps]

figure, (axes,) = jaxmeta.plotting.figure(1, width=6.4, height=3.6)
axes.plot(steps, on_training_tasks, "s--", color="#d55e00", label="the twenty training tasks")
axes.plot(steps, history.validation["mse"], "o-", color="#0072b2", label="new tasks (validation)")
axes.axvline(int(best.step), color="#999999", linestyle=":", label="the state that fit returns")
axes.set(xlabel="outer step", ylabel="mse after adaptation")
axes.legend(frameon=False)
figure

# %% [markdown]
# The error on the twenty training tasks keeps falling; that on new tasks soon does not. `fit` ended the run by itself, and
# returned the state of the best validation, not the last one.

# %%
assert history.num_steps < 2000, "patience ends the run"
assert int(best.step) == steps[np.argmin(history.validation["mse"])]
assert history.num_steps - int(best.step) == 6 * 50  # six validations without a better one
assert on_training_tasks[-1] < history.validation["mse"][-1]  # the gap between seen and new tasks

# %% [markdown]
# Judge the result on test tasks, with a key of their own. The best value of a validation curve is too good an estimate
# of the test error, because it was chosen for being good.

# %%
report = jaxmeta.evaluate(jax.random.key(2), learner, tasks, best.meta_params, num_tasks=600)
report

# %% [markdown]
# ## Save, and go on in another process
#
# `save_state` writes a state, with the optimizer's moments and the step counter. Where a machine may be taken away, as
# in Colab, save now and then from a callback; the checkpoint is complete before the one before it is deleted.

# %%
save_to = folder / "checkpoints"


def save(state, metrics):
    if int(state.step) % 200 == 0:
        jaxmeta.training.save_state(save_to, int(state.step), state)


_, first_half = jaxmeta.fit(
    key, learner, tasks, num_outer_steps=200, num_tasks=20, callbacks=[save], chunk_size=100, progress=False
)
sorted(path.name for path in save_to.iterdir())

# %% [markdown]
# Now another Python process builds the learner from `my_run.py`, restores the state, and goes on with the same key.
# `restore_state` needs to know what the state looks like; `jax.eval_shape(learner.init, key)` says so without computing
# anything. `num_outer_steps` counts from the beginning of the run, so 400 means 200 more.

# %%
(folder / "go_on.py").write_text("""
import sys

import jax
from my_run import learner, tasks

import jaxmeta

key = jax.random.key(0)
state = jaxmeta.training.restore_state(sys.argv[1], like=jax.eval_shape(learner.init, key))
print("restored the state of step", int(state.step))
state, history = jaxmeta.fit(key, learner, tasks, num_outer_steps=400, num_tasks=20, state=state, progress=False)
jaxmeta.training.save_state(sys.argv[1], int(state.step), state)
print("went on:", history)
""")
command = [sys.executable, "go_on.py", str(save_to)]
result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
assert result.returncode == 0, result.stderr
print(result.stdout)

# %% [markdown]
# Is what came out of it what a run without a stop would have given? To the last bit: the state holds all that the run
# needs, and the keys of a step depend on its number alone.

# %%
resumed = jaxmeta.training.restore_state(save_to, like=jax.eval_shape(learner.init, key))
uninterrupted, history = jaxmeta.fit(key, learner, tasks, num_outer_steps=400, num_tasks=20, progress=False)

assert int(resumed.step) == int(uninterrupted.step) == 400
jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
print("equal, to the last bit")

# %% [markdown]
# ## Many seeds at once
#
# One run is one sample. Give `fit` an array of keys, and it trains as many runs in one compiled program; states and
# metrics get a leading axis for the seeds. Here are eight runs of MAML, and eight of its first-order version, which
# leaves the second derivatives out.

# %%
first_order = jaxmeta.fomaml(
    init_fn, loss_fn, inner_optimizer=jaxmeta.adapt.sgd(0.01), num_inner_steps=2, optimizer=optax.adam(5e-3)
)
keys = jax.random.split(jax.random.key(3), 8)
runs = {
    name: jaxmeta.fit(keys, trained, tasks, num_outer_steps=300, num_tasks=20, progress=False)
    for name, trained in {"MAML": learner, "first order": first_order}.items()
}
histories = {name: history for name, (_, history) in runs.items()}
print({name: history["mse"].shape for name, history in histories.items()})

jaxmeta.plotting.learning_curves(histories, names=["mse"])

# %% [markdown]
# The lines are medians over the eight seeds, the bands hold the half of the seeds around them.
#
# A number for a paper has an interval over seeds. Evaluate the state of each seed on the same test tasks, and take the
# mean and its 95% interval from the eight results: with so few, by the quantile of Student's t distribution with seven
# degrees of freedom, 2.365, in place of 1.96. This interval is about other seeds of this training. That of a single
# report is about other test tasks of this one network.


# %%
def mse_of(trained, states, seed):
    """The error on test tasks of one seed's state."""
    meta_params = jax.tree.map(lambda leaf: leaf[seed], states).meta_params
    report = jaxmeta.evaluate(jax.random.key(4), trained, tasks, meta_params, num_tasks=300)
    return report.metrics["mse"]["mean"][-1]


found = {}
for name, trained in {"MAML": learner, "first order": first_order}.items():
    found[name] = np.array([mse_of(trained, runs[name][0], seed) for seed in range(8)])
    ci95 = 2.365 * found[name].std(ddof=1) / np.sqrt(8)
    print(f"{name}: mse after 2 steps {found[name].mean():.3f} ± {ci95:.3f}, seeds {np.round(found[name], 2)}")

# %%
for _, (states, history) in runs.items():
    assert history["mse"].shape == (8, 300)
    assert states.step.tolist() == [300] * 8
assert len(set(np.round(found["MAML"], 6))) == 8  # eight different runs

# %% [markdown]
# ## When memory runs out
#
# Backpropagation through the inner loop keeps what each inner step computed, for every task of the batch. Long loops,
# large support sets and many tasks multiply. What the compiled program needs is known before it runs: compile it and
# ask. `temp_size_in_bytes` is the memory for intermediate results.

# %%
network = jaxmeta.nn.MLP(hidden=(64, 64))
long_loop = {
    "init_fn": lambda key: network.init(key, jnp.zeros((1, 1))),
    "loss_fn": jaxmeta.nn.mean_squared_error(network.apply),
    "inner_optimizer": jaxmeta.adapt.from_optax(optax.adam(1e-2, eps_root=1e-8)),
    "num_inner_steps": 25,
}
large_tasks = jaxmeta.tasks.sinusoid(num_shots=100)
large_batch = jax.vmap(large_tasks.sample, (0, None))(jax.random.split(jax.random.key(5), 8), large_tasks.data)

MIB = 2**20
adapt = jaxmeta.adapt
ways = {
    "all 8 tasks at once, plain": {"microbatch": 8, "meta_gradient": adapt.exact()},
    "1 task at a time": {"microbatch": 1, "meta_gradient": adapt.exact()},
    "mixed mode, 5 segments": {"microbatch": 8, "meta_gradient": adapt.mixed_mode(num_segments="sqrt")},
    "auto, at most 8 MiB": {"microbatch": 8, "meta_gradient": adapt.auto(memory_budget=8 * MIB)},
    "both left to jaxmeta": {},
}
memory, meta_gradients = {}, {}
print(f"{'':>28}   memory   norm of the meta-gradient")
for name, how in ways.items():
    long_learner = jaxmeta.maml(**long_loop, **how)
    state = long_learner.init(jax.random.key(0))
    program = jax.jit(long_learner.update).lower(jax.random.key(1), state, large_batch).compile()
    memory[name] = program.memory_analysis().temp_size_in_bytes / MIB
    _, metrics = program(jax.random.key(1), state, large_batch)
    meta_gradients[name] = float(metrics["grad_norm"])
    print(f"{name:>28} {memory[name]:5.1f} MiB   {meta_gradients[name]:.4f}")

# %% [markdown]
# Every line is the exact meta-gradient; only the order of the computation differs. In this order, try:
#
# 1. Nothing. By default `maml` takes as many tasks at a time as fit, and chooses how to differentiate the loop from the
#    shapes, within half of the device's memory. The logger "jaxmeta" says what it chose.
# 2. `microbatch`: fewer tasks at a time. The gradient is the mean over all tasks all the same.
# 3. `adapt.auto(memory_budget=...)`: a limit in bytes for the inner loops of the tasks that run together. It is an
#    estimate made before compiling, so the compiled program may be a little above it. By hand: segments, which keep
#    √K states and compute the steps between them again, and mixed mode, which keeps no activations. `auto` chose among
#    these.
# 4. Only then approximations: `adapt.truncated(k)`, `fomaml`. They are other meta-gradients.

# %%
plain = memory["all 8 tasks at once, plain"]
assert memory["1 task at a time"] < plain / 3
assert memory["mixed mode, 5 segments"] < plain / 3
assert memory["auto, at most 8 MiB"] < plain / 3
np.testing.assert_allclose(list(meta_gradients.values()), meta_gradients["all 8 tasks at once, plain"], rtol=1e-2)

# %% [markdown]
# ## What a diverged run looks like
#
# An outer step of which anything is not finite, the loss, the gradient or what would become of the parameters, is not
# applied: the meta-parameters and the optimizer stay as they were, `metrics["is_finite"]` is false, and
# `state.num_skipped` counts it. One bad batch cannot spoil a run.

# %%
state = learner.init(init_key)
batch = sample_tasks(jax.random.split(jax.random.key(6), 4), tasks.data)
x, y = batch.query
bad = batch._replace(query=(x, y.at[0].set(jnp.nan)))  # one of the four tasks is broken

after, metrics = jax.jit(learner.update)(jax.random.key(7), state, bad)
print(f"is_finite {bool(metrics['is_finite'])}, step {int(after.step)}, num_skipped {int(after.num_skipped)}")

assert not metrics["is_finite"] and int(after.num_skipped) == 1
jax.tree.map(np.testing.assert_array_equal, state.meta_params, after.meta_params)
print("the meta-parameters are as they were")

# %% [markdown]
# A few skipped steps are no harm, and `fit` warns of them. When ten in a row are skipped, the run cannot go on,
# and `fit` says so. The usual reason is an inner learning rate that is too high: here 1.0 for five steps, a hundred
# times the rate of above.

# %%
too_fast = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=adapt.sgd(1.0), num_inner_steps=5)
try:
    jaxmeta.fit(jax.random.key(0), too_fast, tasks, num_outer_steps=100, num_tasks=20, progress=False)
    raise AssertionError("this run should have diverged")
except FloatingPointError as error:
    print(error)

# %% [markdown]
# Between the two there are runs that go on while some steps are skipped. Look at `num_skipped` of what `fit` returned:
# a run that skips a tenth of its steps trains on the easier tasks only, and its result is not to be trusted.

# %%
on_the_edge = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=adapt.sgd(0.1), num_inner_steps=5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    state, history = jaxmeta.fit(
        jax.random.key(0), on_the_edge, tasks, num_outer_steps=100, num_tasks=20, progress=False
    )
print(caught[0].message if caught else "no warning")
print(history.num_skipped, "of", history.num_steps, "steps skipped")
assert int(state.num_skipped) == history.num_skipped == np.sum(~history["is_finite"])

# %% [markdown]
# What to do, in this order: a lower inner rate; the outer gradient clipped,
# `optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))`; if a single operation is to blame,
# `jax.config.update("jax_debug_nans", True)` finds it.

# %%
import shutil

shutil.rmtree(folder)  # nothing of this notebook stays on the disk
