"""`make dist`: the sdist and wheels as people get them, each tried in an empty environment.

    python -m tests.dist [--to FOLDER] [PYTHON ...]

makes the sdist of this tree and from it a wheel for each Python (3.11 to 3.14 as far as they run here), compares the lists of
files with what belongs there, installs each wheel into an environment of its own, and trains the digits there on 2 ranks, by
mpirun and by the batch script that hpcai.submit writes. With the first Python it also installs where there is no compiler.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
MADE = ("PKG-INFO", "setup.cfg", "hpcai.egg-info/")
"""What setuptools adds to an sdist."""
LEFT_OUT = (".ci/", ".gitignore")
SHARED = ("slurm", "containers")
STEPS = "12"


def main():
    """Make and try all; ends with the first complaint."""
    parser = argparse.ArgumentParser(prog="tests.dist")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="where the sdist and wheels go (dist)")
    parser.add_argument("pythons", nargs="*", help="interpreters (python3.11 to python3.14 that run)")
    chosen = parser.parse_args()
    pythons = chosen.pythons or [f"python{version}" for version in VERSIONS if runs(f"python{version}", version)]
    if not pythons:
        raise SystemExit(f"none of python{', python'.join(VERSIONS)} runs here")
    with tempfile.TemporaryDirectory(prefix="hpcai-dist-") as folder:
        place = Path(folder)
        sdist, tree = make_sdist(place, chosen.to, pythons[0])
        for i, python in enumerate(pythons):
            wheel = make_wheel(python, tree, place / f"wheel-{i}", chosen.to)
            try_wheel(python, wheel, place / f"environment-{i}")
        without_compiler(pythons[0], tree, place / "without")
    say(f"{sdist.name} and {len(pythons)} wheel{'s' * (len(pythons) > 1)} are in {chosen.to}")


def say(text):
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - BEGIN:5.1f} s  {text}", flush=True)


def run(*command, fails=False, **more):
    """Run a command; returns what it said. Ends this program with that if it fails, or if it should and does not."""
    words = [str(word) for word in command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HPCAI_", "PYTHON", "VIRTUAL_ENV", "SLURM_"))}
    environment |= more.pop("env", {})
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more)
    if bool(done.returncode) != fails:
        raise SystemExit(f"{done.stdout}\n{' '.join(words)} ended with {done.returncode}")
    return done.stdout


def runs(python, version):
    """Whether this interpreter is there, and is what its name says: others only redirect."""
    try:
        done = subprocess.run([python, "-c", "import sys, venv; print(sys.version)"], capture_output=True, text=True)
    except OSError:
        return False
    return done.stdout.startswith(f"{version}.")


def same(what, found, wanted):
    """End the program unless both lists have the same names."""
    more, fewer = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if more or fewer:
        raise SystemExit(f"{what} has what does not belong there: {more}; and lacks: {fewer}")


def tracked():
    """The files of the repository, new ones too."""
    return run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).split()


def environment(python, folder):
    """A new virtual environment; returns its Python."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def make_sdist(place, to, python):
    """Returns the sdist and where it is unpacked, which is all that wheels are made of."""
    tool = environment(python, place / "tool")
    run(tool, "-m", "pip", "install", "-q", "build")
    run(tool, "-m", "build", "--sdist", "--outdir", to, ROOT)
    sdist = max(to.glob("hpcai-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        names = [member.name.removeprefix(f"{top}/") for member in archive.getmembers() if member.isfile()]
    run("tar", "xzf", sdist, "-C", place)
    found = [name for name in names if not name.startswith(MADE)]
    same(sdist.name, found, [name for name in tracked() if not name.startswith(LEFT_OUT)])
    say(f"{sdist.name}: {len(names)} files, which are those of the repository")
    return sdist, place / top


def make_wheel(python, tree, folder, to):
    """A wheel of the unpacked sdist, kernels required, whose files are those that belong there."""
    tool = environment(python, folder)
    run(tool, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "made", tree, env={"HPCAI_KERNELS": "required"})
    made = next((folder / "made").glob("*.whl"))
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        kernels = [name for name in names if name.startswith("hpcai/_native.") and name.endswith(".so")]
        if len(kernels) != 1 or str(tree).encode() in archive.read(kernels[0]):
            raise SystemExit(f"{made.name} wants one file of kernels that names no folder of its build, has {kernels}")
    about, data = (next(name.split("/")[0] for name in names if f".{kind}/" in name) for kind in ("dist-info", "data"))
    wanted = {str(path.relative_to(tree)) for path in (tree / "hpcai").rglob("*") if path.is_file()}
    wanted |= {f"{data}/data/share/hpcai/{path.relative_to(tree)}" for name in SHARED for path in (tree / name).iterdir()}
    wanted |= {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt")}
    wanted |= {f"{about}/licenses/{name}" for name in ("LICENSE", "hpcai/data/digits.LICENSE")}
    same(made.name, names, wanted | set(kernels))
    made.replace(to / made.name)
    say(f"{made.name}: {len(names)} files")
    return to / made.name


def try_wheel(python, wheel, folder):
    """Install it where nothing is, and train: by mpirun, and by the batch script, in a folder with nothing in it."""
    tool = environment(python, folder)
    run(tool, "-m", "pip", "install", "-q", f"{wheel}[mpich]")
    here = folder / "here"
    here.mkdir()
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    said = run("mpirun", "-n", "2", "python", "-m", "hpcai.train", "--steps", STEPS, cwd=here, env=path, timeout=120)
    trained(said, "kernels are not built" not in said and (here / "runs/digits-mlp/summary.json").is_file())
    submit = (
        "python",
        "-m",
        "hpcai.submit",
        "--launcher",
        "mpirun",
        "--dry-run",
        "--",
        "--steps",
        STEPS,
        "--run-dir",
        "by-script",
    )
    (here / "train.sbatch").write_text(run(*submit, cwd=here, env=path))
    said = run("bash", "train.sbatch", cwd=here, env=path | {"HPCAI_LAUNCHER_OPTIONS": "-n 2"}, timeout=120)
    site = str(folder / "share/hpcai/slurm/site.sh")
    trained(said, (here / "by-script/summary.json").is_file() and site in (here / "train.sbatch").read_text())
    say(f"{wheel.name} trains on 2 ranks, by mpirun and by a batch script")


def trained(said, also):
    """End the program with what was said unless two ranks have trained."""
    if "ranks          2" not in said or not also:
        raise SystemExit(f"{said}\nthis was to train on 2 ranks with kernels")


def without_compiler(python, tree, folder):
    """Where nothing compiles: an installation with one line, or, where kernels are required, an end with one line."""
    tool, none = environment(python, folder), {"CXX": "/nonexistent/c++"}
    install = (tool, "-m", "pip", "install", "--no-deps", tree)
    said = run(*install, env=none | {"HPCAI_KERNELS": "required"}, fails=True)
    once(said, "hpcai: HPCAI_KERNELS=required, but the native kernels could not be built; install a C++17 compiler")
    said = run(*install, "-v", env=none)
    once(
        said,
        "hpcai: installing without native kernels: numpy does their work, slower. For the fast path install a C++17 compiler",
    )
    say("without a compiler it installs, and says so in one line; where kernels are required it ends with one")


def once(said, line):
    """End the program unless one line of what was said holds this one."""
    if sum(line in one for one in said.splitlines()) != 1:
        raise SystemExit(f"{said}\nwas to say once: {line}")


BEGIN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
