"""What a confounds table of any fMRIPrep era, or of XCP-D, says: motion, dummy scans, nuisance."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import RunRefused
from slimbrain_app.records import Notice

# Since fMRIPrep 1.2 and in XCP-D's motion.tsv; before 1.2.
_DISPLACEMENT = ("framewise_displacement", "FramewiseDisplacement")
_NON_STEADY = ("non_steady_state_outlier", "NonSteadyStateOutlier")
_MISSING = ("n/a", "na", "nan", "")
_MOTION = {
    "trans_x": "X",
    "trans_y": "Y",
    "trans_z": "Z",
    "rot_x": "RotX",
    "rot_y": "RotY",
    "rot_z": "RotZ",
}
_TISSUES = {"csf": "CSF", "white_matter": "WhiteMatter"}


@dataclass(frozen=True, eq=False)
class Confounds:
    """What a table says: framewise displacement in mm per volume, and leading dummy scans."""

    displacement: NDArray[np.float64] | None
    dummy_scans: int
    notices: tuple[Notice, ...]

    @property
    def kept_displacement(self) -> tuple[float, ...] | None:
        """Displacement of the volumes after the dummy scans; the first has moved from nowhere."""
        if self.displacement is None:
            return None
        return (0.0, *self.displacement[self.dummy_scans + 1 :].tolist())


def read_confounds(path: Path | None, name: str | None, volumes: int) -> Confounds:
    """Read the confounds of a run of so many volumes; ``name`` stands for the file in messages.

    Raises
    ------
    RunRefused
        ``bad-confounds``: rows differ from volumes, or a value is no number.
    """
    if path is None:
        return Confounds(None, 0, (Notice(code="no-confounds", message="motion is unknown"),))
    columns = _read_columns(path, name, volumes)
    if not columns:
        return _unreadable(name, "no header line")
    dummy_scans = _leading_dummies(columns, volumes, name)
    known = next((key for key in _DISPLACEMENT if key in columns), None)
    if known is None:
        found = _unreadable(name, f"none of the columns {', '.join(_DISPLACEMENT)}")
        return Confounds(None, dummy_scans, found.notices)
    return Confounds(_numbers(columns[known], known, name), dummy_scans, ())


@dataclass(frozen=True, eq=False)
class Nuisance:
    """What can be removed from a run.

    Attributes
    ----------
    names : tuple of str
        As fMRIPrep names them today; none where there is no table, or no such column in it.
    values : ndarray, shape (volumes, names)
        After the dummy scans.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]


def read_nuisance(
    path: Path | None, name: str | None, volumes: int, dummy_scans: int, motion: Literal[6, 24]
) -> Nuisance:
    """Read motion parameters and the signals of CSF and white matter, as far as known.

    The 24 (Friston et al. 1996, doi:10.1002/mrm.1910350312, as fMRIPrep has them) are reckoned
    from the six, since early releases wrote no others.

    Parameters
    ----------
    path : Path or None
        The confounds table.
    name : str or None
        Stands for the file in messages.
    volumes : int
        Of the source, dummy scans included.
    dummy_scans : int
        How many of these were left out.
    motion : {6, 24}
        How many motion parameters.

    Raises
    ------
    RunRefused
        ``bad-confounds``: rows differ from volumes, or a value is no number.
    """
    columns = {} if path is None else _read_columns(path, name, volumes)
    kept: dict[str, NDArray[np.float64]] = {}
    for key, series in _find_known(columns, _MOTION, name).items():
        kept[key] = series
        if motion == 24:
            change = np.diff(series, prepend=np.nan)
            kept[f"{key}_derivative1"], kept[f"{key}_power2"] = change, series**2
            kept[f"{key}_derivative1_power2"] = change**2
    kept |= _find_known(columns, _TISSUES, name)
    values = np.empty((volumes, len(kept)))
    for column, series in enumerate(kept.values()):
        values[:, column] = series
    # What was before the first volume isn't known: as in nilearn, the next change stands in.
    values[0] = np.where(np.isnan(values[0]), values[1], values[0])
    return Nuisance(tuple(kept), values[dummy_scans:])


def frame_displacement(
    displacement: Sequence[float] | NDArray[np.float64], tr: float, frames: int, frame_time: float
) -> NDArray[np.float64]:
    """Return the displacement at model time: the larger of the two volumes a frame lies between.

    Parameters
    ----------
    displacement : sequence of float, length volumes
        Framewise displacement in mm.
    tr, frame_time : float
        Seconds between volumes and between frames.
    """
    values = np.asarray(displacement, float)
    position = np.arange(frames) * frame_time / tr
    # A frame that coincides with a volume but for rounding lies between it and itself.
    settled = np.where(np.abs(position - np.rint(position)) < 1e-6, np.rint(position), position)
    before = np.clip(np.floor(settled).astype(int), 0, len(values) - 1)
    after = np.clip(np.ceil(settled).astype(int), 0, len(values) - 1)
    return np.asarray(np.maximum(values[before], values[after]))


def _read_table(path: Path, name: str | None) -> tuple[list[str], list[list[str]]]:
    """Return header and rows; no header where the first line holds a number."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        try:
            lines = [line for line in csv.reader(stream, delimiter="\t") if line]
        except csv.Error as error:
            raise _bad(name, "rows of cells", str(error)) from error
    if not lines or any(_is_number(cell) for cell in lines[0]):
        return [], []
    return [cell.strip() for cell in lines[0]], lines[1:]


def _read_columns(path: Path, name: str | None, volumes: int) -> dict[str, tuple[str, ...]]:
    """Return the cells of each column; none where the table has no header line."""
    header, rows = _read_table(path, name)
    if header and len(rows) != volumes:
        raise _bad(name, f"{volumes} rows, one per volume", f"{len(rows)} rows")
    return _split_columns(header, rows, name) if header else {}


def _find_known(
    columns: dict[str, tuple[str, ...]], names: Mapping[str, str], name: str | None
) -> dict[str, NDArray[np.float64]]:
    """Return the columns that go by a name, or by that of fMRIPrep before 1.2."""
    found = {}
    for key, former in names.items():
        used = key if key in columns else former
        if used in columns:
            found[key] = _numbers(columns[used], used, name)
    return found


def _split_columns(
    header: list[str], rows: list[list[str]], name: str | None
) -> dict[str, tuple[str, ...]]:
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise _bad(name, f"{len(header)} cells in every row", f"{len(row)} in row {number}")
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def _leading_dummies(columns: dict[str, tuple[str, ...]], volumes: int, name: str | None) -> int:
    flags = np.zeros(volumes, bool)
    for key, cells in columns.items():
        if key.startswith(_NON_STEADY):
            flags |= _numbers(cells, key, name) != 0
    return int(np.argmin(flags)) if not flags.all() else volumes


def _numbers(cells: tuple[str, ...], key: str, name: str | None) -> NDArray[np.float64]:
    # The first volume has moved from nowhere: every era writes n/a there.
    texts = ("0", *cells[1:]) if cells and cells[0].lower() in _MISSING else cells
    for row, cell in enumerate(texts):
        if not _is_number(cell) or not np.isfinite(float(cell)):
            raise _bad(name, f"numbers in column {key}", f"{cell!r} in row {row + 1}")
    return np.array([float(cell) for cell in texts])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _bad(name: str | None, expected: str, found: str) -> RunRefused:
    advice = "check whether the table belongs to this run"
    return RunRefused("bad-confounds", file=name, expected=expected, found=found, advice=advice)


def _unreadable(name: str | None, found: str) -> Confounds:
    message = f"motion is unknown: {found}"
    return Confounds(None, 0, (Notice(code="confounds-unreadable", message=message, file=name),))
