"""Atlases: the shipped one, TemplateFlow's, files, and what is refused."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.atlas import load_atlas
from slimbrain_app.prepare.grid import model_grid, template_brain

GRID = model_grid()
# TemplateFlow's res-02 grid, of which the model grid is a crop.
TEMPLATE_SHAPE = (97, 115, 97)
TEMPLATE_AFFINE = np.array([[2.0, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]])
# 7 mm voxels whose centres are never on the edge between two of the model's.
COARSE_AFFINE = np.array([[-7.0, 0, 0, 90.3], [0, 7, 0, -105.3], [0, 0, 7, -70.2], [0, 0, 0, 1]])


def write_labels(path, values, affine=GRID.affine, dtype=np.int16):
    image = nibabel.Nifti1Image(np.asarray(values, dtype), affine)
    image.set_sform(affine, 4)
    image.to_filename(path)
    return path


def draw_labels(shape, labels=(0, 1, 2, 3)):
    return np.random.default_rng(0).choice(labels, shape)


def refusal_of(name):
    with pytest.raises(CallRefused) as caught:
        load_atlas(str(name))
    return caught.value


def test_shipped_atlas_has_its_parcels_in_the_brain():
    atlas = load_atlas("schaefer200")
    sizes = np.bincount(atlas.numbers.ravel())[1:]
    assert (len(sizes), len(atlas.labels), len(set(atlas.names))) == (200, 200, 200)
    assert sizes.min() > 100
    assert (template_brain() & (atlas.numbers > 0)).sum() > 0.95 * sizes.sum()


def test_shipped_atlas_lies_where_its_names_say():
    atlas = load_atlas("schaefer200")
    for number, name in enumerate(atlas.names, 1):
        x, y, _ = (
            GRID.affine[:3, :3] @ np.argwhere(atlas.numbers == number).mean(axis=0)
            + (GRID.affine[:3, 3])
        )
        assert (x < 0) == ("_LH_" in name)
        assert "_Vis_" not in name or y < -30
        assert "_PFC" not in name or "PFCmp_1" in name or y > 0


def test_file_on_the_model_grid_stays_as_it_is(tmp_path):
    labels = draw_labels(GRID.shape)
    atlas = load_atlas(str(write_labels(tmp_path / "mine.nii.gz", labels)))
    np.testing.assert_array_equal(atlas.numbers, labels)
    assert (atlas.name, atlas.labels.tolist()) == ("mine.nii.gz", [1, 2, 3])
    assert atlas.names == ("parcel 1", "parcel 2", "parcel 3")


def test_flipped_file_on_the_templates_grid_is_only_cropped(tmp_path):
    labels = draw_labels(TEMPLATE_SHAPE)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = TEMPLATE_SHAPE[0] - 1
    path = write_labels(tmp_path / "mine.nii", labels[::-1], TEMPLATE_AFFINE @ flip)
    np.testing.assert_array_equal(load_atlas(str(path)).numbers, labels[1:, 10:106, :96])


def test_voxels_of_another_size_are_taken_by_their_nearest(tmp_path):
    labels = np.pad(draw_labels((25, 30, 21)), 1)
    atlas = load_atlas(str(write_labels(tmp_path / "mine.nii.gz", labels, COARSE_AFFINE)))
    to_file = np.linalg.inv(COARSE_AFFINE) @ GRID.affine
    for place in np.random.default_rng(1).integers(0, 96, (200, 3)):
        near = np.rint(to_file[:3, :3] @ place + to_file[:3, 3]).astype(int)
        within = (near >= 0).all() and (near < labels.shape).all()
        assert atlas.numbers[tuple(place)] == (labels[tuple(near)] if within else 0)


def test_labels_may_have_gaps_be_large_and_be_stored_as_floats(tmp_path):
    labels = draw_labels(GRID.shape, (0, 7, 12_108, 16_777_216))
    atlas = load_atlas(str(write_labels(tmp_path / "mine.nii", labels, dtype=np.float32)))
    assert atlas.labels.tolist() == [7, 12_108, 16_777_216]
    np.testing.assert_array_equal(atlas.numbers == 2, labels == 12_108)


def test_parcel_outside_the_model_grid_keeps_its_place(tmp_path):
    labels = np.zeros(TEMPLATE_SHAPE)
    labels[50, 2, 50], labels[50, 50, 50] = 1, 2
    atlas = load_atlas(str(write_labels(tmp_path / "mine.nii", labels, TEMPLATE_AFFINE)))
    assert atlas.labels.tolist() == [1, 2]
    assert np.unique(atlas.numbers).tolist() == [0, 2]


def test_table_beside_a_file_names_its_labels(tmp_path):
    path = write_labels(tmp_path / "mine_dseg.nii.gz", draw_labels(GRID.shape))
    (tmp_path / "mine_dseg.tsv").write_text("index\tname\n0\tbackground\n3\tinsula\n1\tcuneus\n")
    assert load_atlas(str(path)).names == ("cuneus", "parcel 2", "insula")


@pytest.mark.parametrize("table", ["", "label\tname\n1\ta\n", "index\tname\nfirst\ta\n"])
def test_table_that_can_t_be_used_is_refused(tmp_path, table):
    path = write_labels(tmp_path / "mine.nii.gz", draw_labels(GRID.shape))
    (tmp_path / "mine.tsv").write_text(table)
    refusal = refusal_of(path)
    assert (refusal.reason, refusal.file) == ("atlas-bad", "mine.tsv")


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    folder = tmp_path / "tpl-MNI152NLin2009cAsym"
    folder.mkdir()
    return folder


def test_another_schaefer_atlas_is_templateflow_s(templates):
    labels = draw_labels(TEMPLATE_SHAPE)
    start, end = "tpl-MNI152NLin2009cAsym", "atlas-Schaefer2018_desc-100Parcels7Networks_dseg"
    write_labels(templates / f"{start}_res-02_{end}.nii.gz", labels, TEMPLATE_AFFINE)
    table = "index\tname\tcolor\n1\tone\t#781281\n2\ttwo\t#781282\n3\tthree\t#781283\n"
    (templates / f"{start}_{end}.tsv").write_text(table)
    atlas = load_atlas("schaefer100")
    assert (atlas.name, atlas.names) == ("schaefer100", ("one", "two", "three"))
    np.testing.assert_array_equal(atlas.numbers, labels[1:, 10:106, :96])


def test_file_that_templateflow_never_fetched_is_missing(templates):
    for resolution in ("01", "02"):
        name = f"res-{resolution}_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz"
        (templates / f"tpl-MNI152NLin2009cAsym_{name}").touch()
    refusal = refusal_of("schaefer400")
    assert refusal.reason == "atlas-missing"
    assert "TEMPLATEFLOW_HOME" in refusal.advice


@pytest.mark.parametrize("name", ["aal", "/nowhere/atlas.nii.gz", "schaefer"])
def test_name_of_nothing_is_missing(name):
    refusal = refusal_of(name)
    assert (refusal.reason, refusal.found) == ("atlas-missing", name)


SMALL = draw_labels((4, 4, 4))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.stack([SMALL, SMALL], axis=-1), "4 x 4 x 4 x 2"),
        (SMALL[0], "4 x 4"),
        (SMALL * 0.5, ".5"),
        (np.where(SMALL == 1, np.nan, SMALL), "nan"),
        (-SMALL, "-"),
        (SMALL * 0, "zeros only"),
        (SMALL * 1j, "complex"),
    ],
)
def test_what_holds_no_labels_is_refused(tmp_path, values, found):
    path = write_labels(tmp_path / "bad.nii.gz", values, dtype=np.asarray(values * 1.0).dtype)
    refusal = refusal_of(path)
    assert (refusal.reason, refusal.file) == ("atlas-bad", "bad.nii.gz")
    assert found in refusal.found


def test_atlas_outside_the_model_grid_is_refused(tmp_path):
    affine = GRID.affine.copy()
    affine[0, 3] = 500
    refusal = refusal_of(write_labels(tmp_path / "bad.nii.gz", SMALL, affine))
    assert refusal.reason == "atlas-bad"
    assert "outside" in refusal.found


@pytest.mark.parametrize("content", [b"", b"index,name\n1,a\n", b"\x1f\x8b not gzip"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(content)
    assert refusal_of(path).reason == "atlas-bad"


@pytest.mark.parametrize("name", ["bad.nii", "bad.nii.gz"])
def test_file_that_is_cut_short_is_refused(tmp_path, name):
    path = write_labels(tmp_path / name, draw_labels((40, 40, 40)))
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal_of(path).reason == "atlas-bad"
