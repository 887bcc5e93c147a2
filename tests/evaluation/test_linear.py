from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation import linear
from slimbrain_app.evaluation.linear import encode_classes, fit_linear


def fit(features, outcome, seed=0):
    classes = 0 if outcome.kind == "number" else len(outcome.classes)
    return fit_linear(features, encode_classes(outcome), classes, 5, seed)


def make_reference(kind, penalty):
    if kind == "number":
        return make_pipeline(StandardScaler(), Ridge(alpha=penalty))
    model = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-8, max_iter=5000)
    return make_pipeline(StandardScaler(), model)


@pytest.mark.parametrize("width", [5, 90])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_fit_is_that_of_scikit_learn_in_units_of_the_features(
    monkeypatch, draw_people, kind, width
):
    monkeypatch.setattr(linear, "PENALTIES", (0.1,))
    features, outcome = draw_people(6, 60, width, kind=kind)
    features = features * np.linspace(1, 9, width) + 3
    model = make_reference(kind, 0.1 * width).fit(features, outcome.values)
    others = np.random.default_rng(0).standard_normal((30, width))
    expected = model.predict(others) if kind == "number" else model.decision_function(others)
    assert fit(features, outcome).decide(others)[:, 0] == pytest.approx(expected, abs=0.02)


def test_several_classes_are_those_of_scikit_learn(monkeypatch, make_outcome):
    monkeypatch.setattr(linear, "PENALTIES", (1.0,))
    draw = np.random.default_rng(0)
    values = draw.permutation(np.repeat(["a", "b", "c"], [30, 20, 10]))
    features = draw.standard_normal((60, 3)) + (values[:, None] == ["a", "b", "c"])
    model = make_reference("class", 3.0).fit(features, values)
    found = fit(features, make_outcome(values)).decide(features)
    assert found.shape == (60, 3)
    assert found == pytest.approx(model.decision_function(features), abs=0.02)


@pytest.mark.parametrize("kind", ["class", "number"])
def test_unit_and_zero_of_features_change_nothing(draw_people, kind):
    features, outcome = draw_people(4, 60, kind=kind)
    scale, shift = np.array([1e3, -1e-3, 7, 1]), np.array([-5, 100, 0, 1e3])
    before = fit(features, outcome).decide(features)
    after = fit(features * scale + shift, outcome).decide(features * scale + shift)
    assert after == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("kind", ["class", "number"])
def test_features_repeated_are_no_more_than_the_features(draw_people, kind):
    features, outcome = draw_people(4, 60, kind=kind)
    many = np.tile(features, 30)
    before, after = fit(features, outcome), fit(many, outcome)
    assert after.penalty == before.penalty
    assert after.decide(many) == pytest.approx(before.decide(features), abs=1e-2)


def test_a_stronger_penalty_is_taken_where_features_are_many_and_say_little(draw_people):
    few, many = (fit(*draw_people(9, 60, width, 3, "number")) for width in (2, 300))
    assert many.penalty > few.penalty


def test_a_feature_that_is_the_same_for_all_has_no_weight(draw_people):
    features, outcome = draw_people(1, 40)
    features[:, 2] = 7.1
    assert fit(features, outcome).weight[0, 2] == 0


@pytest.mark.parametrize("sites", [None, 5])
def test_what_is_held_out_does_not_depend_on_that_person_s_own_outcome(
    monkeypatch, draw_people, sites
):
    monkeypatch.setattr(linear, "PENALTIES", (1.0,))
    features, outcome = draw_people(3, 50, kind="number", sites=sites)
    other = outcome.take(np.arange(50))
    top = other.values.argmax()  # The order by which people are dealt stays as it is.
    other.values[top] += 100
    before, after = (fit(features, each).held_out[:, 0] for each in (outcome, other))
    assert after[top] == pytest.approx(before[top])
    assert (np.abs(after - before) > 1e-3).sum() > 30


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_probabilities_are_calibrated_whatever_the_share_of_a_class(make_outcome, share):
    draw = np.random.default_rng(2)
    trait = draw.standard_normal(6000)
    odds = np.log(share / (1 - share)) + 1.5 * trait
    outcome = make_outcome((draw.random(6000) < expit(odds)).astype(int))
    features = trait[:, None] + 0.5 * draw.standard_normal((6000, 3))
    rows = np.arange(3000)
    model = fit(features[rows], outcome.take(rows))
    probability = model.judge(model.decide(features[3000:]))[:, 1]
    truth = outcome.values[3000:]
    assert probability.mean() == pytest.approx(truth.mean(), abs=0.03)
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8)):
        inside = (probability > low) & (probability < high)
        assert truth[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.06)


def test_several_classes_are_as_likely_as_they_are_frequent(make_outcome):
    draw = np.random.default_rng(2)
    values = draw.permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    features = draw.standard_normal((1000, 3)) + (values[:, None] == [0, 1, 2])
    model = fit(features, make_outcome(values))
    probability = model.judge(model.decide(features))
    assert probability.sum(axis=1) == pytest.approx(np.ones(1000))
    assert probability.mean(axis=0) == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


@pytest.mark.parametrize("values", [np.arange(600) % 2, np.arange(600) % 3])
def test_noise_tells_no_more_than_how_frequent_classes_are(make_outcome, values):
    features = np.random.default_rng(1).standard_normal((600, 5))
    model = fit(features, make_outcome(values))
    probability = model.judge(model.decide(features))
    assert probability == pytest.approx(np.full(probability.shape, 1 / len(set(values))), abs=0.15)
    assert model.slope >= 0


def test_nine_in_ten_further_people_lie_within_the_margin(draw_people):
    held = []
    for seed in range(20):
        model = fit(*draw_people(seed, 80, kind="number"))
        features, outcome = draw_people(seed + 1000, 400, kind="number")
        errors = np.abs(model.decide(features)[:, 0] - outcome.values)
        held.append((errors <= model.margin).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)


def test_two_people_are_too_few_for_a_fit(make_outcome):
    with pytest.raises(CallRefused, match="too-few"):
        fit(np.eye(2), make_outcome([0, 1]))


@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_penalty_that_is_given_is_the_one_that_would_have_been_chosen_alone(
    monkeypatch, draw_people, kind
):
    features, outcome = draw_people(3, 40, kind=kind)
    classes = 2 if kind == "class" else 0
    given = fit_linear(features, encode_classes(outcome), classes, 5, 0, penalty=1.0)
    monkeypatch.setattr(linear, "PENALTIES", (1.0,))
    chosen = fit(features, outcome)
    assert np.array_equal(given.weight, chosen.weight)
    assert np.array_equal(given.bias, chosen.bias)
