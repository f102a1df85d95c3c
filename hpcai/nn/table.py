"""The models that --model names. An entry's `make(inputs, outputs, loss, split, seed, **values)` returns a Model for samples of
shape `inputs`; for a model that tensor-parallel ranks can split, it returns the part that `split` describes.
"""

from __future__ import annotations

from typing import Any

from hpcai.entry import Entry
from hpcai.nn import gpt, models
from hpcai.nn.losses import Loss
from hpcai.nn.models import Model
from hpcai.nn.split import Split

Inputs = tuple[int, ...]


def _softmax(inputs: Inputs, outputs: int, loss: Loss, split: Split, seed: int) -> Model:
    return models.softmax(inputs, outputs, loss)


def _mlp(inputs: Inputs, outputs: int, loss: Loss, split: Split, seed: int, hidden: Any, activation: str) -> Model:
    return models.mlp(inputs, outputs, loss, hidden, activation)


def _cnn(inputs: Inputs, outputs: int, loss: Loss, split: Split, seed: int, channels: Any, image_channels: Any) -> Model:
    return models.cnn(inputs, outputs, loss, channels, image_channels=image_channels)


def _wants_channels(options: Any, axes: Any) -> str:
    return "" if options.channels else "--channels needs at least one number"


def _gpt(inputs: Inputs, outputs: int, loss: Loss, split: Split, seed: int, **values: Any) -> Model:
    return gpt.gpt(shape(**values), seed, split)


def shape(layers: int, width: int, heads: int, context: int, norm: str, tied: bool, dropout: float) -> gpt.Shape:
    """Return the sizes of a gpt over bytes."""
    return gpt.Shape(layers, width, heads, context, norm=norm, tied=tied, dropout=dropout)


MODELS = {
    "softmax": Entry("logistic or linear regression", _softmax),
    "mlp": Entry("a sequence of hidden layers", _mlp, {"hidden": (512, 256), "activation": "relu"}),
    "cnn": Entry("convolutions and pooling, for images", _cnn, {"channels": (32, 64), "image_channels": None}, _wants_channels),
    "gpt": Entry(
        "a byte-level language model, for text",
        _gpt,
        {"layers": 4, "width": 128, "heads": 4, "context": 128, "norm": "layer", "tied": False, "dropout": 0.0},
        source="Radford et al. 2019",
    ),
}
"""Model name -> entry."""
