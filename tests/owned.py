"""What tests and tools make outside their process: its name says whose it is, so that the next one removes what a killed one left.

A process is known by the machine's boot and its space of process numbers, its number and its start. What belongs to a process of
another machine, as in a shared folder, is left alone.
"""

import atexit
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from hpcai.comm.launch import host


def folder(kind, below=None):
    """A new folder for this process, which removes it at its end; what dead ones left of this kind goes now."""
    below = Path(below or tempfile.gettempdir())
    below.mkdir(parents=True, exist_ok=True)
    for old in below.glob(f"hpcai-{kind}-*"):
        if is_left(old.name):
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"hpcai-{kind}-{_owner()}-", dir=below))
    atexit.register(_remove, made, os.getpid())
    return made


@contextlib.contextmanager
def disk(below, size):
    """A small file system on a folder there; None where mounting is not allowed."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if is_left(Path(line.split()[1]).name):
            subprocess.run(["umount", "-l", line.split()[1]], capture_output=True)
    made = folder("disk", below)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", made], capture_output=True).returncode:
        yield None
        return
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", made], check=True)


def is_left(name):
    """Whether that is the name of something here whose owner has ended."""
    found = re.fullmatch(r"hpcai-\w+-(\w+)-(\d+)-(\d+)-\w+", name)
    return bool(found) and found[1] == _here() and host.started(int(found[2])) != found[3]


def _owner():
    return f"{_here()}-{os.getpid()}-{host.started(os.getpid())}"


def _here():
    return f"{zlib.crc32((host.boot_id() + host.namespace()).encode()):08x}"


def _remove(made, owner):
    if os.getpid() == owner:  # not a forked child
        shutil.rmtree(made, ignore_errors=True)
