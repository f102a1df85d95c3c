"""Codecs on one core: bytes that a verb reads and writes a second, as a share of what a plain copy moves beside it.

    python -m bench.codecs            # 64 MiB of f32

Arrays are taken in the parts in which reducers take them: 1 MiB at a time, or whole for codecs that choose from the whole.
Copy and verb take turns, and a share is the median over the turns. ratio: bytes of the array over bytes of the payload.
Error: root mean square of (decoded - x) over that of x, for normally distributed x.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from bench.harness import processor, size_of
from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec, add_decoded, encode_keeping, payload_bytes
from hpcai.reduce import combine

CODECS = {
    "bf16": cast.bf16(),
    "fp16": cast.fp16(),
    "fp8": quantize.fp8(),
    "int8": quantize.int8(),
    "int8, stochastic": quantize.int8(stochastic=True),
    "int4": quantize.int4(),
    "sign": sign.sign(),
    "top-k 1 %": top_k.top_k(0.01),
    "random-k 1 %": random_k.random_k(0.01),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.codecs", description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=size_of, default=size_of("64M"), help="size of the array (K, M, G)")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    x = np.random.default_rng(0).normal(size=arguments.bytes // 4).astype(np.float32)
    print(f"{arguments.bytes} bytes of f32, one core. {processor()}\n")
    print("| codec | ratio | error | encode | encode with memory | decode and add |\n|---|---|---|---|---|---|")
    for name, codec in CODECS.items():
        print(f"| {name} | {' | '.join(row(codec, x, arguments.rounds))} |", flush=True)
    print(f"\ntop-k 1 % against numpy's argpartition of the magnitudes: {against_argpartition(x):.1f}x")


def row(codec: Codec, x: Any, rounds: int) -> list[str]:
    """Ratio, error, and for each verb the share of a copy's bandwidth with the time."""
    memory, acc = np.zeros_like(x), np.zeros_like(x)
    cuts = combine.parts(x.size, codec.cut)
    payloads = [codec.encode(x[cut], codec.init(x))[0] for cut in cuts]
    decoded = np.concatenate([codec.decode(payload, cut.stop - cut.start) for payload, cut in zip(payloads, cuts, strict=True)])
    error = np.sqrt(np.mean(np.square(decoded - x, dtype=np.float64)) / np.mean(np.square(x, dtype=np.float64)))
    sent = sum(map(payload_bytes, payloads))

    def encode() -> None:
        for cut in cuts:
            codec.encode(x[cut], codec.init(x))

    def keep() -> None:
        for cut in cuts:
            encode_keeping(codec, x[cut], memory[cut], codec.init(x))

    def add() -> None:
        for payload, cut in zip(payloads, cuts, strict=True):
            add_decoded(codec, acc[cut], payload, 0.5)

    verbs = {
        "encode": (encode, x.nbytes + sent),
        "encode with memory": (keep, 3 * x.nbytes + sent),
        "decode and add": (add, 2 * x.nbytes + sent),
    }
    cells = [f"{x.nbytes / sent:.1f}", f"{error:.4f}"]
    for call, nbytes in verbs.values():
        share, seconds = beside_copy(x, call, nbytes, rounds)
        cells.append(f"{share:.0%}, {1e3 * seconds:.1f} ms")
    return cells


def beside_copy(x: Any, call: Callable[[], Any], nbytes: int, rounds: int) -> tuple[float, float]:
    """(bytes a second of `call` over those of a copy of x, seconds of `call`): medians over turns."""
    y = np.empty_like(x)
    shares, times = [], []
    for turn in range(rounds + 2):
        copying, calling = timed(lambda: np.copyto(y, x)), timed(call)
        if turn >= 2:
            shares.append(nbytes / calling / (2 * x.nbytes / copying))
            times.append(calling)
    return statistics.median(shares), statistics.median(times)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = perf_counter()
    call()
    return perf_counter() - begin


def against_argpartition(x: Any) -> float:
    """How many times as long argpartition takes, in turn."""
    k = x.size // 100
    turns = [timed(lambda: np.argpartition(np.abs(x), x.size - k)) / timed(lambda: top_k.largest(x, k)) for _ in range(5)]
    return statistics.median(turns)


if __name__ == "__main__":
    main()
