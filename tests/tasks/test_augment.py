"""Augmentations against the same in numpy, from the numbers that they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.tasks import augment, few_shot

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 200)
COLOR = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8)
IMAGES = {
    "colour": COLOR,
    "grey": COLOR[..., 0],
    "grey with a channel": COLOR[..., :1],
    "floats": COLOR.astype(np.float32) / 100 - 1,
}


def of_many(fn, image):
    return np.asarray(jax.jit(jax.vmap(fn, (0, None)))(KEYS, image))


@pytest.mark.parametrize("name", IMAGES)
def test_a_crop_is_a_window_of_the_padded_image_and_all_are_as_likely(name):
    image = IMAGES[name]
    padded = np.pad(image, [(1, 1), (1, 1), *[(0, 0)] * (image.ndim - 2)])
    windows = [padded[i : i + 6, j : j + 4] for i in range(3) for j in range(3)]
    crops = of_many(augment.random_crop(1), image)
    assert crops.dtype == image.dtype
    which = np.array([[np.array_equal(crop, window) for window in windows] for crop in crops])
    assert (which.sum(axis=1) == 1).all()
    np.testing.assert_allclose(which.mean(axis=0), 1 / 9, atol=5 * np.sqrt(8 / 81 / len(KEYS)))


@pytest.mark.parametrize("name", ["colour", "grey"])
def test_half_of_the_images_are_flipped(name):
    image = IMAGES[name]
    flips = of_many(augment.random_flip(), image)
    is_flipped = (flips == np.flip(image, axis=1)).reshape(len(KEYS), -1).all(axis=1)
    is_same = (flips == image).reshape(len(KEYS), -1).all(axis=1)
    assert (is_flipped ^ is_same).all() and abs(is_flipped.mean() - 1 / 2) < 5 * np.sqrt(1 / 4 / len(KEYS))


def jittered(image, b, c, s):
    """In float64, by the formulas of the docstring."""
    x = b * image.astype(float)
    is_grey = image.ndim == 2 or image.shape[2] == 1
    grey = lambda x: x if is_grey else (x @ [0.299, 0.587, 0.114])[..., None]
    mean = grey(x).mean()
    x = mean + c * (x - mean)
    return grey(x) + s * (x - grey(x))


@pytest.mark.parametrize("name", IMAGES)
def test_jitter_is_brightness_then_contrast_then_saturation(name):
    image = IMAGES[name]
    results = of_many(augment.color_jitter(0.2, 0.5, 1.0), image)
    uniform = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,), jnp.float32, -1, 1))(KEYS))
    assert uniform.min() < -0.9 and uniform.max() > 0.9
    for result, factors in zip(results, 1 + np.array([0.2, 0.5, 1.0]) * uniform, strict=True):
        expected = jittered(image, *factors)
        if image.dtype == np.uint8:
            expected, atol = np.clip(expected, 0, 255), 0.501  # of rounding
        else:
            atol = 1e-5
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol)
    assert results.dtype == image.dtype


def test_no_jitter_is_the_image():
    np.testing.assert_array_equal(augment.color_jitter(0, 0, 0)(KEYS[0], COLOR), COLOR)


def test_a_chain_is_one_after_the_other_with_keys_of_their_own():
    first, second = (lambda key, image, scale=scale: scale * image + jax.random.normal(key) for scale in (2.0, 3.0))
    keys = jax.random.split(KEYS[0])
    np.testing.assert_array_equal(
        augment.chain([first, second])(KEYS[0], 1.0),
        3.0 * (2.0 * 1.0 + jax.random.normal(keys[0])) + jax.random.normal(keys[1]),
    )


@given(st.sampled_from(["brightness", "contrast", "saturation"]), st.one_of(st.floats(), st.none(), st.booleans()))
def test_a_wrong_width_is_named(name, value):
    if isinstance(value, float) and 0 <= value <= 1:
        value = 1.5
    with pytest.raises(ValueError, match=f"^{name} must be"):
        augment.color_jitter(**{name: value})


@pytest.mark.parametrize(
    ("construct", "problem"),
    [
        (lambda: augment.random_crop(0), "padding must be an integer >= 1, got 0"),
        (lambda: augment.random_crop(1.5), "padding must be an integer"),
        (lambda: augment.chain([augment.random_flip(), 3]), r"augments\[1\] must be a function"),
        (lambda: augment.chain([augment.random_flip]), r"augments\[0\] must be a function of \(key, image\)"),
        (lambda: augment.chain([]), "augments must be a list of functions .*, got \\[\\]"),
        (lambda: augment.chain(augment.random_flip()), "augments must be a list of functions"),
        (lambda: augment.color_jitter()(KEYS[0], jnp.zeros((2, 2, 4))), r"image must be .*, got float32\[2, 2, 4\]"),
        (
            lambda: augment.color_jitter()(KEYS[0], jnp.zeros((2, 2), jnp.int32)),
            "image .* or float, got int32",
        ),
    ],
)
def test_what_is_wrong_is_named(construct, problem):
    with pytest.raises(ValueError, match=f"^{problem}"):
        construct()


# In few_shot


DATA = (np.arange(4 * 5 * 6 * 6) % 251).astype(np.uint8).reshape(4, 5, 6, 6)
SIZES = {"num_ways": 3, "num_shots": 1, "num_queries": 2}


def test_every_example_is_changed_with_a_key_of_its_own():
    noise = lambda key, image: image + jax.random.normal(key, image.shape).astype(image.dtype)
    data = np.arange(20, dtype=np.float32).reshape(4, 5, 1)
    key = jax.random.key(3)
    plain, changed = (jax.jit(few_shot(data, **SIZES, augment=fn).sample)(key, data) for fn in (None, noise))
    np.testing.assert_array_equal(changed.info, plain.info)
    difference = np.concatenate([changed.support[0] - plain.support[0], changed.query[0] - plain.query[0]])
    assert len(np.unique(difference)) == 9 and 0.2 < np.abs(difference).mean() < 2  # the same draw, and noise


def test_padding_repeats_an_example_as_it_was_changed():
    noise = lambda key, image: jax.random.bits(key, image.shape, jnp.uint8)
    tasks = few_shot(DATA, num_ways=(1, 3), num_shots=1, num_queries=(1, 2), augment=noise)
    _, query, _ = jax.jit(jax.vmap(tasks.sample, (0, None)))(KEYS[:20], tasks.data)
    padded = np.asarray(query.weight) == 0
    assert padded.any()
    for x, is_padded in zip(np.asarray(query.x), padded, strict=True):
        assert (x[is_padded] == x[0]).all() and len(np.unique(x[~is_padded], axis=0)) == (~is_padded).sum()


WRONG = {
    "no function": (3, r"a function \(key, image\)"),
    "one argument": (lambda image: image, r"a function of \(key, image\), got one of \(image\)"),
    "another shape": (lambda key, image: image[1:], r"like the one .* uint8\[6, 6\], got uint8\[5, 6\]"),
    "another dtype": (lambda key, image: image / 255, r"got float32\[6, 6\]: .astype\(image.dtype\)"),
    "two images": (lambda key, image: (image, image), "an image like the one"),
    "numpy's draws": (lambda key, image: image + np.random.default_rng().integers(0, 255, (6, 6), np.uint8), "pure"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_augmentation_is_named_before_anything_compiles(case, num_compiled):
    fn, problem = WRONG[case]
    with pytest.raises(ValueError, match=f"^augment must .*{problem}"):
        few_shot(jnp.asarray(DATA), **SIZES, augment=fn)
    assert num_compiled() == 0
