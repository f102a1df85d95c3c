"""Where a process is, and by which addresses others find it; tests/comm/diagnosis/test_watch.py looks at the states of processes."""

import os
import socket
import subprocess

import pytest

from hpcai.comm.launch import host

HERE = host.Process("a", "boot", "pids", 1, "9", 5000, ("10.0.0.1", "192.168.5.1", "10.0.7.1"))


@pytest.mark.parametrize(
    "others, boot, addresses",
    [
        (("10.0.0.2",), "another", ["10.0.0.1", "10.0.7.1", "192.168.5.1"]),
        (("192.168.5.2",), "another", ["192.168.5.1", "10.0.0.1", "10.0.7.1"]),
        (("192.168.77.2", "172.16.0.1"), "another", ["192.168.5.1", "10.0.0.1", "10.0.7.1"]),
        (("172.16.0.1",), "another", ["10.0.0.1", "192.168.5.1", "10.0.7.1"]),
        ((), "another", ["10.0.0.1", "192.168.5.1", "10.0.7.1"]),
        (("192.168.5.2",), "boot", ["127.0.0.1", "192.168.5.1", "10.0.0.1", "10.0.7.1"]),
    ],
)
def test_the_likeliest_address_is_tried_first(others, boot, addresses):
    there = HERE._replace(addresses=others, boot=boot)
    assert HERE.seen_from(there) == addresses


def test_this_process():
    place = host.here(4321)
    assert (place.host, place.pid, place.port) == (socket.gethostname(), os.getpid(), 4321)
    assert place.boot == host.boot_id()
    assert place.pids == host.namespace()
    assert place.addresses == tuple(host.ipv4_addresses())
    if place.pids:
        assert place.started == host.started(os.getpid())
        assert host.process_state(place) in ("R", "S", "D")


def test_a_process_by_its_number():
    child = subprocess.Popen(["sleep", "60"])
    try:
        if not host.namespace():
            pytest.skip("there is no /proc")
        while host.name(child.pid) != "sleep":
            assert child.poll() is None
        assert host.started(child.pid).isdigit()
        assert int(host.started(child.pid)) >= int(host.started(os.getpid()))
    finally:
        child.kill()
        child.wait()
    assert host.name(child.pid) == ""
    assert host.started(child.pid) == ""
    assert host._stat(child.pid) == ("", "")


@pytest.mark.parametrize("odd", ["a b", "a) R 1 2 (b", "sleep"])
def test_names_may_be_of_anything(tmp_path, monkeypatch, odd):
    fields = " ".join(str(n) for n in range(4, 53))
    (tmp_path / "stat").write_text(f"77 ({odd}) T {fields}\n")
    inner = open
    monkeypatch.setattr(host, "open", lambda path, **how: inner(tmp_path / path.rsplit("/", 1)[1], **how), raising=False)
    assert host._stat(77) == ("T", "22")  # proc(5) counts them from 1


def test_without_proc_nothing_is_known(monkeypatch):
    def refuse(*arguments, **more):
        raise OSError("no such file")

    monkeypatch.setattr(host, "open", refuse, raising=False)
    monkeypatch.setattr(host.os, "readlink", refuse)
    assert host.boot_id() == socket.gethostname()
    assert host.namespace() == ""
    assert host.process_state(host.here(1)) == ""


def test_addresses_are_those_of_interfaces_but_the_loopbacks(monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    interfaces = {"lo": "127.0.0.1", "eth0": "10.0.0.1", "down": None, "eth0:1": "10.0.0.1", "x" * 15: "192.168.5.1"}
    monkeypatch.setattr(host.socket, "if_nameindex", lambda: list(enumerate(interfaces, 1)))

    def ioctl(fd, number, request):
        assert number == 0x8915
        assert len(request) == 256
        if (address := interfaces[request.rstrip(b"\0").decode()]) is None:
            raise OSError("no address")
        return bytes(20) + socket.inet_aton(address) + bytes(232)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert host.ipv4_addresses() == ["10.0.0.1", "192.168.5.1"]

    def refuse():
        raise OSError("forbidden")

    monkeypatch.setattr(host.socket, "if_nameindex", refuse)
    assert host.ipv4_addresses() == []
