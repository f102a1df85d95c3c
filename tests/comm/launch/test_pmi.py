import os
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from hpcai.comm.launch import pmi
from hpcai.comm.wires import library

STEP = {"PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
MAXES = b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024\n"


@pytest.fixture
def slurm(monkeypatch):
    """Slurm's side of the socket that a rank inherits."""
    near, far = socket.socketpair()
    monkeypatch.delenv("MPI_LOCALNRANKS", raising=False)
    for name, value in (STEP | {"PMI_FD": str(near.fileno())}).items():
        monkeypatch.setenv(name, value)
    with near, far:
        far.settimeout(10)
        yield far


def ask(line):
    """What a rank gets for a line that it sends, as MPI does: a write, and a read."""
    fd = int(os.environ["PMI_FD"])
    os.write(fd, line)
    return os.read(fd, 4096)


def answering(slurm, answers):
    """Have Slurm answer; returns the lines that it gets."""
    lines = []

    def serve():
        for answer in answers:
            lines.append(slurm.recv(4096))
            slurm.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return lines


def test_values_are_shorter_while_mpi_starts_and_nothing_else_is_changed(slurm):
    put = b"cmd=put kvsname=1.0 key=-allgather-1-0-seg-1/9 value=" + b"6F" * 440 + b"\n"
    lines = answering(slurm, [MAXES, b"cmd=put_result rc=0\n", MAXES])
    with pmi.short_lines():
        assert ask(b"cmd=get_maxes\n") == MAXES.replace(b"1024", b"900")
        assert ask(put) == b"cmd=put_result rc=0\n"
    assert ask(b"cmd=get_maxes\n") == MAXES
    assert lines == [b"cmd=get_maxes\n", put, b"cmd=get_maxes\n"]


def test_a_rank_that_slurm_leaves_hears_of_it(slurm):
    with pmi.short_lines():
        slurm.shutdown(socket.SHUT_RDWR)
        assert ask(b"cmd=get_maxes\n") == b""


@pytest.mark.parametrize("absent", ["PMI_FD", "SLURM_PROCID"])
def test_no_process_is_started_elsewhere(slurm, monkeypatch, absent):
    fd = os.environ["PMI_FD"]
    monkeypatch.delenv(absent)
    monkeypatch.setattr(pmi, "_start_relay", None)
    with pmi.short_lines():
        os.write(int(fd), b"cmd=get_maxes\n")
    assert slurm.recv(4096) == b"cmd=get_maxes\n"


def test_descriptors_are_as_they_were(slurm):
    before = sorted(os.listdir("/proc/self/fd"))
    with pmi.short_lines():
        pass
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_one_process_is_started_however_often_mpi_is_asked_for(slurm, monkeypatch):
    started, start = [], pmi._start_relay
    monkeypatch.setattr(pmi, "_start_relay", lambda *sockets: started.append(sockets) or start(*sockets))
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI="MPI", rc=SimpleNamespace(finalize=True)))
    monkeypatch.setenv("OMPI_MCA_osc", "^ucx")
    library.load.cache_clear()
    try:
        assert [library.load(), library.load()] == ["MPI", "MPI"]
    finally:
        library.load.cache_clear()
    assert len(started) == 1
