"""One file, one paper."""

from jaxmeta.algorithms.cavia import cavia
from jaxmeta.algorithms.closed_form import protonet, ridge
from jaxmeta.algorithms.maml import anil, fomaml, maml, meta_sgd, reptile

__all__ = ["anil", "cavia", "fomaml", "maml", "meta_sgd", "protonet", "reptile", "ridge"]
