"""How an MPI request is waited for, by a clock and a core of the test's own."""

from types import SimpleNamespace

import pytest

from hpcai.comm.wires import requests, ulfm
from hpcai.comm.wires.requests import BESIDE_NAP_S, NAP_S, POLLS, YIELD_S, Request
from hpcai.errors import RankFailed


class Failure(Exception):
    pass


class Wire:
    """What a request asks of its wire."""

    def __init__(self):
        self.MPI = SimpleNamespace(Exception=Failure)
        self.rank, self.expected, self.timeout_s, self.waiting_since, self.waited_s = 3, {}, 10.0, 0.0, 0.0
        self.kept, self.advice = [], ""

    def keep(self, request, key):
        self.kept.append((request, key))

    def missing(self):
        return [1]


class Late:
    """An MPI request that is complete at its test of this number, counted from 0."""

    def __init__(self, at):
        self.at, self.tests = at, 0

    def Test(self):
        self.tests += 1
        return self.tests > self.at


@pytest.fixture
def did(monkeypatch):
    """What a wait does beside its tests, each with its effect on the clock."""
    done, clock = [], SimpleNamespace(s=100.0)

    def sleep(s):
        done.append(s)
        clock.s += s

    def sched_yield():
        done.append("yield")
        clock.s += 0.3 * YIELD_S

    monkeypatch.setattr(requests, "time", SimpleNamespace(monotonic=lambda: clock.s, sleep=sleep))
    monkeypatch.setattr(requests, "os", SimpleNamespace(sched_yield=sched_yield))
    monkeypatch.setattr(requests.background, "computing", False)
    monkeypatch.setattr(requests.cores, "spare_core", lambda: False)
    return done


def test_what_is_soon_complete_is_polled_for(did):
    for at in (0, 1, POLLS - 1):
        wire, request = Wire(), Late(at)
        Request(request, wire, "a send", ("key", 1)).wait()
        assert request.tests == at + 1
        assert wire.kept == [(request, ("key", 1))]
        assert wire.waited_s == wire.waiting_since == 0
    assert did == []


def test_then_the_core_is_yielded_for_a_millisecond_and_then_slept_on(did):
    Request(Late(POLLS + 7), Wire(), "a send").wait()
    assert did == ["yield"] * 4 + [NAP_S] * 3
    assert YIELD_S == 0.001
    assert NAP_S == 0.0001


@pytest.mark.parametrize("spare", [False, True])
def test_beside_computation_it_naps_from_the_start_longer_each_time_unless_there_is_a_core_for_both(did, monkeypatch, spare):
    monkeypatch.setattr(requests.background, "computing", True)
    monkeypatch.setattr(requests.cores, "spare_core", lambda: spare)
    late = Late(POLLS + 8 if spare else 8)
    Request(late, Wire(), "a send").wait()
    naps = [BESIDE_NAP_S / 16, BESIDE_NAP_S / 8, BESIDE_NAP_S / 4, BESIDE_NAP_S / 2, *[BESIDE_NAP_S] * 3]
    assert did == (["yield"] * 4 + [NAP_S] * 4 if spare else naps)
    assert BESIDE_NAP_S == 0.0004


@pytest.mark.parametrize("what, counts", [(requests.AGREEMENT, True), ("a send", False)])
def test_only_waits_for_others_to_come_are_counted(did, what, counts):
    wire, since = Wire(), []
    wire.waited_s = 5.0

    class Seen(Late):
        def Test(self):
            since.append(wire.waiting_since)
            return super().Test()

    Request(Seen(POLLS + 5), wire, what).wait()
    assert wire.waited_s == pytest.approx(5.0 + counts * (1.2 * YIELD_S + NAP_S))
    assert set(since[:POLLS]) == {0.0}
    assert set(since[POLLS:]) == {100.0}
    assert wire.waiting_since == 0


@pytest.mark.parametrize("beside", [False, True])
def test_after_the_time_limit_it_is_an_error(did, monkeypatch, beside):
    monkeypatch.setattr(requests.background, "computing", beside)
    wire, asked = Wire(), []
    wire.timeout_s = 0.004

    def error(*arguments):
        asked.append(arguments)
        return ZeroDivisionError("in vain")

    monkeypatch.setattr(requests.stall, "error", error)
    with pytest.raises(ZeroDivisionError):
        Request(Late(10**6), wire, "a send").wait()
    assert asked == [(wire, "a send", wire.missing)]
    assert 0.004 < sum(0.3 * YIELD_S if one == "yield" else one for one in did) < 0.006
    assert wire.waiting_since == 0


def test_while_it_waits_messages_that_are_expected_go_on(did, monkeypatch):
    begun = []
    monkeypatch.setattr(requests, "begin", begun.append)
    wire = Wire()
    wire.expected = {"place": ["ahead"]}
    Request(Late(POLLS + 2), wire, "a send").wait()
    assert begun == [wire.expected] * (POLLS + 3)


def test_a_complete_request_is_put_by_once_and_tested_no_more():
    wire, request = Wire(), Late(1)
    one = Request(request, wire, "a send", ("key",))
    assert [one.done() for _ in range(4)] == [False, True, True, True]
    assert request.tests == 2
    assert wire.kept == [(request, ("key",))]
    Request(Late(0), wire, "a send").wait()
    assert len(wire.kept) == 1


@pytest.mark.parametrize("failed", [False, True])
def test_errors_of_failed_ranks_are_told_from_others(monkeypatch, failed):
    def Test():
        raise Failure("from MPI")

    monkeypatch.setattr(ulfm, "is_failure", lambda MPI, error: failed)
    with pytest.raises(RankFailed if failed else Failure, match="rank 3 waited in a send" if failed else "from MPI"):
        Request(SimpleNamespace(Test=Test), Wire(), "a send").done()
