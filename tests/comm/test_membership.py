"""What those that live keep of a step that failed."""

import contextlib
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import job
from hpcai.comm.membership import Membership
from hpcai.errors import RankFailed
from hpcai.train import loop


class Waited(np.ndarray):
    """An array that tells of its end."""


def test_arrays_of_waits_that_failed_live_until_a_step_is_done(monkeypatch):
    """The rest of a long message may still arrive in them, after the recovery too."""
    seen, steps = {}, []

    def between(run):
        if run.progress.step == 0 and "array" not in seen:
            array = np.zeros(1 << 20, np.uint8).view(Waited)
            seen["array"] = weakref.ref(array)
            raise RankFailed("as if")

    def step(run):
        steps.append(seen["array"]() is not None)
        run.progress.step += 1

    monkeypatch.setattr(loop, "between", between)
    monkeypatch.setattr(loop, "_step", step)
    monkeypatch.setattr(loop, "_finish", lambda run: SimpleNamespace(_replace=lambda comm: {}))
    monkeypatch.setattr(loop.recover, "recover", lambda run: None)
    monkeypatch.setattr(loop.stall, "outlive", lambda: None)
    monkeypatch.setattr(loop.signals, "cast_into", lambda *_: contextlib.nullcontext())
    run = SimpleNamespace(
        in_script=False,
        options=SimpleNamespace(elastic="shrink", signals=(), patience=None),
        reserve=Membership(None, 2),
        reporter=SimpleNamespace(close=lambda: None),
        replica=SimpleNamespace(votes=None),
        comm=SimpleNamespace(rank=0),
        progress=SimpleNamespace(step=0),
        total=2,
    )
    assert loop._through(run) == {}
    assert steps == [True, False]


def test_who_cannot_part_from_ranks_that_came_later_votes_so():
    """Those that could would wait for it in the vote for ever."""
    votes, revoked = [], []

    def split(color):
        raise RankFailed("as if")

    wire = SimpleNamespace(revoke=lambda: revoked.append(True), all_agree=lambda fine: votes.append(fine) or fine)
    with pytest.raises(RankFailed, match="while the ranks that came later were separated"):
        job.part(SimpleNamespace(split=split, wire=wire, size=3), False)
    assert votes == [False]
    assert revoked == [True]
