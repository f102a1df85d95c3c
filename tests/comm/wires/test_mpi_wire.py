"""What the wire over MPI asks of MPI, by a fake of it; tests/comm/wires/test_mpi.py does so with the real one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.wires import library, mpi, requests, ulfm
from hpcai.comm.wires.mpi import MpiWire
from hpcai.comm.wires.threads import LANES
from hpcai.errors import LaunchError, RankFailed


class Failure(Exception):
    """An error of MPI's; `failed` if it is of a failed rank."""

    def __init__(self, failed=True):
        super().__init__("from MPI")
        self.failed = failed


class Group:
    Compare = staticmethod(lambda one, other: one == other)


FAKE = SimpleNamespace(
    Exception=Failure,
    ERRORS_RETURN="errors return",
    UNDEFINED=-32766,
    BYTE="byte",
    MAX=np.maximum,
    MIN=min,
    SUM="sum",
    IN_PLACE="in place",
    IDENT=True,
    COMM_TYPE_SHARED="shared",
    ANY_SOURCE=-1,
    Group=Group,
    THREAD_SERIALIZED=2,
    buffer=SimpleNamespace(fromaddress=lambda address, nbytes: (address, nbytes)),
    Info=SimpleNamespace(Create=dict),
    Get_library_version=lambda: "Open MPI v5.0.11, package: Open MPI\0",
)


class Comm:
    """A communicator that says what it was asked."""

    def __init__(self, rank=0, size=1, **more):
        self.rank, self.size, self.asked, self.handler = rank, size, [], None
        self.__dict__.update(more)

    def Set_errhandler(self, handler):
        self.handler = handler


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setenv(ulfm.ENABLED, "0")
    monkeypatch.delenv("HPCAI_RANKS_PER_NODE", raising=False)
    monkeypatch.setattr(library, "load", lambda: FAKE)
    monkeypatch.setattr(ulfm, "is_failure", lambda MPI, error: error.failed)


def fails(*arguments, **more):
    raise Failure


class Persistent:
    def __init__(self):
        self.started = self.freed = 0

    def Start(self):
        self.started += 1

    def Test(self):
        return True

    def Free(self):
        self.freed += 1


def beginning(rank=0, size=2):
    """A wire, and the requests that it has MPI make: each with what was asked for."""
    made = []

    def init(kind):
        def begin(*asked):
            made.append((kind, asked, Persistent()))
            return made[-1][2]

        return begin

    return MpiWire(Comm(rank, size, Send_init=init("send"), Recv_init=init("receive"))), made


def test_a_message_between_the_same_places_takes_the_same_request_again():
    wire, made = beginning()
    x, y = np.zeros(6), np.zeros(6)
    one = wire.send(x, 1, 2)
    one.wait()
    address = x.__array_interface__["data"][0]
    assert made[0][:2] == ("send", ([(address, 48), "byte"], 1, 2))
    wire.send(x, 1, 2).wait()
    assert len(made) == 1
    assert made[0][2].started == 2
    for another in (
        lambda: wire.send(y, 1, 2),
        lambda: wire.send(x[:5], 1, 2),
        lambda: wire.send(x, 0, 2),
        lambda: wire.send(x, 1),
        lambda: wire.receive(x, 1, 2),
    ):
        before = len(made)
        another().wait()
        assert len(made) == before + 1
    assert made[-1][:2] == ("receive", ([(address, 48), "byte"], 1, 2))
    assert made[-2][1][2] == 0
    assert (wire.send(x, 1).what, wire.receive(x, 1).what) == ("a send", "a receive")
    assert [one[1][2] for one in made[-2:]] == [2, 0]
    assert (wire.waiting_since, wire.waited_s) == (0, 0)


def test_a_request_under_way_is_not_taken_again():
    wire, made = beginning()
    x = np.zeros(3)
    first, second = wire.send(x, 1), wire.send(x, 1)
    assert len(made) == 2
    first.wait()
    second.wait()
    wire.send(x, 1).wait()
    assert len(made) == 2


def test_only_so_many_idle_requests_are_kept_those_longest_idle_go(monkeypatch):
    monkeypatch.setattr(mpi, "IDLE_REQUESTS", 3)
    wire, made = beginning()
    xs = [np.zeros(1) for _ in range(5)]
    for x in xs:
        wire.send(x, 1).wait()
    assert [request.freed for _, _, request in made] == [1, 1, 0, 0, 0]
    for x in xs[2:]:
        wire.send(x, 1).wait()
    assert len(made) == 5
    wire.send(xs[0], 1).wait()
    assert len(made) == 6


def test_errors_of_failed_ranks_are_told_from_others():
    calls = {
        "Send_init": lambda wire: wire.send(np.zeros(1), 1),
        "allgather": lambda wire: wire.exchange(1),
        "Iallreduce": lambda wire: wire.agree([1]),
        "Split": lambda wire: wire.split(0, 0),
        "Split_type": lambda wire: wire.node_color(),
        "Allreduce": lambda wire: wire.library_allreduce(np.zeros(2), "sum"),
        "Isend": lambda wire: wire.connect_all(),
    }
    for name, call in calls.items():
        for failed in (True, False):

            def raises(*arguments, failed=failed, **more):
                raise Failure(failed)

            wire = MpiWire(Comm(1, 2, Irecv=lambda *_: None, **{name: raises}))
            assert wire.comm.handler == "errors return"
            with pytest.raises(RankFailed if failed else Failure, match="rank 1 waited in" if failed else "from MPI"):
                call(wire)


def test_keys_are_compared_by_their_largest_and_their_smallest(monkeypatch):
    for theirs, same in (([5, -7, 2**61], True), ([5, -7, 2**61 - 1], False), ([6, -7, 2**61], False), ([5, -8, 2**61], False)):

        def reduce(sent, seen, op, theirs=theirs):
            other = np.array([*theirs, *(-one for one in theirs)])
            return SimpleNamespace(Test=lambda: seen.__setitem__(..., op(sent, other)) or True)

        wire = MpiWire(Comm(0, 2, Iallreduce=reduce))
        assert wire.agree([5, -7, 2**61]) is same
        assert wire._idle == {}
    assert requests.AGREEMENT == "a collective"


class Told(threads.ThreadWire):
    """Threads in place of MPI's ranks, for what is made of sends and receives."""

    family, MPI = None, FAKE
    failing, _exchange_by_messages = MpiWire.failing, MpiWire._exchange_by_messages
    _post, _take, lanes = MpiWire._post, MpiWire._take, ()

    def send(self, x, to, lane=0):
        return super().send(x, to, {mpi.EXCHANGE_TAG: 0}[lane])

    def receive(self, x, source, lane=0):
        return super().receive(x, source, {mpi.EXCHANGE_TAG: 0}[lane])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_values_are_exchanged_by_way_of_rank_0(size):
    def program(comm):
        told = Told(comm.rank, comm.wire.group)
        return [told._exchange_by_messages({"rank": comm.rank, "more": "x" * comm.rank * 100}) for _ in range(2)]

    want = [{"rank": rank, "more": "x" * rank * 100} for rank in range(size)]
    assert threads.run(size, program) == [[want, want]] * size


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_messages_carry_an_exchange_only_where_ranks_may_fail(monkeypatch, enabled):
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    monkeypatch.setattr(MpiWire, "_exchange_by_messages", lambda self, value: ["messages", value])
    assert MpiWire(Comm(allgather=lambda value: ["library", value])).exchange(3) == [
        "library" if enabled == "0" else "messages",
        3,
    ]


def test_a_split_numbers_ranks_as_the_world_does():
    asked, given = [], []

    def split(color, key):
        asked.append((color, key))
        return None if color == FAKE.UNDEFINED else made

    made = Comm(1, 2, allgather=lambda rank: given.append(rank) or [40, rank])
    wire = MpiWire(Comm(1, 3, Split=split), ranks=[30, 50, 70])
    part = wire.split(0, 9)
    assert wire.split(None, 8) is None
    assert asked == [(0, 9), (FAKE.UNDEFINED, 8)]
    assert given == [50]
    assert (part.comm, part.rank, part.size, part.ranks) == (made, 1, 2, [40, 50])
    assert part.family is wire.family
    assert part.expected is wire.expected
    assert set(wire.family.wires) == {wire, part}
    assert list(MpiWire(Comm(0, 3)).ranks) == [0, 1, 2]


TOLD = [(1, 0), (None, 0), (1, -5), (2, 0)]


@pytest.mark.parametrize("rank, members, ranks", [(0, [2, 0], [12, 10]), (2, [2, 0], [12, 10]), (1, None, None), (3, [3], [13])])
def test_where_ranks_may_fail_a_split_is_compared_with_what_was_said(monkeypatch, rank, members, ranks):
    monkeypatch.setenv(ulfm.ENABLED, "1")
    monkeypatch.setattr(MpiWire, "exchange", lambda self, mine: [*TOLD[:rank], mine, *TOLD[rank + 1 :]])
    asked = []

    def split(color, key):
        asked.append((color, key))
        return Comm(0, 2, Get_group=lambda: members)

    comm = Comm(rank, 4, Get_group=lambda: SimpleNamespace(Incl=lambda those: those), Split=split, Create_group=None)
    wire = MpiWire(comm, ranks=[10, 11, 12, 13])
    color, key = TOLD[rank]
    part = wire.split(color, key)
    assert asked == [(FAKE.UNDEFINED if color is None else color, key)]
    assert (part and part.ranks) == ranks
    assert part is None or part.family is wire.family
    members = ["others"]
    if color is not None:
        with pytest.raises(RankFailed, match=f"came out wrong on rank {rank}"):
            wire.split(color, key)


def test_where_ranks_may_fail_each_for_itself_waits_for_nobody(monkeypatch):
    monkeypatch.setenv(ulfm.ENABLED, "1")
    told = [(0, 0), (None, 0), (1, 0)]
    monkeypatch.setattr(MpiWire, "exchange", lambda self, mine: told)
    made = Comm(0, 1, Get_group=lambda: [2])
    comm = Comm(2, 3, Get_group=lambda: SimpleNamespace(Incl=lambda those: those), Split=None, Create_group=lambda group: made)
    wire = MpiWire(comm)
    assert wire.split(1, 0).comm is made
    comm.Create_group = None
    wire.rank = 1
    assert wire.split(None, 0) is None


def test_the_color_of_a_node_is_its_lowest_rank(monkeypatch):
    freed = []
    shared = Comm(0, 2, allreduce=lambda rank, op: op(rank, 4), Free=lambda: freed.append(True))
    wire = MpiWire(Comm(6, 8, Split_type=lambda kind: {"shared": shared}[kind]))
    assert wire.node_color() == 4
    assert freed == [True]
    assert shared.handler == "errors return"
    monkeypatch.setenv(ulfm.ENABLED, "1")
    monkeypatch.setattr(MpiWire, "exchange", lambda self, mine: ["a", "b", "b", "a", "c", "c", mine, "c"])
    monkeypatch.setattr(mpi, "boot_id", lambda: "b")
    assert wire.node_color() == 1
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "4")
    assert wire.node_color() == 1
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "8")
    assert wire.node_color() == 0


@pytest.mark.parametrize("here", [[0, 1, 2], [0, 2], [2]])
def test_after_a_wait_in_vain_ranks_that_do_not_say_that_they_wait_are_missing(monkeypatch, here):
    clock, sent, received, found = SimpleNamespace(s=50.0), [], [], SimpleNamespace(source=None)

    def sleep(s):
        clock.s += s

    def probe(source, tag, status):
        assert (source, tag, status) == (FAKE.ANY_SOURCE, mpi.ALARM_TAG, found)
        if len(received) == len(here) or clock.s < 51.0:
            return False
        found.source = here[len(received)]
        return True

    found.Get_source = lambda: found.source
    monkeypatch.setattr(mpi, "time", SimpleNamespace(monotonic=lambda: clock.s, sleep=sleep))
    monkeypatch.setattr(FAKE, "Status", lambda: found, raising=False)
    comm = Comm(2, 3, Isend=lambda what, rank, tag: sent.append((what, rank, tag)), Iprobe=probe)
    comm.Recv = lambda what, source, tag: received.append((source, tag))
    assert MpiWire(comm).missing() == [rank for rank in range(3) if rank not in here]
    assert sent == [([bytearray(1), "byte"], rank, mpi.ALARM_TAG) for rank in range(3)]
    assert received == [(rank, mpi.ALARM_TAG) for rank in here]
    assert clock.s == pytest.approx(51.0 if len(here) == 3 else 53.0, abs=0.03)


def test_a_revoked_wire_takes_those_split_from_it_along_and_releases_waits_in_memory():
    revoked = []

    def comm(name, already=False):
        return Comm(Is_revoked=lambda: already, Revoke=lambda: revoked.append(name))

    wire = MpiWire(comm("all"))
    part, over = MpiWire(comm("part"), wire.family), MpiWire(comm("over", True), wire.family)
    other = MpiWire(comm("other"))

    class Memory:
        def release(self):
            revoked.append("memory")

    memory, gone = Memory(), Memory()
    part.on_failure(memory.release)
    part.on_failure(gone.release)
    del gone
    wire.revoke()
    assert sorted(revoked) == ["all", "memory", "part"]
    assert revoked[0] == "memory"
    assert over.family is not other.family


def test_those_that_live_go_on_and_more_may_come():
    made, asked = Comm(1, 2), []
    assert MpiWire(Comm(2, 3, Shrink=lambda: made)).shrink().comm is made

    def spawn(*arguments, **named):
        asked.append((arguments, named))
        return SimpleNamespace(Merge=lambda high: {False: made}[high])

    assert MpiWire(Comm(0, 1, Spawn=spawn)).grow(2, ["python", "-m", "x"]).comm is made
    info = {"mpi_initial_errhandler": "mpi_errors_return"}
    assert asked == [(("python", ["-m", "x"]), {"maxprocs": 2, "info": info, "root": 0})]
    with pytest.raises(LaunchError, match="2 ranks could not be started: from MPI"):
        MpiWire(Comm(0, 1, Spawn=fails)).grow(2, ["python"])


def test_each_greets_every_other():
    asked, waited = [], []

    def begin(what):
        def call(buffer, rank, tag):
            asked.append((what, len(buffer), rank, tag))
            return SimpleNamespace(Wait=lambda: waited.append((what, rank)))

        return call

    MpiWire(Comm(1, 3, Irecv=begin("receive"), Isend=begin("send"))).connect_all()
    assert asked == [(what, 0, rank, mpi.CONNECTING_TAG) for what in ("receive", "send") for rank in (0, 2)]
    assert len(waited) == 4
    assert len({mpi.CONNECTING_TAG, mpi.EXCHANGE_TAG, mpi.ALARM_TAG, *range(LANES)}) == 3 + LANES
    assert max(mpi.CONNECTING_TAG, mpi.EXCHANGE_TAG, mpi.ALARM_TAG) < 2**15  # the largest tag that every MPI has


def test_a_vote_that_fails_is_a_vote_against():
    for fine in (True, False):
        assert MpiWire(Comm(Agree=lambda vote: vote)).all_agree(fine) is fine
    assert MpiWire(Comm(Agree=fails)).all_agree(True) is False


def test_what_the_library_says_of_itself(monkeypatch):
    wire = MpiWire(Comm())
    assert wire.describe() == library.name() == "Open MPI v5.0.11"
    monkeypatch.setattr(FAKE, "Get_library_version", lambda: "MPICH Version:      5.0.2\nMPICH Release date: x\n")
    assert library.name() == "MPICH 5.0.2"
    for level, serves in ((1, False), (2, True), (3, True)):
        monkeypatch.setattr(FAKE, "Query_thread", lambda level=level: level, raising=False)
        assert wire.serves_threads() is serves
    asked = []
    monkeypatch.setattr(ulfm, "why_not", lambda *words: asked.append(words) or "because")
    assert wire.why_not_elastic(True) == "because"
    assert asked == [("MPICH 5.0.2", True)]
    monkeypatch.setattr(mpi.mapping, "shared", lambda *words: words)
    assert wire.shared(4096) == (wire, 4096)


LOAD = library.load


@pytest.mark.parametrize(
    "loaded, finalize, ours", [(False, None, True), (True, None, False), (False, False, False), (False, True, False)]
)
def test_mpi_is_ended_by_us_unless_who_imported_mpi4py_has_decided(monkeypatch, loaded, finalize, ours):
    registered, finalized, state = [], [], SimpleNamespace(up=True, down=False)
    MPI = SimpleNamespace(
        Finalize=lambda: finalized.append(True), Is_initialized=lambda: state.up, Is_finalized=lambda: state.down
    )
    rc = SimpleNamespace(finalize=finalize)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=MPI, rc=rc))
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "mpi4py.MPI", MPI)
    monkeypatch.setenv("OMPI_MCA_osc", "^ucx,other")
    prepared = []
    monkeypatch.setattr(ulfm, "prepare", lambda: prepared.append(True))
    monkeypatch.setattr(library.atexit, "register", registered.append)
    monkeypatch.setattr(library, "load", lambda: MPI)
    assert LOAD.__wrapped__() is MPI
    assert library.os.environ["OMPI_MCA_osc"] == "^ucx,other"
    assert prepared == [True]
    assert len(registered) == ours
    assert rc.finalize is (False if ours else finalize)
    if not ours:
        return
    state.down = True
    registered[0]()
    state.up = state.down = False
    registered[0]()
    state.up = True
    monkeypatch.setattr(library.os, "getpid", lambda: -1)  # a forked child
    registered[0]()
    assert finalized == []
    monkeypatch.undo()
    monkeypatch.setattr(library, "load", lambda: MPI)
    registered[0]()
    assert finalized == [True]


def test_where_mpi_cannot_be_loaded_it_is_an_error_of_the_start(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_osc", "")
    monkeypatch.delenv("OMPI_MCA_osc")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError):
        LOAD.__wrapped__()
    assert library.os.environ["OMPI_MCA_osc"] == "^ucx"


@pytest.mark.parametrize("name, op", [("f4", "sum"), ("f2", "mean"), ("f2", "max"), ("f8", "min"), ("i4", "max"), ("i8", "mean")])
def test_the_librarys_allreduce_gets_pieces_of_numbers_that_it_can_reduce(monkeypatch, name, op):
    """Of two ranks with the same values."""
    assert mpi.MESSAGE_BYTES == 1 << 30
    sent = []
    monkeypatch.setattr(mpi, "MESSAGE_BYTES", 64)
    monkeypatch.setattr(FAKE, "MAX", "max")
    monkeypatch.setattr(FAKE, "MIN", "min")

    def reduce(place, x, verb):
        assert place == "in place"
        sent.append((x.dtype.kind, x.nbytes, verb))
        if verb == "sum":
            x += x

    x = (np.arange(33) - 7).astype(name)
    wire = MpiWire(Comm(0, 2, Allreduce=reduce))
    want = x * 2 if op == "sum" else x.copy()
    wire.library_allreduce(x, op)
    assert (x == want).all()
    wide = {"f2": 4}.get(name, x.dtype.itemsize)
    assert {kind for kind, _, _ in sent} == ({"i"} if op in ("max", "min") or name[0] == "i" else {"f"})
    assert [nbytes for _, nbytes, _ in sent] == [64] * (33 * wide // 64) + [33 * wide % 64]
    assert {verb for _, _, verb in sent} == {"sum" if op == "mean" else op}
