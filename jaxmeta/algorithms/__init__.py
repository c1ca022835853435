"""One file, one paper."""

from jaxmeta.algorithms.actor_critic import A2C, AgentLosses, actor_critic_losses
from jaxmeta.algorithms.baselines import fine_tune, simple_shot
from jaxmeta.algorithms.beliefs import mlp_encoder
from jaxmeta.algorithms.bilevel import Problems, bilevel
from jaxmeta.algorithms.bootstrapped import bootstrapped
from jaxmeta.algorithms.cavia import cavia
from jaxmeta.algorithms.closed_form import protonet, ridge
from jaxmeta.algorithms.decoders import mlp_decoder
from jaxmeta.algorithms.maml import (
    anil,
    boil,
    fomaml,
    imaml,
    maml,
    maml_plus_plus,
    meta_sgd,
    multi_step_weights,
    reptile,
)
from jaxmeta.algorithms.maml_rl import Surrogate, e_maml, maml_rl, promp
from jaxmeta.algorithms.meta_gradient_rl import meta_gradient_rl
from jaxmeta.algorithms.pearl import MetaTest, Replay, Visits, pearl, sac
from jaxmeta.algorithms.proto_maml import proto_maml
from jaxmeta.algorithms.rl2 import rl2
from jaxmeta.algorithms.sac import SoftActorCritic, mlp_actor_critic
from jaxmeta.algorithms.varibad import ELBO, varibad

__all__ = [
    "A2C",
    "ELBO",
    "AgentLosses",
    "MetaTest",
    "Problems",
    "Replay",
    "SoftActorCritic",
    "Surrogate",
    "Visits",
    "actor_critic_losses",
    "anil",
    "bilevel",
    "boil",
    "bootstrapped",
    "cavia",
    "e_maml",
    "fine_tune",
    "fomaml",
    "imaml",
    "maml",
    "maml_plus_plus",
    "maml_rl",
    "meta_gradient_rl",
    "meta_sgd",
    "mlp_actor_critic",
    "mlp_decoder",
    "mlp_encoder",
    "multi_step_weights",
    "pearl",
    "promp",
    "proto_maml",
    "protonet",
    "reptile",
    "ridge",
    "rl2",
    "sac",
    "simple_shot",
    "varibad",
]
