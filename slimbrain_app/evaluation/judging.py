"""Features judged: everybody is predicted by fits to others, and how good that is.

Scores are over all people at once, and the mean over repeats. Intervals are the middle 95 % of a
bootstrap over the people judged. They tell how far a score depends on who was judged, not on who
was fitted to, and take people of one site for independent. So they are somewhat short where
everybody is judged and fitted to: with 60 people and no signal, about four in five held chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.features import Features
from slimbrain_app.evaluation.linear import LinearModel, encode_classes, fit_linear, refuse_few
from slimbrain_app.evaluation.metrics import (
    LOWER_IS_BETTER,
    Answers,
    Metric,
    draw_people,
    find_chance,
    find_interval,
    measure,
    weigh_evenly,
)
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.splits import NO_FOLD, leave_out, list_judged

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Within the people fitted to.
INNER_FOLDS = 5
# In the middle of those that are tried.
PERMUTED_PENALTY = 1.0


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


def answer_left_out(
    features: Features,
    outcome: Outcome,
    parts: Integers,
    seed: int,
    rows: Integers | None = None,
    penalty: float | None = None,
) -> Answers:
    """Predict people by fits to those of other folds: once in each repeat, whoever has a fold.

    Parameters
    ----------
    features : Features
    outcome : Outcome
    parts : array, (repeats, people)
        Folds. Whoever has `NO_FOLD` has it in all repeats and no answer, and is fitted to only.
    seed : int
        Of the folds within those fitted to.
    rows : array, (people,), optional
        Where the people are among those that features are known of; as they come if None.
    penalty : float, optional
        If it is not to be chosen within those fitted to; then nothing is calibrated either.

    Raises
    ------
    CallRefused
        ``too-few`` if there is but one value, or fold, or fewer than three people in a fit.
    """
    coded = encode_classes(outcome)
    if parts.min() == parts.max():
        raise refuse_few(outcome, "at least two groups of people, to leave one out")
    classes = 0 if outcome.kind == "number" else len(outcome.classes)
    rows = np.arange(len(coded.people)) if rows is None else rows
    answers = _start_answers(coded, classes, parts)
    for repeat, own in enumerate(parts):
        for fit, left in leave_out(own):
            known, others = features.split(rows[fit], rows[left])
            model = fit_linear(known, coded.take(fit), classes, INNER_FOLDS, seed, penalty)
            _fill(answers, (repeat, left), model, others)
    return answers.take(list_judged(parts))


def answer_by(model: LinearModel, coded: Outcome, classes: int, features: Floats) -> Answers:
    """Return what a model says of people that it was not fitted to, once.

    Parameters
    ----------
    coded : Outcome
        Of these people, as `encode_classes` returns it.
    classes : int
        How many there are; 0 for numbers.
    features : array, (people, width)
    """
    answers = _start_answers(coded, classes, np.zeros((1, len(features)), int))
    _fill(answers, (0, np.arange(len(features))), model, features)
    return answers


def _start_answers(coded: Outcome, classes: int, parts: Integers) -> Answers:
    shape = parts.shape
    outputs = classes if classes > 2 else 1
    return Answers(
        truth=np.tile(coded.values, (shape[0], 1)),
        predicted=np.zeros(shape),
        score=np.zeros((*shape, outputs)),
        centre=np.zeros(shape),
        probability=np.zeros((*shape, classes)),
        margin=np.zeros(shape),
        fold=parts,
    )


def _fill(answers: Answers, place: tuple[int, Integers], model: LinearModel, rows: Floats) -> None:
    said = model.decide(rows)
    spread = np.where(model.spread > 0, model.spread, np.inf)
    answers.score[place] = (said - model.middle) / spread
    answers.centre[place] = model.centre
    answers.margin[place] = model.margin
    if answers.probability.shape[2] == 0:
        answers.predicted[place] = said[:, 0]
    else:
        answers.predicted[place] = said[:, 0] > 0 if said.shape[1] == 1 else said.argmax(axis=1)
        answers.probability[place] = model.judge(said)


def score_answers(outcome: Outcome, answers: Answers, metric: Metric, seed: int = 0) -> Score:
    """Return how good answers are by a metric."""
    people = answers.truth.shape[1]
    value = float(measure(answers, metric, weigh_evenly(people))[0])
    ends = find_interval(measure(answers, metric, draw_people(people, seed)))
    return Score(outcome.name, metric, value, *ends, find_chance(outcome, metric), people)


def compare_answers(
    outcome: Outcome, first: Answers, second: Answers, metric: Metric, seed: int = 0
) -> Score:
    """Return by how much the second answers score above the first, on people drawn alike."""
    people = first.truth.shape[1]
    everybody, drawn = weigh_evenly(people), draw_people(people, seed)
    value, draws = (
        measure(second, metric, counts) - measure(first, metric, counts)
        for counts in (everybody, drawn)
    )
    return Score(outcome.name, metric, float(value[0]), *find_interval(draws), 0.0, people)


def permute_outcome(
    features: Features,
    outcome: Outcome,
    parts: Integers,
    metric: Metric,
    count: int,
    seed: int,
    rows: Integers | None = None,
) -> float:
    """Return how often an outcome dealt anew among people is told as well as the true one: p.

    Both are told by fits with the one `PERMUTED_PENALTY`, in the first repeat: to choose it anew
    each time would take forty times as long. Where groups are held together, the outcome is dealt
    within them if they have several people; and never between those who are judged and those who
    are not, for both may differ in it by design.

    Ojala and Garriga (2010), test 1; p is at least 1 in ``count`` + 1.
    """
    everybody, draw = weigh_evenly(len(list_judged(parts))), np.random.default_rng(seed)
    held = np.zeros(len(outcome.people), int)
    if outcome.sites is not None and len(set(outcome.sites)) < len(held) / 2:
        held = np.unique(np.asarray(outcome.sites), return_inverse=True)[1]
    held = 2 * held + (parts[0] == NO_FOLD)
    groups = [np.flatnonzero(held == group) for group in np.unique(held)]

    def tell(dealt: Outcome) -> float:
        answers = answer_left_out(features, dealt, parts[:1], seed, rows, PERMUTED_PENALTY)
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return sign * float(measure(answers, metric, everybody)[0])

    true = tell(outcome)
    as_well = 0
    for _ in range(count):
        order = np.arange(len(outcome.people))
        for group in groups:
            order[group] = draw.permutation(group)
        as_well += tell(replace(outcome, values=outcome.values[order])) >= true
    return (as_well + 1) / (count + 1)


def identify_people(
    first: NDArray[np.floating], second: NDArray[np.floating], name: str = "identity"
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
            advice="take more people",
        )
    alike = _normalise(second - second.mean(axis=0)) @ _normalise(first - first.mean(axis=0)).T
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -np.inf)
    hits = int((own > alike.max(axis=1)).sum())
    interval = binomtest(hits, people).proportion_ci(method="wilson")
    ends = float(interval.low), float(interval.high)
    return Score(name, "accuracy", hits / people, *ends, 1 / people, people)


def _normalise(rows: NDArray[np.floating]) -> Floats:
    """Centre rows and bring them to unit length; a constant row becomes 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(lengths > 0, lengths, np.inf), float)
