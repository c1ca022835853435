"""Which parameters a string means: whole parts of the paths that errors print, one or several in a row."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxmeta.adapt.select import select

LAYERS = {"layers": [{"w": jnp.ones(1), "b": jnp.ones(1)} for _ in range(12)], "head": {"w": jnp.ones(1)}}
HAIKU = {"mlp/~/linear_0": {"w": jnp.ones(1)}, "mlp/~/linear_1": {"w": jnp.ones(1), "b": jnp.ones(1)}}


class Network(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0)) for _ in range(2)])


def chosen(params, where):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(select(params, where))
    ]


CASES = {
    "a prefix": (LAYERS, "layers/1", ["layers/1/b", "layers/1/w"]),
    "a suffix": (LAYERS, "11/w", ["layers/11/w"]),
    "all": (LAYERS, "layers/10/b", ["layers/10/b"]),
    "one part": (LAYERS, "head", ["head/w"]),
    "a key with slashes": (HAIKU, "mlp/~/linear_1", ["mlp/~/linear_1/b", "mlp/~/linear_1/w"]),
    "across keys": (HAIKU, "linear_1/w", ["mlp/~/linear_1/w"]),
    "a part of a key": (HAIKU, "linear_0", ["mlp/~/linear_0/w"]),
    "in the middle": (HAIKU, "~/linear_0", ["mlp/~/linear_0/w"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_string_means_parts_of_a_path_that_follow_one_another(case):
    params, where, expected = CASES[case]
    assert chosen(params, where) == expected


def test_an_nnx_state_is_named_by_its_attributes():
    state = nnx.state(Network(), nnx.Param)
    assert len(chosen(state, "blocks")) == 4 and len(chosen(state, "blocks/1")) == 2


@pytest.mark.parametrize("where", ["layers/12", "ayers/1", "layers/w", "layers//1", "/layers", "1/layers", ""])
def test_a_string_that_means_nothing_is_answered_with_the_paths_there_are(where):
    with pytest.raises(ValueError, match=r"where=.* chooses no parameter; the parameters are head/w, layers/0/b, lay"):
        select(LAYERS, where)


def test_an_error_names_thirty_paths_at_most():
    with pytest.raises(ValueError, match=r"29 and 970 more$"):
        select([jnp.ones(1)] * 1000, "w")
