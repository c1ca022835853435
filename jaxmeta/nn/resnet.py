"""The residual network of the few-shot papers after Conv4: `ResNet12`."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.checks import check_flag, check_integer
from jaxmeta.nn.convolution import is_product
from jaxmeta.nn.layers import max_pool
from jaxmeta.nn.networks import as_images
from jaxmeta.nn.norms import ConvBatchNorm

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, then a dense head: images -> logits [B, num_classes].

        block(x) = max_pool(leaky_relu(f_3(leaky_relu(f_2(leaky_relu(f_1(x))))) + f_0(x)))

    with f_i a convolution without bias and batch norm, f_0 of one pixel, a slope of 0.1, and 2x2 pooling with stride 2;
    the head sees the mean over positions. Made for 84x84x3 images, of which 5x5 positions are left; any from 16x16 on
    will do. The network of Oreshkin et al., "TADAM: Task dependent adaptive metric for improved few-shot learning"
    (2018), https://arxiv.org/abs/1805.10123, with the widths, the slope and the initialisation of Lee et al.,
    "Meta-Learning with Differentiable Convex Optimization" (2019), https://arxiv.org/abs/1904.03758, and without their
    DropBlock. With the default widths it has 12.4 million parameters besides the head.

    Images, and the statistics of its norms, are as for `Conv4`.

    Attributes:
      num_classes: logits for each image, at least 1.
      widths: channels of each block's output; a block for each.
      recomputes: whether a derivative computes anew what is between the convolutions, norms and activations, and keeps
        none of it; the numbers are the same.

    >>> network = ResNet12(num_classes=5)
    >>> images = jnp.zeros((2, 84, 84, 3), jnp.uint8)
    >>> params = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> params["params"]["block3"]["shortcut"]["kernel"].shape
    (1, 1, 320, 640)
    >>> jax.eval_shape(network.apply, params, images).shape
    (2, 5)
    """

    num_classes: int
    widths: Sequence[int] = (64, 160, 320, 640)
    recomputes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
        """[B, H, W] or [B, H, W, C], and the weights [B] or None -> [B, num_classes]."""
        check_integer("num_classes", self.num_classes, 1)
        check_flag("recomputes", self.recomputes)
        if not isinstance(self.widths, Sequence) or isinstance(self.widths, str | bytes) or not self.widths:
            raise ValueError(f"widths must be a sequence of widths, such as (64, 160, 320, 640), got {self.widths!r}")
        for i, width in enumerate(self.widths):
            check_integer(f"widths[{i}]", width, 1)
        x = as_images(x)
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            raise ValueError(f"x must be images of at least {2 ** len(self.widths)} pixels a side, got shape {x.shape}")
        block = nn.remat(_Block, policy=is_product) if self.recomputes else _Block
        for i, width in enumerate(self.widths):
            x = block(width, name=f"block{i}")(x, weight)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name="head")(x)


class _Block(nn.Module):
    """Three convolutions and a shortcut: [B, H, W, C] -> [B, H // 2, W // 2, width]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | None) -> jax.Array:
        activate = lambda x: nn.leaky_relu(x, 0.1)
        norm = lambda name, size=3: ConvBatchNorm(self.width, (size, size), kernel_init=_kaiming, name=name)
        y = activate(norm("conv0")(x, weight=weight))
        y = activate(norm("conv1")(y, weight=weight))
        y = norm("conv2")(y, weight=weight)
        shortcut = norm("shortcut", 1)(x, weight=weight)
        return max_pool(activate(y + shortcut))
