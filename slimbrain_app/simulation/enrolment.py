"""Who takes part: the people whose series, phenotypes and atlas fit together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import CallRefused
from slimbrain_app.records import Contract
from slimbrain_app.simulation.parcels import Atlas
from slimbrain_app.simulation.phenotype import (
    DISPLACEMENTS,
    KEYS,
    SITES,
    TIMES,
    find_column,
    read_phenotype,
)
from slimbrain_app.simulation.recorded import (
    Inputs,
    Volunteer,
    list_people,
    read_atlas,
    read_deviations,
)

if TYPE_CHECKING:
    import pandas as pd

Content = TypeVar("Content")
# What is wrong, and with whom; with nobody where it is about a file.
Fault = tuple[str, str]

_SHORTEST_TR, _LONGEST_TR = 0.1, 10.0
# In s: rounding does not make a series too short.
_ROUNDING = 1e-6
# So many people are named in a fault; the others are counted.
_NAMED = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """People who can be simulated.

    Attributes
    ----------
    table : DataFrame
        Their rows of the phenotypes, all cells text.
    key : str
        The column that names them.
    """

    atlas: Atlas
    volunteers: tuple[Volunteer, ...]
    table: pd.DataFrame
    key: str


def enrol(inputs: Inputs, participants: int | None) -> Cohort:
    """Take the people of the phenotypes that have a series, or the first so many of them.

    Raises
    ------
    CallRefused
        ``cohort-bad``: all files that can't be read and columns that are missing; or, where there
        are none, all that is wrong with what is in them.
    """
    faults: list[str] = []
    table = _open(inputs.phenotype, read_phenotype, faults)
    atlas = _open(inputs.atlas, read_atlas, faults)
    names = _open(inputs.series, list_people, faults)
    if inputs.moments is not None:
        _open(inputs.moments, read_deviations, faults)
    if table is not None:
        faults += _check_columns(table)
    _refuse(faults)
    assert table is not None and atlas is not None and names is not None

    key = find_column(table, KEYS)
    assert key is not None
    rows = table[table[key].isin(names)].head(participants or len(table))
    volunteers = tuple(_read_rows(rows, key))
    if not volunteers:
        _refuse([f"nobody in column {key} of {inputs.phenotype.name} has a series"])
    _refuse(_gather([*_check_people(volunteers), *_check_series(inputs, volunteers, atlas)]))
    return Cohort(atlas=atlas, volunteers=volunteers, table=rows, key=key)


def _open(path: Path, reader: Callable[[Path], Content], faults: list[str]) -> Content | None:
    try:
        return reader(path)
    except (OSError, ValueError, np.linalg.LinAlgError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        faults.append(f"{path.name}: {reason or error}")
        return None


def _check_columns(table: pd.DataFrame) -> Iterator[str]:
    for names in (KEYS, TIMES):
        if find_column(table, names) is None:
            yield f"no column {' or '.join(names)} among the phenotypes"
    for name, count in Counter(column.lower() for column in table.columns).items():
        if count > 1:
            yield f"{count} columns {name} among the phenotypes"


def _read_rows(rows: pd.DataFrame, key: str) -> Iterator[Volunteer]:
    """Make people of rows; what is no number becomes NaN."""
    import pandas as pd

    def cells(names: Iterable[str]) -> Any:
        column = find_column(rows, names)
        return rows[column] if column else pd.Series(None, rows.index, dtype=str)

    times, moved = (pd.to_numeric(cells(names), "coerce") for names in (TIMES, DISPLACEMENTS))
    known = cells(DISPLACEMENTS).notna()
    people = zip(rows[key], times, cells(SITES).fillna(""), moved, known, strict=True)
    for source, tr, site, displacement, is_known in people:
        yield Volunteer(
            label=re.sub("[^A-Za-z0-9]", "", source.removeprefix("sub-")),
            source=source,
            tr=float(tr),
            site=site,
            displacement=float(displacement) if is_known else None,
        )


def _check_people(volunteers: tuple[Volunteer, ...]) -> Iterator[Fault]:
    # Some file systems take A and a for the same.
    labels = Counter(person.label.lower() for person in volunteers)
    for person in volunteers:
        if not person.label:
            yield "no letter or digit to make a label of", person.source
        elif labels[person.label.lower()] > 1:
            yield f"label {person.label} for more than one", person.source
        if not _SHORTEST_TR <= person.tr <= _LONGEST_TR:
            yield f"no TR from {_SHORTEST_TR:g} to {_LONGEST_TR:g} s", person.source
        if person.displacement is not None and not 0 <= person.displacement < np.inf:
            yield f"{DISPLACEMENTS[0]} is no length", person.source


def _check_series(
    inputs: Inputs, volunteers: tuple[Volunteer, ...], atlas: Atlas
) -> Iterator[Fault]:
    deviations = None if inputs.moments is None else read_deviations(inputs.moments)
    with np.load(inputs.series) as archive:
        for person in volunteers:
            fault = _judge_series(archive[person.source], person.tr, atlas.regions)
            if fault:
                yield fault, person.source
            if deviations is not None:
                fault = _judge_deviations(deviations.get(person.source), atlas.regions)
                if fault:
                    yield fault, person.source


def _judge_series(series: NDArray[Any], tr: float, regions: int) -> str | None:
    seconds = Contract().span_seconds
    if series.ndim != 2 or series.dtype.kind not in "iuf":
        return "the series is no table of numbers, volumes by regions"
    if series.shape[1] != regions:
        return f"{series.shape[1]} regions in the series, {regions} in the atlas"
    if not np.isfinite(series).all():
        return "values that aren't finite in the series"
    # Whether the TR is a number was asked before.
    if (len(series) - 1) * tr < seconds - _ROUNDING:
        return f"less than {seconds:.2f} s from first to last volume, one window"
    if not np.ptp(series, axis=0).any():
        return "no region changes over time"
    return None


def _judge_deviations(deviations: NDArray[np.float64] | None, regions: int) -> str | None:
    if deviations is None:
        return "no moments"
    if len(deviations) != regions:
        return f"{len(deviations)} regions in the moments, {regions} in the atlas"
    if not (np.isfinite(deviations) & (deviations >= 0)).all() or not deviations.any():
        return "moments that are no deviations"
    return None


def _gather(faults: Iterable[Fault]) -> list[str]:
    """Say each fault once, with the people whom it concerns."""
    people: dict[str, list[str]] = {}
    for fault, person in faults:
        people.setdefault(fault, []).append(person)
    return [f"{fault} ({_list_names(names)})" for fault, names in people.items()]


def _list_names(people: list[str]) -> str:
    more = f" and {len(people) - _NAMED} more" if len(people) > _NAMED else ""
    return f"{', '.join(people[:_NAMED])}{more}"


def _refuse(faults: list[str]) -> None:
    if faults:
        raise CallRefused(
            "cohort-bad",
            expected="series, phenotypes and an atlas of the same people and regions",
            found="; ".join(faults),
            advice="correct the files, or leave people out of the phenotypes",
        )
