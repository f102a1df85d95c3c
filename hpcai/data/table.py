"""Tables: CSV with named columns of numbers and categories. A model predicts one of the columns, the label."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from hpcai.data import cells as table_cells
from hpcai.data.cells import Cells, Kind, OtherLabel, Plan
from hpcai.data.columns import described, features, in_order, leaks
from hpcai.data.csv_text import Header, blocks, decoded, header, listed, plain_name
from hpcai.data.dataset import Dataset, hold_out
from hpcai.data.numerals import is_number
from hpcai.data.opening import opened, printable
from hpcai.data.targets import MOST_CLASSES, MOST_NAMED_CLASSES, Targets, Task, classes_of, targets
from hpcai.data.validation import Validation, held_out, split_tests
from hpcai.errors import DataError, counted
from hpcai.xp import Array

MOST_CATEGORIES = 1_000
"""The limit for different values of a column of categories: each value becomes a feature."""

FEWEST_ROWS = 5
"""The least number of rows, as a fifth of them is for testing."""


def load(
    path: Path,
    label: str | None,
    ignore: Sequence[str] = (),
    categorical: Sequence[str] = (),
    task: Task | None = None,
    validation: Validation | None = None,
) -> Dataset:
    """Read a table with a header line. `label` names the column to predict, `ignore` columns to leave out, `categorical` columns
    whose values are names. The file is plain or compressed (see opening.py), UTF-8 or UTF-16, with commas, semicolons, tabs or
    bars between cells.

    Numbers are standardised with the training rows' mean and deviation, categories become one-hot. A fifth of the rows, by a
    fixed shuffle, is for testing; `validation` holds out a share of the others. A label of texts, or of whole numbers with few
    different values, makes a classification, any other label a regression (its target is standardised too). `task` overrides
    this (see targets.py).

    Raises: DataError that names line and column of a cell, a ragged row, an unknown or duplicate column, or the kind of the file.
    """
    wanted = Asked(
        label if label is None else plain_name(label),
        {plain_name(name) for name in ignore},
        {plain_name(name) for name in categorical},
        task,
        validation,
    )
    kind: Kind | None = "any" if wanted.label in wanted.categorical else None
    for _ in range(3):
        try:
            with opened(path) as content, decoded(path, content) as (file, notes):
                return _load(path, file, notes, wanted, kind)
        except OtherLabel as other:
            kind = other.kind
    raise AssertionError("a label has been of three kinds")


class Asked(NamedTuple):
    """The options of `load`, with plain names of columns."""

    label: str | None
    ignore: set[str]
    categorical: set[str]
    task: Task | None
    validation: Validation | None


def _load(path: Path, file: TextIO, notes: tuple[str, ...], asked: Asked, kind: Kind | None) -> Dataset:
    head = header(path, file, [name for name in (asked.label, *sorted(asked.ignore | asked.categorical)) if name is not None])
    _check_asked(path, head.names, asked)
    ahead = list(islice(blocks(path, file, head.lines), 1))
    first = _first_row(head, ahead)
    places, more = _places(path, head.names, first, asked)
    plan = _plan(head, places, first, asked, kind)
    cells = table_cells.read(path, file, plan, head.lines, ahead)
    if cells.rows < FEWEST_ROWS or len(places) < 2:
        raise DataError(
            f"{path} has {counted(cells.rows, 'row')} and {counted(len(places), 'column')}; "
            f"wanted {FEWEST_ROWS} rows (a fifth is for testing) and a feature beside the label at least"
        )
    return _dataset(path, plan, cells, asked, (*notes, *head.notes, *more))


def _check_asked(path: Path, names: list[str], asked: Asked) -> None:
    """Raise DataError for columns that do not exist, or that two options name."""
    label, unknown = asked.label, sorted(({asked.label} | asked.ignore | asked.categorical) - {None, *names})  # type: ignore[type-var]
    if label is None or unknown:
        wanted = f"has no column {unknown[0]!r}" if unknown else "needs --label-column COLUMN, the column to predict"
        hint = "; its first line must name them" if any(map(is_number, names)) else ""
        raise DataError(f"{path} {wanted}; its columns are {listed(names) or '(none: the file is empty)'}{hint}")
    if label in asked.ignore:
        raise DataError(f"--ignore-columns {label} leaves out the column that --label-column is to predict")
    if both := sorted(asked.ignore & asked.categorical):
        raise DataError(f"column {both[0]!r} is given to both --categorical-columns and --ignore-columns")


def _first_row(head: Header, ahead: list[str]) -> list[str]:
    """Return the first row of cells; empty if there is none, or if it does not fit the header."""
    try:
        rows = csv.reader(io.StringIO("".join(ahead), newline=""), delimiter=head.delimiter)
        found = next((row for row in rows if row), [])
    except csv.Error:
        return []
    return found if len(found) == len(head.names) else []


def _places(path: Path, names: list[str], first: list[str], asked: Asked) -> tuple[list[int], tuple[str, ...]]:
    """Return the positions of the columns to keep, and remarks on others. Raises: DataError for unknown or duplicate names."""
    if _are_data(names, first):
        raise DataError(
            f"{path} begins with {listed(names)}, which are numbers, not names of columns; a table wants a line of names first"
        )
    index = names[0] == "" and names.count("") == 1
    places = [place for place, name in enumerate(names) if name not in asked.ignore and not (index and place == 0)]
    at: dict[str, int] = {}
    for place in places:
        name = names[place]
        if not name:
            raise DataError(f"{path}: column {place + 1} of {len(names)} has no name; give it one in the first line")
        if at.setdefault(name, place) != place:
            raise DataError(
                f"{path}: columns {at[name] + 1} and {place + 1} are both called {name!r}; rename one, or leave out both with "
                f"--ignore-columns {printable(name)}"
            )
    return places, ("its first column, which has no name, is taken for an index and left out",) if index else ()


def _are_data(names: list[str], first: list[str]) -> bool:
    """Return whether the first line is a row of data: numbers above numbers, unless they rise as indices and years do."""
    above = [name for name, cell in zip(names, first, strict=False) if is_number(cell)]
    if not above or not all(map(is_number, above)):
        return False
    whole = [int(name) for name in above if name.isdigit() and len(name) < 20]
    return len(whole) < len(above) or any(after <= before for before, after in pairwise(whole))


def _plan(head: Header, places: list[int], first: list[str], asked: Asked, kind: Kind | None) -> Plan:
    """Return the plan: the kind of each column, the label last. kind: the label's, if known already."""
    where = head.names.index(str(asked.label))
    given = asked.task == "classification" or asked.label in asked.categorical
    if kind is None:
        number = asked.task == "regression" or not first or is_number(first[where])
        kind = "number" if number else "any" if given else "text"
    kinds: dict[int, Kind] = {
        place: "any" if head.names[place] in asked.categorical else "number" for place in places if place != where
    }
    most = dict.fromkeys(kinds, MOST_CATEGORIES) | {where: MOST_NAMED_CLASSES if given else MOST_CLASSES}
    return Plan(head.names, head.delimiter, kinds | {where: kind}, most, where, given)


def _dataset(path: Path, plan: Plan, cells: Cells, asked: Asked, notes: tuple[str, ...]) -> Dataset:
    train, test, held = _parted(plan, cells, asked)
    label = plan.names[plan.label]
    try:
        y = _label(plan, cells, asked.task, train, test)
    except DataError as error:
        raise DataError(f"{path} column {label!r}: {error}") from None
    numbers, texts = ([plan.names[p] for p in plan.places(number) if p != plan.label] for number in (True, False))
    x = features(cells, numbers, texts, train, test)
    width = counted(x.train.shape[1], "feature")
    said = f"{path.name}: {counted(len(train), 'row')} for training, {len(test) - held:,} for testing, {width}"
    if held:
        said += f", {held:,} for validation"
    made = Dataset(
        f"csv:{path}",
        x.train,
        y.train,
        x.test,
        y.test,
        (x.train.shape[1],),
        y.classes,
        target_unit=y.unit,
        warnings=(*y.warnings, *x.warnings, *leaks(x.train, y.train.reshape(-1), x.names)),
        notes=(said, *notes, *x.notes, f"label {label!r}: {y.said}"),
        encoding=described(x.encoding, {"name": label} | y.encoding),
    )
    return split_tests(made, held)


def _parted(plan: Plan, cells: Cells, asked: Asked) -> tuple[Array, Array, int]:
    """Return the rows for training, the rows for testing followed by the rows for validation, and the number of rows for
    validation. Nothing is measured on rows for testing or validation.
    """
    train, test = hold_out(cells.rows)
    if asked.validation is None:
        return train, test, 0
    number = plan.kinds[plan.label] == "number"
    labels = cells.numbers[:, -1] if number else cells.codes[-1]
    stratified = None if asked.task == "regression" else labels[train]
    kept, held = held_out(len(train), asked.validation, stratified)
    return train[kept], np.concatenate([test, train[held]]), len(held)


def _label(plan: Plan, cells: Cells, task: Task | None, train: Array, test: Array) -> Targets:
    kind = plan.kinds[plan.label]
    if kind == "number":
        return targets(cells.numbers[train, -1], cells.numbers[test, -1], task)
    codes, values = cells.codes[-1], cells.values[-1]
    if kind == "whole":
        exact = np.array([int(value) for value in values], object)[codes]
        return targets(exact[train], exact[test], "classification" if plan.classes else task)
    order = in_order(values, range(len(values)))
    place = np.argsort(order)[codes]
    return classes_of(place[train], place[test], [values[i] for i in order], plan.classes)
