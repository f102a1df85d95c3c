"""What is handed on between a rank and Slurm, in this process; tests/comm/launch/test_pmi.py starts the relay as one of its own."""

import runpy
import socket
import sys

import pytest

from hpcai.comm.launch import relay

MAXES = b"cmd=maxes kvsname_max=256 vallen_max=1024\n"


@pytest.fixture
def sides():
    """Of a rank and of Slurm: the end that they hold, and the relay's."""
    (rank, for_rank), (slurm, for_slurm) = socket.socketpair(), socket.socketpair()
    with rank, for_rank, slurm, for_slurm:
        for one in (rank, slurm):
            one.settimeout(10)
        yield rank, for_rank, slurm, for_slurm


@pytest.mark.parametrize("started", [False, True])
def test_what_slurm_says_of_lengths_is_changed_and_nothing_else(sides, started, monkeypatch):
    rank, for_rank, slurm, for_slurm = sides
    slurm.sendall(MAXES + b"cmd=next\n")
    rank.sendall(MAXES)
    rank.shutdown(socket.SHUT_WR)
    if started:
        monkeypatch.setattr(sys, "argv", ["relay", str(for_rank.fileno()), str(for_slurm.fileno())])
        runpy.run_path(relay.__file__, run_name="__main__")
    else:
        relay.hand_on(for_rank.fileno(), for_slurm.fileno())
    assert rank.recv(4096) == MAXES.replace(b"1024", b"900") + b"cmd=next\n"
    assert slurm.recv(4096) == MAXES


def test_it_ends_when_slurm_does(sides):
    rank, for_rank, slurm, for_slurm = sides
    slurm.sendall(b"cmd=bye\n")
    slurm.shutdown(socket.SHUT_WR)
    relay.hand_on(for_rank.fileno(), for_slurm.fileno())
    assert rank.recv(4096) == b"cmd=bye\n"


def test_what_is_written_in_part_is_written_on(sides, monkeypatch):
    rank, for_rank, slurm, for_slurm = sides
    write = relay.os.write
    monkeypatch.setattr(relay.os, "write", lambda fd, said: write(fd, said[:3]))
    rank.sendall(b"cmd=put value=1\n")
    rank.shutdown(socket.SHUT_WR)
    relay.hand_on(for_rank.fileno(), for_slurm.fileno())
    assert slurm.recv(4096) == b"cmd=put value=1\n"
