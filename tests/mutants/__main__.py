"""`python -m tests.mutants`: plants faults of a seeded sample, one after the other, and looks whether tests notice (make mutants).

Each fault is planted in a copy of the repository and meets, first, those tests of one process that execute its line, by
coverage.py, quickest first; then, if all pass, the tests that need a launcher where its file has such (`LAUNCHED`). A test that
fails, hangs or crashes has caught it. What is left is printed; those that `known.py` explains do not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mutants import known, rooms, selection
from tests.mutants.operators import Fault, faults

ROOT = Path(__file__).parents[2]
ONE_TEST_S = 60
BUDGET_S = 30.0


class Verdict(NamedTuple):
    """What became of a fault: who caught it ("" nobody)."""

    fault: Fault
    caught_by: str


def main() -> int:
    """Run the sample; 0 if enough were caught."""
    options = _options()
    sample = _sample(options)
    tests = sorted({test for room in options.rooms for test in rooms.TESTS[room]})
    folder = Path(tempfile.mkdtemp(prefix="hpcai-mutants-"))
    try:
        copies = [copied(folder / str(i)) for i in range(options.workers)]
        print(f"{len(sample)} faults, seed {options.seed}; learning which tests execute which lines", flush=True)
        coverage = selection.learn(copies, tests, options.coverage or folder / "coverage.json")
        verdicts = _judged(sample, copies, coverage)
        controls = _judged([_without(fault) for fault in sample[: options.controls]], copies, coverage)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mistaken = sum(bool(verdict.caught_by) for verdict in controls)
    print(f"{mistaken} of {len(controls)} trials without a fault were caught")
    return max(_report(verdicts, options.at_least), mistaken > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=400, help="how many faults, shared out by the rooms' lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--at-least", type=float, default=92.0, help="per cent that tests must catch")
    parser.add_argument("--coverage", type=Path, help="keep what tests execute in this file, or take it from there")
    parser.add_argument(
        "--again", type=Path, help="instead of a sample: what was not caught by what this file says, an earlier run's words"
    )
    parser.add_argument("--first", type=int, default=1, help="number of the fault to begin with, of the same sample")
    parser.add_argument("--controls", type=int, default=10, help="trials without a fault beside the sample: none may be caught")
    parser.add_argument("--only", default="", help="faults whose text contains this alone")
    parser.add_argument("rooms", nargs="*", default=list(rooms.FILES), metavar="ROOM", help=", ".join(rooms.FILES))
    return parser.parse_args()


def _sample(options: argparse.Namespace) -> list[Fault]:
    found = [fault for room in options.rooms for file in rooms.files(ROOT, room) for fault in faults(ROOT, file)]
    found = [fault for fault in found if options.only in str(fault)]
    if options.again:
        lines = [line for line in options.again.read_text().splitlines() if "NOT CAUGHT" in line]
        return [fault for fault in found if any(f"{fault.file}:" in line and fault.change in line for line in lines)]
    return sorted(found, key=lambda fault: fault.draw(options.seed))[: options.sample][options.first - 1 :]


def _without(fault: Fault) -> Fault:
    """The same place, and nothing changed there."""
    return fault._replace(text=(ROOT / fault.file).read_text()[fault.start : fault.end], after="the same")


def copied(to: Path) -> Path:
    """What tests need, in a place of its own, without compiled Python: its age would be compared in whole seconds."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in [*names, *(str(path.relative_to(ROOT)) for path in (ROOT / "hpcai").glob("*.so"))]:
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def _judged(sample: list[Fault], copies: list[Path], coverage: selection.Coverage) -> list[Verdict]:
    """First by tests of one process, some faults at a time; then what these left by tests that need a launcher, one at a time."""
    quick = _in_turn(sample, copies, lambda fault, copy: _by_one_process(fault, copy, coverage))
    left = [verdict.fault for verdict in quick if not verdict.caught_by and rooms.launched(verdict.fault.file)]
    slow = {verdict.fault: verdict for verdict in _in_turn(left, copies[:1], _by_launchers)}
    return [slow.get(verdict.fault, verdict) for verdict in quick]


def _in_turn(sample: list[Fault], copies: list[Path], judge: Callable[[Fault, Path], str]) -> list[Verdict]:
    free = list(copies)
    began, done = time.monotonic(), 0

    def planted(fault: Fault) -> Verdict:
        nonlocal done
        copy, start, source = free.pop(), time.monotonic(), (ROOT / fault.file).read_text()
        (copy / fault.file).write_text(fault.planted(source))
        try:
            caught = judge(fault, copy)
        finally:
            (copy / fault.file).write_text(source)
            free.append(copy)
        done += 1
        word = f"caught by {caught}" if caught else "NOT CAUGHT"
        now = time.monotonic()
        print(f"[{done}/{len(sample)} {now - began:.0f} s] {fault}: {word} ({now - start:.0f} s)", flush=True)
        return Verdict(fault, caught)

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(planted, sample))


def _by_one_process(fault: Fault, copy: Path, coverage: selection.Coverage) -> str:
    """In a fork of this process, which has loaded what takes long and nothing of hpcai."""
    tests = coverage.tests(fault.file, fault.line, BUDGET_S)
    if not tests:
        return ""
    worker = multiprocessing.get_context("fork").Process(target=_tests_of_one_process, args=(copy, tests, coverage))
    worker.start()
    worker.join(30 + 3 * BUDGET_S)
    if worker.is_alive():
        _end(worker.pid)
        worker.join()
        return "time"
    return "" if worker.exitcode == 0 else "tests" if worker.exitcode == 1 else f"exit code {worker.exitcode}"


def _end(group: int | None) -> None:
    if group is not None:
        os.killpg(group, signal.SIGKILL)


def _tests_of_one_process(copy: Path, tests: list[str], coverage: selection.Coverage) -> None:
    os.setsid()
    os.chdir(copy)
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "hpcai")]:
        del sys.modules[name]
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    import pytest

    class Chosen:
        def pytest_collection_modifyitems(self, items):
            found = {test: [item for item in items if selection.function(item.nodeid) == test] for test in tests}
            items[:] = [case for test, cases in found.items() if cases for case in coverage.cases(test, cases)]

    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--timeout={ONE_TEST_S}", *files], plugins=[Chosen()]))


def _by_launchers(fault: Fault, copy: Path) -> str:
    for name, command in rooms.launched(fault.file):
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        quiet = subprocess.DEVNULL
        running = subprocess.Popen(
            command, cwd=copy, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        try:
            code = running.wait(rooms.LAUNCHED_S)
        except subprocess.TimeoutExpired:
            _end(running.pid)
            running.wait()
            return f"time of {name}"
        if code != 0:
            return name
    return ""


def _report(verdicts: list[Verdict], at_least: float) -> int:
    left = [verdict.fault for verdict in verdicts if not verdict.caught_by]
    explained = [(fault, reason) for fault in left if (reason := known.reason(fault))]
    missed = [fault for fault in left if not known.reason(fault)]
    counted = len(verdicts) - len(explained)
    share = 100 * (counted - len(missed)) / max(counted, 1)
    for fault, reason in explained:
        print(f"changes nothing: {fault}  ({reason})")
    for fault in missed:
        print(f"not caught: {fault}")
    print(f"{counted - len(missed)} of {counted} faults caught: {share:.1f} % ({len(explained)} more change nothing)")
    return 0 if share >= at_least else 1


if __name__ == "__main__":
    import numba  # noqa: F401  for the forks
    import numpy  # noqa: F401
    import pytest  # noqa: F401

    sys.exit(main())
