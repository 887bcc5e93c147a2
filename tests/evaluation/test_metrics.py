from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    r2_score,
    roc_auc_score,
)

from slimbrain_app.evaluation import metrics
from slimbrain_app.evaluation.metrics import (
    Answers,
    draw_people,
    find_chance,
    list_metrics,
    measure,
    weigh_evenly,
)

PEOPLE = 60


def make_answers(classes, seed=0):
    """Return two repeats of guesses at classes, or at numbers if there are none."""
    draw = np.random.default_rng(seed)
    shape = (2, PEOPLE)
    if classes:
        truth = np.tile(draw.integers(0, classes, PEOPLE).astype(float), (2, 1))
        predicted = draw.integers(0, classes, shape).astype(float)
    else:
        truth = np.tile(draw.standard_normal(PEOPLE), (2, 1))
        predicted = truth + draw.standard_normal(shape)
    probability = draw.dirichlet(np.ones(max(classes, 1)), shape)
    return Answers(
        truth=truth,
        predicted=predicted,
        score=draw.standard_normal((*shape, classes if classes > 2 else 1)).round(1),
        centre=np.zeros(shape) if classes else np.full(shape, 0.1),
        probability=probability if classes else probability[:, :, :0],
        margin=np.ones(shape),
        fold=np.zeros(shape, int),
    )


def ask_libraries(answers, metric, repeat, rows):
    """Return what scikit-learn and scipy say of the people in ``rows``."""
    truth, predicted = answers.truth[repeat, rows], answers.predicted[repeat, rows]
    score, centre = answers.score[repeat, rows], answers.centre[repeat, rows]
    probability = answers.probability[repeat, rows]
    match metric:
        case "r":
            return pearsonr(truth - centre, score[:, 0])[0]
        case "R2":
            return 1 - ((truth - predicted) ** 2).sum() / ((truth - centre) ** 2).sum()
        case "MAE":
            return np.mean(abs(truth - predicted))
        case "RMSE":
            return np.sqrt(np.mean((truth - predicted) ** 2))
        case "coverage":
            return np.mean(abs(truth - predicted) <= 1)
        case "AUROC" if score.shape[1] == 1:
            return roc_auc_score(truth, score[:, 0])
        case "AUROC":
            return np.mean([roc_auc_score(truth == k, score[:, k]) for k in range(score.shape[1])])
        case "AUPRC":
            return average_precision_score(truth, score[:, 0])
        case "balanced accuracy":
            return balanced_accuracy_score(truth, predicted)
        case "F1":
            return f1_score(truth, predicted, average="macro")
        case "Brier":
            return brier_score_loss(
                truth, probability, labels=range(probability.shape[1]), scale_by_half=False
            )


@pytest.mark.parametrize(
    ("classes", "metric"),
    [
        (count, metric)
        for count, kind in ((2, "two classes"), (4, "classes"), (0, "number"))
        for metric in metrics.METRICS[kind]
    ],
)
def test_measures_are_those_of_scikit_learn_and_scipy_in_every_draw(classes, metric):
    answers = make_answers(classes)
    drawn = draw_people(PEOPLE, 3, draws=5)
    for counts in (*weigh_evenly(PEOPLE), *drawn):
        rows = np.repeat(np.arange(PEOPLE), counts.astype(int))
        expected = np.mean([ask_libraries(answers, metric, repeat, rows) for repeat in (0, 1)])
        assert measure(answers, metric, counts[None])[0] == pytest.approx(expected)
    assert measure(answers, metric, drawn) == pytest.approx(
        [measure(answers, metric, one[None])[0] for one in drawn]
    )


def test_r_squared_around_one_mean_is_that_of_scikit_learn():
    truth = np.arange(10.0)
    guess = truth + np.sin(truth)
    found = metrics.explained(truth - truth.mean(), guess - truth.mean(), weigh_evenly(10))
    assert found[0] == pytest.approx(r2_score(truth, guess))


def test_draws_of_one_class_have_no_area_and_no_draw_of_nothing_has_a_correlation():
    second = np.array([True, False, True])
    counts = np.array([[1.0, 1, 1], [2, 0, 1]])
    found = metrics.area(second, np.arange(3.0), counts)
    assert found[0] == 0.5 and np.isnan(found[1])
    assert metrics.correlation(np.arange(3.0), np.ones(3), weigh_evenly(3))[0] == 0


def test_every_draw_holds_as_many_people():
    drawn = draw_people(30, 0)
    assert drawn.shape == (metrics.DRAWS, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert drawn.std() == pytest.approx(np.sqrt(29 / 30), rel=0.05)


@pytest.mark.parametrize("values", [[0] * 6 + [1] * 4, [0] * 6 + [1] * 3 + [2] * 1])
def test_chance_is_what_a_guess_of_frequencies_scores(make_outcome, values):
    outcome = make_outcome(values)
    coded = np.array(values, float)[None]
    shares = np.bincount(values) / len(values)
    blind = Answers(
        truth=coded,
        predicted=coded * 0,
        score=np.zeros((1, 10, 1 if len(shares) == 2 else 3)),
        centre=coded * 0,
        probability=np.tile(shares, (1, 10, 1)),
        margin=coded * 0,
        fold=np.zeros((1, 10), int),
    )
    for metric in set(list_metrics(outcome)) - {"F1"}:
        expected = measure(blind, metric, weigh_evenly(10))[0]
        assert find_chance(outcome, metric) == pytest.approx(expected)
