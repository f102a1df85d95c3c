"""A decoder-only transformer over bytes or other tokens, whole or split between ranks."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from hpcai.errors import UsageError
from hpcai.nn import layers, losses, sequence
from hpcai.nn.layers import Layer, Parameter
from hpcai.nn.models import Model, sequential
from hpcai.nn.split import WHOLE, Split


class Shape(NamedTuple):
    """The sizes of a GPT. Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128
    tokens: int = 256
    norm: str = "layer"
    tied: bool = False
    dropout: float = 0.0


def gpt(shape: Shape, seed: int = 0, split: Split = WHOLE) -> Model:
    """Return a GPT: embeddings, `layers` blocks, a last norm, and a score for each token.

    A block is attention, then a hidden layer of 4 * width with GELU. Each of the two has a norm before it and is added to its
    input. seed: of dropout's masks. split: the part of every block that this rank has.
    Raises: UsageError for an invalid shape, or one that `split` does not divide.
    """
    check(shape, split.parts)
    mask = iter(range(2 * shape.layers + 1))

    def dropped(name: str) -> Layer:
        return sequence.dropout(name, shape.dropout, seed, next(mask), shape.context, shape.width, split)

    parts = [
        sequence.embedding("embedding", shape.tokens, shape.width, shape.context, split=split),
        *split.scatter("embedding/scatter"),
        dropped("embedding/dropout"),
    ]
    for i in range(1, shape.layers + 1):
        parts += [*_attend(shape, f"block{i}/attention", dropped, split), *_think(shape, f"block{i}/hidden", dropped, split)]
    parts += [
        sequence.norm("head/norm", shape.width, shape.norm, split),
        *split.gather("head/gather"),
        sequence.unembedding("head", shape.tokens, shape.width, "embedding" if shape.tied else None, split=split),
    ]
    return sequential("gpt", *parts, loss=losses.token_cross_entropy(split, shape.tokens))


def _attend(shape: Shape, name: str, dropped, split: Split) -> tuple[Layer, ...]:
    heads, d, width = split.share(shape.heads), shape.width // shape.heads, shape.width
    mine = heads.stop - heads.start
    weight = Parameter((3 * mine * d, width), 0.02, "normal", (3, shape.heads, d, width), (slice(None), heads))
    bias = Parameter((3 * mine * d,), 0.0, "constant", (3, shape.heads, d), (slice(None), heads, slice(None)))
    out = _narrowing(shape, split.share(width))
    return sequence.residual(
        name,
        sequence.norm(f"{name}/norm", width, shape.norm, split),
        *split.gather(f"{name}/gather"),
        layers.product(f"{name}/qkv", weight, bias, transposed=True),
        sequence.attention(f"{name}/heads", mine, shape.context),
        layers.product(f"{name}/out", *out, adds_bias=split.place == 0),
        *split.scatter(f"{name}/scatter"),
        dropped(f"{name}/dropout"),
    )


def _think(shape: Shape, name: str, dropped, split: Split) -> tuple[Layer, ...]:
    hidden, mine = 4 * shape.width, split.share(4 * shape.width)
    columns = mine.stop - mine.start
    weight = Parameter((columns, shape.width), 0.02, "normal", (hidden, shape.width), (mine,))
    bias = Parameter((columns,), 0.0, "constant", (hidden,), (mine,))
    return sequence.residual(
        name,
        sequence.norm(f"{name}/norm", shape.width, shape.norm, split),
        *split.gather(f"{name}/gather"),
        layers.product_gelu(f"{name}/up", weight, bias, transposed=True),
        layers.product(f"{name}/down", *_narrowing(shape, mine, hidden), adds_bias=split.place == 0),
        *split.scatter(f"{name}/scatter"),
        dropped(f"{name}/dropout"),
    )


def _narrowing(shape: Shape, mine: slice, inputs: int | None = None) -> tuple[Parameter, Parameter]:
    """Return weight (this rank's rows) and bias of the product that ends a residual branch.

    The standard deviation falls with the number of branches, so that the sum of branches does not grow with depth.
    """
    inputs = inputs or shape.width
    deviation = 0.02 / sqrt(2 * shape.layers)
    weight = Parameter((mine.stop - mine.start, shape.width), deviation, "normal", (inputs, shape.width), (mine,))
    return weight, Parameter((shape.width,), 0.0, "constant")


def check(shape: Shape, parts: int) -> None:
    """Raise UsageError for an invalid shape, or one that `parts` tensor-parallel ranks cannot share."""
    for name in ("layers", "width", "heads", "context"):
        if getattr(shape, name) < 1:
            raise UsageError(f"--{name} must be at least 1, got {getattr(shape, name)}")
    if shape.width % shape.heads:
        fits = [h for h in range(1, shape.width + 1) if shape.width % h == 0]
        raise UsageError(f"--width {shape.width} is not divisible by --heads {shape.heads}; {_near(shape.heads, fits)}")
    if not 0 <= shape.dropout < 1:
        raise UsageError(f"--dropout must be from 0 to below 1, got {shape.dropout}")
    for name, value in (("--heads", shape.heads), ("--context", shape.context), ("the vocabulary of", shape.tokens)):
        if value % parts:
            fits = [t for t in range(1, value + 1) if value % t == 0]
            raise UsageError(f"{name} {value} is not divisible by tp={parts}; {_near(parts, fits)}")


def _near(given: int, fits: list[int]) -> str:
    """Name the divisors nearest to the given one."""
    best = sorted(sorted(fits, key=lambda one: abs(one - given))[:3])
    return f"near divisors are {', '.join(map(str, best))}"
