import pytest

from hpcai.compress import quantize, random_k, top_k
from hpcai.reduce.combine import by_gather, by_scatter, by_sum, error_feedback, exact
from hpcai.reduce.integer_sum import integer_sum
from hpcai.reduce.named import by_name
from hpcai.reduce.reproducible import reproducible


@pytest.mark.parametrize(
    "name, ranks, like",
    [
        ("none", 4, exact()),
        ("reproducible", 4, reproducible()),
        ("int8sum", 4, integer_sum()),
        ("int8", 1, by_gather(quantize.int8())),
        ("int8", 2, by_gather(quantize.int8())),
        ("int8", 3, by_scatter(quantize.int8())),
        ("topk:0.1", 2, by_gather(top_k.top_k(0.1))),
        ("topk:0.1", 8, by_gather(top_k.top_k(0.1))),
        ("randomk:0.1", 2, by_sum(random_k.random_k(0.1))),
        ("randomk:0.1", 8, by_sum(random_k.random_k(0.1))),
    ],
)
def test_a_name_is_the_reducer_that_is_cheapest_for_so_many_ranks(name, ranks, like):
    found = by_name(name, ranks, feedback=False)
    assert found.name == like.name
    assert found.reduce.__qualname__ == like.reduce.__qualname__
    if name not in ("none", "reproducible"):
        assert by_name(name, ranks).name == error_feedback(like).name
