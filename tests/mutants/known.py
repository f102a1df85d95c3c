"""Faults that were looked at and change nothing that a test could see, each with the reason."""

from __future__ import annotations

from tests.mutants.operators import Fault

_ROOM = "room for keys of 8 numbers and their negatives"
_SEED = "another seed by default is as good"
CHANGES_NOTHING: dict[tuple[str, str, str], str] = {
    (
        "hpcai/optim/clip.py",
        "return sqrt(square) if (square := ops.sum_of_squares(grads)) >= 0 else square",
        "return sqrt(square) if (square := ops.sum_of_squares(grads)) > 0 else square",
    ): "the root of 0 is 0",
    (
        "hpcai/compress/sign.py",
        'return blockwise("sign", stochastic=False, seed=0)',
        'return blockwise("sign", stochastic=True, seed=0)',
    ): "signs are not rounded",
    (
        "hpcai/reduce/combine.py",
        "row[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)",
        "row[at : at + part.nbytes] = part.reshape(-2).view(np.uint8)",
    ): "numpy takes any negative length for the one that is to be found",
    (
        "hpcai/compress/quantize.py",
        "def int4(*, stochastic: bool = False, seed: int = 0) -> Codec:",
        "def int4(*, stochastic: bool = False, seed: int = 1) -> Codec:",
    ): _SEED,
    (
        "hpcai/compress/quantize.py",
        "def fp8(*, stochastic: bool = False, seed: int = 0) -> Codec:",
        "def fp8(*, stochastic: bool = False, seed: int = 1) -> Codec:",
    ): _SEED,
    (
        "hpcai/compress/random_k.py",
        "def random_k(ratio: float, *, seed: int = 0) -> Codec:",
        "def random_k(ratio: float, *, seed: int = 1) -> Codec:",
    ): _SEED,
    (
        "hpcai/comm/algorithms/hierarchical.py",
        "running = ring.stream(own, two.rail.wire, op, two.node.size * two.rail.size, lane=i % 2)",
        "running = ring.stream(own, two.rail.wire, op, two.node.size * two.rail.size, lane=i % 3)",
    ): "neighbouring blocks still have lanes of their own",
    (
        "hpcai/comm/launch/host.py",
        'request = struct.pack("256s", name.encode()[:15])',
        'request = struct.pack("256s", name.encode()[:16])',
    ): ("an interface's name has 15 characters at most"),
    ("hpcai/reduce/reproducible.py", "BITS = 46", "BITS = 47"): "one bit more than is promised; sums stay below 2**63",
    ("hpcai/data/columns.py", "_GROUP = 1 << 20", "_GROUP = 1 << 21"): "how much is done at a time",
    (
        "hpcai/compress/top_k.py",
        "place = sample.size - 1 - int(aim * sample.size)",
        "place = sample.size + 1 - int(aim * sample.size)",
    ): "another threshold to begin with: what is chosen is the same",
    (
        "hpcai/compress/top_k.py",
        "while aim < 0.5:",
        "while aim <= 0.5:",
    ): "one more try before all elements are taken: what is chosen is the same",
    (
        "hpcai/compress/top_k.py",
        "return lines[:: max(1, len(lines) * LINE // SAMPLE)].reshape(-1)",
        "return lines[:: max(1, len(lines) / LINE // SAMPLE)].reshape(-1)",
    ): "a sample of another size",
    (
        "hpcai/compress/codec.py",
        "for part, (dtype, shape) in zip(payload, form, strict=True):",
        "for part, (dtype, shape) in zip(payload, form, strict=False):",
    ): "their numbers were compared before",
    (
        "hpcai/reduce/combine.py",
        "for row, payload in zip(rows, payloads, strict=True):",
        "for row, payload in zip(rows, payloads, strict=False):",
    ): "one is made of the other",
    (
        "hpcai/data/sources.py",
        'meant = NAMES[_KINDS.index(like[0])] if (like := get_close_matches(kind.lower(), _KINDS, 1)) else ""',
        'meant = NAMES[_KINDS.index(like[0])] if (like := get_close_matches(kind.lower(), _KINDS, 2)) else ""',
    ): "the best match comes first",
    (
        "hpcai/data/opening.py",
        "while part := content.read(1 << 20):",
        "while part := content.read(2 << 20):",
    ): "how much is done at a time",
    (
        "hpcai/reduce/named.py",
        "def named(name: str, ranks: int, *, places: Sequence[Place] = (), seed: int = 0, feedback: bool = True) -> Reducer:",
        "def named(name: str, ranks: int, *, places: Sequence[Place] = (), seed: int = 1, feedback: bool = True) -> Reducer:",
    ): _SEED,
    (
        "hpcai/data/cells.py",
        "if len(batch) >= _ROWS or self.taken > BLOCK:",
        "if len(batch) >= _ROWS or self.taken >= BLOCK:",
    ): "how much is done at a time",
    **{
        (
            "hpcai/comm/diagnosis/findings.py",
            f"return {text}, 0.0",
            f"return {text}, 1.0",
        ): "the text has no place for the seconds"
        for text in (
            "_silent(answer)",
            "f\"alive, in {one['text']} of {_members(one['ranks'])} at {one['place']}\"",
            "f\"alive and at work at {stack[0] if stack else 'an unknown place'}\"",
            "text",
        )
    },
    ("hpcai/comm/launch/relay.py", "said = os.read(fd, 1 << 16)", "said = os.read(fd, 1 << 17)"): "how much is read at a time",
    (
        "hpcai/comm/wires/node.py",
        "POOL_BYTES = 256 << 20",
        "POOL_BYTES = 257 << 20",
    ): "how much freed memory is kept at most, whole huge pages",
    (
        "hpcai/comm/wires/requests.py",
        "elif waited < YIELD_S:",
        "elif waited <= YIELD_S:",
    ): "at that very instant a wait may yield as well as sleep",
    (
        "hpcai/comm/wires/requests.py",
        "POLLS, YIELD_S, NAP_S, BESIDE_NAP_S = 200, 0.001, 0.0001, 0.0004",
        "POLLS, YIELD_S, NAP_S, BESIDE_NAP_S = 201, 0.001, 0.0001, 0.0004",
    ): "how often it polls before it yields, give or take one",
    (
        "hpcai/comm/wires/requests.py",
        "if waited > self.wire.timeout_s:",
        "if waited >= self.wire.timeout_s:",
    ): "at that very instant a wait may end as well as go on",
    **{
        ("hpcai/comm/wires/mapping.py", before, before.replace("-1", "-2")): "any negative number is no descriptor"
        for before in (
            "handle = _tried(lambda: os.open(FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)) if wire.rank == 0 else -1",
            'handle, name = -1, ""',
            "return -1",
        )
    },
    ("hpcai/comm/wires/mpi.py", "IDLE_REQUESTS = 1024", "IDLE_REQUESTS = 1025"): "how many are kept at most",
    (
        "hpcai/comm/wires/mpi.py",
        "ALARM_TAG, EXCHANGE_TAG, CONNECTING_TAG, ALARM_S = 32000, 31999, 31998, 3.0",
        "ALARM_TAG, EXCHANGE_TAG, CONNECTING_TAG, ALARM_S = 32001, 31999, 31998, 3.0",
    ): "another number that is no other message's, and that every MPI has",
    ("hpcai/comm/wires/mpi.py", "self._key = np.empty(16, np.int64)", "self._key = np.empty(17, np.int64)"): _ROOM,
    ("hpcai/comm/wires/mpi.py", "self._seen = np.empty(16, np.int64)", "self._seen = np.empty(17, np.int64)"): _ROOM,
    (
        "hpcai/comm/wires/mpi.py",
        "while len(heard) < self.size and time.monotonic() < end:",
        "while len(heard) < self.size and time.monotonic() <= end:",
    ): "at that very instant it may listen once more",
    ("hpcai/comm/wires/mpi.py", "time.sleep(0.01)", "time.sleep(0.02)"): "how often it looks for another word",
    (
        "hpcai/comm/diagnosis/watch.py",
        "self.look: Callable[[], float] = lambda: 0.2",
        "self.look: Callable[[], float] = lambda: 0.4",
    ): "how often it looks whether it is told what to look at, in the first instants",
    (
        "hpcai/comm/wires/mpi.py",
        "length = np.zeros(1, np.int64)",
        "length = np.zeros(2, np.int64)",
    ): "MPI receives fewer bytes than there is room for as well, and only the first number is read",
    (
        "hpcai/parallel/stages.py",
        "return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]",
        "return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(layers)], strict=False)]",
    ): "both have one of each start",
    (
        "hpcai/checkpoint/format.py",
        'for row, name in zip(arrays["memories"], memories, strict=True):',
        'for row, name in zip(arrays["memories"], memories, strict=False):',
    ): "a manifest whose memories are not one of each data-parallel rank is refused before (agreement.py)",
    (
        "hpcai/data/scaling.py",
        "FAR = 1e15",
        "FAR = 2000000000000000.0",
    ): "a bound between what is odd and what is not, of which no digit is promised",
    (
        "hpcai/checkpoint/schema.py",
        "if type(value) is int and value.bit_length() > 100:",
        "if type(value) is int and value.bit_length() > 101:",
    ): "a bound far beyond every number of a manifest",
    ("hpcai/checkpoint/shards.py", "LONGEST_BYTES = 1 << 26", "LONGEST_BYTES = 1 << 27"): "how much is done at a time",
    (
        "hpcai/parallel/stages.py",
        "return min(times[1:]), y.shape",
        "return min(times[2:]), y.shape",
    ): "the least of fewer times",
}
"""(file, line's text, what it becomes) -> why nothing differs."""


def reason(fault: Fault) -> str | None:
    """Why this fault changes nothing; None if it is not known to."""
    return CHANGES_NOTHING.get((fault.file, fault.before, fault.after))
