"""Real lists of file names, laid out with small images, against an independent reading of them."""

import csv
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from slimbrain_app.bids.discover import discover
from slimbrain_app.bids.entities import VARIANT, entity_keys, parse_name
from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Prepare, Select

TREES = (
    Path(os.environ.get("SLIMBRAIN_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
    / "fmriprep_trees"
)
FMRIPREP = {
    "Name": "fMRIPrep",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.2.0"}],
}
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


def pick_one_of_each_release():
    """Lists with every release's fullest as it is, the others marked as slow.

    pybids knows no name of the releases before 1.2: there `expected.tsv` alone is a second reading.
    """
    fullest, rows = {}, read_expected("fmriprep", "fmriprep_fake", "openneuro", "nibabies")
    for row in rows:
        release = row["list"].rsplit("/", 1)[0]
        best = fullest.setdefault(release, row)
        if int(row["runs_named"]) > int(best["runs_named"]):
            fullest[release] = row
    for row in rows:
        if not row["list"].startswith(("fmriprep/1.0", "fmriprep/1.1")):
            slow = [] if row in fullest.values() else [pytest.mark.slow]
            yield pytest.param(row, marks=slow, id=row["list"])


def find_with_pybids(dataset):
    """The runs, by pybids' own reading of the names: numbers of runs as they are spelt."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)
    config = ["bids", "derivatives"]
    layout = BIDSLayout(dataset, validate=False, config=config, indexer=indexer)
    keys = entity_keys()
    for file in layout.get(suffix="bold", desc="preproc", extension=[".nii", ".nii.gz"]):
        found = {keys[name]: str(value) for name, value in file.entities.items() if name in keys}
        if "echo" not in found and found.get("part") != "phase":
            yield frozenset((key, found[key]) for key in found.keys() - VARIANT)


@pytest.mark.parametrize("row", pick_one_of_each_release())
def test_pybids_finds_the_same_runs(lay_out, row):
    dataset = lay_out(*read_names(row), description={**FMRIPREP, "BIDSVersion": "1.8.0"})
    if row["runs_named"] == "0":
        assert list(find_with_pybids(dataset)) == []
        return
    found = discover(dataset, Select(), Prepare())
    with_volume = {run.entities for run in found.runs}
    # Refused for want of a way to the model's space, not of a series.
    with_volume |= {
        parse_name(f"{refusal.run}_bold.nii.gz").entities
        for refusal in found.refused
        if refusal.code == "transform-missing"
    }
    assert {frozenset(entities) for entities in with_volume} == set(find_with_pybids(dataset))


@pytest.mark.parametrize("row", read_expected("openneuro"), ids=by_list)
def test_a_clone_without_content_is_all_missing_content(lay_out, row):
    """Every file is a link into an annex from which nothing was fetched yet."""
    dataset = lay_out()
    for name in read_names(row):
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).symlink_to(f"../../.git/annex/objects/{Path(name).name}")
    found = discover(dataset, Select(), Prepare())
    counts = Counter(refusal.code for refusal in found.refused)
    assert found.runs == ()
    assert counts == Counter(
        {"missing-content": int(row["runs_with_volume"]), "minimal-level": int(row["no_bold"])}
    )
    missing = [refusal for refusal in found.refused if refusal.code == "missing-content"]
    assert all(f"datalad get {refusal.file}" in refusal.advice for refusal in missing)
    assert all(".git/annex/objects" in refusal.found for refusal in missing)


@pytest.mark.parametrize("row", read_expected("nibabies", "xcp_d_skeletons"), ids=by_list)
def test_lists_without_a_way_to_the_model_are_refused_run_by_run(lay_out, row):
    names = read_names(row)
    if row["runs_named"] == "0":
        with pytest.raises(CallRefused, match="no-bold"):
            discover(lay_out(*names), Select(), Prepare())
        return
    found = discover(lay_out(*names), Select(), Prepare())
    assert len(found.runs) + len(found.refused) == int(row["runs_named"])


XCP_D = FMRIPREP | {"GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.7"}]}
# xcp_d writes no transforms; the way from one MNI152 template to another is TemplateFlow's.
ENDS = {"MNI152NLin2009cAsym": "found", "MNI152NLin6Asym": "no-template", "MNIInfant": "no-space"}


def list_denoised(names):
    """Runs by name, with the spaces of their denoised volume series, if any."""
    runs = {}
    for stem, suffix in (
        name.rsplit("/", 1)[-1].split("_bold.") for name in names if "_bold." in name
    ):
        parts = dict(part.split("-", 1) for part in stem.split("_"))
        spaces = (
            [parts.get("space")] if (parts.get("desc"), suffix) == ("denoised", "nii.gz") else []
        )
        run = "_".join(f"{key}-{parts[key]}" for key in parts if key not in VARIANT)
        runs.setdefault(run, []).extend(spaces)
    return runs


@pytest.mark.parametrize("row", read_expected("xcp_d"), ids=by_list)
def test_xcp_d_lists_yield_their_runs_without_masks(lay_out, monkeypatch, row):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", "nowhere")
    names = read_names(row)
    runs = list_denoised(names)
    assert len(runs) == int(row["runs_named"])
    assert sum(map(bool, runs.values())) == int(row["denoised"])
    whole = {name for name in runs if any(re.sub(r"_run-\d+", "", o) == name != o for o in runs)}
    expected = Counter(
        ENDS[spaces[0]] if spaces else "no-space"
        for name, spaces in runs.items()
        if name not in whole
    )
    outliers = {
        name: b"framewise_displacement\n0\n0\n0\n" for name in names if "outliers.tsv" in name
    }
    dataset = lay_out(*names, contents=outliers, description=XCP_D)
    found = discover(dataset, Select(), Prepare())
    assert all(run.mask == run.bold and run.confounds for run in found.runs)
    codes = Counter(refusal.code for refusal in found.refused)
    assert codes + Counter(found=len(found.runs)) == expected
