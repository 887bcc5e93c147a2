"""The descriptor against Boutiques' own schema and rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.cli.descriptor import describe
from slimbrain_app.cli.parser import make_parser

BOSH = Path(sys.executable).with_name("bosh")


@pytest.mark.skipif(not BOSH.exists(), reason="boutiques holds the schema: pip install boutiques")
def test_descriptor_is_valid_for_boutiques(tmp_path):
    file = tmp_path / "slimbrain.json"
    file.write_text(json.dumps(describe(make_parser())))
    done = subprocess.run([BOSH, "validate", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
