"""Leaks that were planted are caught, or show as chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.evaluation import judging
from slimbrain_app.evaluation.comparison import judge_features, lay_schemes
from slimbrain_app.evaluation.features import Covariates, Deconfounded, Fixed
from slimbrain_app.evaluation.judging import INNER_FOLDS, permute_outcome
from slimbrain_app.evaluation.linear import encode_classes, fit_linear
from slimbrain_app.evaluation.split_file import Split
from slimbrain_app.evaluation.splits import NO_FOLD, cut_repeatedly

pytestmark = pytest.mark.usefixtures("one_penalty")


def judge(features, outcome, sites=None, families=None, permutations=0):
    sites = [None] * len(outcome.people) if sites is None else sites
    rows = np.arange(len(outcome.people))
    found = {}
    for scheme in lay_schemes(outcome, sites, families, folds=4, repeats=2, seed=0):
        places = np.array([rows[outcome.people.index(label)] for label in scheme.outcome.people])
        found[scheme.name] = list(judge_features(features, scheme, places, permutations, 0))
    return found


@pytest.fixture
def clinics():
    """Return sites that differ in how many are ill, and in features that say nothing else."""
    draw = np.random.default_rng(0)
    site = np.repeat(np.arange(6), 20)
    ill = (draw.random(120) < np.linspace(0.1, 0.9, 6)[site]).astype(int)
    features = np.eye(6)[site] * 3 + 0.3 * draw.standard_normal((120, 6))
    return features, ill, [f"s{number}" for number in site]


def test_a_site_code_tells_much_until_sites_are_left_out(make_outcome, clinics):
    features, ill, sites = clinics
    found = judge({"model": Fixed(features)}, make_outcome(ill), sites)
    by_person, by_site = (found[name][0].scores[0] for name in ("person", "site"))
    assert by_person.lower > 0.6
    assert by_site.lower < 0.5


def test_a_site_code_tells_nothing_once_sites_are_taken_out(make_outcome, clinics):
    features, ill, sites = clinics
    own = Deconfounded(Fixed(features), Covariates(pd.DataFrame({"site": sites})))
    (only,) = judge({"model": own}, make_outcome(ill))["person"]
    assert only.scores[0].lower < 0.5


def test_covariates_tell_what_a_site_code_tells(make_outcome, clinics):
    features, ill, sites = clinics
    sets = {"model": Fixed(features), "covariates": Covariates(pd.DataFrame({"site": sites}))}
    model, covariates = judge(sets, make_outcome(ill))["person"]
    assert not model.above and len(covariates.above) == len(covariates.scores)
    assert covariates.above[0].lower < 0 < covariates.above[0].upper


def test_a_person_who_is_there_twice_tells_nothing_once_the_family_is_held_together(make_outcome):
    draw = np.random.default_rng(1)
    features = np.repeat(draw.standard_normal((40, 60)), 2, axis=0)
    outcome = make_outcome(np.repeat(draw.permutation(40) % 2, 2))
    families = [f"f{number // 2}" for number in range(80)]
    apart, together = (
        judge({"model": Fixed(features)}, outcome, families=each)["person"][0].scores[0]
        for each in (None, families)
    )
    assert apart.lower > 0.6
    assert together.lower < 0.5


@pytest.mark.parametrize("kind", ["class", "number"])
def test_shuffled_outcomes_are_told_by_chance(draw_people, kind):
    features, outcome = draw_people(3, 60, strength=2, kind=kind)
    order = np.random.default_rng(0).permutation(60)
    shuffled = replace(outcome, values=outcome.values[order])
    true, other = (
        judge({"model": Fixed(features)}, each, permutations=19)["person"][0]
        for each in (outcome, shuffled)
    )
    assert true.chance == 1 / 20
    assert other.chance > 0.1
    assert other.scores[0].lower < other.scores[0].chance < other.scores[0].upper


def test_p_is_spread_evenly_where_there_is_nothing_to_tell(draw_people):
    found = []
    for seed in range(30):
        features, outcome = draw_people(seed, 24, width=2, strength=0, kind="number")
        parts = cut_repeatedly(outcome, 3, 1, 0)
        found.append(permute_outcome(Fixed(features), outcome, parts, "r", 9, seed))
    assert 0.35 < np.mean(found) < 0.75
    assert min(found) < 0.35 and max(found) > 0.75


def test_within_sites_a_site_code_is_told_as_well_when_dealt_anew(make_outcome, clinics):
    features, ill, sites = clinics
    outcome = make_outcome(ill, sites=sites)
    parts = cut_repeatedly(make_outcome(ill), 4, 1, 0)
    freely = permute_outcome(Fixed(features), make_outcome(ill), parts, "AUROC", 19, 0)
    within = permute_outcome(Fixed(features), outcome, parts, "AUROC", 19, 0)
    assert freely == 1 / 20
    assert within > 1 / 20


def test_sites_are_left_out_one_by_one_where_three_are_known(make_outcome):
    outcome = make_outcome([0, 1] * 6)
    sites = [*"aabbcc", *[None] * 6]
    by_person, by_site = lay_schemes(outcome, sites, None, 3, 2, 0)
    assert (by_person.name, by_site.name) == ("person", "site")
    assert list(by_site.outcome.people) == list(outcome.people[:6])
    assert len(set(by_site.parts[0])) == 3
    assert len(lay_schemes(outcome, [*"aabbbb", *[None] * 6], None, 3, 2, 0)) == 1


@pytest.fixture
def laid_down(make_outcome):
    """Return 50 people, of whom 10 are in no part, and the rows of those in test."""
    draw = np.random.default_rng(0)
    sides = draw.permutation(["train"] * 20 + ["validation"] * 8 + ["test"] * 12 + [""] * 10)
    people = [f"{row:04d}" for row in range(50)]
    of = {label: str(side) for label, side in zip(people, sides, strict=True) if side}
    return Split(of, True), np.flatnonzero(sides == "test"), np.isin(sides, ["train", "validation"])


def judge_split(features, outcome, split, permutations=0):
    (scheme,) = lay_schemes(outcome, ["a", "b", "c", "d", "e"] * 10, None, 4, 2, 0, split)
    assert scheme.name == "file"
    rows = np.array([int(label) for label in scheme.outcome.people])
    (judgement,) = judge_features({"model": Fixed(features)}, scheme, rows, permutations, 0)
    return judgement


@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_test_part_is_told_by_one_fit_to_train_and_validation(
    monkeypatch, draw_people, laid_down, kind
):
    monkeypatch.setattr("slimbrain_app.evaluation.linear.PENALTIES", (100.0, 1.0, 0.01))
    split, test, fitted = laid_down
    features, outcome = draw_people(4, 50, kind=kind)
    told = judge_split(features, outcome, split)
    known = encode_classes(outcome).take(np.flatnonzero(fitted))
    model = fit_linear(features[fitted], known, 2 * (kind == "class"), INNER_FOLDS, 0)
    said = model.decide(features[test])
    expected = (said[:, 0] > 0).astype(float) if kind == "class" else said[:, 0]
    assert list(told.outcome.people) == [f"{row:04d}" for row in test]
    assert told.answers.predicted == pytest.approx(np.atleast_2d(expected))
    assert told.answers.score[0] == pytest.approx((said - model.middle) / model.spread)
    if kind == "class":
        assert told.answers.probability[0] == pytest.approx(model.judge(said))
    assert {score.people for score in told.scores} == {12}


@pytest.mark.parametrize("kind", ["class", "number"])
def test_outcomes_of_the_test_part_and_of_those_in_none_change_no_prediction(
    draw_people, laid_down, kind
):
    split, _, fitted = laid_down
    features, outcome = draw_people(5, 50, kind=kind)
    values = outcome.values.copy()
    values[~fitted] = values[~fitted][::-1]
    before, after = (
        judge_split(features, replace(outcome, values=each), split)
        for each in (outcome.values, values)
    )
    for name in ("predicted", "score", "centre", "probability", "margin"):
        one, other = (getattr(told.answers, name) for told in (before, after))
        assert np.array_equal(one, other, equal_nan=True)
    assert before.scores[0].value != after.scores[0].value


def test_the_order_of_people_changes_no_prediction_of_the_test_part(draw_people, laid_down):
    split, _, _ = laid_down
    features, outcome = draw_people(6, 50, kind="number")
    order = np.random.default_rng(1).permutation(50)
    before, after = (judge_split(features, each, split) for each in (outcome, outcome.take(order)))
    places = [after.outcome.people.index(label) for label in before.outcome.people]
    assert after.answers.predicted[:, places] == pytest.approx(before.answers.predicted)


def test_each_fold_of_a_file_is_told_by_fits_to_the_others(draw_people):
    features, outcome = draw_people(7, 50, kind="number")
    sides = np.resize(["9", "10", "x"], 50)
    split = Split({f"{row:04d}": side for row, side in enumerate(sides)}, False)
    told = judge_split(features, outcome, split)
    for side in set(sides):
        model = fit_linear(
            features[sides != side], outcome.take(np.flatnonzero(sides != side)), 0, INNER_FOLDS, 0
        )
        expected = model.decide(features[sides == side])[:, 0]
        assert told.answers.predicted[0, sides == side] == pytest.approx(expected)


@pytest.mark.parametrize("strength", [0.0, 4.0])
def test_a_test_part_is_told_better_than_chance_only_if_there_is_something_to_tell(
    draw_people, laid_down, strength
):
    split, _, _ = laid_down
    features, outcome = draw_people(8, 50, strength=strength, kind="number")
    told = judge_split(features, outcome, split, permutations=19)
    assert (told.chance == 1 / 20) == (strength > 0)


def test_permuted_outcomes_stay_on_their_side(monkeypatch, draw_people):
    features, outcome = draw_people(9, 40, kind="number")
    parts = np.where(np.arange(40) < 25, NO_FOLD, 0)[None]
    seen = []

    def answer(features, dealt, *others, own=judging.answer_left_out):
        seen.append(dealt.values)
        return own(features, dealt, *others)

    monkeypatch.setattr(judging, "answer_left_out", answer)
    permute_outcome(Fixed(features), outcome, parts, "r", 5, 0)
    assert len(seen) == 6
    for values in seen[1:]:
        assert not np.array_equal(values, outcome.values)
        assert set(values[25:]) == set(outcome.values[25:])
