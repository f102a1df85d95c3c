"""What Sphinx makes from the code: docstrings as fields, and tables of options, variables and costs."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from pathlib import Path
from typing import Any, ClassVar

import costs
import docstrings
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import hpcai
from hpcai import environment, errors
from hpcai.comm.algorithms.table import ALGORITHMS
from hpcai.data.sources import SOURCES
from hpcai.nn.table import MODELS
from hpcai.optim.table import OPTIMIZERS
from hpcai.reduce.named import CODECS
from hpcai.train.options import given, readers
from hpcai.train.options.options import GROUPS, RENAMED, Options


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _on_docstring)
    app.connect("autodoc-skip-member", _skips)
    for directive in (OptionsTable, EntriesTable, RenamedTable, VariablesTable, ExitCodesTable, CostsTable, ModulesTable):
        app.add_directive(directive.name_in_page, directive)
    return {"parallel_read_safe": True}


def _on_docstring(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.to_rst(lines)


def _skips(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool:
    """Leave out the fields of a NamedTuple, which its signature and its own words have."""
    return skip or (getattr(found, "__doc__", None) or "").startswith("Alias for field number")


class Table(SphinxDirective):
    """A table whose cells are Markdown."""

    head: ClassVar[tuple[str, ...]] = ()
    widths: ClassVar[tuple[int, ...]] = ()

    def rows(self) -> list[tuple[str, ...]]:
        """Cells by row."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The table."""
        return self.table(self.head, self.rows())

    def table(self, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[nodes.Node]:
        """Parsed as the page is."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, tuple("---" for _ in head), *rows)]
        return self.parsed("\n".join(f"| {' | '.join(row)} |" for row in cells))

    def parsed(self, text: str) -> list[nodes.Node]:
        """Nodes of a text in the page's language."""
        holder = nodes.Element()
        self.state.nested_parse(StringList(text.split("\n"), source=self.get_location()), self.content_offset, holder)
        return holder.children


class OptionsTable(Table):
    """The options of a group, or of all: from the dataclass that also makes --help."""

    name_in_page = "options"
    optional_arguments = 1
    head = ("option", "what it says", "values", "default")

    def rows(self) -> list[tuple[str, ...]]:
        """One for each field."""
        group = self.arguments[0]
        if group not in GROUPS:
            raise self.error(f"there is no group of options {group!r}; there are {', '.join(GROUPS)}")
        return [_option_row(field) for field in dataclasses.fields(Options) if field.metadata["group"] == group]


def _option_row(field: Any) -> tuple[str, ...]:
    reader = given.readers_of(Options)[field.name]
    return (
        f"`--{field.name.replace('_', '-')}`",
        as_markdown(field.metadata["help"]),
        as_markdown(_values(field, reader)),
        _default(field.default),
    )


def _default(value: Any) -> str:
    """As one would write it; nothing for what is not given or false."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "" if value is None or value is False or not text else f"`{text}`"


def _values(field: Any, reader: Any) -> str:
    if typing.get_type_hints(Options)[field.name] is bool:
        return "true or false"
    return "" if reader in (readers.text, readers.text_or_nothing) else reader.__doc__ or ""


def as_markdown(text: str) -> str:
    """Help text with what Markdown would take for marks behind a backslash.

    >>> as_markdown("a*b <c>")
    'a\\\\*b \\\\<c>'
    """
    return re.sub(r"([*_<`\[])", r"\\\1", text)


ENTRIES: dict[str, Any] = {
    "data": SOURCES,
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "compress": CODECS,
    "allreduce-algorithm": ALGORITHMS,
}


class EntriesTable(Table):
    """What an option can name: rows of the table that also makes its choices."""

    name_in_page = "entries"
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Columns that are empty in all rows are left out."""
        rows = [_entry_row(name, one) for name, one in ENTRIES[self.arguments[0]].items()]
        head = (self.arguments[0], "what it is", "its options, with their defaults", "source")
        filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
        return self.table(tuple(head[i] for i in filled), [tuple(row[i] for i in filled) for row in rows])


def _entry_row(name: str, one: Any) -> tuple[str, ...]:
    options = {f"--{key.replace('_', '-')}": _default(value).strip("`") for key, value in getattr(one, "options", {}).items()}
    told = ", ".join(f"`{key} {value}`".replace(" `", "`") for key, value in options.items())
    return f"`{name}`", as_markdown(one.about), told, as_markdown(getattr(one, "source", ""))


class RenamedTable(Table):
    """Earlier names of options."""

    name_in_page = "renamed-options"
    head = ("earlier", "now")

    def rows(self) -> list[tuple[str, ...]]:
        """One for each."""
        return [(f"`--{old.replace('_', '-')}`", f"`--{new.replace('_', '-')}`") for old, new in sorted(RENAMED.items())]


class VariablesTable(Table):
    """The variables that environment.py declares."""

    name_in_page = "variables"
    head = ("variable", "what it may be")

    def rows(self) -> list[tuple[str, ...]]:
        """One for each."""
        return [(f"`HPCAI_{name}`", as_markdown(one.wanted)) for name, one in sorted(environment.VARIABLES.items())]


class ExitCodesTable(Table):
    """What a program returns that ends by an error."""

    name_in_page = "exit-codes"
    head = ("exit code", "errors")

    def rows(self) -> list[tuple[str, ...]]:
        """One for each code. A Leave has its own: 85 after a signal, 130 after Ctrl-C."""
        kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.HpcaiError)]
        codes = sorted({kind.exit_code for kind in kinds})
        return [(str(code), ", ".join(f"`{kind.__name__}`" for kind in kinds if kind.exit_code == code)) for code in codes]


class CostsTable(Table):
    """Messages and bytes of algorithms, which tests/test_docs.py counts."""

    name_in_page = "costs"
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table of that name."""
        head, rows = costs.table(self.arguments[0])
        return self.table(head, rows)


class ModulesTable(Table):
    """The files of rooms, with what each says of itself first."""

    name_in_page = "modules"
    required_arguments = 1
    final_argument_whitespace = True
    head = ("file", "what is in it")

    def rows(self) -> list[tuple[str, ...]]:
        """One for each file."""
        house = Path(hpcai.__file__).parent
        found = [path for room in self.arguments[0].split() for path in sorted((house / room).rglob("*.py"))]
        return [
            (f"`{path.relative_to(house)}`", as_markdown(_first_sentence(path))) for path in found if path.name != "__init__.py"
        ]


def _first_sentence(path: Path) -> str:
    said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    return said if len(said) <= LONGEST_SAID else f"{said[:LONGEST_SAID].rsplit('. ', 1)[0].rstrip('.')}."


LONGEST_SAID = 260
"""Characters of a file's own words in a table."""
