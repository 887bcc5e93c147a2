"""The linear model that every set of features is judged by, and that heads on embeddings are.

Features are standardised and an L2-penalised model is fitted: a logistic regression with balanced
classes, or a ridge regression. The strength of the penalty is chosen within the people fitted to,
by folds of theirs; what these folds say of people left out also calibrates probabilities and gives
the margin of a predicted number. Nobody who is judged has a part in any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.metrics import area, explained, weigh_evenly
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.splits import cut_folds, leave_out

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# On standardised features, in shares of their number: so wide and narrow ones have the same grid.
# The strongest first: of two that are as good, the stronger is taken.
PENALTIES = tuple(10.0**power for power in range(3, -4, -1))
# Of predicted numbers: so many of the people left out lie within the margin.
CONFIDENCE = 0.9
# Log odds of a class that nobody was fitted to.
_NEVER = -20.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearModel:
    """A fit to an outcome. A number has one output, two classes have the log odds of the second.

    Attributes
    ----------
    weight, bias : array, (outputs, width) and (outputs,)
        Of features in their own units.
    penalty : float
    middle, spread : array, (outputs,)
        Mean and deviation of outputs over the people fitted to.
    held_out : array, (people, outputs)
        Outputs for the people fitted to, by fits without them.
    centre : float
        Mean of the numbers fitted to; 0 for classes.
    margin : float
        Half the width of the interval around a number that holds nine in ten; NaN for classes.
    slope, intercept : float and array, (outputs,)
        Of calibrated log odds.
    """

    weight: Floats
    bias: Floats
    penalty: float
    middle: Floats
    spread: Floats
    held_out: Floats
    centre: float = 0.0
    margin: float = float("nan")
    slope: float = 1.0
    intercept: Floats = field(default_factory=lambda: np.zeros(1))

    def decide(self, features: Floats) -> Floats:
        """Return numbers in their own units, or log odds of balanced classes, (people, outputs)."""
        return np.asarray(features @ self.weight.T + self.bias)

    def judge(self, decisions: Floats) -> Floats:
        """Return calibrated probabilities of classes, (people, classes)."""
        odds = self.slope * decisions + self.intercept
        if odds.shape[1] == 1:
            return np.column_stack([expit(-odds[:, 0]), expit(odds[:, 0])])
        return np.asarray(softmax(odds, axis=1))


def fit_linear(
    features: NDArray[np.floating],
    coded: Outcome,
    classes: int,
    folds: int,
    seed: int,
    penalty: float | None = None,
) -> LinearModel:
    """Fit an outcome to features.

    Parameters
    ----------
    features : array, (people, width)
    coded : Outcome
        As `encode_classes` returns it, or some people of it.
    classes : int
        How many there are among all people; 0 for numbers.
    folds : int
        Within these people.
    seed : int
        Of the folds.
    penalty : float, optional
        If it is not to be chosen; then nothing is calibrated either.

    Raises
    ------
    CallRefused
        ``too-few`` with fewer than three people.
    """
    matrix = np.asarray(features, float)
    if len(matrix) < 3:
        raise refuse_few(coded, "at least three people in each fit")
    outputs = classes if classes > 2 else 1
    with _find_threads().limit(limits=1):
        zero = matrix.mean(axis=0)
        rows = matrix - zero
        unit = _find_unit(rows, np.abs(matrix).max(axis=0))
        rows /= unit
        turned, shares = _rotate(rows)
        held_out = np.empty((0, outputs))
        if chooses := penalty is None:
            penalty, held_out = _choose_penalty(turned, coded, outputs, folds, seed)
        weight, bias = next(_fit(turned, coded, outputs, (penalty,)))
        said = turned @ weight.T + bias
        weight = (weight if shares is None else weight @ shares.T @ rows) / unit
    model = LinearModel(
        weight=weight,
        bias=bias - weight @ zero,
        penalty=penalty,
        middle=said.mean(axis=0),
        spread=said.std(axis=0),
        held_out=held_out,
        centre=0.0 if classes else float(coded.values.mean()),
    )
    if not chooses:
        return model
    if classes:
        slope, intercept = calibrate(held_out, coded)
        return replace(model, slope=slope, intercept=intercept)
    return replace(model, margin=find_margin(np.abs(held_out[:, 0] - coded.values)))


@cache
def _find_threads() -> ThreadpoolController:
    """Return what limits threads: on matrices of this size they would wait for one another."""
    return ThreadpoolController()


def _find_unit(centred: Floats, largest: Floats) -> Floats:
    """Return what to divide centred features by; ones that do not vary count for nothing."""
    deviations = np.sqrt(np.einsum("ij,ij->j", centred, centred) / len(centred))
    varies = deviations > 1e-12 * largest
    return np.asarray(np.where(varies, deviations, np.inf) * np.sqrt(centred.shape[1]))


def encode_classes(outcome: Outcome) -> Outcome:
    """Return the outcome with classes counted from 0, in float; numbers as they are."""
    if len(outcome.classes) < 2:
        raise refuse_few(outcome, "at least two values")
    if outcome.kind == "class":
        return replace(
            outcome, values=np.searchsorted(outcome.classes, outcome.values).astype(float)
        )
    return replace(outcome, values=np.asarray(outcome.values, float))


def refuse_few(outcome: Outcome, expected: str) -> CallRefused:
    return CallRefused(
        "too-few",
        file=outcome.name,
        expected=expected,
        found=f"{len(outcome.people)} people with {len(outcome.classes)} values",
        advice="take more people, or leave this outcome out",
    )


def _rotate(rows: Floats) -> tuple[Floats, Floats | None]:
    """Return rows in no more directions than there are people, each in shares of rows.

    An L2 penalty sees no rotation, and what lies outside these directions has no weight. The
    shares are (people, directions); None where features are few and stay as they are.
    """
    people, width = rows.shape
    if width <= people:
        return rows, None
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > values[-1] * 1e-12
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, vectors[:, kept] / lengths


def _choose_penalty(
    rows: Floats, outcome: Outcome, outputs: int, folds: int, seed: int
) -> tuple[float, Floats]:
    """Return the penalty that tells people left out best, and what it says of them.

    Groups are left out whole if there are several.
    """
    if outcome.sites is not None and len(set(outcome.sites)) < 2:
        outcome = replace(outcome, sites=None)
    said = np.zeros((len(PENALTIES), len(rows), outputs))
    centres = np.zeros(len(rows))
    for fit, left in leave_out(cut_folds(outcome, folds, np.random.default_rng(seed))):
        known = outcome.take(fit)
        centres[left] = known.values.mean() if outcome.kind == "number" else 0.0
        for row, (weight, bias) in enumerate(_fit(rows[fit], known, outputs, PENALTIES)):
            said[row, left] = rows[left] @ weight.T + bias
    scores = [_score(outcome, one, centres) for one in said]
    best = int(np.nan_to_num(scores, nan=-np.inf).argmax())
    return PENALTIES[best], said[best]


def _score(outcome: Outcome, said: Floats, centres: Floats) -> float:
    everybody = weigh_evenly(len(said))
    if outcome.kind == "number":
        truth = outcome.values - centres
        return float(explained(truth, said[:, 0] - centres, everybody)[0])
    if said.shape[1] == 1:
        return float(area(outcome.values == 1, said[:, 0], everybody)[0])
    truth = outcome.values.astype(int)
    shares = 1 / np.bincount(truth)[truth]
    return float(shares @ log_softmax(said, axis=1)[np.arange(len(truth)), truth])


def _fit(
    rows: Floats, outcome: Outcome, outputs: int, penalties: tuple[float, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield weight (outputs, columns) and bias (outputs,) for each penalty."""
    if outcome.kind == "number":
        return _fit_ridge(rows, outcome.values, penalties)
    return _fit_logistic(rows, outcome, outputs, penalties)


def _fit_ridge(
    rows: Floats, values: Floats, penalties: tuple[float, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield ridge regressions: one decomposition serves all penalties."""
    zero, centre = rows.mean(axis=0), values.mean()
    centred, truth = rows - zero, values - centre
    wide = centred.shape[1] > len(centred)  # The smaller of both products is decomposed.
    squares, axes = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    along = axes.T @ (truth if wide else centred.T @ truth)
    for penalty in penalties:
        found = axes @ (along / (np.clip(squares, 0, None) + penalty))
        weight = centred.T @ found if wide else found
        yield weight[None], np.array([centre - weight @ zero])


def _fit_logistic(
    rows: Floats, outcome: Outcome, outputs: int, penalties: tuple[float, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield logistic regressions, each begun where the stronger one before it has ended."""
    present = outcome.classes.astype(int)
    weight, bias = np.zeros((outputs, rows.shape[1])), np.zeros(outputs)
    if len(present) < 2:  # Whoever was fitted to is of one class, which tells nothing of others.
        yield from ((weight, bias) for _ in penalties)
        return
    if outputs > 1:
        bias[:] = _NEVER
    model = LogisticRegression(class_weight="balanced", max_iter=2000, warm_start=True)
    for penalty in penalties:
        model.set_params(C=1 / penalty).fit(rows, outcome.values)
        if outputs == 1:
            yield model.coef_.copy(), model.intercept_.copy()
            continue
        both = len(present) == 2  # Of which scikit-learn gives the second one's log odds.
        halves = np.array([[-0.5], [0.5]])
        weight[present] = halves * model.coef_ if both else model.coef_
        bias[present] = halves[:, 0] * model.intercept_ if both else model.intercept_
        yield weight.copy(), bias.copy()


def calibrate(said: Floats, outcome: Outcome) -> tuple[float, Floats]:
    """Return the slope and intercepts of log odds that fit people left out best.

    Of two classes they are Platt's (1999), with his targets short of 0 and 1. Of several ones the
    slope is chosen, and classes are as frequent as they were. No slope is negative: outputs that
    tell nothing come to say how frequent classes are.
    """
    counts = np.bincount(outcome.values.astype(int), minlength=max(said.shape[1], 2))
    if said.shape[1] == 1:
        targets = np.where(
            outcome.values == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2)
        )

        def lose(both: Floats) -> float:
            odds = both[0] * said[:, 0] + both[1]
            return float(np.logaddexp(0, odds).sum() - targets @ odds)

        found = minimize(lose, (1.0, 0.0), bounds=((0, None), (None, None)), method="L-BFGS-B")
        return float(found.x[0]), found.x[1:]
    priors = np.log((counts + 1) / (counts + 1).sum())
    own = np.arange(len(said)), outcome.values.astype(int)

    def lose_all(slope: Floats) -> float:
        return float(-log_softmax(slope * said + priors, axis=1)[own].sum())

    found = minimize(lose_all, (1.0,), bounds=((0, None),), method="L-BFGS-B")
    return float(found.x[0]), priors


def find_margin(errors: Floats) -> float:
    """Return the size of error that is not exceeded in `CONFIDENCE` of further people.

    Split-conformal: the next larger of as many errors as there are people and one.
    """
    place = int(np.ceil(CONFIDENCE * (len(errors) + 1))) - 1
    return float(np.sort(errors)[min(place, len(errors) - 1)])
