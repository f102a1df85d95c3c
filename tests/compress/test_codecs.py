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


def test_ratios_that_make_no_sense_are_refused():
    for make in (top_k.top_k, random_k.random_k):
        for ratio in (0, -1, 1.5):
            with pytest.raises(ValueError, match="ratio above 0"):
                make(ratio)


@pytest.mark.parametrize("n, ratio, kept", [(10, 0.01, 1), (10, 0.25, 2), (10, 1.0, 10), (3, 0.5, 2), (1000, 0.0126, 13)])
def test_top_k_keeps_the_nearest_whole_number_and_one_at_least(n, ratio, kept):
    payload, _ = top_k.top_k(ratio).encode(np.arange(1.0, n + 1, dtype=np.float32), None)
    assert {part.size for part in payload} == {kept}


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
