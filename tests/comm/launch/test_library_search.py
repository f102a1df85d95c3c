"""A machine without an MPI library that mpi4py finds: one line says what to do there."""

import shutil
import subprocess
import sys

import pytest

from hpcai.comm.launch import library_search

NOTHING = "cannot load MPI library\n/venv/lib/libmpi.so: cannot open shared object file: No such file or directory\n" + (
    "libmpi.so.12: cannot open shared object file: No such file or directory"
)


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
    monkeypatch.setattr(library_search, "_loadable", lambda name: "")
    for name in library_search.MODULES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_there():
    assert library_search.absent(NOTHING).startswith("no MPI library was found (libmpi.so, ")


@pytest.mark.parametrize("name", library_search.MODULES)
def test_a_site_has_modules(monkeypatch, name):
    monkeypatch.setenv(name, "/modules")
    assert library_search.absent(NOTHING).startswith("no MPI library was found: `module load` your site's MPI first")


def test_a_library_lacks_another():
    said = f"{NOTHING}\nlibucp.so.0: cannot open shared object file: No such file or directory"
    assert library_search.absent(said).startswith("the MPI library could not be loaded: libucp.so.0: cannot open shared object")


def test_debians_mpich_is_linked_to(monkeypatch):
    monkeypatch.setattr(library_search, "_loadable", lambda name: f"/usr/lib/{name}.1.2")
    said = library_search.absent(NOTHING)
    assert f"`ln -s /usr/lib/libmpich.so.12.1.2 {sys.prefix}/lib/libmpi.so.12`" in said
    assert f"LD_LIBRARY_PATH={sys.prefix}/lib`" in said


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no compiler")
def test_a_library_is_found_where_programs_look(tmp_path):
    subprocess.run(["cc", "-shared", "-o", tmp_path / "libmpich.so.12", "-x", "c", "/dev/null"], check=True)
    program = "from hpcai.comm.launch import library_search; print(library_search.absent('nothing'))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"MPICH is here as {tmp_path}/libmpich.so.12, ")
    assert done.stdout.count("\n") == 1
