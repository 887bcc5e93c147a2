"""How good predictions are: scores over all people at once, and how sure they are.

Every measure takes counts of people, (draws, people), and returns a score per draw. Everybody once
gives the score itself; people drawn anew with replacement give its bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.evaluation.outcomes import Outcome

Floats = NDArray[np.float64]
Metric = Literal[
    "AUROC", "AUPRC", "balanced accuracy", "F1", "Brier", "r", "R2", "MAE", "RMSE", "coverage"
]

METRICS: Mapping[str, tuple[Metric, ...]] = {
    "two classes": ("AUROC", "AUPRC", "balanced accuracy", "F1", "Brier"),
    "classes": ("balanced accuracy", "AUROC", "F1", "Brier"),
    "number": ("r", "R2", "MAE", "RMSE", "coverage"),
}
LOWER_IS_BETTER = ("Brier", "MAE", "RMSE")
DRAWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """What fits to others say of people, each array beginning with (repeats, people).

    Attributes
    ----------
    truth : array
        Numbers, or classes counted from 0.
    predicted : array
        Likewise. Of classes, the likeliest if all were equally frequent.
    score : array, (repeats, people, outputs)
        What orders people: outputs of the fit, from its mean in units of its spread over those
        fitted to. Else fits that happen to point away from those left out would weigh more, for
        they are longer, and noise would score below chance.
    centre : array
        Mean number of those fitted to; 0 for classes. It is low where the people left out are high:
        a guess that knew nothing but it would reach r < 0, so numbers are judged from there.
    probability : array, (repeats, people, classes)
    margin : array
        Half the width of the interval around a number.
    fold : array
    """

    truth: Floats
    predicted: Floats
    score: Floats
    centre: Floats
    probability: Floats
    margin: Floats
    fold: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Answers:
        """Return what is said of some of the people."""
        return replace(
            self,
            truth=self.truth[:, rows],
            predicted=self.predicted[:, rows],
            score=self.score[:, rows],
            centre=self.centre[:, rows],
            probability=self.probability[:, rows],
            margin=self.margin[:, rows],
            fold=self.fold[:, rows],
        )


def list_metrics(outcome: Outcome) -> tuple[Metric, ...]:
    """Return the metrics of an outcome, the one that decides first."""
    if outcome.kind == "number":
        return METRICS["number"]
    return METRICS["two classes" if len(outcome.classes) == 2 else "classes"]


def find_chance(outcome: Outcome, metric: Metric) -> float:
    """Return what a guess that knows how frequent classes are scores; NaN where none is told."""
    if metric in ("r", "R2"):
        return 0.0
    if metric == "AUROC":
        return 0.5
    if metric == "balanced accuracy":
        return 1 / len(outcome.classes)
    _, counts = np.unique(outcome.values, return_counts=True)
    shares = counts / counts.sum()
    if metric == "AUPRC":
        return float(shares[1])
    if metric == "Brier":
        return float(1 - (shares**2).sum())
    return float("nan")


def weigh_evenly(people: int) -> Floats:
    """Return the counts of everybody once, (1, people)."""
    return np.ones((1, people))


def draw_people(people: int, seed: int, draws: int | None = None) -> Floats:
    """Return how often each person is drawn in each draw, (draws, people)."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(people, np.full(people, 1 / people), size=draws or DRAWS).astype(float)


def measure(answers: Answers, metric: Metric, counts: Floats) -> Floats:
    """Return the score of each draw, (draws,): the mean over repeats."""
    repeats = range(len(answers.truth))
    return np.asarray(
        np.mean([_measure(answers, repeat, metric, counts) for repeat in repeats], axis=0)
    )


def find_interval(scores: Floats) -> tuple[float, float]:
    """Return the ends of the middle 95 % of scores; a draw of one class has none."""
    lower, upper = np.nanpercentile(scores, (2.5, 97.5))
    return float(lower), float(upper)


def _measure(answers: Answers, repeat: int, metric: Metric, counts: Floats) -> Floats:
    truth, predicted = answers.truth[repeat], answers.predicted[repeat]
    score, centre = answers.score[repeat], answers.centre[repeat]
    match metric:
        case "r":
            return correlation(truth - centre, score[:, 0], counts)
        case "R2":
            return explained(truth - centre, predicted - centre, counts)
        case "MAE":
            return _average(np.abs(truth - predicted), counts)
        case "RMSE":
            return np.sqrt(_average((truth - predicted) ** 2, counts))
        case "coverage":
            return _average(np.abs(truth - predicted) <= answers.margin[repeat], counts)
        case "AUROC":
            return _each_class(area, truth, score, counts)
        case "AUPRC":
            return precision_recall(truth == 1, score[:, 0], counts)
        case "balanced accuracy":
            return balanced_accuracy(truth, predicted, counts)
        case "F1":
            return f_score(truth, predicted, counts)
        case "Brier":
            probability = answers.probability[repeat]
            own = truth[:, None] == np.arange(probability.shape[1])
            return _average(((probability - own) ** 2).sum(axis=1), counts)


def area(second: NDArray[np.bool_], score: Floats, counts: Floats) -> Floats:
    """Return the area under the ROC curve; NaN where all are of one class."""
    positive, negative = _sum_by_score(second, score, counts)
    below = np.cumsum(negative, axis=1) - negative / 2
    return _divide(
        (positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1), np.nan
    )


def precision_recall(second: NDArray[np.bool_], score: Floats, counts: Floats) -> Floats:
    """Return the average precision; NaN where nobody is of the second class."""
    positive, negative = (each[:, ::-1] for each in _sum_by_score(second, score, counts))
    found = np.cumsum(positive, axis=1)
    precision = _divide(found, found + np.cumsum(negative, axis=1), 0.0)
    return _divide((precision * positive).sum(axis=1), positive.sum(axis=1), np.nan)


def balanced_accuracy(truth: Floats, predicted: Floats, counts: Floats) -> Floats:
    """Return the mean share of hits over the classes that are there."""
    here = (truth == np.unique(truth)[:, None]).astype(float)
    shares = _divide(counts @ (here * (truth == predicted)).T, counts @ here.T, np.nan)
    return np.asarray(np.nanmean(shares, axis=1))


def f_score(truth: Floats, predicted: Floats, counts: Floats) -> Floats:
    """Return the mean over classes of twice the hits by the true and the predicted ones."""
    classes = np.unique(truth)[:, None]
    true, said = (truth == classes).astype(float), (predicted == classes).astype(float)
    both = counts @ true.T + counts @ said.T
    return np.asarray(np.nanmean(_divide(2 * counts @ (true * said).T, both, np.nan), axis=1))


def correlation(truth: Floats, predicted: Floats, counts: Floats) -> Floats:
    """Return Pearson's r; 0 where nothing varies."""
    total = counts.sum(axis=1)
    truth, predicted = truth - truth.mean(), predicted - predicted.mean()
    means = [counts @ each / total for each in (truth, predicted)]
    products = counts @ (truth * predicted) / total - means[0] * means[1]
    squares = [
        counts @ each**2 / total - mean**2
        for each, mean in zip((truth, predicted), means, strict=True)
    ]
    vary = [
        square > 1e-12 * max((each**2).mean(), 1e-300)
        for square, each in zip(squares, (truth, predicted), strict=True)
    ]
    below = np.sqrt(np.clip(squares[0] * squares[1], 0, None))
    return np.where(vary[0] & vary[1], _divide(products, below, 0.0), 0.0)


def explained(truth: Floats, predicted: Floats, counts: Floats) -> Floats:
    """Return the share of squares around the fitted people's mean that the prediction removes."""
    return np.asarray(1 - (counts @ (truth - predicted) ** 2) / (counts @ truth**2))


def _each_class(
    rate: Callable[[NDArray[np.bool_], Floats, Floats], Floats],
    truth: Floats,
    score: Floats,
    counts: Floats,
) -> Floats:
    """Return a rate of two classes, or the mean of those of each class against all others."""
    if score.shape[1] == 1:
        return rate(truth == 1, score[:, 0], counts)
    rates = [rate(truth == number, score[:, number], counts) for number in range(score.shape[1])]
    return np.asarray(np.nanmean(rates, axis=0))


def _sum_by_score(
    second: NDArray[np.bool_], score: Floats, counts: Floats
) -> tuple[Floats, Floats]:
    """Count both classes at each distinct score, ascending: (draws, scores) each."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    drawn = counts[:, order]
    positive = np.add.reduceat(drawn * second[order], starts, axis=1)
    return positive, np.add.reduceat(drawn, starts, axis=1) - positive


def _average(values: NDArray[Any], counts: Floats) -> Floats:
    return np.asarray(counts @ values.astype(float) / counts.sum(axis=1))


def _divide(above: NDArray[Any], below: NDArray[Any], otherwise: float) -> Floats:
    return np.asarray(
        np.divide(above, below, out=np.full(below.shape, otherwise), where=below != 0)
    )
