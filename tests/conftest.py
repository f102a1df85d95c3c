"""pytest under a launcher: `mpirun -n 4 pytest` runs the tests marked `mpi`, on all ranks together.

pytest-mpi supplies the markers; here they are switched on by themselves. Rank 0 reports, the others only when they fail. One
rank's failure ends the job, since the others would wait for it in their next collective; the time limit of pytest-timeout does
the same to a test that is stuck.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hpcai.comm.diagnosis import stall
from hpcai.comm.launch.launcher import launch
from tests import owned, share

LAUNCHED = launch()
UNDER_LAUNCHER = bool(LAUNCHED.name)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not UNDER_LAUNCHER:
        return
    config.option.with_mpi = True
    if config.option.basetemp is None:
        config.option.basetemp = str(owned.folder("rank", Path(config.rootpath) / ".pytest_cache") / "tmp")
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if LAUNCHED.rank > 0 and reporter is not None:
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    marks = config.getoption("-m")
    mine = [item for item in items if not UNDER_LAUNCHER or "mpi" in item.keywords]
    mine = [item for item in mine if "big" not in item.keywords or "big" in marks]
    mine = share.drawn(mine)
    if len(mine) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if UNDER_LAUNCHER and report.failed:
        text = f"\n[rank {LAUNCHED.rank}] {item.nodeid} failed in {report.when}\n{report.longreprtext}\n"
        os.write(2, text.encode())
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)


@pytest.fixture
def comm():
    """All ranks of the launcher."""
    import hpcai

    return hpcai.init()


@pytest.fixture(autouse=True)
def limits_end_with_their_test(monkeypatch):
    """comm.set_timeout holds for all communicators of a process that are made later."""
    monkeypatch.setattr(stall.waits, "limit_s", stall.waits.limit_s)


@pytest.fixture
def clean_environment(monkeypatch):
    """No hpcai options from the environment."""
    for name in [name for name in os.environ if name.startswith("HPCAI_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def python():
    return sys.executable
