from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.evaluation.splits import cut_folds, cut_repeatedly, cut_sites, leave_out


def test_no_site_is_split_and_every_fold_has_as_many_people(make_outcome):
    sites = np.repeat([f"s{number}" for number in range(12)], 10)
    outcome = make_outcome(np.arange(120) % 2, sites=list(sites))
    parts = cut_folds(outcome, 4, np.random.default_rng(0))
    assert all(len(set(parts[sites == site])) == 1 for site in set(sites))
    assert np.bincount(parts).tolist() == [30] * 4
    others = cut_folds(outcome, 4, np.random.default_rng(1))
    assert not np.array_equal(parts, others)


@pytest.mark.parametrize("kind", ["class", "number"])
@pytest.mark.parametrize("families", [False, True])
def test_folds_are_alike_in_the_outcome(make_outcome, kind, families):
    values = np.repeat([0, 1], [40, 10]) if kind == "class" else np.arange(50.0)
    sites = [f"f{number // 2}" for number in range(50)] if families else None
    outcome = make_outcome(values, kind, sites)
    order = np.random.default_rng(0).permutation(50)
    parts = cut_folds(outcome.take(order), 5, np.random.default_rng(0))
    means = [outcome.values[order][parts == part].mean() for part in range(5)]
    assert np.bincount(parts).tolist() == [10] * 5
    assert np.ptp(means) < 0.15 * np.ptp(values)


@pytest.mark.parametrize("sites", [None, [f"s{number % 6}" for number in range(50)]])
def test_the_order_of_people_changes_no_fold(make_outcome, sites):
    outcome = make_outcome(np.random.default_rng(5).standard_normal(50), "number", sites)
    order = np.random.default_rng(0).permutation(50)
    before = cut_repeatedly(outcome, 3, 2, 7)
    assert np.array_equal(cut_repeatedly(outcome.take(order), 3, 2, 7), before[:, order])
    assert not np.array_equal(before[0], before[1])


def test_each_site_is_left_out_once():
    sites = ["b", "a", "b", "c"]
    folds = [[sites[row] for row in left] for _, left in leave_out(cut_sites(sites)[0])]
    assert folds == [["a"], ["b", "b"], ["c"]]


def test_everybody_is_judged_once_and_never_fitted_to_when_judged(make_outcome):
    parts = cut_folds(make_outcome(np.arange(17) % 2), 5, np.random.default_rng(0))
    judged = []
    for fit, left in leave_out(parts):
        assert set(fit).isdisjoint(left) and len(fit) + len(left) == 17
        judged += list(left)
    assert sorted(judged) == list(range(17))
