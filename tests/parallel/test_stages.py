import itertools

import numpy as np
import pytest

from hpcai.errors import UsageError
from hpcai.nn import gpt, models
from hpcai.parallel import stages


@pytest.mark.parametrize("seed", range(20))
def test_the_dearest_stage_is_as_cheap_as_can_be(seed):
    rng = np.random.default_rng(seed)
    costs, count = rng.random(rng.integers(1, 9)), int(rng.integers(1, 5))
    if len(costs) < count:
        with pytest.raises(UsageError, match="too few for"):
            stages.cut(costs, count)
        return
    found = stages.cut(costs, count)
    assert [i for span in found for i in range(span.start, span.stop)] == list(range(len(costs)))
    assert all(span.start < span.stop for span in found)
    ways = itertools.combinations(range(1, len(costs)), count - 1)
    best = min(max(costs[a:b].sum() for a, b in itertools.pairwise([0, *way, len(costs)])) for way in ways)
    assert max(costs[span].sum() for span in found) == pytest.approx(best)


def test_groups_keep_residual_branches_and_the_head_together():
    model = gpt.gpt(gpt.Shape(layers=2, width=8, heads=2, context=4, tokens=8))
    found = [[layer.name for layer in model.layers[span]] for span in stages.groups(model)]
    assert [names[0] for names in found] == [
        "embedding",
        "block1/attention/fork",
        "block1/hidden/fork",
        "block2/attention/fork",
        "block2/hidden/fork",
        "head/norm",
    ]
    assert found[1][-1] == "block1/attention/join"
    mlp = models.mlp((3,), 2, models.default_loss(2), (4, 4))
    assert [[layer.name for layer in mlp.layers[span]] for span in stages.groups(mlp)] == [
        ["flatten", "linear1", "relu1"],
        ["linear2", "relu2"],
        ["linear3"],
    ]


def test_measuring_gives_the_shapes_between_groups():
    model = gpt.gpt(gpt.Shape(layers=1, width=8, heads=2, context=4, tokens=16))
    found = stages.measure(model, np.zeros((3, 4), np.int64), np.dtype(np.float32))
    assert [group.leaving for group in found] == [(4, 8), (4, 8), (4, 8), (4, 16)]
    assert all(group.seconds > 0 for group in found)
