from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.bids.discover import discover
from slimbrain_app.bids.entities import build_name, parse_name
from slimbrain_app.bids.folders import File, Participant
from slimbrain_app.bids.runs import gather_runs
from slimbrain_app.settings import Prepare, Select

FUNC = "sub-01/func/sub-01_task-rest"
ANAT = "sub-01/anat/sub-01"
MODEL = "space-MNI152NLin2009cAsym"
BOLD = f"{FUNC}_{MODEL}_res-2_desc-preproc_bold.nii.gz"
WARP = f"{ANAT}_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"


def find(dataset):
    found = discover(dataset, Select(), Prepare())
    assert len(found.runs) + len(found.refused) == 1
    return found.runs[0] if found.runs else found.refused[0]


def codes(run):
    return [notice.code for notice in run.notices]


def test_the_mask_of_the_same_grid_comes_first(lay_out):
    same, other = (f"{FUNC}_{MODEL}_res-{res}_desc-brain_mask.nii.gz" for res in "21")
    run = find(lay_out(BOLD, same, other, f"{ANAT}_{MODEL}_desc-brain_mask.nii.gz"))
    assert run.relative(run.mask) == same
    assert "mask-other-grid" not in codes(run)


def test_another_resolution_stands_in_with_a_notice(lay_out):
    other = f"{FUNC}_{MODEL}_desc-brain_mask.nii.gz"
    run = find(lay_out(BOLD, other))
    assert run.relative(run.mask) == other
    assert "mask-other-grid" in codes(run)


@pytest.mark.parametrize(
    ("bold", "mask"),
    [
        (BOLD, f"{ANAT}_{MODEL}_res-2_desc-brain_mask.nii.gz"),
        (f"{FUNC}_space-T1w_desc-preproc_bold.nii.gz", f"{ANAT}_desc-brain_mask.nii.gz"),
    ],
)
def test_mask_from_other_space(lay_out, bold, mask):
    run = find(lay_out(bold, mask, WARP))
    assert run.relative(run.mask) == mask
    assert "mask-other-grid" in codes(run)


COREGISTRATION = f"{FUNC}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
BACK = f"{ANAT}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"
OTHER = f"{ANAT}_from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5"


@pytest.mark.parametrize(
    ("space", "mask", "transforms"),
    [
        ("_space-MNI152NLin2009cAsym", "_space-T1w", [WARP]),
        ("_space-MNI152NLin2009cAsym", "", [WARP, COREGISTRATION]),
        ("_space-MNI152NLin2009cAsym", "_space-MNI152NLin6Asym", [WARP, OTHER]),
        ("_space-T1w", "", [COREGISTRATION]),
        ("_space-T1w", "_space-MNI152NLin2009cAsym", [BACK]),
    ],
)
def test_the_runs_mask_comes_from_another_space_by_the_persons_transforms(
    lay_out, space, mask, transforms
):
    own = f"{FUNC}{mask}_desc-brain_mask.nii.gz"
    anatomical = f"{ANAT}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"
    bold = f"{FUNC}{space}_desc-preproc_bold.nii.gz"
    run = find(lay_out(bold, own, anatomical, WARP, BACK, OTHER, COREGISTRATION))
    assert run.relative(run.mask) == own
    assert [run.relative(path) for path in run.mask_transforms] == transforms
    assert set(run.mask_transforms) <= set(run.sources)
    assert "mask-other-grid" in codes(run)


def test_the_mask_that_was_resampled_least_comes_first(lay_out):
    spaces = ("", "_space-T1w", "_space-MNI152NLin6Asym")
    masks = [f"{FUNC}{space}_desc-brain_mask.nii.gz" for space in spaces]
    for first in range(3):
        dataset = lay_out(BOLD, *masks[first:], WARP, OTHER, COREGISTRATION, folder=f"{first}")
        run = find(dataset)
        assert run.relative(run.mask) == masks[first]


def test_a_dangling_transform_of_the_mask_is_missing_content(lay_out):
    dataset = lay_out(BOLD, f"{FUNC}_space-T1w_desc-brain_mask.nii.gz")
    (dataset / WARP).parent.mkdir()
    (dataset / WARP).symlink_to("nowhere")
    refusal = find(dataset)
    assert (refusal.code, refusal.file) == ("missing-content", WARP)


@pytest.mark.parametrize(
    "mask",
    [
        f"{FUNC}_space-T1w_desc-brain_mask.nii.gz",
        f"{ANAT}_desc-brain_mask.nii.gz",
        f"{FUNC}_{MODEL}_res-2_desc-CompCorA_mask.nii.gz",
        f"{FUNC}_echo-1_{MODEL}_res-2_desc-brain_mask.nii.gz",
        f"tpl-MNI152NLin2009cAsym/tpl_{MODEL}_desc-brain_mask.nii.gz",
    ],
)
def test_nothing_else_stands_in_for_a_mask(lay_out, mask):
    assert find(lay_out(BOLD, mask)).code == "no-mask"


def test_the_anatomy_has_no_mask_for_the_native_space(lay_out):
    coregistration = f"{FUNC}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
    bold = f"{FUNC}_desc-preproc_bold.nii.gz"
    dataset = lay_out(bold, f"{ANAT}_desc-brain_mask.nii.gz", WARP, coregistration)
    assert find(dataset).code == "no-mask"


def test_mask_mismatch_names_both(lay_out, make_image):
    mask = f"{FUNC}_{MODEL}_res-2_desc-brain_mask.nii.gz"
    refusal = find(lay_out(BOLD, contents={mask: make_image((4, 5, 7))}))
    assert refusal.code == "mask-mismatch"
    assert refusal.file == mask
    assert BOLD.rsplit("/", 1)[-1] in refusal.expected
    assert "4 x 5 x 6" in refusal.expected and "4 x 5 x 7" in refusal.found


entity = st.sampled_from(["acq", "ce", "dir", "rec", "run", "part", "unheard"])
label = st.text("ab01", min_size=1, max_size=3)


@given(st.dictionaries(entity, label), st.sampled_from(["timeseries", "regressors"]))
def test_confounds_match_for_any_entity_set(entities, suffix):
    run = [("sub", "01"), ("task", "rest"), *entities.items()]
    another = [*run, ("ses", "other")]
    own, other = (
        [
            build_name([*name, ("space", "T1w"), ("desc", "preproc")], "bold", ".nii.gz"),
            build_name([*name, ("desc", "confounds")], suffix, ".tsv"),
            build_name([*name, ("desc", "confounds")], suffix, ".json"),
        ]
        for name in (run, another)
    )
    participant = Participant(Path("/data"), "01")
    files = [File(participant.folder / name, parse_name(name)) for name in other + own]
    _, gathered = sorted(gather_runs(files), key=lambda run: -len(run.entities))
    assert gathered.bold[0].path.name == own[0]
    assert tables_of(gathered) == [own[1]]


def tables_of(run):
    return [file.path.name for file in run.files if file.name.extension == ".tsv"]


CONFOUNDS = {
    "1.0": "sub-01/func/sub-01_task-rest_bold_confounds.tsv",
    "1.2": f"{FUNC}_desc-confounds_regressors.tsv",
    "20.2": f"{FUNC}_desc-confounds_timeseries.tsv",
    "xcp_d": f"{FUNC}_motion.tsv",
    "xcp_d before": f"{FUNC}_desc-filtered_motion.tsv",
}


@pytest.mark.parametrize("table", CONFOUNDS.values(), ids=CONFOUNDS)
def test_confounds_of_all_eras_are_known(lay_out, table):
    mask = f"{FUNC}_{MODEL}_res-2_desc-brain_mask.nii.gz"
    run = find(lay_out(BOLD, mask, table))
    assert run.relative(run.confounds) == table


def test_without_confounds_there_are_none(lay_out):
    mask = f"{FUNC}_{MODEL}_res-2_desc-brain_mask.nii.gz"
    assert (
        find(lay_out(BOLD, mask, f"{FUNC}_echo-1_desc-confounds_timeseries.tsv")).confounds is None
    )


def test_two_confounds_tables_are_ambiguous(lay_out):
    mask = f"{FUNC}_{MODEL}_res-2_desc-brain_mask.nii.gz"
    tables = CONFOUNDS["1.2"], CONFOUNDS["20.2"]
    refusal = find(lay_out(BOLD, mask, *tables))
    assert refusal.code == "ambiguous"
    assert all(table in refusal.found for table in tables)


def test_dangling_confounds_are_missing_content(lay_out):
    mask = f"{FUNC}_{MODEL}_res-2_desc-brain_mask.nii.gz"
    dataset = lay_out(BOLD, mask)
    (dataset / CONFOUNDS["20.2"]).symlink_to("nowhere")
    assert find(dataset).code == "missing-content"
