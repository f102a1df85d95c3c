"""`python -m bench.house [FOLDER]`: the package in numbers, of this checkout or another: files and lines by room, circles of
imports, the longest functions, and how many places ask for one variant. In Markdown, to lay beside those of another version.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MEMBERS = {
    "optimizer": "lamb",
    "codec": "randomk|random_k",
    "source of data": "npz",
    "all-reduce": "halving_doubling|halving",
    "model": "cnn",
    "launcher": "srun-pmi2|srun_pmi2",
}
"""One of each kind, by the words that name it: the files whose code does are those that another one would touch."""

VARIANTS = ("zero", "half", "grain")
"""Words for variants of training; a place that asks for one is a condition that reads an attribute of that name."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m bench.house", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1], help="of a checkout")
    house = parser.parse_args().folder / "hpcai"
    files = {path: ast.parse(path.read_text()) for path in sorted(house.rglob("*.py"))}
    print("\n".join(["| | |", "|---|---|", *(f"| {what} | {count} |" for what, count in counted(house, files))]))


def counted(house: Path, files: dict[Path, ast.Module]) -> Iterator[tuple[str, object]]:
    """Each number with what it is of."""
    rooms = Counter(room(house, path) for path in files)
    lines = Counter[str]()
    for path in files:
        lines[room(house, path)] += len(path.read_text().splitlines())
    for name in sorted(rooms):
        yield f"`{name}`: files, lines", f"{rooms[name]}, {lines[name]:,}"
    yield "all: files, lines", f"{len(files)}, {sum(lines.values()):,}"
    for checked, what in ((True, "with imports for types"), (False, "at run time")):
        circles = circles_of({path: set(imports(house, files, path, checked)) for path in files})
        yield (
            f"circles of modules, {what}",
            "; ".join(", ".join(sorted(str(path.relative_to(house)) for path in one)) for one in circles) or "none",
        )
    functions = sorted(
        ((length(node), f"{path.relative_to(house)}: {node.name}") for path, node in each_function(files)), reverse=True
    )
    yield "longest functions, lines without their docstring", ", ".join(f"{name} ({count})" for count, name in functions[:3])
    yield "functions of more than 40 lines", sum(count > 40 for count, _ in functions)
    yield "files of more than 300 lines", sum(len(path.read_text().splitlines()) > 300 for path in files)
    yield "fields of Replica", fields(files[house / "train" / "replica.py"], "Replica")
    for word in VARIANTS:
        places = [path for path, tree in files.items() for node in ast.walk(tree) if asks(node, word)]
        yield f"places that ask for `{word}`, and their files", f"{len(places)}, {len(set(places))}"
    for kind, words in MEMBERS.items():
        touched = [path for path, tree in files.items() if names(tree, words)]
        yield f"files that name one {kind} ({words.split('|')[0]})", len(touched)


def room(house: Path, path: Path) -> str:
    """The folder below the package, or the file itself."""
    parts = path.relative_to(house).parts
    return parts[0] if len(parts) > 1 else "top"


def imports(house: Path, files: dict[Path, ast.Module], path: Path, for_types: bool) -> Iterator[Path]:
    """The package's modules that one imports when it is loaded; for_types: those for the checker of types too."""
    nodes: list[ast.stmt] = list(files[path].body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If):
            is_for_types = "TYPE_CHECKING" in ast.unparse(node.test) and not isinstance(node.test, ast.UnaryOp)
            nodes += [*(node.body if for_types or not is_for_types else ()), *node.orelse]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hpcai":
            for name in node.names:
                found = [module(house, f"{node.module}.{name.name}"), module(house, node.module)]
                yield from [one for one in found if one in files and one != path][:1]


def module(house: Path, name: str) -> Path:
    """The file of a module."""
    path = house.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def circles_of(imported: dict[Path, set[Path]]) -> list[set[Path]]:
    """Groups of more than one module that can each be reached from all others of the group."""
    reached = {path: reachable(imported, path) for path in imported}
    found: list[set[Path]] = []
    for path in imported:
        group = {other for other in reached[path] if path in reached[other]}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def reachable(imported: dict[Path, set[Path]], start: Path) -> set[Path]:
    """All modules that one imports, and those that these do."""
    found, left = set[Path](), [start]
    while left:
        for path in imported[left.pop()] - found:
            found.add(path)
            left.append(path)
    return found


def each_function(files: dict[Path, ast.Module]) -> Iterator[tuple[Path, ast.FunctionDef]]:
    """All, also within others."""
    for path, tree in files.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(node: ast.FunctionDef) -> int:
    """Lines of a function from its first statement behind the docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def fields(tree: ast.Module, name: str) -> int:
    """Of a dataclass."""
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return sum(isinstance(node, ast.AnnAssign) for node in kind.body)


def names(tree: ast.Module, words: str) -> bool:
    """Whether code has one of the words, as a name or in a text that is no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body and isinstance(node.body[0], ast.Expr)
    }
    pattern = re.compile(rf"(?<![a-z0-9])({words})(?![a-z0-9])")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            said = node.value
        else:
            said = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) or ""
        if isinstance(said, str) and pattern.search(said):
            return True
    return False


def asks(node: ast.AST, word: str) -> bool:
    """Whether that is a condition of an `if`, a choice or a boolean that reads an attribute of this name."""
    tests = [node.test] if isinstance(node, (ast.If, ast.IfExp, ast.While)) else []
    return any(re.search(rf"\.{word}\b", ast.unparse(test)) for test in itertools.chain(tests))


if __name__ == "__main__":
    main()
