"""A file of splits: who is fitted to and who is judged, as the user has laid it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten

import numpy as np

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import (
    KEY,
    Integers,
    Outcome,
    Row,
    is_missing,
    list_some,
    pair_nearest,
    read_phenotype,
)
from slimbrain_app.evaluation.splits import NO_FOLD

FOLD, PART = "fold", "part"
TEST = "test"
PARTS = ("train", "validation", TEST)
_PEOPLE_NAMED = 5


@dataclass(frozen=True, slots=True)
class Split:
    """Where a file puts people.

    Attributes
    ----------
    of : mapping of str to str
        The fold or part of each person, by label without ``sub-``.
    parts : bool
        Whether these are train, validation and test, not folds that are left out one by one.
    name : str
        Of the file, for messages.
    """

    of: Mapping[str, str]
    parts: bool
    name: str = "judge.split"


def read_split(path: Path) -> Split:
    """Read a table of people with their folds, or with their parts.

    Beside ``participant_id`` it has either a column ``fold``, with labels of any kind, or a column
    ``part``, with ``train``, ``validation`` and ``test``. Other columns are passed over.

    Raises
    ------
    CallRefused
        ``leak`` for people in two folds or parts; ``no-outcome`` if the table can't be read or says
        something else; ``too-few`` without two folds, or without train or test.
    """
    table = read_phenotype(path)
    columns = [name for name in table.columns if name in (FOLD, PART)]
    if len(columns) != 1:
        raise CallRefused(
            "no-outcome",
            file=path,
            expected=f"beside {KEY} one column, {FOLD} or {PART}",
            found=f"the columns {list_some([*map(shorten, table.columns)])}",
            advice=f"give each person a {FOLD}, or a {PART} of {', '.join(PARTS)}",
        )
    place, parts = table.columns.index(columns[0]), columns == [PART]
    faults = list(_find_faults(table.rows, place, parts))
    of = {row.person: row.cells[place] for row in table.rows}
    # Of cells that are partly wrong, nobody knows what is lacking.
    faults = faults or list(_find_gaps(set(of.values()), parts))
    if faults:
        raise CallRefused(
            faults[0][0],
            file=path,
            expected=f"each person in one {columns[0]}, "
            + ("train, validation or test" if parts else "and two folds or more"),
            found="; ".join(found for _, found in faults),
            advice="give each person who takes part one row, and leave out the others",
        )
    return Split(of, parts, path.name)


def match_split(split: Split, people: Sequence[str]) -> tuple[str, ...]:
    """Return who of the people with runs is not in a split, and how many of it have none.

    Raises
    ------
    CallRefused
        ``no-outcome`` if it has none of these people.
    """
    listed = set(split.of)
    absent = [f"sub-{label}" for label in people if label not in listed]
    if len(absent) == len(people):
        raise CallRefused(
            "no-outcome",
            file=split.name,
            expected="people with runs",
            found=f"none of them: with runs {pair_nearest(people, sorted(listed))}; "
            f"in the table {pair_nearest(sorted(listed), people)}",
            advice=f"write {KEY} as the folders of people are called",
        )
    notes = []
    if absent:
        notes.append(
            f"{len(absent)} of {len(people)} people with runs are not in {split.name} and take no "
            f"part: {list_some(absent, _PEOPLE_NAMED)}"
        )
    if others := len(listed.difference(people)):
        notes.append(f"{others} people in {split.name} have no run here")
    return tuple(notes)


def cut_by_file(outcome: Outcome, split: Split) -> Integers:
    """Return the fold of each person, (1, people): by the length of its name, then the alphabet.

    Of parts, test is the only fold.

    Parameters
    ----------
    outcome : Outcome
        Of people in the split, with families that it may not part.
    split : Split

    Raises
    ------
    CallRefused
        ``leak`` for a family on two sides; ``too-few`` if there is but one side, or nothing to
        learn or to tell apart on one.
    """
    sides = [split.of[label] for label in outcome.people]
    # So 10 comes after 9.
    order = sorted(set(split.of.values()), key=lambda name: (len(name), name))
    folds = [TEST] if split.parts else order
    cut = np.array([folds.index(side) if side in folds else NO_FOLD for side in sides], int)
    refuse_kin(outcome, cut, split)
    thin = list(_find_thin(outcome, cut, split.parts))
    if thin:
        raise CallRefused(
            "too-few",
            file=split.name,
            expected=f"people with different {outcome.name} to fit to and to judge by",
            found="; ".join(thin),
            advice="cut the people otherwise, or leave this outcome out",
        )
    return cut[None]


def refuse_kin(outcome: Outcome, cut: Integers, split: Split) -> None:
    """Refuse a family, as ``sites`` name it, on two sides of a cut (people,): ``leak``."""
    families: dict[str, list[int]] = {}
    for row, family in enumerate(outcome.sites or ()):
        families.setdefault(family, []).append(row)
    torn = [
        f"{family}: "
        + ", ".join(f"sub-{outcome.people[row]} in {split.of[outcome.people[row]]}" for row in rows)
        for family, rows in families.items()
        if len(set(cut[rows])) > 1
    ]
    if torn:
        raise CallRefused(
            "leak",
            file=split.name,
            expected="each family on one side",
            found=list_some([f"family {one}" for one in sorted(torn)], _PEOPLE_NAMED),
            advice="move families as a whole, or leave out their other members",
        )


def _find_thin(outcome: Outcome, cut: Integers, parts: bool) -> Iterator[str]:
    """Yield what a side has too little of."""
    count = f"{len(cut)} people with runs and {outcome.name}"
    if len(set(cut)) < 2:
        yield f"{count}, all on one side"
    elif len(outcome.classes) < 2:
        yield f"{count}, all with the same value"
    elif parts:
        for name, values in (
            ("train and validation", outcome.values[cut == NO_FOLD]),
            (TEST, outcome.values[cut != NO_FOLD]),
        ):
            lacking = [shorten(str(one)) for one in np.setdiff1d(outcome.classes, values)]
            if outcome.kind == "class" and lacking:
                yield f"{outcome.name}: no {list_some(lacking)} in {name}"
            elif len(np.unique(values)) < 2:
                yield f"{outcome.name}: one value in {name}"


def _find_faults(rows: Sequence[Row], place: int, parts: bool) -> Iterator[tuple[str, str]]:
    """Yield a reason and what was found, the worst first."""
    sides: dict[str, set[str]] = {}
    empty, strange = [], []
    for row in rows:
        cell = row.cells[place]
        if is_missing(cell):
            empty.append(str(row.number))
            continue
        sides.setdefault(row.person, set()).add(cell)
        if parts and cell not in PARTS:
            strange.append(f"{shorten(cell)} (row {row.number})")
    twice = [
        f"sub-{person} in {' and '.join(sorted(own))}"
        for person, own in sides.items()
        if len(own) > 1
    ]
    if twice:
        yield "leak", f"people on two sides: {list_some(twice, _PEOPLE_NAMED)}"
    if strange:
        yield "no-outcome", f"other parts: {list_some(strange)}"
    if empty:
        yield "no-outcome", f"an empty cell in row {list_some(empty)}"


def _find_gaps(present: set[str], parts: bool) -> Iterator[tuple[str, str]]:
    if parts:
        lacking = [name for name in ("train", TEST) if name not in present]
        if lacking:
            yield "too-few", f"nobody in {' or '.join(lacking)}"
    elif len(present) < 2:
        yield "too-few", f"one fold only, {shorten(min(present))}"
