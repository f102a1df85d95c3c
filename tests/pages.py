"""README's and the docs' pages: their blocks of code, and how a page is run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.command import environment

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MARKS = ("not run", "file")


class Block(NamedTuple):
    """Code of a page. mark: what a comment above it says, "not run: why" or "file: its name"."""

    language: str
    text: str
    mark: str
    value: str


_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[a-z ]+): (?P<value>[^\n]+) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


def pages():
    """README and all pages with code that runs."""
    found = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [path for path in found if path.exists()]


def blocks(path):
    """The Python and shell blocks of a page, in order."""
    found = [
        Block(one["language"], one["text"], one["mark"] or "", one["value"] or "") for one in _BLOCK.finditer(path.read_text())
    ]
    return [one for one in found if one.language in ("python", "shell")]


def programs(path):
    """What is to be run of a page: Python blocks that follow each other are one program, and so is each shell block.

    Files that a page shows are programs of their own kind: ("file", its name and text).
    """
    made = []
    for one in blocks(path):
        if one.mark == "not run":
            continue
        if one.mark == "file":
            made.append(("file", (one.value, one.text)))
        elif one.language == "python" and made and made[-1][0] == "python":
            made[-1] = ("python", f"{made[-1][1]}\n{one.text}")
        else:
            made.append((one.language, one.text))
    return made


def run_page(path, folder):
    """Run it in that folder; returns what failed, with what it said, or ""."""
    for kind, what in programs(path):
        if kind == "file":
            (folder / what[0]).write_text(what[1])
            continue
        (folder / "page.py").write_text(what)
        command = [sys.executable, "page.py"] if kind == "python" else ["bash", "-euo", "pipefail", "-c", what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=with_this_python(), cwd=folder)
        if done.returncode:
            return f"{what}\nended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return ""


def with_this_python():
    """An environment in which `python` and `mpirun` are this Python's, and hpcai is this tree's, warnings being errors."""
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    return environment(**paths, EXAMPLES=str(ROOT / "examples"))
