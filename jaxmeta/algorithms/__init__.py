"""One file, one paper."""

from jaxmeta.algorithms.maml import anil, fomaml, maml, meta_sgd, reptile

__all__ = ["anil", "fomaml", "maml", "meta_sgd", "reptile"]
