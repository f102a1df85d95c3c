"""Into how many messages the algorithms cut; tests/comm/test_collectives.py tells what comes of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import message, threads
from hpcai.comm.algorithms import halving, hierarchical, ring
from hpcai.xp import DTYPES


@pytest.mark.parametrize(
    "n, dtype, size, count",
    [
        (0, "f4", 4, 1),
        (1, "f4", 4, 1),
        (4 * 15360, "f4", 4, 1),
        (4 * 15360 + 1, "f4", 4, 2),
        (4 * 30720, "f4", 4, 2),
        (4 * 30720 + 1, "f4", 4, 3),
        (4 * 15360, "f2", 4, 1),
        (4 * 15360 + 1, "f2", 4, 2),
        (7680, "f8", 1, 1),
        (7681, "f8", 1, 2),
        (2 * 61440 + 2, "u1", 2, 2),
        (2 * 61440, "u1", 2, 1),
    ],
)
def test_the_longest_chunk_as_it_is_folded_is_cut_into_segments_of_60_KiB_at_most(n, dtype, size, count):
    wire = SimpleNamespace(size=size)
    assert ring._segment_count(np.empty(n, dtype), wire) == count
    assert ring.SEGMENT_BYTES == 60 << 10


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_no_segment_is_longer_than_that(extra):
    sent = []

    class Wire(threads.ThreadWire):
        def send(self, x, to, lane=0):
            sent.append(x.nbytes)
            return super().send(x, to, lane)

    def program(comm):
        ring.allreduce(np.ones(3 * ring.SEGMENT_BYTES // 4 + extra, np.float32), Wire(comm.rank, comm.wire.group))

    threads.run(3, program)
    assert max(sent) <= ring.SEGMENT_BYTES
    assert len(sent) == 3 * 4 * (2 if extra > 0 else 1)


def test_16_bit_arrays_are_reduced_in_blocks_whose_scratch_is_64_MiB_at_most():
    assert ring.WIDE_ELEMENTS == 1 << 24
    for name in ("f16", "bf16"):
        assert [block.size for block in ring.blocks(np.empty(1 << 24, DTYPES[name]))] == [1 << 24]
        assert [block.size for block in ring.blocks(np.empty((1 << 24) + 2, DTYPES[name]))] == [(1 << 23) + 1] * 2
        sizes = [block.size for block in ring.blocks(np.empty((1 << 25) + 3, DTYPES[name]))]
        assert sizes == [11184811, 11184812, 11184812]
    for name in ("f32", "f64", "i32"):
        assert [block.size for block in ring.blocks(np.empty((1 << 24) + 2, DTYPES[name]))] == [(1 << 24) + 2]


class Scripted:
    """A wire of rank 0 of 2 whose messages are over when the test says so."""

    rank, size = 0, 2

    def __init__(self, received=False):
        self.sent, self.came, self.received = [], [], received

    def send(self, x, to, lane=0):
        self.sent.append(SimpleNamespace(ready=False))
        self.sent[-1].done = lambda one=self.sent[-1]: one.ready
        return self.sent[-1]

    def receive(self, x, source, lane=0):
        x[...] = 0
        self.came.append(SimpleNamespace(done=lambda: self.received))
        return self.came[-1]


@pytest.fixture
def short_segments(monkeypatch):
    """Of 4 elements, so that 32 have 4 in each of 2 chunks."""
    monkeypatch.setattr(ring, "SEGMENT_BYTES", 16)
    return np.ones(32, np.float32)


@pytest.mark.parametrize("ready, ahead", [(0, 4), (2, 6), (4, 8)])
def test_a_segment_of_the_second_lap_is_received_ahead_where_its_place_has_been_sent(short_segments, ready, ahead, monkeypatch):
    wire = Scripted()
    inner = wire.send

    def send(*arguments):
        made = inner(*arguments)
        made.ready = len(wire.sent) <= ready
        return made

    monkeypatch.setattr(wire, "send", send)
    next(ring.stream(short_segments, wire, "sum"))
    assert (len(wire.sent), len(wire.came)) == (4, ahead)


def test_a_segment_whose_place_has_not_been_sent_is_waited_for_before_it_is_received(short_segments):
    wire = Scripted(received=True)
    running = ring.stream(short_segments, wire, "sum")
    for i in range(4):
        assert next(running) is wire.sent[i]
        assert len(wire.came) == 4 + i
        wire.sent[i].ready = True
    for i in range(4, 8):
        assert next(running) is wire.sent[i]
        assert (len(wire.sent), len(wire.came)) == (8, 8)
        wire.sent[i].ready = True
    assert next(running, None) is None


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_only_so_many_messages_are_under_way_each_way(short_segments, in_flight, monkeypatch):
    monkeypatch.setattr(ring, "IN_FLIGHT", in_flight)
    wire = Scripted()
    next(ring.stream(short_segments, wire, "sum"))
    assert (len(wire.sent), len(wire.came)) == (in_flight, in_flight)


@pytest.mark.parametrize("nbytes, count", [(0, 1), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (1 << 21, 2), ((1 << 21) + 1, 3)])
def test_halving_cuts_only_exchanges_beyond_a_mebibyte(nbytes, count):
    pieces = halving._messages(np.empty(nbytes, np.uint8))
    assert len(pieces) == count
    assert sum(piece.size for piece in pieces) == nbytes


@pytest.mark.parametrize("shares, blocks", [(0, 1), (0.5, 1), (1, 1), (1.01, 2), (2, 2), (2.01, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_between_nodes_blocks_have_eight_segments_a_rank_and_node(shares, blocks, dtype):
    """As they are folded, in f32."""
    done = []

    def reduce_scatter(x, op):
        done.append(x.size)
        return x

    def program(comm):
        node = SimpleNamespace(size=4, reduce_scatter=reduce_scatter, allgather=lambda x: x)
        two = hierarchical.Levels(node, SimpleNamespace(size=2, wire=comm.wire))
        hierarchical.allreduce(np.ones(int(shares * 8 * ring.SEGMENT_BYTES * 8 / 4), dtype), two, "sum")

    threads.run(1, program)
    assert len(done) == blocks
    assert hierarchical.SHARE_BYTES == 8 * ring.SEGMENT_BYTES


def test_messages_between_ranks_end_at_a_gibibyte():
    assert message.MESSAGE_BYTES == 1 << 30
