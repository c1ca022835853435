"""MAML on 2D navigation, on the host, as it is written in PyTorch: loops over tasks, episodes and steps.

The algorithm and its sizes are those of `jaxmeta.maml_rl`: a policy of two layers of 64, one inner step of rate 0.1, a
linear baseline for each task and step; outside TRPO, conjugate gradients and a line search over all tasks, or Adam.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from benchmarks.shared.measure import Program

HORIZON, STEP, DISCOUNT, INNER_RATE = 100, 0.1, 0.99, 0.1
MAX_KL, NUM_CG_STEPS, DAMPING, NUM_BACKTRACKS, BACKTRACK = 0.01, 10, 1e-3, 15, 0.8

Params = dict[str, Tensor]


class Navigation:
    """One environment of gym's kind: a point that is to go to a goal it does not see."""

    def __init__(self, goal: np.ndarray):
        self.goal = goal

    def reset(self) -> np.ndarray:
        self.position, self.time = np.zeros(2, np.float32), 0
        return self.position

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.position = self.position + np.clip(action, -STEP, STEP)
        self.time += 1
        offset = self.position - self.goal
        done = bool(np.all(np.abs(offset) < 0.01)) or self.time == HORIZON
        return self.position, -float(np.linalg.norm(offset)), done


class Policy(nn.Module):
    """A Gaussian whose deviation is learned, in units of the largest action."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, observation: Tensor) -> Normal:
        return Normal(STEP * self.mean(observation), STEP * self.log_std.exp())


class Episodes(NamedTuple):
    """Of one task, one after the other: `[steps, ...]`."""

    observation: Tensor
    action: Tensor
    advantage: Tensor


def play(policy: Policy, params: Params, env: Navigation, num_episodes: int) -> Episodes:
    """Step by step; advantages against a linear baseline of this task's returns."""
    observations, actions, features, returns = [], [], [], []
    for _ in range(num_episodes):
        rewards: list[float] = []
        observation, done = env.reset(), False
        while not done:
            seen = torch.from_numpy(observation)
            with torch.no_grad():
                action = functional_call(policy, params, (seen,)).sample()
            observations.append(seen)
            actions.append(action)
            features.append([*observation, *observation**2, *(len(rewards) / 100) ** np.arange(4)])
            observation, reward, done = env.step(action.numpy())
            rewards.append(reward)
        to_go = 0.0
        for i, reward in enumerate(reversed(rewards)):
            to_go = reward + DISCOUNT * to_go
            rewards[-1 - i] = to_go
        returns += rewards
    x, g = torch.tensor(np.array(features), dtype=torch.float32), torch.tensor(returns, dtype=torch.float32)
    weights = torch.linalg.solve(x.T @ x + 1e-5 * torch.eye(x.shape[1]), x.T @ g)
    advantage = g - x @ weights
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    return Episodes(torch.stack(observations), torch.stack(actions), advantage)


def adapted(policy: Policy, params: Params, episodes: Episodes) -> Params:
    """One inner step, differentiable."""
    log_prob = functional_call(policy, params, (episodes.observation,)).log_prob(episodes.action).sum(-1)
    ratio = torch.exp(log_prob - log_prob.detach())
    grads = torch.autograd.grad(-(ratio * episodes.advantage).mean(), list(params.values()), create_graph=True)
    return {name: p - INNER_RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}


Tasks = list[tuple[Episodes, Episodes]]


def update(policy: Policy, goals: np.ndarray, num_episodes: int, outer_step: Callable[[Policy, Tasks], None]) -> int:
    """One outer step on the tasks; how many steps of the environment it took."""
    params, tasks = dict(policy.named_parameters()), []
    for goal in goals:
        env = Navigation(goal)
        before = play(policy, params, env, num_episodes)
        after = play(policy, adapted(policy, params, before), env, num_episodes)
        tasks.append((before, after))
    outer_step(policy, tasks)
    return sum(len(episodes.action) for task in tasks for episodes in task)


def step_by_adam(optimizer: torch.optim.Optimizer, policy: Policy, tasks: Tasks) -> None:
    losses = []
    for before, after in tasks:
        log_prob = _after(policy, before, after).log_prob(after.action).sum(-1)
        losses.append(-(log_prob * after.advantage).mean())
    optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    optimizer.step()


def step_in_trust_region(policy: Policy, tasks: Tasks) -> None:
    params = list(policy.parameters())
    old = [
        Normal(*(moment.detach() for moment in (of.loc, of.scale)))
        for of in (_after(policy, before, after) for before, after in tasks)
    ]

    def loss_and_kl() -> tuple[Tensor, Tensor]:
        losses, kls = [], []
        for (before, after), then in zip(tasks, old, strict=True):
            now = _after(policy, before, after)
            ratio = torch.exp((now.log_prob(after.action) - then.log_prob(after.action)).sum(-1))
            losses.append(-(ratio * after.advantage).mean())
            kls.append(kl_divergence(then, now).sum(-1).mean())
        return torch.stack(losses).mean(), torch.stack(kls).mean()

    loss, kl = loss_and_kl()
    gradient = _flat(torch.autograd.grad(loss, params, retain_graph=True))
    of_kl = _flat(torch.autograd.grad(kl, params, create_graph=True))
    product = lambda v: _flat(torch.autograd.grad(of_kl @ v, params, retain_graph=True)) + DAMPING * v
    direction = conjugate_gradients(product, gradient)
    direction = direction * torch.sqrt(2 * MAX_KL / (direction @ product(direction)))
    start = nn.utils.parameters_to_vector(params).detach()
    for i in range(NUM_BACKTRACKS):
        nn.utils.vector_to_parameters(start - BACKTRACK**i * direction, params)
        new_loss, new_kl = (value.item() for value in loss_and_kl())
        if new_loss < loss.item() and new_kl <= MAX_KL:
            return
    nn.utils.vector_to_parameters(start, params)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    for _ in range(NUM_CG_STEPS):
        ap, rr = product(p), r @ r
        step = rr / (p @ ap)
        x, r = x + step * p, r - step * ap
        p = r + (r @ r) / rr * p
    return x


def _after(policy: Policy, before: Episodes, after: Episodes) -> Normal:
    """What the policy does after the inner step, in the states that it then saw."""
    params = adapted(policy, dict(policy.named_parameters()), before)
    distribution: Any = functional_call(policy, params, (after.observation,))
    return distribution


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def own_loop(num_tasks: int, num_episodes: int, *, by_trpo: bool) -> tuple[Program, int]:
    """An outer step, and the steps of the environment in it."""
    torch.manual_seed(0)
    policy, rng, num_steps = Policy(), np.random.default_rng(0), 0
    adam = functools.partial(step_by_adam, torch.optim.Adam(policy.parameters(), lr=1e-3))
    step = step_in_trust_region if by_trpo else adam

    def run() -> None:
        nonlocal num_steps
        goals = rng.uniform(-0.5, 0.5, (num_tasks, 2)).astype(np.float32)
        num_steps = update(policy, goals, num_episodes, step)

    run()
    return Program(run, lambda: None), num_steps
