from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.simulation.networks import load_regions, weigh_regions


def test_every_network_is_bilateral():
    regions = load_regions()
    for place, name in enumerate(regions.names):
        x = regions.coordinates[regions.network == place, 0]
        assert (x < 0).any() and (x > 0).any(), name


def test_weight_of_a_lone_region_is_its_gaussian_in_grey_matter(anatomy):
    centre = np.array([-40.0, -20.0, 52.0])
    weights = weigh_regions(anatomy, centre[None], np.array([0.8])).toarray()[:, 0]
    for voxel in range(0, len(weights), 97):
        distance = np.linalg.norm(anatomy.coordinates[voxel] - centre)
        nearness = np.exp(-(distance**2) / (2 * 6.0**2)) if distance <= 15 else 0.0
        share = 0.8 * 0.01 * nearness * anatomy.grey[voxel]
        assert weights[voxel] == pytest.approx(share * anatomy.rest[voxel], rel=1e-5)
    assert weights.max() > 0.003 * anatomy.rest.max()


def test_two_regions_at_one_place_share_it(anatomy):
    centre = np.array([[-40.0, -20.0, 52.0]])
    one = weigh_regions(anatomy, centre, np.ones(1)).sum(axis=1)
    two = weigh_regions(anatomy, np.repeat(centre, 2, axis=0), np.ones(2)).sum(axis=1)
    assert two.max() < 1.25 * one.max()
    assert np.all(two >= one - 1e-3)
