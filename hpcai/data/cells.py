"""A table's cells, each of them checked: numbers as f64, texts as codes that number their values."""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, TextIO

import numpy as np

from hpcai.data.csv_text import BLOCK, MOST_COLUMNS, blocks, lines_in
from hpcai.data.memory import available
from hpcai.data.numerals import WHOLE, is_number, is_spelt, whole
from hpcai.data.opening import printable
from hpcai.data.targets import EXACT, MOST_NAMED_CLASSES
from hpcai.errors import DataError, counted
from hpcai.xp import Array

Kind = Literal["number", "text", "any", "whole"]
"""The kind of a column's cells: finite numbers; texts that are not numbers; anything not empty; whole numbers of any size."""

_NAME = 200
"""The limit for characters of a class or category."""

_ROWS = 4096
_SHOWN = 60
_CELL_BYTES = 15
"""Bytes that a number takes, as measured: f64 here, f32 as a feature, and spare or temporary memory."""

_ROW_BYTES = 48
"""Bytes of a row beside its features: label, place, and whether it is for testing."""


class Plan(NamedTuple):
    """The selection from a table. names: of all columns; kinds: of the selected columns by position, in order, the label last;
    most: how many different values a column of texts may have; label: its position; classes: whether the label must be classes.
    """

    names: list[str]
    delimiter: str
    kinds: dict[int, Kind]
    most: dict[int, int]
    label: int
    classes: bool

    def places(self, number: bool) -> list[int]:
        """Return the positions of the columns of numbers, or of texts."""
        return [place for place, kind in self.kinds.items() if (kind == "number") == number]


class Cells(NamedTuple):
    """rows: their number; numbers: (rows, columns) f64; codes: for each column of texts (rows,) i32, indices of its `values`."""

    rows: int
    numbers: Array
    codes: list[Array]
    values: list[list[str]]


class OtherLabel(Exception):
    """The label is of another kind than the plan says: the table must be read again with this kind."""

    def __init__(self, kind: Kind):
        super().__init__(kind)
        self.kind = kind


def short(cell: str) -> str:
    """Return a cell for a message, cut if it is long."""
    return repr(cell) if len(cell) <= _SHOWN else f"{cell[:_SHOWN]!r}... ({len(cell):,} characters)"


def read(path: Path, file: TextIO, plan: Plan, begin: int, ahead: list[str]) -> Cells:
    """Return all cells of the plan's columns. ahead: blocks that were read before; begin: how many lines came before these.

    Blocks of numbers alone go through numpy's parser. Blocks that it refuses, or that need closer checks, are read cell by cell.

    Raises: DataError that names line and column; OtherLabel.
    """
    reader = _Reader(path, plan, begin)
    rest = chain(ahead, blocks(path, file, begin + sum(map(lines_in, ahead))))
    for block in rest:
        if '"' in block and not reader.add_quoted_numbers(block):  # a cell may go on in the next block
            reader.add_rows(line for part in chain([block], rest) for line in io.StringIO(part, newline=""))
            break
        if '"' not in block:
            reader.add(block)
        reader.check_memory(_share(file))
    return reader.cells()


class _Reader:
    def __init__(self, path: Path, plan: Plan, begin: int):
        self.path, self.plan, self.line = path, plan, begin
        self.number_places, self.text_places = plan.places(True), plan.places(False)
        self.numbers = array("d")
        self.codes = [array("i") for _ in self.text_places]
        self.known: list[dict[str, int]] = [{} for _ in self.text_places]
        self.values: list[dict[str, int]] = [{} for _ in self.text_places]
        self.quick, self.rows, self.taken, self.room = not self.text_places, 0, 0, available()

    def cells(self) -> Cells:
        numbers = np.frombuffer(self.numbers, np.float64).reshape(self.rows, len(self.number_places))
        return Cells(self.rows, numbers, [np.frombuffer(one, np.int32) for one in self.codes], [list(one) for one in self.values])

    def add(self, block: str) -> None:
        """Add a block of lines without quotes."""
        if not block.isspace() and not self._quickly(block):
            self.add_rows(iter(io.StringIO(block, newline="")))
        self.line += lines_in(block)

    def add_quoted_numbers(self, block: str) -> bool:
        """Add a block of numbers, some in quotes, if all quotes are at the ends of cells. Else add nothing, and return False."""
        cut = self.plan.delimiter
        ends = sum(map(block.count, (cut + '"', '"' + cut, '\n"', '"\n', '"\r'))) + block.startswith('"') + block.endswith('"')
        if block.count('"') % 2 or block.count('"') != ends or not self._quickly(block, '"'):
            return False
        self.line += lines_in(block)
        return True

    def _quickly(self, block: str, quote: str | None = None) -> bool:
        if not self.quick or not block.isascii():
            return False
        cut = self.plan.delimiter
        try:
            found = np.loadtxt(io.StringIO(block, newline=""), delimiter=cut, comments=None, ndmin=2, quotechar=quote)
        except ValueError:
            self.quick = False  # there is a text, maybe in a column that is left out
            return False
        if found.shape[1] != len(self.plan.names):
            return False
        if self.number_places != list(range(found.shape[1])):
            found = np.ascontiguousarray(found[:, self.number_places])
        if not (np.abs(found) < EXACT).all():
            return False
        self.numbers.frombytes(found.tobytes())
        self.rows += len(found)
        return True

    def add_rows(self, lines: Iterator[str]) -> None:
        """Add lines, cell by cell. Raises: DataError, OtherLabel."""
        reader = csv.reader(map(self._bounded, lines), delimiter=self.plan.delimiter, strict=True)
        try:
            for batch in self._batches((self.line + reader.line_num, row) for row in reader if row):
                self._add(batch)
                self.check_memory()
        except csv.Error as error:
            hint = "; is a quote missing?" if "limit" in str(error) or "end of data" in str(error) else ""
            raise DataError(f"{self.path} line {self.line + reader.line_num}: {printable(str(error))}{hint}") from None

    def check_memory(self, share: float = 1.0) -> None:
        """Raise DataError if the table will not fit into memory. share: the part of the table that has been read."""
        a_row = _CELL_BYTES * len(self.number_places) + 4 * len(self.codes) + _ROW_BYTES
        rows = max(self.rows, self.rows / share / 2)  # half, as the first rows may be shorter than others
        if rows * a_row > self.room:
            raise DataError(
                f"{self.path} does not fit into memory: at least {counted(round(rows), 'row')} of {a_row} bytes are "
                f"{rows * a_row:,.0f} bytes, and {self.room:,} are at hand; leave rows out, or columns with --ignore-columns"
            )

    def _batches(self, rows: Iterator[tuple[int, list[str]]]) -> Iterator[list[tuple[int, list[str]]]]:
        """Yield some rows at a time, fewer if rows are long."""
        batch: list[tuple[int, list[str]]] = []
        for row in rows:
            batch.append(row)
            if len(batch) >= _ROWS or self.taken > BLOCK:
                yield batch
                batch, self.taken = [], 0
        yield batch

    def _bounded(self, line: str) -> str:
        self.taken += len(line)
        if len(line) > MOST_COLUMNS and line.count(self.plan.delimiter) >= MOST_COLUMNS:
            raise DataError(f"{self.path} has a line of more than {MOST_COLUMNS:,} cells where the header has fewer")
        return line

    def _add(self, batch: list[tuple[int, list[str]]]) -> None:
        names = self.plan.names
        for line, row in batch:
            if len(row) != len(names):
                raise DataError(
                    f"{self.path} line {line}: {counted(len(row), 'cell')} where the header has {len(names)}{self._hint(row)}"
                )
        self._add_numbers(batch)
        for column, place in enumerate(self.text_places):
            known, codes = self.known[column], self.codes[column]
            for line, row in batch:
                code = known.get(row[place])
                codes.append(self._new_value(column, row[place], line) if code is None else code)
        self.rows += len(batch)

    def _add_numbers(self, batch: list[tuple[int, list[str]]]) -> None:
        cells = [row[place] for _, row in batch for place in self.number_places]
        if not cells:
            return
        together = "".join(cells)
        try:
            numbers = np.array(list(map(float, cells)))
        except ValueError:
            numbers = None
        if numbers is None or not together.isascii() or "_" in together:
            for at, cell in enumerate(cells):
                if not is_number(cell):
                    self._refuse_text(*self._at(batch, at), batch[at // len(self.number_places)][1])
        assert numbers is not None
        for at in np.flatnonzero(~(np.abs(numbers) < EXACT)).tolist():
            self._check_large(*self._at(batch, at), cells[at], numbers[at])
        self.numbers.frombytes(numbers.tobytes())

    def _at(self, batch: list[tuple[int, list[str]]], at: int) -> tuple[int, int]:
        """Return the line and the column's position of a number in the batch."""
        row, column = divmod(at, len(self.number_places))
        return batch[row][0], self.number_places[column]

    def _check_large(self, line: int, place: int, cell: str, number: float) -> None:
        """Refuse numbers that are not finite, and whole numbers that f64 does not hold: those are names, not quantities."""
        if not np.isfinite(number):
            raise DataError(f"{self._cell(line, place)}: {short(cell)} is not a finite number; correct it{self._advice(place)}")
        if place == self.plan.label and not is_spelt(cell, number):
            if whole(cell) is not None or WHOLE.fullmatch(cell):
                raise OtherLabel("whole")
            if self.plan.classes:
                raise OtherLabel("any")
        elif WHOLE.fullmatch(cell) and whole(cell) != int(number):
            raise DataError(
                f"{self._cell(line, place)}: {short(cell)} is a whole number beyond 2^53, which as a feature would be rounded; "
                f"if it is a name, give its column to --categorical-columns{self._advice(place)}"
            )

    def _refuse_text(self, line: int, place: int, row: list[str]) -> NoReturn:
        cell = row[place]
        if place == self.plan.label and self.plan.classes:
            raise OtherLabel("any")
        said = f"{self._cell(line, place)}: {short(cell)} is not a number"
        if not cell.strip():
            raise DataError(f"{said}; fill it, or leave its row out{self._advice(place)}")
        if cell.count(",") == 1 and is_number(cell.replace(",", ".")):
            raise DataError(f"{said}; decimals want a point, as in {cell.replace(',', '.').strip()}")
        if not cell.isascii() or "_" in cell:
            with suppress(ValueError):
                raise DataError(f"{said} in plain digits; write {float(cell)}")
        if place == self.plan.label:
            raise DataError(f"{said}, but other labels are, or --task regression wants them; --task classification takes all")
        texts = [self.plan.names[other] for other in self.number_places if other != self.plan.label and not is_number(row[other])]
        given = printable(",".join(texts))
        raise DataError(
            f"{said}; --categorical-columns {given} takes such values as categories, --ignore-columns {given} leaves them out"
        )

    def _new_value(self, column: int, cell: str, line: int) -> int:
        """Return the code of a text that is new in this spelling. Raises: DataError, OtherLabel."""
        place, value = self.text_places[column], cell.strip()
        kind = self.plan.kinds[place]
        if not value:
            raise DataError(f"{self._cell(line, place)} is empty; fill it, or leave its row out{self._advice(place)}")
        if len(cell) > _NAME:
            raise DataError(f"{self._cell(line, place)}: {short(cell)} is too long for a name{self._advice(place)}")
        if kind == "text" and is_number(value):
            raise DataError(
                f"{self._cell(line, place)}: {short(value)} is a number, but the labels before it are not; "
                "--task classification takes all as classes"
            )
        if kind == "whole":
            exact = whole(value)
            if exact is None and self.plan.classes:
                raise OtherLabel("any")
            if exact is None:
                raise DataError(
                    f"{self._cell(line, place)}: {short(value)} is beside whole numbers beyond 2^53, which can only be classes; "
                    "--task classification takes all as classes"
                )
            value = str(exact)
        code = self.values[column].setdefault(value, len(self.values[column]))
        self.known[column][cell] = code
        if code >= self.plan.most[place] or len(self.known[column]) > 4 * self.plan.most[place]:
            self._refuse_values(place)
        return code

    def _refuse_values(self, place: int) -> NoReturn:
        name, most = self.plan.names[place], self.plan.most[place]
        said = f"{self.path} column {name!r} has more than {most:,} different values, too many to be"
        if place == self.plan.label:
            raise DataError(f"{said} classes; is it a name? --task classification takes up to {MOST_NAMED_CLASSES:,}")
        raise DataError(f"{said} categories; leave the column out with --ignore-columns {printable(name)}")

    def _cell(self, line: int, place: int) -> str:
        return f"{self.path} line {line}, column {self.plan.names[place]!r}"

    def _advice(self, place: int) -> str:
        return (
            ""
            if place == self.plan.label
            else f", or leave the column out with --ignore-columns {printable(self.plan.names[place])}"
        )

    def _hint(self, row: list[str]) -> str:
        return "; a cell that holds the delimiter wants quotes" if len(row) > len(self.plan.names) else ""


def _share(file: TextIO) -> float:
    """Return the share of a plain file that has been read; 1 if it is not known, as for one that is decompressed."""
    try:
        content = file.buffer
        return min(1.0, content.tell() / max(1, os.fstat(content.fileno()).st_size))
    except OSError:
        return 1.0
