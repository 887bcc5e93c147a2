"""What a participant's report tells: records, filled by whoever has done the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.records import (
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
from slimbrain_app.settings import ParticipantSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReportedRun:
    """A run that is done, as the report shows it.

    Attributes
    ----------
    source : str
        The BOLD file below the dataset.
    volumes, voxels : int
        Shape of the prepared signal, dummy scans left out.
    displacement : tuple of float or None
        Framewise displacement (mm) of each of these volumes, where it is known.
    windows : tuple of Window
        All windows, in time.
    method : str
        What scored the windows, in words.
    embedding : ndarray, float32, shape (width,)
        The run's embedding.
    views : ndarray, float32, shape (views, width), or None
        Embeddings of single views, selected windows best first, where they are still at hand.
    mean_image, mask : ndarray, shape (96, 96, 96), or None
        Mean over time and brain mask on the model grid, where they are still at hand.
    predictions : tuple of Prediction
        By heads of the call's own package.
    explanations : tuple of Explanation
        Of these, where that was wished; without maps where they are no longer at hand.
    done_before : bool
        An earlier call has done this run. Its figures are taken over where they are there.
    """

    name: str
    source: str
    space: str
    rung: int
    interpolations: int
    repetition_time: RepetitionTime
    volumes: int
    voxels: int
    dummy_scans: int
    coverage: float
    constant_voxels: int
    clipped_values: int
    replaced_values: int
    displacement: tuple[float, ...] | None
    windows: tuple[Window, ...]
    method: str
    embedding: NDArray[np.float32]
    views: NDArray[np.float32] | None
    notices: tuple[Notice, ...]
    checksums: tuple[tuple[str, str], ...]
    mean_image: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    predictions: tuple[Prediction, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    done_before: bool = False

    @classmethod
    def of(
        cls,
        run: Run,
        prepared: PreparedRun,
        ranked: RankedRun,
        embedding: Embedding,
        *,
        mean_image: NDArray[np.float32],
        mask: NDArray[np.bool_],
        predictions: tuple[Prediction, ...] = (),
        explanations: tuple[Explanation, ...] = (),
    ) -> ReportedRun:
        """Collect what the steps of this call have said of a run."""
        return cls(
            name=run.name,
            source=run.relative(run.bold),
            space=run.space,
            rung=run.rung,
            interpolations=run.interpolations,
            repetition_time=run.repetition_time,
            volumes=prepared.volumes,
            voxels=prepared.voxels,
            dummy_scans=prepared.dummy_scans,
            coverage=prepared.coverage,
            constant_voxels=prepared.constant_voxels,
            clipped_values=prepared.clipped_values,
            replaced_values=prepared.replaced_values,
            displacement=prepared.displacement,
            windows=ranked.windows,
            method=ranked.method,
            embedding=embedding.mean,
            views=embedding.views,
            notices=(*run.notices, *prepared.notices, *ranked.notices),
            checksums=prepared.checksums,
            mean_image=mean_image,
            mask=mask,
            predictions=predictions,
            explanations=explanations,
        )

    @property
    def tr(self) -> float:
        return self.repetition_time.seconds

    @property
    def seconds(self) -> float:
        """Length of the series without dummy scans."""
        return self.volumes * self.tr

    @property
    def selected(self) -> tuple[Window, ...]:
        """Selected windows, best first."""
        chosen = [window for window in self.windows if window.selected]
        return tuple(sorted(chosen, key=lambda window: window.rank))

    @property
    def selected_seconds(self) -> float:
        """Seconds inside of at least one selected window."""
        return sum(end - onset for onset, end in join_spans(self.windows))

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.embedding.astype(np.float64)))

    @property
    def clipped_share(self) -> float:
        return self.clipped_values / (self.volumes * self.voxels)

    @property
    def mean_displacement(self) -> float | None:
        """Mean framewise displacement (mm); the first volume has none to its predecessor."""
        if self.displacement is None or len(self.displacement) < 2:
            return None
        return float(np.mean(self.displacement[1:]))

    def volumes_above(self, threshold: float) -> int:
        """Count volumes whose framewise displacement is over a threshold (mm)."""
        return sum(value > threshold for value in self.displacement or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportContext:
    """What holds for all runs of the call.

    Attributes
    ----------
    software : mapping of str to str
        Package and version.
    command : tuple of str
        The command line, without absolute paths.
    methods : str
        The text of `slimbrain_app.report.methods.describe_methods`.
    notices : tuple of Notice
        Warnings about the dataset as a whole.
    """

    settings: ParticipantSettings
    model: ModelIdentity
    device: str
    software: Mapping[str, str]
    command: tuple[str, ...]
    methods: str
    notices: tuple[Notice, ...] = ()


def join_spans(windows: Iterable[Window]) -> list[tuple[float, float]]:
    """Return onset and end (s) of the stretches that selected windows cover, in time."""
    spans: list[tuple[float, float]] = []
    for window in sorted(windows, key=lambda window: window.onset):
        if not window.selected:
            continue
        onset, end = window.onset, window.onset + window.duration
        if spans and onset <= spans[-1][1]:
            onset, end = spans[-1][0], max(end, spans[-1][1])
            spans.pop()
        spans.append((onset, end))
    return spans
