"""Reducers made of a codec and a collective, and error feedback for any reducer.

The names describe the composition: `error_feedback(by_gather(top_k(0.01)))`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hpcai.comm.algorithms import schedule
from hpcai.comm.collectives import Collectives
from hpcai.compress.codec import Codec, Payload, add_decoded, encode_keeping, payload_bytes
from hpcai.ops import blocks
from hpcai.ops.door import takes
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array

PART = 1 << 18
"""Elements of a part that is encoded while another part travels: 1 MiB of f32, which stays in the cache."""

Form = list[tuple[np.dtype, tuple[int, ...], int]]
"""Dtype, shape and bytes of each array of a payload."""

_kept = threading.local()
_NOTHING = np.empty(0, np.uint8)


def exact() -> Reducer:
    """Return the plain all-reduce as a reducer. Cost: 8(P-1)/P bytes an element sent per rank."""
    return Reducer("none", lambda x: None, lambda x, comm, state: Reduced(comm.allreduce(x, "mean"), None, state))


def by_sum(codec: Codec) -> Reducer:
    """Return a reducer that sums payloads in an all-reduce and decodes the sum.

    Raises: ValueError if the codec is not summable. Cost: 2(P-1)/P payloads sent per rank.
    """
    if not codec.summable:
        raise ValueError(f"the payloads of {codec.name} cannot be summed; use by_gather or by_scatter")

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        payload, state = codec.encode(x, state)
        residual = x - codec.decode(payload, x.size)
        comm.allreduce(payload[0], "mean")
        return Reduced(codec.decode(payload, x.size), residual, state)

    @takes(x="f32 n", memory="f32 n", writes="x memory")
    def keep(x: Array, memory: Array, comm: Collectives, state: State) -> Reduced:
        payload, state = encode_keeping(codec, x, memory, state)
        comm.allreduce(payload[0], "mean")
        x[:] = 0
        return Reduced(add_decoded(codec, x, payload, 1.0), memory, state)

    return Reducer(codec.name, codec.init, reduce, keep)


def by_gather(codec: Codec) -> Reducer:
    """Return a reducer in which every rank gets every payload and adds the decoded arrays, in the order of ranks.

    Suited to few ranks, and to payloads whose sum needs as many bytes as all of them. Arrays that the codec can cut are sent in
    parts of 1 MiB, so that one part is encoded and another decoded while a third travels. Cost: P-1 payloads sent per rank.
    """

    def encode(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        payload, state = codec.encode(x, state)
        np.subtract(x, codec.decode(payload, x.size), out=memory)
        return payload, state

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        return gather(x, np.empty_like(x), comm, state, encode)

    @takes(x="f32 n", memory="f32 n", writes="x memory")
    def keep(x: Array, memory: Array, comm: Collectives, state: State) -> Reduced:
        return gather(x, memory, comm, state, partial(encode_keeping, codec))

    def gather(x: Array, memory: Array, comm: Collectives, state: State, encode: Callable[..., Any]) -> Reduced:
        cuts = parts(x.size, codec.cut)
        forms: list[Form] = []

        def rows() -> Iterator[Array]:
            nonlocal state
            for part in cuts:  # two buffers are enough: a part is decoded before the next but one is encoded
                payload, state = encode(x[part], memory[part], state)
                rows = _rows(comm.size, payload_bytes(payload), turn=len(forms) % 2)
                _packed_into(rows[comm.rank], payload)
                forms.append(_form(payload))
                del payload  # the next payload uses its memory
                yield rows
                if codec.put is None:
                    x[part] = 0  # while the payload travels

        for i, came in enumerate(comm.allgather_each(rows())):
            _decode_mean(codec, x[cuts[i]], [_unpacked(row, forms[i]) for row in came])
        return Reduced(x, memory, state)

    return Reducer(codec.name, codec.init, reduce, keep)


class Scattered(NamedTuple):
    """The state of `by_scatter`: the codec's states for the first and the second encoding, and this rank's residual as an owner,
    (n,) f32, in units of the mean, zero outside its share.
    """

    first: State
    second: State
    owed: Array


def by_scatter(codec: Codec) -> Reducer:
    """Return a reducer in which each rank owns a share: the owner decodes the share from all ranks, folds it in f32 and encodes
    the mean, which all ranks get.

    With a memory, the owner keeps the residual of the second encoding and adds it to its next mean. In the owner's gradient that
    residual would count P times and be encoded once more. Cost: 2(P-1)/P payloads sent per rank.

    Source: the two errors of Tang et al., arXiv:1905.05957.
    """

    def init(x: Array) -> State:
        return Scattered(codec.init(x), codec.init(x), np.zeros_like(x))

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        memory, mine = np.zeros_like(x), share(x.size, comm.size, comm.rank)
        done = keep(x, memory, comm, state._replace(owed=np.zeros_like(x)))
        memory[mine] += np.float32(comm.size) * done.state.owed[mine]
        return Reduced(x, memory, done.state._replace(owed=state.owed))

    @takes(x="f32 n", memory="f32 n", writes="x memory")
    def keep(x: Array, memory: Array, comm: Collectives, state: State) -> Reduced:
        first, second, owed = state
        shares = [share(x.size, comm.size, rank) for rank in range(comm.size)]
        payloads = []
        for part in shares:
            payload, first = encode_keeping(codec, x[part], memory[part], first)
            payloads.append(payload)
        mine = shares[comm.rank]
        came = _exchanged(comm, payloads)
        mean = x[mine]
        if codec.put is None:
            mean[:] = 0
        _decode_mean(codec, mean, [_unpacked(row, _form(payloads[comm.rank])) for row in came])
        payload, second = encode_keeping(codec, mean, owed[mine], second)
        rows = _rows(comm.size, max(payload_bytes(one) for one in payloads), turn=0)
        _packed_into(rows[comm.rank], payload)
        comm.allgather(rows)
        for rank, part in enumerate(shares):
            said = _unpacked(rows[rank], _form(payloads[rank]))
            if codec.put is not None:
                codec.put(x[part], said, 1.0)
            else:
                x[part] = codec.decode(said, part.stop - part.start)
        return Reduced(x, memory, Scattered(first, second, owed))

    return Reducer(codec.name, init, reduce, keep)


class Remembered(NamedTuple):
    """The state of `error_feedback`: this rank's memory, (n,) f32, and the inner reducer's state."""

    memory: Array
    inner: State


def error_feedback(reducer: Reducer) -> Reducer:
    """Return a reducer that adds the residual of one array to the next, so that over time nothing is lost. State: Remembered.

    Source: Seide et al., Interspeech 2014; Karimireddy et al., arXiv:1901.09847.
    """

    def init(x: Array) -> State:
        return Remembered(np.zeros_like(x), reducer.init(x))

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        memory, inner = state
        if reducer.keep is not None:
            done = reducer.keep(x, memory, comm, inner)
            return Reduced(done.mean, memory, Remembered(memory, done.state))
        x += memory
        done = reducer.reduce(x, comm, inner)
        memory[:] = 0 if done.residual is None else done.residual
        return Reduced(done.mean, memory, Remembered(memory, done.state))

    return Reducer(f"{reducer.name}, error feedback", init, reduce)


def owed(state: Remembered, comm: Collectives) -> Array:
    """Return the whole residual of this rank, (n,) f32: its memory and P times its residual as an owner. The mean of the result
    over ranks is missing from the delivered means.
    """
    total = state.memory.copy()
    if isinstance(state.inner, Scattered):
        mine = share(total.size, comm.size, comm.rank)
        total[mine] += np.float32(comm.size) * state.inner.owed[mine]
    return total


def _decode_mean(codec: Codec, x: Array, payloads: list[Payload]) -> None:
    """x = the mean of the decoded payloads; for a codec without `put`, x must be zeros before."""
    weight = 1.0 / len(payloads)
    if codec.put is not None:
        codec.put(x, payloads[0], weight)
        payloads = payloads[1:]
    for payload in payloads:
        add_decoded(codec, x, payload, weight)


def parts(n: int, cut: int) -> list[slice]:
    """Return the parts into which `by_gather` cuts n elements: PART elements or fewer, cut at multiples of `cut`; one part if
    `cut` is 0.
    """
    step = max(cut, PART // cut * cut) if cut else max(1, n)
    return [slice(start, min(n, start + step)) for start in range(0, max(1, n), step)]


def share(n: int, parts: int, index: int) -> slice:
    """Return the part of n elements that rank `index` of `parts` owns in `by_scatter`. Cuts are between blocks, so that shares
    have the scales of the whole array.
    """
    cut = schedule.split(blocks.block_count(n), parts, index)
    return slice(min(n, cut.start * blocks.BLOCK), min(n, cut.stop * blocks.BLOCK))


def _packed_into(row: Array, payload: Payload) -> None:
    at = 0
    for part in payload:
        row[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)
        at += part.nbytes


def _form(payload: Payload) -> Form:
    return [(part.dtype, part.shape, part.nbytes) for part in payload]


def _unpacked(row: Array, form: Form) -> Payload:
    parts, at = [], 0
    for dtype, shape, nbytes in form:
        parts.append(row[at : at + nbytes].view(dtype).reshape(shape))
        at += nbytes
    return tuple(parts)


def _rows(ranks: int, nbytes: int, turn: int) -> Array:
    """Return (P, bytes) uint8, uninitialised: one of this thread's two buffers, reused, so pages and requests exist."""
    row = _padded(nbytes)
    if len(_kept.__dict__.setdefault("rows", [_NOTHING, _NOTHING])[turn]) < ranks * row:
        _kept.rows[turn] = np.empty(ranks * row, np.uint8)
    return _kept.rows[turn][: ranks * row].reshape(ranks, row)


def _exchanged(comm: Collectives, payloads: list[Payload]) -> Array:
    """Send each rank its payload. Returns: (P, bytes) uint8; row r is the payload that rank r encoded for this rank."""
    rows = _rows(comm.size, max(payload_bytes(payload) for payload in payloads), turn=1)
    for row, payload in zip(rows, payloads, strict=True):
        _packed_into(row, payload)
    return comm.alltoall(rows)


def _padded(nbytes: int) -> int:
    """Return the bytes of a row, padded to a multiple of 8, so that rows are aligned for every dtype."""
    return -(-nbytes // 8) * 8
