"""What of a call is wrong, looked at alone: each limit and both of its sides. tests/comm/misuse.py makes such calls on ranks."""

import pickle

import numpy as np
import pytest

from hpcai.comm import call
from hpcai.environment import ALGORITHMS
from hpcai.errors import UsageError
from hpcai.xp import DTYPES, bfloat16

GAPS = np.zeros((4, 4))[:, ::2]
FIXED = np.zeros(3)
FIXED.flags.writeable = False


class Wire:
    size = 4


class Library(Wire):
    def library_allreduce(self):
        pass


@pytest.mark.parametrize(
    "x, error, words",
    [
        ([1.0], TypeError, "wants a numpy array, got builtins.list"),
        (np.float32(1), TypeError, "wants a numpy array, got numpy.float32"),
        (np.ma.zeros(3), TypeError, "plain numpy array, got MaskedArray"),
        (np.zeros((2, 2)).view(np.matrix), TypeError, "plain numpy array, got matrix"),
        (np.zeros(3, object), TypeError, "cannot move Python objects"),
        (np.zeros(3, [("a", object)]), TypeError, "cannot move Python objects"),
        (GAPS, ValueError, "wants a contiguous array"),
        (np.zeros((3, 4)).T, ValueError, "wants a contiguous array"),
    ],
)
def test_memory_that_cannot_be_moved(x, error, words):
    for problem in (
        call.memory_problem("send", x),
        call.array_problem("broadcast", x, ""),
        call.array_problem("allreduce", x, "sum"),
    ):
        assert type(problem) is error
        assert words in str(problem)


@pytest.mark.parametrize(
    "x", [np.zeros(3), np.zeros((2, 0)), np.zeros((4, 4), np.uint8), np.zeros(3, [("a", "i4")]), GAPS[:1, :1]]
)
def test_memory_that_can_be_moved(x):
    assert call.memory_problem("send", x) is None
    assert call.array_problem("broadcast", x, "") is None
    assert call.memory_problem("send", FIXED) is None
    assert "writeable" in str(call.array_problem("broadcast", FIXED, ""))


@pytest.mark.parametrize("kind", call.REDUCING)
def test_what_can_be_reduced(kind):
    for dtype in DTYPES.values():
        for op in ("sum", "mean", "max", "min"):
            assert call.array_problem(kind, np.zeros(3, dtype), op) is None
    for op in ("max", "min"):
        assert call.array_problem(kind, np.zeros(3, bool), op) is None
    for op in ("sum", "mean"):
        assert "to count, convert" in str(call.array_problem(kind, np.zeros(3, bool), op))
    for op in ("", "prod", None, 3, ["sum"]):
        assert "there are sum, mean, max, min" in str(call.array_problem(kind, np.zeros(3), op))
    for dtype in (np.uint8, np.int16, np.complex64, ">f4", "S4", np.longdouble):
        assert type(call.array_problem(kind, np.zeros(3, dtype), "max")) is TypeError
        assert call.array_problem("allgather", np.zeros(3, dtype), "") is None


@pytest.mark.parametrize("peer", [-1, 2, 4, 1.0, None, "1", True, np.True_, np.float64(1)])
def test_a_peer_is_the_number_of_another_rank(peer):
    assert "of rank" not in str(call.peer_problem("send", peer, 0, 2, 4))
    assert repr(peer) in str(call.peer_problem("send", peer, 0, 2, 4))
    assert "the others are 0 to 3" in str(call.peer_problem("send", peer, 0, 2, 4))


def test_peers_and_lanes_that_are_right():
    for peer in (0, 1, 3, np.int8(3)):
        for lane in (0, 1, np.int64(1)):
            assert call.peer_problem("send", peer, lane, 2, 4) is None
    for lane in (-1, 2, True, 0.0, None):
        assert "lanes 0 and 1" in str(call.peer_problem("send", 1, lane, 2, 4))
    assert "there are no others" in str(call.peer_problem("send", 0, 0, 0, 1))


def test_colors_and_keys():
    for color in (None, True, np.False_, 0, 2**31 - 1, np.uint8(7)):
        assert call.split_problem(color, None) is None
    for color in (-1, 2**31, 1.0, "1", [0]):
        assert repr(color) in str(call.split_problem(color, None))
    for key in (None, 0, -(2**31), 2**31 - 1, np.int8(-7)):
        assert call.split_problem(0, key) is None
    for key in (-(2**31) - 1, 2**31, 1.0, "1", True):
        assert repr(key) in str(call.split_problem(None, key))


def test_shapes_and_dtypes_of_symmetric_arrays():
    for shape in (0, 7, (), (0, 5), [2, 3], (1,) * 32, (2**37 - 1,), np.int64(3), (np.int8(2), 3)):
        assert call.empty_problem(shape, np.float64) is None
    for shape in (-1, (3, -1), (1,) * 33, 2**37, (2**20, 2**17), (2**62, 4)):
        assert type(call.empty_problem(shape, np.float64)) is ValueError
    for shape in (1.5, "3", None, (2, None), {3}, True, (True,), np.zeros(2)):
        assert type(call.empty_problem(shape, np.float64)) is TypeError
    for dtype in (object, "nothing", [("a", object)], "S0", "V0", np.dtype((np.float32, 3)), 3):
        assert type(call.empty_problem(3, dtype)) is TypeError
    for dtype in (bfloat16, bool, "S4", [("a", "i4")], None):
        assert call.empty_problem(3, dtype) is None


def test_roots_and_algorithms():
    for root in (0, 3, np.int32(2)):
        assert call.choice_problem("broadcast", root, "auto", Wire, False) is None
    for root in (-1, 4, 1.0, True, None, "0"):
        assert "is not one of 4 ranks, 0 to 3" in str(call.choice_problem("broadcast", root, "auto", Wire, True))
    for algorithm in ALGORITHMS:
        assert call.choice_problem("allreduce", 0, algorithm, Library, True) is None
        known = algorithm in ("auto", "node", "ring")
        assert (call.choice_problem("allgather", 0, algorithm, Library, True) is None) == known
    for algorithm in ("", "tree", None, 3, ["ring"]):
        assert "unknown algorithm" in str(call.choice_problem("allreduce", 0, algorithm, Library, True))
    assert "needs MPI" in str(call.choice_problem("allreduce", 0, "mpi", Wire, True))
    assert "share memory" in str(call.choice_problem("allreduce", 0, "node", Library, False))

    class Alone(Wire):
        size = 1

    assert call.choice_problem("allreduce", 0, "node", Alone, False) is None


def test_calls_that_differ_have_keys_that_differ():
    x = np.zeros((2, 3), np.float32)
    one = call.key(1, "allreduce", x, "sum", 0, "auto", None)
    others = [
        (1, "reduce_scatter", x, "sum", 0, "auto", None),
        (1, "allreduce", x.reshape(3, 2), "sum", 0, "auto", None),
        (1, "allreduce", x.reshape(6), "sum", 0, "auto", None),
        (1, "allreduce", x.reshape(1, 6), "sum", 0, "auto", None),
        (1, "allreduce", x.reshape(6)[:5], "sum", 0, "auto", None),
        (1, "allreduce", x.astype(np.int32), "sum", 0, "auto", None),
        (1, "allreduce", x.astype(">f4"), "sum", 0, "auto", None),
        (1, "allreduce", x.view([("a", "f4")]), "sum", 0, "auto", None),
        (1, "allreduce", x, "mean", 0, "auto", None),
        (1, "allreduce", x, "sum", 1, "auto", None),
        (1, "allreduce", x, "sum", 0, "ring", None),
        (1, "allreduce", None, "sum", 0, "auto", None),
        (1, "allreduce", x, "sum", 0, "auto", ValueError()),
    ]
    keys = [call.key(*other) for other in others]
    assert len({one, *keys}) == 1 + len(others)
    assert one == call.key(2, "allreduce", x.copy(), "sum", 0, "node", None)
    assert call.key(1, "allreduce", x, "sum", 0, "auto", ValueError()) != call.key(
        2, "allreduce", x, "sum", 0, "auto", ValueError()
    )
    assert max(call.shape_code((2**40, 2**40, 2**40)), call.shape_code((2**63 - 1,) * 9)) < 2**61


def test_a_call_in_words():
    x = np.zeros((2, 3), np.float32)
    assert call.describe("allreduce", x, "sum", 0, 7, "ring") == "allreduce of float32[2, 3] op sum by ring (call 7)"
    assert call.describe("broadcast", x, "", 2, 1) == "broadcast of float32[2, 3] choice 2 (call 1)"
    assert call.describe("barrier", None, "", 0, 3) == "barrier (call 3)"
    assert call.describe("leave", None, "", 0, 3) == "left (its program ended)"
    assert call.some([4]) == "rank 4"
    assert call.some([4, 5]) == "ranks 4, 5"
    assert call.some(list(range(8))) == "ranks 0, 1, 2, 3, 4, 5, 6, 7"
    assert call.some(list(range(10))) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_truths_and_what_is_not_aligned_are_moved_as_copies():
    x, raw = np.zeros(3, np.float32), np.zeros(13, np.uint8)
    askew = raw[1:].view(np.float32)
    assert call.moved(x, "sum") is x
    assert call.moved(askew, "") is askew
    assert call.moved(askew, "sum").flags.aligned
    assert call.moved(np.ones(3, bool), "max").dtype == np.int32
    assert call.moved(np.ones(3, bool), "").dtype == bool


def test_values_that_pickle_cannot_carry_or_that_are_too_many():
    raw, problem = call.pickled({"a": 1}, 4)
    assert problem is None
    assert call.unpickled(raw, 0) == {"a": 1}
    for value in (lambda: 0, (i for i in ())):
        assert call.pickled(value, 4)[0] == b""
        assert "wants a value that pickle can carry" in str(call.pickled(value, 4)[1])
    assert call.pickled(b"x" * 2**20, 2047)[1] is None
    assert "2 GiB over all ranks" in str(call.pickled(b"x" * 2**20, 2048)[1])
    with pytest.raises(UsageError, match="rank 3 gave"):
        call.unpickled(pickle.dumps(1)[:-1], 3)
