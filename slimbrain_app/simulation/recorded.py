"""Real people's series by region, and the atlas of the regions: read from their files."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.simulation.parcels import Atlas

# Deviations of regions, relative to a person's median, are held within these.
_WEAKEST, _STRONGEST = 0.25, 4.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files that a dataset of real series is made of.

    Attributes
    ----------
    series : Path
        NPZ with an array (volumes, regions) for each person.
    atlas : Path
        NIfTI of the regions, in MNI space; column k is the region of the k-th smallest number.
    phenotype : Path
        CSV, or TSV by its name, with a row for each person.
    moments : Path, optional
        NPZ of ``file_id`` (people,) and ``std`` (people, regions): how strong each region is.
    """

    series: Path
    atlas: Path
    phenotype: Path
    moments: Path | None = None

    @property
    def signal(self) -> tuple[Path, ...]:
        """What decides the brain's signal."""
        return (self.series, self.atlas, *(() if self.moments is None else (self.moments,)))


@dataclass(frozen=True, kw_only=True)
class Volunteer:
    """A real person whose series are at hand.

    Attributes
    ----------
    label : str
        BIDS label without ``sub-``.
    source : str
        Name of the person in the files.
    tr : float
        s
    site : str
        Empty where it isn't known.
    displacement : float or None
        Mean framewise displacement, mm.
    """

    label: str
    source: str
    tr: float
    site: str
    displacement: float | None


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
        series *= _relate(read_deviations(inputs.moments)[volunteer.source])
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
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
        raise ValueError("not one volume of whole numbers")
    if values.max() < 1 or not np.isfinite(np.linalg.inv(image.affine)).all():
        raise ValueError("no region")
    present = np.unique(values[values > 0])
    numbers = np.where(values > 0, np.searchsorted(present, values) + 1, 0)
    return Atlas(numbers=numbers.astype(np.int64), affine=image.affine)


def list_people(path: Path) -> list[str]:
    """Return the names of an archive's arrays.

    Raises
    ------
    OSError
    ValueError
        It isn't an archive.
    """
    try:
        archive = np.load(path)
    except zipfile.BadZipFile as error:
        raise ValueError("not an NPZ archive") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("a single array, not an NPZ archive")
    with archive:
        return list(archive.files)


def read_deviations(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the deviations of each person's regions.

    Raises
    ------
    OSError
    ValueError
        They aren't there.
    """
    missing = {"file_id", "std"} - set(list_people(path))
    if missing:
        raise ValueError(f"no array {' and '.join(sorted(missing))}")
    with np.load(path) as archive:
        people, deviations = archive["file_id"], archive["std"].astype(np.float64)
    if deviations.ndim != 2 or len(deviations) != len(people):
        raise ValueError("std is no table of people by regions")
    return dict(zip(people.tolist(), deviations, strict=True))


def _relate(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return deviations relative to their median; what strays far is held in."""
    relative = deviations / np.median(deviations[deviations > 0])
    return np.where(deviations > 0, np.clip(relative, _WEAKEST, _STRONGEST), 0)
