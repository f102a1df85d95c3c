"""The laws of reducers: nothing is lost, over time nothing is lost, and all ranks have the same bytes."""

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec
from hpcai.reduce.combine import PART, by_gather, by_scatter, by_sum, error_feedback, exact, owed, parts
from hpcai.reduce.counting import Counting, SilentRank, sent_bytes
from hpcai.reduce.integer_sum import integer_sum
from hpcai.reduce.policy import by_parts, policy
from hpcai.reduce.power_sgd import power_sgd
from hpcai.reduce.reducer import Reduced, Reducer
from hpcai.reduce.reproducible import reproducible

OWN = Codec("own", lambda x, state: ((np.round(x, 1),), state), lambda payload, n: payload[0])
REDUCERS = {
    "exact": exact(),
    "by_sum bf16": by_sum(cast.bf16()),
    "by_sum random_k": by_sum(random_k.random_k(0.2)),
    **{
        f"{way.__name__} {codec.name}": way(codec)
        for way in (by_gather, by_scatter)
        for codec in (cast.bf16(), cast.fp16(), quantize.int8(), quantize.int4(stochastic=True), quantize.fp8(), sign.sign(), OWN)
    },
    "by_gather top_k": by_gather(top_k.top_k(0.05)),
    "by_scatter top_k": by_scatter(top_k.top_k(0.05)),
    "power_sgd of no matrix": power_sgd(2, []),
    "integer_sum": integer_sum(),
    "reproducible": reproducible(),
    "by_parts": by_parts([(slice(0, 3), exact()), (slice(3, 3), exact()), (slice(3, None), by_gather(quantize.int8()))]),
}
SIZES = (0, 1, 2, 3, 10, 101, 257, 4099)


def data(rank, n, step=0):
    return np.random.default_rng([rank, n, step]).standard_t(3, size=n).astype(np.float32)


def tolerance(name):
    """by_sum rounds the sum of payloads once more, and says so."""
    return 2**-8 if name == "by_sum bf16" else 1e-5


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", REDUCERS)
def test_nothing_is_lost_and_all_ranks_have_the_same_bytes(name, size):
    reducer = REDUCERS[name]

    def program(comm):
        out = []
        for n in SIZES:
            x = data(comm.rank, n)
            done = reducer.reduce(x.copy(), comm, reducer.init(x))
            out.append((done.mean.copy(), np.zeros(n) if done.residual is None else done.residual.copy()))
        return out

    results = threads.run(size, program)
    for i, n in enumerate(SIZES):
        means = [result[i][0] for result in results]
        assert len({mean.tobytes() for mean in means}) == 1
        said = np.mean([data(rank, n) - results[rank][i][1].astype(np.float64) for rank in range(size)], 0)
        scale = 1 + np.abs(said).max(initial=0)
        np.testing.assert_allclose(means[0], said, atol=tolerance(name) * scale, rtol=tolerance(name))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", REDUCERS)
def test_over_time_delivered_means_and_memories_are_the_true_means(name, size):
    reducer, n, steps = error_feedback(REDUCERS[name]), 1000, 12

    def program(comm):
        state, delivered = reducer.init(np.zeros(n, np.float32)), np.zeros(n)
        for step in range(steps):
            done = reducer.reduce(data(comm.rank, n, step), comm, state)
            delivered, state = delivered + done.mean, done.state
        return delivered, owed(state, comm)

    results = threads.run(size, program)
    true = sum(np.mean([data(rank, n, step).astype(np.float64) for rank in range(size)], 0) for step in range(steps))
    memories = np.mean([memory.astype(np.float64) for _, memory in results], 0)
    scale = np.abs(true).max() * (steps if name == "by_sum bf16" else 1)
    np.testing.assert_allclose(results[0][0] + memories, true, atol=10 * tolerance(name) * scale)


PLACED = power_sgd(2, [(0, (20, 30)), (640, (9, 9))])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", [*REDUCERS, "power_sgd"])
def test_what_a_memory_holds_is_delivered_or_kept_once(name, size):
    """Also a memory that another reducer left behind, as at a resume with another --compress: full of values everywhere."""
    inner, n = REDUCERS.get(name, PLACED), 1000
    reducer = error_feedback(inner)

    def program(comm):
        state = reducer.init(np.zeros(n, np.float32))
        state.memory[:] = data(comm.rank, n, 7)
        done = reducer.reduce(data(comm.rank, n), comm, state)
        return done.mean.astype(np.float64), owed(done.state, comm)

    results = threads.run(size, program)
    true = np.mean([data(rank, n).astype(np.float64) + data(rank, n, 7) for rank in range(size)], 0)
    left = np.mean([memory.astype(np.float64) for _, memory in results], 0)
    np.testing.assert_allclose(results[0][0] + left, true, atol=10 * tolerance(name) * np.abs(true).max())
    if name in ("exact", "reproducible"):
        assert not left.any()


def test_around_a_reducer_without_a_memory_of_its_own_feedback_is_the_sum_and_the_residual():
    """By hand: whole numbers are said, and the residual is the memory, not more, not less; None is none."""

    def reduce(x, comm, state):
        said = np.trunc(x)
        return Reduced(said, x - said if state < 2 else None, state + 1)

    reducer = error_feedback(Reducer("whole", lambda x: 0, reduce))
    state = reducer.init(np.zeros(3, np.float32))
    state.memory[:] = [0.5, -0.25, -0.75]
    for x, said, left in (
        ([1.25, -0.5, 3.0], [1, 0, 2], [0.75, -0.75, 0.25]),
        ([0.5, -0.5, 0.5], [1, -1, 0], [0.25, -0.25, 0.75]),
        ([0.0, 0.0, 8.5], [0, 0, 9], [0, 0, 0]),
    ):
        done = reducer.reduce(np.float32(x), SilentRank(0, 1), state)
        state = done.state
        assert done.mean.tolist() == said
        assert state.memory.tolist() == done.residual.tolist() == left
    assert state.inner == 3


def test_feedback_says_later_what_was_too_small_to_be_said():
    """A value that alone would never be among the largest arrives in the end."""
    reducer = error_feedback(by_gather(top_k.top_k(0.01)))

    def program(comm):
        state, delivered = reducer.init(np.zeros(100, np.float32)), np.zeros(100)
        for _ in range(300):
            x = np.full(100, 0.1, np.float32)
            x[0] = 1
            done = reducer.reduce(x, comm, state)
            delivered, state = delivered + done.mean, done.state
        return delivered

    delivered = threads.run(2, program)[0]
    assert delivered[0] == pytest.approx(300, rel=0.1)
    assert delivered[1:].min() > 15


def test_by_sum_refuses_codecs_whose_payloads_cannot_be_summed():
    with pytest.raises(ValueError, match="cannot be summed; use by_gather"):
        by_sum(quantize.int8())


def sent(reducer, x, size):
    """Bytes that a rank sends, as it is watched and as a mute communicator foresees it."""

    def program(comm):
        counting = Counting(comm)
        reducer.reduce(x.copy(), counting, reducer.init(x))
        return [call[:2] for call in counting.calls]

    mute = Counting(SilentRank(0, size))
    reducer.reduce(x.copy(), mute, reducer.init(x))
    assert [call[:2] for call in mute.calls] == threads.run(size, program)[0]
    return sum(sent_bytes(call, size) for call in mute.calls)


def test_how_many_bytes_are_sent_and_foreseen():
    x = np.ones(1024, np.float32)
    assert sent(exact(), x, 4) == 2 * 3 / 4 * 4096
    assert sent(REDUCERS["by_gather int8"], x, 4) == 3 * (1024 + 16)
    assert sent(REDUCERS["by_scatter int8"], x, 4) == 2 * 3 * (256 + 8)  # 4 bytes of scale and 4 to the next multiple of 8
    assert sent(integer_sum(), x, 4) == 2 * 3 / 4 * (1024 + 16)
    assert sent(REDUCERS["by_gather top_k"], x, 2) == 8 * 51
    assert sent(power_sgd(2, [(0, (20, 30))]), x, 2) == 4 * (2 * 50 + 424)
    assert sent(reproducible(), x, 2) == 8 + 8 * 1024
    small = policy(error_feedback(by_gather(quantize.int8())), smallest=1025)
    assert sent(small, x, 2) == 4096


@pytest.mark.parametrize("size", [1, 2, 5, 31, 32])
def test_sums_of_integers_are_those_of_the_levels_whoever_adds_them(size):
    """The mean is exact in the levels: the same in f64, and within half a level of the truth."""
    reducer, n = integer_sum(), 1000

    def program(comm):
        done = reducer.reduce(data(comm.rank, n), comm, None)
        return done.mean, done.residual

    results = threads.run(size, program)
    said = np.mean([data(rank, n) - results[rank][1].astype(np.float64) for rank in range(size)], 0)
    np.testing.assert_allclose(results[0][0], said, atol=1e-6)
    top = np.maximum.reduceat(np.max([np.abs(data(rank, n)) for rank in range(size)], 0), np.arange(0, n, 256))
    limit = 127 // size if size < 32 else 32767 // size
    true = np.mean([data(rank, n).astype(np.float64) for rank in range(size)], 0)
    assert (np.abs(results[0][0] - true) <= np.repeat(top, 256)[:n] / limit / 2 * 1.001).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reducer", [integer_sum(), reproducible()], ids=lambda reducer: reducer.name)
def test_integers_say_that_something_was_not_finite_on_any_rank(reducer, value):
    def program(comm):
        x = np.ones(1000, np.float32)
        x[300] = value if comm.rank == 1 else 1
        return reducer.reduce(x, comm, None).mean

    for mean in threads.run(3, program):
        assert np.isnan(mean[300])


def test_reproducible_sums_do_not_depend_on_who_adds_what_in_which_order():
    """The same six contributions on 6 ranks in two orders: plain sums of such values differ."""
    n = 5000
    contributions = [data(i, n) * np.float32(10.0 ** (i - 3)) for i in range(6)]

    def program(comm, order):
        return reproducible().reduce(contributions[order[comm.rank]].copy(), comm, None).mean

    one, other = (threads.run(6, program, order)[0] for order in (range(6), [5, 2, 0, 4, 1, 3]))
    assert one.tobytes() == other.tobytes()
    np.testing.assert_allclose(one, np.mean(contributions, 0, dtype=np.float64), rtol=1e-6, atol=1e-9)


def test_names_read_as_what_they_do():
    assert error_feedback(by_gather(top_k.top_k(0.01))).name == "topk:0.01, error feedback"


PLACES = [(0, (20, 30)), (600, (7,)), (620, (40, 8)), (940, (3, 3))]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_power_sgd_loses_nothing_and_is_exact_for_matrices_of_its_rank(size):
    """The mean of matrices of rank 1 has at most rank `size`; vectors and small matrices travel as they are."""
    reducer, n = power_sgd(3, PLACES), 960

    def share(rank):
        rng = np.random.default_rng(rank)
        x = rng.normal(size=n).astype(np.float32)
        for start, shape in PLACES:
            if len(shape) == 2:
                x[start : start + shape[0] * shape[1]] = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1])).ravel()
        return x

    def program(comm):
        done = reducer.reduce(share(comm.rank), comm, reducer.init(np.zeros(n)))
        return done.mean, done.residual

    results = threads.run(size, program)
    true = np.mean([share(rank) for rank in range(size)], 0)
    assert len({mean.tobytes() for mean, _ in results}) == 1
    np.testing.assert_allclose(results[0][0], true, atol=1e-5)
    said = np.mean([share(rank) - results[rank][1] for rank in range(size)], 0)
    np.testing.assert_allclose(results[0][0], said, atol=1e-5)


def test_power_sgd_with_feedback_delivers_all_in_the_end_and_knows_zero_and_nan():
    reducer = error_feedback(power_sgd(1, [(0, (20, 30))]))

    def program(comm):
        state, delivered = reducer.init(np.zeros(600, np.float32)), np.zeros(600)
        zero = reducer.reduce(np.zeros(600, np.float32), comm, state)
        assert not zero.mean.any()
        state = zero.state
        x = np.random.default_rng(comm.rank).normal(size=600).astype(np.float32)
        for _ in range(400):
            done = reducer.reduce(x.copy(), comm, state)
            delivered, state = delivered + done.mean, done.state
        spoilt = x.copy()
        spoilt[3] = np.nan
        return delivered / 400, x, reducer.reduce(spoilt, comm, state).mean

    results = threads.run(2, program)
    true = (results[0][1] + results[1][1]) / 2
    assert np.abs(results[0][0] - true).max() < 0.15
    assert np.isnan(results[0][2]).any()


def test_a_gradient_is_gathered_in_parts_that_are_cut_where_codecs_cut():
    for n, cut in (
        (0, 256),
        (1, 0),
        (3 * PART + 5, 256),
        (3 * PART, 256),
        (10 * PART, 3 * 256),
        (5 * PART, 2 * PART),
        (9, 4 * PART),
    ):
        cuts = parts(n, cut)
        assert [i for one in cuts for i in (one.start, one.stop)][1:-1:2] == [one.start for one in cuts][1:]
        assert (cuts[0].start, cuts[-1].stop) == (0, n)
        step = max(cut, PART // cut * cut) if cut else n
        assert all(one.stop - one.start == step for one in cuts[:-1])
    assert parts(3 * PART, 0) == [slice(0, 3 * PART)]
    assert len(parts(3 * PART + 5, 256)) == 4
