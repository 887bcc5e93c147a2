"""A sample of the suite against the face, given an image of the same values."""

from __future__ import annotations

import warnings

import h5py
import nibabel
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import default_collate

import slimbrain_app
from slimbrain_app import CallRefused, RunRefused, SlimBrainWarning
from slimbrain_app.bids.discover import discover
from slimbrain_app.brainmarks.rows import Normalised, normalise, read_rows
from slimbrain_app.brainmarks.space import TEMPLATE, VOXELS, read_suite_mask, suite_grid
from slimbrain_app.brainmarks.wrapper import Transform, Wrapper
from slimbrain_app.settings import Prepare, Select

from .conftest import write_image

pytestmark = pytest.mark.filterwarnings("ignore::slimbrain_app.SlimBrainWarning")

TR = 2.0
MODEL = "MNI152NLin2009cAsym"


def make_values(brain: np.ndarray, volumes: int, seed: int = 0) -> np.ndarray:
    """A series on the suite's grid, (x, y, z, volumes), 0 outside the brain."""
    random = np.random.default_rng(seed)
    series = np.zeros((*brain.shape, volumes), np.float32)
    level = random.normal(9000, 500, VOXELS)
    for volume in range(volumes):
        series[brain, volume] = level + random.normal(0, 100, VOXELS)
    return series


def take_rows(series: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The suite's rows: voxels with x fastest, then y, then z."""
    places = np.argwhere(brain)
    x, y, z = places[np.lexsort(places.T)].T
    return series[x, y, z].T


def make_sample(rows: np.ndarray, **others) -> dict:
    """Rows that are as they were: neither scaled nor shifted."""
    one = np.ones((1, rows.shape[1]), np.float32)
    parts = {"bold": rows, "mean": 0 * one, "std": one}
    return {**{key: torch.from_numpy(part) for key, part in parts.items()}, "tr": TR, **others}


def make_stored(kept: Normalised) -> dict:
    """A sample as an exported dataset has it."""
    parts = {"bold": kept.values, "mean": kept.mean, "std": kept.deviation}
    return {**{key: torch.from_numpy(part) for key, part in parts.items()}, "tr": TR}


def embed_in_suite(samples: list[dict], package) -> tuple[np.ndarray, ...]:
    """What the suite makes of samples: transform, batch, model, in mixed precision."""
    transform, model = Transform(package), Wrapper(package)
    batch = default_collate([transform(sample) for sample in samples])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        return tuple(part.numpy() for part in model(batch))


def embed_by_face(series: np.ndarray, brain: np.ndarray, space: str, package):
    image = nibabel.Nifti1Image(series, suite_grid().affine)
    mask = nibabel.Nifti1Image(brain.astype(np.uint8), suite_grid().affine)
    model = slimbrain_app.load(package.folder)
    return model.embed(image, mask=mask, tr=TR, space=space, device="cpu")


def lay_transform(templates, shift: float) -> None:
    """TemplateFlow's transform, of a shift (mm) along x; ITK counts x from right to left."""
    folder = templates / f"tpl-{MODEL}"
    folder.mkdir()
    with h5py.File(folder / f"tpl-{MODEL}_from-{TEMPLATE}_mode-image_xfm.h5", "w") as file:
        for number, kind in enumerate(["CompositeTransform", "AffineTransform"]):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = [f"{kind}_double_3_3".encode()]
            if number:
                group["TransformParameters"] = np.array([*np.eye(3).ravel(), -shift, 0, 0])
                group["TransformFixedParameters"] = np.zeros(3)


@pytest.fixture(scope="module")
def series(brain):
    return make_values(brain, 24)


def check_agreement(series, brain, package, space) -> np.ndarray:
    run = embed_by_face(series, brain, space, package)
    cls, reg, patch = embed_in_suite([make_sample(take_rows(series, brain))], package)
    assert cls.shape == (1, 1, len(run.embedding))
    np.testing.assert_array_equal(cls[0, 0], run.embedding)
    assert 1 < len(run.views) < 8
    np.testing.assert_array_equal(reg[0, : len(run.views)], run.views)
    assert patch.shape[1] % 8 == 0
    assert np.isfinite(patch).all()
    return cls


@pytest.fixture
def two_threads():
    """What would change bits if anything let several threads share a product."""
    with threadpool_limits(2, user_api="blas"):
        yield


def test_embeddings_are_the_faces_to_the_last_bit(two_threads, templates, brain, series, package):
    as_one = check_agreement(series, brain, package, MODEL)
    lay_transform(templates, 3.0)
    apart = check_agreement(series, brain, package, TEMPLATE)
    assert np.abs(as_one - apart).max() > 1e-3


def test_half_precision_costs_a_thousandth_at_most(templates, brain, series, package):
    rows = take_rows(series, brain)
    sample = make_stored(normalise(rows))
    whole, _, _ = embed_in_suite([make_sample(rows)], package)
    half, _, _ = embed_in_suite([sample], package)
    assert 0 < np.linalg.norm(half - whole) / np.linalg.norm(whole) < 1e-3


def test_a_run_of_derivatives_is_the_sample_exported_of_it(templates, brain, package, tmp_path):
    lay_transform(templates, 3.0)
    stem = f"sub-01/func/sub-01_task-rest_space-{TEMPLATE}_res-2_desc-"
    values = make_values(brain, 24)
    bold = write_image(tmp_path / f"{stem}preproc_bold.nii.gz", values, suite_grid().affine, TR)
    own = brain.copy()
    own[:, :, :30] = False
    write_image(tmp_path / f"{stem}brain_mask.nii.gz", own.astype("u1"), suite_grid().affine)
    (template,) = templates.rglob("*_desc-brain_mask.nii.gz")
    model = slimbrain_app.load(package.folder)
    alike = model.embed(bold, mask=template, fd_threshold=0, device="cpu").embedding
    (run,) = discover(tmp_path, Select(), Prepare(space=TEMPLATE)).runs
    kept = normalise(read_rows(run, read_suite_mask()).values)
    (cls,), _, _ = embed_in_suite([make_stored(kept)], package)
    assert np.linalg.norm(cls[0] - alike) / np.linalg.norm(alike) < 1e-3
    by_own = model.embed(bold, fd_threshold=0, device="cpu").embedding
    assert np.linalg.norm(by_own - alike) / np.linalg.norm(alike) > 1e-2


def test_a_short_run_is_the_same_beside_a_longer_one(templates, brain, series, package):
    long, short = take_rows(series, brain), take_rows(series[..., :16], brain)
    alone = embed_in_suite([make_sample(short)], package)
    beside = embed_in_suite([make_sample(long), make_sample(short)], package)
    for one, two in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one[0], two[1])
    cls, reg, patch = alone
    np.testing.assert_allclose(reg[0].mean(0), cls[0, 0], rtol=1e-5, atol=1e-6)
    cells = patch[0].reshape(8, -1, patch.shape[-1])
    np.testing.assert_allclose(cells[-1], cells[0], rtol=1e-4, atol=1e-5)


def test_a_sample_shorter_than_a_window_goes_on_mirrored(templates, brain, series, package):
    rows = take_rows(series[..., :10], brain)
    with pytest.warns(SlimBrainWarning, match=r"mirrored.*10 volumes of 2 s are shorter"):
        short, _, _ = embed_in_suite([make_sample(rows)], package)
    whole, _, _ = embed_in_suite([make_sample(np.concatenate([rows, rows[-2:2:-1]]))], package)
    np.testing.assert_array_equal(short, whole)


def test_the_target_stays_with_its_sample(templates, brain, series, package):
    sample = make_sample(take_rows(series[..., :16], brain), target=3, sub="01")
    read = Transform(package)(sample)
    assert (read["target"], read["sub"]) == (3, "01")
    assert not {"bold", "mean", "std", "tr"} & read.keys()


def test_taking_one_template_for_the_other_is_said(templates, package):
    with pytest.warns(SlimBrainWarning, match="template-assumed"):
        Transform(package)
    lay_transform(templates, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Transform(package)


def test_without_the_suites_mask_the_command_that_fetches_it_is_named(
    tmp_path, monkeypatch, package
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(CallRefused, match=r"template-missing.*templateflow\.api import get"):
        Transform(package)


def spoil(sample: dict, fault: str) -> dict:
    if fault == "mask-mismatch":
        return {key: part[:, :400] if key != "tr" else part for key, part in sample.items()}
    if fault == "tr-range":
        return {**sample, "tr": 0.0}
    bold = sample["bold"].clone()
    bold[3, 7] = torch.nan
    return {**sample, "bold": bold}


@pytest.mark.parametrize("fault", ["mask-mismatch", "tr-range", "nan-volumes"])
def test_what_is_no_sample_is_refused(templates, brain, series, package, fault):
    sample = make_sample(take_rows(series[..., :16], brain))
    with pytest.raises(RunRefused, match=fault):
        Transform(package)(spoil(sample, fault))


def test_the_suite_can_fit_the_weights(templates, brain, series, package):
    transform, model = Transform(package), Wrapper(package)
    batch = default_collate([transform(make_sample(take_rows(series[..., :16], brain)))])
    model(batch)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.blocks.parameters())
