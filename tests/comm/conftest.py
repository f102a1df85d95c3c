"""What tests of a job's start and end share."""

import pytest

from hpcai.comm import limits
from hpcai.comm.wires import ulfm
from tests.comm.ending import Ended


@pytest.fixture
def ends(monkeypatch):
    """What ends this process, in order; os._exit raises Ended."""
    done = []

    def leave(code):
        done.append(("exit", code))
        raise Ended(code)

    monkeypatch.setattr(limits.os, "_exit", leave)
    monkeypatch.setattr(limits, "last_resort", lambda: done.append("last resort"))
    monkeypatch.setattr(limits.watch, "end_frozen", lambda what: done.append(("end frozen", what)))
    monkeypatch.setenv(ulfm.ENABLED, "0")
    return done
