"""The campaign of injected faults: that it can tell torn files, and that some faults do no harm."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # Where its dataclasses look up their own types.
    spec.loader.exec_module(module)
    yield module
    del sys.modules["faults"]


@pytest.mark.parametrize(
    ("name", "whole", "cut"),
    [
        ("a.json", b'{"a": 1}\n', 7),
        ("a.tsv", b"a\tb\n1\t2\n", 6),
        ("a.tsv", b"a\tb\n1\t2\n", 7),
        ("a.nii.gz", gzip.compress(b"brain", mtime=0), -1),
        ("a.html", b"<html></html>\n", 10),
        ("a.svg", b"<svg></svg>", 5),
        ("a.toml", b"a = 'b'\n", 6),
    ],
)
def test_a_torn_file_is_told_from_a_whole_one(faults, tmp_path, name, whole, cut):
    file = tmp_path / name
    file.write_bytes(whole)
    faults.read_whole(file, killed=False)
    file.write_bytes(whole[:cut])
    with pytest.raises((ValueError, OSError, EOFError, SyntaxError)):
        faults.read_whole(file, killed=False)


def test_sidecar_whose_checksums_are_of_other_files_is_torn(faults, tmp_path):
    sidecar = tmp_path / "out" / "a.json"
    sidecar.parent.mkdir()
    sidecar.with_suffix(".tsv").write_text("a\n1\n")
    sidecar.write_text('{"Outputs": {"a.tsv": "0000"}}')
    with pytest.raises(ValueError, match=r"a\.tsv"):
        faults.read_whole(sidecar, killed=False)


def test_fewer_faults_are_spread_over_the_kinds_in_proportion(faults):
    kinds = [faults.Kind("often", 60, None), faults.Kind("seldom", 20, None)]
    chosen = Counter(kind.name for kind, _ in faults.choose_faults(kinds, 8))
    assert chosen == {"often": 6, "seldom": 2}


def test_the_campaign_is_of_two_hundred_faults_and_more(faults):
    assert sum(kind.faults for kind in faults.KINDS.values()) >= 200


@pytest.mark.slow
def test_ten_faults_do_no_harm():
    kinds = ["call-killed", "worker-killed", "signal", "bold-cut", "output-damaged"]
    command = [sys.executable, SCRIPT, "--faults", "10", "--only", *kinds]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| **all** | | 10 |" in result.stdout
