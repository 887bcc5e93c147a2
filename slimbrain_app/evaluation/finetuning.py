"""Heads for a package: the judged fit once more, to everybody."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.cohort import Cohort
from slimbrain_app.evaluation.judging import INNER_FOLDS, Score
from slimbrain_app.evaluation.linear import LinearModel, encode_classes, fit_linear
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.model.package_heads import Heads
from slimbrain_app.prediction import fit_reference
from slimbrain_app.records import Calibration, Head, HeadPooling, HeadScore

Floats = NDArray[np.float64]


def fit_heads(
    cohort: Cohort,
    people: People,
    fitted: Container[str],
    outcomes: Sequence[Outcome],
    scores: Mapping[str, HeadScore],
    seed: int,
) -> Heads:
    """Fit a head to each outcome of all people who have it.

    Parameters
    ----------
    cohort : Cohort
    people : People
    fitted : container of str
        Labels of those to fit to.
    outcomes : sequence of Outcome
    scores : mapping of str to HeadScore
        By outcome: how well it was told of people left out.
    seed : int
        Of the folds by which penalty, calibration and margin are found.

    Raises
    ------
    CallRefused
        ``too-few`` with fewer than three people.
    """
    known = people.find([label for label in people.labels if label in fitted])
    if len(known) < 3:
        raise CallRefused(
            "too-few",
            expected="at least three people to fit a head to",
            found=f"{len(known)}",
            advice="take more people",
        )
    told_by = cohort.told_by
    pooling: HeadPooling = "mean" if cohort.covariances is None else "covariance"
    heads, weights, biases = [], {}, {}
    for outcome in outcomes:
        classes = [str(value) for value in outcome.classes] if outcome.kind == "class" else []
        own = np.flatnonzero([label in fitted for label in outcome.people])
        coded = encode_classes(outcome).take(own)
        rows = people.find(coded.people)
        model = fit_linear(told_by[rows], coded, len(classes), INNER_FOLDS, seed)
        weight, bias = fold_priors(model)
        weights[outcome.name] = weight.astype(np.float32)
        biases[outcome.name] = bias.astype(np.float32)
        score = scores.get(outcome.name)
        heads.append(describe_head(outcome, model, len(rows), classes, score, pooling))
    return Heads(
        heads=tuple(heads),
        weights=weights,
        biases=biases,
        reference=fit_reference(cohort.means[known]),
    )


def describe_head(
    outcome: Outcome,
    model: LinearModel,
    people: int,
    classes: Sequence[str],
    score: HeadScore | None,
    pooling: HeadPooling = "mean",
) -> Head:
    """Return what is to be known of a head.

    Parameters
    ----------
    model : LinearModel
        What it is made of.
    people : int
        How many it was fitted to.
    classes : sequence of str
        None of a number.
    """
    return Head(
        outcome=outcome.name,
        kind=outcome.kind,
        people=people,
        classes=tuple(classes),
        units=outcome.units,
        levels=dict(outcome.levels),
        pooling=pooling,
        calibration=_describe_calibration(model) if classes else None,
        margin=None if classes else model.margin,
        quantiles=_find_quantiles(model, len(classes)),
        score=score,
    )


def describe_score(score: Score, scheme: str) -> HeadScore:
    """Return how well a head tells people who were left out by a scheme."""
    return HeadScore(
        metric=score.metric,
        value=score.value,
        lower=score.lower,
        upper=score.upper,
        scheme=scheme,
    )


def fold_priors(model: LinearModel) -> tuple[Floats, Floats]:
    """Return weight and bias; of several classes such that their softmax is calibrated."""
    if len(model.bias) < 2:
        return model.weight, model.bias
    return model.slope * model.weight, model.slope * model.bias + model.intercept


def _describe_calibration(model: LinearModel) -> Calibration:
    if len(model.bias) > 1:
        return Calibration(slope=1.0)
    return Calibration(slope=model.slope, intercept=float(model.intercept[0]))


def _find_quantiles(model: LinearModel, classes: int) -> tuple[float, ...] | None:
    """Return percentiles of what was said of people left out."""
    if classes > 2:
        return None
    said = model.judge(model.held_out)[:, 1] if classes else model.held_out[:, 0]
    return tuple(float(value) for value in np.percentile(said, np.arange(101)))
