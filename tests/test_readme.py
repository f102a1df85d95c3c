"""What README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import environment

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="installed without README")
def test_the_programs_in_readme_run_one_after_the_other(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    program = "\n".join(blocks) + "\nassert np.allclose(mean, 0) and reducer.name.startswith('rounded')\n"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
