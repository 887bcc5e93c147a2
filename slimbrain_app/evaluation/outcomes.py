"""Outcomes: what is to be predicted of people, out of a table that says it of each.

The kind of a column is told from all its rows, also of people without runs, so that it doesn't
change with who is selected. Faults are those of the people asked for.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import parse_json

Integers = NDArray[np.int64]
Kind = Literal["class", "number"]
Value = str | float

KEY = "participant_id"
# Whole numbers with so many values at most are taken for codes of classes.
MOST_CODES = 5
_MISSING = ("", "n/a", "nan")
# Other programs' marks for what is missing: as a value, each would go unnoticed.
_DOUBTFUL = ("NA", "<NA>", "NULL", "null", "#N/A", "-999", "-9999")
_WORST_FIRST = ("no-outcome", "outcome-constant", "too-few")
_CELLS_NAMED, _PEOPLE_NAMED = 10, 5


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is to be predicted, one row per person.

    Attributes
    ----------
    name : str
    kind : {"class", "number"}
    values : array, (people,)
        Labels of classes, or finite numbers.
    people : sequence of str
        Labels; they, not the order of rows, decide who is in which fold.
    sites : sequence of str, optional
        The site, family or other group that no fold may split.
    units : str, optional
        Of numbers, as the sidecar states them.
    levels : mapping of str to str
        What each class is, as the sidecar states it.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    people: Sequence[str]
    sites: Sequence[str] | None = None
    units: str | None = None
    levels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sites = self.people if self.sites is None else self.sites
        if not len(set(self.people)) == len(self.people) == len(self.values) == len(sites):
            raise ValueError(f"{self.name}: one value, one site and one label for each person")

    @property
    def classes(self) -> NDArray[Any]:
        return np.unique(self.values)

    def take(self, rows: Integers) -> Outcome:
        """Return the outcome of some people."""
        return replace(
            self,
            values=self.values[rows],
            people=[self.people[row] for row in rows],
            sites=None if self.sites is None else [self.sites[row] for row in rows],
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table of people; numbered from 1, the header's, as spreadsheets do."""

    number: int
    person: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Phenotype:
    """A table of people, all cells text, and what its sidecar says of columns."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    sidecar: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Cell:
    row: int
    person: str
    text: str

    def __str__(self) -> str:
        return f"{shorten(self.text)} (row {self.row})"


@dataclass(frozen=True, slots=True)
class _Column:
    """The cells of an outcome that aren't missing, with what the sidecar says of it."""

    name: str
    cells: tuple[_Cell, ...]
    units: str | None
    levels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Fault:
    reason: str
    found: str
    advice: str


def read_phenotype(file: Path, keys: Sequence[str] = (KEY,)) -> Phenotype:
    """Read ``participants.tsv`` or another table of people, and the JSON beside it if there.

    Cells are parted by commas if the name ends in ``.csv``, else by tabs, and stripped of blanks.
    Participants are written ``sub-01`` or ``01``. Rows without any text are passed over.

    Parameters
    ----------
    file : Path
    keys : sequence of str
        Columns that may say who a row is of; the first one that is there does.

    Raises
    ------
    CallRefused
        ``no-outcome`` if the table or its sidecar can't be read, has no column that says who a row
        is of, or no row, a row without a participant, or one with other cells than the header.
    """
    (_, columns), *table = _read_cells(file) or [(1, ())]
    name = next((name for name in keys if columns.count(name) == 1), None)
    if name is None:
        found = f"the columns {list_some([*map(shorten, columns)]) or 'of an empty file'}"
        raise _unreadable(file, f"one column {' or '.join(keys)}", found)
    if not table:
        raise _unreadable(file, "a row for each person", "nothing below the header")
    ragged = [f"{len(cells)} in row {row}" for row, cells in table if len(cells) != len(columns)]
    if ragged:
        expected = f"{len(columns)} cells in each row, as in the header"
        raise _unreadable(file, expected, list_some(ragged))
    key = columns.index(name)
    rows = [Row(number, cells[key].removeprefix("sub-"), cells) for number, cells in table]
    nameless = [str(row.number) for row in rows if is_missing(row.person)]
    if nameless:
        raise _unreadable(file, f"a {name} in each row", f"none in row {list_some(nameless)}")
    return Phenotype(file, columns, tuple(rows), _read_sidecar(file.with_suffix(".json")))


def take_outcomes(
    phenotype: Phenotype,
    names: Iterable[str],
    people: Sequence[str],
    kinds: Mapping[str, Kind],
) -> tuple[tuple[Outcome, ...], tuple[str, ...]]:
    """Take outcomes of people with runs out of a table.

    Whoever lacks a value is left out of that outcome only. Somebody with several rows must have
    the same value in all that have one. Whole numbers are one class with and without ``.0``.

    Parameters
    ----------
    phenotype : Phenotype
    names : iterable of str
        Columns.
    people : sequence of str
        Their labels without ``sub-``; outcomes keep their order.
    kinds : mapping of str to {"class", "number"}
        Of columns whose kind is not left to their values and sidecar.

    Returns
    -------
    outcomes : tuple of Outcome
        In the order of names, without sites.
    notes : tuple of str
        For each outcome what it was taken for, why, and of how many people; then who has no row.

    Raises
    ------
    CallRefused
        All that is wrong with any of the columns, under the worst reason: ``no-outcome``,
        ``outcome-constant`` or ``too-few``.
    """
    present = {row.person for row in phenotype.rows}
    known = [person for person in people if person in present]
    faults = [] if known else [_describe_strangers(people, sorted(present))]
    outcomes, notes = [], []
    for name in dict.fromkeys(names):
        column = _find_column(phenotype, name)
        if isinstance(column, _Fault):
            faults.append(column)
        elif known:
            kind, why = _decide_kind(column, kinds.get(name))
            values, wrong = _read_values(column, kind, set(known))
            # Of values that are partly unread, nobody knows how they spread.
            wrong = wrong or _check_spread(name, values)
            faults += wrong
            if not wrong:
                outcome = _make_outcome(column, kind, values, known)
                outcomes.append(outcome)
                notes.append(_describe_outcome(outcome, why, len(known)))
    if faults:
        raise _refuse(phenotype, faults)
    return tuple(outcomes), (*notes, *_note_absent(phenotype, people, present))


def _read_cells(file: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Return the rows that have any text, with their numbers."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _unreadable(file, "a table of people", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable(file, "text in UTF-8", str(error)) from error
    if "\0" in text:
        raise _unreadable(file, "text in UTF-8", "zero bytes, as in UTF-16")
    delimiter = "," if file.suffix == ".csv" else "\t"
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [
            (number, tuple(cell.strip() for cell in cells))
            for number, cells in enumerate(lines, 1)
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise _unreadable(file, "rows of cells", f"{error}, near line {lines.line_num}") from error


def _read_sidecar(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {}
    try:
        content = parse_json(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise _unreadable(file, "a JSON object", error.strerror or str(error)) from error
    except ValueError as error:
        raise _unreadable(file, "a JSON object", str(error)) from error
    if not isinstance(content, dict):
        raise _unreadable(file, "a JSON object", f"a {type(content).__name__}")
    return content


def _find_column(phenotype: Phenotype, name: str) -> _Column | _Fault:
    count = phenotype.columns.count(name)
    if count == 0:
        near = _find_near(name, [column for column in phenotype.columns if column != KEY])
        return _Fault(
            "no-outcome", f"no column {shorten(name)}", f"instead of {shorten(name)}, try {near}"
        )
    if count > 1:
        found = f"{count} columns {shorten(name)}"
        return _Fault("no-outcome", found, "give each column a name of its own")
    described = _read_description(phenotype.sidecar.get(name, {}))
    if isinstance(described, str):
        found = f"{name}: in the sidecar, {described}"
        return _Fault("no-outcome", found, "correct the sidecar as BIDS has it")
    place = phenotype.columns.index(name)
    cells = (_Cell(row.number, row.person, row.cells[place]) for row in phenotype.rows)
    return _Column(name, tuple(cell for cell in cells if not is_missing(cell.text)), *described)


def _read_description(entry: Any) -> tuple[str | None, Mapping[str, str]] | str:
    """Return units and levels that a sidecar states of a column, or what is wrong with it."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__} instead of an object"
    units, levels = entry.get("Units") or "", entry.get("Levels") or {}
    if not isinstance(units, str):
        return f"Units are a {type(units).__name__} instead of text"
    if not isinstance(levels, dict):
        return f"Levels are a {type(levels).__name__} instead of an object"
    # Since BIDS 1.8 a level may be an object that has its description.
    texts = {
        name_class(label): level.get("Description", "") if isinstance(level, dict) else level
        for label, level in levels.items()
        if not is_missing(label)
    }
    wrong = [shorten(label) for label, text in texts.items() if not isinstance(text, str)]
    if wrong:
        return f"no description of level {list_some(wrong)}"
    return None if is_missing(units.strip()) else units.strip(), texts


def _decide_kind(column: _Column, wanted: Kind | None) -> tuple[Kind, str]:
    """Return what a column is taken for, and why."""
    if wanted is not None:
        return wanted, "as the settings say"
    if column.levels:
        return "class", "for the sidecar lists levels"
    texts = [cell.text for cell in column.cells if name_class(cell.text) not in _DOUBTFUL]
    numbers = [number for text in texts if (number := read_number(text)) is not None]
    if 2 * len(numbers) <= len(texts):
        return "class", "for the values are text"
    if column.units:
        return "number", "for the sidecar states a unit"
    distinct = set(numbers)
    are_whole = len(numbers) == len(texts) and all(number.is_integer() for number in distinct)
    if are_whole and len(distinct) <= MOST_CODES:
        hint = f"if they are amounts, set {_write_kind(column.name, 'number')}"
        return "class", f"for there are only {len(distinct)} whole numbers ({hint})"
    return "number", "for the values are numbers"


def _read_values(
    column: _Column, kind: Kind, people: set[str]
) -> tuple[dict[str, Value], list[_Fault]]:
    """Return the value of each person who has one, and all cells that have none to take."""
    first: dict[str, tuple[_Cell, Value]] = {}
    strays, differing = [], []
    for cell in column.cells:
        if cell.person not in people:
            continue
        value = _read_value(cell.text, kind, column.levels)
        if value is None:
            strays.append(str(cell))
            continue
        before, same = first.setdefault(cell.person, (cell, value))
        if value != same:
            differing.append(f"{cell.person} has {before} and {cell}")
    values = {person: value for person, (_, value) in first.items()}
    faults = [_describe_strays(column, kind, strays)] if strays else []
    if differing:
        found = f"{column.name}: people with two values, {list_some(differing)}"
        faults.append(_Fault("no-outcome", found, "keep the rows of one visit, or one value"))
    return values, faults


def _read_value(text: str, kind: Kind, levels: Mapping[str, str]) -> Value | None:
    label = name_class(text)
    if kind == "class":
        known = label in levels if levels else label not in _DOUBTFUL
        return label if known else None
    number = None if label in _DOUBTFUL else read_number(text)
    return number if number is not None and math.isfinite(number) else None


def _describe_strays(column: _Column, kind: Kind, strays: Sequence[str]) -> _Fault:
    missing = "n/a for what is missing"
    if kind == "number":
        what = "no finite numbers"
        other = f"if they name classes, set {_write_kind(column.name, 'class')}"
        advice = f"write numbers with a point and without unit, and {missing}; {other}"
    elif column.levels:
        what = f"none of the sidecar's levels {list_some([*map(shorten, column.levels)])}"
        advice = f"use the sidecar's levels or add to them, and write {missing}"
    else:
        what = "no class, but a sign of a missing value"
        advice = f"write {missing}, or describe it in the sidecar's Levels"
    return _Fault("no-outcome", f"{column.name}: {what}: {list_some(strays)}", advice)


def _check_spread(name: str, values: Mapping[str, Value]) -> list[_Fault]:
    if not values:
        found = f"{name}: missing for everybody with runs"
        return [_Fault("no-outcome", found, "leave out what nobody has")]
    counts = Counter(values.values())
    if len(counts) == 1:
        found = f"{name}: {shorten(values[next(iter(values))])} for all {len(values)} with runs"
        return [_Fault("outcome-constant", found, "leave out what is the same for everybody")]
    alone = [
        f"{shorten(value)} (only {person})"
        for person, value in values.items()
        if isinstance(value, str) and counts[value] == 1
    ]
    if not alone:
        return []
    found = f"{name}: classes of one person with runs, {list_some(alone)}"
    advice = "join small classes or write n/a for them"
    if all(read_number(str(value)) is not None for value in values.values()):
        advice += f"; if they are amounts, set {_write_kind(name, 'number')}"
    return [_Fault("too-few", found, advice)]


def _make_outcome(
    column: _Column, kind: Kind, values: Mapping[str, Value], people: Sequence[str]
) -> Outcome:
    kept = [person for person in people if person in values]
    present = set(values.values())
    return Outcome(
        column.name,
        kind,
        np.array([values[person] for person in kept]),
        kept,
        units=column.units if kind == "number" else None,
        levels={label: text for label, text in column.levels.items() if label in present},
    )


def _describe_outcome(outcome: Outcome, why: str, people: int) -> str:
    if outcome.kind == "number":
        what = f"numbers in {outcome.units}" if outcome.units else "numbers"
    else:
        counts = Counter(outcome.values.tolist())
        sizes = [f"{shorten(label)} {count}" for label, count in sorted(counts.items())]
        what = f"{len(counts)} classes ({list_some(sizes)})"
    count = len(outcome.people)
    left_out = f", {people - count} left out for want of a value" if count < people else ""
    return f"{outcome.name}: {what}, {why}; {count} people{left_out}"


def _note_absent(phenotype: Phenotype, people: Sequence[str], present: set[str]) -> tuple[str, ...]:
    absent = [person for person in people if person not in present]
    if not absent:
        return ()
    named = list_some(absent, _PEOPLE_NAMED)
    return (
        f"{len(absent)} of {len(people)} people with runs have no row in {phenotype.file.name}"
        f" and are left out: {named}",
    )


def _describe_strangers(people: Sequence[str], present: Sequence[str]) -> _Fault:
    found = (
        f"no row of anybody with runs: with runs {pair_nearest(people, present)}; "
        f"in the table {pair_nearest(present, people)}"
    )
    return _Fault("no-outcome", found, f"write {KEY} as the folders of people are called")


def pair_nearest(labels: Sequence[str], others: Sequence[str]) -> str:
    """List the first labels, each with the other one that it resembles most."""
    paired = []
    for label in labels[:_PEOPLE_NAMED]:
        same_number = [other for other in others if other.lstrip("0") == label.lstrip("0")]
        near = same_number or difflib.get_close_matches(label, others, n=1, cutoff=0)
        paired.append(f"{label} (nearest there: {near[0] if near else 'none'})")
    return ", ".join(paired)


def _find_near(name: str, columns: Sequence[str]) -> str:
    """Return columns with a name like this in any case, or else the first ones."""
    lower = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)
    return " or ".join(lower[each] for each in near) or f"one of {list_some(columns)}"


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known."""
    return text.lower() in _MISSING


def name_class(text: str) -> str:
    """Return a cell as the name of a class: programs write 1.0 as soon as one code is missing."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)


def read_number(text: str) -> float | None:
    """Return a cell as a number; None where it is none."""
    # Python's own spelling, 1_000, and digits of other scripts are no one's intention.
    if "_" in text or not text.isascii():
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _write_kind(name: str, kind: Kind) -> str:
    return f'predict.kinds = {{{json.dumps(name)} = "{kind}"}}'


def list_some(items: Sequence[str], most: int = _CELLS_NAMED) -> str:
    """Return the first items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}"


def _unreadable(file: Path, expected: str, found: str) -> CallRefused:
    return CallRefused(
        "no-outcome",
        file=file,
        expected=expected,
        found=found,
        advice="mend the file, or give another table, of tabs (.tsv) or commas (.csv)",
    )


def _refuse(phenotype: Phenotype, faults: Sequence[_Fault]) -> CallRefused:
    ordered = sorted(faults, key=lambda fault: _WORST_FIRST.index(fault.reason))
    return CallRefused(
        ordered[0].reason,
        file=phenotype.file,
        expected="of each outcome finite numbers that differ, or classes of two people or more",
        found="; ".join(fault.found for fault in ordered),
        advice="; ".join(dict.fromkeys(fault.advice for fault in ordered)),
    )
