"""A file of splits: who is fitted to and who is judged, as the user has laid it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import KEY, Row, is_missing, list_some, read_phenotype

FOLD, PART = "fold", "part"
PARTS = ("train", "validation", "test")
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
        lacking = [name for name in ("train", "test") if name not in present]
        if lacking:
            yield "too-few", f"nobody in {' or '.join(lacking)}"
    elif len(present) < 2:
        yield "too-few", f"one fold only, {shorten(min(present))}"
