"""Functional connectivity: the baseline beside every model.

A prepared run becomes the mean series of an atlas' parcels, these are cleaned, and how they move
together are the features. All at the run's own TR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from nilearn.connectome import ConnectivityMeasure
from nilearn.signal import clean
from numpy.typing import NDArray
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.evaluation.atlas import Atlas
from slimbrain_app.prepare.store import group_means
from slimbrain_app.records import PreparedRun

Floats = NDArray[np.float64]
Kind = Literal["correlation", "partial", "tangent"]

# Hz.
HIGH_PASS, LOW_PASS = 0.01, 0.1
# The filter, of order 5 and passed both ways, mirrors 33 volumes at either end.
_FEWEST_VOLUMES = 34
# Independent values per parcel. A correlation of fewer could be anything.
_FEWEST_VALUES = 5
# Parcels that move as one have a correlation of 1, whose Fisher z is infinite.
_STRONGEST = 1 - 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Connectivity:
    """How series become features, fitted to some of the people.

    Attributes
    ----------
    kind : {"correlation", "partial", "tangent"}
    parcels : ndarray of bool, shape (parcels,)
        Those that are used; the others are left out for everybody.
    measure : ConnectivityMeasure
    """

    kind: Kind
    parcels: NDArray[np.bool_]
    measure: ConnectivityMeasure


def read_parcels(prepared: PreparedRun, atlas: Atlas) -> NDArray[np.float32]:
    """Return the mean series of each parcel at the run's own TR and in its units.

    Returns
    -------
    ndarray, float32, shape (volumes, parcels)
        NaN throughout for a parcel without a voxel in the run's mask; `list_absent` names them.
    """
    voxels = np.load(prepared.folder / "voxels.npy")
    numbers = atlas.numbers.ravel()[voxels]
    present = np.unique(numbers[numbers > 0])
    groups = np.where(numbers > 0, np.searchsorted(present, numbers), -1)
    series = np.full((prepared.volumes, len(atlas.labels)), np.nan, np.float32)
    series[:, present - 1] = group_means(prepared, groups)
    return series


def list_absent(series: NDArray[np.floating], atlas: Atlas) -> list[str]:
    """Return the names of parcels without a series."""
    return [atlas.names[column] for column in np.flatnonzero(np.isnan(series).any(axis=0))]


def summarise_parcels(series: NDArray[np.floating]) -> Floats:
    """Return each parcel's mean and then each parcel's deviation over time, (2 parcels,).

    Of a series as `read_parcels` gives it: cleaning takes both away.
    """
    values = np.asarray(series, np.float64)
    return np.concatenate([values.mean(axis=0), values.std(axis=0, ddof=1)])


def clean_series(
    series: NDArray[np.floating], tr: float, confounds: Floats | None = None
) -> Floats:
    """Detrend series, keep 0.01 to 0.1 Hz of them, remove confounds, and standardise.

    Confounds are detrended and filtered alike before they are removed (Lindquist et al. 2019,
    doi:10.1002/hbm.24528).

    Parameters
    ----------
    series : ndarray, shape (volumes, parcels)
    tr : float
        Seconds between volumes; from 5 s on there is nothing above 0.1 Hz to remove.
    confounds : ndarray, shape (volumes, confounds), optional

    Returns
    -------
    ndarray, float64, shape (volumes, parcels)
        Of mean 0 and deviation 1; NaN where a series is, or where it never changes.

    Raises
    ------
    RunRefused
        ``too-short``: hardly anything would be left.
    """
    removed = 0 if confounds is None else confounds.shape[1]
    nyquist = 0.5 / tr
    _require_length(len(series), tr, min(LOW_PASS, nyquist), removed)
    moving = np.ptp(series, axis=0) > 0
    cleaned = np.full(series.shape, np.nan)
    if moving.any():
        cleaned[:, moving] = clean(
            series[:, moving].astype(np.float64),
            detrend=True,
            standardize="zscore_sample",
            confounds=confounds if removed else None,
            filter="butterworth",
            low_pass=LOW_PASS if nyquist > LOW_PASS else None,
            high_pass=HIGH_PASS,
            t_r=tr,
        )
    return cleaned


def describe_cleaning(tr: float, confounds: Sequence[str]) -> str:
    """Say in half a sentence what `clean_series` did, given the names of the confounds."""
    band = f"{HIGH_PASS:g} Hz to {min(LOW_PASS, 0.5 / tr):.2g} Hz"
    removed = ", ".join(confounds) or "no confounds, for none are known"
    return f"detrended, filtered ({band}), cleaned of {removed}"


def find_common(series: Sequence[NDArray[np.floating]]) -> NDArray[np.bool_]:
    """Return which parcels have a series in every run, (parcels,).

    What one run lacks is left out for all of them, whoever they are fitted to or judged by.
    """
    return np.asarray(np.all([~np.isnan(one).any(axis=0) for one in series], axis=0))


def fit_connectivity(
    series: Sequence[Floats], kind: Kind, parcels: NDArray[np.bool_]
) -> Connectivity:
    """Learn from cleaned series what their connectivity is measured by.

    Only ``tangent`` learns: the covariance of all series fitted to, at which it takes the tangent
    to the space of covariances (Varoquaux et al. 2010, doi:10.1007/978-3-642-15705-9_25). So it may
    see nobody who is to be judged. Theirs is the geometric mean of the runs' covariances, which
    takes minutes and gives nearly the same features.

    Parameters
    ----------
    series : sequence of ndarray, shape (volumes, parcels)
        As `clean_series` gives them; of each run its own volumes.
    kind : {"correlation", "partial", "tangent"}
        All but ``correlation`` shrink covariances (Ledoit and Wolf 2004), the more the shorter a
        run is.
    parcels : ndarray of bool, shape (parcels,)
        What `find_common` found among all, not only the people fitted to.

    Raises
    ------
    CallRefused
        ``atlas-bad`` where there are not two parcels to connect.
    """
    if np.count_nonzero(parcels) < 2:
        raise CallRefused(
            "atlas-bad",
            expected="two parcels or more that have a series in every run",
            found=f"{np.count_nonzero(parcels)} of {len(parcels)}",
            advice="leave out the runs that cover least, or take another atlas",
        )
    estimator = EmpiricalCovariance if kind == "correlation" else LedoitWolf
    measure = ConnectivityMeasure(
        estimator(store_precision=False),
        kind="partial correlation" if kind == "partial" else kind,
        standardize=False,
    )
    pooled = np.concatenate([one[:, parcels] for one in series])
    return Connectivity(kind, parcels, measure.fit([pooled]))


def connect(series: Sequence[Floats], connectivity: Connectivity) -> Floats:
    """Measure the connectivity of runs.

    Returns
    -------
    ndarray, shape (runs, pairs)
        The upper triangles of their matrices, row by row and without the diagonal; Fisher's z for
        ``correlation`` and ``partial``.
    """
    taken = [one[:, connectivity.parcels] for one in series]
    # nilearn wants a group for tangents, though each run's is its own.
    matrices = connectivity.measure.transform([*taken, taken[0]])[:-1]
    first, second = np.triu_indices(matrices.shape[1], 1)
    pairs = np.asarray(matrices[:, first, second])
    if connectivity.kind == "tangent":
        return pairs
    return np.asarray(np.arctanh(np.clip(pairs, -_STRONGEST, _STRONGEST)))


def _require_length(volumes: int, tr: float, low_pass: float, removed: int) -> None:
    """Refuse a run whose band holds hardly more values than there are confounds to remove."""
    values = 2 * (low_pass - HIGH_PASS) * volumes * tr
    if volumes < _FEWEST_VOLUMES or values < removed + _FEWEST_VALUES:
        raise RunRefused(
            "too-short",
            expected=f"{_FEWEST_VOLUMES} volumes or more for the filter, and in its band "
            f"{removed + _FEWEST_VALUES} independent values or more, of which {removed} go with "
            "the confounds",
            found=f"{volumes} volumes, {values:.0f} independent values",
            advice="leave this run out of the baseline of functional connectivity",
        )
