from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimbrain_app.bids.dataset import IGNORED, open_output
from slimbrain_app.errors import CallRefused


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "fmriprep"
    folder.mkdir(parents=True)
    content = {
        "Name": "fMRIPrep",
        "BIDSVersion": "1.10.0",
        "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.1.3"}],
        "SourceDatasets": [{"DOI": "10.0/x"}],
        "License": "CC0",
    }
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder


def read(output: Path) -> dict:
    return json.loads((output / "dataset_description.json").read_text())


def test_description_lists_both_tools(dataset, tmp_path):
    open_output(tmp_path / "out", dataset)
    description = read(tmp_path / "out")
    assert [maker["Name"] for maker in description["GeneratedBy"]] == ["SlimBrain", "fMRIPrep"]
    assert description["DatasetType"] == "derivative"
    assert description["License"] == "CC0"
    assert {"DOI": "10.0/x"} in description["SourceDatasets"]


@pytest.mark.parametrize(
    ("variables", "container"),
    [
        ((), None),
        (("SLIMBRAIN_IMAGE",), {"Type": "docker", "Tag": "it"}),
        (("SLIMBRAIN_IMAGE", "APPTAINER_CONTAINER"), {"Type": "singularity", "Tag": "it"}),
        (("SLIMBRAIN_IMAGE", "SINGULARITY_CONTAINER"), {"Type": "singularity", "Tag": "it"}),
        (("APPTAINER_CONTAINER",), None),
    ],
)
def test_the_image_is_named_where_there_is_one(
    dataset, tmp_path, monkeypatch, variables, container
):
    for name in ("SLIMBRAIN_IMAGE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    open_output(tmp_path / "plain", dataset)
    for name in variables:
        monkeypatch.setenv(name, "it")
    open_output(tmp_path / "out", dataset)
    description = read(tmp_path / "out")
    assert description["GeneratedBy"][0].pop("Container", None) == container
    assert description == read(tmp_path / "plain")


def test_link_is_relative_and_leads_to_the_source(dataset, tmp_path):
    output = tmp_path / "deep" / "er" / "out"
    open_output(output, dataset)
    link = read(output)["DatasetLinks"]["preprocessed"]
    assert not Path(link).is_absolute()
    assert (output / link).resolve() == dataset.resolve()


def test_links_of_the_source_are_kept_where_they_lead_somewhere(dataset, tmp_path):
    raw = tmp_path / "raw data"
    raw.mkdir()
    links = {
        "raw": "../../raw data",
        "again": raw.as_uri(),
        "preprocessed": "../../raw data",
        "container": "/data/of/another/machine",
        "templateflow": "https://github.com/templateflow/templateflow",
    }
    content = json.loads((dataset / "dataset_description.json").read_text())
    (dataset / "dataset_description.json").write_text(
        json.dumps({**content, "DatasetLinks": links})
    )
    output = tmp_path / "deep" / "out"
    open_output(output, dataset)
    written = read(output)["DatasetLinks"]
    assert written.keys() == {"preprocessed", "preprocessed-source", "raw", "again"}
    assert {(output / link).resolve() for link in written.values()} == {dataset, raw}
    assert not any(Path(link).is_absolute() for link in written.values())


def test_edited_readme_is_never_overwritten(dataset, tmp_path):
    open_output(tmp_path, dataset)
    (tmp_path / "README.md").write_text("mine")
    open_output(tmp_path, dataset)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_bidsignore_keeps_what_others_wrote(dataset, tmp_path):
    (tmp_path / ".bidsignore").write_text("mine_*\n*.html\n")
    open_output(tmp_path, dataset)
    lines = (tmp_path / ".bidsignore").read_text().splitlines()
    assert lines[0] == "mine_*"
    assert sorted(lines) == sorted({"mine_*", *IGNORED})


def test_unchanged_files_are_not_touched(dataset, tmp_path):
    open_output(tmp_path, dataset)
    before = {file: file.stat().st_ino for file in tmp_path.iterdir() if file.is_file()}
    open_output(tmp_path, dataset)
    assert before == {file: file.stat().st_ino for file in before}


def test_foreign_dataset_is_refused_and_left_alone(dataset, tmp_path):
    foreign = tmp_path / "raw"
    foreign.mkdir()
    (foreign / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    with pytest.raises(CallRefused, match="same-folder"):
        open_output(foreign, dataset)
    assert [file.name for file in foreign.iterdir()] == ["dataset_description.json"]


@pytest.mark.parametrize(
    "content",
    [None, "not json", "[]", '{"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.3"}}'],
)
def test_folder_descriptions_of_all_eras(dataset, tmp_path, content):
    description = dataset / "dataset_description.json"
    description.unlink()
    if content is not None:
        description.write_text(content)
    open_output(tmp_path / "out", dataset)
    makers = [maker["Name"] for maker in read(tmp_path / "out")["GeneratedBy"]]
    assert makers == (["SlimBrain", "fMRIPrep"] if content and "1.3" in content else ["SlimBrain"])
