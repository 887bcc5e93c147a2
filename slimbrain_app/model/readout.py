"""The second form of an embedding: which places move together, not how much each moves.

A *readout* takes one signal out of each final cell, by one direction for all of them, and then the
covariance of these signals between places over a run's frames, in the tangent space of the people
that the encoder was trained on. It is part of a model package, in ``readout.safetensors``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.model.parts import check_shapes, refuse_part

READOUT = "readout.safetensors"
# In fewer windows there are too few frames for so many places.
FEWEST_WINDOWS = 4
# Smallest variance, of signals whose own are 1.
_LEAST = 1e-9

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Readout:
    """How signals are taken and compared.

    Attributes
    ----------
    direction : ndarray, float32, shape (width,)
        Of a final cell before the norm: its product with a cell is the cell's signal.
    mean : ndarray, float32, shape (times, places)
        Of signals over people; what position alone gives.
    places : ndarray, int64, shape (kept,)
        Which places of the final grid are compared, in C order: those that all people had.
    whitening : ndarray, float32, shape (kept, kept)
        The inverse square root of the mean covariance.
    """

    direction: Floats
    mean: Floats
    places: NDArray[np.int64]
    whitening: Floats

    @property
    def width(self) -> int:
        """How many values come of a run."""
        return len(self.places) * (len(self.places) + 1) // 2


def pool_covariance(readout: Readout, signals: Floats) -> Floats:
    """Return the covariance of signals in tangent space, (width,): its upper triangle by rows.

    Covariances are Ledoit and Wolf's, of signals with variance 1. Off the diagonal, values are
    times the square root of 2, so that lengths are those of matrices (Varoquaux and others 2010).

    Parameters
    ----------
    readout : Readout
    signals : ndarray, shape (views, times, places)
        Of all places of the final grid; NaN where there is no cell.

    Raises
    ------
    ValueError
        If there is no cell in a place that is compared.
    """
    from threadpoolctl import threadpool_limits

    # One thread: sums of several have other bits.
    with threadpool_limits(1):
        covariance = estimate_covariance(readout.mean, readout.places, signals)
        whitened = readout.whitening @ covariance @ readout.whitening
        values, vectors = np.linalg.eigh(whitened)
        logarithm = (vectors * np.log(np.maximum(values, _LEAST))) @ vectors.T
    rows, columns = np.triu_indices(len(logarithm))
    scale = np.where(rows == columns, 1.0, np.sqrt(2.0))
    return np.asarray(logarithm[rows, columns] * scale, np.float32)


def estimate_covariance(
    mean: Floats, places: NDArray[np.integer], signals: Floats
) -> NDArray[np.float64]:
    """Return the shrunk covariance (kept, kept) of standardised signals, over all frames of views.

    Raises
    ------
    ValueError
        If there is no cell in one of the places.
    """
    from sklearn.covariance import ledoit_wolf

    series = (signals.astype(np.float64) - mean)[:, :, places].reshape(-1, len(places))
    if not np.isfinite(series).all():
        raise ValueError("a place that is compared has no cell")
    series -= series.mean(axis=0)
    series /= np.maximum(series.std(axis=0), _LEAST)
    shrunk, _ = ledoit_wolf(series, assume_centered=True)
    return np.asarray(shrunk)


def write_readout(folder: Path, readout: Readout) -> None:
    """Write the file into a folder that nobody reads yet."""
    from safetensors.numpy import save

    stored = {name: np.ascontiguousarray(values) for name, values in asdict(readout).items()}
    (folder / READOUT).write_bytes(save(stored))


def read_readout(folder: Path, width: int, times: int, places: int) -> Readout:
    """Read the readout of a package.

    Parameters
    ----------
    width : int
        Of final cells.
    times, places : int
        Of the final grid.

    Raises
    ------
    CallRefused
        ``package-bad`` if a tensor is missing, of another shape, not finite, or places are not
        those of the grid.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = folder / READOUT
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise refuse_part(file, "a safetensors file", str(error)) from error
    kept = len(tensors.get("places", ()))
    shapes = {
        "direction": (width,),
        "mean": (times, places),
        "places": (kept,),
        "whitening": (kept, kept),
    }
    check_shapes(file, shapes, "a readout of the encoder's final cells", ["F32", "I64"])
    if bad := [name for name, values in tensors.items() if not np.isfinite(values).all()]:
        raise refuse_part(file, "finite numbers", f"others in {', '.join(sorted(bad))}")
    listed = tensors["places"]
    if kept < 2 or (np.diff(listed) <= 0).any() or listed[0] < 0 or listed[-1] >= places:
        raise refuse_part(file, f"two or more of {places} places, in order", str(listed.tolist()))
    return Readout(**tensors)
