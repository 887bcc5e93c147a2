from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from slimbrain_app.evaluation.map import COLUMNS, FARTHEST, map_people, tabulate_people


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1]


def test_places_are_principal_components(embeddings):
    laid, fit = map_people(embeddings), PCA(2).fit(embeddings)
    assert np.abs(laid.places) == pytest.approx(np.abs(fit.transform(embeddings)))
    assert laid.shares == pytest.approx(fit.explained_variance_ratio_)


def test_components_point_the_same_way_for_people_in_any_order(embeddings):
    order = np.random.default_rng(1).permutation(40)
    assert map_people(embeddings[order]).places == pytest.approx(
        map_people(embeddings).places[order]
    )


def test_distances_are_from_all_others(embeddings):
    shrinkage = LedoitWolf().fit(embeddings).shrinkage_
    for person, distance in enumerate(map_people(embeddings).distances):
        others = np.delete(embeddings, person, axis=0)
        covariance = np.cov(others.T, bias=True)
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 6 * np.eye(6)
        apart = embeddings[person] - others.mean(axis=0)
        assert distance == pytest.approx(np.sqrt(apart @ np.linalg.solve(shrunk, apart)))


def test_several_who_are_far_do_not_hide_one_another(embeddings):
    embeddings[[3, 17, 25]] *= [[30], [-30], [40]]
    laid = map_people(embeddings)
    assert sorted(np.argsort(laid.distances)[-3:]) == [3, 17, 25]
    assert laid.apart[[3, 17, 25]].all()


@pytest.mark.parametrize(("people", "width"), [(60, 192), (200, 192)])
def test_hardly_anybody_is_far_among_equals(people, width):
    draws = [np.random.default_rng(seed).standard_normal((people, width)) for seed in range(5)]
    assert np.mean([map_people(draw).apart for draw in draws]) < 0.01


def test_nobody_is_far_where_all_are_the_same():
    laid = map_people(np.ones((5, 4)))
    assert not laid.apart.any()
    assert np.isfinite(laid.shares).all()


def test_the_table_says_what_the_map_does(embeddings):
    embeddings[3] *= 30
    laid = map_people(embeddings)
    sites = [None, *["here"] * 39]
    table = tabulate_people([f"{n:02}" for n in range(40)], sites, [1] * 40, laid)
    assert list(table) == list(COLUMNS)
    assert table["participant_id"][3] == "sub-03"
    assert ((table["apart"] == "yes") == (table["deviations"] > FARTHEST)).all()
    assert table[["first", "second"]].to_numpy() == pytest.approx(laid.places)
