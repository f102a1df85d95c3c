"""The check of bench.rivals, by which a side that computes something else is left out."""

import pytest

from bench import rival_ranks, rivals
from hpcai.comm import threads


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("collective", rivals.COLLECTIVES)
def test_it_lets_right_results_through_and_no_wrong_ones(collective, size, monkeypatch):
    monkeypatch.setattr(rival_ranks, "CHECKED_AT_ONCE", 7)

    def program(comm):
        library = rival_ranks.hpcai_library(comm)
        said = []
        for kind in rivals.KINDS:
            x = library.array(10 * size, kind)
            call, result = library.call(collective, x)
            said.append(rival_ranks.checked(library, collective, x, call, result))

            def spoilt(call=call, result=result):
                call()
                result[-1] += 1

            said.append(rival_ranks.checked(library, collective, x, spoilt, result))
            said.append(rival_ranks.checked(library, collective, x, lambda: None, result))
        return said

    wrong = [f"{collective} of {40 * size} bytes is wrong on rank {rank}" for rank in range(size)]
    for rank, said in enumerate(threads.run(size, program)):
        idle = "ok" if collective == "broadcast" and rank == 0 else wrong[rank]
        assert said == ["ok", wrong[rank], idle] * 2
