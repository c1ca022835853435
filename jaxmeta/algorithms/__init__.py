"""One file, one paper."""

from jaxmeta.algorithms.cavia import cavia
from jaxmeta.algorithms.closed_form import protonet, ridge
from jaxmeta.algorithms.maml import anil, fomaml, imaml, maml, maml_plus_plus, meta_sgd, multi_step_weights, reptile

__all__ = [
    "anil",
    "cavia",
    "fomaml",
    "imaml",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "multi_step_weights",
    "protonet",
    "reptile",
    "ridge",
]
