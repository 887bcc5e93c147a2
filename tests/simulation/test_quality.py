from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.simulation.bold import Sources
from slimbrain_app.simulation.parcels import weigh_parcels
from slimbrain_app.simulation.quality import amplify, grey_voxels
from slimbrain_app.simulation.recorded import read_atlas
from slimbrain_app.simulation.run import Scanner, scan_brain


@pytest.fixture(scope="module")
def brain(anatomy, files):
    random = np.random.default_rng(0)
    weights = weigh_parcels(anatomy, read_atlas(files.inputs.atlas))
    return amplify(anatomy, Sources(weights=weights, series=random.standard_normal((150, 12))))


def measure(anatomy, brain, scanner):
    """Return the median over grey voxels of mean over deviation."""
    scan = scan_brain(anatomy, brain, 2.0, 1.0, np.random.default_rng(1), scanner)
    bold = np.concatenate(list(scan.batches))[:, grey_voxels(anatomy)]
    return np.median(bold.mean(axis=0) / bold.std(axis=0))


def test_median_grey_voxel_shows_a_usual_signal(anatomy, brain):
    shown = brain.show(grey_voxels(anatomy)) / anatomy.rest[grey_voxels(anatomy)]
    assert np.median(shown.std(axis=0)) == pytest.approx(0.011, rel=0.05)
    for factor in (0.1, 10):
        again = amplify(anatomy, brain.scale(factor))
        np.testing.assert_allclose(again.weights.data, brain.weights.data, rtol=1e-4)


@pytest.mark.parametrize("tsnr", [15, 40, 80])
def test_scans_have_the_signal_to_noise_asked_for(anatomy, brain, tsnr):
    assert measure(anatomy, brain, Scanner(tsnr=tsnr)) == pytest.approx(tsnr, rel=0.05)


def test_noisier_scanner_makes_a_noisier_scan(anatomy, brain):
    quiet, loud = (
        measure(anatomy, brain, Scanner(tsnr=30, noisiness=factor)) for factor in (1, 1.5)
    )
    # The brain itself has a tenth of the variance, which is the same in both.
    assert loud == pytest.approx(quiet / 1.5, rel=0.1)


def test_more_than_the_brain_itself_leaves_is_refused(anatomy, brain):
    strong = brain.scale(20)
    strong = Sources(weights=strong.weights + 0.1 * anatomy.rest[:, None], series=strong.series)
    with pytest.raises(CallRefused, match="--tsnr"):
        scan_brain(anatomy, strong, 2.0, 1.0, np.random.default_rng(1), Scanner(tsnr=60))


def test_noise_leaves_recorded_regions_alone_and_stays_where_none_was_recorded(anatomy, brain):
    """Found by least squares; without nuisance, which is not held apart."""
    recorded = np.arange(12) != 4
    brain = Sources(weights=brain.weights, series=brain.series * recorded)
    maps = brain.weights.toarray().astype(float)
    strayed = []
    for apart in (True, False):
        scanner = Scanner(tsnr=60, nuisance=0, apart=apart)
        scan = scan_brain(anatomy, brain, 2.0, 1.0, np.random.default_rng(1), scanner)
        signal = (np.concatenate(list(scan.batches)) - anatomy.rest).astype(float)
        found = np.linalg.lstsq(maps[:, recorded], signal.T, rcond=None)[0].T
        left = signal - found @ maps[:, recorded].T
        strayed.append(np.std(found - brain.series[:, recorded]))
        assert np.std(left @ maps[:, 4]) / np.sum(maps[:, 4] ** 2) > 0.02
    assert strayed[0] < 1e-3 < 0.02 < strayed[1]
