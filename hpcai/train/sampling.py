"""Generation of text by a trained language model, byte by byte, on any mesh."""

from __future__ import annotations

import numpy as np

from hpcai.ops import streams
from hpcai.parallel import schedules
from hpcai.train.replica import Replica
from hpcai.xp import Array

TEMPERATURE = 0.8
"""Scores are divided by this before a byte is drawn. Values below 1 make likely bytes more likely."""


def sample(replica: Replica, context: int, count: int, seed: int, prompt: bytes = b"\n") -> bytes:
    """Draw `count` bytes after the prompt, the same on all ranks. Collective. Cost: one forward pass of a window per byte."""
    rng = np.random.default_rng(streams.sequence(seed, count))
    text = list(prompt)
    for _ in range(count):
        seen = text[-context:]
        window = np.zeros((1, context), np.int64)
        window[0, : len(seen)] = seen  # a prediction does not see the padding after it
        scores = _scores(replica, window, len(seen) - 1) / TEMPERATURE
        text.append(int(np.argmax(scores + rng.gumbel(size=len(scores)))))
    return bytes(text[len(prompt) :])


def _scores(replica: Replica, window: Array, place: int) -> Array:
    """Return the scores of all tokens for the position after `place`, (tokens,) f64, on all ranks. Collective."""
    mesh = replica.mesh
    plan = schedules.forwards(mesh.pp.size, 1, replica.chunks)
    y = replica.evaluation.predict(window, replica.weights, plan)
    tokens = replica.whole.layers[-1].parameters["token"].shape[0]
    scores = np.zeros((mesh.tp.size, tokens))
    if y is not None:
        scores[mesh.tp.rank] = y[place]
        mesh.tp.allgather(scores)
    mesh.pp.broadcast(scores, mesh.pp.size - 1)
    return scores.reshape(-1)
