from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation import probe
from slimbrain_app.evaluation.probe import (
    Outcome,
    compare_probes,
    cut_folds,
    identify_runs,
    predict_left_out,
    probe_outcome,
    probe_transfer,
)

QUICK = {"folds": 3, "repeats": 1}


def make_outcome(values, kind="class", sites=None):
    values = np.asarray(values)
    people = [f"{number:04d}" for number in range(len(values))]
    return Outcome("outcome", kind, values, people, sites)


def draw_people(seed, people, width=4, strength=1.0, kind="class", sites=None):
    """Return features and an outcome that the first of them tells, as far as strength says."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((people, width))
    values = strength * features[:, 0] + draw.standard_normal(people)
    if kind == "class":
        values = np.where(values > 0, "F", "M")
    return features, make_outcome(values, kind, sites and [f"s{i % sites}" for i in range(people)])


@pytest.mark.parametrize("kind", ["class", "number"])
@pytest.mark.parametrize("sites", [None, 8])
def test_noise_scores_chance_on_average_and_most_intervals_hold_it(monkeypatch, kind, sites):
    monkeypatch.setattr(probe, "PENALTIES", (10.0,))
    monkeypatch.setattr(probe, "DRAWS", 200)
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
def test_a_planted_signal_is_found(kind, sites):
    score = probe_outcome(*draw_people(1, 90, strength=2, kind=kind, sites=sites), **QUICK)
    assert score.chance + 0.2 < score.lower < score.value < score.upper < 1
    assert score.people == 90


def test_several_classes_are_told_apart_by_balanced_accuracy():
    draw = np.random.default_rng(0)
    site = np.repeat(["a", "b", "c"], [60, 20, 10])
    features = np.column_stack([(site == "b") * 4.0, (site == "c") * 4.0])
    score = probe_outcome(features + draw.standard_normal((90, 2)), make_outcome(site), **QUICK)
    assert score.metric == "balanced accuracy"
    assert score.chance == 1 / 3
    assert score.lower > 0.75


def test_features_that_fit_anything_tell_nothing_of_people_left_out():
    draw = np.random.default_rng(3)
    features = draw.standard_normal((80, 200))
    outcome = make_outcome(draw.permutation(80) % 2)
    fit = LogisticRegression(C=1.0).fit(features, outcome.values)
    assert fit.score(features, outcome.values) == 1
    score = probe_outcome(features, outcome, **QUICK)
    assert score.lower < 0.5 < score.upper


@pytest.mark.parametrize("kind", ["class", "number"])
def test_what_is_said_of_a_site_does_not_depend_on_its_own_outcomes(kind):
    features, outcome = draw_people(2, 40, kind=kind, sites=4)
    here = np.array([site == "s2" for site in outcome.sites])
    values = outcome.values.copy()
    values[here] = values[here][::-1] if kind == "class" else values[here] * 10 - 5
    other = make_outcome(values, kind, outcome.sites)
    before, after = (
        predict_left_out(features, each, each.metric, 4, 1, 0).predicted[0]
        for each in (outcome, other)
    )
    assert np.array_equal(before[here], after[here])
    assert not np.allclose(before[~here], after[~here])


def test_unit_and_zero_of_features_change_nothing():
    features, outcome = draw_people(4, 60)
    scale, shift = np.array([1e3, -1e-3, 7, 1]), np.array([-5, 100, 0, 1e3])
    before, after = (
        predict_left_out(each, outcome, outcome.metric, 3, 1, 0).predicted
        for each in (features, features * scale + shift)
    )
    assert after == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("sites", [None, 6])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_the_order_of_people_changes_nothing(kind, sites):
    features, outcome = draw_people(5, 50, kind=kind, sites=sites)
    order = np.random.default_rng(0).permutation(50)
    before = predict_left_out(features, outcome, outcome.metric, 3, 2, 7).predicted
    after = predict_left_out(
        features[order], outcome.take(order), outcome.metric, 3, 2, 7
    ).predicted
    assert after == pytest.approx(before[:, order], abs=1e-3)


def make_reference(kind, penalty):
    if kind == "number":
        return make_pipeline(StandardScaler(), Ridge(alpha=penalty)), "predict"
    model = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-8, max_iter=5000)
    return make_pipeline(StandardScaler(), model), "decision_function"


@pytest.mark.parametrize("width", [5, 90])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_predictions_are_those_of_cross_val_predict(monkeypatch, kind, width):
    monkeypatch.setattr(probe, "PENALTIES", (10.0,))
    features, outcome = draw_people(6, 60, width, kind=kind, sites=5)
    parts = cut_folds(outcome, 5, np.random.default_rng([0, 0]))
    values = outcome.values == "M" if kind == "class" else outcome.values
    model, method = make_reference(kind, 10.0)
    expected = cross_val_predict(model, features, values, cv=PredefinedSplit(parts), method=method)
    if kind == "number":
        expected -= [values[parts != part].mean() for part in parts]
    spreads = [
        getattr(model.fit(features[known], values[known]), method)(features[known]).std()
        for known in (parts != part for part in range(5))
    ]
    expected /= np.array(spreads)[parts]
    found = predict_left_out(features, outcome, outcome.metric, 5, 1, 0).predicted[0]
    assert found == pytest.approx(expected, abs=0.01)


def test_measures_are_those_of_scikit_learn_and_scipy():
    draw = np.random.default_rng(8)
    truth, guess = draw.integers(0, 2, 50).astype(float), draw.standard_normal(50).round(1)
    measures = probe._MEASURES
    assert measures["AUROC"](truth, guess) == pytest.approx(roc_auc_score(truth, guess))
    classes, taken = draw.integers(0, 4, (2, 50)).astype(float)
    expected = balanced_accuracy_score(classes, taken)
    assert measures["balanced accuracy"](classes, taken) == pytest.approx(expected)
    centred = truth - truth.mean()
    assert measures["r"](centred, guess) == pytest.approx(pearsonr(truth, guess)[0])
    assert measures["R2"](centred, guess) == pytest.approx(r2_score(centred, guess))


def test_a_stronger_penalty_is_taken_where_features_are_many_and_say_little():
    few, many = (
        probe._choose_penalty(*draw_people(9, 60, width, 3, "number"), "r", 5, 0)
        for width in (2, 300)
    )
    assert many > few


def test_no_site_is_split_and_every_fold_has_as_many_people():
    sites = np.repeat([f"s{number}" for number in range(12)], 10)
    outcome = make_outcome(np.arange(120) % 2, sites=list(sites))
    parts = cut_folds(outcome, 4, np.random.default_rng(0))
    assert all(len(set(parts[sites == site])) == 1 for site in set(sites))
    assert np.bincount(parts).tolist() == [30] * 4
    others = cut_folds(outcome, 4, np.random.default_rng(1))
    assert not np.array_equal(parts, others)


@pytest.mark.parametrize("kind", ["class", "number"])
def test_folds_are_alike_in_the_outcome(kind):
    values = np.repeat([0, 1], [40, 10]) if kind == "class" else np.arange(50.0)
    outcome = make_outcome(np.random.default_rng(0).permutation(values), kind)
    parts = cut_folds(outcome, 5, np.random.default_rng(0))
    means = [outcome.values[parts == part].mean() for part in range(5)]
    assert np.bincount(parts).tolist() == [10] * 5
    assert np.ptp(means) < 0.15 * np.ptp(values)


def test_features_that_are_the_same_for_all_score_nothing_and_not_less():
    outcome = make_outcome(np.random.default_rng(0).standard_normal(30), "number")
    score = probe_outcome(np.ones((30, 3)), outcome, metric="R2", **QUICK)
    assert (score.value, score.lower, score.upper) == pytest.approx((0, 0, 0), abs=1e-9)


def test_r_squared_tells_size_where_r_tells_order():
    features, outcome = draw_people(10, 200, strength=3, kind="number")
    r, squared = (probe_outcome(features, outcome, metric=m, **QUICK) for m in ("r", "R2"))
    assert squared.metric == "R2"
    assert squared.value == pytest.approx(r.value**2, abs=0.02)


def test_better_features_differ_and_equal_ones_do_not():
    features, outcome = draw_people(11, 100)
    poor = features + 3 * np.random.default_rng(0).standard_normal(features.shape)
    better = compare_probes(poor, features, outcome, **QUICK)
    assert better.lower > 0
    assert better.value == pytest.approx(
        probe_outcome(features, outcome, **QUICK).value
        - probe_outcome(poor, outcome, **QUICK).value
    )
    same = compare_probes(features, features, outcome, **QUICK)
    assert (same.value, same.lower, same.upper) == (0, 0, 0)


def test_a_pair_judged_on_the_same_people_differs_less_than_two_scores_vary():
    features, outcome = draw_people(12, 150)
    alike = features + 0.1 * np.random.default_rng(0).standard_normal(features.shape)
    pair = compare_probes(features, alike, outcome, **QUICK)
    alone = probe_outcome(features, outcome, **QUICK)
    assert pair.upper - pair.lower < 0.5 * (alone.upper - alone.lower)


@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_fit_tells_of_others_what_it_shares_with_them(kind):
    features, outcome = draw_people(13, 80, strength=2, kind=kind)
    others, judged = draw_people(14, 60, strength=2, kind=kind)
    score = probe_transfer(features, outcome, others, judged)
    assert score.lower > score.chance
    assert score.people == 60
    turned = probe_transfer(features, outcome, others[:, ::-1], judged)
    assert turned.lower < turned.chance < turned.upper


def test_a_fit_to_one_site_is_judged_at_one_other():
    features, outcome = draw_people(16, 60, strength=3, sites=1)
    others, judged = draw_people(17, 40, strength=3, sites=1)
    assert probe_transfer(features, outcome, others, judged, folds=3).lower > 0.6


def test_a_guess_among_the_classes_fitted_to_is_chance_whoever_is_judged():
    draw = np.random.default_rng(18)
    outcome, judged = make_outcome(list("abcd") * 10), make_outcome(list("ab") * 10)
    features, others = draw.standard_normal((40, 2)), draw.standard_normal((20, 2))
    assert probe_transfer(features, outcome, others, judged, folds=3).chance == 1 / 4


def test_intervals_hold_the_score_of_a_large_crowd(monkeypatch):
    monkeypatch.setattr(probe, "PENALTIES", (10.0,))
    monkeypatch.setattr(probe, "DRAWS", 300)
    crowd = draw_people(999, 4000)
    held = 0
    for seed in range(40):
        fit, judged = draw_people(seed, 40), draw_people(1000 + seed, 80)
        score = probe_transfer(*fit, *judged, folds=2, seed=seed)
        truth = probe._measure("AUROC", probe.predict_others(*fit, *crowd, "AUROC", 2, seed))
        held += score.lower < truth < score.upper
    assert held >= 35


def test_everybody_is_known_again_by_a_trait_and_nobody_by_noise():
    draw = np.random.default_rng(15)
    trait = draw.standard_normal((40, 20))
    again = identify_runs(trait + 10, trait + 0.1 * draw.standard_normal(trait.shape) - 3)
    assert again.value == 1
    assert again.lower < 1
    strangers = identify_runs(trait, draw.standard_normal(trait.shape))
    assert strangers.lower < strangers.chance == 1 / 40 < strangers.upper < again.lower


def test_nobody_is_known_by_features_that_are_the_same_for_all():
    assert identify_runs(np.ones((5, 3)), np.ones((5, 3))).value == 0


@pytest.mark.parametrize(
    "outcome",
    [
        make_outcome(["F"] * 10),
        make_outcome([3.0] * 10, "number"),
        make_outcome([0, 1] * 5, sites=["a"] * 10),
        make_outcome([0, 1]),
    ],
    ids=["one class", "one number", "one site", "two people"],
)
def test_nothing_to_learn_from_is_refused(outcome):
    features = np.random.default_rng(0).standard_normal((len(outcome.people), 2))
    with pytest.raises(CallRefused) as caught:
        probe_outcome(features, outcome)
    assert caught.value.reason == "too-few"


def test_a_class_that_nobody_was_fitted_to_is_refused():
    features = np.random.default_rng(0).standard_normal((10, 2))
    with pytest.raises(CallRefused, match="too-few"):
        probe_transfer(features, make_outcome([0, 1] * 5), features, make_outcome([1, 2] * 5))


def test_a_class_at_one_site_only_does_not_stop_the_others():
    draw = np.random.default_rng(0)
    sites = list(np.repeat(["a", "b", "c"], 10))
    outcome = make_outcome([*([0] * 20), *([0, 1] * 5)], sites=sites)
    score = probe_outcome(draw.standard_normal((30, 2)), outcome, **QUICK)
    assert 0 <= score.lower <= score.upper <= 1


def test_a_person_has_one_row():
    with pytest.raises(ValueError, match="one label for each person"):
        Outcome("sex", "class", np.array(["F", "M"]), ["01", "01"])
