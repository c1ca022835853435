"""PyTorch's meta-learning libraries, each used as its own documentation does: imported only where they compete.

All compute the same meta-step: N tasks, the exact gradient, Adam. Images lie in memory as PyTorch has them by default,
channels first, or in its format `channels_last`: the faster competes.
"""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from jax.typing import DTypeLike
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.shared.cases import Case
from benchmarks.shared.contenders import OUTER_RATE, Contender, MetaStep, Unavailable
from benchmarks.shared.measure import Program
from benchmarks.shared.peers_networks import NETWORKS, ConvBatchNorm, LayerNorm
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from benchmarks.bilevel import Quadratic

Batch = tuple[Tensor, Tensor]
Params = dict[str, Tensor]
LAYOUTS = "contiguous", "channels_last"


class Problem:
    """A case in PyTorch: its network with the given weights, its tasks, its loss, and Adam outside."""

    def __init__(self, case: Case, params: PyTree, dtype: DTypeLike, layout: str = LAYOUTS[0]):
        name = type(case.network).__name__
        if name not in NETWORKS:
            raise Unavailable(f"there is no {name} in benchmarks/shared/peers_networks.py: write it again there")
        if layout != LAYOUTS[0] and case.tasks.support[0].ndim != 5:
            raise Unavailable(f"{layout}: there are no images")
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        tensor = lambda x: torch.tensor(np.asarray(x), device=device)
        weights = lambda path, p: tensor(_to_torch(path[-1].key, np.asarray(p, dtype)))
        module = NETWORKS[name](case.network, jax.tree_util.tree_map_with_path(weights, params["params"]))
        self.module = module.to(memory_format=torch.channels_last) if layout == "channels_last" else module
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=OUTER_RATE)
        examples = lambda x: _channels_first(tensor(_of_dtype(x, dtype)), layout)
        support, query, _ = jax.tree.map(examples, case.tasks)
        self.stacked = (support, query)
        self.tasks = [((support[0][i], support[1][i]), (query[0][i], query[1][i])) for i in range(case.num_tasks)]
        self.num_steps, self.learning_rate, self.num_tasks = case.num_steps, case.learning_rate, case.num_tasks

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return F.mse_loss(prediction, y)
        return F.cross_entropy(prediction.flatten(0, -2), y.flatten().long())

    def with_adam(self, backward: Callable[[], None]) -> Callable[[], None]:
        """The whole step; `backward` accumulates the meta-gradient in the module's parameters."""

        def step() -> None:
            self.optimizer.zero_grad()
            backward()
            self.optimizer.step()

        return step

    def meta_step(self, step: Callable[[], None]) -> MetaStep:
        """`step` leaves the meta-gradient in the module's parameters."""
        wait = torch.cuda.synchronize if next(self.module.parameters()).is_cuda else lambda: None
        step()
        gradient: dict = {}
        for path, parameter in self.module.named_parameters():
            *layers, leaf = path.split(".")
            node = functools.reduce(lambda node, layer: node.setdefault(layer, {}), layers, gradient)
            node[leaf] = _to_flax(leaf, parameter.grad.cpu().numpy().copy())
        return MetaStep(Program(step, wait), {"params": gradient})


def functional_task_loss(problem: Problem) -> Callable[[Params, Batch, Batch], Tensor]:
    """(params, support, query) -> the query loss after an inner loop of `torch.func.grad`."""
    _write_norms_out(problem.module)

    def loss(params: Params, batch: Batch) -> Tensor:
        x, y = batch
        return problem.loss(torch.func.functional_call(problem.module, params, (x,)), y)

    def task_loss(params: Params, support: Batch, query: Batch) -> Tensor:
        for _ in range(problem.num_steps):
            grads = torch.func.grad(loss)(params, support)
            params = {name: p - problem.learning_rate * grads[name] for name, p in params.items()}
        return loss(params, query)

    return task_loss


def _write_norms_out(module: nn.Module) -> None:
    """Under `vmap` over tasks the second derivative of PyTorch 2.13's own, `F.batch_norm` and `F.layer_norm`, is wrong
    by several per cent, as the check found. Without `vmap` it is right."""
    for layer in module.modules():
        if isinstance(layer, ConvBatchNorm | LayerNorm):
            layer.fused = False


def step_of_torch_func(problem: Problem) -> Callable[[], None]:
    """`torch.func.grad` inside, `vmap` over tasks, `backward` through both."""
    task_loss = functional_task_loss(problem)

    def backward() -> None:
        params = dict(problem.module.named_parameters())
        torch.func.vmap(task_loss, (None, 0, 0))(params, *problem.stacked).mean().backward()

    return problem.with_adam(backward)


def step_of_torch_compile(problem: Problem) -> Callable[[], None]:
    """The same with `torch.func.grad` outside too, all compiled. What calls `backward` twice cannot be compiled, see
    https://github.com/pytorch/pytorch/issues/91469; a gradient that is a function can."""
    task_loss = functional_task_loss(problem)

    def meta_loss(params: Params, support: Batch, query: Batch) -> Tensor:
        return torch.func.vmap(task_loss, (None, 0, 0))(params, support, query).mean()

    torch._dynamo.config.recompile_limit = 1000  # each case's function is another one, of the same code
    gradient = torch.compile(torch.func.grad(meta_loss), fullgraph=True, dynamic=False)

    def backward() -> None:
        params = dict(problem.module.named_parameters())
        with torch.no_grad():
            grads = gradient({name: p.detach() for name, p in params.items()}, *problem.stacked)
        for name, p in params.items():
            p.grad = grads[name]

    return problem.with_adam(backward)


def step_of_parallel_metalearn(problem: Problem) -> Callable[[], None]:
    """Razani, "Parallel-MetaLearn: A Functional, Vectorized Meta-Learning Framework in PyTorch" (2026),
    https://pypi.org/project/parallel-metalearn/"""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss.base import BaseLoss

    class Model(nn.Module):
        """Its way to a network of one's own: what is adapted, and a dictionary of what comes out."""

        def __init__(self):
            super().__init__()
            self.network = problem.module

        def get_fast_weights(self) -> OrderedDict[str, Tensor]:
            return OrderedDict(self.named_parameters())

        def forward(self, x: Tensor, **kwargs: Any) -> dict[str, Any]:
            return {"logits": self.network(x), "buffers": {}}

    class Loss(BaseLoss):
        def forward(self, out_dict: Any, targets: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
            loss = problem.loss(out_dict["logits"], targets)
            return loss, loss.detach()

    _write_norms_out(problem.module)  # as its own BatchNorm is
    model, parameter = Model(), next(problem.module.parameters())
    inner = InnerSGD(model.get_fast_weights(), learn_lr=False).to(parameter.dtype)
    for rate in inner.parameters():
        nn.init.constant_(rate, problem.learning_rate)  # which the constructor would round to float32
    maml = MAML(
        model=model,
        optimizer=problem.optimizer,
        inner_optimizer=inner,
        support_loss_fn=Loss(),
        inner_steps=problem.num_steps,
        device=parameter.device,
    )
    (x, y), (query_x, query_y) = problem.stacked
    batches = itertools.repeat((x, y, query_x, query_y))
    return lambda: maml.step(batches)


def step_of_higher(problem: Problem) -> Callable[[], None]:
    """Grefenstette et al., "Generalized Inner Loop Meta-Learning" (2019), https://arxiv.org/abs/1910.01727"""
    import higher

    inner = torch.optim.SGD(problem.module.parameters(), lr=problem.learning_rate)

    def backward() -> None:
        for (x, y), (query_x, query_y) in problem.tasks:
            with higher.innerloop_ctx(problem.module, inner, copy_initial_weights=False) as (module, optimizer):
                for _ in range(problem.num_steps):
                    optimizer.step(problem.loss(module(x), y))
                (problem.loss(module(query_x), query_y) / problem.num_tasks).backward()

    return problem.with_adam(backward)


def step_of_checkpoints(problem: Problem) -> Callable[[], None]:
    """PyTorch alone, each inner step computed again on the way back: `torch.utils.checkpoint`."""
    names = [name for name, _ in problem.module.named_parameters()]

    def inner_step(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        prediction = torch.func.functional_call(problem.module, dict(zip(names, values, strict=True)), (x,))
        grads = torch.autograd.grad(problem.loss(prediction, y), values, create_graph=True)
        return tuple(value - problem.learning_rate * grad for value, grad in zip(values, grads, strict=True))

    def backward() -> None:
        for (x, y), (query_x, query_y) in problem.tasks:
            values = tuple(problem.module.parameters())
            for _ in range(problem.num_steps):
                values = checkpoint(inner_step, x, y, *values, use_reentrant=False)
            adapted = dict(zip(names, values, strict=True))
            prediction = torch.func.functional_call(problem.module, adapted, (query_x,))
            (problem.loss(prediction, query_y) / problem.num_tasks).backward()

    return problem.with_adam(backward)


def step_of_torchopt(problem: Problem) -> Callable[[], None]:
    """Ren et al., "TorchOpt: An Efficient Library for Differentiable Optimization" (2023),
    https://arxiv.org/abs/2211.06934"""
    import torchopt

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

    return problem.with_adam(backward)


def step_of_learn2learn(problem: Problem) -> Callable[[], None]:
    """Arnold et al., "learn2learn: A Library for Meta-Learning Research" (2020), https://arxiv.org/abs/2008.12284"""
    from learn2learn.algorithms import MAML

    maml = MAML(problem.module, lr=problem.learning_rate)

    def backward() -> None:
        for (x, y), (query_x, query_y) in problem.tasks:
            learner = maml.clone()
            for _ in range(problem.num_steps):
                learner.adapt(problem.loss(learner(x), y))
            (problem.loss(learner(query_x), query_y) / problem.num_tasks).backward()

    return problem.with_adam(backward)


def _in_layout(layout: str, step_of: Callable[[Problem], Callable[[], None]]) -> Callable:
    """A contender's `build`. What keeps someone else's library from running is a reason, not an error."""

    def build(case: Case, params: PyTree, dtype: DTypeLike) -> MetaStep:
        try:
            problem = Problem(case, params, dtype, layout)
            return problem.meta_step(step_of(problem))
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    return build


_STEPS: dict[str, Callable[[Problem], Callable[[], None]]] = {
    "torch.func": step_of_torch_func,
    "torch.compile": step_of_torch_compile,
    "parallel-metalearn": step_of_parallel_metalearn,
    "higher": step_of_higher,
    "TorchOpt": step_of_torchopt,
    "learn2learn": step_of_learn2learn,
}
CONTENDERS = [
    Contender(name, _in_layout(layout, step_of), layout)
    for name, step_of in _STEPS.items()
    for layout in (LAYOUTS[:1] if name == "torch.compile" else LAYOUTS)  # the compiler lays images out itself
]
CHECKPOINTED = Contender("PyTorch, checkpoints", _in_layout(LAYOUTS[0], step_of_checkpoints))


def by_name(name: str) -> Contender:
    """In PyTorch's default layout."""
    return next(of for of in (*CONTENDERS, CHECKPOINTED) if of.name == name and of.layout in ("", LAYOUTS[0]))


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


def _of_dtype(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x


def _channels_first(x: Tensor, layout: str) -> Tensor:
    """Images [N, B, H, W, C] -> [N, B, C, H, W], moved or, for `channels_last`, a view; anything else as it is."""
    if x.ndim != 5:
        return x
    return x.movedim(-1, 2) if layout == "channels_last" else x.movedim(-1, 2).contiguous()
