"""Layers that stay fast when their weights differ per task, the papers' networks, and losses."""

from jaxmeta.nn.convolution import conv
from jaxmeta.nn.layers import Conv, batch_norm, conv_batch_norm, max_pool
from jaxmeta.nn.losses import cross_entropy, mean_squared_error, sum_squared_error
from jaxmeta.nn.networks import MLP, Conv4
from jaxmeta.nn.norms import BatchNorm, ConvBatchNorm, support_statistics
from jaxmeta.nn.recurrent import Recurrent, causal_transformer, feed_forward, gru, lstm, min_gru, with_layers
from jaxmeta.nn.resnet import ResNet12
from jaxmeta.nn.transformer import Transformer
from jaxmeta.nn.weights import mask_logits, weighted_mean

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv",
    "Conv4",
    "ConvBatchNorm",
    "Recurrent",
    "ResNet12",
    "Transformer",
    "batch_norm",
    "causal_transformer",
    "conv",
    "conv_batch_norm",
    "cross_entropy",
    "feed_forward",
    "gru",
    "lstm",
    "mask_logits",
    "max_pool",
    "mean_squared_error",
    "min_gru",
    "sum_squared_error",
    "support_statistics",
    "weighted_mean",
    "with_layers",
]
