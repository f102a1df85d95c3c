"""`python -m tests.mutants.kernels`: plants faults by hand in the C++ kernels, builds each, and looks whether tests notice.

Each is of a kind that people make: a tie rounded the wrong way, a tail that is forgotten, a NaN that is lost, a bound that is one
off. Where a kernel is written twice, for vectors and for older machines, tests/ops/test_native.py runs its file for each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.mutants.__main__ import copied

BLOCKS, INTEGERS = "include/hpcai/blocks.hpp", "include/hpcai/integers.hpp"
FOLD, FOLD_RANKS = "include/hpcai/fold.hpp", "include/hpcai/fold_ranks.hpp"
HALF, FP8 = "include/hpcai/half.hpp", "include/hpcai/fp8.hpp"
LANES, COMPRESS, ROWS = "cpu/lanes.hpp", "cpu/compress.cpp", "cpu/rows.cpp"
ATTENTION, NODE, DOOR = "cpu/attention.cpp", "cpu/node.cpp", "cpu/door.cpp"
CHUNK, WAITS, WAYS, SEGMENTS, SHORT_WAY = "cpu/node.hpp", "cpu/waits.cpp", "cpu/ways.cpp", "cpu/segments.cpp", "cpu/short_way.cpp"


class Fault(NamedTuple):
    """`new` in place of the only `old` in a file below kernels/."""

    file: str
    old: str
    new: str
    what: str


FAULTS = (
    Fault(BLOCKS, "std::nearbyint(t[j] * inverse)", "std::floor(t[j] * inverse + 0.5f)", "ties upwards"),
    Fault(BLOCKS, "y > kTop ? kTop : y < -kTop ? -kTop : y", "y > kTop ? kTop : y", "no lower limit of levels"),
    Fault(BLOCKS, "(level[2 * j + 1] & 15) << 4", "(level[2 * j + 1] & 7) << 4", "int4 loses a sign"),
    Fault(BLOCKS, "std::int8_t(std::int8_t(in[n / 2] << 4) >> 4)", "std::int8_t(in[n / 2] & 15)", "int4's last level unsigned"),
    Fault(BLOCKS, "int(bits_of(t[j]) >> 31)", "int(t[j] < 0)", "sign of -0 and NaN"),
    Fault(BLOCKS, "std::fabs(t[n - n % 16 + k])", "std::fabs(t[k])", "sum of magnitudes takes the head for the tail"),
    Fault(BLOCKS, "(float(n) * 0x1p-8f)", "1.0f", "mean of a short block over 256"),
    Fault(BLOCKS, "const bool finite = top < kInfinity;", "const bool finite = top <= kInfinity;", "infinity is finite"),
    Fault(BLOCKS, "if (magnitude < kInfinity && magnitude > top)", "if (magnitude > top)", "scale of what is not finite"),
    Fault(BLOCKS, "memory[at + j] = t[j] - s *", "memory[at + j] = x[at + j] - s *", "old memory forgotten"),
    Fault(BLOCKS, "if (s < kSmallestScale) s = 0.0f;", "", "scales below the smallest"),
    Fault(BLOCKS, "kAdd ? out[at + j] + value : value", "value", "decoding does not add"),
    Fault(INTEGERS, "top < kInfinity ? top : 0x7fc00000u", "top", "infinite top is not NaN"),
    Fault(INTEGERS, "y > -most ? (y < most ? y : most) : -most", "y < most ? y : most", "no lower limit of lanes"),
    Fault(INTEGERS, "memory[at + j] -= scale * level;", "memory[at + j] -= scale * y;", "what the limit cut off is forgotten"),
    Fault(INTEGERS, "std::int64_t(std::nearbyint(double(x[i]) * per_unit))", "std::int64_t(double(x[i]) * per_unit)", "cut, not rounded"),
    Fault(FOLD, "(a > b || a != a) ? a : b", "a > b ? a : b", "max loses a NaN"),
    Fault(FOLD, "memory[i] = t - widen(out[i]);", "memory[i] = x[i] - widen(out[i]);", "cast forgets the old memory"),
    Fault(FOLD, "x[i] = x[i] / divisor", "x[i] = T(x[i] * (1.0 / double(divisor)))", "mean by a reciprocal"),
    Fault(FOLD_RANKS, "n_outs == 2 ? outs[1] : outs[0]", "outs[0]", "the second result is not written"),
    Fault(FOLD_RANKS, "for (int r = 1; r < ranks; ++r) {", "for (int r = ranks - 1; r > 0; --r) {", "another order of ranks"),
    Fault(HALF, "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "(bits + 0x8000u) >> 16", "bf16 ties upwards"),
    Fault(HALF, "magnitude < (113u << 23) ? subnormal", "magnitude < (112u << 23) ? subnormal", "fp16 subnormals begin too low"),
    Fault(HALF, "magnitude >= 0x47800000u ? special", "magnitude >= 0x47900000u ? special", "what is beyond fp16 is NaN"),
    Fault(FP8, "+ 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20", "+ 0x80000u) >> 20", "fp8 ties upwards"),
    Fault(FP8, "magnitude < 8u ? subnormal : normal", "magnitude < 7u ? subnormal : normal", "fp8's largest subnormal"),
    Fault(LANES, "broadcast(1)), broadcast(0x7fff))", "broadcast(1)), broadcast(0x8000))", "bf16 rounds too high in vectors"),
    Fault(LANES, "inline I quiet_upper(V v) { return bit_or(bits_of(v), broadcast(0x400000)); }",
          "inline I quiet_upper(V v) { return bits_of(v); }", "a NaN becomes infinity in bf16"),
    Fault(LANES, "shift_right(where_nan(v, quiet_upper(v), round_to_upper(v)))", "shift_right(round_to_upper(v))", "a NaN is rounded to infinity"),
    Fault(LANES, "std::memcpy(outs[o] + at + i, copy, count * sizeof(T));", "std::memcpy(outs[o] + at + i, copy, sizeof copy);",
          "writes behind the array"),
    Fault(LANES, "store(memory, sub(t, load(out)));", "store(memory, sub(load(x), load(out)));", "vector cast forgets memory"),
    Fault(COMPRESS, "& 0x7fffffffu) >= threshold) {", "& 0x7fffffffu) > threshold) {", "selection's tail is strict"),
    Fault(COMPRESS, "for (std::size_t i = kept; i < found", "for (std::size_t i = 0; i < found", "places move twice"),
    Fault(COMPRESS, "const auto counter = std::uint32_t(at);", "const auto counter = std::uint32_t(0);", "the same dice in each block"),
    Fault(ROWS, "sums[i] = sum;", "sums[i] = sum_of(total);", "exponentials of a row's tail"),
    Fault(ROWS, "- shift - normal * along_normal) * factor", "- normal * along_normal) * factor", "a norm's gradient without its mean"),
    Fault(ROWS, "put(dbias + j, get(dbias + j) + biases)", "put(dbias + j, biases)", "bias's gradient of the last rows alone"),
    Fault(ATTENTION, "lane <= std::int32_t(i) - std::int32_t(first)", "lane < std::int32_t(i) - std::int32_t(first)",
          "a query does not see itself"),
    Fault(ATTENTION, "likely * (load(dr + j) - taken) * scale", "likely * load(dr + j) * scale", "softmax's gradient without its mean"),
    Fault(CHUNK, "std::size_t(__uint128_t(n) * unsigned(i) / unsigned(parts))", "n / unsigned(parts) * unsigned(i)",
          "chunks that leave a rest"),
    Fault(NODE, "std::size_t(rank) * b.stride + (place", "std::size_t(rank_) * b.stride + (place", "each rank reads its own part for all"),
    Fault(NODE, "i < kKey; ++i) {", "i < 2; ++i) {", "mismatches in all but the kind"),
    Fault(NODE, "if (announced(r).place >= 0) return false;", "", "symmetric on some ranks is symmetric on none"),
    Fault(WAITS, "if (messages) progress();", "", "a rank that waits moves no messages"),
    Fault(WAYS, "if (r != rank_) fine = fine && copy_to(r,", "if (r > rank_) fine = fine && copy_to(r,",
          "lower ranks do not get the result"),
    Fault(WAYS, "copy_all(r, {0, from}, work.x) && ", "", "a broadcast without the part before the root's"),
    Fault(WAYS, "std::memcpy(mine + to, theirs + to, work.bytes() - to);", "", "a symmetric broadcast without its end"),
    Fault(WAYS, "{std::size_t(0), half} : std::pair{half, whole}", "{std::size_t(0), half} : std::pair{whole - half, whole}",
          "the middle byte of a row is not swapped"),
    Fault(SEGMENTS, "(ring_end_ + 127) / 128 * 128", "0", "a segment over the one that others read"),
    Fault(SEGMENTS, "if (kept < end) std::memcpy(mine + end", "if (false) std::memcpy(mine + end", "what lies behind a rank's own share"),
    Fault(SEGMENTS, "+ (work.to_each() ? rank_ * each : 0)", "+ (work.to_each() ? 0 : 0)", "each rank folds what is for rank 0"),
    Fault(SHORT_WAY, "|| !PyArray_ISCARRAY(x)", "", "any memory goes the short way"),
    Fault(SHORT_WAY, "operation == kMean ? node.size() : 1", "1", "a mean is a sum"),
    Fault(SHORT_WAY, "PyArray_DIM(x, 0) != node.size()", "false", "rows for other ranks than there are"),
    Fault(DOOR, "if ((PyArray_FLAGS(array) & wanted) != wanted) return false;", "", "any memory goes through the native door"),
    Fault(DOOR, "rule.written ? NPY_ARRAY_CARRAY :", "rule.written ? NPY_ARRAY_CARRAY_RO :", "a read-only array is written"),
    Fault(DOOR, "for (int i = 0; i < dims; ++i) key", "for (int i = 0; i < dims - 1; ++i) key", "the last dim may be any"),
    Fault(DOOR, "key.push_back(reinterpret_cast<std::uint64_t>(PyArray_DESCR(array)));", "", "any dtype of that shape"),
    Fault(DOOR, "key.push_back(reinterpret_cast<std::uint64_t>(Py_TYPE(x)));", "", "1, True and a tiny float are one kind"),
    Fault(DOOR, "(reach < 0 ? bytes.low : bytes.high) += reach;", "bytes.high += reach;", "arrays that run backwards"),
    Fault(DOOR, "bytes.high += PyArray_ITEMSIZE(array);", "", "arrays that share their last element"),
    Fault(DOOR, "n == 0 || top < limit", "n == 0 || top <= limit", "an index one behind the end"),
    Fault(DOOR, "if (rule.letter == U32 && value >> 32) return false;", "", "2**32 where numbers are below it"),
)  # fmt: skip

TESTS = (
    "tests/ops",
    "tests/compress",
    "tests/nn",
    "tests/comm/wires/test_node.py",
    "tests/comm/test_communicator.py",
    "tests/reduce",
)


def main() -> int:
    """Plant each; 0 if all were caught."""
    parser = argparse.ArgumentParser("python -m tests.mutants.kernels", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose words contain this")
    parser.add_argument("--first", type=int, default=1, help="number of the fault to begin with")
    asked = parser.parse_args()
    chosen = [fault for fault in FAULTS[asked.first - 1 :] if asked.only in fault.what]
    folder = Path(tempfile.mkdtemp(prefix="hpcai-kernels-"))
    missed = []
    try:
        copy = copied(folder / "tree")
        _build(copy, folder / "build", check=True)
        assert _passes(copy), "tests fail without any fault"
        for i, fault in enumerate(chosen):
            began, caught = time.monotonic(), _caught(fault, copy, folder / "build")
            missed += [] if caught else [fault]
            word = f"caught by {caught}" if caught else "NOT CAUGHT"
            print(f"[{i + 1}/{len(chosen)}] {fault.file}: {fault.what}: {word} ({time.monotonic() - began:.0f} s)", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults in kernels caught")
    return 1 if missed else 0


def _caught(fault: Fault, copy: Path, build: Path) -> str:
    path = copy / "kernels" / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} of {fault.old!r}; wanted one"
    try:
        path.write_text(text.replace(fault.old, fault.new))
        return "the compiler" if not _build(copy, build) else "" if _passes(copy) else "tests"
    finally:
        path.write_text(text)


def _build(copy: Path, build: Path, check: bool = False) -> bool:
    """Compile what has changed, and put the module where Python finds it."""
    quiet = None if check else subprocess.DEVNULL
    if not build.exists():
        configure = [
            "cmake",
            "-S",
            str(copy),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(["cmake", "--build", str(build), "-j", "2"], stdout=subprocess.DEVNULL, stderr=quiet, check=check)
    for module in build.glob("_native*.so"):
        (copy / "hpcai" / module.name).unlink(missing_ok=True)
        shutil.copy2(module, copy / "hpcai" / module.name)
    return done.returncode == 0


def _passes(copy: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HPCAI_KERNELS": "required"}
    running = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return running.wait(600) == 0
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, 9)
        running.wait()
        return False


if __name__ == "__main__":
    sys.exit(main())
