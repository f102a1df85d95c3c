"""`python -m tests.train.golden`: record what some configurations come to, before a change that must not change it (golden.json).

Bits depend on the machine (BLAS, the compiler of Numba), so digests are compared where the processor and the libraries are those
of the record, losses everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numba
import numpy as np
import threadpoolctl

from hpcai.checkpoint import format
from hpcai.comm import threads
from hpcai.ops import native
from hpcai.train import resume
from hpcai.train.loop import fit
from hpcai.train.options import parser

RECORD = Path(__file__).with_name("golden.json")
TEXT = b"What stays the same is not to be noticed; what changes is to be found at once.\n" * 60

GPT = "--data text:t.txt --layers 2 --width 32 --heads 4 --context 16 --batch 16 --optimizer adamw"
CONFIGURATIONS = {
    "softmax": (3, "--model softmax --optimizer sgd --batch 100"),
    "mlp": (2, "--model mlp --hidden 32,16 --optimizer adam --lr-schedule cosine --lr-warmup-steps 3 --clip-norm 0.5"),
    "cnn": (2, "--model cnn --channels 4,8 --optimizer nesterov --batch 64"),
    "lamb": (2, "--model mlp --hidden 32 --optimizer lamb --activation gelu --overlap always --bucket-bytes 1000"),
    "gpt": (2, f"{GPT} --dropout 0.1 --tied"),
    "gpt on a mesh": (4, f"{GPT} --mesh tp=2,pp=2 --pipeline-schedule zb-h1 --micro-batches 4 --norm rms"),
    "gpt, interleaved": (4, f"{GPT} --mesh dp=2,pp=2 --pipeline-schedule interleaved --micro-batches 2 --zero 1"),
    "ZeRO-1": (3, "--model mlp --hidden 32 --zero 1 --redundancy 1 --optimizer momentum"),
    "ZeRO-3": (2, "--model mlp --hidden 32 --zero 3 --bucket-bytes 1000"),
    "bf16": (2, "--model mlp --hidden 32 --dtype bf16 --zero 2"),
    "f16": (2, "--model mlp --hidden 32 --dtype f16"),
    "int8": (3, "--model mlp --hidden 32 --compress int8 --compress-smallest 1 --zero 1"),
    "powersgd": (
        2,
        "--model mlp --hidden 32 --compress powersgd:2 --compress-smallest 1 --compress-warmup-steps 2 --optimizer sgd",
    ),
    "reproducible": (3, "--model mlp --hidden 32 --compress reproducible"),
    "f64": (4, "--model mlp --hidden 32 --dtype f64 --micro-batches 2 --optimizer adamw"),
}
"""Name -> ranks, which are threads, and options."""


def outcome(ranks: int, flags: str, folder: Path) -> dict[str, Any]:
    """What 20 steps come to: the loss of each, and a digest of all that the checkpoint has."""
    text = folder / "t.txt"
    text.write_bytes(TEXT)
    options = parser.parse(["--run-dir", str(folder / "run"), "--steps", "20", *flags.replace("t.txt", str(text)).split()])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        threads.run(ranks, lambda comm: fit(options, comm))
    newest = resume.newest(folder / "run")
    assert newest is not None
    arrays, digest = format.read(newest)[1].arrays, hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return {"losses": [json.loads(line)["loss"] for line in lines], "digest": digest.hexdigest()}


def machine() -> str:
    """On what bits depend."""
    about = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in about.read_text().splitlines() if line.startswith(("model name", "flags"))
    ]
    blas = [f"{one['internal_api']} {one.get('version')} {one.get('architecture')}" for one in threadpoolctl.threadpool_info()]
    versions = f"numpy {np.__version__}, numba {numba.__version__}, native {native.is_native()}, {platform.machine()}"
    flags = hashlib.sha256(names[-1].encode()).hexdigest()[:8]
    return f"{names[0]} {flags}, {', '.join(sorted(blas))}, {versions}"


def main() -> None:
    """Record all."""
    found = {}
    for name, (ranks, flags) in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = outcome(ranks, flags, Path(folder))
            print(name, found[name]["losses"][-1], found[name]["digest"][:12])
    RECORD.write_text(json.dumps({"machine": machine(), "outcomes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
