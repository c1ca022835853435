"""PyTorch's meta-learning libraries, each used as its own documentation does: imported only where they compete.

Networks are written again, in PyTorch's own layout (channels first, weights [out, in]), with the parameters of the
case's flax network under the same names. All compute the same meta-step: N tasks, the exact gradient, Adam.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from jax.typing import DTypeLike
from torch import Tensor, nn

import jaxmeta
from benchmarks.shared.cases import Case
from benchmarks.shared.contenders import OUTER_RATE, Contender, MetaStep, Unavailable
from benchmarks.shared.measure import Program
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from benchmarks.bilevel import Quadratic

Batch = tuple[Tensor, Tensor]


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
    """The strided one."""

    def __init__(self, network: jaxmeta.nn.Conv4, params: dict[str, dict[str, Tensor]]):
        super().__init__()
        self.head = Dense(**params["head"])
        for i in range(4):
            self.add_module(f"block{i}", ConvBatchNorm(**params[f"block{i}"], stride=2, epsilon=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = F.relu(getattr(self, f"block{i}")(x))
        return self.head(x.mean((2, 3)))


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


class Problem:
    """A case in PyTorch: its network with the given weights, its tasks, its loss, and Adam outside."""

    def __init__(self, case: Case, params: PyTree, dtype: DTypeLike):
        name = type(case.network).__name__
        if name not in NETWORKS:
            raise Unavailable(f"there is no {name} in benchmarks/shared/peers.py: write it again in PyTorch there")
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        tensor = lambda x: torch.tensor(np.asarray(x), device=device)
        layout = lambda path, p: tensor(_to_torch(path[-1].key, np.asarray(p, dtype)))
        self.module = NETWORKS[name](case.network, jax.tree_util.tree_map_with_path(layout, params["params"]))
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=OUTER_RATE)
        support, query, _ = jax.tree.map(lambda x: tensor(_channels_first(x, dtype)), case.tasks)
        self.stacked = (support, query)
        self.tasks = [((support[0][i], support[1][i]), (query[0][i], query[1][i])) for i in range(case.num_tasks)]
        self.num_steps, self.learning_rate, self.num_tasks = case.num_steps, case.learning_rate, case.num_tasks

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return F.mse_loss(prediction, y)
        return F.cross_entropy(prediction.flatten(0, -2), y.flatten().long())

    def meta_step(self, backward: Callable[[], None]) -> MetaStep:
        """`backward` accumulates the meta-gradient in the module's parameters."""

        def step() -> None:
            self.optimizer.zero_grad()
            backward()
            self.optimizer.step()

        wait = torch.cuda.synchronize if next(self.module.parameters()).is_cuda else lambda: None
        step()
        gradient: dict = {}
        for path, parameter in self.module.named_parameters():
            *layers, leaf = path.split(".")
            node = functools.reduce(lambda node, layer: node.setdefault(layer, {}), layers, gradient)
            node[leaf] = _to_flax(leaf, parameter.grad.cpu().numpy())
        return MetaStep(Program(step, wait), {"params": gradient})


def build_torch_func(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """`torch.func.grad` inside, `vmap` over tasks, `backward` through both.

    With norms written out: under `vmap` over tasks the second derivative of PyTorch 2.13's own, `F.batch_norm` and
    `F.layer_norm`, is wrong by several per cent, as the check found. Without `vmap` it is right.
    """
    problem = Problem(case, params, dtype)
    module = problem.module
    for layer in module.modules():
        if isinstance(layer, ConvBatchNorm | LayerNorm):
            layer.fused = False

    def loss(params: dict[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        return problem.loss(torch.func.functional_call(module, params, (x,)), y)

    def task_loss(params: dict[str, Tensor], support: Batch, query: Batch) -> Tensor:
        for _ in range(problem.num_steps):
            grads = torch.func.grad(loss)(params, support)
            params = {name: p - problem.learning_rate * grads[name] for name, p in params.items()}
        return loss(params, query)

    def backward() -> None:
        losses = torch.func.vmap(task_loss, (None, 0, 0))(dict(module.named_parameters()), *problem.stacked)
        losses.mean().backward()

    return problem.meta_step(backward)


def build_higher(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """Grefenstette et al., "Generalized Inner Loop Meta-Learning" (2019), https://arxiv.org/abs/1910.01727"""
    import higher

    problem = Problem(case, params, dtype)
    inner = torch.optim.SGD(problem.module.parameters(), lr=problem.learning_rate)

    def backward() -> None:
        for (x, y), (query_x, query_y) in problem.tasks:
            with higher.innerloop_ctx(problem.module, inner, copy_initial_weights=False) as (module, optimizer):
                for _ in range(problem.num_steps):
                    optimizer.step(problem.loss(module(x), y))
                (problem.loss(module(query_x), query_y) / problem.num_tasks).backward()

    return problem.meta_step(backward)


def build_torchopt(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """Ren et al., "TorchOpt: An Efficient Library for Differentiable Optimization" (2023),
    https://arxiv.org/abs/2211.06934"""
    import torchopt

    problem = Problem(case, params, dtype)
    module = problem.module
    inner = torchopt.MetaSGD(module, lr=problem.learning_rate)

    def backward() -> None:
        start = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(inner, by="reference")
        for (x, y), (query_x, query_y) in problem.tasks:
            for _ in range(problem.num_steps):
                inner.step(problem.loss(module(x), y))
            (problem.loss(module(query_x), query_y) / problem.num_tasks).backward()
            torchopt.recover_state_dict(module, start[0])
            torchopt.recover_state_dict(inner, start[1])

    return problem.meta_step(backward)


def torchopt_bilevel(problem: "Quadratic", num_steps: int, inner_rate: float, outer_rate: float) -> MetaStep:
    """An outer step of a bilevel problem that goes on, through a window of unrolled inner steps, with `MetaSGD`; in
    the place of a gradient it tells what is learned, after the first step."""
    import torchopt

    matrices = type(problem)(*(torch.tensor(array) for array in problem))

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.params = nn.Parameter(torch.zeros(len(problem.a), dtype=torch.float64))

    module, meta_params = Inner(), nn.Parameter(torch.ones(len(problem.a), dtype=torch.float64))
    inner, outer = torchopt.MetaSGD(module, lr=inner_rate), torch.optim.SGD([meta_params], lr=outer_rate)

    def step() -> None:
        for _ in range(num_steps):
            inner.step(matrices.inner(module.params, meta_params))
        outer.zero_grad()
        matrices.outer(module.params, meta_params).backward()
        outer.step()
        torchopt.stop_gradient(module)
        torchopt.stop_gradient(inner)

    step()
    return MetaStep(Program(step, lambda: None), meta_params.detach().numpy().copy())


def build_learn2learn(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
    """Arnold et al., "learn2learn: A Library for Meta-Learning Research" (2020), https://arxiv.org/abs/2008.12284"""
    from learn2learn.algorithms import MAML

    problem = Problem(case, params, dtype)
    maml = MAML(problem.module, lr=problem.learning_rate)

    def backward() -> None:
        for (x, y), (query_x, query_y) in problem.tasks:
            learner = maml.clone()
            for _ in range(problem.num_steps):
                learner.adapt(problem.loss(learner(x), y))
            (problem.loss(learner(query_x), query_y) / problem.num_tasks).backward()

    return problem.meta_step(backward)


def _or_unavailable(build: Callable) -> Callable:
    """Whatever keeps someone else's library from running is a reason to print, not an error of the benchmark."""

    @functools.wraps(build)
    def guarded(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
        try:
            return build(case, params, dtype)
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    return guarded


CONTENDERS = [
    Contender(name, _or_unavailable(build))
    for name, build in {
        "torch.func": build_torch_func,
        "higher": build_higher,
        "TorchOpt": build_torchopt,
        "learn2learn": build_learn2learn,
    }.items()
]


def set_precision(allow_tf32: bool) -> None:
    """The same for products and convolutions, whose defaults differ in PyTorch."""
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32


def _to_torch(name: str, param: np.ndarray) -> np.ndarray:
    """Kernels [kh, kw, C, F] -> [F, C, kh, kw] and [in, out] -> [out, in]; anything else as it is."""
    if name != "kernel":
        return param
    return np.ascontiguousarray(param.transpose(3, 2, 0, 1) if param.ndim == 4 else param.T)


def _to_flax(name: str, param: np.ndarray) -> np.ndarray:
    if name != "kernel":
        return param
    return param.transpose(2, 3, 1, 0) if param.ndim == 4 else param.T


def _channels_first(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Images [N, B, H, W, C] -> [N, B, C, H, W]; anything else as it is."""
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(dtype)
    return np.ascontiguousarray(np.moveaxis(x, -1, 2)) if x.ndim == 5 else x
