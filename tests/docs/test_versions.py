"""The version has one place; where tools want it written out once more, it is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slimbrain_app import __version__

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CITATION.cff", r"^version: (.*)$"),
        ("Dockerfile", r"^ARG VERSION=(.*)$"),
        ("Singularity.def", r"^    version=(.*)$"),
        ("CHANGES.md", r"^## \[(.*?)\]"),
    ],
)
def test_version_stands_in_every_file_that_needs_it(file, pattern):
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found and found[1] == __version__


def test_both_images_start_from_one_base_and_install_by_one_script():
    dockerfile, definition = (ROOT / name for name in ("Dockerfile", "Singularity.def"))
    base = re.search(r"^ARG BASE=(.*)$", dockerfile.read_text(), re.MULTILINE)
    assert base and f"\n    from={base[1]}\n" in definition.read_text()
    assert all("containers/install.sh" in file.read_text() for file in (dockerfile, definition))
