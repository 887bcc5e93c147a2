from __future__ import annotations

import numpy as np

from slimbrain_app.simulation.sites import draw_site, seed_by_name, shade_coil


def test_site_is_the_same_for_the_same_name_and_seed_only():
    assert draw_site("NYU", 1) == draw_site("NYU", 1)
    assert draw_site("NYU", 1) != draw_site("NYU", 2)
    assert draw_site("NYU", 1) != draw_site("KKI", 1)


def test_sites_stray_from_the_usual_noise_within_bounds():
    sites = [draw_site(f"site {number}", 0) for number in range(200)]
    noisiness, spread = (
        np.array([getattr(s, name) for s in sites]) for name in ("noisiness", "spread")
    )
    assert 0.08 < np.log(noisiness).std() < 0.14
    assert noisiness.min() > 0.75 and noisiness.max() < 1.3
    assert 0.2 < spread.std() < 0.4 and abs(spread.mean() - 3) < 0.1


def test_coils_shade_each_site_in_a_way_of_its_own(anatomy):
    def shading(name):
        return shade_coil(anatomy, draw_site(name, 0)).rest / anatomy.rest - 1

    np.testing.assert_array_equal(shading("A"), shading("A"))
    assert 0.05 < shading("A").std() < 0.2
    assert abs(np.corrcoef(shading("A"), shading("B"))[0, 1]) < 0.9


def test_names_seed_independent_numbers():
    draws = {seed_by_name(3, f"person {number}").integers(2**60) for number in range(100)}
    assert len(draws) == 100
