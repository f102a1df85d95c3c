"""The laws of codecs: shape and dtype come back, zeros are finite, payloads are as long as promised, the memory keeps the rest."""

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec, add_decoded, encode_keeping, payload_bytes
from hpcai.ops import native
from tests.laws import SIZES

CODECS = {
    "bf16": cast.bf16(),
    "fp16": cast.fp16(),
    "int8": quantize.int8(),
    "int8 stochastic": quantize.int8(stochastic=True, seed=3),
    "int4": quantize.int4(),
    "int4 stochastic": quantize.int4(stochastic=True),
    "fp8": quantize.fp8(),
    "fp8 stochastic": quantize.fp8(stochastic=True),
    "sign": sign.sign(),
    "top_k": top_k.top_k(0.01),
    "top_k all": top_k.top_k(1.0),
    "random_k": random_k.random_k(0.1),
}
MORE_SIZES = (*SIZES, 255, 256, 257, 60_000)


@pytest.fixture(params=["native", "reference"], autouse=True)
def kernels(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(native, "_native", None)
    elif not native.is_native():
        pytest.skip("native kernels are not built")


def data(n, seed=0):
    return np.random.default_rng([seed, n]).standard_t(3, size=n).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
def test_shape_and_dtype_come_back_and_x_is_left_alone(name):
    codec = CODECS[name]
    for n in MORE_SIZES:
        x = data(n)
        before = x.copy()
        payload, _ = codec.encode(x, codec.init(x))
        assert all(part.flags.c_contiguous for part in payload)
        y = codec.decode(payload, n)
        assert (y.shape, y.dtype) == ((n,), np.float32)
        assert x.tobytes() == before.tobytes()
        acc = np.ones(n, np.float32)
        add_decoded(codec, acc, payload, 0.5)
        np.testing.assert_allclose(acc, 1 + 0.5 * y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("fill", [0.0, -0.0, 1.5, 1e-42, 1e37])
def test_constant_tensors_stay_finite_and_zeros_stay_zero(name, fill):
    codec = CODECS[name]
    if name == "fp16" and fill > 65504:
        pytest.skip("beyond the range of fp16")
    for n in MORE_SIZES:
        x = np.full(n, fill, np.float32)
        payload, _ = codec.encode(x, codec.init(x))
        y = codec.decode(payload, n)
        assert np.isfinite(y).all()
        assert (np.abs(y) <= np.abs(x) * (1 + 2**-7)).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_memory_keeps_what_the_payload_does_not_say(name):
    codec = CODECS[name]
    for n in MORE_SIZES:
        x, memory = data(n), data(n, 1) / 4
        total = x + memory
        payload, _ = encode_keeping(codec, x, memory, codec.init(x))
        np.testing.assert_allclose(codec.decode(payload, n).astype(np.float64) + memory, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_payloads_are_as_long_as_promised_whatever_the_values(name):
    codec, n = CODECS[name], 60_000
    scales = 4 * -(-n // 256)
    promised = {
        "bf16": 2 * n,
        "fp16": 2 * n,
        "int8": n + scales,
        "int4": n // 2 + scales,
        "fp8": n + scales,
        "sign": n // 8 + scales,
        "top_k": 8 * 600,
        "top_k all": 8 * n,
        "random_k": (64 * 4 + 4) * 94,
    }[name.removesuffix(" stochastic")]
    for x in (data(n), np.zeros(n, np.float32), np.full(n, np.nan, np.float32), np.arange(n, dtype=np.float32)):
        assert payload_bytes(codec.encode(x, codec.init(x))[0]) == promised


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in CODECS if name != "random_k"])
def test_a_nan_is_not_lost(name):
    codec, x = CODECS[name], data(5000)
    x[1234] = np.nan
    payload, _ = codec.encode(x, codec.init(x))
    assert np.isnan(codec.decode(payload, x.size)[1234])


def test_top_k_equals_the_sorted_choice_and_ties_go_to_the_lowest_index():
    for n, ratio in ((1, 0.01), (3, 0.5), (1000, 0.01), (200_000, 0.001), (200_000, 0.01), (200_000, 0.3)):
        k = max(1, round(ratio * n))
        for x in (data(n), np.zeros(n, np.float32), np.round(data(n)), np.full(n, -2, np.float32), np.sort(data(n))):
            want = np.sort(np.lexsort((np.arange(n), -np.abs(x)))[:k])
            index, value = top_k.largest(x, k)
            np.testing.assert_array_equal(index, want)
            np.testing.assert_array_equal(value, x[want])


def test_random_k_takes_other_blocks_each_time_and_the_same_on_all_ranks():
    codec, x = random_k.random_k(0.1, seed=7), data(60_000)
    state, seen = codec.init(x), set()
    for _ in range(60):
        payload, state = codec.encode(x, state)
        again, _ = random_k.random_k(0.1, seed=7).encode(x, state - 1)
        assert payload[1].tobytes() == again[1].tobytes()
        seen |= set(payload[1].tolist())
    assert len(seen) > 900


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.summable])
def test_the_sum_of_payloads_decodes_to_the_sum_of_decodes(name):
    codec = CODECS[name]

    def program(comm):
        x = data(5000, comm.rank)
        payload, _ = codec.encode(x, codec.init(x))
        mine = codec.decode(payload, x.size)
        comm.allreduce(payload[0])
        return mine, codec.decode(payload, x.size)

    results = threads.run(3, program)
    total = sum(mine.astype(np.float64) for mine, _ in results)
    np.testing.assert_allclose(results[0][1], total, rtol=2**-8, atol=1e-6)


def test_a_codec_of_ones_own_needs_two_functions():
    own = Codec("halves", lambda x, state: ((x[::2].copy(),), state), lambda payload, n: np.repeat(payload[0], 2)[:n])
    x, memory = data(101), np.zeros(101, np.float32)
    payload, _ = encode_keeping(own, x, memory, own.init(x))
    np.testing.assert_allclose(own.decode(payload, 101) + memory, x, atol=1e-6)


WHOLE = Codec("whole numbers", lambda x, state: ((np.trunc(x),), state + 1), lambda payload, n: payload[0], init=lambda x: 0)


def test_the_memory_of_a_codec_of_ones_own_is_added_once_and_keeps_exactly_the_rest():
    """Three arrays, by hand, in numbers that f32 has: truncated are 1.75, -0.75 and 2.25, then what these leave and more."""
    memory, state = np.float32([0.5, -0.25, -0.75]), 0
    for x, said, left in (
        ([1.25, -0.5, 3.0], [1, 0, 2], [0.75, -0.75, 0.25]),
        ([0.5, -0.5, 0.5], [1, -1, 0], [0.25, -0.25, 0.75]),
        ([0.0, 0.0, 8.5], [0, 0, 9], [0.25, -0.25, 0.25]),
    ):
        given = np.float32(x)
        payload, state = encode_keeping(WHOLE, given, memory, state)
        assert payload[0].tolist() == said
        assert memory.tolist() == left
        assert given.tolist() == x
    assert state == 3


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_a_codec_of_ones_own_is_added_by_its_weight(weight):
    acc = np.float32([1, 2, 3])
    assert add_decoded(WHOLE, acc, (np.float32([4, -8, 0]),), weight) is acc
    assert acc.tolist() == [1 + 4 * weight, 2 - 8 * weight, 3]


def test_ratios_that_make_no_sense_are_refused():
    for make in (top_k.top_k, random_k.random_k):
        for ratio in (0, -1, 1.5):
            with pytest.raises(ValueError, match="ratio above 0"):
                make(ratio)


COUNTS = [
    # one at least, all at most
    *[(1, 0.01, 1), (10, 0.01, 1), (49, 0.01, 1), (2, 0.25, 1), (10, 1.0, 10), (1, 1.0, 1), (7, 0.999, 7), (5000, 1.0, 5000)],
    # the nearest, near one and far from it, below a thousand elements and above
    *[(1000, 0.0126, 13), (1000, 0.0123, 12), (1000, 0.00346, 3), (1000, 0.00354, 4), (10, 0.14, 1), (10, 0.16, 2)],
    *[(2000, 0.00135, 3), (2000, 0.00115, 2), (60_000, 0.001264, 76), (60_000, 0.001256, 75), (100_000, 0.0002, 20)],
    # of two that are as near the even one: ratios that f64 has exactly
    *[(2, 0.75, 2), (3, 0.5, 2), (5, 0.5, 2), (7, 0.5, 4), (10, 0.25, 2), (14, 0.25, 4), (20, 0.125, 2), (28, 0.125, 4)],
    *[(5001, 0.5, 2500), (5003, 0.5, 2502), (65_540, 0.125, 8192), (65_548, 0.125, 8194), (2**16 + 2, 0.25, 16_384)],
]


@pytest.mark.parametrize("n, ratio, kept", COUNTS)
def test_top_k_keeps_the_nearest_whole_number_and_one_at_least(n, ratio, kept):
    x, memory = np.arange(1.0, n + 1, dtype=np.float32), np.zeros(n, np.float32)
    codec = top_k.top_k(ratio)
    for payload in (codec.encode(x, None)[0], encode_keeping(codec, x, memory, None)[0]):
        assert {part.size for part in payload} == {kept}
        assert payload[0].tolist() == list(range(n - kept, n))
        assert np.count_nonzero(codec.decode(payload, n)) == kept
    assert np.count_nonzero(memory) == n - kept


@pytest.mark.parametrize("n, ratio, kept", [(blocks, ratio, kept) for blocks, ratio, kept in COUNTS if blocks < 1001])
def test_random_k_keeps_the_nearest_whole_number_of_blocks_and_one_at_least(n, ratio, kept):
    """The last of n blocks has one element."""
    x = np.ones(64 * (n - 1) + 1, np.float32)
    codec = random_k.random_k(ratio)
    (values, drawn), _ = codec.encode(x, codec.init(x))
    assert (values.shape, drawn.shape) == ((kept, 64), (kept,))
    assert len(set(drawn.tolist())) == kept
    assert np.count_nonzero(codec.decode((values, drawn), x.size)) == 64 * kept - 63 * (n - 1 in drawn)


def test_of_nothing_nothing_is_kept():
    for codec in (top_k.top_k(1.0), random_k.random_k(1.0)):
        payload, _ = codec.encode(np.empty(0, np.float32), codec.init(np.empty(0, np.float32)))
        assert {part.size for part in payload} == {0}


@pytest.mark.parametrize("make", [quantize.int8, quantize.int4, quantize.fp8])
def test_only_a_stochastic_codec_rounds_at_random_by_seed_and_step(make):
    def bytes_of(codec, state):
        payload, after = codec.encode(x, state)
        assert after == state + 1
        return payload[0].tobytes()

    x = data(1000)
    assert bytes_of(make(), 0) == bytes_of(make(), 1) == bytes_of(make(seed=1), 0)
    one = make(stochastic=True, seed=1)
    assert bytes_of(one, 0) == bytes_of(make(stochastic=True, seed=1), 0) != bytes_of(make(), 0)
    assert len({bytes_of(one, 0), bytes_of(one, 1), bytes_of(make(stochastic=True, seed=2), 0)}) == 3
