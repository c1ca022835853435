"""Controllers from textbooks for who is told the physics: a cart that balances its pole, a pendulum that swings up."""

import jax
import jax.numpy as jnp

from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree


def balance_cartpole(task: PyTree) -> Agent:
    """The sign of the linear-quadratic regulator's force, for CartPole with any physics: its pole does not fall.

    With the state x = (cart, its speed, angle, its speed) and x' = A x + B u near the top, the regulator is

        u = −K x,   K = (1 + BᵀPB)⁻¹ BᵀPA,   P = I + Aᵀ P (A − B K)

    Args:
      task: gymnax's `EnvParams`.

    >>> from jaxmeta.rl import families
    >>> cartpole = families.cartpole()
    >>> agent = balance_cartpole(cartpole.test.sample(jax.random.key(0), cartpole.test.data))
    >>> agent.params.shape
    (4,)
    """
    transition, push = _linear_cartpole(task)

    def step(cost: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        gain = push @ cost @ transition / (1 + push @ cost @ push)
        return jnp.eye(4) + transition.T @ cost @ (transition - jnp.outer(push, gain)), gain

    gains = jax.lax.scan(step, jnp.eye(4), None, 500)[1]  # ten seconds of the cart's time: no longer changing

    def policy(key: jax.Array, gain: jax.Array, carry: tuple, inputs: Inputs):
        return jnp.asarray(gain @ inputs.observation < 0, jnp.int32), carry, ()

    return Agent(policy, gains[-1])


def _linear_cartpole(p: PyTree) -> tuple[jax.Array, jax.Array]:
    """A `[4, 4]` and B `[4]`: one step of gymnax's dynamics for small angles, per unit of `force_mag`."""
    lever = p.length * (4 / 3 - p.masspole / p.total_mass)
    angle_angle, angle_force = p.gravity / lever, -1 / (p.total_mass * lever)
    cart_angle = -p.polemass_length * angle_angle / p.total_mass
    cart_force = (1 - p.polemass_length * angle_force) / p.total_mass
    derivative = jnp.array([[0, 1, 0, 0], [0, 0, cart_angle, 0], [0, 0, 0, 1], [0, 0, angle_angle, 0]], float)
    return jnp.eye(4) + p.tau * derivative, p.tau * p.force_mag * jnp.array([0, cart_force, 0, angle_force], float)


def swing_up_pendulum(task: PyTree) -> Agent:
    """Pumps energy until the pendulum has what it has at the top, then balances it there, for any physics.

    Not optimal, but up in every task. Far from the top the torque goes with the motion while the energy is too little,
    and against it while it is too much; near the top it holds the weight and corrects angle and speed.

    Åström, Furuta, "Swinging up a pendulum by energy control" (2000), https://doi.org/10.1016/S0005-1098(99)00140-5

    Args:
      task: gymnax's `EnvParams`.

    >>> from jaxmeta.rl import families
    >>> pendulum = families.pendulum()
    >>> agent = swing_up_pendulum(pendulum.test.sample(jax.random.key(0), pendulum.test.data))
    """

    def policy(key: jax.Array, p: PyTree, carry: tuple, inputs: Inputs):
        cos, sin, speed = inputs.observation
        angle, weight = jnp.arctan2(sin, cos), p.m * p.g * p.l / 2
        energy = p.m * (p.l * speed) ** 2 / 6 + weight * (cos - 1)  # 0 at rest at the top
        pump = jnp.where((energy < 0) == (speed >= 0), p.max_torque, -p.max_torque)
        hold = -weight * sin - 5 * angle - 2 * speed
        is_near = (jnp.abs(angle) < 0.8) & (jnp.abs(hold) < 3 * p.max_torque)
        return jnp.clip(jnp.where(is_near, hold, pump), -p.max_torque, p.max_torque)[None], carry, ()

    return Agent(policy, task)
