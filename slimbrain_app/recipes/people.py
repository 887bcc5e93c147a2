"""A cohort's own table of people, brought into the form that an evaluation reads."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import (
    KEY,
    Phenotype,
    Row,
    is_missing,
    list_some,
    name_class,
    read_number,
    read_phenotype,
)
from slimbrain_app.files import whole_file, write_json
from slimbrain_app.recipes.recipe import People, Recipe, Target

MISSING = "n/a"


@dataclass(frozen=True, slots=True)
class Mapped:
    """People as a recipe has them.

    ``left_out`` counts the cells of people with runs that belong to no class, by what they hold;
    ``column`` is the one that the outcome was read from.
    """

    phenotype: Phenotype
    column: str
    left_out: Mapping[str, int]


def map_people(recipe: Recipe, file: Path, labels: Collection[str]) -> Mapped:
    """Read a cohort's table and translate names of people, codes of classes and names of columns.

    Rows keep their number, so that what is said of them can be found in the table. A table that
    was written by `write_people` is taken as well, and stays as it is.

    Parameters
    ----------
    recipe : Recipe
    file : Path
    labels : collection of str
        Of the people with runs, without ``sub-``: a row's person is called as one of them is.

    Raises
    ------
    CallRefused
        ``no-outcome`` if the table can't be read or has no column with the outcome.
    """
    target, people = recipe.outcome, recipe.people
    raw = read_phenotype(file, (KEY, *people.keys))
    column = _find(raw, (target.name, *target.columns))
    if column is None:
        raise CallRefused(
            "no-outcome",
            file=file,
            expected=f"a column {' or '.join(target.columns)}, or {target.name} with what is told",
            found=f"the columns {list_some(raw.columns)}",
            advice=f"take the table of people that {recipe.data.cohort} shares, or add the column",
        )
    others: list[tuple[str, tuple[str, ...]]] = [*people.covariates.items()]
    if people.family:
        others.append(("family", people.family))
    sources = {name: _find(raw, (name, *columns)) for name, columns in others}
    known, left_out = set(labels), Counter[str]()
    rows = []
    for row in raw.rows:
        person = match_person(row.person, people, known)
        cell = _take(raw, row, column, people)
        told = read_cell(target, cell, own=column == target.name)
        if told == MISSING and not is_missing(cell) and person in known:
            left_out[cell] += 1
        taken = (_name(name, _take(raw, row, place, people)) for name, place in sources.items())
        rows.append(Row(row.number, person, (f"sub-{person}", told, *taken)))
    columns = (KEY, target.name, *sources)
    mapped = Phenotype(file, columns, tuple(rows), _describe(target, column))
    return Mapped(mapped, column, left_out)


def write_people(people: Phenotype, file: Path) -> None:
    """Write people as tabs part them, and beside them what the outcome is.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    with whole_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text, delimiter="\t", lineterminator="\n")
        rows.writerow(people.columns)
        rows.writerows(row.cells for row in people.rows)
    write_json(file.with_suffix(".json"), people.sidecar)


def match_person(name: str, people: People, labels: Collection[str]) -> str:
    """Return the label of a person whom a cohort calls by a name, as one of the labels has it.

    Nothing is guessed: marks are left out, for labels can't hold them, a number is written with the
    cohort's digits, and one of its prefixes may stand before it. Where no label is the person's,
    the first of these forms is returned.
    """
    forms = list(_spell(re.sub(r"[^A-Za-z0-9]", "", name_class(name)), people))
    return next((form for form in forms if form in labels), forms[0])


def _spell(bare: str, people: People) -> Iterator[str]:
    numbered = bare.zfill(people.digits) if bare.isdecimal() else bare
    for form in dict.fromkeys((numbered, bare)):
        yield form
        yield from (prefix + form for prefix in people.prefixes)


def read_cell(target: Target, cell: str, *, own: bool) -> str:
    """Return the class or number of a cell, or ``n/a``.

    Parameters
    ----------
    target : Target
    cell : str
    own : bool
        The column is called as the outcome is: then it holds classes, not the cohort's codes.
    """
    if is_missing(cell):
        return MISSING
    if target.units is not None:
        return cell
    if cell in target.labels:
        return cell
    if own:
        return MISSING
    code, number = name_class(cell), read_number(cell)
    for name, codes in target.classes.items():
        if code in codes:
            return name
    for name, (low, high) in target.bands.items():
        if number is not None and low <= number < high:
            return name
    return MISSING


def _find(table: Phenotype, names: Sequence[str]) -> str | None:
    return next((name for name in names if table.columns.count(name) == 1), None)


def _take(table: Phenotype, row: Row, column: str | None, people: People) -> str:
    """Return a cell, or ``n/a`` for the cohort's marks of what is not known."""
    cell = MISSING if column is None else row.cells[table.columns.index(column)]
    return MISSING if is_missing(cell) or name_class(cell) in people.missing else cell


def _name(column: str, cell: str) -> str:
    # A site's number would be taken for an amount.
    return f"site{cell}" if column == "site" and cell.isdecimal() else cell


def _describe(target: Target, column: str) -> dict[str, Any]:
    if target.units is not None:
        return {target.name: {"Description": f"From {column}", "Units": target.units}}
    levels = {name: f"{column} {', '.join(codes)}" for name, codes in target.classes.items()}
    levels |= {
        name: f"{column} from {low:g} up to, but without, {high:g}"
        for name, (low, high) in target.bands.items()
    }
    return {target.name: {"Description": f"From {column}", "Levels": levels}}
