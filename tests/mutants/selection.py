"""Which tests execute a line, and how long each takes: learnt once by running them under coverage.py.

A test is a function with all its cases: with one context for each of some 4,000 cases learning took hours and gigabytes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

MOST_S = 15.0
"""Of a test that takes longer some cases run."""

PLUGIN = "tests.mutants.selection"
TO = "MUTANTS_COVERAGE"


class Coverage(NamedTuple):
    """lines: file -> line -> the tests that execute it ("" for its import); seconds: test -> how long it takes."""

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]

    def tests(self, file: str, line: int, budget_s: float) -> list[str]:
        """The tests of this line, those of the file's own room first, then quick ones first, as many as fit into the budget.

        Of a line that only an import executes these are all tests of the file.
        """
        lines = self.lines.get(file, {})
        found = {test for test in lines.get(line, []) if test}
        if not found and line in lines:
            found = {test for tests in lines.values() for test in tests if test}
        room = str(Path("tests", *Path(file).parts[1:-1], f"test_{Path(file).stem}"))
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda test: (not test.startswith(room), self.seconds.get(test, 1.0))):
            total += min(self.seconds.get(test, 1.0), MOST_S)
            if total <= budget_s:
                chosen.append(test)
        return chosen

    def cases(self, test: str, all_of_it: list[Any]) -> list[Any]:
        """The cases of a test: all, or of one that takes long as many as may, drawn at random but always alike."""
        many = max(1, int(len(all_of_it) * min(1.0, MOST_S / self.seconds.get(test, 1.0))))
        drawn = sorted(random.Random(test).sample(range(len(all_of_it)), many))
        return [all_of_it[i] for i in drawn]


def function(nodeid: str) -> str:
    """The test function of a case."""
    return nodeid.split("[")[0]


def learn(copies: list[Path], tests: list[str], to: Path) -> Coverage:
    """Run the tests once, a share of the files in each copy of the repository, and keep what they execute in the file `to`; if it is
    there already, read it.
    """
    if not to.exists():
        files = _files(copies[0], tests)
        parts = [to.with_suffix(f".{i}") for i in range(len(copies))]
        with ThreadPoolExecutor(len(copies)) as pool:
            list(pool.map(_learn, copies, (files[i :: len(copies)] for i in range(len(copies))), parts))
        to.write_text(json.dumps([json.loads(part.read_text()) for part in parts]))
    lines: dict[str, dict[int, list[str]]] = {}
    seconds: dict[str, float] = {}
    for part in json.loads(to.read_text()):
        seconds |= part["seconds"]
        failed = set(part["failed"])
        if failed:
            print(f"not used, as they fail without a fault: {', '.join(sorted(failed))}", flush=True)
        for file, rows in part["lines"].items():
            for line, places in rows.items():
                lines.setdefault(file, {}).setdefault(int(line), []).extend(
                    test for i in places if (test := part["tests"][i]) not in failed
                )
    return Coverage(lines, seconds)


def _files(root: Path, tests: list[str]) -> list[str]:
    """The files of tests, the largest first, which folders and --ignore options name."""
    ignored = {test.removeprefix("--ignore=") for test in tests if test.startswith("--ignore=")}
    named = [root / test for test in tests if not test.startswith("--ignore=")]
    found = {file for path in named for file in (path.rglob("test_*.py") if path.is_dir() else [path])}
    files = sorted(found, key=lambda file: (-file.stat().st_size, file))
    return [name for file in files if (name := str(file.relative_to(root))) not in ignored]


def _learn(root: Path, tests: list[str], to: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", "--timeout", "300", *tests]
    done = subprocess.run(command, cwd=root, env={**os.environ, TO: str(to), "PYTHONPATH": str(root)})
    if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"the tests could not be learnt from: pytest ended with {done.returncode}")


# As a plugin of pytest, in the process that learns.

_watch = None
_seconds: dict[str, float] = defaultdict(float)
_failed: set[str] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    """Before those, which import what is to be watched."""
    global _watch
    if TO in os.environ:
        import coverage

        _watch = coverage.Coverage(data_file=None, source=["hpcai"], config_file=False)
        _watch.start()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    if _watch is not None:
        _watch.switch_context(function(item.nodeid))
    yield
    if _watch is not None:
        _watch.switch_context("")


def pytest_runtest_logreport(report):
    _seconds[function(report.nodeid)] += report.duration
    if report.failed:
        _failed.add(function(report.nodeid))


def pytest_sessionfinish():
    if _watch is None:
        return
    _watch.stop()
    data, root = _watch.get_data(), Path.cwd()
    names = sorted(data.measured_contexts())
    places = {name: i for i, name in enumerate(names)}
    lines = {
        str(Path(file).relative_to(root)): {
            line: [places[name] for name in tests] for line, tests in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    found = {"tests": names, "lines": lines, "seconds": _seconds, "failed": sorted(_failed)}
    Path(os.environ[TO]).write_text(json.dumps(found))
