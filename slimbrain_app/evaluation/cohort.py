"""Runs described one by one -> people, each with one row in every set of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.evaluation.comparison import MODEL
from slimbrain_app.evaluation.connectivity import Kind, connect, find_common, fit_connectivity
from slimbrain_app.evaluation.features import (
    Covariates,
    Deconfounded,
    Features,
    Fixed,
    Tangents,
    average_runs,
)
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.splits import Integers

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cohort:
    """What is known of people's runs.

    Attributes
    ----------
    owners : array, (runs,)
        The person of each run, counted from 0 in the order of `People`.
    embeddings : array, (runs, width)
        Means.
    covariances : array, (runs, covariance width), or None
        What tells instead of them, if so.
    series : sequence of array, (volumes, parcels)
        Of each run, cleaned.
    summaries : array, (runs, 2 parcels)
    """

    owners: Integers
    embeddings: NDArray[np.floating]
    covariances: NDArray[np.floating] | None
    series: Sequence[Floats]
    summaries: Floats

    @property
    def means(self) -> Floats:
        """The mean embedding of each person, (people, width)."""
        return average_runs(self.embeddings, self.owners)

    @property
    def told_by(self) -> Floats:
        """What the model tells people by, a row each."""
        if self.covariances is None:
            return self.means
        return average_runs(self.covariances, self.owners)


def list_features(
    cohort: Cohort,
    people: People,
    kinds: Sequence[Kind],
    deconfound: Sequence[str],
    outcome: str,
) -> dict[str, Features]:
    """Return every set of features that an outcome is told by, the model's first.

    What covariates tell alone leaves the outcome itself out of them.
    """
    common = find_common(cohort.series)
    features: dict[str, Features] = {MODEL: Fixed(cohort.told_by)}
    if cohort.covariances is not None:
        features[f"{MODEL}, mean"] = Fixed(cohort.means)
    for kind in kinds:
        features[f"connectivity, {kind}"] = _connect(cohort, kind, common)
    usable = np.concatenate([common, common])
    features["parcels"] = Fixed(average_runs(cohort.summaries[:, usable], cohort.owners))
    if deconfound:
        confounds = Covariates(people.covariates[list(deconfound)])
        features = {name: Deconfounded(own, confounds) for name, own in features.items()}
    others = people.covariates.drop(columns=outcome, errors="ignore")
    if others.shape[1]:
        features["covariates"] = Covariates(others)
    return features


def _connect(cohort: Cohort, kind: Kind, common: NDArray[np.bool_]) -> Features:
    if kind == "tangent":
        return Tangents(cohort.series, cohort.owners)
    rows = connect(cohort.series, fit_connectivity(cohort.series, kind, common))
    return Fixed(average_runs(rows, cohort.owners))
