"""A run that has been through all steps, made without any of them; folders of derivatives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slimbrain_app.bids.sidecars import Provenance
from slimbrain_app.files import sha256_of
from slimbrain_app.prepare.reading import stamp
from slimbrain_app.records import (
    Contract,
    Embedding,
    Explanation,
    ModelIdentity,
    Notice,
    Prediction,
    PreparedRun,
    RankedRun,
    RepetitionTime,
    Run,
    Window,
)
from slimbrain_app.settings import Output, ParticipantSettings


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Everything that `write_run` takes."""

    output: Path
    run: Run
    prepared: PreparedRun
    ranked: RankedRun
    embedding: Embedding
    mask: np.ndarray
    provenance: Provenance
    predictions: tuple[Prediction, ...] = ()
    explanations: tuple[Explanation, ...] = ()

    @property
    def arguments(self) -> tuple:
        return tuple(vars(self).values())


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    dataset = tmp_path / "dataset"
    func = dataset / "sub-01/ses-a/func"
    func.mkdir(parents=True)
    stem = "sub-01_ses-a_task-rest_run-01"
    bold = func / f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    mask = func / f"{stem}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"
    bold.write_bytes(b"bold")
    mask.write_bytes(b"mask")
    makers = [{"Name": "fMRIPrep", "Version": "25.1.3"}]
    description = {"Name": "x", "BIDSVersion": "1.10.0", "GeneratedBy": makers, "License": "CC0"}
    (dataset / "dataset_description.json").write_text(json.dumps(description))
    prepared_folder = tmp_path / "prepared"
    prepared_folder.mkdir()
    np.save(prepared_folder / "signal.npy", np.zeros((3, 4), np.int8))

    random = np.random.default_rng(0)
    views = random.standard_normal((4, 24)).astype(np.float32)
    run = Run(
        entities=(("sub", "01"), ("ses", "a"), ("task", "rest"), ("run", "01")),
        dataset=dataset,
        bold=bold,
        mask=mask,
        confounds=None,
        sidecars=(),
        transforms=(),
        space="MNI152NLin2009cAsym",
        rung=0,
        interpolations=1,
        repetition_time=RepetitionTime(seconds=2.0, origin="sidecar"),
        notices=(Notice(code="no-confounds", message="no confounds: motion is unknown"),),
    )
    prepared = PreparedRun(
        folder=prepared_folder,
        volumes=100,
        voxels=3,
        tr=2.0,
        dummy_scans=1,
        coverage=0.95,
        mean=9000.0,
        deviation=40.0,
        constant_voxels=0,
        clipped_values=5,
        replaced_values=0,
        displacement=None,
        checksums=(
            (run.relative(bold), sha256_of(bold)),
            (run.relative(mask), sha256_of(mask)),
        ),
        fingerprint="0" * 64,
        notices=(),
        stamps=tuple(stamp(path, run.relative(path)) for path in run.sources),
    )
    windows = tuple(
        Window(
            start=20 * i,
            onset=2.0 + 14.4 * i,
            duration=28.8,
            saliency=float(random.standard_normal()),
            rank=i + 1,
            selected=i < 2,
            censored_frames=0,
        )
        for i in range(4)
    )
    model = ModelIdentity(
        name="tiny", preset="tiny", sha256="f" * 64, trained=False, contract=Contract()
    )
    settings = ParticipantSettings(output=Output(save_views=True, save_prepared=True))
    grid_mask = np.zeros((96, 96, 96), bool)
    grid_mask[40, 50, 60:63] = True
    return Finished(
        output=tmp_path / "output",
        run=run,
        prepared=prepared,
        ranked=RankedRun(windows=windows, method="mutual, weightless", notices=()),
        embedding=Embedding(
            views=views,
            windows=(0, 0, 1, 1),
            onsets=(1.0, 3.0, 15.4, 17.4),
            mean=views.mean(0),
            device="cpu",
        ),
        mask=grid_mask,
        provenance=Provenance(model=model, settings=settings, software={"SlimBrain": "0"}),
    )


FMRIPREP = {
    "Name": "fMRIPrep",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.2.0"}],
}


def _image(
    shape: tuple[int, ...] = (4, 5, 6, 3),
    *,
    edge: float = 4.0,
    origin: tuple[float, float, float] = (-8, -10, -12),
    tr: float = 2.0,
    unit: str = "sec",
) -> bytes:
    affine = np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    image.header.set_xyzt_units("mm", unit)
    if len(shape) > 3:
        image.header["pixdim"][4] = tr
    return gzip.compress(image.to_bytes())


def _default_content(name: str) -> bytes:
    if name.endswith(".nii.gz"):
        return _image() if "bold" in name and "mask" not in name else _image((4, 5, 6))
    if name.endswith("bold.json"):
        return b'{"RepetitionTime": 2.0}'
    return b"{}" if name.endswith(".json") else b"x"


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    """Bytes of a small compressed NIfTI image."""
    return _image


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., Path]:
    """Lay out derivatives from names; images are small ones, a BOLD's JSON says 2 s.

    Content that differs is given as bytes, or as a table for JSON.
    """

    def lay_out(
        *names: str,
        contents: Mapping[str, object] | None = None,
        description: object = FMRIPREP,
        folder: str = "derivatives",
    ) -> Path:
        files = {name: _default_content(name.split("/")[-1]) for name in names} | (contents or {})
        if description is not None:
            files["dataset_description.json"] = description
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            is_bytes = isinstance(content, bytes)
            path.write_bytes(content if is_bytes else json.dumps(content).encode())
        return tmp_path / folder

    return lay_out
