"""The count of floating-point operations, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.shared.cases import conv4, mini_imagenet, sinusoid
from benchmarks.shared.flops import count_flops, meta_step_flops


def test_a_batched_product():
    a, b = jnp.ones((7, 2, 3)), jnp.ones((7, 3, 5))
    assert count_flops(lambda a, b: jnp.einsum("nij,njk->nik", a, b), a, b) == 2 * 7 * 2 * 3 * 5


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    """Each of the 4·5·5·6 outputs sums 3·3 positions of the 4 / groups channels that its group has."""
    x, kernel = jnp.ones((4, 10, 10, 4)), jnp.ones((3, 3, 4 // groups, 6))

    def conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    assert count_flops(conv, x, kernel) == 2 * (4 * 5 * 5 * 6) * (3 * 3 * 4 // groups)


def test_a_scan_is_its_length_times_its_body_also_inside_jit_and_checkpoint():
    w = jnp.ones((3, 3))
    body = jax.checkpoint(lambda x, _: (x @ w, None))
    assert count_flops(jax.jit(lambda x: jax.lax.scan(body, x, length=11)[0]), jnp.ones((2, 3))) == 11 * 2 * 2 * 3 * 3


def test_of_a_cond_the_dearest_branch():
    x = jnp.ones((3, 3))
    choose = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert count_flops(choose, x) == 2 * 2 * 27


def test_a_while_loop_with_a_product_has_no_count():
    x = jnp.ones((3, 3))
    loop = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 10, lambda x: x @ x, x)
    with pytest.raises(ValueError, match="while loop"):
        count_flops(loop, x)


def test_a_gradient_of_a_deep_mlp_costs_three_forward_passes():
    """Less the input's gradient, which no one asks for."""
    weights, x = [jnp.ones((8, 8))] * 5, jnp.ones((4, 8))

    def loss(weights):
        h = x
        for w in weights:
            h = jnp.tanh(h @ w)
        return jnp.sum(h)

    forward = 5 * 2 * 4 * 8 * 8
    assert count_flops(loss, weights) == forward
    assert count_flops(jax.grad(loss), weights) == 3 * forward - forward // 5


def test_the_sinusoid_case():
    forward = 10 * 2 * (1 * 40 + 40 * 40 + 40 * 1)
    assert sinusoid(25, 5).flops() == 25 * (5 * 9 + 3) * forward == meta_step_flops(25, 5, forward, forward)


def test_the_conv4_case_counts_convolutions_not_what_jaxmeta_makes_of_them():
    """Stride 2: 28 → 14 → 7 → 4 → 2 pixels a side, 64 filters, a dense head on the mean."""
    image = 2 * (14**2 * 9 * 1 * 64 + (7**2 + 4**2 + 2**2) * 9 * 64 * 64 + 64 * 5)
    assert conv4(8, 1).flops() == 8 * (9 * 5 + 3 * 75) * image


def test_the_mini_imagenet_case():
    """Pooled: 84 → 42 → 21 → 10 → 5 pixels a side, 32 filters, a dense head on all that is left."""
    image = 2 * (84**2 * 9 * 3 * 32 + (42**2 + 21**2 + 10**2) * 9 * 32 * 32 + 5**2 * 32 * 5)
    assert mini_imagenet(4, 5).flops() == 4 * (5 * 9 * 5 + 3 * 75) * image
    assert mini_imagenet(4, 5, num_shots=5).flops() == 4 * (5 * 9 * 25 + 3 * 75) * image
