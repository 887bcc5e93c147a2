"""Linear probes: what frozen features tell about people who were not in the fit.

Features are standardised and an L2-penalised linear model is fitted: a logistic regression with
balanced classes, or a ridge regression. The strength of the penalty is chosen within the training
people, by folds of theirs. Where sites are known, whole sites are left out.

Intervals are the middle 95 % of a bootstrap over the people judged. They tell how far the score
depends on who was judged, not on who was fitted to, and take people of one site for independent.
So they are somewhat short where everybody is judged and fitted to: with 60 people and no signal,
about four in five held chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from slimbrain_app.errors import CallRefused

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Kind = Literal["class", "number"]
Metric = Literal["AUROC", "balanced accuracy", "r", "R2"]

# The strongest first: of two that are as good, the stronger is taken.
PENALTIES = tuple(10.0**power for power in range(6, -1, -1))
DRAWS = 1000
_OF_ORDER = ("AUROC", "r")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is to be predicted, one row per person.

    Attributes
    ----------
    name : str
    kind : {"class", "number"}
    values : array, (people,)
        Labels of classes, or finite numbers.
    people : sequence of str
        Labels; they, not the order of rows, decide who is in which fold.
    sites : sequence of str, optional
        The site, or another group that no fold may split.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    people: Sequence[str]
    sites: Sequence[str] | None = None

    def __post_init__(self) -> None:
        sites = self.people if self.sites is None else self.sites
        if not len(set(self.people)) == len(self.people) == len(self.values) == len(sites):
            raise ValueError(f"{self.name}: one value, one site and one label for each person")

    @property
    def classes(self) -> NDArray[Any]:
        return np.unique(self.values)

    @property
    def metric(self) -> Metric:
        """The area under the ROC curve, balanced accuracy from three classes on, or Pearson's r."""
        if self.kind == "number":
            return "r"
        return "AUROC" if len(self.classes) == 2 else "balanced accuracy"

    def take(self, rows: Integers) -> Outcome:
        """Return the outcome of some people."""
        return replace(
            self,
            values=self.values[rows],
            people=[self.people[row] for row in rows],
            sites=None if self.sites is None else [self.sites[row] for row in rows],
        )


@dataclass(frozen=True, slots=True)
class Score:
    """How well an outcome is told, with the ends of a 95 % interval."""

    name: str
    metric: str
    value: float
    lower: float
    upper: float
    chance: float
    people: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second features tell an outcome than the first, with a 95 % interval."""

    name: str
    metric: str
    value: float
    lower: float
    upper: float
    people: int


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Truth and prediction of people not in the fit, both (repeats, people).

    For AUROC the prediction is log odds, for balanced accuracy a class, counted from 0 as in the
    truth. Numbers are both relative to the mean of the people fitted to. That mean is low where
    the people left out are high: a probe that knew nothing but it would reach r < 0.
    """

    truth: Floats
    predicted: Floats


def probe_outcome(
    features: NDArray[np.floating],
    outcome: Outcome,
    *,
    metric: Metric | None = None,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> Score:
    """Return how well features (people, width) tell an outcome of people left out.

    The score is over all people at once, each predicted by a fit without them and their site; and
    the mean over ``repeats`` ways to cut the folds.

    Raises
    ------
    CallRefused
        ``too-few`` if there is but one class, person or site.
    """
    metric = metric or outcome.metric
    answers = predict_left_out(features, outcome, metric, folds, repeats, seed)
    return score_answers(outcome, metric, answers, seed)


def compare_probes(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    outcome: Outcome,
    *,
    metric: Metric | None = None,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> Difference:
    """Return by how much ``second`` scores above ``first`` on the same people in the same folds.

    Raises
    ------
    CallRefused
        ``too-few``, as `probe_outcome`.
    """
    metric = metric or outcome.metric
    below, above = (
        predict_left_out(features, outcome, metric, folds, repeats, seed)
        for features in (first, second)
    )
    return compare_answers(outcome, metric, below, above, seed)


def probe_transfer(
    features: NDArray[np.floating],
    outcome: Outcome,
    other_features: NDArray[np.floating],
    other_outcome: Outcome,
    *,
    metric: Metric | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Score:
    """Return how well a fit to some people tells the outcome of others, for instance elsewhere.

    Raises
    ------
    CallRefused
        ``too-few``, as `probe_outcome`, or if the others have a class that nobody was fitted to.
    """
    metric = metric or outcome.metric
    answers = predict_others(features, outcome, other_features, other_outcome, metric, folds, seed)
    return score_answers(outcome, metric, answers, seed)


def identify_runs(
    first: NDArray[np.floating], second: NDArray[np.floating], name: str = "run identity"
) -> Score:
    """Return the share of people whose second features resemble their own first ones most.

    Resemblance is the correlation of what is left of features (people, width) without the mean
    over people. Equal resemblance to somebody else doesn't count. The interval is Wilson's.

    Raises
    ------
    CallRefused
        ``too-few`` with fewer than two people.
    """
    people = len(first)
    if people < 2:
        raise CallRefused(
            "too-few",
            expected="at least two people to tell apart",
            found=str(people),
            advice="probe on more people",
        )
    alike = _normalise(second - second.mean(axis=0)) @ _normalise(first - first.mean(axis=0)).T
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -np.inf)
    hits = int((own > alike.max(axis=1)).sum())
    interval = binomtest(hits, people).proportion_ci(method="wilson")
    ends = float(interval.low), float(interval.high)
    return Score(name, "accuracy", hits / people, *ends, 1 / people, people)


def predict_left_out(
    features: NDArray[np.floating],
    outcome: Outcome,
    metric: Metric,
    folds: int,
    repeats: int,
    seed: int,
) -> Answers:
    """Predict everybody by fits to others, in ``repeats`` ways to cut the folds."""
    if outcome.sites is not None and len(set(outcome.sites)) < 2:
        raise _too_few(outcome, "at least two sites, to leave one out")
    matrix = np.asarray(features, float)
    coded = _encode(outcome, outcome.classes)
    truth, predicted = np.empty((2, repeats, len(matrix)))
    for repeat in range(repeats):
        parts = cut_folds(coded, folds, np.random.default_rng([seed, repeat]))
        for fit, left in _leave_out(parts):
            known = coded.take(fit)
            truth[repeat, left] = coded.values[left] - _centre(known)
            predicted[repeat, left] = _predict(
                matrix[fit], known, matrix[left], metric, folds, seed
            )
    return Answers(truth, predicted)


def predict_others(
    features: NDArray[np.floating],
    outcome: Outcome,
    other_features: NDArray[np.floating],
    other_outcome: Outcome,
    metric: Metric,
    folds: int,
    seed: int,
) -> Answers:
    """Predict the others by one fit."""
    classes = outcome.classes
    if outcome.kind == "class" and not np.isin(other_outcome.values, classes).all():
        raise _too_few(outcome, "no class that nobody was fitted to")
    coded, judged = (_encode(each, classes) for each in (outcome, other_outcome))
    fit, others = (np.asarray(each, float) for each in (features, other_features))
    predicted = _predict(fit, coded, others, metric, folds, seed)
    return Answers((judged.values - _centre(coded))[None], predicted[None])


def cut_folds(outcome: Outcome, folds: int, draw: np.random.Generator) -> Integers:
    """Return each person's fold, (people,); there are no more folds than sites or people.

    People are dealt in the order of their outcome, such that folds are alike in it. Sites are dealt
    whole, large ones first, to the fold with the fewest people.
    """
    if outcome.sites is not None:
        return _deal_sites(np.asarray(outcome.sites), folds, draw)
    shuffled = draw.permutation(np.argsort(np.asarray(outcome.people)))
    by_outcome = shuffled[np.argsort(outcome.values[shuffled], kind="stable")]
    count = min(folds, len(shuffled))
    rounds = [draw.permutation(count) for _ in range(-(-len(shuffled) // count))]
    parts = np.empty(len(shuffled), int)
    parts[by_outcome] = np.concatenate(rounds)[: len(shuffled)]
    return parts


def _deal_sites(sites: NDArray[np.str_], folds: int, draw: np.random.Generator) -> Integers:
    _, site, sizes = np.unique(sites, return_inverse=True, return_counts=True)
    load = np.zeros(min(folds, len(sizes)))
    fold_of = np.empty(len(sizes), int)
    shuffled = draw.permutation(len(sizes))
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[number] = load.argmin()
        load[fold_of[number]] += sizes[number]
    return np.asarray(fold_of[site])


def _leave_out(parts: Integers) -> Iterator[tuple[Integers, Integers]]:
    for part in range(parts.max() + 1):
        yield np.flatnonzero(parts != part), np.flatnonzero(parts == part)


def _encode(outcome: Outcome, classes: NDArray[Any]) -> Outcome:
    """Return the outcome with classes counted from 0, after a check that a probe has a chance."""
    if len(classes) < 2:
        raise _too_few(outcome, "at least two values")
    if outcome.kind == "class":
        return replace(outcome, values=np.searchsorted(classes, outcome.values))
    return replace(outcome, values=np.asarray(outcome.values, float))


def _centre(outcome: Outcome) -> float:
    return float(outcome.values.mean()) if outcome.kind == "number" else 0.0


def _predict(
    fit: Floats, outcome: Outcome, left: Floats, metric: Metric, folds: int, seed: int
) -> Floats:
    """Predict the people left out by a fit to the others, among whom the penalty is chosen.

    Where only the order of predictions counts, their unit is the spread over the people fitted to.
    In the fit's own unit, fits that happen to point away from those left out would weigh more, for
    they are longer, and noise would score below chance.
    """
    if len(fit) < 3:
        raise _too_few(outcome, "at least three people in each fit")
    with threadpool_limits(1):  # The matrices are small: threads would wait for one another.
        scaler = StandardScaler().fit(fit)
        fit, left = _rotate(scaler.transform(fit), scaler.transform(left))
        penalty = _choose_penalty(fit, outcome, metric, folds, seed)
        answers = _answer(fit, outcome, np.concatenate([fit, left]), penalty, metric)
    known, predicted = np.split(answers, [len(fit)])
    return _divide(predicted, known.std(), 0.0) if metric in _OF_ORDER else predicted


def _rotate(fit: Floats, left: Floats) -> tuple[Floats, Floats]:
    """Return features in as many directions as there are people in the fit, if that is less.

    An L2 penalty sees no rotation, and what lies outside these directions has no weight.
    """
    if fit.shape[1] <= len(fit):
        return fit, left
    directions = np.linalg.svd(fit, full_matrices=False)[2].T
    return fit @ directions, left @ directions


def _choose_penalty(
    features: Floats, outcome: Outcome, metric: Metric, folds: int, seed: int
) -> float:
    """Return the penalty that tells people left out best; sites are left out whole if several."""
    if outcome.sites is not None and len(set(outcome.sites)) < 2:
        outcome = replace(outcome, sites=None)
    truth, predicted = np.empty((2, len(PENALTIES), len(features)))
    for fit, left in _leave_out(cut_folds(outcome, folds, np.random.default_rng(seed))):
        known = outcome.take(fit)
        truth[:, left] = outcome.values[left] - _centre(known)
        for row, penalty in enumerate(PENALTIES):
            predicted[row, left] = _answer(features[fit], known, features[left], penalty, metric)
    scores = _MEASURES["R2" if metric == "r" else metric](truth, predicted)
    return PENALTIES[int(np.nan_to_num(scores, nan=-np.inf).argmax())]


def _answer(fit: Floats, outcome: Outcome, left: Floats, penalty: float, metric: Metric) -> Floats:
    if outcome.kind == "number":
        truth = outcome.values - _centre(outcome)
        return np.asarray(Ridge(alpha=penalty).fit(fit, truth).predict(left))
    present = outcome.classes
    if len(present) < 2:  # Whoever was fitted to is of one class, which tells nothing of others.
        return np.full(len(left), 0.0 if metric == "AUROC" else float(present[0]))
    model = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=2000)
    model.fit(fit, outcome.values)
    return np.asarray(
        model.decision_function(left) if metric == "AUROC" else model.predict(left), float
    )


def score_answers(outcome: Outcome, metric: Metric, answers: Answers, seed: int) -> Score:
    """Return how good answers are, with an interval."""
    chance = {"AUROC": 0.5, "balanced accuracy": 1 / len(outcome.classes), "r": 0.0, "R2": 0.0}
    ends = _middle(_resample(metric, answers, seed))
    value = _measure(metric, answers)
    people = answers.truth.shape[1]
    return Score(outcome.name, metric, value, *ends, chance[metric], people)


def compare_answers(
    outcome: Outcome, metric: Metric, first: Answers, second: Answers, seed: int
) -> Difference:
    """Return by how much the second answers are better, on people drawn alike."""
    below, above = (_measure(metric, answers) for answers in (first, second))
    draws, other_draws = (_resample(metric, answers, seed) for answers in (first, second))
    ends = _middle(other_draws - draws)
    return Difference(outcome.name, metric, above - below, *ends, len(outcome.people))


def _measure(metric: Metric, answers: Answers) -> float:
    return float(_MEASURES[metric](answers.truth, answers.predicted).mean())


def _resample(metric: Metric, answers: Answers, seed: int) -> Floats:
    """Return the score of people drawn anew with replacement, (draws,)."""
    people = answers.truth.shape[1]
    draw = np.random.default_rng(seed)
    scores = np.empty(DRAWS)
    for number in range(DRAWS):
        rows = draw.integers(people, size=people)
        scores[number] = _measure(
            metric, Answers(answers.truth[:, rows], answers.predicted[:, rows])
        )
    return scores


def _middle(scores: Floats) -> tuple[float, float]:
    """Return the ends of the middle 95 % of scores; a draw of one class has none."""
    lower, upper = np.nanpercentile(scores, (2.5, 97.5))
    return float(lower), float(upper)


def _area(truth: Floats, predicted: Floats) -> Floats:
    """Return the area under the ROC curve over the last axis; NaN where all are of one class."""
    second = truth == 1
    count = second.sum(axis=-1)
    above = (rankdata(predicted, axis=-1) * second).sum(axis=-1) - count * (count + 1) / 2
    return _divide(above, count * (truth.shape[-1] - count), np.nan)


def _balanced_accuracy(truth: Floats, predicted: Floats) -> Floats:
    """Return the mean share of hits over the classes that are there."""
    here = truth == np.unique(truth).reshape(-1, *(1,) * truth.ndim)
    shares = _divide((here & (truth == predicted)).sum(axis=-1), here.sum(axis=-1), np.nan)
    return np.asarray(np.nanmean(shares, axis=0))


def _correlation(truth: Floats, predicted: Floats) -> Floats:
    """Return Pearson's r over the last axis; 0 where nothing varies."""
    return np.asarray((_normalise(truth) * _normalise(predicted)).sum(axis=-1))


def _explained(truth: Floats, predicted: Floats) -> Floats:
    """Return the share of squares around the fitted people's mean that the prediction removes."""
    return np.asarray(1 - ((truth - predicted) ** 2).sum(axis=-1) / (truth**2).sum(axis=-1))


_MEASURES: Mapping[Metric, Callable[[Floats, Floats], Floats]] = {
    "AUROC": _area,
    "balanced accuracy": _balanced_accuracy,
    "r": _correlation,
    "R2": _explained,
}


def _normalise(rows: NDArray[np.floating]) -> Floats:
    """Centre rows and bring them to unit length; a constant row becomes 0."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return _divide(centred, np.linalg.norm(centred, axis=-1, keepdims=True), 0.0)


def _divide(above: NDArray[Any], below: NDArray[Any], otherwise: float) -> Floats:
    shape = np.broadcast_shapes(above.shape, below.shape)
    usable = np.broadcast_to(below != 0, shape)
    return np.asarray(np.divide(above, below, out=np.full(shape, otherwise), where=usable))


def _too_few(outcome: Outcome, expected: str) -> CallRefused:
    return CallRefused(
        "too-few",
        file=outcome.name,
        expected=expected,
        found=f"{len(outcome.people)} people with {len(outcome.classes)} values",
        advice="probe on more people, or leave this outcome out",
    )
