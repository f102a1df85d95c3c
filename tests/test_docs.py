"""The docs: every public name is documented and in the reference, tables say what the code does, and questions are near the first page."""

import dataclasses
import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import hpcai
from hpcai import environment, errors
from hpcai.comm import threads
from hpcai.comm.wires.threads import ThreadWire
from hpcai.reduce.counting import Counting, sent_bytes
from hpcai.reduce.named import CHOICES, by_name
from hpcai.train.options.options import GROUPS, RENAMED, Options
from tests import pages

pytestmark = pytest.mark.skipif(not pages.DOCS.exists(), reason="installed without docs")
sys.path.append(str(pages.DOCS))
ROOMS = ("data", "monitor", "nn", "optim")
"""Rooms that say by __all__ what is public."""

MAKES = {"Codec", "Layer", "tuple[Layer, ...]", "Loss", "Model", "Optimizer", "Reducer", "Schedule", "Sink"}
"""A public function of any room that gives one of these belongs into the reference."""

INNER = {"nn.models.parts", "compress.blockwise.blockwise"}
"""But for these, which only hpcai calls, as all of train/ and strategies/ that hpcai.fit does not say itself."""

QUESTIONS = {
    "predict": "how-to/predict.md",
    "resume with more epochs": "how-to/resume.md",
    "my own loss": "how-to/own-loss.md",
    "weights in numpy": "how-to/weights.md",
    "stop early": "how-to/stop-early.md",
    "plot": "how-to/plot.md",
}
COMMAND = re.compile(r"--([a-z][a-z0-9-]*)")


@pytest.fixture(scope="module")
def listed():
    """Names in the reference, in full, as Sphinx finds them."""
    found = set()
    for path in (pages.DOCS / "reference").glob("*.md"):
        module = ""
        for line in path.read_text().splitlines():
            if begins := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = begins[1]
            elif begins := re.match(r"\.\. auto\w+:: (\S+)", line):
                found.add(f"{module}.{begins[1]}")
    return found


def public():
    """Public names: module and name."""
    yield from (("hpcai", name) for name in hpcai.__all__ if name != "__version__" and not inspect.ismodule(getattr(hpcai, name)))
    for room in ROOMS:
        yield from ((f"hpcai.{room}", name) for name in importlib.import_module(f"hpcai.{room}").__all__)
    yield from (
        ("hpcai.errors", name) for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)
    )


def makers():
    """Public functions of all rooms that give a codec, a layer and so on."""
    for path in sorted(Path(hpcai.__file__).parent.rglob("*.py")):
        if {"train", "strategies"} & set(path.parts):
            continue
        text = path.read_text()
        module = ".".join(path.relative_to(Path(hpcai.__file__).parents[1]).with_suffix("").parts).removesuffix(".__init__")
        for name, gives in re.findall(r"^def ([a-z]\w*)\((?:[^()]|\([^()]*\))*\) -> ([^\n]+):$", text, re.MULTILINE):
            if gives in MAKES:
                yield module, name


def resolved(listed):
    """The objects behind names: one may be reachable in two places."""
    return [reached(name) for name in listed]


def reached(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_name_is_in_the_reference(listed):
    there = {id(one) for one in resolved(listed)}
    lacking = [f"{module}.{name}" for module, name in public() if id(getattr(importlib.import_module(module), name)) not in there]
    lacking += [
        f"{module}.{name}"
        for module, name in makers()
        if f"{module}.{name}".removeprefix("hpcai.") not in INNER
        and id(getattr(importlib.import_module(module), name)) not in there
    ]
    assert not lacking


def test_makers_are_found():
    found = {name for _, name in makers()}
    assert {"top_k", "error_feedback", "adam", "linear", "gpt", "cosine", "mean_squared_error", "residual"} <= found


def test_every_public_name_is_documented(listed):
    for name in listed:
        one = reached(name)
        assert (one.__doc__ or "").strip(), name
        assert not one.__doc__.startswith(f"{one.__name__}("), f"{name} has only what NamedTuple writes"
        for key, member in vars(one).items() if isinstance(one, type) else ():
            if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert (inspect.getdoc(member) or "").strip(), f"{name}.{key}"


def test_every_group_of_options_is_on_the_page():
    text = (pages.DOCS / "reference/options.md").read_text()
    assert re.findall(r"```\{options\} (\w+)", text) == list(GROUPS)


def test_pages_name_no_option_that_there_is_not():
    """Nor one by an earlier name; options of other programs stand in blocks of code or behind their program's name."""
    known = {field.name.replace("_", "-") for field in dataclasses.fields(Options)} | {"config", "print-config", "help"}
    known |= set(OTHERS)
    for path in pages.pages():
        if "notes" in path.parts:
            continue
        for name in COMMAND.findall(re.sub(r"<!--.*?-->", "", path.read_text())):
            assert name in known, f"{path.name}: --{name}{' has another name now' if name.replace('-', '_') in RENAMED else ''}"


OTHERS = (
    # hpcai.doctor, hpcai.submit
    *(
        "tune",
        "largest",
        "compress",
        "nodes",
        "ranks-per-node",
        "time",
        "partition",
        "account",
        "follow",
        "dry-run",
        "sweep",
        "launcher",
    ),
    *("max-restarts", "signal-seconds", "site", "cpus-per-rank"),
    # mpirun, srun, torchrun, pip
    *("with-ft", "prtemca", "host", "hosts", "map-by", "mpi", "no-deps", "ntasks-per-node", "kill-on-bad-exit", "nproc-per-node"),
)


def test_every_variable_is_explained():
    text = (pages.DOCS / "reference/variables.md").read_text()
    for name in environment.VARIABLES:
        assert f"`HPCAI_{name}`" in text, name


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_by_a_page_that_the_first_page_links_to(question):
    first = (pages.DOCS / "index.md").read_text()
    assert f"]({QUESTIONS[question]})" in first
    assert (pages.DOCS / QUESTIONS[question]).exists()


def test_pages_are_shallow_and_all_in_a_tree():
    """Each page is in the toctree of its folder's index, each index in that of the first page."""
    for path in pages.DOCS.rglob("*.md"):
        place = path.relative_to(pages.DOCS)
        assert len(place.parts) <= 2, place
        index = pages.DOCS / "index.md" if path.name == "index.md" or len(place.parts) == 1 else path.parent / "index.md"
        tree = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL))
        entry = str(place.with_suffix("")) if index.parent == pages.DOCS else path.stem
        assert path == pages.DOCS / "index.md" or re.search(rf"^(.*<)?{re.escape(entry)}>?$", tree, re.MULTILINE), place


def test_links_between_files_lead_somewhere():
    """In README, CONTRIBUTING and what Sphinx does not see; it checks its pages itself."""
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "slurm/README.md"):
        path = pages.ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name} links to {target}"


def test_code_on_pages_is_not_wider_than_they_are():
    for path in pages.pages():
        for one in pages.blocks(path):
            assert all(len(line) <= 106 for line in one.text.splitlines()), f"{path.name}: {max(one.text.splitlines(), key=len)}"


def test_blocks_that_do_not_run_say_why():
    for path in pages.pages():
        for one in pages.blocks(path):
            assert one.mark in ("", *pages.MARKS), f"{path.name}: {one.mark}"
            assert one.mark != "not run" or len(one.value) > 10, f"{path.name}: {one.value}"


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("nbytes", [1 << 10, 4 << 20])
def test_collectives_send_what_their_page_says(size, nbytes, monkeypatch, clean_environment):
    import costs

    monkeypatch.setenv("HPCAI_NODE", "0")
    sent = {}

    def send(wire, x, to, lane=0, plain=ThreadWire.send):
        sent.setdefault(wire.rank, []).append(x.nbytes)
        return plain(wire, x, to, lane)

    monkeypatch.setattr(ThreadWire, "send", send)
    for one in costs.COLLECTIVES:
        sent.clear()
        kind, arguments = re.fullmatch(r"`(\w+)\(x(?:, algorithm=\"(\w+)\")?\)`", one.call).groups()
        more = {} if arguments is None else {"algorithm": arguments}
        threads.run(
            size,
            lambda comm, kind=kind, more=more: getattr(comm, kind)(np.zeros((size, nbytes // 4 // size), np.float32), **more),
        )
        counted = max(map(len, sent.values())), max(map(sum, sent.values()))
        assert counted == (one.messages(size, nbytes), one.nbytes(size, nbytes)), one.name


@pytest.mark.parametrize("size", [2, 4])
def test_reducers_send_what_their_page_says(size):
    import costs

    n = 51_200 * size  # of which a hundredth is whole blocks
    for one in costs.COMPRESSIONS:

        def program(comm, choice=one.choice):
            counting, x = Counting(comm), np.random.default_rng(comm.rank).standard_normal(n).astype(np.float32)
            reducer = by_name(choice, size)
            reducer.reduce(x, counting, reducer.init(x))
            return sum(sent_bytes(call, size) for call in counting.calls)

        assert max(threads.run(size, program)) == pytest.approx(one.nbytes(size, n), rel=0.001), one.choice


def test_every_choice_of_compression_is_in_the_table():
    import costs

    known = {one.choice.partition(":")[0] for one in costs.COMPRESSIONS} | {"powersgd"}
    assert known == {choice.partition(":")[0] for choice in CHOICES}


def test_docstrings_become_fields():
    import docstrings

    assert doctest.testmod(docstrings).failed == 0
    made = "\n".join(docstrings.to_rst((inspect.getdoc(hpcai.Communicator.allreduce) or "").splitlines()))
    for name in ("Args", "Returns", "Raises", "Cost"):
        assert f":{name}:" in made
    assert "* **algorithm**: " in made
    assert "2(P-1)/P n elements" in made


def test_every_table_that_an_option_names_is_on_the_page():
    """A table of entries: a name in capitals, whose rows have `about`."""
    source = (pages.DOCS / "extension.py").read_text()
    text = (pages.DOCS / "reference/options.md").read_text()
    tables = re.findall(r'^    "([a-z-]+)": [A-Z]+,$', source, re.MULTILINE)
    assert tables == re.findall(r"```\{entries\} (\S+)", text)
    made = []
    for path in Path(hpcai.__file__).parent.rglob("*.py"):
        made += re.findall(
            r"^([A-Z]+) = \{\n(?:    # .*\n)*    \"[^\"]+\": (?:Entry|Source|Algorithm)\(", path.read_text(), re.MULTILINE
        )
    assert sorted(made) == sorted(re.findall(r'^    "[a-z-]+": ([A-Z]+),$', source, re.MULTILINE))


def test_the_version_is_one():
    project = re.search(r'^version = "(.*)"$', (pages.ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    cited = re.search(r"^version: (.*)$", (pages.ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert project == cited == hpcai.__version__
