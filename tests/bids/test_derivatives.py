import pytest

from slimbrain_app.bids.derivatives import check_dataset, list_participants, read_description
from slimbrain_app.bids.discover import discover
from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Prepare, Select

BOLD = "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
RAW_BOLD = "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz"
RAW = {"Name": "study", "BIDSVersion": "1.8.0"}


def made_by(name, version):
    return {"DatasetType": "derivative", "GeneratedBy": [{"Name": name, "Version": version}]}


@pytest.mark.parametrize(
    "description",
    [
        made_by("fMRIPrep", "25.2.0"),
        {"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.0"}},
        {"Name": "by hand"},
    ],
)
def test_folder_descriptions_of_all_eras(lay_out, description):
    assert check_dataset(lay_out(BOLD, description=description)) == ()


@pytest.mark.parametrize("description", [None, b"{", ["a list"]])
def test_missing_description_is_a_notice(lay_out, description):
    dataset = lay_out(BOLD, description=description)
    notices = check_dataset(dataset)
    assert [notice.code for notice in notices] == ["no-description"]
    # One without a mask: it is found all the same.
    found = discover(dataset, Select(), Prepare())
    assert [refusal.run for refusal in found.refused] == ["sub-01_task-rest"]


@pytest.mark.parametrize(
    ("tool", "version", "faults"),
    [
        ("fMRIPrep", "23.1.4", 0),
        ("fMRIPrep", "23.2.0", 2),
        ("fmriprep", "23.2.0+0.gabc", 2),
        ("fMRIPrep", "23.2.1", 0),
        ("fMRIPrep", "25.1.0", 1),
        ("fMRIPrep", "25.1.4", 1),
        ("fMRIPrep", "25.2.0", 0),
        ("fMRIPrep", "", 0),
        ("nibabies", "25.1.0", 0),
    ],
)
def test_known_faults_are_told_by_version(lay_out, tool, version, faults):
    notices = check_dataset(lay_out(BOLD, description=made_by(tool, version)))
    assert [notice.code for notice in notices] == ["known-fault"] * faults
    assert all("mended in" in notice.message for notice in notices)


def refusal_of(dataset):
    with pytest.raises(CallRefused) as caught:
        check_dataset(dataset)
    return caught.value


@pytest.mark.parametrize(
    "description",
    [RAW, {**RAW, "DatasetType": "raw"}, {**RAW, "GeneratedBy": [{"Name": "HeuDiConv"}]}, None],
)
def test_raw_folder_is_told_where_derivatives_are(lay_out, description):
    fitting = f"derivatives/fmriprep-25/{BOLD}"
    dataset = lay_out(RAW_BOLD, fitting, "derivatives/other/x", description=description)
    refusal = refusal_of(dataset)
    assert refusal.reason == "raw-dataset"
    assert refusal.exit_code == 66
    assert str(dataset / "derivatives/fmriprep-25") in refusal.advice


def test_raw_folder_without_derivatives_is_told_to_run_fmriprep(lay_out):
    assert "run fMRIPrep" in refusal_of(lay_out(RAW_BOLD, description=RAW)).advice


def test_folder_above_the_old_layout_is_told_of_it(lay_out):
    dataset = lay_out(f"fmriprep/{BOLD}", "freesurfer/sub-01/mri/orig.mgz", description=None)
    assert str(dataset / "fmriprep") in refusal_of(dataset).advice


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_input_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    assert refusal_of(tmp_path / name).reason == "no-input"


def test_participants_are_folders_or_links_to_them(lay_out, tmp_path):
    dataset = lay_out("sub-02/func/x", "sub-10/func/x", "sub-02.html", "sourcedata/sub-03/x")
    (tmp_path / "elsewhere").mkdir()
    (dataset / "sub-01").symlink_to(tmp_path / "elsewhere")
    (dataset / "sub-04").symlink_to(tmp_path / "nowhere")
    assert list_participants(dataset) == ("01", "02", "10")


def test_links_and_tools_are_read(lay_out):
    description = {**made_by("XCP-D", "0.9"), "DatasetLinks": {"raw": "../..", "odd": 7}}
    read = read_description(lay_out(description=description))
    assert read.links == {"raw": "../.."}
    assert read.made_by_xcp_d
