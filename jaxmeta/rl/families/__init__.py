"""Families of environments to meta-learn on: one environment, the task in its params, train and held-out test tasks.

| file            | what                                                                     | needs gymnax |
|-----------------|--------------------------------------------------------------------------|--------------|
| `bandits.py`    | `bernoulli_bandit`, `gaussian_bandit`                                    | no           |
| `discrete.py`   | `tabular_mdp` of RL², `gridworld` of VariBAD                             | no           |
| `memory.py`     | `t_maze` of Bakker, dark `key_to_door` of Algorithm Distillation         | no           |
| `krazy_world.py`| `krazy_world` of E-MAML                                                  | no           |
| `navigation.py` | `navigation` of MAML, `point_robot` of PEARL, `corners`                  | no           |
| `wrapped.py`    | `cartpole`, `pendulum`, `reacher`, `meta_maze`, `four_rooms`             | yes          |
| `brax.py`       | `cheetah_velocity`, `cheetah_direction`, `ant_goal`                      | no, but brax |
| `xland.py`      | `xland`: rulesets of XLand-MiniGrid                                      | no, but xminigrid |
"""

from jaxmeta.rl.families.bandits import Bandit, bernoulli_bandit, gaussian_bandit
from jaxmeta.rl.families.brax import Direction, Velocity, ant_goal, cheetah_direction, cheetah_velocity
from jaxmeta.rl.families.discrete import TabularMDP, gridworld, gridworld_goals, tabular_mdp
from jaxmeta.rl.families.krazy_world import KrazyWorld, krazy_world
from jaxmeta.rl.families.memory import KeyAndDoor, TMaze, key_to_door, t_maze
from jaxmeta.rl.families.navigation import Goal, corners, navigation, point_robot
from jaxmeta.rl.families.wrapped import cartpole, four_rooms, meta_maze, pendulum, reacher
from jaxmeta.rl.families.xland import Ruleset, xland

__all__ = [
    "Bandit",
    "Direction",
    "Goal",
    "KeyAndDoor",
    "KrazyWorld",
    "Ruleset",
    "TMaze",
    "TabularMDP",
    "Velocity",
    "ant_goal",
    "bernoulli_bandit",
    "cartpole",
    "cheetah_direction",
    "cheetah_velocity",
    "corners",
    "four_rooms",
    "gaussian_bandit",
    "gridworld",
    "gridworld_goals",
    "key_to_door",
    "krazy_world",
    "meta_maze",
    "navigation",
    "pendulum",
    "point_robot",
    "reacher",
    "t_maze",
    "tabular_mdp",
    "xland",
]
