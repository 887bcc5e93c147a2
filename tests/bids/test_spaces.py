import itertools

import numpy as np
import pytest

from slimbrain_app.bids.discover import discover
from slimbrain_app.bids.entities import parse_name
from slimbrain_app.bids.spaces import lies_on_model_grid, parse_wish, space_of
from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Prepare, Select

FUNC = "sub-01/func/sub-01_task-rest"
ANAT = "sub-01/anat/sub-01"
MODEL = "MNI152NLin2009cAsym"
MODEL_ORIGIN = (-94.5, -112.5, -78.5)
COREGISTRATION = f"{FUNC}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
WARP = f"{ANAT}_from-T1w_to-{MODEL}_mode-image_xfm.h5"


def series(*spaces):
    """BOLD and mask of each space; the empty one is native."""
    for space in spaces:
        infix = f"_space-{space}" if space else ""
        yield f"{FUNC}{infix}_desc-preproc_bold.nii.gz"
        yield f"{FUNC}{infix}_desc-brain_mask.nii.gz"


def find(dataset, space=None):
    found = discover(dataset, Select(), Prepare(space=space))
    assert len(found.runs) + len(found.refused) == 1
    return found.runs[0] if found.runs else found.refused[0]


def way_of(run):
    return run.rung, run.space, [run.relative(path) for path in run.transforms]


@pytest.fixture(autouse=True)
def templates(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    return tmp_path / "templates"


def test_the_model_space_needs_no_transform(lay_out):
    dataset = lay_out(*series(MODEL, "", "T1w"), COREGISTRATION, WARP)
    assert way_of(find(dataset)) == (0, MODEL, [])


def test_native_data_go_through_the_warp_then_the_coregistration(lay_out):
    dataset = lay_out(*series("", "T1w"), COREGISTRATION, WARP)
    assert way_of(find(dataset)) == (1, "boldref", [WARP, COREGISTRATION])


def test_t1w_data_go_through_the_warp(lay_out):
    assert way_of(find(lay_out(*series("T1w"), WARP))) == (2, "T1w", [WARP])


def test_another_template_goes_through_the_persons_own_warps(lay_out):
    back = f"{ANAT}_from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5"
    dataset = lay_out(*series("MNI152NLin6Asym"), WARP, back)
    assert way_of(find(dataset)) == (3, "MNI152NLin6Asym", [WARP, back])


def test_a_template_without_personal_warps_takes_templateflow_s(lay_out, templates):
    dataset = lay_out(*series("MNI152NLin6Asym"))
    assert (find(dataset).code, find(dataset).exit_code) == ("no-template", 69)
    name = f"tpl-{MODEL}_from-MNI152NLin6Asym_mode-image_xfm.h5"
    transform = templates / f"tpl-{MODEL}" / name
    transform.parent.mkdir(parents=True)
    transform.touch()
    assert find(dataset).code == "no-template"
    transform.write_bytes(b"x")
    assert way_of(find(dataset)) == (4, "MNI152NLin6Asym", [name])


def test_an_infant_template_without_warps_is_no_space(lay_out):
    assert find(lay_out(*series("MNIInfant_cohort-1"))).code == "no-space"


def test_infant_tree_with_t2w_only(lay_out):
    warp = f"{ANAT}_from-T2w_to-{MODEL}_mode-image_xfm.h5"
    back = f"{ANAT}_from-MNIInfant+1_to-T2w_mode-image_xfm.h5"
    infant = lay_out(*series("MNIInfant_cohort-1"), warp, back)
    assert way_of(find(infant)) == (3, "MNIInfant+1", [warp, back])
    own = lay_out(*series("T2w"), warp, folder="own")
    assert way_of(find(own)) == (2, "T2w", [warp])


def test_two_cohorts_are_two_spaces(lay_out):
    warp = f"{ANAT}_from-MNIInfant+2_to-T1w_mode-image_xfm.h5"
    dataset = lay_out(*series("MNIInfant_cohort-1", "MNIInfant_cohort-2"), WARP, warp)
    run = find(dataset)
    assert run.space == "MNIInfant+2"
    assert "cohort-2" in run.bold.name and "cohort-2" in run.mask.name


def test_the_warp_the_other_way_round_is_not_taken(lay_out):
    inverse = f"{ANAT}_from-{MODEL}_to-T1w_mode-image_xfm.h5"
    assert find(lay_out(*series("T1w"), inverse)).code == "transform-missing"


def test_head_motion_is_no_coregistration(lay_out):
    motion = f"{FUNC}_from-scanner_to-boldref_mode-image_xfm.txt"
    hmc = f"{FUNC}_from-orig_to-boldref_mode-image_desc-hmc_xfm.txt"
    assert find(lay_out(*series(""), motion, hmc, WARP)).code == "transform-missing"


@pytest.mark.parametrize(
    ("coregistration", "warp"),
    [
        (f"{FUNC}_from-scanner_to-T1w_mode-image_xfm.txt", WARP),
        (f"{FUNC}_from-boldref_to-T1w_mode-image_xfm.txt", WARP),
        (COREGISTRATION, f"{ANAT}_T1w_target-{MODEL}_warp.h5"),
    ],
)
def test_transforms_of_all_eras_are_known(lay_out, coregistration, warp):
    dataset = lay_out(*series(""), coregistration, warp)
    assert way_of(find(dataset)) == (1, "boldref", [warp, coregistration])


def test_a_missing_transform_is_named(lay_out):
    refusal = find(lay_out(*series(""), COREGISTRATION))
    assert refusal.code == "transform-missing"
    assert f"from-T1w_to-{MODEL}_mode-image_xfm.h5" in refusal.expected


SESSIONS = "sub-01/ses-{0}/func/sub-01_ses-{0}_task-rest_space-T1w_desc-{1}.nii.gz"
SESSION_WARP = f"sub-01/ses-{{0}}/anat/sub-01_ses-{{0}}_from-T1w_to-{MODEL}_mode-image_xfm.h5"


@pytest.mark.parametrize(
    ("warps", "chosen"),
    [
        (["a", "b", None], "a"),
        (["b", None], None),
        (["b"], "b"),
    ],
)
def test_transform_from_other_session(lay_out, warps, chosen):
    names = {label: SESSION_WARP.format(label) if label else WARP for label in warps}
    bold = [SESSIONS.format("a", part) for part in ("preproc_bold", "brain_mask")]
    run = find(lay_out(*bold, *names.values()))
    assert run.relative(run.transforms[0]) == names[chosen]


def test_transforms_of_two_other_sessions_are_listed_and_refused(lay_out):
    warps = [SESSION_WARP.format(label) for label in ("b", "c")]
    bold = [SESSIONS.format("a", part) for part in ("preproc_bold", "brain_mask")]
    refusal = find(lay_out(*bold, *warps))
    assert refusal.code == "transform-missing"
    assert all(warp in refusal.found for warp in warps)


def test_a_dangling_transform_is_missing_content(lay_out):
    dataset = lay_out(*series("T1w"), WARP)
    (dataset / WARP).unlink()
    (dataset / WARP).symlink_to("nowhere")
    assert find(dataset).code == "missing-content"


def test_extra_spaces_do_not_change_the_choice(lay_out):
    spaces = ["MNI152NLin6Asym", "T1w", "", "MNIInfant_cohort-1", "MNIPediatricAsym_cohort-3"]
    alone = find(lay_out(*series(MODEL), folder="alone"))
    surfaces = [f"{FUNC}_space-fsLR_den-91k_bold.dtseries.nii", f"{FUNC}_hemi-L_bold.func.gii"]
    together = find(lay_out(*series(MODEL, *spaces), *surfaces, COREGISTRATION, WARP))
    assert together.bold.name == alone.bold.name
    assert together.mask.name == alone.mask.name


@pytest.mark.parametrize(
    ("space", "rung"),
    [("T1w", 2), ("anat", 2), ("boldref", 1), ("func", 1), (MODEL, 0), (f"{MODEL}:res-2", 0)],
)
def test_space_option_and_record(lay_out, space, rung):
    dataset = lay_out(*series(f"{MODEL}_res-2", "", "T1w"), COREGISTRATION, WARP)
    assert find(dataset, space).rung == rung


def test_a_space_that_is_not_there_is_refused_with_those_that_are(lay_out):
    refusal = find(lay_out(*series(MODEL, "T1w")), "MNI152NLin6Asym")
    assert refusal.code == "no-space"
    assert MODEL in refusal.found and "T1w" in refusal.found


@pytest.mark.parametrize("text", ["", "MNI:res", "MNI res-2", "MNI:foo-1", ":res-2"])
def test_another_form_of_the_space_option_is_refused(text):
    with pytest.raises(CallRefused, match=r"\[usage\]"):
        parse_wish(text)


def test_resolutions_are_compared_by_value_and_native_means_none():
    name = parse_name(f"sub-01_space-{MODEL}_res-02_bold.nii.gz")
    assert parse_wish(f"{MODEL}:res-2").fits(name)
    assert not parse_wish(f"{MODEL}:res-native").fits(name)
    assert parse_wish(f"{MODEL}:res-native").fits(parse_name(f"sub-01_space-{MODEL}_bold.nii.gz"))


@pytest.mark.parametrize(
    ("edges", "chosen"),
    [((1, 3), 1), ((3, 2.5), 2.5), ((1.5, 2.5), 1.5), ((2, 4), 2)],
)
def test_the_grid_nearest_to_the_model_is_chosen_and_told(lay_out, make_image, edges, chosen):
    names = {edge: f"{FUNC}_space-{MODEL}_res-{i}" for i, edge in enumerate(edges)}
    contents = {}
    for edge, name in names.items():
        contents[f"{name}_desc-preproc_bold.nii.gz"] = make_image(edge=edge)
        contents[f"{name}_desc-brain_mask.nii.gz"] = make_image((4, 5, 6), edge=edge)
    run = find(lay_out(contents=contents))
    assert run.relative(run.bold).startswith(names[chosen])
    assert run.relative(run.mask).startswith(names[chosen])
    assert "several-grids" in [notice.code for notice in run.notices]


def test_the_model_grid_itself_wins_and_is_not_interpolated(lay_out, make_image):
    contents = {}
    for label, origin in (("1", (-95, -112, -78)), ("2", (-96.5, -132.5, -78.5))):
        name = f"{FUNC}_space-{MODEL}_res-{label}_desc"
        contents[f"{name}-preproc_bold.nii.gz"] = make_image(edge=2, origin=origin)
        contents[f"{name}-brain_mask.nii.gz"] = make_image((4, 5, 6), edge=2, origin=origin)
    run = find(lay_out(contents=contents))
    assert "res-2" in run.bold.name
    assert run.interpolations == 1
    assert find(lay_out(contents=contents), f"{MODEL}:res-1").interpolations == 2


def test_two_files_of_one_grid_are_ambiguous(lay_out):
    plain = f"{FUNC}_space-{MODEL}_desc-preproc_bold.nii"
    refusal = find(lay_out(*series(MODEL), plain))
    assert refusal.code == "ambiguous"
    assert plain in refusal.found and f"{plain}.gz" in refusal.found


def orientations():
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, axes] * signs * 2
            yield affine


@pytest.mark.parametrize("affine", orientations())
def test_the_model_grid_is_known_in_every_orientation(affine):
    affine[:3, 3] = np.add(MODEL_ORIGIN, [2, -4, 60])
    assert lies_on_model_grid(affine)
    affine[0, 3] += 0.5
    assert not lies_on_model_grid(affine)


@pytest.mark.parametrize("edges", [(1, 2, 2), (4, 2, 2), (2, 2, 2.01)])
def test_other_voxels_are_not_on_the_model_grid(edges):
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = MODEL_ORIGIN
    assert not lies_on_model_grid(affine)


def test_an_oblique_grid_is_not_on_the_model_grid():
    turned = np.eye(4)
    turned[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    turned[:3, :3] *= 2
    turned[:3, 3] = MODEL_ORIGIN
    assert not lies_on_model_grid(turned)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("sub-01_task-rest_desc-preproc_bold.nii.gz", "boldref"),
        ("sub-01_task-rest_space-boldref_bold.nii.gz", "boldref"),
        ("sub-01_task-rest_space-MNIInfant_cohort-1_bold.nii.gz", "MNIInfant+1"),
        ("sub-01_task-rest_space-T1w_res-2_bold.nii.gz", "T1w"),
    ],
)
def test_spaces_are_spelt_as_transforms_spell_them(name, space):
    assert space_of(parse_name(name)) == space
