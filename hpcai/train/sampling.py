"""Text from a trained language model, byte by byte, on whatever mesh it is."""

from __future__ import annotations

import numpy as np

from hpcai.ops import streams
from hpcai.parallel import schedules
from hpcai.train.replica import Replica
from hpcai.xp import Array

TEMPERATURE = 0.8
"""Scores are divided by this before bytes are drawn: below 1 likely ones become likelier."""


def sample(replica: Replica, context: int, count: int, seed: int, prompt: bytes = b"\n") -> bytes:
    """Draw `count` bytes after the prompt, the same on all ranks. Collective. Cost: a forward pass of a window for each."""
    rng = np.random.default_rng(streams.sequence(seed, count))
    text = list(prompt)
    for _ in range(count):
        seen = text[-context:]
        window = np.zeros((1, context), np.int64)
        window[0, : len(seen)] = seen  # what stands behind is not seen by what is before
        scores = _scores(replica, window, len(seen) - 1) / TEMPERATURE
        text.append(int(np.argmax(scores + rng.gumbel(size=len(scores)))))
    return bytes(text[len(prompt) :])


def _scores(replica: Replica, window: Array, place: int) -> Array:
    """Scores of all tokens for what follows that place, in f64, on all ranks. Collective."""
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
