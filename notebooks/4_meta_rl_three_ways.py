# %% [markdown]
# # Meta-RL three ways
#
# One family of tasks, three meta-learners, and three answers to the question what adaptation is: a gradient step
# (MAML), a hidden state (RL²), a belief about the task (PEARL). You train all three on the CPU, compare them on the same
# test tasks, then write an environment of your own, and see an agent move in it. What comes after that can be read in any
# order: numbers of any scale, discrete actions and masks, environments of gymnasium and of other libraries. It takes
# two to three minutes.

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

import jaxmeta
from jaxmeta import rl

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## The family
#
# In meta-reinforcement-learning a task is an environment, and a family is a distribution over environments. Ours is the
# point robot of the PEARL paper (Rakelly et al., 2019, https://arxiv.org/abs/1903.08254). A point starts in the origin
# and moves by at most 0.1 in each direction for 20 steps. Its goal lies somewhere on a half-circle of radius 1. The
# point sees where it is, but not where the goal is; its reward is minus the distance to the goal. So the goal, which is
# the task, has to be found out from rewards. There are 80 goals to train on and 20 others to test on.

# %%
family = rl.families.point_robot(is_sparse=False)
print("training goals", family.train.data.goal.shape, "test goals", family.test.data.goal.shape)

# %% [markdown]
# Two agents that do not learn say what returns mean here: one that acts at random, and one that is told the goal and
# goes straight to it. `rl.reference_learner` lets both go through the same `evaluate` as a learner.

# %%
references = {
    "random": rl.oracles.random_policy(family.environment.action_space),
    "told the goal": rl.oracles.optimal_navigation,
}
reports = {}
for name, agent in references.items():
    reference = rl.reference_learner(agent, family.environment, num_episodes=10)
    meta_params = reference.init(jax.random.key(0)).meta_params
    reports[name] = jaxmeta.evaluate(jax.random.key(1), reference, family.test, meta_params)
    print(name, reports[name])

# %% [markdown]
# Below, each learner plays four episodes of each of three test tasks before it adapts, and four after. This is one
# function for all three learners, because all have the same two: `adapt(key, meta_params, task)` meets a new task, and
# `agent(meta_params, adapted)` is how to act then; without `adapted` it acts as before the task was met.

# %%
one_episode = rl.trial(family.environment)
test_tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.array([2, 9, 17])], family.test.data)


def paths(key, learner, meta_params, task):
    """Where the point was, before adaptation and after it: [2, 21, 4, 2], for 21 moments of 4 episodes."""
    adapt_key, *keys = jax.random.split(key, 3)
    adapted = learner.adapt(adapt_key, meta_params, task)
    found = []
    for key, agent in zip(keys, (learner.agent(meta_params), learner.agent(meta_params, adapted)), strict=True):
        run = lambda key, agent=agent: rl.rollout(key, one_episode, *agent, task)[1]
        played = jax.vmap(run, out_axes=1)(jax.random.split(key, 4))
        found.append(jnp.concatenate([played.inputs.observation[:1], played.next_observation]))
    return jnp.stack(found)


def draw_paths(learner, meta_params, title, step):
    keys = jax.random.split(jax.random.key(2), len(test_tasks.goal))
    points = jax.jit(jax.vmap(lambda key, task: paths(key, learner, meta_params, task)))(keys, test_tasks)
    mask = np.ones((*points.shape[:2], points.shape[2] - 1, points.shape[3]), bool)  # no episode ends early
    return jaxmeta.plotting.trajectories(points, mask, test_tasks.goal, title, step=step)


# %% [markdown]
# ## MAML: adaptation is a gradient step
#
# MAML (Finn et al., 2017, https://arxiv.org/abs/1703.03400) learns the initial weights θ of a policy. In a new task the
# policy plays some episodes, here ten, and takes one step of the policy gradient on them:
#
# ```
# θ' = θ + α ∇J(θ)                J: the return of an episode in this task
# max over θ:  mean over tasks of J(θ')
# ```
#
# The outer loop differentiates through the inner step. θ is good if ten episodes of it tell the gradient where to go.
# The outer steps are PPO's here, as in ProMP (https://arxiv.org/abs/1810.06784).

# %%
policy = rl.mlp_policy(family, hidden=(32, 32), init_std=0.5)
maml = jaxmeta.maml_rl(
    policy.init,
    policy.apply,
    family.environment,
    inner_optimizer=jaxmeta.adapt.sgd(0.5),
    num_inner_steps=1,
    num_episodes=10,
    outer=jaxmeta.PPO(num_epochs=5, clip=0.3),
    optimizer=optax.adam(3e-3),
)
maml_state, maml_history = jaxmeta.fit(
    jax.random.key(0), maml, family.train, num_outer_steps=50, num_tasks=20, progress=False
)
reports["MAML"] = jaxmeta.evaluate(jax.random.key(1), maml, family.test, maml_state.meta_params)
reports["MAML"]

# %% [markdown]
# What `adapt` returns are weights: the same network, moved by a step of its own for each task.

# %%
task = family.test.at(2, family.test.data)
adapted = maml.adapt(jax.random.key(3), maml_state.meta_params, task)
moved = jax.tree.map(lambda new, old: float(jnp.linalg.norm(new - old)), adapted.params, maml_state.meta_params.params)
moved

# %%
draw_paths(maml, maml_state.meta_params, "MAML, three test tasks", step="gradient step")

# %% [markdown]
# Before adaptation all episodes go a little way up, where no goal is very far. Afterwards they go to the goal of the
# task, though one step does not hit it exactly. Each episode is a little different, since a policy that is learned by
# policy gradients has to act at random.

# %%
before, after = reports["MAML"].metrics["return"]["mean"]
print(f"return {before:.1f} before adaptation, {after:.1f} after one step on ten episodes")
assert after > before + 4

# %% [markdown]
# ## RL²: adaptation is a hidden state
#
# RL² (Duan et al., 2016, https://arxiv.org/abs/1611.02779) trains one recurrent policy, and its weights never change in
# a new task. What changes is the hidden state h, which is told the previous action and reward beside the observation,
# and is kept from one episode of a task to the next:
#
# ```
# h_t = f_θ(h_{t−1}, o_t, a_{t−1}, r_{t−1}, d_t)        d_t: whether an episode begins
# a_t ~ π_θ(· | h_t)
# ```
#
# A trial is some episodes in the same task. Training is ordinary reinforcement learning, by PPO here, of the return of
# whole trials. It learns to learn because remembering pays.

# %%
rl2 = jaxmeta.rl2(
    family,
    num_episodes=2,
    num_eval_episodes=4,  # longer than in training: the hidden state just goes on
    actor=jaxmeta.nn.gru(32),
    advantages=jaxmeta.Advantages(discount=0.9, gae_lambda=0.9),
    outer=jaxmeta.PPO(num_epochs=4, num_minibatches=4),
    optimizer=optax.adam(5e-3),
)
rl2_state, rl2_history = jaxmeta.fit(
    jax.random.key(0), rl2, family.train, num_outer_steps=120, num_tasks=128, progress=False
)
reports["RL²"] = jaxmeta.evaluate(jax.random.key(1), rl2, family.test, rl2_state.meta_params)
reports["RL²"]

# %% [markdown]
# What `adapt` returns is the hidden state after a trial: 32 numbers in which everything stands that the policy knows of
# the task.

# %%
adapted = rl2.adapt(jax.random.key(3), rl2_state.meta_params, task)
print(jax.tree.map(jnp.shape, adapted))

draw_paths(rl2, rl2_state.meta_params, "RL², three test tasks", step="trial of four episodes")

# %% [markdown]
# Look at the episodes before adaptation: they start alike, and then turn to the goal. The hidden state adapts with
# every reward, so that this learner does not wait for the end of an episode. After the trial it goes straight there.

# %%
first, *_, last = reports["RL²"].metrics["return"]["mean"]
print(f"return {first:.1f} in the first episode, {last:.1f} in the fourth")
assert last > first + 0.5
assert first > reports["random"].metrics["return"]["mean"][0] + 5  # it adapts within its first episode

# %% [markdown]
# ## PEARL: adaptation is a belief
#
# PEARL (Rakelly et al., 2019, https://arxiv.org/abs/1903.08254) describes a task by a few numbers z, and infers them.
# An encoder makes a Gaussian of each transition c that was seen. Their product is the belief about z; before anything
# is seen it is the prior N(0, 1). The actor is told a sample of it, a new one for each episode:
#
# ```
# q(z | c_1 .. c_n) ∝ Π_i N(z; μ(c_i), σ²(c_i))
# z ~ q,   a ~ π(a | o, z)
# ```
#
# The actor and its critics learn by soft actor-critic from replay buffers, one for each training task, which is why
# tasks have to come back: `rl.indexed_tasks` numbers them. A transition is used many times, so that PEARL needs far
# fewer steps of the environment, and more gradient steps.

# %%
networks = (
    jaxmeta.mlp_actor_critic(family, latent_size=3, hidden=(64, 64)),
    jaxmeta.mlp_encoder(family, latent_size=3, hidden=(64, 64)),
)
pearl = jaxmeta.pearl(
    family,
    *networks,
    num_train_tasks=80,
    kl_weight=0.01,
    replay=jaxmeta.Replay(capacity=1000, num_gradient_steps=50, batch_size=16, num_context=20),
    sac=jaxmeta.SoftActorCritic(discount=0.8, reward_scale=10.0, temperature=0.2, target_rate=0.05),
    meta_test=jaxmeta.MetaTest(num_episodes=3),
    optimizer=optax.adam(3e-3),
)
pearl_state, pearl_history = jaxmeta.fit(
    jax.random.key(0),
    pearl,
    rl.indexed_tasks(family.train.data),
    num_outer_steps=50,
    num_tasks=20,
    progress=False,
)
reports["PEARL"] = jaxmeta.evaluate(jax.random.key(1), pearl, family.test, pearl_state.meta_params)
reports["PEARL"]

# %% [markdown]
# What `adapt` returns is the belief: a mean and a deviation for each of the three numbers. The deviation of the prior
# is 1 for all; what was seen of the task has narrowed it.

# %%
belief = pearl.adapt(jax.random.key(3), pearl_state.meta_params, task).belief
print("mean     ", np.round(belief.mean, 2))
print("deviation", np.round(jnp.exp(belief.log_std), 2))
assert np.all(np.exp(belief.log_std) < 1)

draw_paths(pearl, pearl_state.meta_params, "PEARL, three test tasks", step="trial of three episodes")

# %% [markdown]
# Before adaptation each episode follows another sample of the prior, a guess of the task, and holds on to it to the end.
# That is how PEARL explores: by whole episodes, as posterior sampling does. Afterwards it leaves in about the right
# direction, and ends beside the goal: 2,500 gradient steps are few for soft actor-critic. The deviation is
# near 0 all the same: a belief can be narrow and not yet of much use.

# %%
first, *_, last = reports["PEARL"].metrics["return"]["mean"]
print(f"return {first:.1f} under the prior, {last:.1f} after three episodes")
assert last > first + 3

# %% [markdown]
# Where a task pays only near its goal, the goal has to be found first, and a belief has to be of use while nothing was
# paid yet. Then a visit infers it anew for each episode, as at test, and contexts are of what was seen so far:

# %%
seeking = jaxmeta.Visits(num_prior_steps=100, num_posterior_steps=200, infers_each_episode=True)
sparse = rl.families.point_robot()  # of episodes of 20 steps
seeker = jaxmeta.pearl(
    sparse,
    *networks,
    num_train_tasks=80,
    visits=seeking,
    replay=jaxmeta.Replay(num_gradient_steps=50, num_context=100, is_context_partial=True),
    meta_test=jaxmeta.MetaTest(num_episodes=20, num_exploration_episodes=5),
)
print("steps under the prior, under beliefs, extra:", seeking.num_steps(sparse.environment.max_steps))

# %% [markdown]
# `jaxmeta train pearl-point-robot` trains such a one for some minutes; it finds the goal of nearly every test task in twenty
# episodes.

# %% [markdown]
# ## Side by side
#
# The same 20 test tasks for all. The horizontal axis counts units of adaptation, which are not the same: for MAML one
# unit is a gradient step on ten episodes, for RL² and PEARL it is one episode.

# %%
jaxmeta.plotting.adaptation_curves(
    reports,
    names=["return"],
    title="20 test tasks, mean and 95% interval",
    adaptation="adaptation: step on 10 episodes (MAML), episode (RL², PEARL)",
)

# %%
histories = {"MAML": maml_history, "RL²": rl2_history, "PEARL": pearl_history}
num_steps = {name: int(history["num_env_steps"].sum()) for name, history in histories.items()}
for name, number in num_steps.items():
    final = reports[name].metrics["return"]["mean"][-1]
    print(f"{name:>6}: return {final:6.2f} at the end, meta-trained on {number:>9,} steps of the environment")
assert num_steps["PEARL"] < num_steps["MAML"] / 5
assert all(report.metrics["return"]["mean"][-1] > -15 for name, report in reports.items() if name != "random")

# %% [markdown]
# What this comparison shows, and what it does not:
#
# - All three adapt to goals that they were never trained on. That much a short training shows.
# - They need different things. MAML needs a batch of episodes for a step. RL² adapts within an episode, and was trained
#   on the most environment steps. PEARL was trained on the fewest, a small part of those of the others.
# - The order at the end is that of these few minutes, one seed and these small networks, with settings that we chose by
#   looking at these same test goals. It says nothing about which learner is better. Trained longer, all get closer to the agent that is told the goal. The recipes of the project
#   (`jaxmeta list`) train for longer and are judged beside more references.

# %% [markdown]
# ## A family of your own
#
# An environment is two pure functions, `reset` and `step`, that take the task as an argument. Nothing of the task may be
# drawn inside; randomness comes from the key. Here a boat is to be held at a dock in the origin, in a river whose
# current is another one in each task. The boat sees its position, and not the current.


# %%
def reset(key, current):
    position = jnp.array([0.0, -1.0]) + jax.random.uniform(key, (2,), minval=-0.3, maxval=0.3)
    return position, position  # what is observed, and the state of the environment


def step(key, position, action, current):
    position = position + action + current
    return position, position, -jnp.linalg.norm(position), jnp.bool_(False)  # observed, state, reward, terminated


def sample_current(key):
    return jax.random.uniform(key, (2,), minval=-0.07, maxval=0.07)


thrust = rl.Continuous(low=np.full(2, -0.1), high=np.full(2, 0.1))
river = rl.family(rl.Environment(reset, step, thrust, max_steps=30), sample_current)

# %% [markdown]
# That is all. `rl.family` has looked at both functions before anything is trained: that shapes and types agree, that
# the sampler uses its key, that `reset` does not draw a part of the task. Any of the learners above trains on it. We
# take RL², with a single episode as its trial: the current has to be found out while the boat is drifting.

# %%
boatman = jaxmeta.rl2(
    river,
    actor=jaxmeta.nn.gru(32),
    advantages=jaxmeta.Advantages(discount=0.9, gae_lambda=0.9),
    outer=jaxmeta.PPO(num_epochs=4, num_minibatches=4),
    optimizer=optax.adam(3e-3),
)
boat_state, boat_history = jaxmeta.fit(
    jax.random.key(0), boatman, river.train, num_outer_steps=100, num_tasks=128, progress=False
)
jaxmeta.plotting.history(boat_history, names=["return", "entropy"], title="RL² on the river")

# %% [markdown]
# How good is that? Three references: random thrust; an agent that is told the current and steers against it, written as
# a function of the task that returns an `rl.Agent`; and the trained agent itself, but with its hidden state wiped
# before each step. The last one has the same weights, and cannot adapt.


# %%
def told_the_current(current):
    def act(key, current, carry, inputs):  # (key, params, carry, inputs) -> (action, carry, extras)
        return -inputs.observation - current, carry, ()  # the trial clips it to the largest thrust

    return rl.Agent(act, current)


trained = boatman.agent(boat_state.meta_params)


def act_without_memory(key, params, carry, inputs):
    action, _, extras = trained.policy(key, params, trained.carry, inputs)  # always from the first hidden state
    return action, carry, extras


agents = {
    "random": rl.oracles.random_policy(thrust),
    "memory wiped": rl.Agent(act_without_memory, trained.params),
    "RL²": trained,
    "told the current": told_the_current,
}
returns = {}
for name, agent in agents.items():
    reference = rl.reference_learner(agent, river.environment)
    meta_params = reference.init(jax.random.key(0)).meta_params
    report = jaxmeta.evaluate(jax.random.key(4), reference, river.test, meta_params, num_tasks=200)
    returns[name] = report.metrics["return"]["mean"][0]
    print(f"{name:>16}: return {returns[name]:6.2f} ± {report.metrics['return']['ci95'][0]:.2f}")

assert returns["random"] + 10 < returns["RL²"] < returns["told the current"] + 0.5
assert returns["memory wiped"] < returns["RL²"] - 1  # what it remembers is what it gains

# %% [markdown]
# ## Moving
#
# `rl.rollout(..., keep_states=True)` keeps the state of the environment at every step, and `plotting.animation` makes a
# GIF of it. States that are a point in the plane it can draw by itself; for others, or for more, give it a function
# that draws one state. Ours draws the dock, the boat, and the current of the task as an arrow.


# %%
def draw(axes, position, current):
    axes.plot(0, 0, "*", color="#d55e00", markersize=16)
    axes.plot(*position, "o", color="#0072b2", markersize=9)
    axes.annotate("", xy=np.array([-1.0, -1.0]) + 5 * current, xytext=(-1.0, -1.0), arrowprops={"arrowstyle": "->"})
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")


current = jnp.array([0.06, 0.02])
played = {}
for name in ("memory wiped", "RL²"):
    _, played[name] = rl.rollout(
        jax.random.key(5), rl.trial(river.environment), *agents[name], current, keep_states=True
    )

moving = jaxmeta.plotting.animation(played, current, draw=draw, trail=lambda position: position)
moving

# %% [markdown]
# The arrow is the current. Without memory the boat comes to rest beside the dock, where its thrust and the current are
# in balance, about 0.24 away; with it the boat corrects for the current that it has felt, and stays within about 0.04.
#
# `save` writes the GIF.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "boat.gif"
    moving.save(path)
    num_bytes = path.stat().st_size
    print(f"{num_bytes / 1000:.0f} kB, {len(moving.frames)} frames")
assert num_bytes < 300_000 and len(moving.frames) >= 30

# %% [markdown]
# ## In other units
#
# Suppose the boat reported millimetres, from a mark on the bank 5 m away, and were paid by the millimetre too. Nothing of
# the problem has changed, but a network of the usual rates learns little from numbers in the thousands. With
# `normalization=rl.running_moments(family)` a learner sees observations by their running mean and deviation, and rewards
# by a running scale; both are measured while it trains, and fixed at test.


# %%
def seen(position):
    return 1000 * (position + 5)


def reset_in_mm(key, current):
    observation, position = reset(key, current)
    return seen(observation), position


def step_in_mm(key, position, action, current):
    observation, position, reward, terminated = step(key, position, action, current)
    return seen(observation), position, 1000 * reward, terminated


river_in_mm = rl.family(rl.Environment(reset_in_mm, step_in_mm, thrust, max_steps=30), sample_current)
in_mm = {}
for name, normalization in {"as they are": None, "normalised": rl.running_moments(river_in_mm)}.items():
    learner = jaxmeta.rl2(
        river_in_mm,
        actor=jaxmeta.nn.gru(32),
        advantages=jaxmeta.Advantages(discount=0.9, gae_lambda=0.9),
        outer=jaxmeta.PPO(num_epochs=4, num_minibatches=4),
        optimizer=optax.adam(3e-3),
        normalization=normalization,
    )
    state, history = jaxmeta.fit(
        jax.random.key(0), learner, river_in_mm.train, num_outer_steps=40, num_tasks=128, progress=False
    )
    in_mm[f"millimetres, {name}"] = np.asarray(history["return"]) / 1000

in_mm["metres"] = np.asarray(boat_history["return"])[:40]
jaxmeta.plotting.lines(in_mm, "outer step", "return, metres", "RL² on the river", highlight="millimetres, normalised")

# %%
last = {name: returns[-10:].mean() for name, returns in in_mm.items()}
for name, value in last.items():
    print(f"{name:>24}: return {value:6.1f} m")
assert last["millimetres, normalised"] > last["metres"] - 2
assert last["millimetres, as they are"] < last["metres"] - 10

# %% [markdown]
# What was measured lies beside the parameters, in `state.meta_params.constants`, and is saved with them: of how many
# steps, where the boat was in the mean, in millimetres, and how far from there.

# %%
moments = state.meta_params.constants.observation
print(f"{moments.num_steps:,.0f} steps, mean", moments.mean.round(), "deviation", jnp.sqrt(moments.variance).round())

# %% [markdown]
# ## Discrete actions, and actions that are not there
#
# PEARL and SAC act on discrete actions as well: `mlp_actor_critic` of such a family has a value for each, and what they
# learn from are sums over all actions in the place of samples (Christodoulou, 2019, https://arxiv.org/abs/1910.07207).
#
# A corridor has seven cells, and one of its ends pays 1 for each step there: which one is the task. An episode starts in
# the middle and has 8 steps. From the last cell there is no step outward: `action_mask` is a function of what is
# observed that says so, and no learner that is given it takes such a step.

# %%
NUM_CELLS = 7  # each seen as one-hot


def reset_corridor(key, end):
    return jax.nn.one_hot(3, NUM_CELLS), jnp.int32(3)


def step_corridor(key, cell, action, end):
    cell = cell + action - 1  # 0: to the left, 1: stay, 2: to the right
    return jax.nn.one_hot(cell, NUM_CELLS), cell, jnp.where(cell == end, 1.0, -0.1), jnp.bool_(False)


def inside(observation):
    cell = jnp.argmax(observation)
    return jnp.array([cell > 0, True, cell < NUM_CELLS - 1])


ends = jnp.array([0, NUM_CELLS - 1])
corridor = rl.Environment(reset_corridor, step_corridor, rl.Discrete(3), max_steps=8)
corridors = rl.finite_family(corridor, train=ends, test=ends)
walker = jaxmeta.pearl(
    corridors,
    jaxmeta.mlp_actor_critic(corridors, latent_size=2, hidden=(32, 32)),
    jaxmeta.mlp_encoder(corridors, latent_size=2, hidden=(32, 32)),
    num_train_tasks=2,
    kl_weight=0.01,
    replay=jaxmeta.Replay(capacity=500, num_gradient_steps=50, batch_size=32, num_context=16),
    sac=jaxmeta.SoftActorCritic(discount=0.9, temperature=0.1, target_rate=0.05),
    meta_test=jaxmeta.MetaTest(num_episodes=2),
    optimizer=optax.adam(3e-3),
    action_mask=inside,
)
walker_state, _ = jaxmeta.fit(
    jax.random.key(0), walker, rl.indexed_tasks(ends), num_outer_steps=40, num_tasks=2, progress=False
)
with_repeats = corridors.test._replace(at=None, size=None)  # more test tasks than there are ends
found = jaxmeta.evaluate(jax.random.key(1), walker, with_repeats, walker_state.meta_params, num_tasks=200)
found

# %% [markdown]
# Who knows the end is there after three steps, and gets 5.8. Without context it walks to one of both ends, and is wrong
# half of the time; where it was paid, or was not, tells which it is.

# %%
before, _, after = found.metrics["return"]["mean"]
print(f"return {before:.1f} under the prior, {after:.1f} after two episodes, at best 5.8")
assert after > before + 2


def play_corridor(agent, key, end):
    return rl.rollout(key, rl.trial(corridor), *agent, end, keep_states=True)[1]


adapted = walker.adapt(jax.random.key(3), walker_state.meta_params, ends[1])
played = play_corridor(walker.agent(walker_state.meta_params, adapted), jax.random.key(4), ends[1])
print("after adaptation, cells:", *played.state, " actions:", *played.action)

untrained = walker.agent(walker.init(jax.random.key(5)).meta_params)  # a mask is no matter of what was learned
played = jax.vmap(play_corridor, (None, 0, None))(untrained, jax.random.split(jax.random.key(6), 500), ends[0])
outward = np.isin(played.state + played.action - 1, (-1, NUM_CELLS)).sum()
print(f"steps outward: {outward} of {played.action.size}, untrained")
assert outward == 0

# %% [markdown]
# ## Environments of gymnasium
#
# What is not written in JAX runs on the host, one step after the other, in Python: some hundred times slower, and right
# all the same, under `vmap`, `jit` and in every learner. You give the name, or a function that makes an environment, and
# a function that sets a task. Here the force on CartPole's cart acts in the direction of the action in half of the tasks,
# and against it in the others.


# %%
def set_physics(env, task):
    env.unwrapped.force_mag = float(task)


cartpole = rl.from_gymnasium("CartPole-v1", set_physics, max_steps=50)
cartpoles = rl.family(cartpole, lambda key: jax.random.choice(key, jnp.array([-10.0, 10.0])))
balancer = jaxmeta.rl2(
    cartpoles,
    actor=jaxmeta.nn.gru(32),
    outer=jaxmeta.PPO(num_epochs=4, num_minibatches=4),
    optimizer=optax.adam(5e-3),
)
_, history = jaxmeta.fit(jax.random.key(0), balancer, cartpoles.train, num_outer_steps=30, num_tasks=32, progress=False)
first, last = np.mean(history["return"][:3]), np.mean(history["return"][-3:])
print(f"it balances for {first:.0f} of 50 steps at first, for {last:.0f} in the end")
assert last > first + 10

# %% [markdown]
# ## Environments of Jumanji, Navix, Craftax and XLand-MiniGrid
#
# They are written in JAX, and each is installed by an extra of its own, as in `pip install 'jaxmeta[jumanji]'`. Those that
# are here are played below, by a random agent. In the first three a task is a *level*, one world as their `reset` draws it; in XLand-MiniGrid it is a
# ruleset, made here: which object pays, and which become others.


# %%
def craftax_worlds():
    from craftax.craftax_env import make_craftax_env_from_name

    params = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False).default_params
    return rl.family(rl.from_craftax("Craftax-Classic-Symbolic-v1", max_steps=100), lambda key: params)


makers = {  # by the package, and the extra that installs it
    ("jumanji", "jumanji"): lambda: rl.family(rl.from_jumanji("Maze-v0", max_steps=50), lambda key: ()),
    ("navix", "navix"): lambda: rl.family(rl.from_navix("Navix-Empty-5x5-v0"), lambda key: ()),
    ("craftax", "craftax"): craftax_worlds,
    ("xminigrid", "xland"): lambda: rl.families.xland(num_objects=3, num_rules=1),
}
for (package, extra), make in makers.items():
    if importlib.util.find_spec(package) is None:
        print(f"{package:>10}: not here, it comes with the extra jaxmeta[{extra}]")
        continue
    family = make()
    agent = rl.oracles.random_policy(family.environment.action_space)
    reference = rl.reference_learner(agent, family.environment, num_episodes=4)
    meta_params = reference.init(jax.random.key(0)).meta_params
    report = jaxmeta.evaluate(jax.random.key(1), reference, family.test, meta_params, num_tasks=50)
    task = family.train.sample(jax.random.key(2), family.train.data)
    mean, ci95 = (report.metrics["return"][name][0] for name in ("mean", "ci95"))
    print(f"{package:>10}: a {type(task).__name__}; a random agent's return is {mean:.2f} ± {ci95:.2f}")

# %% [markdown]
# From there on they are families like any other. What a learner of them takes besides, such as the `action_mask` that
# Jumanji observes, stands on the page *How do I use an environment of my own?*
