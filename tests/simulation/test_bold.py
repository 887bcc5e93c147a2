from __future__ import annotations

from itertools import repeat

import numpy as np
from scipy.sparse import csr_array

from slimbrain_app.simulation.bold import Sources, stream_bold


def test_stream_is_rest_plus_sources_plus_noise(anatomy):
    generator = np.random.default_rng(0)
    voxels, volumes = len(anatomy.voxels), 37
    dense = generator.standard_normal((voxels, 3)).astype(np.float32)
    sparse = dense * (generator.random((voxels, 3)) < 0.1)
    series = generator.standard_normal((2, volumes, 3))
    sources = (
        Sources(weights=dense, series=series[0]),
        Sources(weights=csr_array(sparse), series=series[1]),
    )
    noise = generator.standard_normal(voxels).astype(np.float32)
    batches = list(stream_bold(anatomy, sources, repeat(noise)))
    expected = anatomy.rest + noise + series[0] @ dense.T + series[1] @ sparse.T
    np.testing.assert_allclose(np.concatenate(batches), expected, rtol=0, atol=1e-2)
    assert all(batch.dtype == np.float32 and len(batch) <= 16 for batch in batches)


def test_volumes_are_drawn_only_when_asked_for(anatomy):
    drawn = []

    def noise():
        while True:
            drawn.append(1)
            yield np.zeros(len(anatomy.voxels), dtype=np.float32)

    sources = Sources(
        weights=np.zeros((len(anatomy.voxels), 1), dtype=np.float32), series=np.zeros((1000, 1))
    )
    next(stream_bold(anatomy, (sources,), noise()))
    assert len(drawn) < 100
