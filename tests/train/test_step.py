"""One step, looked at directly: how far parameters go when gradients are clipped, and which samples its parts say they are."""

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.data import sharding, sources
from hpcai.data.dataset import take
from hpcai.nn import models
from hpcai.strategies.mixed import Mixed
from hpcai.strategies.strategy import part
from hpcai.train.inputs import share
from hpcai.train.replica import new_replica
from hpcai.train.step import cut, train_step
from tests.train.test_loop import options

pytestmark = pytest.mark.usefixtures("clean_environment")

BATCH, STEPS, LR = 30, 4, 0.5


def norm(mine, gradients, shards):
    """Of the whole gradient, from the pieces that this rank updates."""
    squares = mine.mesh.world.allgather_object(sum(float(np.square(piece).sum()) for piece in gradients))
    return np.sqrt(sum(squares) if shards else squares[0])


def steps(comm, chosen):
    """For each step of a fresh replica: the norms of gradient and change, the norm that is reported, and whether every element
    of the change is the same multiple of its gradient.
    """
    dataset = share(comm, lambda: sources.load("digits", None, None, ()))
    mine, seen = new_replica(chosen, dataset, comm), []
    for step in range(STEPS):
        index = sharding.shard(sharding.global_batch(dataset.train_samples, BATCH, 0, step), comm.rank, comm.size)
        x, target = take(dataset, index, np.empty((len(index), dataset.x_train.shape[-1]), mine.params.dtype))
        before, scale = mine.params.copy(), getattr(part(mine.state, Mixed), "scale", 1.0)
        reported = train_step(mine, x, target, BATCH, step, LR).grad_norm
        places, shards = mine.buffers.places, chosen.zero > 0
        gradients = [mine.buffers.grads[place.grads].astype(np.float64) / scale for place in places]
        changes = [(before[place.params].astype(np.float64) - mine.params[place.params]) / LR for place in places]
        length, moved = norm(mine, gradients, shards), norm(mine, changes, shards)
        parallel = all(np.allclose(c, g * (moved / length), atol=1e-5) for c, g in zip(changes, gradients, strict=True))
        seen.append((length, moved, reported, parallel))
    return seen


@pytest.mark.parametrize(
    "ranks, flags",
    [(1, "--dtype f64"), (2, "--dtype f64"), (3, "--dtype f64 --zero 1"), (2, "--dtype f64 --zero 2"), (2, "--dtype f16")],
)
@pytest.mark.parametrize("share_of_the_norm", [0.01, 0.6, 0.999, 1.001, None])
def test_every_step_goes_as_far_as_the_gradient_or_the_limit(tmp_path, ranks, flags, share_of_the_norm):
    """The limit is a share of the first step's norm; None: there is no limit. Seen from outside: parameters before and after."""
    common = ["--model", "softmax", "--optimizer", "sgd", *flags.split()]
    first = threads.run(ranks, steps, options(tmp_path, *common))[0][0][0]
    limit = share_of_the_norm and share_of_the_norm * first
    seen = threads.run(ranks, steps, options(tmp_path, *common, *(["--clip-norm", repr(float(limit))] if limit else [])))
    rel = 1e-3 if "f16" in flags else 1e-9
    for length, moved, reported, parallel in seen[0]:
        assert reported == pytest.approx(length, rel=rel)
        assert moved == pytest.approx(min(length, limit or length), rel=rel)
        assert parallel
    assert seen[0][0][0] == pytest.approx(first, rel=1e-12)
    assert all(rank == seen[0] for rank in seen)


@pytest.mark.parametrize("first", [0, 40])
@pytest.mark.parametrize(
    "n, count, begins",
    [(6, 1, [0]), (6, 3, [0, 2, 4]), (7, 3, [0, 2, 4]), (8, 3, [0, 2, 5]), (2, 4, [0, 0, 1, 1]), (0, 2, [0, 0])],
)
def test_a_micro_batch_knows_the_number_of_its_first_sample(first, n, count, begins):
    x = np.arange(first, first + n)
    micros = cut(x, -x, first, count)
    assert [micro.first for micro in micros] == [first + begin for begin in begins]
    assert np.concatenate([micro.x for micro in micros]).tolist() == x.tolist()
    assert np.concatenate([micro.target for micro in micros]).tolist() == (-x).tolist()
    assert all(micro.x[0] == micro.first for micro in micros if len(micro.x))


@pytest.mark.parametrize(
    "ranks, flags",
    [
        (1, "--micro-batches 1"),
        (1, "--micro-batches 5"),
        (3, "--micro-batches 1"),
        (4, "--micro-batches 1"),
        (3, "--micro-batches 2"),
        (1, "--compress reproducible --fixed-micro-batch 4"),
        (2, "--compress reproducible --fixed-micro-batch 4"),
        (3, "--compress reproducible --fixed-micro-batch 4"),
        (3, "--compress reproducible --fixed-micro-batch 1"),
        (7, "--compress reproducible --fixed-micro-batch 8"),
    ],
)
def test_every_forward_says_the_number_of_its_first_sample_and_the_step(tmp_path, ranks, flags, monkeypatch):
    """Each sample's first feature is its number in the global batch; 30 in grains of 4 or 8 leave a short one."""
    chosen, seen, inner = options(tmp_path, "--batch", str(BATCH), "--model", "softmax", *flags.split()), [], models.forward

    def forward(model, params, caches, x, span=models.ALL, moment=None):
        if moment is not None and len(x):
            seen.append((moment.step, moment.first, round(float(x[0, 0])), len(x)))
        return inner(model, params, caches, x, span, moment)

    monkeypatch.setattr(models, "forward", forward)

    def program(comm):
        dataset = share(comm, lambda: sources.load("digits", None, None, ()))
        mine = new_replica(chosen, dataset, comm)
        index = sharding.shard(np.arange(BATCH), comm.rank, comm.size, mine.grain or 1)
        x = np.zeros((len(index), dataset.x_train.shape[-1]), mine.params.dtype)
        x[:, 0] = index
        train_step(mine, x, np.zeros(len(index), np.int64), BATCH, 5, 1e-6)

    threads.run(ranks, program)
    assert all(first == number for _, first, number, _ in seen)
    assert {step for step, *_ in seen} == {5}
    assert {number + i for _, _, number, count in seen for i in range(count)} == set(range(BATCH))
