"""Layers of sequence models. Activations are (rows, width): a row is a token, and sequences follow one another.

Row-wise layers work on any rows. Attention and position embeddings find the start of a sequence by the context. Layers that ranks
can split take a Split (see split.py): columns by heads, hidden units or classes, rows by sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.nn.layers import Cache, Layer, Parameter, Params, buffer, dims
from hpcai.nn.split import WHOLE, Split
from hpcai.ops import streams
from hpcai.ops.door import takes
from hpcai.xp import Array


class BatchPosition(NamedTuple):
    """The position of a forward pass in time and data, on which dropout's masks depend besides the seed.

    step: of training, from 0. first: the number of the pass's first sample in the global batch.
    """

    step: int
    first: int


def embedding(name: str, tokens: int, width: int, context: int, deviation: float = 0.02, split: Split = WHOLE) -> Layer:
    """y[i] = token[x[i]] + position[i modulo context]. x: (b, context) integers below `tokens`; y: (b * context, width).

    Ranks split the vocabulary: a rank looks up its own tokens, the first rank adds positions, and `split.scatter` sums.
    """
    mine = split.share(tokens)
    shapes = {
        "token": Parameter((mine.stop - mine.start, width), deviation, "normal", (tokens, width), (mine,)),
        "position": Parameter((context, width), deviation, "normal"),
    }

    @takes(x=f"i64 b {context} <{tokens}")
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["x"] = x.reshape(-1)
        y = buffer((x.size, width), params["token"])
        return ops.embed_into(y, cache["x"], params["token"], mine.start, params["position"] if split.place == 0 else None)

    @dims(2)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        ops.embed_gradients_into(grads["token"], grads["position"], dy, cache["x"], mine.start)

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        raise TypeError("tokens have no gradient")

    return Layer(name, shapes, forward, backward, gradients)


def unembedding(
    name: str, tokens: int, width: int, tied_to: str | None = None, deviation: float = 0.02, split: Split = WHOLE
) -> Layer:
    """y = x token^T: a score for each token. x: (rows, width); y: (rows, tokens / split.parts).

    tied_to: the name of the embedding whose "token" is used as the matrix; None: the layer has its own.
    """
    mine = split.share(tokens)
    token = Parameter((mine.stop - mine.start, width), deviation, "normal", (tokens, width), (mine,))

    @dims(2)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["x"] = x
        return ops.matmul_into(buffer((len(x), len(params["token"])), x), x, params["token"].T)

    @dims(2)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        ops.matmul_into(grads["token"], dy.T, cache["x"])

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return ops.matmul_into(buffer(cache["x"].shape, dy), dy, params["token"])

    return Layer(name, {"token": token}, forward, backward, gradients, shares_parameters_with=tied_to)


def norm(name: str, width: int, kind: str = "layer", split: Split = WHOLE) -> Layer:
    """LayerNorm of each row, or RMSNorm if kind is "rms". Ranks that split the rows sum the parameters' gradients."""
    centred = kind == "layer"
    shapes = {"weight": Parameter((width,), 1.0, "constant")}
    if centred:
        shapes["bias"] = Parameter((width,), 0.0, "constant")

    @dims(2)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        mean, inverse = buffer((len(x),), x), buffer((len(x),), x)
        cache["x"], cache["mean"], cache["inverse"] = x, mean, inverse
        return ops.layer_norm_into(buffer(x.shape, x), mean, inverse, x, params["weight"], params.get("bias"))

    @dims(2)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        ops.layer_norm_gradients_into(grads["weight"], grads.get("bias"), dy, cache["x"], cache["mean"], cache["inverse"])
        for key in shapes:
            split.sum_into(grads[key])

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        dx = buffer(dy.shape, dy)
        return ops.layer_norm_backward_into(dx, dy, cache["x"], cache["mean"], cache["inverse"], params["weight"], centred)

    return Layer(name, shapes, forward, backward, gradients)


def attention(name: str, heads: int, context: int) -> Layer:
    """Causal self-attention. x: (rows, 3 * heads * d), queries, keys and values; y: (rows, heads * d).

    Source: Vaswani et al., arXiv:1706.03762. Cost: backward computes the probabilities again, so they take no memory.
    """

    @dims(2)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        y, norms = buffer((len(x), x.shape[1] // 3), x), buffer((len(x) // context, heads, context), x)
        cache["x"], cache["y"], cache["norms"] = x, y, norms
        return ops.attention_into(y, norms, x, heads)

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        x = cache["x"]
        return ops.attention_backward_into(buffer(x.shape, dy), dy, cache["y"], cache["norms"], x, heads)

    return Layer(name, {}, forward, backward)


def dropout(name: str, rate: float, seed: int, number: int, context: int, width: int, split: Split = WHOLE) -> Layer:
    """In training, zero each element with probability `rate` and divide the others by 1 - rate; otherwise the identity.

    Only the seed, the step, the layer's `number` and the element's position in the global batch determine the mask, so it does
    not depend on how ranks split batch, sequence or layers. Source: Srivastava et al., JMLR 15, 2014.
    """
    streams.seed_checked(seed)

    @dims(2)
    def drop(cache: Cache, x: Array) -> Array:
        moment: BatchPosition | None = cache.get("moment")
        if moment is None or rate == 0:
            return x
        key = streams.sequence(seed, number, moment.step).generate_state(1, np.uint64)[0]
        first = moment.first * context * width + split.place * x.size
        return ops.dropout_into(buffer(x.shape, x), x, key, first, rate)

    return Layer(
        name,
        {},
        lambda params, cache, x: drop(cache, x),
        lambda params, cache, dy: drop(cache, dy),
    )


def residual(name: str, *inner: Layer) -> tuple[Layer, ...]:
    """y = x + inner(x), as a sequence of layers. The first keeps x for the last; in backward, the last keeps dy for the first.

    Sums are written in place, so the last layer of `inner` must not keep its output, and the first layer of `inner` must return
    an input gradient in memory of its own.
    """

    def fork(params: Params, cache: Cache, x: Array) -> Array:
        cache["skipped"] = x
        return x

    def join(params: Params, cache: Cache, x: Array) -> Array:
        return ops.fold_into(x, cache["skipped"], "sum")

    def fork_backward(params: Params, cache: Cache, dy: Array) -> Array:
        return ops.fold_into(dy, cache["dskipped"], "sum")

    def join_backward(params: Params, cache: Cache, dy: Array) -> Array:
        cache["dskipped"] = dy
        return dy

    first = Layer(f"{name}/fork", {}, fork, fork_backward)
    last = Layer(f"{name}/join", {}, join, join_backward, shares_cache_with=first.name)
    return (first, *inner, last)
