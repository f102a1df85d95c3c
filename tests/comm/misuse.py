"""The misuse matrix: calls that make no sense, or look as if. Each is refused by name, or right; none crashes, hangs or lies.

`mpirun -n 2 python -m tests.comm.misuse` runs all cells on real ranks and prints the matrix; tests run most of them on threads too.
"""

from __future__ import annotations

import array
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import hpcai
from hpcai.comm import threads
from hpcai.comm.background import Background
from hpcai.errors import HpcaiError, Leave, UsageError
from hpcai.xp import DTYPES, float8

CELL_S = 30.0
"""How long a cell may take on a loaded machine."""


class Cell(NamedTuple):
    """What is called, and what comes of it: "right", or the errors that ranks may have."""

    name: str
    call: Callable[[Any], object]
    wanted: tuple[str, ...]
    only_mpi: bool = False


CELLS: list[Cell] = []


def cell(
    area: str, wanted: str = "right", only_mpi: bool = False
) -> Callable[[Callable[[Any], object]], Callable[[Any], object]]:
    def add(call: Callable[[Any], object]) -> Callable[[Any], object]:
        CELLS.append(Cell(f"{area}: {call.__name__.replace('_', ' ')}", call, tuple(wanted.split()), only_mpi))
        return call

    return add


def cells(area: str, wanted: str, **calls: Callable[[Any], object]) -> None:
    for name, call in calls.items():
        CELLS.append(Cell(f"{area}: {name.replace('_', ' ')}", call, tuple(wanted.split())))


def right(fine: object) -> None:
    assert fine


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


class OnDevice:
    """As a GPU's array looks from outside."""

    dtype, shape, size, nbytes, itemsize = np.dtype("f4"), (4,), 4, 16, 4
    __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (16, False), "version": 3}


PAIR = np.dtype([("a", "i4"), ("b", "f8")])

cells(
    "dtypes",
    "TypeError",
    byte_swapped=lambda c: c.allreduce(ones(4, dtype=">f4")),
    structured=lambda c: c.allreduce(np.zeros(4, PAIR)),
    objects=lambda c: c.broadcast(np.array([None])),
    complex=lambda c: c.allreduce(ones(4, dtype=np.complex64)),
    unsigned=lambda c: c.allreduce(ones(4, dtype=np.uint32)),
    sum_of_bool=lambda c: c.allreduce(ones(4, dtype=bool)),
    mean_of_bool=lambda c: c.reduce_scatter(ones(4, dtype=bool), "mean"),
    objects_sent=lambda c: c.isend(np.array([None, 1]), 1 - c.rank),
    objects_received=lambda c: c.irecv(np.array([None, 1]), 1 - c.rank),
    objects_gathered_each=lambda c: list(c.allgather_each([np.array([None, None])])),
    empty_of_objects=lambda c: c.symmetric_empty(3, object),
    empty_of_nothing=lambda c: c.symmetric_empty(3, "S0"),
    empty_of_what=lambda c: c.symmetric_empty(3, "what"),
)
cells(
    "dtypes",
    "RankMismatch",
    swapped_on_one=lambda c: c.broadcast(ones(4, dtype=["<u2", ">u2"][c.rank])),
    fields_differ=lambda c: c.broadcast(np.zeros(4, [PAIR, [("a", "f8"), ("b", "i4")]][c.rank])),
    sign_differs=lambda c: c.allgather(ones(4, dtype=["u1", "i1"][c.rank])),
    bool_on_one=lambda c: c.allreduce(ones(4, dtype=[bool, np.int32][c.rank]), "max"),
)
cells(
    "arrays",
    "TypeError",
    masked=lambda c: c.allreduce(np.ma.masked_array(np.ones(4), [1, 0, 0, 0])),
    matrix=lambda c: c.allreduce(np.ones((2, 2)).view(np.matrix)),
    records=lambda c: c.broadcast(np.zeros(4, PAIR).view(np.recarray)),
    list=lambda c: c.allreduce([1.0, 2.0]),
    nothing=lambda c: c.allreduce(None),
    number=lambda c: c.allreduce(1.0),
    scalar=lambda c: c.allreduce(np.float64(1.0)),
    bytearray=lambda c: c.broadcast(bytearray(8)),
    buffer=lambda c: c.allreduce(array.array("f", [1, 2])),
    on_a_device=lambda c: c.allreduce(OnDevice()),
    list_sent=lambda c: c.isend([1.0], 1 - c.rank),
    masked_received=lambda c: c.irecv(np.ma.masked_array(np.ones(4)), 1 - c.rank),
)
cells(
    "arrays",
    "ValueError",
    read_only=lambda c: c.allreduce(np.frombuffer(bytes(16), "f4")),
    read_only_received=lambda c: c.irecv(np.frombuffer(bytes(16), "f4"), 1 - c.rank),
    read_only_alltoall=lambda c: c.alltoall(np.frombuffer(bytes(16), "f4").reshape(2, 2)),
    zero_stride=lambda c: c.allreduce(np.lib.stride_tricks.as_strided(ones(1), (4,), (0,))),
    overlapping=lambda c: c.allreduce(np.lib.stride_tricks.as_strided(ones(5), (2, 4), (4, 4))),
    fortran=lambda c: c.allreduce(np.ones((2, 3), order="F")),
    backwards=lambda c: c.allreduce(ones(4)[::-1]),
    gaps_sent=lambda c: c.isend(ones(4)[::2], 1 - c.rank),
)
cells(
    "shapes",
    "RankMismatch",
    other_shape=lambda c: c.allreduce(ones(4).reshape([(4,), (2, 2)][c.rank])),
    other_shape_on_a_ring=lambda c: c.allreduce(ones(4).reshape([(4,), (2, 2)][c.rank]), algorithm="ring"),
    turned=lambda c: c.allreduce(ones(6).reshape([(2, 3), (3, 2)][c.rank])),
    turned_broadcast=lambda c: c.broadcast(ones(6).reshape([(2, 3), (3, 2)][c.rank])),
    scalar_and_one=lambda c: c.allreduce(ones(1).reshape([(), (1,)][c.rank])),
    nothing_in_other_shapes=lambda c: c.allreduce(np.ones([(0, 3), (3, 0)][c.rank])),
    other_length=lambda c: c.allreduce(ones(4 + c.rank)),
    other_shape_of_symmetric=lambda c: c.allreduce(c.symmetric_empty(4096).reshape([(4096,), (64, 64)][c.rank])),
)
cells(
    "arguments",
    "ValueError",
    op=lambda c: c.allreduce(ones(4), "product"),
    op_of_nothing=lambda c: c.allreduce(ones(4), ""),
    op_None=lambda c: c.allreduce(ones(4), None),
    op_list=lambda c: c.allreduce(ones(4), ["sum"]),
    op_capital=lambda c: c.reduce_scatter(ones(4), "SUM"),
    op_number=lambda c: c.allreduce(ones(4), 1),
    root_negative=lambda c: c.broadcast(ones(4), -1),
    root_beyond=lambda c: c.broadcast(ones(4), 2),
    root_float=lambda c: c.broadcast(ones(4), 1.0),
    root_bool=lambda c: c.broadcast(ones(4), True),
    root_None=lambda c: c.broadcast(ones(4), None),
    algorithm=lambda c: c.allreduce(ones(4), algorithm="tree"),
    algorithm_None=lambda c: c.allreduce(ones(4), algorithm=None),
    algorithm_of_broadcast=lambda c: c.broadcast(ones(4), algorithm="mpi"),
    color_negative=lambda c: c.split(-1),
    color_float=lambda c: c.split(1.5),
    color_text=lambda c: c.split("a"),
    color_huge=lambda c: c.split(1 << 31),
    key_float=lambda c: c.split(0, 0.5),
    key_huge=lambda c: c.split(0, 1 << 40),
    chunk_beyond=lambda c: c.chunk(5, 9),
    chunk_negative=lambda c: c.chunk(-1),
    chunk_float=lambda c: c.chunk(2.5),
    chunk_of_rank_minus_1=lambda c: c.chunk(5, -1),
    empty_negative=lambda c: c.symmetric_empty(-1),
    empty_partly_negative=lambda c: c.symmetric_empty((2, -1)),
    empty_huge=lambda c: c.symmetric_empty(10**15),
    alltoall_rows=lambda c: c.alltoall(ones(3, 2)),
    to_itself=lambda c: c.isend(ones(4), c.rank),
    to_nobody=lambda c: c.isend(ones(4), 2),
    to_minus_1=lambda c: c.isend(ones(4), -1),
    to_a_float=lambda c: c.isend(ones(4), 1.0),
    to_None=lambda c: c.isend(ones(4), None),
    from_itself=lambda c: c.irecv(ones(4), c.rank),
    from_nobody=lambda c: c.irecv(ones(4), 7),
    lane_2=lambda c: c.isend(ones(4), 1 - c.rank, 2),
    lane_negative=lambda c: c.irecv(ones(4), 1 - c.rank, -1),
    lane_None=lambda c: c.irecv(ones(4), 1 - c.rank, None),
)
cells(
    "arguments",
    "TypeError",
    empty_float=lambda c: c.symmetric_empty(2.5),
    empty_text=lambda c: c.symmetric_empty("3"),
    empty_None=lambda c: c.symmetric_empty(None),
)
cells(
    "arguments",
    "ValueError RankMismatch",
    op_on_one=lambda c: c.allreduce(ones(4), ["sum", "product"][c.rank]),
    root_on_one=lambda c: c.broadcast(ones(4), [0, -1][c.rank]),
    color_on_one=lambda c: c.split([0, -1][c.rank]),
    empty_on_one=lambda c: c.symmetric_empty([3, -3][c.rank]),
)
cells(
    "arguments",
    "right",
    root_of_numpy=lambda c: right((c.broadcast(np.full(3, c.rank), np.int64(1)) == 1).all()),
    color_of_numpy=lambda c: right(c.split(np.int32(0), np.int64(-c.rank)).rank == 1 - c.rank),
    color_truth=lambda c: right(c.split(c.rank > 0).size == 1),
    color_None=lambda c: right((c.split([None, 0][c.rank]) is None) == (c.rank == 0)),
    empty_of_no_elements=lambda c: right(c.allreduce(c.symmetric_empty((0, 3))).shape == (0, 3)),
    empty_of_one=lambda c: right(c.symmetric_empty(()).shape == ()),
)
cells(
    "time limits",
    "UsageError",
    NaN=lambda c: c.set_timeout(float("nan")),
    infinite=lambda c: c.set_timeout(float("inf")),
    negative=lambda c: c.set_timeout(-1),
    zero=lambda c: c.set_timeout(0),
    huge=lambda c: c.set_timeout(1e300),
    truth=lambda c: c.set_timeout(True),
    text=lambda c: c.set_timeout("3"),
    nothing=lambda c: c.set_timeout(None),
)


@cell("dtypes")
def of_any_bytes(comm):
    for dtype in (">f4", PAIR, "U3", "M8[s]", "u1", float8, bool):
        x = np.zeros(4, dtype)
        if comm.rank == 1:
            x.view(np.uint8)[:] = 1
        right((comm.broadcast(x, 1).view(np.uint8) == 1).all())
        comm.allgather(x)
        comm.alltoall(x.reshape(2, 2))


@cell("dtypes")
def bool_or_and(comm):
    for algorithm in ("auto", "ring"):
        x = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], bool)[comm.rank]
        right(comm.allreduce(x.copy(), "max", algorithm=algorithm).tolist() == [False, True, True, True])
        right(comm.allreduce(x.copy(), "min", algorithm=algorithm).tolist() == [False, False, False, True])
        right(comm.reduce_scatter(x.copy(), "max", algorithm=algorithm).tolist() == [[False, True], [True, True]][comm.rank])


@cell("arrays")
def memory_mapped_file(comm):
    with tempfile.TemporaryDirectory() as folder:
        x = np.memmap(os.path.join(folder, "x"), "f4", "w+", shape=(5,))
        x[:] = comm.rank
        right((comm.allreduce(x) == 1).all() and type(x) is np.memmap)


def algorithms(comm):
    return [
        name for name in ("auto", "ring", "halving_doubling", "mpi") if name != "mpi" or hasattr(comm.wire, "library_allreduce")
    ]


@cell("values")
def NaN_wins_a_maximum_alike_on_all_ranks(comm):
    for name, op, algorithm in (
        (d, o, a) for d in ("f16", "bf16", "f32", "f64") for o in ("max", "min") for a in algorithms(comm)
    ):
        for n in (3, 67, 5000):
            x = np.full(n, comm.rank, DTYPES[name])
            x[comm.rank :: 3] = np.nan
            x[2::3] = [np.inf, -np.inf][comm.rank]
            comm.allreduce(x, op, algorithm=algorithm)
            flat = x.astype(np.float64)
            right(np.isnan(flat[0::3]).all() and np.isnan(flat[1::3]).all())
            right((flat[2::3] == (np.inf if op == "max" else -np.inf)).all())
            right(len(set(comm.allgather_object(x.tobytes()))) == 1)


@cell("values")
def signed_zeros_and_marked_NaN_are_alike_on_all_ranks(comm):
    for op, algorithm in ((o, a) for o in ("sum", "mean", "max", "min") for a in algorithms(comm)):
        for n in (5, 61, 5001):
            x = np.zeros(n + 1, np.float32)[1:]  # where vectors do not begin
            x[comm.rank :: 3] = -0.0
            x.view(np.int32)[2::3] = 0x7FC00001 + comm.rank
            comm.allreduce(x, op, algorithm=algorithm)
            right((x[0] == 0) and np.isnan(x[2]) and len(set(comm.allgather_object(x.tobytes()))) == 1)


# Messages.


def deliver(comm, given, room):
    """Rank 0 sends, rank 1 receives."""
    if comm.rank == 0:
        comm.isend(given, 1).wait()
        return None
    comm.irecv(room, 0).wait()
    return room


cells(
    "messages",
    "right RankMismatch",  # the sender knows nothing
    shorter=lambda c: deliver(c, ones(3), ones(4)),
    one_for_many=lambda c: deliver(c, ones(1), ones(4)),
    longer=lambda c: deliver(c, ones(5), ones(4)),
    much_longer=lambda c: deliver(c, ones(500_000), ones(4)),
    much_shorter=lambda c: deliver(c, ones(4), ones(500_000)),
    other_dtype=lambda c: deliver(c, ones(4), ones(2, dtype=np.float64)),
    nothing=lambda c: deliver(c, ones(0), ones(4)),
    for_nothing=lambda c: deliver(c, ones(4), ones(0)),
)


@cell("messages")
def after_a_wrong_one(comm):
    with contextlib.suppress(HpcaiError):
        deliver(comm, ones(300_000), ones(4))
    got = deliver(comm, np.arange(3.0), np.zeros(3))
    right(got is None or got.tolist() == [0, 1, 2])


@cell("messages")
def read_only_sent(comm):
    got = deliver(comm, np.frombuffer(bytes(range(8)), np.uint8), np.zeros(8, np.uint8))
    right(got is None or got.tolist() == list(range(8)))


@cell("messages")
def awaited_during_collectives(comm):
    x, y = np.zeros(20_000), np.full(20_000, 7.0)
    pending = [comm.irecv(x, 1 - comm.rank, lane) for lane in (0,)]
    total = comm.allreduce(np.ones(50_000), algorithm="ring")
    comm.isend(y, 1 - comm.rank).wait()
    pending[0].wait()
    right((total == 2).all() and (x == 7).all())


@cell("lifetimes")
def array_freed_while_its_message_is_under_way(comm):
    if comm.rank == 0:
        for i in range(8):
            comm.isend(np.full(100_000, float(i)), 1)  # nobody keeps it, nor waits
        gc.collect()
        rest = [np.full(100_000, -1.0) for _ in range(8)]
        comm.barrier()
        del rest
    else:
        got = [np.zeros(100_000) for _ in range(8)]
        pending = [comm.irecv(x, 0) for x in got]
        for one in pending:
            one.wait()
        comm.barrier()
        right(all((x == i).all() for i, x in enumerate(got)))


@cell("lifetimes")
def group_after_its_parent(comm):
    parent = comm.split(0)
    child = parent.split(0)
    del parent
    gc.collect()
    right(child.allreduce(np.ones(3))[0] == 2)


@cell("lifetimes")
def symmetric_array_after_its_communicator(comm):
    group = comm.split(0)
    x = group.symmetric_empty(1000)
    del group
    gc.collect()
    x[:] = comm.rank
    comm.barrier()
    right((x == comm.rank).all() and comm.allreduce(x)[0] == 1)
    del x
    gc.collect()


@cell("lifetimes")
def use_after_leave(comm):
    comm.leave()
    comm.leave()
    right(comm.allreduce(np.ones(3))[0] == 2)


# Threads and callbacks.


def elsewhere(call):
    """What another thread comes to, here."""
    raised: list[BaseException] = []

    def body():
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, name="another")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


cells(
    "threads",
    "UsageError",
    collective_on_another=lambda c: elsewhere(lambda: c.allreduce(ones(4))),
    long_collective_on_another=lambda c: elsewhere(lambda: c.allreduce(ones(4), algorithm="ring")),
    message_on_another=lambda c: elsewhere(lambda: c.isend(ones(4), 1 - c.rank)),
    exchange_on_another=lambda c: elsewhere(lambda: c.allgather_object(1)),
    split_on_another=lambda c: elsewhere(lambda: c.split(0)),
)


@cell("threads", "UsageError")
def two_at_once(comm):
    refused: list[UsageError] = []

    def body():
        for _ in range(50):
            try:
                comm.allreduce(np.full(100, 1000.0))
            except UsageError as error:
                refused.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    for _ in range(50):
        right((comm.allreduce(np.ones(100)) == 2).all())
    thread.join()
    assert len(refused) == 50
    raise refused[0]


@cell("threads")
def after_the_one_that_made_it(comm):
    made = []
    carrier = Background()
    carrier.start(lambda: made.append(comm.split(0)))
    carrier.wait()
    elsewhere(lambda: made.append(1))
    right(comm.allreduce(np.ones(2))[0] == 2)


def carried(comm, also):
    """What `also` comes to while a Background carries calls."""
    gate, carrier, xs = threading.Event(), Background(), [np.full(1000, float(i)) for i in range(20)]
    carrier.start(gate.wait, CELL_S)
    for x in xs:
        carrier.start(comm.allreduce, x)
    try:
        also(carrier)
    finally:
        gate.set()
        carrier.wait()
        right(all((x == 2 * i).all() for i, x in enumerate(xs)))


cells(
    "Background",
    "UsageError",
    collective_beside=lambda c: carried(c, lambda carrier: c.allreduce(ones(4))),
    ring_beside=lambda c: carried(c, lambda carrier: c.allreduce(ones(4), algorithm="ring")),
    exchange_beside=lambda c: carried(c, lambda carrier: c.allgather_object(1)),
    message_beside=lambda c: carried(c, lambda carrier: c.isend(ones(4), 1 - c.rank)),
    another_beside=lambda c: carried(c, lambda carrier: Background().start(c.barrier)),
    another_thread_gives=lambda c: carried(c, lambda carrier: elsewhere(lambda: carrier.start(c.barrier))),
    no_call=lambda c: Background().start(c.allreduce(np.ones(3))),
)


def in_a_call(inner):
    carrier = Background()
    carrier.start(inner, carrier)
    carrier.wait()


cells(
    "Background",
    "UsageError",
    wait_in_its_call=lambda c: in_a_call(lambda carrier: carrier.wait()),
    wait_for_another_in_a_call=lambda c: in_a_call(lambda carrier: Background().wait()),
    start_of_another_in_a_call=lambda c: in_a_call(lambda carrier: Background().start(c.barrier)),
)


@cell("Background")
def gives_more_in_a_call(comm):
    carrier, x = Background(), np.ones(10)
    carrier.start(lambda: carrier.start(comm.allreduce, x))
    carrier.wait()
    right((x == 2).all() and comm.allreduce(np.ones(3))[0] == 2)


@cell("Background")
def goes_on_after_an_error(comm):
    carrier = Background()
    carrier.start(comm.allreduce, [1.0])
    carrier.start(comm.allreduce, np.ones(3))
    with contextlib.suppress(TypeError):
        carrier.wait()
    right(comm.allreduce(np.ones(3))[0] == 2)


@cell("callbacks", "UsageError", only_mpi=True)
def call_in_a_signal_handler(comm):
    group, refused = comm.split(0), []

    def handler(number, frame):
        try:
            group.barrier()
        except UsageError as error:
            refused.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    x = np.ones(1000)
    try:
        if comm.rank == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        else:
            time.sleep(0.6)
        group.allreduce(x, algorithm="ring")  # waits in Python, where handlers run, if ranks do not share memory
        group.allgather_object(1 if group.rank else time.sleep(0.4))
    finally:
        signal.signal(signal.SIGALRM, before)
    right(bool(refused) == (comm.rank == 0))
    raise UsageError("as wanted")


@cell("callbacks", only_mpi=True)
def call_in_a_finalizer(comm):
    class Loud:
        def __del__(self):
            comm.barrier()

    refused = []
    before, sys.unraisablehook = sys.unraisablehook, lambda what: refused.append(what.exc_type)
    try:
        carrier = Background()

        def call(thing):
            del thing

        thing = Loud()
        carrier.start(call, thing)
        del thing
        carrier.wait()  # all ranks' finalizers make the same call in the same place
        right(comm.allreduce(np.ones(3))[0] == 2)
    finally:
        sys.unraisablehook = before


# Values.


class Grudging:
    """Can be pickled, and not made anew."""

    def __reduce__(self):
        return (int, ("no number",))


def leaves():
    raise Leave("as asked", 85)


cells(
    "allgather_object",
    "UsageError",
    unpicklable=lambda c: c.allgather_object(lambda: 1),
    not_made_anew=lambda c: c.allgather_object(Grudging()),
)
cells(
    "allgather_object",
    "UsageError RankMismatch",
    unpicklable_on_one=lambda c: c.allgather_object([1, threading.Lock()][c.rank]),
    unpicklable_from_root=lambda c: c.on_root(threading.Lock),
)
cells("allgather_object", "Leave UsageError", error_that_is_not_made_anew=lambda c: c.on_root(leaves))


# Processes.


def in_a_fork(body) -> int:
    """The exit code of a forked child, 0 where `body` returned."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except UsageError:
            code = 7
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused_in_a_fork(comm, call) -> None:
    code = in_a_fork(call)
    right(comm.allreduce(np.ones(100))[0] == 2)
    assert code == 7, f"the child ended with {code}"
    raise UsageError("in the child")


for kind, misused in {
    "allreduce": lambda c: c.allreduce(ones(4)),
    "ring": lambda c: c.allreduce(ones(4), algorithm="ring"),
    "isend": lambda c: c.isend(ones(4), 1 - c.rank),
    "allgather_object": lambda c: c.allgather_object(1),
    "leave": lambda c: c.leave(),
    "world": lambda c: hpcai.init().barrier(),
}.items():
    CELLS.append(
        Cell(f"fork: {kind} in a child", lambda c, call=misused: refused_in_a_fork(c, lambda: call(c)), ("UsageError",), True)
    )


@cell("fork", "UsageError", only_mpi=True)
def Background_of_the_parent(comm):
    carrier = Background()
    carrier.start(comm.barrier)
    carrier.wait()
    refused_in_a_fork(comm, carrier.wait)


@cell("fork", only_mpi=True)
def child_that_exits_as_Python_does(comm):
    for how in (lambda: sys.exit(5), lambda: 1 / 0):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            raise EndsHere(how)
        right(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (5, 1))
        right(comm.allreduce(np.ones(3))[0] == 2)


class EndsHere(BaseException):
    """Carries how a forked child ends to the program's outermost frame, so that the interpreter ends with its hooks."""


@cell("fork", only_mpi=True)
def workers_that_load_data(comm):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        right(pool.map(abs, [-1, -2]) == [1, 2])
        right(comm.allreduce(np.ones(3))[0] == 2)
    right(comm.allreduce(np.ones(3))[0] == 2)


@cell("fork", only_mpi=True)
def ranks_as_threads_in_a_child(comm):
    right(in_a_fork(lambda: right(threads.run(2, lambda c: c.allreduce(np.ones(2))[0]) == [2, 2])) == 0)
    right(comm.allreduce(np.ones(3))[0] == 2)


def outcome(comm: Any, one: Cell) -> str:
    """What comes of a cell on this rank: "right", an error that is wanted, or WRONG and why."""
    try:
        one.call(comm)
        said = text = "right"
    except (HpcaiError, TypeError, ValueError, AssertionError) as error:
        said, text = type(error).__name__, f"{type(error).__name__}: {error}"
    return text if said in one.wanted and "\n" not in text else f"WRONG, wanted {' or '.join(one.wanted)}: {text}"


def hung(name: str) -> None:
    """End the program, with all stacks."""
    print(f"{name} hangs", file=sys.stderr)
    faulthandler.dump_traceback()
    os._exit(9)


def main() -> int:
    """All cells, each on a group of its own; prints rank 0's outcomes, and the others' where they differ. 1 if one is wrong."""
    comm, wrong = hpcai.init(), 0
    for one in CELLS:
        group = comm.split(0)
        group.wire.timeout_s = CELL_S / 2
        watchdog = threading.Timer(CELL_S, hung, (one.name,))
        watchdog.daemon = True
        watchdog.start()
        if comm.rank == 0:
            print(f"{one.name:<55}", end="", flush=True)
        said = comm.allgather_object(outcome(group, one))
        watchdog.cancel()
        wrong += sum(text.startswith("WRONG") for text in said)
        if comm.rank == 0:
            print(" | ".join(dict.fromkeys(text[:160] for text in said)), flush=True)
    if comm.rank == 0:
        print(f"{len(CELLS)} cells, {wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        code = main()
    except EndsHere as end:
        end.args[0]()
    sys.exit(code)
