# %% [markdown]
# # Beliefs: RL², VariBAD, and the best that can be done
#
# In a grid with a hidden goal it is known exactly what can be believed at each step, and what is the best that anybody
# can do who is not told the goal. You compute both, train RL², whose belief is a hidden state that nobody can read, and
# VariBAD, whose belief says where it looks for the goal, and draw what it believes beside what it should. It takes about
# two minutes on two cores.

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
import numpy as np
import optax

import jaxmeta
from jaxmeta import plotting, rl
from jaxmeta.algorithms.decoders import Step

jaxmeta.keep_compiled()  # on disk, so that next time nothing here waits for the compiler

# %% [markdown]
# ## The family, and the best that can be done
#
# The grid of Zintgraf et al. (2020, https://arxiv.org/abs/1910.08348): 5 by 5 cells, an episode of 15 steps starts in
# the corner (0, 0), each step pays 1 on the goal and −0.1 elsewhere. The goal is in one of 21 cells, all but the start
# and the three around it, and is not shown. A trial is four episodes with the same goal.
#
# Who is told the goal walks there and stays. Who is not has to search, and the Bayes-optimal policy searches in the way
# that pays most over the whole trial. Here that can be computed by dynamic programming.

# %%
family = rl.families.gridworld()
NUM_EPISODES = 4
trial = rl.trial(family.environment, num_episodes=NUM_EPISODES)
best_returns, best = rl.oracles.bayes_optimal_gridworld(NUM_EPISODES)
best_returns.round(2)

# %% [markdown]
# The second episode is as good as the last: after the first the Bayes-optimal policy has seen nearly all cells, or the
# goal. `rl.oracles.gridworld_belief` says what can be believed at each step of a trial, whoever walks: a cell where
# nobody was paid is not the goal, a cell where somebody was is, and of what is left each is as likely.

# %%
task = family.test.at(17, family.test.data)


def play(agent, key=jax.random.key(0), task=task):
    return rl.rollout(key, trial, *agent, task, keep_states=True)[1]


def draw(grids, played, steps, title):
    squares = {name: np.asarray(belief)[steps].reshape(-1, 5, 5) for name, belief in grids.items()}
    cells, names = np.asarray(played.state)[steps], [f"step {step}" for step in steps]
    return plotting.beliefs(squares, cells=cells, goal=np.asarray(task.goal), names=names, title=title)


played = play(best)
draw({"exact": rl.oracles.gridworld_belief(played)}, played, [0, 4, 8, 12, 30], "the Bayes-optimal walk")

# %% [markdown]
# ## RL²: a belief that nobody can read
#
# RL² (Duan et al., 2016, https://arxiv.org/abs/1611.02779) trains a recurrent policy by the rewards of whole trials. If
# it acts well then something in its hidden state stands for what is known of the goal. What exactly, nobody can say.

# %%
rl2 = jaxmeta.rl2(
    family,
    num_episodes=NUM_EPISODES,
    actor=jaxmeta.nn.gru(64),
    critic=jaxmeta.nn.gru(32),
    outer=jaxmeta.PPO(num_epochs=2, num_minibatches=4),
    optimizer=optax.adam(3e-3),
    entropy_weight=0.05,
)
rl2_state, _ = jaxmeta.fit(jax.random.key(0), rl2, family.train, num_outer_steps=150, num_tasks=128, progress=False)

# %% [markdown]
# ## VariBAD: a belief that is learned by what it predicts
#
# VariBAD makes the belief an object of its own. A recurrent encoder turns what was seen up to a step t into a Gaussian
# over a few numbers m; a decoder has to say from a sample of m what is paid in the whole trial, of which most is still to
# come; and the policy is told the Gaussian's mean and variance beside its cell:
#
# ```
# ELBO_t = E_{m ~ q(m | seen up to t)}[Σ_i log p(r_i | cell_i, m)] − λ KL(q_t ‖ q_{t−1})
# a_t ~ π(· | cell_t, μ_t, log σ_t²)
# ```
#
# Encoder and decoder climb the ELBO, the policy learns by PPO from rewards, and no gradient of it reaches the encoder.
# With a small λ the mean says nearly all there is to say. `num_kept` earlier trials are learned from too: a policy that
# has learned goes straight to the goal, and its trials no longer tell the decoder what is elsewhere.

# %%
decoder = jaxmeta.mlp_decoder(family, latent_size=8, hidden=(32, 32), reward="bernoulli", reward_of="next_state")
varibad = jaxmeta.varibad(
    family,
    decoder,
    num_episodes=NUM_EPISODES,
    elbo=jaxmeta.ELBO(kl_weight=0.01, num_kept=4000, num_minibatches=8),
    advantages=jaxmeta.Advantages(discount=0.95, gae_lambda=0.95),
    outer=jaxmeta.PPO(num_epochs=4, num_minibatches=8),
    optimizer=optax.adam(2e-3),
    model_optimizer=optax.adam(3e-3),
    entropy_weight=0.04,
)
varibad_state, history = jaxmeta.fit(
    jax.random.key(0), varibad, family.train, num_outer_steps=700, num_tasks=128, progress=False
)
plotting.history(history, names=["return", "elbo"], title="VariBAD on the grid")

# %% [markdown]
# ## What it believes, and what it should
#
# Ask the decoder what is paid in each of the 25 cells, for samples of the belief at a step; divided by its sum that is
# a belief about the goal, and can be laid beside the exact one of the same trial.


# %%
cells = Step(jnp.eye(25), jnp.zeros((25, 5)), jnp.zeros(25), jnp.eye(25))  # a step into each of the cells


def learned_belief(played, key=jax.random.key(1)):
    m = jax.vmap(played.extras.belief.sample)(jax.random.split(key, 32))
    params = varibad_state.meta_params.params["decoder"]
    pays = jnp.mean(jax.vmap(lambda m: decoder.reward(params, m, cells))(m), axis=0)
    return pays / jnp.sum(pays, axis=1, keepdims=True)


agent = varibad.agent(varibad_state.meta_params)
played = play(agent)
beliefs = {"exact": rl.oracles.gridworld_belief(played), "learned": learned_belief(played)}
draw(beliefs, played, [0, 4, 8, 12, 30], "VariBAD, one trial")

# %% [markdown]
# How far the learned belief is from the exact one is a number at each step, KL(exact ‖ learned), in nats; here it is the
# mean over 210 trials. A belief that knows nothing and says that each of 25 cells is as likely has log(25 / 21) = 0.17 at
# first, and log 25 = 3.2 once the goal is known.


# %%
def divergence(key, goal):
    played = play(agent, key, goal)
    return jnp.sum(jax.scipy.special.rel_entr(rl.oracles.gridworld_belief(played), learned_belief(played)), axis=1)


goals = jax.tree.map(lambda leaf: jnp.tile(jnp.asarray(leaf), (10, 1)), family.test.data)
kl = jax.jit(jax.vmap(divergence))(jax.random.split(jax.random.key(2), 210), goals).mean(axis=0)
plotting.lines({"VariBAD": np.asarray(kl)}, "step of the trial", "KL(exact ‖ learned), nats", "mean over 210 trials")

# %% [markdown]
# ## Side by side

# %%
environment = family.environment
agents = {
    "random": rl.oracles.random_policy(environment.action_space),
    "RL²": rl2.agent(rl2_state.meta_params),
    "VariBAD": agent,
    "Bayes-optimal": best,
    "told the goal": rl.oracles.optimal_gridworld,
}
curves = {}
for name, of in agents.items():
    learner = rl.reference_learner(of, environment, num_episodes=NUM_EPISODES, by_episode=True)
    meta_params = learner.init(jax.random.key(0)).meta_params
    tasks = family.test._replace(at=None, size=None)  # with repeats
    report = jaxmeta.evaluate(jax.random.key(3), learner, tasks, meta_params, num_tasks=500)
    curves[name] = np.array(report.metrics["return"]["mean"])
    print(f"{name:>13}: " + "  ".join(f"{value:6.2f}" for value in curves[name]))

# %%
plotting.lines(curves, "episode", "return", "the grid, 500 trials", highlight="VariBAD")

# %% [markdown]
# Both search in the first episode and know the goal in the last, where they are close to who was told it. VariBAD also
# says what it knew at each step, and is never far from what can be known: beside the 3.2 nats of a belief that knows
# nothing where the goal was found, little is left. Where it is least exact it searches: which cells it has passed has to
# be kept in eight numbers.

# %%
searching, known = float(kl[4:12].mean()), float(kl[45:].mean())
print(f"KL {searching:.2f} nats while searching, {known:.2f} in the last episode")
assert max(searching, known) < 0.5
assert min(curves["RL²"][-1], curves["VariBAD"][-1]) > 8
assert all(
    curves[name].sum() < best_returns.sum() + 1 for name in ("RL²", "VariBAD")
)  # nobody does better, but by luck

# %% [markdown]
# ## Where else it is known
#
# Of two Gaussian arms what is believed is how often each was pulled and the difference of what they are thought to pay,
# and dynamic programming over that is small. With more arms there is a bound. In a T-maze it is a formula: with memory
# 1 in each episode, or where no cue tells the arm 1/2 in the first. What is known of which family is on the page
# *What is the best that can be done?*

# %%
best_of_two, _ = rl.oracles.bayes_optimal_gaussian_bandit(10)
print(
    f"two Gaussian arms, 10 pulls: {best_of_two:.2f}; five arms: {rl.oracles.gaussian_bandit_bound(5, 10):.2f} at most"
)
print("a T-maze without a cue, by episode:", *rl.oracles.bayes_optimal_t_maze(4, cue="none")[0])
assert abs(best_of_two - 3.85) < 0.01
