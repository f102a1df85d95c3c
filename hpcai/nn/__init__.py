"""Layers, losses and models as init, forward and backward on one rank's batch. No ranks here."""

from hpcai.nn.external import external
from hpcai.nn.layers import Layer, Parameter, channels_last, conv2d, flatten, gelu, linear, max_pool, relu, reshape
from hpcai.nn.losses import Loss, mean_squared_error, softmax_cross_entropy, token_cross_entropy
from hpcai.nn.models import Model, cnn, mlp, sequential, softmax
from hpcai.nn.sequence import attention, dropout, embedding, norm, residual, unembedding

__all__ = [
    "Layer",
    "Loss",
    "Model",
    "Parameter",
    "attention",
    "channels_last",
    "cnn",
    "conv2d",
    "dropout",
    "embedding",
    "external",
    "flatten",
    "gelu",
    "linear",
    "max_pool",
    "mean_squared_error",
    "mlp",
    "norm",
    "relu",
    "reshape",
    "residual",
    "sequential",
    "softmax",
    "softmax_cross_entropy",
    "token_cross_entropy",
    "unembedding",
]
