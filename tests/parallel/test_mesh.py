import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import UsageError
from hpcai.parallel.mesh import Sizes, mesh, sizes


@pytest.mark.parametrize(
    "text, ranks, wanted",
    [
        ("", 6, (6, 1, 1)),
        ("dp=2,tp=2,pp=2", 8, (2, 2, 2)),
        ("tp=2", 8, (4, 2, 1)),
        ("dp=2,pp=2", 8, (2, 2, 2)),
        ("pp=4, tp=1", 4, (1, 1, 4)),
        ("dp=1", 3, (1, 3, 1)),
    ],
)
def test_one_axis_may_be_left_out(text, ranks, wanted):
    assert sizes(text, ranks) == wanted


@pytest.mark.parametrize(
    "text, ranks, words",
    [
        ("dp=2,tp=2,pp=2", 6, "needs 8 ranks, but there are 6"),
        ("dp=3,tp=1,pp=2", 8, "--mesh dp=4,tp=1,pp=2 would fit, or mpirun -n 6"),
        ("dp=2,tp=4,pp=1", 6, "--mesh dp=2,tp=3,pp=1 would fit, or mpirun -n 8"),
        ("dp=2,tp=4,pp=4", 6, "use mpirun -n 32"),
        ("tp=3", 8, "needs a multiple of 3 ranks, but there are 8"),
        ("dp=0", 8, "whole numbers from 1"),
        ("dp=two", 8, "whole numbers from 1"),
        ("sp=2", 8, "wants dp=N,tp=N,pp=N"),
        ("dp=\u00b2", 8, "wants dp=N,tp=N,pp=N"),
        ("dp=\uff18", 8, "wants dp=N,tp=N,pp=N"),
        ("dp=08", 8, "wants dp=N,tp=N,pp=N"),
        ("dp=2,dp=2", 8, "each axis at most once"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_one_that_does(text, ranks, words):
    with pytest.raises(UsageError) as caught:
        sizes(text, ranks)
    assert words in str(caught.value)


def test_axes_are_the_ranks_that_differ_along_them_alone_with_tp_innermost():
    def program(comm):
        made = mesh(comm, Sizes(2, 3, 2))
        return [axis.allgather_object(comm.rank) for axis in (made.dp, made.tp, made.pp)]

    for rank, (dp, tp, pp) in enumerate(threads.run(12, program)):
        at = np.array(np.unravel_index(rank, (2, 2, 3)))  # pp, dp, tp
        for axis, group in ((1, dp), (2, tp), (0, pp)):
            places = np.array(np.unravel_index(group, (2, 2, 3))).T
            assert (places[:, axis] == np.arange((2, 2, 3)[axis])).all()
            others = [i for i in range(3) if i != axis]
            assert (places[:, others] == at[others]).all()
