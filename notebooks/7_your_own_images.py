# %% [markdown]
# # Your own images
#
# A folder of pictures with unequal classes and a broken file, read, split by classes, augmented and learned from by
# ProtoNet and MAML; then the baselines and pictures of another kind in the same table, what a learner gets wrong, and
# episodes of any size.
# It takes under three minutes on two CPU cores. Put the path of your own folder in the place of ours, and the rest stays
# as it is.

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
import collections
import colorsys
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw

import jaxmeta

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## A folder
#
# Ours is drawn here, so that nothing is downloaded: signs. Each class is one ink and a number of corners; its pictures
# differ in the paper, the place, the size, how the sign is turned and how the light falls. Each has between 8 and 30.

# %%
temporary = tempfile.TemporaryDirectory()
photos = pathlib.Path(temporary.name, "photos")
rng = np.random.default_rng(0)


def drawing(sign):
    """A picture of 64 x 48 pixels of one of 42 signs."""
    ink = 255 * np.array(colorsys.hsv_to_rgb(sign / 42, 1.0, 0.9 if sign % 2 else 0.55))
    ink = np.clip(ink + rng.integers(-25, 26, 3), 0, 255).astype(int)
    image = Image.new("RGB", (64, 48), tuple(rng.integers(120, 256, 3).tolist()))
    circle = (32 + rng.uniform(-5, 5), 24 + rng.uniform(-4, 4), rng.uniform(13, 18))
    ImageDraw.Draw(image).regular_polygon(circle, 3 + sign % 4, rng.uniform(0, 360), fill=tuple(ink.tolist()))
    return image


for sign in range(42):
    (photos / f"sign {sign:02}").mkdir(parents=True)
    for i in range(rng.integers(8, 31)):
        drawing(sign).save(photos / f"sign {sign:02}" / f"{i:02}.jpg")

(photos / "sign 00" / "00.jpg").write_bytes(b"an interrupted download")
(photos / "sign 01" / "notes.txt").write_text("taken in spring")

# %% [markdown]
# `image_folder` reads it: a folder for each class, as torchvision has it. Every picture is cut to its middle square and
# scaled. The broken one is named, in a warning that we catch to show it, and left out. The second time the decoded images
# come from a cache, unless a file has changed.

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    images = jaxmeta.tasks.image_folder(photos, size=28, cache_dir=temporary.name, progress=False)
print(said[0].message)
images

# %%
assert list(images.broken) == ["sign 00/00.jpg"] and images.num_ignored == 1
assert len(images) == 42 and images["sign 01"].shape[1:] == (28, 28, 3)
counts = [len(pictures) for pictures in images.values()]
assert min(counts) >= 7 and max(counts) > 2 * min(counts)  # unequal, and nothing is cut off or padded

# %% [markdown]
# ## Split by classes
#
# A few-shot learner is tested on *classes* that it has never seen, so classes are what is split. `seed` chooses which;
# lists of your own go in by `names={"train": [...], ...}`. Where the folder has `train/`, `val/` and `test/` already, read
# them by `image_folder(photos, split="train")`.

# %%
train, validation, test = jaxmeta.tasks.split_classes(images, seed=0)
print(train, validation, test, sep="\n")
assert not set(train) & set(test) and not set(train) & set(validation)

# %% [markdown]
# ## Episodes, augmented
#
# With so few pictures augmentation helps: a random crop, and a mirror image every second time, whenever a picture is
# drawn. It is for training alone.

# %%
augment = jaxmeta.tasks.augment.chain([jaxmeta.tasks.augment.random_crop(3), jaxmeta.tasks.augment.random_flip()])
train_tasks = jaxmeta.tasks.few_shot(train, num_ways=5, num_shots=1, num_queries=5, augment=augment)
test_tasks = jaxmeta.tasks.few_shot(test, num_ways=5, num_shots=1, num_queries=5)

task = train_tasks.sample(jax.random.key(0), train_tasks.data)
jaxmeta.plotting.episode(task.support, task.query, np.asarray(task.query[1]), title="an episode to train on")

# %% [markdown]
# ## Train ProtoNet and MAML
#
# Both get the same network of four convolutions. ProtoNet embeds images and takes the nearest class mean; MAML takes
# gradient steps on the one example of each class.

# %%
image = jnp.zeros((1, 28, 28, 3), jnp.uint8)
embedding = jaxmeta.nn.Conv4(num_classes=None, num_filters=16)
protonet = jaxmeta.protonet(
    lambda key: embedding.init(key, image),
    embedding.apply,
    num_ways=5,
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 200)),
)
protonet_state, _ = jaxmeta.fit(
    jax.random.key(0), protonet, train_tasks, num_outer_steps=200, num_tasks=4, progress=False
)

classifier = jaxmeta.nn.Conv4(num_classes=5, num_filters=16)
maml = jaxmeta.maml(
    lambda key: classifier.init(key, image),
    jaxmeta.nn.cross_entropy(classifier.apply),
    inner_optimizer=jaxmeta.adapt.sgd(0.4),
    num_eval_steps=3,
    optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, 200)),
)
maml_state, _ = jaxmeta.fit(jax.random.key(0), maml, train_tasks, num_outer_steps=200, num_tasks=4, progress=False)

# %% [markdown]
# ## Judge
#
# On the same 200 tasks of test classes, beside what needs no learning at all: the nearest support image, pixel by pixel.


# %%
def pixels(params, x):
    """No embedding: the image itself."""
    return params["one"] * x.reshape(len(x), -1) / 255


nearest = jaxmeta.protonet(lambda key: {"one": jnp.ones(())}, pixels, num_ways=5)
nearest_state = nearest.init(jax.random.key(0))
learners = {
    "ProtoNet": (protonet, protonet_state),
    "MAML": (maml, maml_state),
    "nearest in pixels": (nearest, nearest_state),
}
reports = {
    name: jaxmeta.evaluate(jax.random.key(1), learner, test_tasks, state.meta_params, num_tasks=200)
    for name, (learner, state) in learners.items()
}
for name, report in reports.items():
    accuracy = report.metrics["accuracy"]
    print(f"{name:>17}: {accuracy['mean'][-1]:.3f} ± {accuracy['ci95'][-1]:.3f}")

# %%
for name in ("ProtoNet", "MAML"):
    lead = reports[name].ahead_of(reports["nearest in pixels"], "accuracy")
    assert lead["mean"] - lead["ci95"] > 0.1

# %% [markdown]
# ## What else is there
#
# Any such table is asked how good an ordinary classifier is: trained to tell all 27 training classes apart, in
# minibatches, it gets a new head for each task. `simple_shot` takes the nearest class mean of its features, `fine_tune`
# fits a linear head to them. One training serves both.

# %%
init_fn = lambda key: embedding.init(key, image)
sizes = {"num_classes": len(train), "num_features": 16, "num_ways": 5}
simple_shot = jaxmeta.simple_shot(init_fn, embedding.apply, optimizer=optax.adam(1e-2), **sizes)
fine_tune = jaxmeta.fine_tune(init_fn, embedding.apply, **sizes)
minibatches = jaxmeta.tasks.all_classes(train, batch_size=64, augment=augment)
classifier_state, _ = jaxmeta.fit(
    jax.random.key(0), simple_shot, minibatches, num_outer_steps=200, num_tasks=1, progress=False
)

# %% [markdown]
# Two relatives of MAML. Proto-MAML takes ProtoNet's class means for the head that a task starts from, and adapts all of
# it. BOIL adapts all but the head. Neither begins from nothing here: Proto-MAML goes on from ProtoNet's embedding, BOIL
# from MAML's network, 40 outer steps more. A state is a tuple, and its parameters can be put in.

# %%
proto_maml = jaxmeta.proto_maml(
    init_fn,
    embedding.apply,
    num_ways=5,
    inner_optimizer=jaxmeta.adapt.sgd(0.01),
    meta_gradient=jaxmeta.adapt.first_order(),
    optimizer=optax.adam(1e-3),
)
boil = jaxmeta.boil(
    lambda key: classifier.init(key, image),
    jaxmeta.nn.cross_entropy(classifier.apply),
    learning_rate=0.4,
    num_eval_steps=3,
    optimizer=optax.adam(1e-3),
)


def going_on(learner, put_in, tasks=train_tasks):
    """Trained for 40 steps from parameters that are there: `put_in` places them among its own."""
    state = learner.init(jax.random.key(0))
    params = put_in(state.meta_params.params)
    state = state._replace(meta_params=state.meta_params._replace(params=params))
    options = {"num_outer_steps": 40, "num_tasks": 4, "progress": False}
    return jaxmeta.fit(jax.random.key(0), learner, tasks, state=state, **options)[0]


proto_maml_state = going_on(proto_maml, lambda own: own._replace(params=protonet_state.meta_params.params))
boil_state = going_on(boil, lambda own: maml_state.meta_params.params)
learners |= {
    "Proto-MAML": (proto_maml, proto_maml_state),
    "BOIL": (boil, boil_state),
    "fine-tuning": (fine_tune, classifier_state),
    "SimpleShot": (simple_shot, classifier_state),
}

# %% [markdown]
# ## Several sources
#
# How far do they get with pictures of another kind? `tasks.glyphs` renders printed letters, a function of a task gives
# them the form of ours, and `mixture` takes both. To train on it is one distribution: ProtoNet goes on learning from
# both. `evaluate` judges the sources apart, and a report has a row for each.


# %%
def in_colour(tasks):
    """Tasks of grey ink, 255 on 0, as tasks of pictures like ours."""

    def sample(key, data):
        task = tasks.sample(key, data)
        paper = lambda batch: (jnp.stack([255 - batch[0]] * 3, axis=-1), batch[1])
        return jaxmeta.Task(paper(task.support), paper(task.query))

    return jaxmeta.TaskDistribution(sample, tasks.data)


def both(signs, split):
    """Signs and letters, as often; those of the split "held_out" are of other alphabets than those of "train"."""
    return jaxmeta.tasks.mixture({"signs": signs, "letters": in_colour(jaxmeta.tasks.glyphs(split, num_queries=5))})


on_both = going_on(protonet, lambda own: protonet_state.meta_params.params, both(train_tasks, "train"))
learners["ProtoNet, both"] = (protonet, on_both)
test_of_both = both(test_tasks, "held_out")
reports_of_both = {
    name: jaxmeta.evaluate(jax.random.key(1), learner, test_of_both, state.meta_params, num_tasks=100)
    for name, (learner, state) in learners.items()
}
reports_of_both["ProtoNet"]

# %% [markdown]
# All in one table, by `mean_ranks`, as in Meta-Dataset: the rank is in brackets, and learners that cannot be told apart
# on a source share one. It is no ranking of methods: forty steps are few for what Proto-MAML and BOIL could add to where
# they began, and no rate was tuned.

# %%
ranks = jaxmeta.training.mean_ranks(reports_of_both, "accuracy", best="highest")
assert ranks.sources == ("signs", "letters") and len(ranks.learners) == 8
ranks

# %% [markdown]
# ## Look at mistakes
#
# A number does not say what goes wrong. Draw a task with the answers:

# %%
task = test_tasks.sample(jax.random.key(3), test_tasks.data)
params, head = protonet.adapt(jax.random.key(0), protonet_state.meta_params, task)
answers = jnp.argmax(head(embedding.apply(params, task.query[0])), axis=-1)
jaxmeta.plotting.episode(task.support, task.query, answers, title="ProtoNet, signs that it has never seen")

# %% [markdown]
# And count over many tasks which sign was taken for which. `info` of a task has its classes, by their place in `test`.

# %%
names = list(test)


@jax.jit
@jax.vmap
def answered(key):
    """The classes that were there, and those that were answered."""
    task = test_tasks.sample(key, test_tasks.data)
    params, head = protonet.adapt(key, protonet_state.meta_params, task)
    answers = jnp.argmax(head(embedding.apply(params, task.query[0])), axis=-1)
    return task.info[task.query[1]], task.info[answers]


truth, answers = answered(jax.random.split(jax.random.key(4), 200))
mistakes = collections.Counter(
    (names[right], names[wrong])
    for right, wrong in zip(truth.ravel().tolist(), answers.ravel().tolist(), strict=True)
    if right != wrong
)
for (right, wrong), times in mistakes.most_common(5):
    print(f"{right} taken for {wrong}: {times} times")
share_of_mistakes = mistakes.total() / truth.size
assert abs(1 - share_of_mistakes - reports["ProtoNet"].metrics["accuracy"]["mean"][-1]) < 0.1

# %% [markdown]
# ## Episodes of any size
#
# In the field nobody promises five classes and one example. Where `few_shot` is given ranges, each episode draws its own
# sizes; the arrays keep one shape, so that nothing compiles again, and a mask says what counts. ProtoNet as it was
# trained is judged on 2 to 5 classes with 1 to 5 examples of each:

# %%
varied = jaxmeta.tasks.few_shot(test, num_ways=(2, 5), num_shots=(1, 5), num_queries=2)
report = jaxmeta.evaluate(jax.random.key(1), protonet, varied, protonet_state.meta_params, num_tasks=200)
report

# %%
assert report.metrics["accuracy"]["mean"][-1] > reports["ProtoNet"].metrics["accuracy"]["mean"][-1]
temporary.cleanup()

# %% [markdown]
# Fewer classes and more examples are easier, as they should be. Training on ranges goes the same way:
# `few_shot(train, num_ways=(2, 5), ...)`.
#
# From the command line, with pictures and a result that is written down:
#
#     jaxmeta train maml-folder --data-dir photos
