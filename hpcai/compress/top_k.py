"""The k elements of largest magnitude, exactly k, with their indices.

Sources: Aji & Heafield, arXiv:1704.05021; Lin et al., arXiv:1712.01887 (the threshold from a sample).
"""

from __future__ import annotations

import math

import numpy as np

from hpcai import ops
from hpcai.compress.codec import Codec, Payload, State, opened
from hpcai.ops import door, ranges
from hpcai.ops.door import takes
from hpcai.xp import Array

SAMPLE, LINE = 1 << 14, 16
"""Elements in the sample that estimates the threshold, and elements in a row of the sample: a cache line is one memory access."""


def top_k(ratio: float) -> Codec:
    """The max(1, round(ratio * n)) elements of largest magnitude; of equal ones, those of lowest index. NaN counts as largest.

    A threshold estimated from a sample leaves a few candidates. The choice among these is exact, so the result does not depend
    on the estimate. Payload: 8 bytes for each sent element (index u32, value f32).
    """
    ranges.share(top_k, ratio=ratio)
    name = f"topk:{ratio:g}"

    @takes(x="f32 n")
    def encode(x: Array, state: State) -> tuple[Payload, State]:
        return largest(x, wanted(x.size)), state

    @takes(x="f32 n", memory="f32 n", writes="memory")
    def keep(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        payload = largest(x, wanted(x.size), memory)
        ops.scatter_zero_into(memory, payload[0])
        return payload, state

    def decode(payload: Payload, n: int) -> Array:
        return add(np.zeros(n, np.float32), payload, 1.0)

    @takes(acc="f32 n", writes="acc")
    def add(acc: Array, payload: Payload, weight: float) -> Array:
        k = wanted(acc.size)
        index, value = opened(name, payload, (np.uint32, (k,)), (np.float32, (k,)), into=acc)
        door.refuse_outside(name, "index", index, acc.size)
        return ops.scatter_add_into.unchecked(acc, index, value, weight)

    def wanted(n: int) -> int:
        return min(n, max(1, round(ratio * n)))

    return Codec(name, encode, decode, keep=keep, add=add)


def largest(x: Array, k: int, memory: Array | None = None) -> tuple[Array, Array]:
    """Return indices (k,) u32, ascending, and values (k,) f32 of the k elements of x (n,) f32 with the largest magnitudes.

    With a memory, (n,) f32: memory += x, and elements of that sum are chosen.
    """
    index, value = _candidates(x, k, memory)
    if k == len(index):
        return index.copy(), value.copy()
    magnitude = np.abs(value)
    magnitude[np.isnan(magnitude)] = np.inf
    least = np.partition(magnitude, len(index) - k)[len(index) - k] if k else np.float32(np.inf)
    chosen = magnitude >= least
    surplus = np.count_nonzero(chosen) - k
    if surplus:  # of equal magnitudes, drop those of highest index
        chosen[np.flatnonzero(magnitude == least)[-surplus:]] = False
    return index[chosen], value[chosen]


def _candidates(x: Array, k: int, memory: Array | None) -> tuple[Array, Array]:
    """Return at least k elements, by ascending index, among them the k largest; few more than k if the sample is typical."""
    if x.size > max(4 * k, 1000):
        sample = np.abs(_sampled(x) if memory is None else _sampled(x) + _sampled(memory))
        share = k / x.size
        # Four standard deviations above k: a sample of this size gives too few candidates once in many thousands.
        aim = share + 4 * math.sqrt(share / sample.size)
        while aim < 0.5:
            place = sample.size - 1 - int(aim * sample.size)
            threshold = float(np.partition(sample, place)[place])
            if not threshold > 0:
                break
            index, value, found = ops.select_above(x, threshold, max(64, int(1.5 * aim * x.size)), memory)
            if k <= found == len(index):
                return index, value
            x, memory, aim = x if memory is None else memory, None, 2 * aim
    if memory is not None:
        memory += x
        x = memory
    return np.arange(x.size, dtype=np.uint32), x


def _sampled(x: Array) -> Array:
    """Return about SAMPLE elements, spread over x."""
    lines = x[: x.size // LINE * LINE].reshape(-1, LINE)
    return lines[:: max(1, len(lines) * LINE // SAMPLE)].reshape(-1)
