"""The limit between the two ways of ordinary arrays on a node: where it is from, and that it is the best one."""

import pytest

from hpcai.comm import threads, tuned
from hpcai.comm.wires import staging
from hpcai.ops import native


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCAI_CACHE", str(tmp_path))
    monkeypatch.delenv("HPCAI_STAGED_BYTES", raising=False)
    return tmp_path


@pytest.mark.parametrize("vendor, guessed", [("AuthenticAMD", 8 << 20), ("GenuineIntel", 256 << 10), ("", staging.OTHERS)])
def test_it_is_the_vendors_then_what_was_tuned_then_what_is_asked_for(cache, monkeypatch, vendor, guessed):
    monkeypatch.setattr(tuned, "vendor", lambda: vendor)
    assert staging.limit(2) == (guessed, "untuned")
    staging.save(12345, 2)
    staging.save(0, 3)
    assert staging.limit(2) == (12345, "tuned")
    assert staging.limit(3) == (0, "tuned")
    assert staging.limit(4) == (min(guessed, 256 << 10), "untuned")
    monkeypatch.setenv("HPCAI_STAGED_BYTES", "0")
    assert staging.limit(2) == (0, "$HPCAI_STAGED_BYTES")


@pytest.mark.parametrize("entry", ['{"staged_bytes": "8"}', '{"staged_bytes": -1}', '{"staged_bytes": true}', "{}", "3", "["])
def test_a_cache_that_makes_no_sense_is_as_good_as_none(cache, entry):
    (cache / "node.json").write_text(f'{{"{staging.key(2)}": {entry}}}')
    assert staging.limit(2)[1] == "untuned"
    staging.save(7, 2)
    assert staging.limit(2) == (7, "tuned")


@pytest.mark.parametrize(
    "staged, reached, limit",
    [
        ([1, 2, 3], [2, 3, 4], 30),
        ([2, 3, 4], [1, 2, 3], 0),
        ([1, 2, 5], [2, 3, 4], 20),
        ([1, 2.1, 3, 9], [2, 2, 4, 5], 30),
        ([1, 9, 2.9, 9], [2, 2, 3, 5], 10),
    ],
)
def test_the_best_limit_costs_least_in_all(staged, reached, limit):
    assert staging.best([10, 20, 30, 40][: len(staged)], staged, reached) == limit


@pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")
def test_ranks_take_rank_0s(monkeypatch):
    limits = iter([111, 222, 333])
    monkeypatch.setattr(staging, "limit", lambda ranks: (next(limits), "tuned"))
    assert threads.run(3, lambda comm: comm.staged_bytes) == [111] * 3


@pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")
def test_a_limit_for_a_while(monkeypatch):
    monkeypatch.setenv("HPCAI_STAGED_BYTES", "5")

    def program(comm):
        with comm.staged_up_to(99):
            inside = comm.staged_bytes
        return inside, comm.staged_bytes

    assert threads.run(2, program) == [(99, 5)] * 2
    with pytest.raises(ValueError, match="for ranks that share memory"):
        threads.run(1, lambda comm: comm.staged_up_to(3).__enter__())
