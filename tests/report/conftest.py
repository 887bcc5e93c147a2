"""A participant as a call leaves it: records and a brain-like image, no real person's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from slimbrain_app.model.monitors import Reading
from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.records import (
    Contract,
    Embedding,
    ModelIdentity,
    Notice,
    PreparedRun,
    RankedRun,
    Recording,
    Refusal,
    RepetitionTime,
    Run,
    Window,
)
from slimbrain_app.report.contents import ReportContext, ReportedRun
from slimbrain_app.report.methods import describe_methods, describe_pretraining
from slimbrain_app.report.story import Story
from slimbrain_app.settings import ParticipantSettings, PretrainSettings
from slimbrain_app.training.log import (
    Checkpoint,
    End,
    Event,
    Extract,
    Probe,
    Start,
    Step,
    Validation,
)

TR, VOLUMES, DUMMY_SCANS = 2.0, 240, 4
SOFTWARE = {"SlimBrain": "0.1.0", "torch": "2.9.1", "nibabel": "5.4.2", "Nipype": "1.10.0"}


@pytest.fixture(scope="session")
def template() -> NDArray[np.bool_]:
    return template_brain()


@pytest.fixture(scope="session")
def mean_image(template: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Echo-planar contrast: bright rim and ventricles, darker white matter, a frontal dropout."""
    noise = np.random.default_rng(0).standard_normal(template.shape)
    depth = distance_transform_edt(template)
    folds = gaussian_filter(noise, 2)
    matter = 1.0 - 0.35 * (depth + 6 * folds / folds.std() > 5.5)
    ventricles = (depth > 22) & (np.abs(gaussian_filter(noise, 5)) < 1e-3)
    x, y, z = np.ogrid[:96, :96, :96]
    dropout = np.exp(-((x - 47) ** 2 / 150 + (y - 78) ** 2 / 120 + (z - 28) ** 2 / 60))
    image = gaussian_filter(matter + 0.5 * ventricles, 0.8) * (1 - 0.85 * dropout)
    image = image * (1 + 0.03 * noise) * 900
    return np.where(template, image, 0).astype(np.float32)


@pytest.fixture(scope="session")
def mask(template: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The template's brain without its crown, as where the slices did not reach up."""
    mask = template.copy()
    mask[:, :, 74:] = False
    return mask


@pytest.fixture(scope="session")
def displacement() -> tuple[float, ...]:
    """Quiet breathing with three jolts."""
    draw = np.random.default_rng(1)
    series = draw.gamma(4, 0.035, VOLUMES)
    for jolt in (61, 62, 140, 141, 199):
        series[jolt] += draw.uniform(0.4, 1.4)
    return (0.0, *(float(value) for value in series[1:]))


@pytest.fixture(scope="session")
def windows() -> tuple[Window, ...]:
    duration, stride = 28.8, 14.4
    onsets = DUMMY_SCANS * TR + stride * np.arange(32)
    saliency = np.round(1.5 * np.sin(np.arange(32) / 3) + np.cos(np.arange(32) * 1.7), 6)
    order = list(np.argsort(-saliency, kind="stable"))
    return tuple(
        Window(
            start=20 * place,
            onset=float(onset),
            duration=duration,
            saliency=float(saliency[place]),
            rank=order.index(place) + 1,
            selected=order.index(place) < 8,
            censored_frames=int(place % 5 == 0) * 3,
        )
        for place, onset in enumerate(onsets)
    )


@pytest.fixture(scope="session")
def model() -> ModelIdentity:
    return ModelIdentity(
        name="tiny", preset="tiny", sha256="3f" * 32, trained=False, contract=Contract()
    )


@pytest.fixture(scope="session")
def context(model: ModelIdentity) -> ReportContext:
    settings = ParticipantSettings()
    return ReportContext(
        settings=settings,
        model=model,
        device="cpu",
        software=SOFTWARE,
        command=("slimbrain", "fmriprep", "out", "participant", "--participant-label", "01"),
        methods=describe_methods(settings, model, SOFTWARE),
    )


@pytest.fixture(scope="session")
def make_run(
    mean_image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    displacement: tuple[float, ...],
    windows: tuple[Window, ...],
) -> Callable[..., ReportedRun]:
    """Return a function that makes a run of sub-01 from the records of its steps."""

    def make(task: str = "rest", number: str = "01") -> ReportedRun:
        dataset = Path("/home/jane/fmriprep")
        name = f"sub-01_task-{task}_run-{number}"
        stem = dataset / "sub-01" / "func" / f"{name}_space-MNI152NLin2009cAsym_res-2"
        bold = stem.with_name(f"{stem.name}_desc-preproc_bold.nii.gz")
        run = Run(
            entities=(("sub", "01"), ("task", task), ("run", number)),
            dataset=dataset,
            bold=bold,
            mask=stem.with_name(f"{stem.name}_desc-brain_mask.nii.gz"),
            confounds=stem.with_name(f"{name}_desc-confounds_timeseries.tsv"),
            sidecars=(),
            transforms=(),
            space="MNI152NLin2009cAsym",
            rung=0,
            interpolations=0,
            repetition_time=RepetitionTime(seconds=TR, origin="sidecar"),
            notices=(Notice(code="several-grids", message="res-2 is used, res-1 is not"),),
        )
        prepared = PreparedRun(
            folder=Path("/somewhere/prepared"),
            volumes=VOLUMES,
            voxels=int(mask.sum()),
            tr=TR,
            dummy_scans=DUMMY_SCANS,
            coverage=0.9471,
            mean=612.5,
            deviation=23.25,
            constant_voxels=17,
            clipped_values=31415,
            replaced_values=0,
            displacement=displacement,
            checksums=((run.relative(bold), "ab" * 32), (run.relative(run.mask), "cd" * 32)),
            fingerprint="00" * 32,
            notices=(Notice(code="constant-voxels", message="17 voxels of the mask never change"),),
        )
        ranked = RankedRun(
            windows=windows, method="subspace shares, without trained weights", notices=()
        )
        return ReportedRun.of(
            run, prepared, ranked, _embed(windows), mean_image=mean_image, mask=mask
        )

    return make


@pytest.fixture(scope="session")
def too_short() -> Refusal:
    return Refusal(
        run="sub-01_task-nback",
        code="too-short",
        file="sub-01/func/sub-01_task-nback_desc-preproc_bold.nii.gz",
        expected="at least 28.8 s after dummy scans",
        found="12 s in 6 volumes",
        advice="leave the run out",
    )


@pytest.fixture(scope="session")
def missing_content() -> Refusal:
    return Refusal(
        run="sub-01_task-movie",
        code="missing-content",
        file="/home/jane/fmriprep/sub-01/func/sub-01_task-movie_desc-preproc_bold.nii.gz",
        expected="a file with content",
        found="a link to /home/jane/.git/annex/objects/MD5E-s3.nii.gz, which is not there",
        advice="run 'datalad get' on it",
    )


def _embed(windows: tuple[Window, ...]) -> Embedding:
    draw = np.random.default_rng(2)
    common = draw.standard_normal(192)
    views = (common + 0.7 * draw.standard_normal((8, 192))).astype(np.float32)
    chosen = [place for place, window in enumerate(windows) if window.selected]
    return Embedding(
        views=views,
        windows=tuple(chosen),
        onsets=tuple(windows[place].onset for place in chosen),
        mean=views.mean(axis=0),
        device="cpu",
    )


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., Recording]:
    """Return a function that makes a run to train on, 5 minutes of it."""

    def make(
        participant: str = "01",
        dataset: str = "cohort",
        site: str | None = "here",
        run: str = "01",
        **prepared: Any,
    ) -> Recording:
        known: dict[str, Any] = {
            "folder": Path("/home/jane/prepared"),
            "volumes": 150,
            "voxels": 200_000,
            "tr": 2.0,
            "dummy_scans": 0,
            "coverage": 0.95,
            "mean": 500.0,
            "deviation": 20.0,
            "constant_voxels": 0,
            "clipped_values": 0,
            "replaced_values": 0,
            "displacement": (0.0, *[0.1, 0.2] * 10),
            "checksums": (),
            "fingerprint": "ab" * 32,
            "notices": (),
        }
        return Recording(
            dataset=dataset,
            participant=participant,
            run=f"sub-{participant}_task-rest_run-{run}",
            prepared=PreparedRun(**{**known, **prepared}),
            site=site,
        )

    return make


@pytest.fixture(scope="session")
def make_events() -> Callable[..., tuple[Event, ...]]:
    """Return a function that makes the log of a training that goes well."""

    def make(
        passes: int = 4, steps: int = 3, validation: bool = True, probes: bool = True
    ) -> tuple[Event, ...]:
        total = passes * steps
        events: list[Event] = [
            *(Extract(pass_=number, loss=1 / number) for number in range(1, 6)),
            Start(
                passes=passes,
                steps=total,
                batch=8,
                windows_per_run=4,
                warm_up=1,
                frames=40,
                width=192,
            ),
        ]
        for number in range(1, total + 1):
            events += [_make_step(number, steps), _make_reading(number)]
            if number % steps == 0:
                events += _end_pass(number, number // steps, validation, probes)
        return (*events, End(step=total, pass_=passes, finished=True))

    return make


def _make_step(number: int, steps: int) -> Step:
    return Step(
        step=number,
        pass_=(number - 1) // steps + 1,
        loss=0.5 / number,
        kinds=(0.4 / number, 0.5 / number, 0.6 / number),
        rate=1e-4,
        gradient_norm=1.0 + 1 / number,
        momentum=0.996,
        seconds=2.0,
        loader_seconds=0.5,
        windows_per_second=4.0,
    )


def _make_reading(number: int) -> Reading:
    return Reading(
        step=number,
        least_spread=0.2,
        median_spread=0.75,
        cell_rank=50.0 + number,
        view_rank=5.0,
        over_constant=0.5,
        over_position=0.8,
        kinds=(0.1, 0.2, 0.3),
        distance=0.1 * number,
    )


def _end_pass(step: int, number: int, validation: bool, probes: bool) -> list[Event]:
    events: list[Event] = [Checkpoint(step=step, pass_=number)]
    if validation:
        events.append(
            Validation(
                step=step,
                pass_=number,
                loss=0.6 / step,
                kinds=(0.5 / step, 0.6 / step, 0.7 / step),
                over_constant=0.55,
                over_position=0.85,
            )
        )
    if probes:
        events.append(
            Probe(
                step=step,
                pass_=number,
                name="site",
                metric="AUROC",
                score=0.7,
                lower=0.6,
                upper=0.8,
                chance=0.5,
            )
        )
    return events


@pytest.fixture(scope="session")
def make_story(
    make_recording: Callable[..., Recording],
    make_events: Callable[..., tuple[Event, ...]],
    too_short: Refusal,
    missing_content: Refusal,
) -> Callable[..., Story]:
    """Return a function that makes the story of a training; what is given replaces a part."""

    def make(**parts: Any) -> Story:
        settings = PretrainSettings(package_name="ours", seed=3)
        events = parts.get("events", make_events())
        start = next(event for event in make_events() if isinstance(event, Start))
        known: dict[str, Any] = {
            "name": "ours",
            "weights": "5c" * 32,
            "contract": Contract(),
            "training": tuple(make_recording(label) for label in ("01", "02", "03")),
            "validation": (make_recording("04"),),
            "refusals": (too_short, missing_content),
            "fingerprint": "7e" * 32,
            "events": events,
            "settings": settings,
            "device": "cpu, float32",
            "software": SOFTWARE,
            "command": ("slimbrain", "fmriprep", "out", "group", "--action", "pretrain"),
            "methods": describe_pretraining(settings, Contract(), start, SOFTWARE),
        }
        return Story(**{**known, **parts})

    return make
