"""Real people's series by region, their phenotypes, and the atlas: read, and held to each other."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

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

if TYPE_CHECKING:
    import pandas as pd

Content = TypeVar("Content")
Fault = tuple[str, str]

_SHORTEST_TR, _LONGEST_TR = 0.1, 10.0
_ROUNDING = 1e-6
# People named in one fault; the others are counted.
_NAMED = 5
# Deviations of regions, relative to a person's median, are held within these.
_WEAKEST, _STRONGEST = 0.25, 4.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files that a cohort is made of.

    Attributes
    ----------
    series : Path
        NPZ of one array (volumes, regions) per person.
    atlas : Path
        NIfTI of the regions; column k is the region of the k-th smallest number.
    phenotype : Path
        CSV or TSV of one row per person.
    moments : Path, optional
        NPZ of ``file_id`` and ``std`` (people, regions): how strong each region's signal is.
    """

    series: Path
    atlas: Path
    phenotype: Path
    moments: Path | None = None

    @property
    def signal(self) -> tuple[Path, ...]:
        """What decides the signal of people who are known."""
        return (self.series, self.atlas, *(() if self.moments is None else (self.moments,)))

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.signal, self.phenotype)


@dataclass(frozen=True, kw_only=True)
class Volunteer:
    """A real person whose series are at hand. ``displacement`` is the mean framewise one in mm."""

    label: str
    source: str
    tr: float
    site: str
    displacement: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Who takes part: ``table`` has their rows in their order, the key in column ``key``."""

    inputs: Inputs
    atlas: Atlas
    volunteers: tuple[Volunteer, ...]
    table: pd.DataFrame
    key: str


def read_cohort(inputs: Inputs, participants: int | None) -> Cohort:
    """Read and check everything; the people are the rows with a series, in the table's order.

    Raises
    ------
    CallRefused
        ``cohort-bad``, with all that is wrong.
    """
    faults: list[str] = []
    table = _open(inputs.phenotype, read_phenotype, faults)
    atlas = _open(inputs.atlas, read_atlas, faults)
    names = _open(inputs.series, _list_arrays, faults)
    if table is not None:
        faults += _check_columns(table)
    _refuse(faults)
    assert table is not None and atlas is not None and names is not None

    key = find_column(table, KEYS) or ""
    rows = table[table[key].isin(names)].head(participants or len(table))
    if rows.empty:
        _refuse([f"none of the people in column {key} of {inputs.phenotype.name} has a series"])
    volunteers = tuple(_read_rows(rows, key))
    _refuse(_gather([*_check_people(volunteers), *_check_series(inputs, volunteers, atlas)]))
    return Cohort(inputs=inputs, atlas=atlas, volunteers=volunteers, table=rows, key=key)


def read_series(inputs: Inputs, volunteer: Volunteer) -> NDArray[np.float64]:
    """Return a person's series, shape (volumes, regions), each of mean 0.

    Its deviation is 1, or what the moments say, relative to the person's median region; that of a
    region without a signal is 0.
    """
    with np.load(inputs.series) as archive:
        series = archive[volunteer.source].astype(np.float64)
    series -= series.mean(axis=0)
    deviation = series.std(axis=0)
    series /= np.where(deviation > 0, deviation, 1)
    if inputs.moments is not None:
        series *= _read_strengths(inputs.moments, volunteer.source)
    return np.asarray(series)


def read_atlas(path: Path) -> Atlas:
    """Read an atlas; regions are counted from 1 in the order of their numbers.

    Raises
    ------
    OSError
    ValueError
        It isn't an atlas.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.Nifti1Image.from_filename(path)
        values = np.asanyarray(image.dataobj)
    except (ImageFileError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if values.ndim != 3 or not (np.isfinite(values).all() and np.all(values == np.rint(values))):
        raise ValueError("not one volume of whole numbers")
    if np.abs(np.linalg.det(image.affine[:3, :3])) < _ROUNDING or values.max() < 1:
        raise ValueError("no regions, or no place for them")
    present = np.unique(values[values > 0])
    numbers = np.where(values > 0, np.searchsorted(present, values) + 1, 0)
    return Atlas(numbers=numbers.astype(np.int64), affine=image.affine)


def _list_arrays(path: Path) -> list[str]:
    try:
        with np.load(path) as archive:
            return list(archive.files)
    except (zipfile.BadZipFile, AttributeError, TypeError, EOFError) as error:
        raise ValueError("not an NPZ archive") from error


def _open(path: Path, reader: Callable[[Path], Content], faults: list[str]) -> Content | None:
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        faults.append(f"{path.name}: {reason}")
        return None


def _check_columns(table: pd.DataFrame) -> Iterator[str]:
    for names in (KEYS, TIMES):
        if find_column(table, names) is None:
            yield f"no column {' or '.join(names)} among the phenotypes"
    for name, count in Counter(column.lower() for column in table.columns).items():
        if count > 1:
            yield f"{count} columns {name} among the phenotypes"


def _read_rows(rows: pd.DataFrame, key: str) -> Iterator[Volunteer]:
    """Take the people out of the table; what is no number there becomes NaN."""
    import pandas as pd

    nothing = pd.Series(index=rows.index, dtype=str)
    time, site, moved = (
        nothing if (column := find_column(rows, names)) is None else rows[column]
        for names in (TIMES, SITES, DISPLACEMENTS)
    )
    for source, seconds, place, motion in zip(
        rows[key], pd.to_numeric(time, "coerce"), site, moved, strict=True
    ):
        yield Volunteer(
            label=re.sub("[^A-Za-z0-9]", "", source.removeprefix("sub-")),
            source=source,
            tr=float(seconds),
            site="" if pd.isna(place) else str(place),
            displacement=None if pd.isna(motion) else _number(motion),
        )


def _check_people(volunteers: tuple[Volunteer, ...]) -> Iterator[Fault]:
    # Some file systems don't tell a from A.
    labels = Counter(person.label.lower() for person in volunteers)
    for person in volunteers:
        if not person.label:
            yield "no letter or digit to make a label of", person.source
        elif labels[person.label.lower()] > 1:
            yield f"label sub-{person.label} not theirs alone", person.source
        if not _SHORTEST_TR <= person.tr <= _LONGEST_TR:
            yield f"no TR from {_SHORTEST_TR:g} to {_LONGEST_TR:g} s", person.source
        if person.displacement is not None and not 0 <= person.displacement < np.inf:
            yield f"{DISPLACEMENTS[0]} isn't a length", person.source


def _check_series(
    inputs: Inputs, volunteers: tuple[Volunteer, ...], atlas: Atlas
) -> Iterator[Fault]:
    with np.load(inputs.series) as archive:
        for person in volunteers:
            for fault in _judge_series(archive[person.source], person.tr, atlas.regions):
                yield fault, person.source
    if inputs.moments is not None:
        yield from _check_moments(inputs.moments, volunteers, atlas.regions)


def _judge_series(series: NDArray[np.generic], tr: float, regions: int) -> Iterator[str]:
    seconds = Contract().span_seconds
    if series.ndim != 2 or series.dtype.kind not in "iuf":
        yield "the series is no table of numbers, volumes by regions"
    elif series.shape[1] != regions:
        yield f"{series.shape[1]} regions in the series, {regions} in the atlas"
    elif not np.isfinite(series).all():
        yield "values in the series that aren't finite"
    elif not np.ptp(series, axis=0).any():
        yield "no region changes over time"
    elif (len(series) - 1) * tr < seconds - _ROUNDING:
        yield f"less than {seconds:.2f} s from first to last volume"


def _check_moments(path: Path, volunteers: tuple[Volunteer, ...], regions: int) -> Iterator[Fault]:
    faults: list[str] = []
    known = _open(path, _read_moments, faults)
    yield from ((fault, "") for fault in faults)
    if known is None:
        return
    for person in volunteers:
        deviation = known.get(person.source)
        if deviation is None:
            yield f"not in {path.name}", person.source
        elif len(deviation) != regions:
            yield f"{len(deviation)} regions in {path.name}, {regions} in the atlas", person.source
        elif not (np.isfinite(deviation).all() and (deviation >= 0).all() and deviation.any()):
            yield f"{path.name} holds what is no deviation", person.source


def _read_moments(path: Path) -> dict[str, NDArray[np.float64]]:
    missing = {"file_id", "std"} - set(_list_arrays(path))
    if missing:
        raise ValueError(f"no array {', '.join(sorted(missing))}")
    with np.load(path) as archive:
        people, deviations = archive["file_id"], archive["std"].astype(np.float64)
    if deviations.ndim != 2 or len(deviations) != len(people):
        raise ValueError("std isn't a table of people by regions")
    return dict(zip(people.tolist(), deviations, strict=True))


def _read_strengths(path: Path, source: str) -> NDArray[np.float64]:
    """Return each region's deviation relative to the person's median, strays held in."""
    deviation = _read_moments(path)[source]
    relative = deviation / np.median(deviation[deviation > 0])
    return np.where(deviation > 0, np.clip(relative, _WEAKEST, _STRONGEST), 0)


def _gather(faults: Iterator[Fault] | list[Fault]) -> list[str]:
    """Say each fault once, with the people whom it concerns."""
    people: dict[str, list[str]] = {}
    for fault, person in faults:
        people.setdefault(fault, []).append(person)
    return [f"{fault}{_name(names)}" for fault, names in people.items()]


def _name(people: list[str]) -> str:
    if people == [""]:
        return ""
    more = f" and {len(people) - _NAMED} more" if len(people) > _NAMED else ""
    return f" ({', '.join(people[:_NAMED])}{more})"


def _refuse(faults: list[str]) -> None:
    if faults:
        raise CallRefused(
            "cohort-bad",
            expected="series, atlas and phenotypes of the same people and regions",
            found="; ".join(faults),
            advice="correct the files, or choose people by leaving rows out of the phenotypes",
        )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
