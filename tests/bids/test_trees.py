"""Real lists of file names, laid out with small images, against an independent reading of them."""

import csv
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from slimbrain_app.bids.discover import discover
from slimbrain_app.bids.entities import parse_name
from slimbrain_app.bids.folders import File
from slimbrain_app.bids.runs import gather_runs
from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Prepare, Select

TREES = (
    Path(os.environ.get("SLIMBRAIN_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
    / "fmriprep_trees"
)
_ROOT = re.compile(r"((?:[^/]+/)*?)sub-[^/]+/(?:ses-[^/]+/)?(?:func|anat)/")


def read_expected(*projects):
    table = TREES / "expected.tsv"
    if not table.exists():
        return []
    with table.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [row for row in rows if row["list"].split("/")[0] in projects]


def by_list(row):
    return row["list"]


def read_names(row):
    """Names below the folder that holds the participants, func and anat only."""
    lines = (TREES / row["list"]).read_text().split()
    root = next(match[1] for match in map(_ROOT.match, lines) if match)
    inside = [line.removeprefix(root) for line in lines if line.startswith(f"{root}sub-")]
    return [name for name in inside if _ROOT.match(name) and "." in name.rsplit("/", 1)[-1]]


@pytest.mark.parametrize(
    "row", read_expected("fmriprep", "openneuro", "fmriprep_fake"), ids=by_list
)
def test_every_release_list_yields_its_runs(lay_out, row):
    found = discover(lay_out(*read_names(row)), Select(), Prepare())
    counts = Counter(refusal.code for refusal in found.refused)
    assert counts == Counter(
        {
            "echo-only": int(row["echo_only"]),
            "no-space": int(row["surface_only"]),
            "minimal-level": int(row["no_bold"]),
        }
    )
    assert len(found.runs) == int(row["runs_with_volume"])
    assert all(run.rung == 0 and run.confounds for run in found.runs)


@pytest.mark.parametrize("row", read_expected("nibabies", "xcp_d_skeletons"), ids=by_list)
def test_lists_without_a_way_to_the_model_are_refused_run_by_run(lay_out, row):
    names = read_names(row)
    if row["runs_named"] == "0":
        with pytest.raises(CallRefused, match="no-bold"):
            discover(lay_out(*names), Select(), Prepare())
        return
    found = discover(lay_out(*names), Select(), Prepare())
    assert len(found.runs) + len(found.refused) == int(row["runs_named"])


@pytest.mark.parametrize("row", read_expected("xcp_d"), ids=by_list)
def test_xcp_d_lists_hold_the_runs_that_are_named(row):
    files = [File(Path(name), parse_name(Path(name).name)) for name in read_names(row)]
    runs = gather_runs([file for file in files if file.name and "/func/" in file.path.as_posix()])
    denoised = [
        run
        for run in runs
        if any(file.is_volume and file.name.get("desc") == "denoised" for file in run.bold)
    ]
    assert len(runs) == int(row["runs_named"])
    assert len(denoised) == int(row["denoised"])
