"""Every error that SlimBrain raises.

::

    SlimBrainError
    ├── RunRefused    one run can't be used; the others go on
    └── CallRefused   the whole call can't go on

Each carries a reason code from `REASONS`, and with it an exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes, after BSD ``sysexits.h``."""

    DONE = 0
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    FAULT = 70
    CANNOT_WRITE = 73
    TRY_AGAIN = 75
    CONFIGURATION = 78


class Scope(Enum):
    """What a reason stops."""

    RUN = "run refused"
    WARNING = "run done, with a warning"
    CALL = "call refused"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was refused, or what a warning is about."""

    scope: Scope
    exit_code: Exit
    meaning: str


def _run(meaning: str, exit_code: Exit = Exit.DATA) -> Reason:
    return Reason(Scope.RUN, exit_code, meaning)


def _warning(meaning: str) -> Reason:
    return Reason(Scope.WARNING, Exit.DONE, meaning)


def _call(exit_code: Exit, meaning: str) -> Reason:
    return Reason(Scope.CALL, exit_code, meaning)


REASONS: Mapping[str, Reason] = {
    "too-short": _run("fewer seconds than one window after dummy scans"),
    "no-space": _run("no BOLD series in a space that leads to the model grid"),
    "minimal-level": _run("transforms and references, but no preprocessed BOLD series"),
    "echo-only": _run("single echoes without their combination"),
    "no-mask": _run("no brain mask on the BOLD's grid"),
    "mask-mismatch": _run("the mask has another shape or lies elsewhere than the BOLD"),
    "empty-mask": _run("no voxel of the mask is over 0.5"),
    # Also the code of a warning, between 50 and 85 %.
    "low-coverage": _run("the mask covers too little of the template's brain"),
    "missing-content": _run("a link whose content is not there"),
    "denied": _run("no permission to read"),
    "unreadable": _run("not a NIfTI file, or not gzip in spite of its name"),
    "truncated": _run("the file ends before the size its header states"),
    "still-written": _run("the input changes while it is read", Exit.TRY_AGAIN),
    "not-4d": _run("not a series of volumes"),
    "nan-volumes": _run("volumes without finite data"),
    "flat": _run("no voxel changes over time"),
    "no-geometry": _run("the header does not say where the voxels lie"),
    "bad-affine": _run("the header's affine is singular, non-finite or contradicts itself"),
    "no-tr": _run("nothing states the repetition time"),
    "tr-conflict": _run("two sources state different repetition times"),
    "tr-range": _run("the repetition time is not between 0.1 and 10 s"),
    "irregular-timing": _run("the volumes are not equally spaced in time"),
    "bad-sidecar": _run("the BOLD's JSON can't be used"),
    "bad-confounds": _run("the confounds table does not fit the run"),
    "ambiguous": _run("two files claim the same role"),
    "transform-missing": _run("a transform that the source space needs is not there"),
    "transform-bad": _run("a transform file is not of a known form"),
    "prepared-bad": _run("a prepared run is damaged"),
    "output-bad": _run("what was written of a run or a person is damaged"),
    "other-contract": _run("prepared for another model grid"),
    # Also ends a training.
    "out-of-memory": _run("the run needed more memory than there is"),
    "worker-killed": _run("the process that worked on the run was killed"),
    "timeout": _run("the process that worked on the run stood still"),
    "locked": _run("another process works on this participant", Exit.TRY_AGAIN),
    "no-template": _run("a TemplateFlow transform is not at hand", Exit.UNAVAILABLE),
    "internal": _run("a fault of SlimBrain; see the crash file", Exit.FAULT),
    "guard-relaxed": _warning(
        "too few windows pass the motion guard; the least-moving ones refill"
    ),
    "unguarded": _warning("windows were selected without the motion guard"),
    "no-confounds": _warning("no confounds table: motion is unknown"),
    "confounds-unreadable": _warning("the confounds table has no motion column by a known name"),
    "constant-voxels": _warning("voxels inside the mask never change; they are set to zero"),
    "non-finite": _warning("single non-finite values were replaced by the voxel's mean"),
    "not-ranked": _warning("too few windows to compare: nothing was ranked"),
    "moved-to-cpu": _warning("the GPU is too small or too full; the CPU has done its work"),
    "no-covariance": _warning("which places move together can't be told of this run"),
    "seen-in-training": _warning("the model's weights were trained on this run, or chosen by it"),
    "tr-from-header": _warning("the repetition time comes from the NIfTI header alone"),
    "tr-disagrees": _warning("sidecar and header disagree on TR; the sidecar's is used"),
    "several-grids": _warning("one of several grids of the space is used"),
    "several-spellings": _warning("run-1 and run-01 are both there; both are done"),
    "mask-from-series": _warning("there is no mask: the brain is where the series is not zero"),
    "mask-other-grid": _warning("the mask was brought over from another grid or space"),
    "voxel-size": _warning("voxel edges over 6 mm or under 0.5 mm"),
    "known-fault": _warning("the derivatives come from a release with a published fault"),
    "no-description": _warning("no dataset_description.json: who made the input is unknown"),
    "filter-ignored": _warning("a block of the filter file that has no use here"),
    "denoised-source": _warning("the series was denoised; the model expects minimal preprocessing"),
    "caution": _warning("whoever made the model package warns of something"),
    "assumed-input": _warning("how the weights' training data were prepared is assumed, not known"),
    "template-assumed": _warning("another MNI152 template is taken for the model's own"),
    "mirrored": _warning("shorter than one window, it goes on as its mirror image in time"),
    "other-deletion": _warning("background is left out in another way than in the training"),
    "several-models": _call(Exit.DATA, "embeddings of several models or settings in one folder"),
    "raw-dataset": _call(Exit.NO_INPUT, "the input is a raw dataset, not derivatives"),
    "no-participant": _call(Exit.NO_INPUT, "a participant is not in the input"),
    "no-bold": _call(Exit.NO_INPUT, "there is no BOLD series at all"),
    "no-runs": _call(Exit.NO_INPUT, "the filters leave no run, or none was embedded yet"),
    "no-input": _call(Exit.NO_INPUT, "the input folder is not there"),
    "usage": _call(Exit.USAGE, "the command line can't be understood"),
    "same-folder": _call(Exit.USAGE, "the output would lie at, above or among the inputs"),
    "work-in-input": _call(Exit.USAGE, "the work folder would lie inside the input"),
    "not-writable": _call(Exit.CANNOT_WRITE, "the output can't be written"),
    "disk-full": _call(Exit.CANNOT_WRITE, "no space left"),
    "device-missing": _call(Exit.UNAVAILABLE, "the device asked for does not answer"),
    "process-killed": _call(Exit.UNAVAILABLE, "a process that simulated people was killed"),
    "extra-missing": _call(Exit.UNAVAILABLE, "an optional package is not installed"),
    "cohort-bad": _call(Exit.DATA, "series, atlas and phenotypes do not fit together"),
    "template-missing": _call(Exit.UNAVAILABLE, "a template of TemplateFlow's is not at hand"),
    "atlas-missing": _call(Exit.UNAVAILABLE, "an atlas is not at hand"),
    "atlas-bad": _call(Exit.DATA, "an atlas can't be used"),
    "log-bad": _call(Exit.CONFIGURATION, "the log of a training is damaged or not understood"),
    "too-few": _call(Exit.DATA, "too few people to train on or to judge by"),
    "no-outcome": _call(Exit.DATA, "the table of people lacks an outcome or can't be used"),
    "outcome-constant": _call(Exit.DATA, "an outcome is the same for everybody"),
    "leak": _call(Exit.DATA, "people to judge by were trained on, or stand on both sides"),
    "corpus-changed": _call(Exit.DATA, "the runs to train on are not those of the checkpoint"),
    "loader-died": _call(Exit.UNAVAILABLE, "a process that read windows was killed"),
    "rendezvous": _call(Exit.UNAVAILABLE, "the processes of a training do not find one another"),
    "process-failed": _call(Exit.UNAVAILABLE, "another process of the training has failed"),
    "collapsed": _call(Exit.DATA, "the monitors say that the training has collapsed"),
    "diverged": _call(Exit.DATA, "a loss or a gradient is not finite"),
    "checkpoint-bad": _call(Exit.DATA, "the checkpoint is damaged or not understood"),
    "settings-changed": _call(Exit.CONFIGURATION, "the checkpoint was made with other settings"),
    "stopped": _call(Exit.TRY_AGAIN, "stopped by a signal; start again to go on"),
    "package-missing": _call(Exit.CONFIGURATION, "the model package is not there"),
    "package-bad": _call(Exit.CONFIGURATION, "the model package is damaged or not understood"),
    "no-head": _call(
        Exit.CONFIGURATION, "predictions are to be explained, but the model package has no head"
    ),
    "jobs-bad": _call(Exit.NO_INPUT, "a folder of jobs is not there or not understood"),
    "slurm-missing": _call(Exit.UNAVAILABLE, "Slurm does not answer"),
    "settings-bad": _call(Exit.CONFIGURATION, "the settings file can't be used"),
}

_WORST_FIRST = (
    Exit.TRY_AGAIN,
    Exit.CANNOT_WRITE,
    Exit.FAULT,
    Exit.UNAVAILABLE,
    Exit.DATA,
    Exit.NO_INPUT,
    Exit.CONFIGURATION,
    Exit.USAGE,
)


def worst(codes: Iterable[int]) -> int:
    """Return the one exit code that stands for several runs."""
    seen = set(codes)
    return next((code for code in _WORST_FIRST if code in seen), Exit.DONE)


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural but for one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class SlimBrainError(Exception):
    """A refusal for the reader: where, what was expected, what was found, what to do.

    Parameters
    ----------
    reason : str
        A key of `REASONS`.
    file : str or None
        The file or folder at fault; inputs relative to the dataset.
    expected, found, advice : str
        Half-sentences without a full stop.
    """

    def __init__(
        self, reason: str, *, file: object = None, expected: str, found: str, advice: str
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = None if file is None else str(file)
        self.expected = expected
        self.found = found
        self.advice = advice

    @property
    def exit_code(self) -> Exit:
        return REASONS[self.reason].exit_code

    def __str__(self) -> str:
        place = f"{self.file}: " if self.file else ""
        return (
            f"[{self.reason}] {place}expected {self.expected}; found {self.found}. "
            f"What to do: {self.advice}."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.reason, self._parts())

    def _parts(self) -> dict[str, str | None]:
        return {
            "file": self.file,
            "expected": self.expected,
            "found": self.found,
            "advice": self.advice,
        }


class RunRefused(SlimBrainError):
    """One run can't be used; the others go on."""


class CallRefused(SlimBrainError):
    """The whole call can't go on."""


def _rebuild(cls: type[SlimBrainError], reason: str, parts: dict[str, Any]) -> SlimBrainError:
    return cls(reason, **parts)
