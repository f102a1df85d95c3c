"""The faults that can be planted in a Python file, each a piece of text in place of another.

The operators are those of Offutt's sufficient set (Offutt et al., ACM TOSEM 5(2), 1996), relational, logical, arithmetic and
unary ones, and constants, and besides them statements left out and conditions turned round. What only people read is left alone:
docstrings, messages, annotations, and the arguments of `raise`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """One planted fault: `text` in place of the characters start to end of `file`, a path below the repository."""

    file: str
    line: int
    start: int
    end: int
    text: str
    before: str  # the line, and what it becomes
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.change}"

    @property
    def change(self) -> str:
        """The line, and what it becomes."""
        return f"{self.before}  ->  {self.after}"

    def draw(self, seed: int) -> str:
        """By this faults are drawn: the others' draws stay as they are when one comes or goes."""
        return sha256(f"{seed} {self.file} {self.change}".encode()).hexdigest()

    def planted(self, source: str) -> str:
        """The file's text with the fault in it."""
        return source[: self.start] + self.text + source[self.end :]


COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
    ast.MatMult: ("@", "*"),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil"}
READ_BY_PEOPLE = (ast.Raise, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Assert)


def faults(root: Path, file: str) -> list[Fault]:
    """All faults that can be planted in `file`, in the order of its lines."""
    text = (root / file).read_text()
    return sorted(set(_Finder(file, text).find()), key=lambda fault: (fault.start, fault.end, fault.text))


class _Finder:
    def __init__(self, file: str, text: str):
        self.file, self.text = file, text
        self.begins = [0]
        for line in text.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.lines = text.splitlines()

    def find(self) -> Iterator[Fault]:
        yield from self._below(ast.parse(self.text))

    def _below(self, node: ast.AST) -> Iterator[Fault]:
        for child in _seen_by_the_machine(node):
            yield from self._of(child)
            yield from self._below(child)

    def _of(self, node: ast.AST) -> Iterator[Fault]:
        if isinstance(node, ast.Compare):
            places = [node.left, *node.comparators]
            for left, operator, right in zip(places, node.ops, places[1:], strict=False):
                yield from self._operator(left, right, *COMPARISONS[type(operator)])
        elif isinstance(node, ast.BinOp) and not _is_text(node):
            yield from self._operator(node.left, node.right, *ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from self._operator(left, right, *words)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield self._fault(node, self._source(node.operand))
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield self._fault(node.func, CALLS[node.func.id])
        elif isinstance(node, ast.If | ast.IfExp | ast.While) and not _is_type_checking(node.test):
            yield self._fault(node.test, f"(not ({self._source(node.test)}))")
        elif isinstance(node, ast.Break | ast.Continue):
            yield self._fault(node, "continue" if isinstance(node, ast.Break) else "break")
        elif isinstance(node, ast.AugAssign) and not _is_text(node.value):
            yield from self._operator(node.target, node.value, *(f"{word}=" for word in ARITHMETIC[type(node.op)]))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _only_speaks(node.value):
            yield self._fault(node, "pass")
        elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
            yield self._fault(node, "return None")

    def _constant(self, node: ast.Constant) -> Iterator[Fault]:
        if isinstance(node.value, bool):
            yield self._fault(node, str(not node.value))
        elif isinstance(node.value, int):
            yield self._fault(node, str(node.value + 1))
        elif isinstance(node.value, float):
            yield self._fault(node, repr(node.value * 2 if node.value else 1.0))

    def _operator(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Fault]:
        """The operator between two expressions: the text there may hold brackets, comments and line ends too."""
        start, end = self._place(left)[1], self._place(right)[0]
        at = self.text.find(old, start, end)
        if at >= 0 and "#" not in self.text[start:end]:
            yield self._made(at, at + len(old), new)

    def _fault(self, node: ast.AST, new: str) -> Fault:
        return self._made(*self._place(node), new)

    def _made(self, start: int, end: int, text: str) -> Fault:
        line = self.text.count("\n", 0, start)
        fault = Fault(self.file, line + 1, start, end, text, self.lines[line].strip(), "")
        return fault._replace(after=fault.planted(self.text).splitlines()[line].strip())

    def _source(self, node: ast.AST) -> str:
        start, end = self._place(node)
        return self.text[start:end]

    def _place(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _at(self, line: int, column: int) -> int:
        return self.begins[line - 1] + len(self.lines[line - 1].encode()[:column].decode())


def _seen_by_the_machine(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node but what only people and type checkers read."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, READ_BY_PEOPLE):
                if isinstance(child, ast.If) and _is_type_checking(child.test):
                    continue
                if isinstance(child, ast.Expr) and (isinstance(child.value, ast.Constant) or _only_speaks(child.value)):
                    continue
                yield child


def _is_type_checking(test: ast.AST) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(one, ast.JoinedStr) or isinstance(getattr(one, "value", None), str) for one in ast.walk(node))


def _only_speaks(node: ast.AST) -> bool:
    """A call whose only effect is text for people."""
    name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return name in ("print", "sys.stderr.write", "sys.stderr.flush", "sys.stdout.flush", "warnings.warn")
