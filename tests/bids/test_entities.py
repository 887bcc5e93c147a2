import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.bids.entities import (
    Name,
    build_name,
    entity_keys,
    parse_name,
    same_label,
    strip_prefix,
)

label = st.text("abcdefXYZ0123456789", min_size=1, max_size=6)
entities = st.lists(
    st.tuples(
        st.sampled_from(["sub", "ses", "task", "acq", "run", "space", "cohort", "to"]), label
    ),
    unique_by=lambda entity: entity[0],
    max_size=6,
).map(tuple)
extension = st.sampled_from([".nii.gz", ".nii", ".json", ".dtseries.nii", ".func.gii", ".tsv"])


@given(entities, label, extension)
def test_names_survive_the_round_trip(entities, suffix, extension):
    name = build_name(entities, suffix, extension)
    assert parse_name(name) == Name(entities, suffix, extension)


@given(st.text("ab01-_+.", max_size=20))
def test_every_name_goes_back_unchanged_or_is_none(text):
    name = parse_name(text)
    assert name is None or build_name(name.entities, name.suffix, name.extension) == text


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-1mo_task-rest_space-MNIInfant_cohort-1_desc-preproc_bold.nii.gz",
        "sub-01_from-T1w_to-MNIInfant+1_mode-image_xfm.h5",
        "sub-01_task-rest_stat-mean_desc-slimbrain_embeddings.tsv",
        "task-rest_bold.json",
    ],
)
def test_entities_that_pybids_loses_survive(name):
    parsed = parse_name(name)
    assert build_name(parsed.entities, parsed.suffix, parsed.extension) == name


def test_names_are_read_as_pybids_reads_them():
    from bids.layout import parse_file_entities

    name = "sub-01_ses-a_task-rest_acq-b_dir-AP_run-02_echo-1_space-T1w_desc-preproc_bold.nii.gz"
    theirs = parse_file_entities(f"/sub-01/ses-a/func/{name}", config=["bids", "derivatives"])
    keys = entity_keys()
    ours = dict(parse_name(name).entities)
    assert ours == {keys[name]: str(value) for name, value in theirs.items() if name in keys} | {
        "run": "02"
    }


@pytest.mark.parametrize(
    ("old", "today"),
    [
        (
            "sub-1_task-a_run-01_bold_space-X_preproc.nii.gz",
            "sub-1_task-a_run-01_space-X_desc-preproc_bold.nii.gz",
        ),
        (
            "sub-1_task-a_bold_space-X_variant-smoothAROMAnonaggr_preproc.nii.gz",
            "sub-1_task-a_space-X_desc-smoothAROMAnonaggr_bold.nii.gz",
        ),
        (
            "sub-1_task-a_bold_space-X_brainmask.nii.gz",
            "sub-1_task-a_space-X_desc-brain_mask.nii.gz",
        ),
        ("sub-1_T1w_brainmask.nii.gz", "sub-1_desc-brain_mask.nii.gz"),
        ("sub-1_task-a_bold_confounds.tsv", "sub-1_task-a_desc-confounds_timeseries.tsv"),
        ("sub-1_T1w_target-X_warp.h5", "sub-1_from-T1w_to-X_mode-image_xfm.h5"),
        ("sub-1_T1w_space-X_target-T1w_warp.h5", "sub-1_from-X_to-T1w_mode-image_xfm.h5"),
        (
            "sub-1_task-a_bold_space-fsnative.L.func.gii",
            "sub-1_task-a_space-fsnative_bold.func.gii",
        ),
        ("sub-1_task-a_space-X_hemi-L.func.gii", "sub-1_task-a_space-X_hemi-L_bold.func.gii"),
    ],
)
def test_names_of_the_first_releases_come_out_in_todays_words(old, today):
    assert parse_name(old) == parse_name(today)


@pytest.mark.parametrize(
    "name",
    [
        "sub-01.html",
        "README.md.gz~",
        "sub-01_desc-a_desc-b_bold.nii.gz",
        "sub-01__bold.nii.gz",
        ".bidsignore",
        "sub-01_T1w_dtissue.nii.gz",
        "bold",
    ],
)
def test_other_names_are_none(name):
    assert parse_name(name) is None


def test_the_whole_extension_is_matched():
    assert parse_name("sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii").extension == (
        ".dtseries.nii"
    )


@given(st.sampled_from(["sub", "ses", "task", "run"]), label)
def test_labels_with_and_without_prefix(key, value):
    assert strip_prefix(key, f"{key}-{value}") == value
    assert same_label(key, f"{key}-{value}", value)


@given(st.integers(0, 99), st.integers(1, 4))
def test_run_padding_is_compared_by_value_but_other_labels_are_text(number, width):
    assert same_label("run", str(number), f"{number:0{width}}")
    assert same_label("sub", "1", f"{1:0{width}}") == (width == 1)


def test_filter_names_of_pybids_lead_to_keys():
    keys = entity_keys()
    names = ("acquisition", "acq", "direction", "session", "description", "cohort")
    assert [keys[name] for name in names] == ["acq", "acq", "dir", "ses", "desc", "cohort"]
