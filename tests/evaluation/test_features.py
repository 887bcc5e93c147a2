from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from slimbrain_app.evaluation.features import (
    Covariates,
    Deconfounded,
    Fixed,
    Tangents,
    average_runs,
)

FIT, LEFT = np.arange(0, 20), np.arange(20, 30)


@pytest.fixture
def table():
    draw = np.random.default_rng(0)
    return pd.DataFrame({"age": draw.uniform(20, 40, 30), "site": list("ab" * 15)})


@pytest.mark.parametrize("make", [Covariates, None], ids=["covariates", "tangents"])
def test_what_those_fitted_to_have_does_not_depend_on_those_judged(table, make):
    draw = np.random.default_rng(0)
    if make:
        table["age"] += np.where(draw.random(30) < 0.3, np.nan, 0)
        other = table.copy()
        other.loc[LEFT, "age"] *= 100
        other.loc[LEFT, "site"] = "elsewhere"
        before, after = (Covariates(each).split(FIT, LEFT)[0] for each in (table, other))
    else:
        series = [draw.standard_normal((50, 4)) for _ in range(30)]
        others = [
            one if person < 20 else one @ draw.standard_normal((4, 4))
            for person, one in enumerate(series)
        ]
        owners = np.arange(30)
        before, after = (Tangents(each, owners).split(FIT, LEFT)[0] for each in (series, others))
    assert np.array_equal(before, after)


def test_a_site_that_nobody_was_fitted_to_is_no_site(table):
    table.loc[25, "site"] = "new"
    known, left = Covariates(table).split(FIT, LEFT)
    assert known.shape == (20, 3)
    assert left[5, 1:].tolist() == [0, 0]


def test_a_missing_number_is_the_median_of_those_fitted_to(table):
    table.loc[25, "age"] = np.nan
    assert Covariates(table).split(FIT, LEFT)[1][5, 0] == table["age"][:20].median()


def test_nothing_linear_is_left_of_confounds_in_those_fitted_to(table):
    confounds = Covariates(table)
    told = confounds.split(np.arange(30), LEFT)[0]
    matrix = told @ np.random.default_rng(1).standard_normal((3, 5)) + np.random.default_rng(
        2
    ).standard_normal((30, 5))
    known, left = Deconfounded(Fixed(matrix), confounds).split(FIT, LEFT)
    assert np.abs(np.corrcoef(known.T, told[FIT].T)[:5, 5:]).max() < 1e-9
    expected = matrix[LEFT] - LinearRegression().fit(told[FIT], matrix[FIT]).predict(told[LEFT])
    assert left == pytest.approx(expected)


def test_runs_of_a_person_are_averaged():
    rows = np.arange(8.0).reshape(4, 2)
    found = average_runs(rows, np.array([1, 0, 1, 1]))
    assert found.tolist() == [[2, 3], [(0 + 4 + 6) / 3, (1 + 5 + 7) / 3]]
