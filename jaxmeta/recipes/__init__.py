"""Recipes: a name, a frozen dataclass of every choice, and the figure that it must reach.

Here tasks, networks and meta-learners meet. `jaxmeta list` prints this table, `jaxmeta train NAME` runs a line of it,
and every field of the dataclass is an option there.
"""

from jaxmeta.recipes.bilevel import BILEVEL
from jaxmeta.recipes.experiment import Experiment, Outer, Recipe, Reference
from jaxmeta.recipes.folder import FOLDER, Folder
from jaxmeta.recipes.images import IMAGES, Omniglot
from jaxmeta.recipes.learned_optimizer import LEARNED_OPTIMIZER
from jaxmeta.recipes.maml_rl import MAML_RL
from jaxmeta.recipes.meta_gradient_rl import META_GRADIENT_RL
from jaxmeta.recipes.pearl import PEARL
from jaxmeta.recipes.regression import REGRESSION
from jaxmeta.recipes.rl2 import RL2_RECIPES
from jaxmeta.recipes.streams import STREAMS
from jaxmeta.recipes.varibad import VARIBAD

RECIPES: dict[str, Recipe] = {
    **REGRESSION,
    **IMAGES,
    **FOLDER,
    **MAML_RL,
    **RL2_RECIPES,
    **VARIBAD,
    **PEARL,
    **BILEVEL,
    **LEARNED_OPTIMIZER,
    **META_GRADIENT_RL,
    **STREAMS,
}

__all__ = ["RECIPES", "Experiment", "Folder", "Omniglot", "Outer", "Recipe", "Reference"]
