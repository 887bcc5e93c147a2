"""The BOLD series of a run: which of its files may be one, and why none is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slimbrain_app.bids.derivatives import Description
from slimbrain_app.bids.filters import ABSENT, PRESENT, Condition, Filter
from slimbrain_app.bids.folders import File, Participant
from slimbrain_app.bids.headers import Header, reading
from slimbrain_app.bids.runs import RunFiles
from slimbrain_app.bids.spaces import NATIVE, Wish, no_space
from slimbrain_app.errors import RunRefused
from slimbrain_app.records import Notice


def list_series(
    run: RunFiles,
    participant: Participant,
    wanted: Filter,
    description: Description,
    wish: Wish | None,
) -> tuple[File, ...]:
    """List the volume series of a run that may be used, all with the same descriptor.

    Raises
    ------
    RunRefused
        ``minimal-level``, ``echo-only``, or ``no-space`` with what is there instead.
    """
    if not run.bold:
        raise _minimal_level(run, participant)
    bold = [file for file in run.bold if wanted.admits_bold(file.name)]
    whole = [file for file in bold if _is_whole(file)]
    for descriptor in _list_descriptors(wanted, description):
        fitting = tuple(file for file in whole if descriptor.admits_name(file.name))
        if fitting:
            return _require_wish(fitting, wish, run, participant)
    if any(_is_echo(file) for file in bold) and all(file.is_volume for file in bold):
        raise _echo_only(run, participant)
    expected = " or ".join(str(descriptor) for descriptor in _list_descriptors(wanted, description))
    raise no_space(
        run, participant, f"{_describe(bold)}; a volume series with {expected} is needed"
    )


def require_every_volume(
    bold: File, header: Header, run: RunFiles, participant: Participant
) -> tuple[Notice, ...]:
    """Tell that a series was denoised; refuse one from which frames were cut: ``irregular-timing``.

    xcp_d writes a row of outliers for each volume it was given.
    """
    if not is_denoised(bold):
        return ()
    for table in (file.path for file in run.files if _is_outliers(file)):
        with reading(table, participant.show(table)):
            rows = len(table.read_bytes().splitlines()) - 1
        if rows != header.shape[3]:
            raise RunRefused(
                "irregular-timing",
                file=participant.show(bold.path),
                expected=f"all {rows} volumes of the run, equally spaced",
                found=f"{header.shape[3]} volumes: censored ones were cut out",
                advice="start from fMRIPrep's own output, or run xcp_d with "
                "--output-type interpolated",
            )
    message = "the series was denoised by xcp_d; the model expects minimal preprocessing"
    return (Notice(code="denoised-source", message=message, file=participant.show(bold.path)),)


def is_denoised(bold: File) -> bool:
    """Whether xcp_d has worked on a series."""
    return bold.name.get("desc") == "denoised"


def _is_whole(file: File) -> bool:
    """Whether a file is the run's series: no surface, no single echo, no phase."""
    name = file.name
    return (
        file.is_volume
        and name.get("echo") is None
        and name.get("hemi") is None
        and name.get("part") in (None, "mag")
    )


def _is_echo(file: File) -> bool:
    return file.name.get("echo") is not None


def _is_outliers(file: File) -> bool:
    return file.name.suffix == "outliers" and file.name.extension == ".tsv"


def _list_descriptors(wanted: Filter, description: Description) -> tuple[Condition, ...]:
    """List the descriptors that are taken, the preferred first."""
    asked = wanted.allowed("desc")
    if asked is None:
        denoised = ("denoised",) if description.made_by_xcp_d else ()
        return tuple(Condition("desc", (value,)) for value in ("preproc", *denoised))
    if asked == ABSENT or PRESENT in asked:
        return (Condition("desc", asked),)
    return tuple(Condition("desc", (value,)) for value in asked)


def _require_wish(
    files: tuple[File, ...], wish: Wish | None, run: RunFiles, participant: Participant
) -> tuple[File, ...]:
    if wish is None:
        return files
    fitting = tuple(file for file in files if wish.fits(file.name))
    if not fitting:
        raise no_space(run, participant, f"{_describe(files)}, not what --space asks for")
    return fitting


def _describe(files: Iterable[File]) -> str:
    """Name spaces, descriptors and kinds of files."""
    return ", ".join(sorted({_describe_one(file) for file in files})) or "nothing"


def _describe_one(file: File) -> str:
    keys = ("cohort", "res", "den", "echo", "desc")
    parts = [f"{key}-{file.name.get(key)}" for key in keys if file.name.get(key) is not None]
    words = " ".join([file.name.get("space") or NATIVE, *parts])
    return words if file.is_volume else f"{words} ({file.name.extension.lstrip('.')})"


def _minimal_level(run: RunFiles, participant: Participant) -> RunRefused:
    file = participant.show(run.files[0].path)
    return RunRefused(
        "minimal-level",
        file=Path(file).parent.as_posix(),
        expected=f"a preprocessed series {run.name}_[space-...]_desc-preproc_bold.nii.gz",
        found=f"no BOLD file, only others of the run, such as {Path(file).name}",
        advice="run fMRIPrep again at --level full with this folder as --derivatives",
    )


def _echo_only(run: RunFiles, participant: Participant) -> RunRefused:
    return RunRefused(
        "echo-only",
        file=participant.show(run.bold[0].path),
        expected="the combination of all echoes",
        found="single echoes only",
        advice="run fMRIPrep again without --echo-idx, at least in version 1.2.4",
    )
