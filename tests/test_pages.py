"""What README and the docs show runs, and so do the examples."""

import importlib.util
import shutil

import pytest

from tests import pages
from tests.command import needs_mpirun, run

pytestmark = [needs_mpirun, pytest.mark.skipif(not pages.DOCS.exists(), reason="installed without docs")]
EXAMPLES = pages.ROOT / "examples"
RUN = {
    "allreduce": ((), "2 ranks: sum of means 3, largest rank 1, a chunk of 500,000"),
    "own_model": ((), "[0 1 2] "),
    "own_codec": ((), "true sum of means 0.150, delivered 0.150"),
    "own_gradients": ((), "[3. 4.] "),
    "torch_gradients": ((), "loss "),
    "language_model": (("text.txt", "steps=20", "mesh=tp=2"), "nats a byte; next byte b"),
}
"""What each example is given, and how the last line begins or ends that it says."""


@pytest.mark.parametrize(
    "path", [one for one in pages.pages() if pages.programs(one)], ids=lambda one: str(one.relative_to(pages.ROOT))
)
def test_a_page_runs(path, tmp_path):
    assert not (failed := pages.run_page(path, tmp_path)), failed


@pytest.mark.parametrize("name", RUN)
def test_an_example_runs_on_two_ranks(name, tmp_path, monkeypatch):
    if name.startswith("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    words, wanted = RUN[name]
    code, out, err = run(2, *words, program=(EXAMPLES / f"{name}.py",))
    assert code == 0, err
    assert wanted in out.splitlines()[-1]


def test_the_example_of_predictions_says_what_the_model_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(2, program=(EXAMPLES / "own_model.py",))
    assert code == 0, err
    code, out, err = run(1, program=(EXAMPLES / "predict.py",))
    assert code == 0, err
    assert out.splitlines()[-1] == "[0 1 2]"


def test_all_examples_are_run_and_short():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*RUN, "predict"}
    assert max(len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")) <= 30


def test_a_page_that_fails_is_noticed(tmp_path):
    for text in ("```python\n1 / 0\n```\n", "```shell\nfalse\ntrue\n```\n"):
        (tmp_path / "page.md").write_text(text)
        assert "ended with 1" in pages.run_page(tmp_path / "page.md", tmp_path)
    (tmp_path / "page.md").write_text(
        "<!-- file: mine.py -->\n```python\nX = 3\n```\n```python\nfrom mine import X\nassert X == 3\n```\n"
    )
    assert not pages.run_page(tmp_path / "page.md", tmp_path)
    assert shutil.which("mpirun", path=pages.with_this_python()["PATH"])
