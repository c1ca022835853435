"""How methods look: a colour, a marker and a line, so that they differ for who sees no colours, and in print."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple


class Style(NamedTuple):
    """How a method is drawn, in matplotlib's words.

    Attributes:
      color: such as "#0072b2".
      marker: of its points; "" for none.
      line: a line style, "-", or (offset, (points drawn, points left out, ...)).
    """

    color: str
    marker: str
    line: Any = "-"


_LONG, _DOUBLE = (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1))

METHODS: dict[str, Style] = {
    # learners
    "MAML": Style("#d55e00", "s", "--"),
    "PEARL": Style("#009e73", "D", "-."),
    "RL²": Style("#0072b2", "o"),
    "VariBAD": Style("#cc79a7", "^", _DOUBLE),
    # few-shot classifiers, beside MAML
    "ProtoNet": Style("#0072b2", "o"),
    "Proto-MAML": Style("#7b3294", "X", _DOUBLE),
    "BOIL": Style("#e69f00", "v", _LONG),
    "fine-tuning": Style("#56b4e9", "P", ":"),
    "SimpleShot": Style("#8c510a", "h", (0, (8, 2, 1, 2))),
    # what a policy is compared with
    "random": Style("#999999", "<", ":"),
    "told the task": Style("#332288", "s", "-."),
    "told the goal": Style("#332288", "s", "-."),
    "told the MDP": Style("#332288", "s", "-."),
    "no context": Style("#e69f00", "v", "--"),
    "optimal": Style("#000000", "p", _LONG),
    "Bayes-optimal": Style("#000000", "p", _LONG),
    "Gittins": Style("#e69f00", "v", "--"),
    "Thompson": Style("#cc79a7", "^", _DOUBLE),
    "PSRL": Style("#8c510a", "h", _DOUBLE),
    "UCB1, tuned": Style("#009e73", "D", "-."),
    "from scratch, rate x1": Style("#56b4e9", "P", "--"),
    "from scratch, rate x10": Style("#7b3294", "X", _DOUBLE),
    # meta-gradients
    "auto": Style("#0072b2", "o"),
    "exact": Style("#d55e00", "s"),
    "exact, remat": Style("#e69f00", "D"),
    "exact, segments": Style("#8c510a", "^"),
    "mixed mode": Style("#009e73", "v"),
    "mixed mode, gradients saved": Style("#56b4e9", "P"),
    "mixed mode, segments": Style("#7b3294", "X"),
    "mixed mode, segments, gradients saved": Style("#cc79a7", "*"),
    "forward mode": Style("#000000", "p"),
    "first order": Style("#999999", "<", (0, (2, 1))),
    "truncated(1)": Style("#b5a300", ">", "-."),
    "truncated(K/2)": Style("#01665e", "h", "-."),
    "reptile": Style("#e7298a", "d", (0, (8, 2, 1, 2))),
    "evolution strategy, 16 pairs": Style("#332288", "H", ":"),
    "implicit, 5 steps of CG": Style("#882255", "8", _DOUBLE),
    # estimators of the inner loop's Hessian; of each the same without and with a baseline
    "log π · G": Style("#e69f00", "v"),
    "LVC": Style("#0072b2", "o"),
    "LVC, baseline": Style("#0072b2", "o", "--"),
    "DiCE": Style("#009e73", "D"),
    "DiCE, baseline": Style("#009e73", "D", "--"),
    "loaded DiCE, baseline": Style("#7b3294", "X", "--"),
    "E-MAML": Style("#d55e00", "s"),
    "E-MAML, baseline": Style("#d55e00", "s", "--"),
}
"""The styles of methods by their names, the same in every picture. A name of your own may be added."""

STEPS = (
    Style("#999999", "o", "--"),
    Style("#56b4e9", "s", "-."),
    Style("#0072b2", "D", _LONG),
    Style("#009e73", "^", "-"),
)
"""The styles before adaptation, and after some numbers of steps."""

OWN = Style("#0072b2", "o")
"""The style of a report's mean; its references have others."""

VALIDATION = Style("#d55e00", "s", "--")
"""The style of what was found on tasks apart while training."""

MEDIAN = Style("#0072b2", "", (0, (1, 3)))
"""The style of a report's median."""

TRUTH = "black"
"""The colour of the function that a task is about."""

SHOTS = "#d55e00"
"""The colour of the examples that are adapted on."""

RIGHT = "#009e73"
"""The colour of a right prediction."""

WRONG = "#d55e00"
"""The colour of a wrong prediction."""

OTHERS = (
    Style("#0072b2", "o", "-"),
    Style("#d55e00", "s", "--"),
    Style("#009e73", "D", "-."),
    Style("#7b3294", "X", _DOUBLE),
    Style("#e69f00", "v", _LONG),
    Style("#56b4e9", "P", ":"),
    Style("#000000", "p", (0, (1, 1))),
    Style("#8c510a", "h", (0, (8, 2, 1, 2))),
)
"""The styles of other names, in their order: no two of one colour, marker or line."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Each name's style: a method's own; of "before adaptation", "after 1 step" and so on those of `STEPS`, in their
    order; for the others, in their order, those of `OTHERS` whose colours are free, and then of whatever is free.

    Args:
      names: what is drawn together, in the order of the legend.

    >>> found = styles(["RL²", "before adaptation", "after 1 step", "mine"])
    >>> found["RL²"] == METHODS["RL²"], found["before adaptation"] == STEPS[0], found["after 1 step"] == STEPS[1]
    (True, True, True)
    >>> found["mine"] == OTHERS[1]  # the first is as blue as RL²
    True
    """
    names = list(names)
    found = {name: METHODS[name] for name in names if name in METHODS}
    times = [name for name in names if name not in found and name.startswith(("before ", "after "))]
    found |= dict(zip(times, STEPS, strict=False))
    colors = {style.color for style in found.values()}
    unused = [style for style in dict.fromkeys((*STEPS, *METHODS.values())) if style not in found.values()]
    free = itertools.cycle([*(style for style in OTHERS if style.color not in colors), *unused])
    return {name: found[name] if name in found else next(free) for name in names}
