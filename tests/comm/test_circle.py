"""Ranks that wait in shared memory move their messages meanwhile, since a rank of another node may wait for one."""

from pathlib import Path

import pytest

from hpcai.ops import native
from tests.command import needs_mpirun, run

OVER_TCP = {
    "HPCAI_RANKS_PER_NODE": "2",
    "HPCAI_TIMEOUT_S": "20",
    "MPIR_CVAR_NOLOCAL": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
}


@needs_mpirun
@pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")
def test_a_circle_of_waits_through_shared_memory_and_messages_ends():
    code, out, err = run(4, program=(str(Path(__file__).with_name("circle.py")),), limit=60, **OVER_TCP)
    assert code == 0, err
    assert "through" in out
