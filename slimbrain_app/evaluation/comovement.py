"""What heads say of which places move together, and how that changes with each signal.

A readout divides signals by their deviations: it asks how places move together, and not by how
much. So from a brain that stands still any movement, however small, is at once all of it. To
follow how a run comes into being, a place's deviation is here not let fall far below the run's: as
long as it moves less than in the run, so much of it counts as movement shared with no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.model.readout import Readout

Floats = NDArray[np.float64]

# Smallest deviation and eigenvalue, as of a readout.
_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comovement:
    """Outputs of heads that read the covariance of signals, on the scale of one run.

    Attributes
    ----------
    readout : Readout
    matrices : ndarray, shape (outputs, kept, kept)
        Symmetric: their products with a covariance in tangent space sum to the outputs.
    deviations : ndarray, shape (kept,)
        Of the run's signals.
    shrinkage : float
        Ledoit and Wolf's, of the run.
    """

    readout: Readout
    matrices: Floats
    deviations: Floats
    shrinkage: float

    def tell(self, signals: NDArray[np.floating]) -> Floats:
        """Return the outputs (outputs,), without bias, of signals (views, times, places).

        Of the run's own signals they are those of `pool_covariance`; where nothing moves, those of
        places that do not move together.
        """
        series, _ = self._measure(signals)
        values, vectors = self._whiten(series)
        logarithm = (vectors * np.log(values)) @ vectors.T
        return np.asarray((self.matrices * logarithm).sum(axis=(1, 2)))

    def slope(self, signals: NDArray[np.floating]) -> Floats:
        """Return the derivatives of the outputs, (outputs, views, times, places).

        That of a matrix's logarithm is Daleckii and Krein's, in its axes a product with divided
        differences, which equal eigenvalues don't disturb.
        """
        series, variances = self._measure(signals)
        values, vectors = self._whiten(series)
        turned = self.readout.whitening.T @ vectors
        inner = vectors.T @ self.matrices @ vectors * _divide_logarithms(values)
        by_pair = (1 - self.shrinkage) * (turned @ inner @ turned.T)
        own = np.arange(len(values))
        by_pair[:, own, own] = 0  # The diagonal is 1.
        slopes = 2 / len(series) * (series @ by_pair)
        gains, bends = _gain(variances)
        # A signal changes its place's gain, too.
        along = (slopes * series).sum(axis=1, keepdims=True) * 2 * bends / (gains**2 * len(series))
        total = np.zeros((len(slopes), *signals.shape))
        total[..., self.readout.places] = (
            (gains * slopes + along * series) / self.deviations
        ).reshape(len(slopes), *signals.shape[:2], -1)
        return total

    def _measure(self, signals: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return signals as they are compared (frames, kept), and variances in shares of the run's.

        Compared signals have a variance of 1, or less where places move less than in the run.
        """
        series = _centre(self.readout, signals) / self.deviations
        variances = np.square(series).mean(axis=0)
        return series * _gain(variances)[0], variances

    def _whiten(self, series: Floats) -> tuple[Floats, Floats]:
        """Return eigenvalues and eigenvectors of the whitened covariance."""
        covariance = (1 - self.shrinkage) * (series.T @ series) / len(series)
        np.fill_diagonal(covariance, 1)
        whitening = self.readout.whitening
        values, vectors = np.linalg.eigh(whitening @ covariance @ whitening)
        return np.maximum(values, _LEAST), vectors


def measure_comovement(
    readout: Readout, weights: Floats, signals: NDArray[np.floating]
) -> Comovement:
    """Take the scale of a run.

    Parameters
    ----------
    readout : Readout
    weights : ndarray, shape (outputs, the readout's width)
    signals : ndarray, shape (views, times, places)
        Of the run; a cell in each place that is compared.
    """
    from sklearn.covariance import ledoit_wolf

    series = _centre(readout, signals)
    deviations = np.maximum(series.std(axis=0), _LEAST)
    _, shrinkage = ledoit_wolf(series / deviations, assume_centered=True)
    rows, columns = np.triu_indices(len(readout.places))
    matrices = np.zeros((len(weights), len(readout.places), len(readout.places)))
    # Values off the diagonal are times the square root of 2, and stand twice in a matrix.
    halves = weights * np.where(rows == columns, 1.0, np.sqrt(0.5))
    matrices[:, rows, columns] = matrices[:, columns, rows] = halves
    return Comovement(
        readout=readout,
        matrices=matrices,
        deviations=deviations,
        shrinkage=float(shrinkage),
    )


def _centre(readout: Readout, signals: NDArray[np.floating]) -> Floats:
    """Return the series of the places that are compared, (frames, kept), each around 0."""
    series = (signals.astype(np.float64) - readout.mean)[:, :, readout.places]
    series = series.reshape(-1, len(readout.places))
    return np.asarray(series - series.mean(axis=0))


def _gain(variances: Floats) -> tuple[Floats, Floats]:
    """Return what signals are multiplied by to be compared, and its derivative.

    From the run's variance, 1, on this is the inverse of their deviation. Below it goes on as
    smoothly, but stays finite.
    """
    below = np.minimum(variances, 1)
    gains = np.sqrt((2 - below) / np.maximum(variances, 1))
    return gains, -0.5 / np.where(variances < 1, gains, np.maximum(variances, 1) ** 1.5)


def _divide_logarithms(values: Floats) -> Floats:
    """Return for each pair (log a - log b) / (a - b), and 1 / a where they are equal."""
    excess = values[:, None] / values - 1
    ratio = np.divide(np.log1p(excess), excess, out=np.ones_like(excess), where=excess != 0)
    return np.asarray(ratio / values)
