"""Commands that enter an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimbrain_app.cluster.containers import enter_image


@pytest.mark.parametrize("gpus", [True, False])
def test_an_image_sees_inputs_to_read_and_outputs_to_write(gpus):
    given, written = [Path("/data/in"), Path("/data/x.toml")], [Path("/data/out")]
    words = enter_image(["slimbrain", "a b"], Path("/images/s.sif"), given, written, gpus)
    assert words[:2] == ["apptainer", "exec"]
    assert ("--nv" in words) == gpus
    assert "--bind=/data/in:/data/in:ro" in words
    assert "--bind=/data/out:/data/out" in words
    assert words[-3:] == ["/images/s.sif", "slimbrain", "a b"]
