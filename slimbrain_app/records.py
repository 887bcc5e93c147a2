"""Frozen records that travel between rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slimbrain_app.errors import (
    REASONS,
    CallRefused,
    Exit,
    RunRefused,
    Scope,
    SlimBrainError,
    worst,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Channel = Literal["voxel", "global"]
HeadPooling = Literal["mean", "attention", "covariance"]
Flag = Literal["untrained", "seen-in-training", "out-of-distribution"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A warning about a run: the run is done, but the reader should know."""

    code: str
    message: str
    file: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A run that isn't done, and why. ``run`` is its name, or its file where it has none."""

    run: str
    code: str
    file: str | None
    expected: str
    found: str
    advice: str

    @classmethod
    def of(cls, run: str, error: SlimBrainError) -> Refusal:
        return cls(
            run=run,
            code=error.reason,
            file=error.file,
            expected=error.expected,
            found=error.found,
            advice=error.advice,
        )

    def restore(self) -> SlimBrainError:
        """Return the error that it was made of."""
        kind = CallRefused if REASONS[self.code].scope is Scope.CALL else RunRefused
        return kind(
            self.code,
            file=self.file,
            expected=self.expected,
            found=self.found,
            advice=self.advice,
        )

    @property
    def exit_code(self) -> int:
        return REASONS[self.code].exit_code

    @property
    def message(self) -> str:
        place = f"{self.file}: " if self.file else ""
        return f"{place}expected {self.expected}; found {self.found}. What to do: {self.advice}."


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionTime:
    """Seconds between volumes, and where that was read."""

    seconds: float
    origin: Literal["command line", "sidecar", "inherited sidecar", "other grid", "raw", "header"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One BOLD file with its mask, confounds and sidecar, chosen from a dataset.

    ``entities`` identify the run and keep their spelling and order, ``(("sub", "01"), ...)``.
    ``transforms`` are in the order in which points of the model grid go through them; there are
    none where the series already is in the model's space. ``mask_transforms`` lead from the series'
    space to the mask's, and are none where these are the same. ``mask`` is the series itself where
    that is zero outside of the brain.
    """

    entities: tuple[tuple[str, str], ...]
    dataset: Path
    bold: Path
    mask: Path
    confounds: Path | None
    sidecars: tuple[Path, ...]
    transforms: tuple[Path, ...]
    space: str
    rung: int
    interpolations: int
    repetition_time: RepetitionTime
    notices: tuple[Notice, ...]
    mask_transforms: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return "_".join(f"{key}-{value}" for key, value in self.entities)

    @property
    def participant(self) -> str:
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        return dict(self.entities).get("ses")

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file that the result depends on."""
        confounds = () if self.confounds is None else (self.confounds,)
        transforms = (*self.transforms, *self.mask_transforms)
        files = (self.bold, self.mask, *confounds, *self.sidecars, *transforms)
        return tuple(dict.fromkeys(files))

    def relative(self, path: Path) -> str:
        """Return a source's path below the dataset, with slashes; of one outside it, its name.

        Outside lie TemplateFlow's transforms and the sidecars of raw data.
        """
        below = path.is_relative_to(self.dataset)
        return path.relative_to(self.dataset).as_posix() if below else path.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """What a model package wants as input. Times in s."""

    version: int = 1
    space: str = "MNI152NLin2009cAsym"
    shape: tuple[int, int, int] = (96, 96, 96)
    voxel_size: float = 2.0
    origin: tuple[float, float, float] = (-94.5, -112.5, -78.5)
    frame_time: float = 0.72
    frames: int = 40
    channels: tuple[Channel, ...] = ("voxel",)
    window_mode: Literal["consecutive"] = "consecutive"

    @property
    def window_seconds(self) -> float:
        """A window's duration."""
        return self.frames * self.frame_time

    @property
    def span_seconds(self) -> float:
        """The time from a window's first frame to its last, which a run must fill."""
        return (self.frames - 1) * self.frame_time


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run's brain voxels on the model grid, on disk in ``folder``.

    Attributes
    ----------
    volumes, voxels : int
        Shape of the signal, dummy scans left out.
    tr : float
        Seconds between volumes.
    dummy_scans : int
        Volumes left out at the start of the source.
    coverage : float
        Share of the template's brain inside the mask.
    mean, deviation : float
        Over all brain voxels and volumes: the ``global`` channel.
    constant_voxels, clipped_values, replaced_values : int
        Counts.
    displacement : tuple of float or None
        Framewise displacement (mm) of each volume, where it is known; the first one's is 0.
    checksums : tuple of (str, str)
        Source file below the dataset, SHA-256 of its bytes as read; the BOLD file first. None
        where a run was simulated as prepared.
    fingerprint : str
        Hash of what made it.
    stamps : tuple of (str, int, int)
        Source file, its size in bytes and the time of its last change in ns, when it was read.
    """

    folder: Path
    volumes: int
    voxels: int
    tr: float
    dummy_scans: int
    coverage: float
    mean: float
    deviation: float
    constant_voxels: int
    clipped_values: int
    replaced_values: int
    displacement: tuple[float, ...] | None
    checksums: tuple[tuple[str, str], ...]
    fingerprint: str
    notices: tuple[Notice, ...]
    stamps: tuple[tuple[str, int, int], ...] = ()

    @property
    def identity(self) -> str:
        """The checksum of the BOLD file, or the fingerprint if there never was one."""
        return self.checksums[0][1] if self.checksums else self.fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A prepared run of a group: which dataset, participant and run, and from which site.

    The same label in two datasets is taken for two people. ``confounds`` is the run's table, where
    it is at hand.
    """

    dataset: str
    participant: str
    run: str
    prepared: PreparedRun
    site: str | None = None
    confounds: Path | None = None

    @property
    def person(self) -> str:
        return f"{self.dataset}/sub-{self.participant}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive frames at model time. ``onset`` (s) counts from the source's first volume.

    ``rank`` starts at 1 for the window chosen first; ``saliency`` is the score it was ordered by.
    """

    start: int
    onset: float
    duration: float
    saliency: float
    rank: int
    selected: bool
    censored_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedRun:
    """All windows of a run, in time, and how they were ranked.

    ``method`` says in words what scored them, for the sidecar and the report.
    """

    windows: tuple[Window, ...]
    method: str
    notices: tuple[Notice, ...]

    @property
    def selected(self) -> tuple[Window, ...]:
        """Selected windows, best first."""
        chosen = [window for window in self.windows if window.selected]
        return tuple(sorted(chosen, key=lambda window: window.rank))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """What the encoder says of a run.

    Attributes
    ----------
    views : ndarray, float32, shape (views, width)
        One row per view, selected windows best first, a window's views in time.
    windows : tuple of int
        For each view, its window's place in ``RankedRun.windows``.
    onsets : tuple of float
        For each view, seconds from the source's first volume.
    mean : ndarray, float32, shape (width,)
        The run's embedding: the mean over its views.
    device : str
        Where it was computed.
    covariance : ndarray, float32, shape (covariance width,), or None
        Which places move together, where the package has a readout and the run is long enough.
    """

    views: NDArray[np.float32]
    windows: tuple[int, ...]
    onsets: tuple[float, ...]
    mean: NDArray[np.float32]
    device: str
    covariance: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What brings log odds to those of people left out: ``slope`` times them and ``intercept``.

    Several classes have a temperature only: the slope is its inverse, the intercept 0.
    """

    slope: float
    intercept: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScore:
    """How well a head tells people left out, with a 95 % interval. ``scheme`` says who was."""

    metric: str
    value: float
    lower: float
    upper: float
    scheme: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a head of a model package predicts, and what is known of its predictions.

    Attributes
    ----------
    outcome : str
        The column of the phenotypes.
    kind : {"class", "number"}
    people : int
        How many it was fitted to.
    classes : tuple of str
        In the order of outputs; of two, the one output is the log odds of the second.
    units : str or None
        Of a number.
    levels : mapping of str to str
        What each class means, where that is known.
    pooling : {"mean", "attention", "covariance"}
        What it reads: the mean of embeddings; of views as they are, or each weighed by the head; or
        which places move together.
    calibration : Calibration or None
        Of classes, found on people left out of the fit.
    margin : float or None
        Half the width, in units of the number, of an interval that held 90 % of people left out.
    quantiles : tuple of float or None
        What was predicted for people left out, at percentiles 0 to 100: numbers, or probabilities
        of the second of two classes as they are told, calibrated.
    score : HeadScore or None
        From cross-validation.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    outcome: str
    kind: Literal["class", "number"]
    people: int
    classes: tuple[str, ...] = ()
    units: str | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    pooling: HeadPooling = "mean"
    calibration: Calibration | None = None
    margin: float | None = None
    quantiles: tuple[float, ...] | None = None
    score: HeadScore | None = None

    def __post_init__(self) -> None:
        is_class, several = self.kind == "class", self.outputs > 1
        quantiles, calibration = self.quantiles, self.calibration
        rules = (
            (self.people > 0, "somebody that it was fitted to"),
            (not is_class or len(self.classes) > 1, "two classes or more"),
            (len(set(self.classes)) == len(self.classes), "each class once"),
            (is_class or not (self.classes or calibration), "no class and no odds of a number"),
            (self.margin is None or not is_class, "no margin of a class"),
            ((self.margin or 0) >= 0, "a margin that is not below 0"),
            (not several or not calibration or not calibration.intercept, "a temperature alone"),
            (not several or quantiles is None, "no quantiles of several classes"),
            (quantiles is None or len(quantiles) == 101, "a quantile for each percentile"),
            (list(quantiles or ()) == sorted(quantiles or ()), "quantiles that rise"),
        )
        for holds, rule in rules:
            if not holds:
                raise ValueError(f"head {self.outcome}: expected {rule}")

    @property
    def outputs(self) -> int:
        """How many numbers the head computes: one, or as many as there are classes from three."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def performance(self) -> str:
        """How well it tells people left out, in words."""
        if self.score is None:
            return "how well it tells people left out is unknown"
        score = self.score
        interval = f"95 % interval {score.lower:.2f} to {score.upper:.2f}"
        return f"{score.metric} {score.value:.2f} for people left out, {interval} ({score.scheme})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a head says of a run or a person: a number, or the probability of one class.

    Attributes
    ----------
    outcome : str
    level : str or None
        The class; none for a number.
    value : float
    lower, upper : float or None
        The ends of a 90 % interval, of a number.
    percentile : float or None
        Place of the value among those of the people fitted to, each left out.
    calibrated : bool
        Whether people left out say how far the probability, or the interval, is to be trusted.
    flags : tuple of Flag
        Why not to trust it.
    """

    outcome: str
    level: str | None
    value: float
    lower: float | None
    upper: float | None
    percentile: float | None
    calibrated: bool
    flags: tuple[Flag, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParcelShare:
    """What a parcel's voxels add to an output.

    ``parcel`` is its number in the atlas, 0 for all voxels outside parcels; ``share`` the part of
    the sum of all voxels' absolute attributions that is its own.
    """

    parcel: int
    name: str
    network: str | None
    voxels: int
    attribution: float
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowShare:
    """What a selected window adds to an output.

    ``window`` is its place among all windows, onset and duration are in s. ``contribution`` is its
    part of the output itself, ``over_baseline`` what of that the baseline would not have given. Of
    a head that reads the covariance of all windows they are not exact, but for the gap.
    """

    window: int
    onset: float
    duration: float
    contribution: float
    over_baseline: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """Where in the brain, and when, one output of a head for a run comes from.

    Attributes
    ----------
    outcome : str
    level : str or None
        The class whose log odds these are; none for a number.
    units : str
        Of the output and all its parts.
    output, baseline : float
        For the run, and for the same brain standing still.
    gap : float
        By how much the attributions' sum misses the difference of these two.
    points : int
        Gradients taken along the path, in the view that needed most; or of all views together.
    pooling : {"mean", "attention", "covariance"}
        What the head reads. Of covariance, one path leads through all views together.
    parcels : tuple of ParcelShare
    windows : tuple of WindowShare
        The selected ones, best first.
    values : ndarray, float32, shape (voxels,), or None
        Attribution of each brain voxel, where it is still at hand.
    """

    outcome: str
    level: str | None
    units: str
    output: float
    baseline: float
    gap: float
    points: int
    pooling: HeadPooling
    parcels: tuple[ParcelShare, ...]
    windows: tuple[WindowShare, ...]
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which weights spoke, and what to know of them: stands in every sidecar and report."""

    name: str
    preset: str
    sha256: str
    trained: bool
    contract: Contract
    notices: tuple[Notice, ...] = ()
    heads: tuple[Head, ...] = ()

    @property
    def reads_views(self) -> bool:
        """Whether a head weighs views itself, so that a person's mean embedding won't do."""
        return any(head.pooling == "attention" for head in self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How a run that was found has ended.

    ``state`` is ``done`` in this call, ``current`` where an earlier call had done it, or
    ``refused``. ``spent`` holds each step's seconds in this call, ``peak_mib`` the most memory
    (MiB) that its processes held.
    """

    run: str
    state: Literal["done", "current", "refused"]
    outputs: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    refusal: Refusal | None = None
    spent: tuple[tuple[str, float], ...] = ()
    peak_mib: float = 0.0

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> RunStatus:
        return cls(run=refusal.run, state="refused", refusal=refusal)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.spent)


def decide_exit(refusals: Sequence[Refusal], runs: int) -> int:
    """Return the one exit code for all ``runs``, of which some were refused.

    Without the content of a single BOLD file it is that of missing input.
    """
    codes = {refusal.code for refusal in refusals}
    if len(refusals) == runs and codes == {"missing-content"}:
        return Exit.NO_INPUT
    return worst(refusal.exit_code for refusal in refusals)
