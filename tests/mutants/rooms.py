"""Where faults are planted, and which tests look after each place."""

from __future__ import annotations

import sys
from pathlib import Path

FILES = {
    "comm": ["hpcai/comm/**/*.py"],
    "reduce": ["hpcai/reduce/*.py"],
    "compress": ["hpcai/compress/*.py"],
    "optim": ["hpcai/optim/*.py"],
    "parallel": ["hpcai/parallel/*.py"],
    "data": ["hpcai/data/*.py"],
    "checkpoints": [
        "hpcai/checkpoint/*.py",
        "hpcai/train/state/arrays.py",
        "hpcai/train/state/undo.py",
        *(f"hpcai/train/{name}.py" for name in ("history", "lock", "resume", "saving", "votes")),
    ],
    "recovery": [
        "hpcai/comm/membership.py",
        "hpcai/train/elastic/*.py",
        "hpcai/train/join.py",
        "hpcai/train/state/transfer.py",
    ],
}
"""Room -> patterns of its files."""

STARTING = (
    "tests/train/elastic/test_recover.py",
    "tests/train/elastic/test_places.py",
    "tests/train/elastic/test_frozen.py",
    "tests/train/test_script.py",
    "tests/comm/diagnosis/test_stall.py",
    "tests/train/test_command.py",
    "tests/comm/test_two_hosts.py",
    "tests/comm/test_misuse.py",
)
_WITHOUT_LAUNCHER = [f"--ignore={file}" for file in STARTING]
_DOCTESTS = "tests/test_house.py"
_TRAIN = ["tests/train", "tests/checkpoint", *_WITHOUT_LAUNCHER, _DOCTESTS]
TESTS = {
    "comm": ["tests/comm", *_WITHOUT_LAUNCHER, _DOCTESTS],
    "reduce": ["tests/reduce", _DOCTESTS],
    "compress": ["tests/compress", "tests/reduce", _DOCTESTS],
    "optim": ["tests/optim", _DOCTESTS],
    "parallel": ["tests/parallel", *_TRAIN],
    "data": ["tests/data", *_TRAIN],
    "checkpoints": _TRAIN,
    "recovery": _TRAIN,
}
"""Room -> its tests of one process."""

LAUNCHED_S = 400
_RANKS = ("tests under mpirun", ["mpirun", "-n", "3", sys.executable, "-m", "pytest", "-x", "-q"])
_ELASTIC, _PLACES, _FROZEN = (
    (f"tests of {what}", [sys.executable, "-m", "pytest", "-x", "-q", f"tests/train/elastic/test_{what}.py"])
    for what in ("recover", "places", "frozen")
)
_STALL = ("tests of stalls", [sys.executable, "-m", "pytest", "-x", "-q", "tests/comm/diagnosis/test_stall.py"])
_COMMAND = ("tests of the command", [sys.executable, "-m", "pytest", "-x", "-q", "tests/train/test_command.py"])
_BY_FILE = {
    "hpcai/comm/diagnosis/stall.py": [_STALL],
    "hpcai/comm/diagnosis/watch.py": [_STALL],
    "hpcai/comm/diagnosis/stacks.py": [_STALL],
    "hpcai/comm/diagnosis/findings.py": [_STALL],
    "hpcai/comm/wires/ulfm.py": [_ELASTIC, _PLACES],
    "hpcai/comm/job.py": [_COMMAND, _ELASTIC, _FROZEN],
    "hpcai/comm/launch/launcher.py": [_COMMAND],
}


def files(root: Path, room: str) -> list[str]:
    """The room's files below root."""
    return sorted(str(path.relative_to(root)) for pattern in FILES[room] for path in root.glob(pattern))


def launched(file: str) -> list[tuple[str, list[str]]]:
    """The commands that start tests of this file under a launcher, with a name for each."""
    if any(Path(file).match(pattern) for pattern in FILES["recovery"]):
        return [_ELASTIC, _PLACES, _FROZEN]
    ranks = [_RANKS] if file.startswith(("hpcai/comm/", "hpcai/parallel/")) else []
    return [*ranks, *_BY_FILE.get(file, [])]
