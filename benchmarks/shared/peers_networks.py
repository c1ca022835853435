"""The cases' networks written again in PyTorch, channels first, weights [out, in], for `peers`.

Each takes the network of jaxmeta, and the parameters of flax under the same names.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jaxmeta


class Dense(nn.Module):
    def __init__(self, kernel: Tensor, bias: Tensor):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(kernel), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel, self.bias)


class ConvBatchNorm(nn.Module):
    """XLA's "SAME" padding, whose odd pixel goes to the end, on square images; statistics of the batch."""

    fused = True

    def __init__(self, kernel: Tensor, scale: Tensor, bias: Tensor, *, stride: int, epsilon: float):
        super().__init__()
        self.kernel, self.scale, self.bias = nn.Parameter(kernel), nn.Parameter(scale), nn.Parameter(bias)
        self.stride, self.epsilon = stride, epsilon

    def forward(self, x: Tensor) -> Tensor:
        size, window = x.shape[-1], self.kernel.shape[-1]
        total = max(0, (-(-size // self.stride) - 1) * self.stride + window - size)
        if total % 2 == 0:
            y = F.conv2d(x, self.kernel, stride=self.stride, padding=total // 2)
        else:
            y = F.conv2d(F.pad(x, (total // 2, total - total // 2) * 2), self.kernel, stride=self.stride)
        if self.fused:
            return F.batch_norm(y, None, None, self.scale, self.bias, training=True, eps=self.epsilon)
        return _normalize(y, (0, 2, 3), self.scale[:, None, None], self.bias[:, None, None], self.epsilon)


class LayerNorm(nn.Module):
    fused = True

    def __init__(self, scale: Tensor, bias: Tensor):
        super().__init__()
        self.scale, self.bias = nn.Parameter(scale), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.layer_norm(x, x.shape[-1:], self.scale, self.bias, eps=1e-5)
        return _normalize(x, (-1,), self.scale, self.bias, 1e-5)


def _normalize(x: Tensor, axes: tuple[int, ...], scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon) * scale + bias


class MLP(nn.Module):
    def __init__(self, network: jaxmeta.nn.MLP, params: dict[str, dict[str, Tensor]]):
        super().__init__()
        self.num_hidden = len(network.hidden)
        for name, layer in params.items():
            self.add_module(name, Dense(**layer))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.num_hidden):
            x = F.relu(getattr(self, f"hidden{i}")(x))
        return self.head(x)


class Conv4(nn.Module):
    """Flattened, the head sees positions in the order of flax, channels last, whose weights it has."""

    def __init__(self, network: jaxmeta.nn.Conv4, params: dict[str, dict[str, Tensor]]):
        super().__init__()
        self.strided = network.strided
        self.head = Dense(**params["head"])
        for i in range(4):
            stride = 2 if network.strided else 1
            self.add_module(f"block{i}", ConvBatchNorm(**params[f"block{i}"], stride=stride, epsilon=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = F.relu(getattr(self, f"block{i}")(x))
            if not self.strided:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)) if self.strided else x.permute(0, 2, 3, 1).flatten(1))


class ResNetBlock(nn.Module):
    def __init__(self, params: dict[str, dict[str, Tensor]]):
        super().__init__()
        for name, layer in params.items():
            self.add_module(name, ConvBatchNorm(**layer, stride=1, epsilon=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv0(x), 0.1)
        y = F.leaky_relu(self.conv1(y), 0.1)
        return F.max_pool2d(F.leaky_relu(self.conv2(y) + self.shortcut(x), 0.1), 2)


class ResNet12(nn.Module):
    def __init__(self, network: Any, params: dict[str, dict]):
        super().__init__()
        self.num_blocks = len(network.widths)
        self.head = Dense(**params["head"])
        for i in range(self.num_blocks):
            self.add_module(f"block{i}", ResNetBlock(params[f"block{i}"]))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.num_blocks):
            x = getattr(self, f"block{i}")(x)
        return self.head(x.mean((2, 3)))


class Embedding(nn.Module):
    def __init__(self, embedding: Tensor):
        super().__init__()
        self.embedding = nn.Parameter(embedding)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.embedding)


class TransformerBlock(nn.Module):
    def __init__(self, num_heads: int, params: dict[str, dict[str, Tensor]]):
        super().__init__()
        self.num_heads = num_heads
        for name, layer in params.items():
            self.add_module(name, LayerNorm(**layer) if name.startswith("norm") else Dense(**layer))

    def forward(self, h: Tensor) -> Tensor:
        batch, length, width = h.shape
        qkv = self.qkv(self.norm0(h)).reshape(batch, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B, heads, T, D]
        # written out: PyTorch's fused attention has no second derivative
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        future = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
        attention = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ value
        h = h + self.out(attention.transpose(1, 2).reshape(batch, length, width))
        return h + self.mlp(F.gelu(self.hidden(self.norm1(h)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, network: Any, params: dict[str, Any]):
        super().__init__()
        self.num_layers = network.num_layers
        self.positions = nn.Parameter(params["positions"])
        self.embed, self.head = Embedding(**params["embed"]), Dense(**params["head"])
        self.norm = LayerNorm(**params["norm"])
        for i in range(self.num_layers):
            self.add_module(f"block{i}", TransformerBlock(network.num_heads, params[f"block{i}"]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.positions[: x.shape[1]]
        for i in range(self.num_layers):
            h = getattr(self, f"block{i}")(h)
        return self.head(self.norm(h))


# by the name of jaxmeta's class: (network, params) -> module
NETWORKS: dict[str, Callable[[Any, dict], nn.Module]] = {
    network.__name__: network for network in (MLP, Conv4, ResNet12, Transformer)
}
