"""Convolution, in both ways, against `lax.conv_general_dilated` in float64, with derivatives of every mode."""

import functools

import jax
import jax.numpy as jnp
import pytest
from derivatives import assert_close, normal, reference_conv, second_order

from jaxmeta.nn import convolution
from jaxmeta.nn.convolution import conv

CASES = [
    # height, width, channels, filters, window, strides, padding
    (6, 6, 1, 3, (3, 3), 2, "SAME"),
    (7, 7, 3, 2, (3, 3), 2, "SAME"),
    (2, 1, 3, 4, (3, 3), 2, "SAME"),
    (8, 7, 2, 3, (2, 4), (1, 3), "SAME"),
    (8, 7, 2, 3, (5, 1), (3, 2), "VALID"),
    (5, 4, 3, 2, (1, 1), 2, "SAME"),
    (5, 4, 2, 2, (3, 2), 2, ((2, 0), (1, 3))),
    (6, 5, 2, 3, (3, 3), 1, "SAME"),
    (6, 5, 3, 2, (2, 4), 1, "VALID"),
    (5, 4, 2, 3, (3, 2), 1, ((4, 0), (1, 3))),  # more padding than the kernel reaches
]


pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")


def x_and_kernel(x_shape, kernel_shape):
    return normal(0, *x_shape), normal(1, *kernel_shape)


@functools.cache
def second_order_of_lax_conv(x_shape, kernel_shape, *how):
    """Once for all ways."""
    return second_order(lambda x, k: reference_conv(x, k, *how), *x_and_kernel(x_shape, kernel_shape))


def primitives(jaxpr):
    """The names of all primitives in a jaxpr and in those inside it."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


WAYS = "all at once", "one at a time", "by XLA"


@pytest.fixture(params=WAYS)
def images(request, monkeypatch):
    """How many images' patches are cut at a time: all, or as if not two fitted the cache; or none, where it can."""
    if request.param == "by XLA":
        by_xla(monkeypatch)
    elif request.param == "one at a time":
        monkeypatch.setattr(convolution, "_CACHE", 0)
        monkeypatch.setattr(convolution, "_CHUNK", 0)


def by_xla(monkeypatch):
    monkeypatch.setattr(convolution, "_has_a_core", lambda: True)
    monkeypatch.setattr(convolution, "_NARROW", 0)


with_either = pytest.mark.usefixtures("images")


@pytest.mark.parametrize(
    ("images", "case"),
    [
        pytest.param(way, case, marks=pytest.mark.slow if i % 3 and way == WAYS[0] else [])
        for way in WAYS
        for i, case in enumerate(CASES)
        if way != "by XLA" or case[5] == 1  # it leaves strides to patches
    ],
    indirect=["images"],
)
def test_conv_equals_lax_conv_to_second_order(images, case):
    height, width, channels, filters, window, strides, padding = case
    shapes = (2, height, width, channels), (*window, channels, filters)
    ours = second_order(lambda x, k: conv(x, k, strides=strides, padding=padding), *x_and_kernel(*shapes))
    assert_close(ours, second_order_of_lax_conv(*shapes, strides, padding))


@pytest.mark.parametrize("images", WAYS[:2], indirect=True)
def test_a_dilated_conv_equals_lax_conv_to_second_order(images):
    shapes = (2, 9, 7, 2), (3, 2, 2, 3)
    ours = second_order(lambda x, k: conv(x, k, strides=2, kernel_dilation=(2, 3)), *x_and_kernel(*shapes))
    assert_close(ours, second_order_of_lax_conv(*shapes, 2, "SAME", (2, 3)))


@with_either
@pytest.mark.parametrize(("strides", "padding"), [(2, "SAME"), (1, "VALID")])
def test_conv_allows_pure_forward_mode(strides, padding):
    x, kernel = normal(0, 2, 5, 6, 2), normal(1, 3, 3, 2, 3)
    tangents = normal(2, *x.shape), normal(3, *kernel.shape)

    @jax.jit
    def both(primals, tangents):
        ours = jax.jvp(lambda x, k: conv(x, k, strides=strides, padding=padding), primals, tangents)
        theirs = jax.jvp(lambda x, k: reference_conv(x, k, strides, padding), primals, tangents)
        return ours, theirs

    assert_close(*both((x, kernel), tangents))


@with_either
@pytest.mark.parametrize("strides", [1, 2])
def test_conv_over_tasks_is_exact_and_has_no_grouped_convolution(strides):
    xs, kernels = normal(0, 3, 2, 7, 7, 2), normal(1, 3, 3, 3, 2, 4)

    def gradients(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        return jax.vmap(jax.grad(loss, argnums=(0, 1)))

    ours = gradients(lambda x, k: conv(x, k, strides=strides))
    theirs = gradients(lambda x, k: reference_conv(x, k, strides, "SAME"))
    assert_close(jax.jit(ours)(xs, kernels), jax.jit(theirs)(xs, kernels))
    assert "conv_general_dilated" in primitives(jax.make_jaxpr(theirs)(xs, kernels).jaxpr)
    names = primitives(jax.make_jaxpr(ours)(xs, kernels).jaxpr)
    assert "dot_general" in names
    assert not names & {"conv_general_dilated", "gather", "scatter-add"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have no such cache")
@pytest.mark.parametrize(
    ("cache", "chunk", "number"), [(6, 0, 6), (5, 0, 1), (5, 1, 1), (5, 2, 2), (5, 4, 3), (5, 5, 3)]
)
def test_conv_cuts_all_patches_that_fit_the_cache_and_else_a_divisor_that_fits_a_chunk(
    cache, chunk, number, monkeypatch
):
    x, kernel = normal(0, 6, 5, 4, 2), normal(1, 3, 3, 2, 3)
    of_one_image = 5 * 4 * 18 * 8
    monkeypatch.setattr(convolution, "_CACHE", cache * of_one_image)
    monkeypatch.setattr(convolution, "_CHUNK", chunk * of_one_image)
    convolve = lambda x, kernel: conv(x, kernel)  # jax keeps what it traced of a function
    equations = jax.make_jaxpr(convolve)(x, kernel).eqns
    lengths = [equation.params["length"] for equation in equations if equation.primitive.name == "scan"]
    assert lengths == ([] if number == 6 else [6 // number])
    found, expected = jax.jit(lambda *a: (convolve(*a), reference_conv(*a, 1, "SAME")))(x, kernel)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("x", "kernel", "keywords", "message"),
    [
        ((4, 4, 1), (3, 3, 1, 2), {}, "x must be"),
        ((1, 4, 4, 1), (3, 3, 2, 2), {}, "kernel must be"),
        ((1, 4, 4, 1), (3, 3, 1), {}, "kernel must be"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"strides": 0}, "strides"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"strides": (1, 2, 3)}, "strides"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"kernel_dilation": 0}, "kernel_dilation"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"kernel_dilation": 2, "padding": "VALID"}, "must fit"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": "same"}, "padding"),
        ((1, 2, 4, 1), (3, 3, 1, 2), {"padding": "VALID"}, "must fit"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": (1, 2, 3)}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": ((1, 2), (1, 2, 3))}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": -1}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": 1.5}, "padding"),
    ],
)
def test_conv_refuses_wrong_arguments(x, kernel, keywords, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.zeros(x), jnp.zeros(kernel), **keywords)


def gradients(convolve, argnums=(0, 1)):
    """Of one task's loss."""
    return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), argnums)


def with_padding(convolve, strides=1, padding=((1, 2), (0, 1))):
    return lambda x, kernel: convolve(x, kernel, strides, padding)


def ours(x, kernel, strides, padding):
    return conv(x, kernel, strides=strides, padding=padding)


def same_as_lax(transform, *arguments, strides=1):
    """What a transformation makes of the one and of the other; each is compiled, from functions that are new."""
    results = [jax.jit(transform(with_padding(convolve, strides)))(*arguments) for convolve in (ours, reference_conv)]
    assert_close(*results)


@pytest.fixture
def xla(monkeypatch):
    by_xla(monkeypatch)


def along(fn, direction):
    return lambda v: jax.jvp(fn, (v,), (direction,))[1]


def into(fn, direction):
    """The same, in reverse mode."""
    return lambda v: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(fn)(v), direction)))


def third(convolve):
    """The third derivative in three modes, of a sum that has all of its parts."""
    loss = lambda v: jnp.sum(jnp.exp(0.3 * convolve(*v)))

    def derivatives(v, a, b):
        modes = along(along(jax.grad(loss), a), b), jax.grad(into(into(loss, a), b)), jax.grad(along(along(loss, a), b))
        return [derivative(v) for derivative in modes]

    return derivatives


@pytest.mark.parametrize(
    "num_images", [1, pytest.param(6, marks=pytest.mark.slow), 8]
)  # fewer than are summed at a time, and more
def test_three_bilinear_maps_to_the_third_derivative(xla, num_images):
    directions = [(normal(i, num_images, 5, 4, 2), normal(i + 3, 3, 2, 2, 3)) for i in range(3)]
    same_as_lax(third, *directions)
    forward, reverse, mixed = jax.jit(third(with_padding(ours)))(*directions)
    assert_close(forward, reverse)
    assert_close(forward, mixed)
    names = primitives(jax.make_jaxpr(third(with_padding(ours)))(*directions).jaxpr)
    assert {"conv", "conv_to_images", "conv_to_kernel"} <= names and "concatenate" not in names


def test_patches_with_a_stride_to_the_third_derivative():
    directions = [(normal(i, 2, 5, 4, 2), normal(i + 3, 3, 2, 2, 3)) for i in range(3)]
    same_as_lax(third, *directions, strides=2)
    names = primitives(jax.make_jaxpr(third(with_padding(ours, 2)))(*directions).jaxpr)
    assert {"cut_patches", "put_patches_back"} <= names and "concatenate" not in names


def over_a_mesh(check_vma):
    mesh = jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def transform(convolve):
        def share(x, kernel):
            if check_vma:
                kernel = jax.lax.pcast(kernel, "devices", to="varying")
            return jax.tree.map(lambda g: jax.lax.psum(g, "devices"), gradients(convolve)(x, kernel))

        return jax.shard_map(share, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P(), check_vma=check_vma)

    return transform


X, KERNEL = (6, 5, 4, 2), (3, 2, 2, 3)
TRANSFORMED = {
    "vmap over images": (lambda f: jax.vmap(gradients(f), (0, None)), (3, *X), KERNEL),
    "vmap over images, the last axis": (lambda f: jax.vmap(gradients(f), (-1, None)), (*X, 3), KERNEL),
    "vmap over kernels": (lambda f: jax.vmap(gradients(f), (None, 0)), X, (3, *KERNEL)),
    "vmap over both": (lambda f: jax.vmap(gradients(f), (1, -1)), (6, 3, 5, 4, 2), (*KERNEL, 3)),
    "vmap of vmap": (lambda f: jax.vmap(jax.vmap(gradients(f), (0, None)), (0, 0)), (2, 3, *X), (2, *KERNEL)),
    "grad of vmap": (
        lambda f: jax.grad(lambda xs, k: jnp.sum(jax.vmap(lambda x: f(x, k - gradients(f, 1)(x, k)))(xs) ** 2), 1),
        (3, *X),
        KERNEL,
    ),
    "scan": (
        lambda f: jax.grad(
            lambda xs, k: jnp.sum(jax.lax.scan(lambda k, x: (k - 0.1 * gradients(f, 1)(x, k), 0.0), k, xs)[0] ** 2), 1
        ),
        (2, *X),
        KERNEL,
    ),
    "checkpoint": (
        lambda f: gradients(jax.checkpoint(lambda x, k: f(f(x, k), k[..., :1] + k))),
        (6, 5, 4, 3),
        (3, 2, 3, 3),
    ),
    "shard_map": (over_a_mesh(check_vma=False), X, KERNEL),
    "shard_map that is checked": (over_a_mesh(check_vma=True), X, KERNEL),
}


OF_BOTH = ("grad of vmap", "vmap over both", "vmap over images, the last axis", "shard_map that is checked")


@pytest.mark.parametrize(
    ("strides", "name"),
    [(1, name) for name in TRANSFORMED]
    + [pytest.param(2, name, marks=[] if name in OF_BOTH else pytest.mark.slow) for name in TRANSFORMED],
)
def test_a_transformed_convolution_equals_lax(xla, strides, name):
    transform, *shapes = TRANSFORMED[name]
    same_as_lax(transform, *x_and_kernel(*shapes), strides=strides)


def test_xla_has_what_a_core_has_for_itself_and_what_is_wide_and_patches_the_rest(monkeypatch):
    """By what is traced: shapes alone."""

    def names(side, channels, *, number=75, kernel=(3, 3), **how):
        x, kernel = (
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((number, side, side, channels), (*kernel, channels, 64))
        )
        return "conv" in primitives(jax.make_jaxpr(lambda x, kernel: conv(x, kernel, **how))(x, kernel).jaxpr)

    on_cpu = jax.default_backend() == "cpu"
    assert names(84, 64) == on_cpu
    assert not names(84, 32) and not names(21, 320) and not names(84, 64, number=1)
    monkeypatch.setattr(convolution, "_has_a_core", lambda: True)
    assert names(84, 32) == names(14, 64) == names(84, 64, number=1) == on_cpu
    assert names(84, 3) == on_cpu and not names(84, 3, number=5)
    assert not names(84, 64, strides=2) and not names(84, 64, kernel=(1, 1))
    assert not names(84, 64, kernel_dilation=2)


@pytest.mark.parametrize("number", [1, 6, 11])
def test_of_few_channels_xla_has_patches_of_a_few_images_at_a_time(number):
    x, kernel = normal(0, number, 6, 5, 3), normal(1, 3, 3, 3, 2)
    y = convolution._conv.bind(x, kernel, pads=((1, 1), (1, 1)), num_shares=1)
    assert_close(y, reference_conv(x, kernel, 1, "SAME"))


def test_images_and_kernel_of_two_dtypes_are_what_they_are_by_patches(xla):
    x, kernel = normal(0, 2, 5, 4, 2), normal(1, 3, 3, 2, 3).astype(jnp.float32)
    assert_close(jax.jit(conv)(x, kernel), reference_conv(x, kernel.astype(x.dtype), 1, "SAME"))


def test_a_share_of_several_devices_has_a_core_and_no_other_program():
    seen = []
    note = lambda x: seen.append(convolution._has_a_core()) or x
    P = jax.sharding.PartitionSpec
    for size in (1, 2):
        mesh = jax.sharding.AbstractMesh((size,), ("devices",))
        jax.eval_shape(jax.shard_map(note, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")), jnp.zeros(2))
    note(0)
    assert seen == [False, True, False]
