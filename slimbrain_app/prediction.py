"""Embeddings -> predictions, and whether the people that heads were fitted to resemble them.

Sums are numpy's own, whose rounding doesn't depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.records import Flag, Head, Notice, Prediction

if TYPE_CHECKING:
    from slimbrain_app.model.package_heads import Heads, Reference
    from slimbrain_app.model.packages import Package

Floats = NDArray[np.float64]


def predict_by_package(
    package: Package,
    embedding: NDArray[np.floating],
    notices: Iterable[Notice],
    views: NDArray[np.floating] | None = None,
    covariance: NDArray[np.floating] | None = None,
) -> tuple[Prediction, ...]:
    """Return what a package's heads say of an embedding (width,); nothing if it has none.

    ``notices`` are those of the runs that were embedded, all else is as for `predict`.
    """
    from slimbrain_app.model.packages import load_heads

    heads = load_heads(package)
    if heads is None:
        return ()
    seen = any(notice.code == "seen-in-training" for notice in notices)
    return predict(heads, embedding, views, covariance, trained=package.trained, seen=seen)


def predict(
    heads: Heads,
    embedding: NDArray[np.floating],
    views: NDArray[np.floating] | None = None,
    covariance: NDArray[np.floating] | None = None,
    *,
    trained: bool,
    seen: bool,
) -> tuple[Prediction, ...]:
    """Return what heads say of a run or a person: a row for a number, one for each class.

    Parameters
    ----------
    heads : Heads
    embedding : ndarray, shape (width,)
        Of a run; or of a person, the mean over runs.
    views : ndarray, shape (views, width), optional
        Of all of them. Only heads that pool by attention read them.
    covariance : ndarray, shape (covariance width,), optional
        As for the embedding. Heads that read it say nothing where it isn't there.
    trained : bool
        Whether the encoder's weights are.
    seen : bool
        Whether weights were fitted to the person, or chosen by them.
    """
    values = np.asarray(embedding, np.float64)
    states: dict[Flag, bool] = {
        "untrained": not trained,
        "seen-in-training": seen,
        "out-of-distribution": measure_distance(heads.reference, values) > heads.reference.limit,
    }
    flags = tuple(flag for flag, holds in states.items() if holds)
    predictions: list[Prediction] = []
    for head in heads.heads:
        weight, bias = heads.weights[head.outcome], heads.biases[head.outcome]
        read = values
        if attention := heads.attention.get(head.outcome):
            if views is None:
                raise ValueError(f"head {head.outcome} reads views")
            read = attention.pool(views)
        elif head.pooling == "covariance":
            if covariance is None:
                continue
            read = np.asarray(covariance, np.float64)
        outputs = (weight.astype(np.float64) * read).sum(axis=1) + bias
        tell = _tell_number if head.kind == "number" else _tell_classes
        predictions += tell(head, outputs, flags)
    return tuple(predictions)


def measure_distance(reference: Reference, embedding: NDArray[np.floating]) -> float:
    """Return the squared Mahalanobis distance of an embedding (width,) from the mean."""
    apart = np.asarray(embedding, np.float64) - reference.mean
    return float((apart[:, None] * reference.precision * apart).sum())


def fit_reference(embeddings: NDArray[np.floating]) -> Reference:
    """Return where the embeddings (people, width) that heads are fitted to lie.

    The covariance is Ledoit and Wolf's. The limit is the 99th percentile of each person's distance
    from all others, for from a mean and a covariance of their own they would seem near. The amount
    of shrinkage is the same for all of them.

    Raises
    ------
    ValueError
        With fewer than three people.
    """
    from sklearn.covariance import LedoitWolf
    from threadpoolctl import threadpool_limits

    from slimbrain_app.model.package_heads import Reference

    values = np.asarray(embeddings, np.float64)
    if len(values) < 3:
        raise ValueError("a reference needs three people")
    with threadpool_limits(1):
        fit = LedoitWolf().fit(values)
        distances = _leave_out(values - fit.location_, fit.shrinkage_)
        return Reference(
            fit.location_.astype(np.float32),
            fit.precision_.astype(np.float32),
            float(np.quantile(distances, 0.99, method="higher")),
        )


def measure_distances(embeddings: NDArray[np.floating]) -> Floats:
    """Return each person's squared distance from all others, as `fit_reference` reckons it.

    Of embeddings (people, width), three people or more.
    """
    from sklearn.covariance import LedoitWolf
    from threadpoolctl import threadpool_limits

    values = np.asarray(embeddings, np.float64)
    with threadpool_limits(1):
        fit = LedoitWolf().fit(values)
        return _leave_out(values - fit.location_, fit.shrinkage_)


def _leave_out(apart: Floats, shrinkage: float) -> Floats:
    """Return each person's squared distance from the mean of the others, by their covariance.

    Of n people, one at ``d`` from the mean leaves the others' mean at ``-d / (n - 1)`` and takes
    ``n / (n - 1) d d'`` off their scatter, n times the covariance. Shrunk, the others' covariance
    is a diagonal in the axes of the scatter, less a multiple of ``d d'``, which Sherman and
    Morrison's formula inverts.
    """
    people, width = apart.shape
    rows, sizes, _ = np.linalg.svd(apart, full_matrices=False)
    kept = sizes > sizes[0] * max(people, width) * np.finfo(float).eps
    along, scatter = (rows * sizes)[:, kept] ** 2, sizes[kept] ** 2
    others, share = people - 1, people / (people - 1)
    spread = (scatter.sum() - share * along.sum(axis=1)) / (others * width)
    diagonal = (1 - shrinkage) / others * scatter + shrinkage * spread[:, None]
    near = (along / diagonal).sum(axis=1)
    return np.asarray(share**2 * near / (1 - (1 - shrinkage) * share / others * near))


def _tell_number(head: Head, output: Floats, flags: tuple[Flag, ...]) -> Iterator[Prediction]:
    value, margin = float(output[0]), head.margin
    yield Prediction(
        outcome=head.outcome,
        level=None,
        value=value,
        lower=None if margin is None else value - margin,
        upper=None if margin is None else value + margin,
        percentile=_find_percentile(head, value),
        calibrated=margin is not None,
        flags=flags,
    )


def _tell_classes(head: Head, odds: Floats, flags: tuple[Flag, ...]) -> Iterator[Prediction]:
    if head.calibration is not None:
        odds = head.calibration.slope * odds + head.calibration.intercept
    # The one output of two classes is the second's log odds; against it, the first has 0.
    odds = odds if head.outputs > 1 else np.array([0.0, odds[0]])
    shares = np.exp(odds - odds.max())
    shares /= shares.sum()
    percentile = _find_percentile(head, float(shares[1]))
    for place, (level, share) in enumerate(zip(head.classes, shares, strict=True)):
        yield Prediction(
            outcome=head.outcome,
            level=level,
            value=float(share),
            lower=None,
            upper=None,
            percentile=percentile if percentile is None or place else 100 - percentile,
            calibrated=head.calibration is not None,
            flags=flags,
        )


def _find_percentile(head: Head, value: float) -> float | None:
    """Return the place of a value among those of people left out; of equal ones, their middle."""
    if head.quantiles is None:
        return None
    steps, place, count = np.unique(head.quantiles, return_inverse=True, return_counts=True)
    middles = np.bincount(place, np.arange(101)) / count
    return float(np.interp(value, steps, middles, left=0, right=100))
