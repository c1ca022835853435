"""The cases: a network, a loss, a batch of tasks, and how far the inner loop goes. Their data is random numbers.

A case is written once and given to every contender: jaxmeta, the plain JAX that people write, and PyTorch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from benchmarks.shared.flops import count_flops, meta_step_flops
from benchmarks.shared.plain_transformer import PlainTransformer
from jaxmeta import MetaLearner, Task, adapt, maml, nn
from jaxmeta.types import LossFn, PyTree


class Case(NamedTuple):
    """One exact meta-step: N `tasks`, `num_steps` K inner steps of gradient descent at `learning_rate`, Adam outside.

    `criterion` makes a loss of a forward function: `nn.cross_entropy` or `nn.mean_squared_error`. What jaxmeta could be
    told besides, the schedule and the microbatch, is left to its defaults.
    """

    network: fnn.Module
    criterion: Callable[[Callable], LossFn]
    tasks: Task
    num_steps: int
    learning_rate: float

    @property
    def num_tasks(self) -> int:
        return len(self.tasks.support[0])

    def init(self, key: jax.Array) -> PyTree:
        return self.network.init(key, self.tasks.support[0][0])

    def loss(self, params: PyTree, batch: PyTree) -> tuple[jax.Array, dict]:
        return self.criterion(self.network.apply)(params, batch)

    def maml(self, **how: Any) -> MetaLearner:
        """Exact MAML of it, with jaxmeta's defaults or `how`, further arguments of `jaxmeta.maml`."""
        told: dict[str, Any] = {"init_fn": self.init, "inner_optimizer": adapt.sgd(self.learning_rate)} | how
        return maml(loss_fn=self.loss, num_inner_steps=self.num_steps, **told)

    def plain_loss(self, params: PyTree, batch: PyTree) -> jax.Array:
        return self.criterion(plain_apply(self.network))(params, batch)[0]

    def flops(self) -> int:
        """FLOPs* of the meta-step (`meta_step_flops`), counted from the plain network, the same for all contenders."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        task = cast(jax.tree.map(lambda x: x[0], self.tasks), np.float32)
        support, query = (count_flops(self.plain_loss, params, part) for part in (task.support, task.query))
        return meta_step_flops(self.num_tasks, self.num_steps, support, query)


def plain_apply(network: fnn.Module) -> Callable:
    """`network.apply` as people write it: each convolution of jaxmeta becomes a `lax.conv_general_dilated`, its dense
    layers plain products, and its transformer flax's layers."""
    if isinstance(network, nn.Transformer):
        return PlainTransformer(**{name: getattr(network, name) for name in network.__annotations__}).apply

    def plain_layer(call: Callable, args: tuple, kwargs: dict, context: fnn.module.InterceptorContext) -> Any:
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, nn.Conv | nn.ConvBatchNorm | fnn.Dense):
            return call(*args, **kwargs)
        (x,) = args
        params = layer.variables["params"]
        if isinstance(layer, fnn.Dense):
            return x @ params["kernel"] + params["bias"]
        strides = (layer.strides,) * 2 if isinstance(layer.strides, int) else layer.strides
        layout = ("NHWC", "HWIO", "NHWC")
        padding: Any = layer.padding
        y = jax.lax.conv_general_dilated(x, params["kernel"], strides, padding, dimension_numbers=layout)
        if isinstance(layer, nn.ConvBatchNorm):
            return nn.batch_norm(y, params["scale"], params["bias"], layer.epsilon)
        return y + params["bias"] if layer.use_bias else y

    def apply(params: PyTree, x: jax.Array) -> Any:
        with fnn.intercept_methods(plain_layer):
            return network.apply(params, x)

    return apply


def cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """The real leaves in another precision, as arrays on the device."""
    is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if is_real(x) else jnp.asarray(x), tree)


def regression(num_tasks: int, num_shots: int, num_queries: int) -> Task:
    """Sinusoids A sin(x − φ) as in `jaxmeta.tasks.sinusoid`, in float64."""
    rng = np.random.default_rng(0)
    amplitude, phase = rng.uniform(0.1, 5, (num_tasks, 1, 1)), rng.uniform(0, np.pi, (num_tasks, 1, 1))

    def examples(number: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.uniform(-5, 5, (num_tasks, number, 1))
        return x, amplitude * np.sin(x - phase)

    return Task(examples(num_shots), examples(num_queries))


def episodes(num_tasks: int, num_ways: int, num_shots: int, num_queries: int, shape: tuple[int, ...]) -> Task:
    """N-way episodes of noisy prototypes in [0, 1], in float64; queries are per class."""
    rng = np.random.default_rng(0)
    prototypes = rng.uniform(size=(num_tasks, num_ways, 1, *shape))

    def examples(number: int) -> tuple[np.ndarray, np.ndarray]:
        noise = rng.uniform(size=(num_tasks, num_ways, number, *shape))
        x = (prototypes + noise).reshape(num_tasks, num_ways * number, *shape) / 2
        y = np.tile(np.repeat(np.arange(num_ways, dtype=np.int32), number), (num_tasks, 1))
        return x, y

    return Task(examples(num_shots), examples(num_queries))


def sequences(num_tasks: int, num_examples: int, num_queries: int, length: int, num_tokens: int) -> Task:
    """Next-token prediction in sequences that count up from a random start by a step of the task's own."""
    rng = np.random.default_rng(0)
    step = rng.integers(1, num_tokens, (num_tasks, 1, 1))

    def examples(number: int) -> tuple[np.ndarray, np.ndarray]:
        start = rng.integers(num_tokens, size=(num_tasks, number, 1))
        tokens = ((start + step * np.arange(length + 1)) % num_tokens).astype(np.int32)
        return tokens[..., :-1], tokens[..., 1:]

    return Task(examples(num_examples), examples(num_queries))


def sinusoid(num_tasks: int, num_steps: int) -> Case:
    return Case(nn.MLP(), nn.mean_squared_error, regression(num_tasks, 10, 10), num_steps, 0.01)


def omniglot_mlp(num_tasks: int, num_steps: int) -> Case:
    network = nn.MLP(hidden=(256, 128, 64, 64), num_outputs=5)
    return Case(network, nn.cross_entropy, episodes(num_tasks, 5, 1, 15, (784,)), num_steps, 0.1)


def conv4(num_tasks: int, num_steps: int) -> Case:
    tasks = episodes(num_tasks, 5, 1, 15, (28, 28, 1))
    return Case(nn.Conv4(5), nn.cross_entropy, tasks, num_steps, 0.4)


def conv4_20way(num_tasks: int, num_steps: int) -> Case:
    tasks = episodes(num_tasks, 20, 5, 5, (28, 28, 1))
    return Case(nn.Conv4(20), nn.cross_entropy, tasks, num_steps, 0.1)


def mini_imagenet(num_tasks: int, num_steps: int, num_shots: int = 1) -> Case:
    """What everybody runs: MAML's network and episodes for mini-ImageNet."""
    tasks = episodes(num_tasks, 5, num_shots, 15, (84, 84, 3))
    return Case(nn.Conv4(5, num_filters=32, strided=False), nn.cross_entropy, tasks, num_steps, 0.01)


def resnet12(num_tasks: int, num_steps: int) -> Case:
    tasks = episodes(num_tasks, 5, 1, 15, (84, 84, 3))
    return Case(nn.ResNet12(num_classes=5), nn.cross_entropy, tasks, num_steps, 0.01)


def transformer(num_tasks: int, num_steps: int) -> Case:
    tasks = sequences(num_tasks, 4, 4, 128, 64)
    network = nn.Transformer(num_outputs=64, max_length=128, num_tokens=64, num_layers=4, width=64)
    return Case(network, nn.cross_entropy, tasks, num_steps, 0.1)


# family: its builder, and the (N, K) that are run
FAMILIES: dict[str, tuple[Callable[[int, int], Case], list[tuple[int, int]]]] = {
    "sinusoid": (sinusoid, [(25, 1), (25, 5)]),
    "omniglot-mlp": (omniglot_mlp, [(32, 1), (32, 5)]),
    "conv4": (conv4, [(8, 1), (8, 5), (32, 1), (32, 5)]),
    "conv4-20way": (conv4_20way, [(4, 1), (4, 5)]),
    "mini-imagenet": (mini_imagenet, [(4, 5)]),
    "mini-imagenet-5shot": (partial(mini_imagenet, num_shots=5), [(4, 5)]),
    "resnet12": (resnet12, [(1, 1), (1, 5)]),
    "transformer": (transformer, [(4, 1), (4, 5)]),
}
