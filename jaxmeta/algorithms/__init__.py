"""One file, one paper."""

from jaxmeta.algorithms.cavia import cavia
from jaxmeta.algorithms.closed_form import protonet, ridge
from jaxmeta.algorithms.maml import anil, fomaml, imaml, maml, maml_plus_plus, meta_sgd, multi_step_weights, reptile
from jaxmeta.algorithms.maml_rl import Surrogate, e_maml, maml_rl, promp
from jaxmeta.algorithms.pearl import mlp_encoder, pearl, pearl_agent, sac
from jaxmeta.algorithms.rl2 import rl2
from jaxmeta.algorithms.sac import mlp_actor_critic

__all__ = [
    "Surrogate",
    "anil",
    "cavia",
    "e_maml",
    "fomaml",
    "imaml",
    "maml",
    "maml_plus_plus",
    "maml_rl",
    "meta_sgd",
    "mlp_actor_critic",
    "mlp_encoder",
    "multi_step_weights",
    "pearl",
    "pearl_agent",
    "promp",
    "protonet",
    "reptile",
    "ridge",
    "rl2",
    "sac",
]
