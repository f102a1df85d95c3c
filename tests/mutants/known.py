"""Faults that were looked at and change nothing that a test could see, each with the reason."""

from __future__ import annotations

from tests.mutants.operators import Fault

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
        "hpcai/comm/hierarchical.py",
        "running = ring.stream(own, two.rail.wire, op, two.node.size * two.rail.size, lane=i % 2)",
        "running = ring.stream(own, two.rail.wire, op, two.node.size * two.rail.size, lane=i % 3)",
    ): "neighbouring blocks still have lanes of their own",
    (
        "hpcai/comm/host.py",
        'request = struct.pack("256s", name.encode()[:15])',
        'request = struct.pack("256s", name.encode()[:16])',
    ): ("an interface's name has 15 characters at most"),
    ("hpcai/reduce/reproducible.py", "BITS = 46", "BITS = 47"): "one bit more than is promised; sums stay below 2**63",
    ("hpcai/data/columns.py", "_GROUP = 1 << 20", "_GROUP = 1 << 21"): "how much is done at a time",
    **{
        (
            "hpcai/comm/findings.py",
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
    ("hpcai/comm/relay.py", "said = os.read(fd, 1 << 16)", "said = os.read(fd, 1 << 17)"): "how much is read at a time",
    (
        "hpcai/comm/node.py",
        "POOL_BYTES = 256 << 20",
        "POOL_BYTES = 257 << 20",
    ): "how much freed memory is kept at most, whole huge pages",
    (
        "hpcai/comm/requests.py",
        "elif waited < YIELD_S:",
        "elif waited <= YIELD_S:",
    ): "at that very instant a wait may yield as well as sleep",
}
"""(file, line's text, what it becomes) -> why nothing differs."""


def reason(fault: Fault) -> str | None:
    """Why this fault changes nothing; None if it is not known to."""
    return CHANGES_NOTHING.get((fault.file, fault.before, fault.after))
