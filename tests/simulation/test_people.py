from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.simulation.people import draw_person, expect_coupling
from slimbrain_app.simulation.timecourses import draw_time_courses


@pytest.fixture(scope="module")
def people(regions):
    return [draw_person(k, regions, np.random.default_rng(k)) for k in range(1, 61)]


def _scan(person, regions, seed):
    """Correlation between the networks' mean time courses over 10 minutes."""
    generator = np.random.default_rng([seed, int(person.label)])
    series = draw_time_courses(regions, person.mixing, 300, 2.0, generator)
    means = [series[:, regions.network == k].mean(axis=1) for k in range(len(regions.names))]
    return np.corrcoef(means)


@pytest.fixture(scope="module")
def couplings(people, regions):
    return np.stack([_scan(person, regions, 1) for person in people])


def _pair(couplings, regions, first, second):
    return couplings[:, regions.names.index(first), regions.names.index(second)]


def test_age_shows_in_the_coupling_of_its_pair(regions, people, couplings):
    coupling = _pair(couplings, regions, "DefaultMode", "FrontoParietal")
    ages = np.array([person.age for person in people])
    assert np.corrcoef(ages, coupling)[0, 1] > 0.7
    slope = np.polyfit(ages, coupling, 1)[0]
    assert slope == pytest.approx(0.9 / 60, rel=0.25)


def test_sex_shows_in_the_coupling_of_its_pair(regions, people, couplings):
    coupling = _pair(couplings, regions, "SomatomotorDorsal", "Visual")
    women = np.array([person.sex == "F" for person in people])
    difference = coupling[women].mean() - coupling[~women].mean()
    assert difference == pytest.approx(0.5, abs=0.15)


def test_age_says_nothing_about_other_pairs(regions, people, couplings):
    coupling = _pair(couplings, regions, "Auditory", "Visual")
    ages = np.array([person.age for person in people])
    # Three standard errors of a correlation over 60 people.
    assert abs(np.corrcoef(ages, coupling)[0, 1]) < 3 / np.sqrt(60)


def test_coupling_is_a_correlation_matrix_at_every_age(regions):
    for age in range(20, 81):
        for sex in ("F", "M"):
            coupling = expect_coupling(regions.names, age, sex)
            np.testing.assert_array_equal(coupling, coupling.T)
            np.testing.assert_array_equal(np.diag(coupling), 1)
            assert np.linalg.eigvalsh(coupling).min() > 0.1


def test_people_are_more_like_themselves_than_like_others(regions, people, couplings):
    pairs = np.triu_indices(len(regions.names), 1)
    again = np.stack([_scan(person, regions, 2)[pairs] for person in people[:12]])
    alike = np.corrcoef(couplings[:12, pairs[0], pairs[1]], again)[:12, 12:]
    assert np.mean(alike.argmax(axis=1) == np.arange(12)) > 0.6


def test_ages_span_adulthood_and_sexes_are_balanced(people):
    ages = [person.age for person in people]
    assert 20 <= min(ages) < 30 and 70 < max(ages) <= 80
    assert sum(person.sex == "F" for person in people) == len(people) / 2
