"""Heads fitted in closed form: to whom, to what, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.evaluation.cohort import Cohort
from slimbrain_app.evaluation.finetuning import fit_heads
from slimbrain_app.evaluation.linear import encode_classes, fit_linear
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.prediction import fit_reference, predict

LABELS = tuple(f"{number:03}" for number in range(60))
PEOPLE = People(
    labels=LABELS, sites=(None,) * 60, families=None, covariates=pd.DataFrame(index=list(LABELS))
)


@pytest.fixture
def cohort() -> Cohort:
    """Two runs of each person: means of 8 values, covariances of 21."""
    draw = np.random.default_rng(3)
    return Cohort(
        owners=np.repeat(np.arange(60), 2),
        embeddings=draw.standard_normal((120, 8)),
        covariances=draw.standard_normal((120, 21)),
        series=[],
        summaries=np.zeros((120, 0)),
    )


@pytest.fixture
def age() -> Outcome:
    return Outcome("age", "number", np.random.default_rng(4).normal(40, 10, 60), LABELS)


def test_heads_read_what_tells_people_and_the_reference_their_means(cohort, age):
    heads = fit_heads(cohort, PEOPLE, LABELS, [age], {}, seed=0)
    (head,) = heads.heads
    assert head.pooling == "covariance"
    told_by = (cohort.covariances[::2] + cohort.covariances[1::2]) / 2
    model = fit_linear(told_by, encode_classes(age), 0, 5, 0)
    np.testing.assert_allclose(heads.weights["age"], model.weight, rtol=1e-5)
    means = (cohort.embeddings[::2] + cohort.embeddings[1::2]) / 2
    np.testing.assert_allclose(heads.reference.mean, fit_reference(means).mean, rtol=1e-6)
    only_means = fit_heads(replace(cohort, covariances=None), PEOPLE, LABELS, [age], {}, seed=0)
    assert only_means.heads[0].pooling == "mean"
    assert only_means.weights["age"].shape == (1, 8)


def test_whoever_is_to_be_tested_has_no_part(cohort, age):
    fitted = set(LABELS[:40])
    heads = fit_heads(cohort, PEOPLE, fitted, [age], {}, seed=0)
    other = replace(age, values=np.where(np.arange(60) < 40, age.values, 1e6))
    unlike = replace(
        cohort,
        embeddings=np.where(cohort.owners[:, None] < 40, cohort.embeddings, 99),
        covariances=np.where(cohort.owners[:, None] < 40, cohort.covariances, 99),
    )
    same = fit_heads(unlike, PEOPLE, fitted, [other], {}, seed=0)
    assert heads.heads == same.heads
    assert heads.heads[0].people == 40
    assert np.array_equal(heads.weights["age"], same.weights["age"])
    assert np.array_equal(heads.reference.precision, same.reference.precision)


def test_a_head_says_what_its_weights_make_of_the_covariance_or_nothing(cohort, age):
    heads = fit_heads(cohort, PEOPLE, LABELS, [age], {}, seed=0)
    covariance = cohort.covariances[0]
    (told,) = predict(heads, np.zeros(8), None, covariance, trained=True, seen=False)
    expected = float(heads.weights["age"][0] @ covariance + heads.biases["age"][0])
    assert told.value == pytest.approx(expected, rel=1e-5)
    assert predict(heads, np.zeros(8), trained=True, seen=False) == ()
