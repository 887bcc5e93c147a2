"""What an outcome is told by: one row per person, made such that nobody judged has a part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from slimbrain_app.evaluation.connectivity import Floats, connect, find_common, fit_connectivity
from slimbrain_app.evaluation.splits import Integers


class Features(Protocol):
    """Features of people, counted from 0."""

    def split(self, fit: Integers, left: Integers) -> tuple[Floats, Floats]:
        """Return the rows of those fitted to and of those judged, (people, width) each.

        Whatever is learned on the way is learned from the former.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Features that nothing is learned for: ``matrix`` is (people, width)."""

    matrix: NDArray[np.floating]

    def split(self, fit: Integers, left: Integers) -> tuple[Floats, Floats]:
        return np.asarray(self.matrix[fit], float), np.asarray(self.matrix[left], float)


@dataclass(frozen=True, slots=True, eq=False)
class Tangents:
    """Connectivity in the tangent space at the mean of those fitted to.

    Attributes
    ----------
    series : sequence of array, (volumes, parcels)
        Of each run.
    owners : array, (runs,)
        The person of each run.
    """

    series: Sequence[Floats]
    owners: Integers

    def split(self, fit: Integers, left: Integers) -> tuple[Floats, Floats]:
        common = find_common(self.series)
        runs = [one for one, owner in zip(self.series, self.owners, strict=True) if owner in fit]
        fitted = fit_connectivity(runs, "tangent", common)
        every = average_runs(connect(self.series, fitted), self.owners)
        return every[fit], every[left]


@dataclass(frozen=True, slots=True, eq=False)
class Covariates:
    """Columns of a table, one row per person: numbers, and categories in indicators.

    A missing number becomes the median of those fitted to, a missing category one of its own.
    """

    table: pd.DataFrame

    def split(self, fit: Integers, left: Integers) -> tuple[Floats, Floats]:
        numbers = make_column_selector(dtype_include="number")
        transformer = make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True)), numbers),
            (
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                make_column_selector(dtype_exclude="number"),
            ),
        )
        known = np.asarray(transformer.fit_transform(self.table.iloc[fit]), float)
        return known, np.asarray(transformer.transform(self.table.iloc[left]), float)


@dataclass(frozen=True, slots=True, eq=False)
class Deconfounded:
    """Features without what a linear fit tells of them from covariates."""

    features: Features
    confounds: Covariates

    def split(self, fit: Integers, left: Integers) -> tuple[Floats, Floats]:
        known, others = self.features.split(fit, left)
        told, untold = self.confounds.split(fit, left)
        model = LinearRegression().fit(told, known)
        return known - model.predict(told), others - model.predict(untold)


def average_runs(rows: NDArray[np.floating], owners: Integers) -> Floats:
    """Return the mean over the runs of each person, counted from 0: (people, width)."""
    counts = np.bincount(owners)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, owners, rows)
    return np.asarray(sums / counts[:, None])
