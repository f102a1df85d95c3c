"""Which tests execute a line, and how long each takes: learnt once by running them under coverage.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

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
        if not found and "" in lines.get(line, []):
            found = {test for tests in lines.values() for test in tests if test}
        room = f"tests/{file.split('/')[1]}/test_{Path(file).stem}"
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda test: (not test.startswith(room), self.seconds.get(test, 1.0))):
            total += self.seconds.get(test, 1.0)
            if total <= budget_s:
                chosen.append(test)
        return chosen


def learn(root: Path, tests: list[str], to: Path) -> Coverage:
    """Run the tests once and keep what they execute in the file `to`; if it is there already, read it."""
    if not to.exists():
        command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", "--timeout", "300", *tests]
        subprocess.run(command, cwd=root, env={**os.environ, TO: str(to), "PYTHONPATH": str(root)}, check=True)
    found = json.loads(to.read_text())
    return Coverage(
        {file: {int(line): ids for line, ids in rows.items()} for file, rows in found["lines"].items()}, found["seconds"]
    )


# As a plugin of pytest, in the process that learns.

_watch = None
_seconds: dict[str, float] = defaultdict(float)


def pytest_configure(config):
    global _watch
    if TO in os.environ:
        import coverage

        _watch = coverage.Coverage(data_file=None, source=["hpcai"], config_file=False)
        _watch.start()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    if _watch is not None:
        _watch.switch_context(item.nodeid)
    yield
    if _watch is not None:
        _watch.switch_context("")


def pytest_runtest_logreport(report):
    _seconds[report.nodeid] += report.duration


def pytest_sessionfinish():
    if _watch is None:
        return
    _watch.stop()
    data, root = _watch.get_data(), Path.cwd()
    lines = {str(Path(file).relative_to(root)): data.contexts_by_lineno(file) for file in data.measured_files()}
    Path(os.environ[TO]).write_text(json.dumps({"lines": lines, "seconds": _seconds}))
