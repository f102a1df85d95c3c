"""Evaluation of the model on samples that it is not trained on."""

from __future__ import annotations

import numpy as np

from hpcai.data import sharding
from hpcai.data.dataset import Dataset, take
from hpcai.parallel import schedules
from hpcai.parallel.pipeline import MicroBatch
from hpcai.train.outcome import Evaluation
from hpcai.train.replica import Replica
from hpcai.train.report.figures import Figures, in_units
from hpcai.train.run import room

EVALUATION_BATCH = 1024
"""How many samples a rank evaluates at a time; for text, how many targets (fewer samples)."""


def evaluate(replica: Replica, dataset: Dataset) -> Evaluation:
    """Evaluate the model on the test samples, which are divided among data-parallel ranks. Collective."""
    mesh, n = replica.mesh, dataset.test_samples
    most = max(1, EVALUATION_BATCH // dataset.targets_a_sample)
    index = sharding.shard(np.arange(n), mesh.dp.rank, mesh.dp.size)
    rounds = -(-max(mesh.dp.allgather_object(len(index))) // most)
    rows, sums, figures = room(dataset, most, replica), np.zeros(2), Figures(dataset, replica.whole)
    # All micro-batches at once would keep all their inputs in memory. Twice as many as there are stages keep a pipeline busy.
    depth = 2 * mesh.pp.size if mesh.pp.size > 1 else 1
    for start in range(0, rounds, depth):
        micros = []
        for one in range(start, min(start + depth, rounds)):
            x, target = take(dataset, index[one * most : (one + 1) * most], rows, train=False)
            micros.append(MicroBatch(x.copy() if depth > 1 else x, target, 0))
        plan = schedules.forwards(mesh.pp.size, len(micros), replica.chunks)
        sums += replica.evaluation.run(plan, micros, replica.weights, None, 0.0, None, seen=figures.add)
    sums = np.concatenate([sums, figures.weight]) * (mesh.tp.rank == 0)
    mesh.world.allreduce(sums)
    targets = n * dataset.targets_a_sample
    weight = float(sums[2]) if len(figures.weight) else targets
    quantities, outputs = dict[str, float | None](), list[dict[str, float | None]]()
    if not dataset.classes and figures.predicts:
        quantities, outputs = in_units(mesh.world.allgather_object(figures.quantities), dataset.target_unit)
    accuracy = float(sums[1]) / targets if dataset.classes and replica.whole.loss.counts else None
    return Evaluation(float(sums[0]) / weight if weight else 0.0, accuracy, quantities, outputs, figures.counts)
