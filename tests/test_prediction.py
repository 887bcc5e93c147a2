"""What heads say of an embedding, against libraries and plain loops."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import chi2, percentileofscore
from sklearn.covariance import LedoitWolf, ShrunkCovariance

from slimbrain_app.model.package_heads import Heads, Reference
from slimbrain_app.prediction import fit_reference, measure_distance, predict
from slimbrain_app.records import Calibration, Head

WIDTH = 6
AGE = Head(outcome="age", kind="number", people=50, units="years", margin=4.5)
SEX = Head(outcome="sex", kind="class", people=50, classes=("F", "M"))
SITE = Head(outcome="site", kind="class", people=50, classes=("a", "b", "c"))
NEAR = Reference(np.zeros(WIDTH, np.float32), np.eye(WIDTH, dtype=np.float32), 1e9)
EMBEDDING = np.random.default_rng(7).standard_normal(WIDTH).astype(np.float32)


def make_heads(*heads: Head, reference: Reference = NEAR, scale: float = 1.0) -> Heads:
    draw = np.random.default_rng(3)
    shapes = {head.outcome: (head.outputs, WIDTH) for head in heads}
    return Heads(
        heads=heads,
        weights={
            name: (scale * draw.standard_normal(shape)).astype(np.float32)
            for name, shape in shapes.items()
        },
        biases={
            name: draw.standard_normal(shape[0]).astype(np.float32)
            for name, shape in shapes.items()
        },
        reference=reference,
    )


def tell(heads: Heads, embedding=EMBEDDING, trained: bool = True, seen: bool = False):
    return predict(heads, embedding, trained=trained, seen=seen)


def answer(heads: Heads, outcome: str, embedding=EMBEDDING) -> list[float]:
    """Weights times embedding and bias, by a plain loop."""
    weight, bias = heads.weights[outcome], heads.biases[outcome]
    return [
        sum(float(w) * float(e) for w, e in zip(row, embedding, strict=True)) + float(b)
        for row, b in zip(weight, bias, strict=True)
    ]


def test_a_number_is_weights_times_embedding_within_its_margin():
    heads = make_heads(AGE)
    (age,) = tell(heads)
    assert age.value == pytest.approx(answer(heads, "age")[0], rel=1e-12)
    assert (age.upper - age.value, age.value - age.lower) == pytest.approx((4.5, 4.5))
    assert (age.outcome, age.level, age.percentile, age.flags) == ("age", None, None, ())
    assert age.calibrated


def test_a_number_without_a_margin_has_no_interval_and_says_so():
    (age,) = tell(make_heads(replace(AGE, margin=None)))
    assert (age.lower, age.upper, age.calibrated) == (None, None, False)


@pytest.mark.parametrize("calibration", [None, Calibration(slope=1.7, intercept=-0.4)])
def test_two_classes_are_platts_logistic_of_the_log_odds_of_the_second(calibration):
    heads = make_heads(replace(SEX, calibration=calibration))
    first, second = tell(heads)
    slope, intercept = (1.7, -0.4) if calibration else (1, 0)
    expected = expit(slope * answer(heads, "sex")[0] + intercept)
    assert (first.level, second.level) == ("F", "M")
    assert (first.value, second.value) == pytest.approx((1 - expected, expected), rel=1e-12)
    assert first.calibrated == second.calibrated == (calibration is not None)


@pytest.mark.parametrize("calibration", [None, Calibration(slope=0.3)])
def test_several_classes_are_the_softmax_at_a_temperature(calibration):
    heads = make_heads(replace(SITE, calibration=calibration))
    rows = tell(heads)
    expected = softmax(np.array(answer(heads, "site")) * (0.3 if calibration else 1))
    assert [row.level for row in rows] == ["a", "b", "c"]
    assert [row.value for row in rows] == pytest.approx(list(expected), rel=1e-12)


@given(st.lists(st.floats(-1e4, 1e4), min_size=WIDTH, max_size=WIDTH), st.sampled_from([SEX, SITE]))
def test_probabilities_lie_between_0_and_1_and_sum_to_1(embedding, head):
    values = [row.value for row in tell(make_heads(head, scale=10), np.array(embedding))]
    assert all(0 <= value <= 1 for value in values)
    assert sum(values) == pytest.approx(1, abs=1e-12)


def test_heads_speak_in_their_order():
    rows = tell(make_heads(SITE, AGE, SEX))
    assert [row.outcome for row in rows] == ["site"] * 3 + ["age"] + ["sex"] * 2


def find_percentile(quantiles, value: float) -> float:
    heads = make_heads(replace(AGE, quantiles=tuple(float(q) for q in quantiles)))
    weights = {"age": np.zeros((1, WIDTH), np.float32)}
    (age,) = tell(replace(heads, weights=weights, biases={"age": np.array([value])}))
    return age.percentile


def test_percentiles_are_those_of_numpy_and_of_scipy():
    people = np.random.default_rng(0).gamma(2, 10, 500)
    quantiles = np.percentile(people, np.arange(101))
    for wanted in (0, 1, 12.5, 50, 99, 100):
        value = np.percentile(people, wanted) if wanted != 12.5 else quantiles[12:14].mean()
        assert find_percentile(quantiles, value) == pytest.approx(wanted)
    for value in np.linspace(1, 80, 23):
        expected = percentileofscore(people, value, kind="mean")
        assert find_percentile(quantiles, value) == pytest.approx(expected, abs=0.6)


def test_beyond_all_people_is_0_or_100():
    quantiles = np.linspace(20, 70, 101)
    assert (find_percentile(quantiles, 19.9), find_percentile(quantiles, 71)) == (0, 100)


def test_of_equal_values_the_middle_counts():
    quantiles = np.repeat([1.0, 2.0, 3.0], [21, 60, 20])
    assert find_percentile(quantiles, 1) == 10
    assert find_percentile(quantiles, 2) == 50.5
    assert find_percentile(quantiles, 0.5) == 0


def test_the_percentile_of_two_classes_is_the_others_mirrored():
    quantiles = tuple(np.linspace(0, 1, 101) ** 2)
    first, second = tell(make_heads(replace(SEX, quantiles=quantiles)))
    expected = 100 * np.sqrt(second.value)
    assert second.percentile == pytest.approx(expected, abs=0.05)
    assert first.percentile == pytest.approx(100 - expected, abs=0.05)


def test_flags_say_what_is_the_case_and_nothing_else():
    far = replace(make_heads(AGE, SEX), reference=replace(NEAR, limit=0.0))
    for heads, trained, seen, expected in [
        (make_heads(AGE), True, False, ()),
        (make_heads(AGE), False, False, ("untrained",)),
        (make_heads(AGE), True, True, ("seen-in-training",)),
        (far, False, True, ("untrained", "seen-in-training", "out-of-distribution")),
    ]:
        assert {row.flags for row in tell(heads, EMBEDDING, trained, seen)} == {expected}


def draw_people(seed: int, people: int, width: int = 40) -> np.ndarray:
    """Embeddings of which some dimensions belong together."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width))
    return 3 + draw.standard_normal((people, width)) @ mixing


def share_outside(reference: Reference, embeddings: np.ndarray) -> float:
    return float(np.mean([measure_distance(reference, e) > reference.limit for e in embeddings]))


def test_the_distance_is_mahalanobis_by_ledoit_and_wolf():
    people, others = draw_people(0, 80), draw_people(1, 5)
    reference, fit = fit_reference(people), LedoitWolf().fit(people)
    found = [measure_distance(reference, each) for each in others]
    assert found == pytest.approx(list(fit.mahalanobis(others)), rel=1e-4)


@pytest.mark.parametrize("people", [4, 25, 200])
def test_the_limit_is_a_distance_from_all_others(people):
    embeddings = draw_people(2, people)
    shrinkage = LedoitWolf().fit(embeddings).shrinkage_
    left_out = [
        ShrunkCovariance(shrinkage=shrinkage)
        .fit(np.delete(embeddings, row, axis=0))
        .mahalanobis(embeddings[[row]])[0]
        for row in range(people)
    ]
    above = sum(distance > fit_reference(embeddings).limit * (1 + 1e-9) for distance in left_out)
    assert above == (1 if people == 200 else 0)
    assert fit_reference(embeddings).limit == pytest.approx(sorted(left_out)[-1 - above], rel=1e-9)


def test_of_draws_like_those_fitted_to_about_one_in_a_hundred_is_outside():
    shares = [
        share_outside(fit_reference(draw_people(seed, 150)), draw_people(seed + 50, 400))
        for seed in range(10)
    ]
    assert 0.002 < np.mean(shares) < 0.03


def test_an_outlier_is_outside_and_so_it_is_where_all_are_moved():
    people = draw_people(3, 100)
    spread = np.sqrt(chi2.isf(1e-6, people.shape[1]))
    outlier = people.mean(axis=0) + 3 * spread * np.eye(people.shape[1])[4] * people[:, 4].std()
    shift = 50 * np.arange(people.shape[1])
    here, there = fit_reference(people), fit_reference(people + shift)
    assert there.limit == pytest.approx(here.limit)
    assert share_outside(here, people) == share_outside(there, people + shift) == 0
    assert share_outside(here, outlier[None]) == share_outside(there, outlier[None] + shift) == 1


def test_a_reference_is_the_same_each_time_and_with_dimensions_that_never_change():
    people = np.column_stack([draw_people(4, 30), np.ones(30)])
    first, second = fit_reference(people), fit_reference(people)
    assert np.array_equal(first.precision, second.precision)
    assert np.isfinite(first.precision).all() and np.isfinite(first.limit)
    assert (first.limit, first.mean.tolist()) == (second.limit, second.mean.tolist())


def test_two_people_make_no_reference():
    with pytest.raises(ValueError, match="three people"):
        fit_reference(draw_people(0, 2))


def test_predicting_needs_no_torch():
    script = (
        "import sys, slimbrain_app.prediction, slimbrain_app.model.package_heads\n"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
