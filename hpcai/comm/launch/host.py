"""Where a process is: the addresses of its host, and its state as the kernel reports it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import NamedTuple

SIOCGIFADDR = 0x8915
"""The ioctl request for the IPv4 address of a network interface (Linux)."""


class Process(NamedTuple):
    """A process as others may reach it. Its number is valid where `boot` and `pids` are the same; port 0: it answers nobody."""

    host: str
    boot: str
    pids: str
    pid: int
    started: str
    port: int
    addresses: tuple[str, ...]

    def seen_from(self, other: Process) -> list[str]:
        """Addresses at which `other` can try to reach this process: loopback on the same host, then those of a common network."""
        nets = {address.rsplit(".", 2)[0] for address in other.addresses}
        likely = sorted(self.addresses, key=lambda address: address.rsplit(".", 2)[0] not in nets)
        return ["127.0.0.1", *likely] if self.boot == other.boot else likely


def here(port: int) -> Process:
    """The record of this process, which answers on `port`."""
    return Process(
        socket.gethostname(), boot_id(), namespace(), os.getpid(), _stat(os.getpid())[1], port, tuple(ipv4_addresses())
    )


def process_state(there: Process) -> str:
    """The kernel's letter for the state of a process (R, S, D, T, Z...), "gone", or "" if it is not visible from here."""
    if not there.pids or (there.boot, there.pids) != (boot_id(), namespace()):
        return ""
    state, started = _stat(there.pid)
    return state if started == there.started else "gone"


def name(pid: int) -> str:
    """A process's name; empty if there is none."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def started(pid: int) -> str:
    """When a process was started, in clock ticks since boot as in /proc; empty if there is none."""
    return _stat(pid)[1]


def ipv4_addresses() -> list[str]:
    """The IPv4 addresses of this host's interfaces, without loopback; empty if they cannot be read."""
    found: list[str] = []
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # an interface without an address
                    request = struct.pack("256s", name.encode()[:15])
                    found.append(socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]))
    return [address for address in dict.fromkeys(found) if not address.startswith("127.")]


def boot_id() -> str:
    """An identifier that differs between machines, and between boots of one machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def namespace() -> str:
    """The namespace of this process's number; "" without /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """State and start time of a process; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
