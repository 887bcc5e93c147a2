from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from slimbrain_app.evaluation import linear, metrics
from slimbrain_app.evaluation.probe import compare_probes, probe_outcome

QUICK = {"folds": 3, "repeats": 1}


@pytest.mark.parametrize("kind", ["class", "number"])
@pytest.mark.parametrize("sites", [None, 8])
def test_noise_scores_chance_on_average_and_most_intervals_hold_it(
    monkeypatch, draw_people, kind, sites
):
    monkeypatch.setattr(linear, "PENALTIES", (1.0,))
    monkeypatch.setattr(metrics, "DRAWS", 200)
    scores = [
        probe_outcome(*draw_people(seed, 60, strength=0, kind=kind, sites=sites), **QUICK)
        for seed in range(20)
    ]
    values = np.array([score.value for score in scores])
    chance = scores[0].chance
    assert abs(values.mean() - chance) < 3 * values.std() / np.sqrt(20)
    assert sum(score.lower < chance < score.upper for score in scores) >= 13


@pytest.mark.parametrize("kind", ["class", "number"])
@pytest.mark.parametrize("sites", [None, 8])
def test_a_planted_signal_is_found(draw_people, kind, sites):
    score = probe_outcome(*draw_people(1, 90, strength=2, kind=kind, sites=sites), **QUICK)
    assert score.chance + 0.2 < score.lower < score.value < score.upper < 1
    assert score.people == 90


def test_several_classes_are_told_apart_by_balanced_accuracy(make_outcome):
    draw = np.random.default_rng(0)
    site = np.repeat(["a", "b", "c"], [60, 20, 10])
    features = np.column_stack([(site == "b") * 4.0, (site == "c") * 4.0])
    score = probe_outcome(features + draw.standard_normal((90, 2)), make_outcome(site), **QUICK)
    assert score.metric == "balanced accuracy"
    assert score.chance == 1 / 3
    assert score.lower > 0.75


def test_features_that_fit_anything_tell_nothing_of_people_left_out(make_outcome):
    draw = np.random.default_rng(3)
    features = draw.standard_normal((80, 200))
    outcome = make_outcome(draw.permutation(80) % 2)
    fit = LogisticRegression(C=1.0).fit(features, outcome.values)
    assert fit.score(features, outcome.values) == 1
    score = probe_outcome(features, outcome, **QUICK)
    assert score.lower < 0.5 < score.upper


def test_features_that_are_the_same_for_all_score_nothing_and_not_less(make_outcome):
    outcome = make_outcome(np.random.default_rng(0).standard_normal(30), "number")
    score = probe_outcome(np.ones((30, 3)), outcome, metric="R2", **QUICK)
    assert (score.value, score.lower, score.upper) == pytest.approx((0, 0, 0), abs=1e-9)


def test_r_squared_tells_size_where_r_tells_order(draw_people):
    features, outcome = draw_people(10, 200, strength=3, kind="number")
    r, squared = (probe_outcome(features, outcome, metric=m, **QUICK) for m in ("r", "R2"))
    assert squared.value == pytest.approx(r.value**2, abs=0.02)


def test_two_probes_differ_as_their_scores_do(draw_people):
    features, outcome = draw_people(11, 100)
    poor = features + 3 * np.random.default_rng(0).standard_normal(features.shape)
    better = compare_probes(poor, features, outcome, **QUICK)
    one, other = (probe_outcome(each, outcome, **QUICK).value for each in (poor, features))
    assert better.value == pytest.approx(other - one)
