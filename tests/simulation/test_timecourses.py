from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import welch

from slimbrain_app.simulation.people import draw_person
from slimbrain_app.simulation.timecourses import draw_responses, draw_time_courses


def _autocorrelation(series, lag):
    centred = series - series.mean(axis=0)
    return np.mean(centred[lag:] * centred[:-lag]) / np.mean(centred**2)


@pytest.mark.parametrize("tr", [0.72, 2.0])
def test_responses_have_mean_0_and_deviation_1(tr):
    series = draw_responses(200, 500, tr, np.random.default_rng(0))
    assert series.shape == (500, 200)
    assert series.mean() == pytest.approx(0, abs=0.03)
    assert series.std() == pytest.approx(1, abs=0.03)


def test_first_volume_is_like_any_other():
    series = draw_responses(4000, 2, 2.0, np.random.default_rng(0))
    assert series[0].mean() == pytest.approx(0, abs=0.06)
    assert series[0].std() == pytest.approx(1, abs=0.06)


def test_responses_are_as_slow_as_blood():
    series = draw_responses(200, 600, 0.5, np.random.default_rng(1))
    frequencies, power = welch(series, fs=2.0, nperseg=256, axis=0)
    power = power.mean(axis=1)
    assert power[frequencies > 0.2].sum() / power.sum() < 0.02
    assert 0.005 < frequencies[power.argmax()] < 0.06


def test_time_passes_alike_at_every_tr():
    quick = draw_responses(300, 800, 0.5, np.random.default_rng(2))
    slow = draw_responses(300, 400, 2.0, np.random.default_rng(3))
    assert _autocorrelation(quick, 8) == pytest.approx(_autocorrelation(slow, 2), abs=0.03)


def test_autocorrelation_is_that_of_glovers_response():
    """Random events make a series as autocorrelated as the response itself."""
    time = np.arange(0, 32, 0.1)

    def rise_and_fall(n, t):
        return (time / (n * t)) ** n * np.exp(n - time / t)

    response = rise_and_fall(6, 0.9) - 0.35 * rise_and_fall(12, 0.9)
    expected = np.sum(response[40:] * response[:-40]) / np.sum(response**2)
    series = draw_responses(400, 500, 2.0, np.random.default_rng(4))
    assert _autocorrelation(series, 2) == pytest.approx(expected, abs=0.04)


def test_regions_agree_within_their_network_and_by_the_mixing_between(regions):
    person = draw_person(1, regions, np.random.default_rng(5))
    series = draw_time_courses(regions, person.mixing, 4000, 2.0, np.random.default_rng(6))
    observed = np.corrcoef(series.T)
    expected = 0.6 * (person.mixing @ person.mixing.T)[np.ix_(regions.network, regions.network)]
    np.fill_diagonal(expected, 1)
    assert np.abs(observed - expected).max() < 0.15
    assert np.abs(observed - expected).mean() < 0.03
