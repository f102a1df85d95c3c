"""The samples that each rank sees: a function of (seed, epoch, step). Global batches are equal for any number of ranks."""

from __future__ import annotations

from functools import lru_cache

from hpcai.ops import streams
from hpcai.xp import Array


def steps_per_epoch(n: int, batch: int) -> int:
    """Return the number of global batches in one pass over n samples; the last may be smaller.

    >>> steps_per_epoch(10, 4)
    3
    """
    return -(-n // batch)


def global_batch(n: int, batch: int, seed: int, step: int) -> Array:
    """Return the indices of the samples of global step `step`: (batch,) i64, fewer at an epoch's end.

    Each epoch is a shuffle of all n samples by (seed, epoch), cut into batches, so every sample comes exactly once an epoch.
    """
    epoch, at = divmod(step, steps_per_epoch(n, batch))
    return _order(n, seed, epoch)[at * batch : (at + 1) * batch]


def shard(index: Array, rank: int, size: int, grain: int = 1) -> Array:
    """Return this rank's contiguous part of a global batch, in whole grains of `grain` samples (the last may be shorter).

    Parts differ by one grain at most and may be empty. Gradients are sums over samples divided by the global count, so no sample
    is dropped or counted twice.
    """
    grains = -(-len(index) // grain)
    return index[grain * (grains * rank // size) : grain * (grains * (rank + 1) // size)]


def first(n: int, rank: int, size: int, grain: int = 1) -> int:
    """Return the position of the first sample of this rank's part in a global batch of n samples."""
    return grain * (-(-n // grain) * rank // size)


def phase(context: int, seed: int, epoch: int) -> int:
    """Return the byte where an epoch's first window of a text begins, below `context`: each epoch cuts the text elsewhere."""
    return int(streams.generator(seed, epoch).integers(context)) if context else 0


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Array:
    return streams.generator(seed, epoch).permutation(n)
