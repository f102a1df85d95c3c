"""The plan of the house: who imports whom, where the outside libraries come in, and what importing hpcai costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hpcai
from bench import house

HOUSE = Path(hpcai.__file__).parent

MAY_IMPORT = {
    "errors": set(),
    "xp": set(),
    "entry": set(),
    "arena": {"xp"},
    "ops": {"xp", "errors"},
    "environment": {"errors"},
    "comm": {"entry", "ops", "xp", "errors", "environment"},
    "monitor": {"errors"},
    "nn": {"entry", "ops", "xp", "arena", "errors"},
    "optim": {"entry", "ops", "xp", "arena", "errors"},
    "data": {"entry", "ops", "xp", "errors"},
    "compress": {"entry", "ops", "xp", "errors"},
    "reduce": {"entry", "comm", "compress", "ops", "xp", "arena", "errors"},
    "checkpoint": {"arena", "xp", "errors"},
    "parallel": {"entry", "errors", "xp", "arena", "ops", "comm", "compress", "reduce", "nn", "optim"},
    "strategies": {"entry", "errors", "xp", "arena", "ops", "comm", "reduce", "nn", "optim", "parallel"},
    "train": {
        *(
            "errors",
            "xp",
            "arena",
            "ops",
            "comm",
            "compress",
            "reduce",
            "nn",
            "optim",
            "parallel",
            "data",
            "checkpoint",
            "entry",
            "strategies",
            "environment",
            "monitor",
        )
    },
    "doctor": {"errors", "ops", "comm", "train", "tuning"},
    "tuning": {"comm"},
    "submit": {"errors", "environment", "comm", "data", "checkpoint", "train"},
}
WITHIN = {
    "comm/launch": {"errors", "environment"},
    "comm/diagnosis": {"errors", "environment", "comm/call", "comm/launch"},
    "comm/algorithms": {"errors", "xp", "ops", "comm/wire", "comm/collectives"},
    "comm/wires": {"errors", "xp", "ops", "comm/tuned", "comm/wire", "comm/background", "comm/launch", "comm/diagnosis"},
    "train/options": {
        "errors",
        "environment",
        "entry",
        "comm/algorithms/table",
        "data/sources",
        "nn/table",
        "optim/table",
        "parallel/mesh",
        "reduce/named",
        "reduce/reproducible",
        "train/strict",
    },
}
"""A folder within a room -> what its files may import, beside each other."""

RECOVERY_IS_FOR = {"train/loop.py", "train/join.py"}
"""The files that may import train/elastic."""

DOORS = {
    "mpi4py": {"comm/wires/library.py"},
    "numba": {"ops/fused.py", "ops/sequence.py"},
    "cupy": {"ops/cuda.py"},
    "ml_dtypes": {"xp.py"},
    "threadpoolctl": {"comm/launch/cores.py"},
    "yaml": {"train/options/optionsfile.py"},
    "xxhash": {"data/contents.py", "checkpoint/shards.py"},
    "fsspec": {"checkpoint/remote.py"},
    "s3fs": set(),
    "matplotlib": {"train/report/curve.py", "train/report/trace.py"},
}


def imports(path):
    """Modules that a file imports, relative `from package import module` spelled out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [path for path in HOUSE.rglob("*.py") if path.parent != HOUSE or path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_rooms_import_only_what_the_plan_allows(path):
    here = path.relative_to(HOUSE)
    room = here.parts[0].removesuffix(".py")
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "hpcai" and len(parts) > 1 and ((HOUSE / parts[1]).is_dir() or (HOUSE / f"{parts[1]}.py").exists()):
            assert parts[1] == room or parts[1] in MAY_IMPORT[room], f"{here} imports {module}"
        elif parts[0] in DOORS:
            assert str(here) in DOORS[parts[0]], f"{here} imports {parts[0]}"


@pytest.mark.parametrize("folder", WITHIN)
def test_folders_within_rooms_import_only_what_the_plan_allows(folder):
    allowed = [folder, *WITHIN[folder]]
    for path in (HOUSE / folder).glob("*.py"):
        for module in imports(path):
            name = module.replace(".", "/").removeprefix("hpcai/")
            if module.startswith("hpcai.") and ((HOUSE / name).is_dir() or (HOUSE / f"{name}.py").exists()):
                of_all = name in (
                    "comm",
                    "train",
                    "data",
                    "reduce",
                    "parallel",
                    "nn",
                    "optim",
                    "comm/algorithms",
                )  # from hpcai.comm import call
                assert of_all or any(f"{name}/".startswith(f"{one}/") for one in allowed), f"{path} imports {module}"


def test_only_the_loop_knows_of_recovery():
    for path in FILES:
        here = str(path.relative_to(HOUSE))
        if here not in RECOVERY_IS_FOR and not here.startswith("train/elastic/"):
            assert not any(module.startswith("hpcai.train.elastic") for module in imports(path)), here


def test_no_circle_of_imports_not_even_for_types():
    files = {path: ast.parse(path.read_text()) for path in sorted(HOUSE.rglob("*.py"))}
    assert house.circles_of({path: set(house.imports(HOUSE, files, path, True)) for path in files}) == []


def test_importing_hpcai_starts_nothing():
    check = """
import sys, time
import numpy
begin = time.perf_counter()
import hpcai
assert time.perf_counter() - begin < 0.3
dir(hpcai)
for name in ("mpi4py", "numba", "cupy", "yaml", "xxhash", "fsspec"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_public_names_are_there():
    for name in hpcai.__all__:
        assert getattr(hpcai, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hpcai.nothing


def test_every_module_has_its_mirror_or_is_tested_through_one():
    """tests/ mirrors hpcai/: no test folder without its room."""
    for folder in (Path(__file__).parent).iterdir():
        if any(folder.glob("test_*.py")) and folder.name != "bench":
            assert (HOUSE / folder.name).is_dir(), folder


def test_doctests():
    import doctest
    import importlib

    count = 0
    for path in FILES:
        name = "hpcai." + ".".join(path.relative_to(HOUSE).with_suffix("").parts)
        if name.endswith(("__main__", "cuda")):
            continue
        result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")), optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, name
        count += result.attempted
    assert count > 10
