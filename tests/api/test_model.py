"""The Python face: one run in, the participant level's record of it out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import slimbrain_app
from slimbrain_app import CallRefused, RunRefused, SlimBrainEmbedder, SlimBrainWarning
from slimbrain_app.bids.discover import discover
from slimbrain_app.errors import REASONS
from slimbrain_app.prepare.grid import model_grid, template_brain
from slimbrain_app.settings import Prepare, Select

pytestmark = pytest.mark.filterwarnings("ignore::slimbrain_app.SlimBrainWarning")

PUBLIC = {
    "CallRefused", "Model", "RunEmbedding", "RunRefused", "SlimBrainEmbedder", "SlimBrainError",
    "SlimBrainWarning", "load",
}  # fmt: skip


@pytest.fixture
def model(small):
    return slimbrain_app.load(small)


@pytest.fixture(scope="module")
def derived(simulated, tmp_path_factory) -> Path:
    """What the command line makes of a person with the shipped model, the prepared run kept."""
    output = tmp_path_factory.mktemp("derived")
    options = "--participant-label 01 --save-prepared --save-views --nprocs 1".split()
    words = [sys.executable, "-m", "slimbrain_app", simulated, output, "participant", *options]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    return output


def read_table(output: Path, ending: str) -> pd.DataFrame:
    (table,) = output.glob(f"sub-*/func/*cAsym{ending}")
    return pd.read_csv(table, sep="\t")


def embed_first(model, bold, **told):
    return model.embed(bold, windows=1, ranking="first", **told)


def test_the_record_has_every_number_of_the_command_lines_tables(simulated, derived, find_bold):
    run = slimbrain_app.load("tiny").embed(find_bold(simulated, "01"))
    views = read_table(derived, "_desc-slimbrain_embeddings.tsv")
    named = [name for name in views if name.startswith("e0")]
    (mean,) = read_table(derived, "_stat-mean_desc-slimbrain_embeddings.tsv").to_numpy(np.float32)
    assert run.embedding.dtype == np.float32
    np.testing.assert_array_equal(run.embedding, mean)
    np.testing.assert_array_equal(run.views, views[named].to_numpy(np.float32))
    windows = read_table(derived, "_desc-slimbrain_windows.tsv")
    told = pd.DataFrame({name: [getattr(w, name) for w in run.windows] for name in windows})
    assert_frame_equal(told, windows)
    frame = run.to_frame()
    assert_frame_equal(frame[views.columns.drop(named)], views.drop(columns=named))
    assert frame["saliency"].tolist() == windows["saliency"][views["window"]].tolist()
    assert frame["selected"].all()
    np.testing.assert_array_equal(frame[named].to_numpy(), run.views)


def test_a_file_a_run_and_what_was_prepared_of_it_are_the_same(simulated, derived, find_bold):
    model = slimbrain_app.load("tiny")
    told = {"ranking": "random", "windows": 2, "views": 2}
    run = discover(simulated, Select(participants=("01",)), Prepare()).runs[0]
    (folder,) = derived.glob("sub-01/func/*_prepared")
    expected = model.embed(find_bold(simulated, "01"), **told)
    for given in (run, folder, str(folder)):
        found = model.embed(given, **told)
        assert found.run == expected.run
        np.testing.assert_array_equal(found.views, expected.views)
        assert found.windows == expected.windows


def test_an_image_an_array_and_a_file_of_it_are_the_same(model, make_image, tmp_path):
    image = make_image(0)
    image.to_filename(tmp_path / "image.nii")
    expected = embed_first(model, tmp_path / "image.nii").embedding
    values = np.asarray(image.dataobj)
    by_array = embed_first(model, values, affine=image.affine, tr=2.0)
    np.testing.assert_array_equal(embed_first(model, image).embedding, expected)
    np.testing.assert_array_equal(by_array.embedding, expected)
    transformer = SlimBrainEmbedder(model.package.folder, windows=1, ranking="first")
    np.testing.assert_array_equal(transformer.fit_transform([image]), expected[None])


@pytest.mark.parametrize("kind", ["float16", "bool", "int64", "uint16"])
def test_an_array_without_an_affine_lies_on_the_model_grid(model, kind):
    noise = np.random.default_rng(0).integers(0, 2, (*model_grid().shape, 16))
    values = (noise * template_brain()[..., None]).astype(kind)
    image = nibabel.Nifti1Image(values.astype(np.float32), model_grid().affine)
    mask = template_brain()
    by_array = embed_first(model, values, mask=mask, tr=2.0)
    by_image = embed_first(model, image, mask=mask, affine=model_grid().affine, tr=2.0)
    np.testing.assert_array_equal(by_array.embedding, by_image.embedding)


def test_confounds_move_the_motion_guard(simulated, small, find_bold, tmp_path):
    model, bold = slimbrain_app.load(small), find_bold(simulated, "01")
    (table,) = bold.parent.glob("*_desc-confounds_timeseries.tsv")
    confounds = pd.read_csv(table, sep="\t")
    confounds.loc[1:, "framewise_displacement"] = 9.0
    confounds.to_csv(tmp_path / "moving.tsv", sep="\t", index=False, na_rep="n/a")
    still = model.embed(bold)
    by_file, by_frame = (
        model.embed(bold, confounds=given) for given in (tmp_path / "moving.tsv", confounds)
    )
    assert by_file.windows == by_frame.windows
    assert [window.censored_frames for window in by_file.windows] != [
        window.censored_frames for window in still.windows
    ]
    assert "guard-relaxed" in {notice.code for notice in by_frame.notices}


def test_another_template_is_reached_by_templateflows_transform(
    model, make_image, tmp_path, monkeypatch
):
    shift = np.array([8.0, -8.0, 8.0])
    image = make_image(0)
    affine = image.affine.copy()
    affine[:3, 3] += shift
    moved = nibabel.Nifti1Image(np.asarray(image.dataobj), affine, image.header)
    brain = nibabel.Nifti1Image(template_brain()[::4, ::4, ::4].astype(np.uint8), image.affine)
    mask = nibabel.Nifti1Image(np.asarray(brain.dataobj), affine)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(RunRefused, match=r"no-template.*TemplateFlow's transform from MNI152NLin6"):
        embed_first(model, moved, mask=mask, space="MNI152NLin6Asym")
    file = tmp_path / "tpl-MNI152NLin2009cAsym/tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym"
    file.parent.mkdir()
    with h5py.File(f"{file}_mode-image_xfm.h5", "w") as made:
        made["TransformGroup/0/TransformType"] = [b"CompositeTransform_double_3_3"]
        made["TransformGroup/1/TransformType"] = [b"AffineTransform_double_3_3"]
        # ITK's axes lead left and back.
        made["TransformGroup/1/TransformParameters"] = [*np.eye(3).ravel(), *(shift * [-1, -1, 1])]
        made["TransformGroup/1/TransformFixedParameters"] = [0.0, 0.0, 0.0]
    there = embed_first(model, moved, mask=mask, space="MNI152NLin6Asym")
    here = embed_first(model, image, mask=brain)
    np.testing.assert_allclose(there.embedding, here.embedding, atol=2e-3)
    away = embed_first(model, moved, mask=mask)
    assert np.abs(away.embedding - here.embedding).max() > 2e-2


def test_warnings_are_told_and_kept(model, make_image):
    with pytest.warns(SlimBrainWarning) as told:
        run = embed_first(model, make_image(0))
    codes = [notice.code for notice in run.notices]
    assert {"tr-from-header", "no-confounds", "unguarded"} <= set(codes) <= set(REASONS)
    assert {str(one.message).split()[0] for one in told} == {f"[{code}]" for code in codes}


def without_time(image):
    return nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)


@pytest.mark.parametrize(
    ("change", "told", "reason"),
    [
        (without_time, {}, "no-tr"),
        (lambda image: image.slicer[..., 0], {}, "not-4d"),
        (lambda image: image.slicer[..., :2], {}, "too-short"),
        (lambda image: image, {"mask": template_brain()}, "mask-mismatch"),
        (lambda image: image, {"space": "MNIInfant"}, "no-space"),
        (lambda image: image, {"space": "fsaverage"}, "no-space"),
        (lambda image: image, {"confounds": pd.DataFrame({"trans_x": [0.0]})}, "bad-confounds"),
        (lambda image: image, {"confounds": 3}, "usage"),
        (lambda image: image, {"mask": "no.nii"}, "missing-content"),
        (lambda image: image, {"tr": 300}, "usage"),
        (lambda image: image, {"windows": 0}, "usage"),
        (lambda image: image, {"ranking": "best"}, "usage"),
        (lambda image: image, {"device": "tpu"}, "usage"),
        (lambda image: np.asarray(image.dataobj), {"tr": 2.0}, "usage"),
        (lambda image: np.zeros((2, 2, 2, 16), complex), {"affine": np.eye(4)}, "usage"),
        (lambda image: None, {}, "usage"),
        (lambda image: "no.nii", {}, "missing-content"),
    ],
)
def test_what_can_not_be_embedded_is_refused_with_the_command_lines_reason(
    change, told, reason, model, make_image
):
    if "mask" in told and isinstance(told["mask"], np.ndarray):
        told = {**told, "mask": nibabel.Nifti1Image(told["mask"].astype("u1"), np.eye(4))}
    with pytest.raises((CallRefused, RunRefused)) as caught:
        model.embed(change(make_image(0)), **told)
    assert caught.value.reason == reason


def test_what_a_prepared_run_has_of_its_own_is_not_taken_from_the_call(derived):
    (folder,) = derived.glob("sub-01/func/*_prepared")
    with pytest.raises(CallRefused, match=r"usage.*beside a prepared run.*found mask, tr"):
        slimbrain_app.load("tiny").embed(folder, mask=template_brain(), tr=2.0)


def test_a_folder_that_is_no_prepared_run_is_refused(model, tmp_path):
    with pytest.raises(RunRefused, match="prepared-bad"):
        model.embed(tmp_path)


def test_a_package_has_the_checksum_asked_for(small):
    sha256 = slimbrain_app.load(small).package.sha256
    assert slimbrain_app.load(small, sha256=sha256.upper()).name == "small"
    with pytest.raises(CallRefused, match="package-bad"):
        slimbrain_app.load(small, sha256="0" * 64)
    with pytest.raises(CallRefused, match=r"package-missing.*did you mean tiny"):
        slimbrain_app.load("tinny")


def test_public_names_are_these():
    assert set(slimbrain_app.__all__) == PUBLIC
    assert set(dir(slimbrain_app)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(slimbrain_app, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Embedder'"):
        slimbrain_app.Embedder  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = (
        "import sys, slimbrain_app\n"
        "heavy = {'torch', 'nibabel', 'nipype', 'pandas', 'numpy', 'sklearn', 'nilearn'}\n"
        "assert not heavy & set(sys.modules)\n"
        "slimbrain_app.load\n"
        "assert not {'nipype', 'pandas', 'sklearn', 'nilearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_has_its_packages_contract(model):
    assert model.contract == model.package.contract
    assert replace(model) == model
