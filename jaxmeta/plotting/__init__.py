"""Pictures of runs, reports, tasks and agents. Each returns a matplotlib `Figure`, `animation` a GIF.

| to see | call |
|---|---|
| how training went: one run or many seeds; several methods | `history`; `learning_curves` |
| what adaptation gains on test tasks; several methods | `report`; `adaptation_curves` |
| what was learned: fits, images, ways through the plane | `regression_adaptation`, `episode`, `trajectories` |
| where a goal is believed to be | `beliefs` |
| an agent that moves | `animation` |
| regret over pulls; any curves by their names | `regret`; `lines` |
| memory, time and error of meta-gradients | `cost` |
| something else, on panels that look the same | `figure` |

No pyplot and no global state: `figure.savefig(path)` works without a screen, and a notebook shows the figure as it is.
matplotlib is imported when the first picture is drawn. A method looks the same in every picture, by `METHODS`, and what
is drawn together differs in markers or lines too, for who sees no colours. numpy and jax arrays will do.
"""

from jaxmeta.plotting.adaptation import adaptation_curves, report
from jaxmeta.plotting.animations import Animation, animation
from jaxmeta.plotting.beliefs import beliefs
from jaxmeta.plotting.costs import cost
from jaxmeta.plotting.examples import after, episode, regression_adaptation, trajectories
from jaxmeta.plotting.frame import figure
from jaxmeta.plotting.learning import history, learning_curve, learning_curves
from jaxmeta.plotting.looks import MEDIAN, METHODS, OTHERS, OWN, RIGHT, SHOTS, STEPS, TRUTH, WRONG, Style, styles
from jaxmeta.plotting.regrets import lines, regret
from jaxmeta.plotting.scenes import draw_cartpole, draw_grid, draw_pendulum, draw_plane

__all__ = [
    "MEDIAN",
    "METHODS",
    "OTHERS",
    "OWN",
    "RIGHT",
    "SHOTS",
    "STEPS",
    "TRUTH",
    "WRONG",
    "Animation",
    "Style",
    "adaptation_curves",
    "after",
    "animation",
    "beliefs",
    "cost",
    "draw_cartpole",
    "draw_grid",
    "draw_pendulum",
    "draw_plane",
    "episode",
    "figure",
    "history",
    "learning_curve",
    "learning_curves",
    "lines",
    "regression_adaptation",
    "regret",
    "report",
    "styles",
    "trajectories",
]
