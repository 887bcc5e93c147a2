"""What keeps a cohort of thousands cheap; `benchmarks/scale.py` has the seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slimbrain_app.bids.outputs import name_output, write_run


def test_a_sidecar_does_not_grow_with_the_embedding(finished):
    sizes = []
    for width in (24, 512):
        mean = np.arange(width, dtype=np.float32)
        embedding = replace(finished.embedding, views=np.tile(mean, (4, 1)), mean=mean)
        write_run(*replace(finished, embedding=embedding).arguments)
        contract = finished.provenance.model.contract
        name = name_output(finished.run, contract, "embeddings", ".json", stat="mean")
        sizes.append((finished.output / name).stat().st_size)
    assert sizes[0] == sizes[1] < 6_000
