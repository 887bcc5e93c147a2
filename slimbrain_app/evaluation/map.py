"""Where people lie among one another: two principal components, and who is far from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbrain_app.prediction import measure_distances

Floats = NDArray[np.float64]

# Iglewicz and Hoaglin (1993): deviations, reckoned from the median of absolute ones.
FARTHEST = 3.5
_DEVIATION = 1.4826

COLUMNS: Mapping[str, str] = {
    "participant_id": "Participant",
    "site": "Site; n/a where unknown",
    "runs": "Runs that the embedding is the mean of",
    "first": "Place on the first principal component of all people's embeddings",
    "second": "Place on the second one",
    "distance": "Mahalanobis distance from all other people, of a covariance shrunk after Ledoit "
    "and Wolf",
    "deviations": "How far the distance is above the median one, in deviations reckoned from the "
    "median absolute deviation",
    "apart": f"Whether that is more than {FARTHEST:g}",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Map:
    """Where people lie by their embeddings.

    Attributes
    ----------
    places : array, (people, 2)
        On the first two principal components.
    shares : array, (2,)
        Of the variance, along each.
    distances : array, (people,)
        Mahalanobis distance of each person from all others.
    deviations : array, (people,)
        Of the distance from the median one.
    """

    places: Floats
    shares: Floats
    distances: Floats
    deviations: Floats

    @property
    def apart(self) -> NDArray[np.bool_]:
        return self.deviations > FARTHEST


def map_people(embeddings: NDArray[np.floating]) -> Map:
    """Lay embeddings (people, width) out, of three people or more.

    A person's distance is from the mean of all others, by their covariance, and is compared with
    the median: so those who are far don't seem near for having moved what they are compared with.
    """
    values = np.asarray(embeddings, np.float64)
    rows, sizes, axes = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    # A component's direction is arbitrary: that of its largest weight is taken for positive.
    signs = np.sign(axes[:2, :][np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    total = (sizes**2).sum()
    distances = np.sqrt(measure_distances(values))
    over = distances - np.median(distances)
    deviation = _DEVIATION * np.median(np.abs(over))
    return Map(
        places=(rows * sizes)[:, :2] * signs,
        shares=sizes[:2] ** 2 / (total if total > 0 else 1.0),
        distances=distances,
        deviations=over / deviation if deviation > 0 else np.zeros(len(over)),
    )


def tabulate_people(
    labels: Sequence[str], sites: Sequence[str | None], runs: Sequence[int], laid: Map
) -> pd.DataFrame:
    """Return a row for each person."""
    table = {
        "participant_id": [f"sub-{label}" for label in labels],
        "site": list(sites),
        "runs": list(runs),
        "first": laid.places[:, 0],
        "second": laid.places[:, 1],
        "distance": laid.distances,
        "deviations": laid.deviations,
        "apart": np.where(laid.apart, "yes", "no"),
    }
    return pd.DataFrame(table, columns=list(COLUMNS))
