# %% [markdown]
# # Few-shot regression and few-shot images
#
# Sine waves from five points, characters from one image each, by MAML and by ProtoNet, and then a folder of your own.
# Part 1 meta-learns sine waves: after one gradient step on five points the network draws the right curve.
# Part 2 does the same for images: telling five characters apart after one example of each. The images are rendered from fonts, so nothing is downloaded. Part 3 reads a folder of your own images.
# It takes about a minute and a half on two CPU cores; the first picture comes within 20 seconds.

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
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import jaxmeta

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## 1. Sine waves from five points
#
# A *task* is one sine wave, with its own amplitude and phase. Its *support set*, five points (x, y), is what we learn
# the task from. Its *query set*, other points of the same wave, says how well that went.
#
# MAML learns the initialisation θ of a network, such that a few gradient steps on a support set give a good network for
# that task. Two loops:
#
# ```
# inner loop, for each task:   θ' = θ − α ∇L(θ; support), here twice
# outer loop, over tasks:      θ  ← θ − β ∇θ mean L(θ'; query), here with Adam
# ```
#
# You give three things: `init_fn`, which makes the parameters; `loss_fn`, of parameters and a batch; and the tasks.

# %%
network = jaxmeta.nn.MLP()  # two hidden layers of 40 units, as in the MAML paper
init_fn = lambda key: network.init(key, jnp.ones((1, 1)))
loss_fn = jaxmeta.nn.mean_squared_error(network.apply)
waves = jaxmeta.tasks.sinusoid(num_shots=5, num_queries=10)


def sine_learner(num_eval_steps):
    """MAML that trains with two inner steps, and takes `num_eval_steps` of them in `adapt` and `evaluate`."""
    inner_optimizer = jaxmeta.adapt.sgd(0.01)
    return jaxmeta.maml(
        init_fn, loss_fn, inner_optimizer=inner_optimizer, num_inner_steps=2, num_eval_steps=num_eval_steps
    )


learner = sine_learner(10)
state, history = jaxmeta.fit(jax.random.key(0), learner, waves, num_outer_steps=5000, num_tasks=25)

# %% [markdown]
# `fit` compiled the whole outer loop into one program; `state.meta_params` is what it learned. Below are three waves
# that it has never seen. The triangles are the five points it is given of each.

# %%
x = jnp.linspace(-5, 5, 200)[:, None]
new_waves = [waves.sample(key, waves.data) for key in jax.random.split(jax.random.key(2), 3)]


def fits(task):
    """The network's curve before adaptation, after one step and after ten, `[3, 200]`."""
    adapted = [sine_learner(k).adapt(jax.random.key(3), state.meta_params, task) for k in (1, 10)]
    return jnp.stack([network.apply(params, x)[:, 0] for params in (state.meta_params.params, *adapted)])


predictions = jnp.stack([fits(task) for task in new_waves])
jaxmeta.plotting.regression_adaptation(
    np.ravel(x),
    np.stack([np.ravel(task.info(x)) for task in new_waves]),
    [task.support for task in new_waves],
    predictions,
    steps=(0, 1, 10),
    title="three new sine waves, five points each",
)

# %% [markdown]
# Before adaptation the curve is the same in all three, for the network knows nothing of the task yet. It may be near by
# chance, as in one of them. What was learned is how it *moves*. Note the places without a triangle nearby: the network
# has learned what waves look like, so it fills them in.
#
# Three pictures prove nothing. `evaluate` adapts to 600 new tasks and reports the mean squared error on their query
# sets after each step, with a 95% confidence interval.

# %%
report = jaxmeta.evaluate(jax.random.key(1), learner, waves, state.meta_params)
jaxmeta.plotting.report(report, title="600 new sine waves")

# %% [markdown]
# Is this due to meta-learning, or would ten gradient steps do it from any start? We ask the same of a network with
# random parameters, which is what `learner.init` returns. It is judged on the same 600 tasks, since the key is the same.

# %%
untrained = learner.init(jax.random.key(0)).meta_params
from_scratch = jaxmeta.evaluate(jax.random.key(1), learner, waves, untrained)
mse, mse_from_scratch = (np.array(found.metrics["mse"]["mean"]) for found in (report, from_scratch))
print(f"meta-learned: {mse[0]:.2f} before, {mse[1]:.2f} after one step, {mse[10]:.2f} after ten")
print(f"random start: {mse_from_scratch[0]:.2f} before, {mse_from_scratch[10]:.2f} after ten")
assert mse[10] < mse[1] < 0.5 * mse[0]
assert mse[10] < 0.5 * mse_from_scratch[10]

# %% [markdown]
# ## 2. Characters from one example
#
# For few-shot *classification* a task is made of classes instead of a function. Five classes, one example of each, is
# "5-way 1-shot".
#
# `jaxmeta.tasks.glyphs` has characters for it, without a download: it renders the sixteen typefaces that come with
# matplotlib, 20 drawings of each of 1,327 characters, a little rotated, stretched and moved. It has the form of Omniglot,
# and is a benchmark of its own. Some letters look alike across alphabets (Latin A, Greek Α, Cyrillic А): these are one
# class, or the test would contain classes seen in training.
#
# We train on Latin, Greek and Cyrillic letters and on signs, and test on what is most unlike them: Armenian, Georgian and
# Lao, three alphabets that training has seen nothing of.

# %%
train_tasks = jaxmeta.tasks.glyphs("train", num_ways=5, num_shots=1, num_queries=5, rotations=True)
test_tasks = jaxmeta.tasks.glyphs("held_out", num_ways=5, num_shots=1, num_queries=5)

images = jaxmeta.tasks.load_glyphs()
print(images)
names = ("LATIN CAPITAL LETTER R", "GREEK SMALL LETTER XI", "CYRILLIC CAPITAL LETTER ZHE")
names += ("ARMENIAN SMALL LETTER DA", "GEORGIAN LETTER UN", "LAO LETTER SO SUNG")
rows = np.stack([images[name][:16] for name in names])
Image.fromarray(255 - rows.swapaxes(1, 2).reshape(6 * 28, 16 * 28))

# %% [markdown]
# Each row is a class, three of training and three of test, in twelve or sixteen typefaces. A task has five classes,
# and of each one image for the support set and five others for the query set. A class has a new label in every task, so
# a network cannot know the answer without the support set. `rotations=True` makes more classes to train on: a character
# turned by 90 degrees is another.


# %%
def judged(learner, meta_params):
    return jaxmeta.evaluate(jax.random.key(1), learner, test_tasks, meta_params, num_tasks=400)


# %% [markdown]
# **A baseline first.** Is the problem hard at all? The simplest answer is the nearest neighbour: the class of the
# support image with the smallest distance, pixel by pixel. That is a prototypical network whose embedding is the image
# itself. Guessing has an accuracy of 0.2.

# %%
pixels = jaxmeta.protonet(lambda key: jnp.ones(()), lambda one, x: one * x.reshape(len(x), -1) / 255, num_ways=5)
nearest_neighbour = judged(pixels, pixels.init(jax.random.key(0)).meta_params)
nearest_neighbour

# %% [markdown]
# **MAML.** The network is the usual one of few-shot papers, four convolutions with batch norm, with 16 filters for speed.
# Batch norm needs care in few-shot learning: with the statistics of the query set, a prediction depends on which other
# queries are in the batch, and a single image cannot be classified. `nn.support_statistics` takes the support set's
# statistics instead (see notebook 3).

# %%
classifier = jaxmeta.nn.Conv4(num_classes=5, num_filters=16)
image = jnp.zeros((1, 28, 28), jnp.uint8)
maml = jaxmeta.maml(
    lambda key: classifier.init(key, image),
    jaxmeta.nn.cross_entropy(classifier.apply),
    inner_optimizer=jaxmeta.adapt.sgd(0.4),
    num_inner_steps=1,
    num_eval_steps=3,
    condition_fn=jaxmeta.nn.support_statistics(classifier.apply),
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 1000)),
)
maml_state, maml_history = jaxmeta.fit(jax.random.key(0), maml, train_tasks, num_outer_steps=1000, num_tasks=4)

# %% [markdown]
# **ProtoNet.** A prototypical network has no inner loop. It learns an embedding; a class is the mean of its support
# images in the embedding, and the nearest mean is the answer. Training on more classes at a time, here 20, makes a
# better embedding.

# %%
embedding = jaxmeta.nn.Conv4(num_classes=None, num_filters=16)
protonet = jaxmeta.protonet(
    lambda key: embedding.init(key, image),
    embedding.apply,
    num_ways=20,
    num_eval_ways=5,
    condition_fn=jaxmeta.nn.support_statistics(embedding.apply),
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 1000)),
)
tasks_of_20 = jaxmeta.tasks.glyphs("train", num_ways=20, num_shots=1, num_queries=5, rotations=True)
protonet_state, _ = jaxmeta.fit(jax.random.key(0), protonet, tasks_of_20, num_outer_steps=1000, num_tasks=1)

# %% [markdown]
# Both are judged on the same 400 tasks, of characters that neither has seen.

# %%
maml_report = judged(maml, maml_state.meta_params)
protonet_report = judged(protonet, protonet_state.meta_params)
for name, found in (("nearest neighbour", nearest_neighbour), ("MAML", maml_report), ("ProtoNet", protonet_report)):
    accuracy = found.metrics["accuracy"]
    print(f"{name:>17}: {accuracy['mean'][-1]:.3f} ± {accuracy['ci95'][-1]:.3f}")
for found in (maml_report, protonet_report):
    lead = found.ahead_of(nearest_neighbour, "accuracy")
    assert lead["mean"] - lead["ci95"] > 0.1

jaxmeta.plotting.adaptation_curves(
    {"MAML": maml_report, "ProtoNet": protonet_report, "nearest neighbour": nearest_neighbour},
    names=["accuracy"],
    title="400 tasks of new characters, 5-way 1-shot",
    adaptation="step of adaptation (a fit of the class means counts as one)",
)

# %% [markdown]
# All start at chance, as they must: before adaptation nobody knows which class is called 0. We measured about .33 for
# the nearest neighbour, .63 for MAML and .81 for ProtoNet. This is a short training; both go on to improve with more
# outer steps and filters.
#
# Here is one test task, as each of them answers it.

# %%
task = test_tasks.sample(jax.random.key(5), test_tasks.data)
params = maml.adapt(jax.random.key(0), maml_state.meta_params, task)
maml_answers = jnp.argmax(classifier.apply(params, task.query[0]), axis=-1)
jaxmeta.plotting.episode(task.support, task.query, maml_answers, title="MAML after three inner steps")

# %%
embedding_params, head = protonet.adapt(jax.random.key(0), protonet_state.meta_params, task)
protonet_answers = jnp.argmax(head(embedding.apply(embedding_params, task.query[0])), axis=-1)
jaxmeta.plotting.episode(task.support, task.query, protonet_answers, title="ProtoNet")

# %% [markdown]
# What `adapt` returned classifies one image at a time as it does a batch, since the statistics come from the support set.

# %%
one_at_a_time = [int(jnp.argmax(classifier.apply(params, picture[None]))) for picture in task.query[0]]
assert one_at_a_time == maml_answers.tolist()

# %% [markdown]
# ## 3. A folder of your own
#
# Suppose your images lie in folders, one for each class: `class/image.png`. To have such a folder, we write twelve Georgian
# letters into a temporary one, in black on white as on paper.

# %%
temporary = tempfile.TemporaryDirectory()
folder = pathlib.Path(temporary.name) / "letters"
letters = [name for name in images if name.startswith("GEORGIAN LETTER")][:12]
for name in letters:
    (folder / name).mkdir(parents=True)
    for i, picture in enumerate(images[name]):
        Image.fromarray(255 - picture).save(folder / name / f"{i:02}.png")

# %% [markdown]
# The next three lines are what you need; classes may have any number of images. `255 -` is for dark ink on white paper:
# the networks above were trained with ink at 1 and paper at 0. For colour leave out `color="L"`, and train on colour
# too.

# %%
read = jaxmeta.tasks.image_folder(folder, size=28, color="L", cache_dir=temporary.name, progress=False)
data = {name: 255 - pictures for name, pictures in read.items()}
own_tasks = jaxmeta.tasks.few_shot(data, num_ways=5, num_shots=1, num_queries=5)
read

# %%
assert all((data[name] == images[name]).all() for name in letters)
temporary.cleanup()  # the images are in `data` now
jaxmeta.evaluate(jax.random.key(1), protonet, own_tasks, protonet_state.meta_params, num_tasks=200)

# %% [markdown]
# From here on `own_tasks` is like any other: `jaxmeta.fit(key, learner, own_tasks, ...)` trains on it. Keep some classes
# apart for test: `train, validation, test = jaxmeta.tasks.split_classes(data)`.
#
# When it goes wrong:
#
# - *Accuracy stays at chance*: look at `jaxmeta.plotting.episode` first. If the images are right, raise the inner rate.
# - *Good on training classes, bad on test classes*: more classes help most, then rotations, then more examples.
