from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation import linear, metrics
from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.judging import (
    answer_left_out,
    compare_answers,
    identify_people,
    score_answers,
)
from slimbrain_app.evaluation.metrics import measure, weigh_evenly
from slimbrain_app.evaluation.splits import cut_repeatedly


def judge(features, outcome, folds=3, repeats=1):
    return answer_left_out(Fixed(features), outcome, cut_repeatedly(outcome, folds, repeats, 0), 0)


@pytest.mark.parametrize("kind", ["class", "number"])
def test_what_is_said_of_a_site_does_not_depend_on_its_own_outcomes(
    draw_people, make_outcome, kind
):
    features, outcome = draw_people(2, 40, kind=kind, sites=4)
    here = np.array([site == "s2" for site in outcome.sites])
    values = outcome.values.copy()
    values[here] = values[here][::-1] if kind == "class" else values[here] * 10 - 5
    parts = np.unique(outcome.sites, return_inverse=True)[1][None]
    before, after = (
        answer_left_out(Fixed(features), each, parts, 0)
        for each in (outcome, make_outcome(values, kind, outcome.sites))
    )
    for name in ("predicted", "score", "centre", "probability", "margin"):
        one, other = (getattr(answers, name)[0] for answers in (before, after))
        assert np.array_equal(one[here], other[here], equal_nan=True)
    assert not np.allclose(before.score[0, ~here], after.score[0, ~here])


@pytest.mark.parametrize("sites", [None, 6])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_the_order_of_people_changes_nothing(draw_people, sites, kind):
    features, outcome = draw_people(5, 50, kind=kind, sites=sites)
    order = np.random.default_rng(0).permutation(50)
    before = judge(features, outcome, repeats=2)
    after = judge(features[order], outcome.take(order), repeats=2)
    assert after.score == pytest.approx(before.score[:, order], abs=1e-3)


def test_numbers_are_predicted_in_their_own_unit(draw_people):
    features, outcome = draw_people(7, 60, kind="number")
    years = outcome.take(np.arange(60))
    years.values[:] = 40 + 12 * outcome.values
    before, after = judge(features, outcome), judge(features, years)
    assert after.predicted == pytest.approx(40 + 12 * before.predicted)
    assert after.margin == pytest.approx(12 * before.margin)
    assert after.score == pytest.approx(before.score)


def test_a_class_at_one_site_only_does_not_stop_the_others(make_outcome):
    draw = np.random.default_rng(0)
    sites = list(np.repeat(["a", "b", "c"], 10))
    for values in ([*([0] * 20), *([0, 1] * 5)], [*([0, 1] * 10), *([2, 2, 1, 2, 0] * 2)]):
        answers = judge(draw.standard_normal((30, 2)), make_outcome(values, sites=sites))
        assert answers.probability.sum(axis=2) == pytest.approx(np.ones((1, 30)))


def test_intervals_hold_the_score_of_a_large_crowd(monkeypatch, draw_people):
    monkeypatch.setattr(linear, "PENALTIES", (0.1,))
    monkeypatch.setattr(metrics, "DRAWS", 300)
    crowd = draw_people(999, 4000)
    held = 0
    for seed in range(40):
        known, judged = draw_people(seed, 40), draw_people(1000 + seed, 80)
        model = linear.fit_linear(known[0], linear.encode_classes(known[1]), 2, 2, seed)

        def answer(features, outcome, model=model):
            truth = linear.encode_classes(outcome).values[None]
            zeros = np.zeros_like(truth)
            said = model.decide(features)[None]
            return metrics.Answers(
                truth=truth,
                predicted=(said[:, :, 0] > 0).astype(float),
                score=said,
                centre=zeros,
                probability=np.zeros((*truth.shape, 2)),
                margin=zeros,
                fold=zeros.astype(int),
            )

        score = score_answers(judged[1], answer(*judged), "AUROC", seed)
        truth = measure(answer(*crowd), "AUROC", weigh_evenly(4000))[0]
        held += score.lower < truth < score.upper
    assert held >= 35


def test_better_features_differ_and_equal_ones_do_not(draw_people):
    features, outcome = draw_people(11, 100)
    poor = features + 3 * np.random.default_rng(0).standard_normal(features.shape)
    below, above = judge(poor, outcome), judge(features, outcome)
    better = compare_answers(outcome, below, above, "AUROC")
    assert better.lower > 0
    assert better.value == pytest.approx(
        score_answers(outcome, above, "AUROC").value - score_answers(outcome, below, "AUROC").value
    )
    same = compare_answers(outcome, above, above, "AUROC")
    assert (same.value, same.lower, same.upper) == (0, 0, 0)


def test_a_pair_judged_on_the_same_people_differs_less_than_two_scores_vary(draw_people):
    features, outcome = draw_people(12, 150)
    alike = features + 0.1 * np.random.default_rng(0).standard_normal(features.shape)
    one, other = judge(features, outcome), judge(alike, outcome)
    pair, alone = (
        compare_answers(outcome, one, other, "AUROC"),
        score_answers(outcome, one, "AUROC"),
    )
    assert pair.upper - pair.lower < 0.5 * (alone.upper - alone.lower)


def test_everybody_is_known_again_by_a_trait_and_nobody_by_noise():
    draw = np.random.default_rng(15)
    trait = draw.standard_normal((40, 20))
    again = identify_people(trait + 10, trait + 0.1 * draw.standard_normal(trait.shape) - 3)
    assert again.value == 1
    assert again.lower < 1
    strangers = identify_people(trait, draw.standard_normal(trait.shape))
    assert strangers.lower < strangers.chance == 1 / 40 < strangers.upper < again.lower


def test_nobody_is_known_by_features_that_are_the_same_for_all():
    assert identify_people(np.ones((5, 3)), np.ones((5, 3))).value == 0


@pytest.mark.parametrize(
    ("values", "kind", "sites"),
    [(["F"] * 10, "class", None), ([3.0] * 10, "number", None), ([0, 1] * 5, "class", ["a"] * 10)],
    ids=["one class", "one number", "one site"],
)
def test_nothing_to_learn_from_is_refused(make_outcome, values, kind, sites):
    outcome = make_outcome(values, kind, sites)
    with pytest.raises(CallRefused) as caught:
        judge(np.random.default_rng(0).standard_normal((10, 2)), outcome)
    assert caught.value.reason == "too-few"
