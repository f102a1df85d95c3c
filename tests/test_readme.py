"""README: short, true to its files of results, and its programs run and learn."""

import re
import subprocess
import sys

import pytest

from tests import pages
from tests.command import environment

README = pages.ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="installed without README")


def test_it_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 100
    allreduce, own = [one.text.splitlines() for one in pages.blocks(README) if one.language == "python"]
    assert len(allreduce) <= 10
    assert len(own) <= 25


def test_its_programs_run_one_after_the_other(tmp_path):
    blocks = [one.text for one in pages.blocks(README) if one.language == "python"]
    sure = (
        "assert trained.history[-1]['test_accuracy'] > 0.9 and weights['hidden.weight'].shape == (2, 32) and not gradient.any()"
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*blocks, sure])],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_its_figures_are_in_the_files_that_it_names():
    rows = [row for row in README.read_text().splitlines() if row.startswith("| ") and "](bench/results/" in row]
    assert len(rows) >= 6
    for row in rows:
        figures = re.findall(r"([0-9.]+)(?:-([0-9.]+))?x\b", row.split("|")[3])
        text = (README.parent / re.search(r"\]\((bench/results/[^)]*)\)", row)[1]).read_text()
        assert figures, row
        for figure in [one for pair in figures for one in pair if one]:
            assert re.search(rf"(?<![0-9.]){re.escape(figure)}", text), f"{figure} is not in the file that {row} names"
