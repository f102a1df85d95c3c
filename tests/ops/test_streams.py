import numpy as np
import pytest

from hpcai.compress import quantize, random_k
from hpcai.data import sharding
from hpcai.nn import losses, models, sequence
from hpcai.nn.sequence import BatchPosition
from hpcai.ops import streams
from hpcai.reduce import power_sgd

SEEDS = [0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
BELOW_FLOATS = [seed for seed in SEEDS if seed < 2**63]


def dropped(seed, step=3):
    layer = sequence.dropout("drop", 0.5, seed, 1, 8, 16)
    return layer.forward({}, {"moment": BatchPosition(step, 0)}, np.ones((8, 16), np.float32))


def initial(seed):
    return models.initialise(models.softmax((8,), 4, losses.softmax_cross_entropy()), seed)


def rounded(seed):
    return quantize.int8(stochastic=True, seed=seed).encode(np.linspace(0, 1, 512, dtype=np.float32), 0)[0][0]


def blocks(seed):
    return random_k.random_k(0.1, seed=seed).encode(np.ones(64 * 400, np.float32), 0)[0][1]


USES = {
    "order": lambda seed: sharding.global_batch(50, 50, seed, 0),
    "phase": lambda seed: np.array([sharding.phase(1000, seed, epoch) for epoch in range(5)]),
    "initial parameters": initial,
    "dropout": dropped,
    "stochastic rounding": rounded,
    "random blocks": blocks,
    "power_sgd": lambda seed: power_sgd.power_sgd(1, [(0, (16, 16))], seed=seed).init(np.zeros(256, np.float32))[0],
}


@pytest.mark.parametrize("use", USES)
def test_every_seed_is_a_stream_of_its_own(use):
    assert len({USES[use](seed).tobytes() for seed in SEEDS}) == len(SEEDS)
    assert USES[use](np.uint64(2**64 - 1)).tobytes() == USES[use](2**64 - 1).tobytes()


@pytest.mark.parametrize("use", USES)
def test_what_is_no_seed_is_refused(use):
    for seed in (-1, 2**64, 10**23, 1 << 20000):
        with pytest.raises(ValueError, match=r"from 0 to 2\^64-1, got (-1|\d+|a number of 20001 bits)$"):
            USES[use](seed)
    for seed in (1.0, "1", None):
        with pytest.raises(TypeError):
            USES[use](seed)


def test_streams_are_numpys():
    for seed in BELOW_FLOATS:
        plain = np.random.Generator(np.random.Philox(key=[seed, 7])).integers(1 << 40, size=4)
        assert streams.generator(seed, 7).integers(1 << 40, size=4).tolist() == plain.tolist()
    for seed in (0, 5, 2**32 - 1):
        for numbers in ((7,), (7, 9)):
            plain = np.random.SeedSequence([seed, *numbers]).generate_state(4)
            assert streams.sequence(seed, *numbers).generate_state(4).tolist() == plain.tolist()


def test_a_long_seed_is_not_a_short_one_and_a_number():
    assert streams.sequence(2**32, 7, 0).generate_state(1) != streams.sequence(0, 1, 7).generate_state(1)
    assert streams.sequence(7 * 2**32 + 1, 9).generate_state(1) != streams.sequence(1, 7, 9).generate_state(1)
