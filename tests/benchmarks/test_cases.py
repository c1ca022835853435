"""The floating-point operations of the cases, against counts by hand."""

from benchmarks.cases import conv4, meta_step_flops, sinusoid


def test_the_sinusoid_case():
    forward = 10 * 2 * (1 * 40 + 40 * 40 + 40 * 1)
    assert sinusoid(25, 5).flops() == 25 * (5 * 9 + 3) * forward == meta_step_flops(25, 5, forward, forward)


def test_the_conv4_case_counts_convolutions_not_what_jaxmeta_makes_of_them():
    """Stride 2: 28 → 14 → 7 → 4 → 2 pixels a side, 64 filters, a dense head on the mean."""
    image = 2 * (14**2 * 9 * 1 * 64 + (7**2 + 4**2 + 2**2) * 9 * 64 * 64 + 64 * 5)
    assert conv4(8, 1).flops() == 8 * (9 * 5 + 3 * 75) * image
