"""One self-contained HTML page per participant."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbrain_app.bids.sidecars import FLAGS
from slimbrain_app.errors import REASONS
from slimbrain_app.files import write_text
from slimbrain_app.records import Prediction, Refusal
from slimbrain_app.report.contents import ReportContext, ReportedRun
from slimbrain_app.settings import write_settings

if TYPE_CHECKING:
    from jinja2 import Environment

# Mail servers stop at 5 MB; a megabyte is left for the text.
INLINE_BYTES = 4_000_000

KINDS = ("coverage", "windows", "embedding", "attribution")
# Parcels that the page lists for each map.
TOP_PARCELS = 10

RUNGS = {
    0: "already in the model's space",
    1: "from native space, by the participant's own transforms",
    2: "from T1w space, by the participant's own transform",
    3: "from another template, by the participant's own transforms",
    4: "from another template, by TemplateFlow's transform",
}
ORIGINS = {
    "command line": "stated on the command line",
    "sidecar": "from the file's own sidecar",
    "inherited sidecar": "from an inherited sidecar",
    "other grid": "from the sidecar of another grid of the run",
    "raw": "from the raw dataset",
    "header": "from the NIfTI header",
}

_PART = r"[^\s/'\"<>|,;()\[\]]"
_ABSOLUTE_PATH = re.compile(rf"(?:file:/+|(?<![\w.:/…-])/)(?:{_PART}+/)*({_PART}+)/?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A figure of a run. ``svg`` is empty where the page links to ``file`` instead."""

    kind: str
    file: str
    svg: str


def write_report(
    path: Path,
    participant: str,
    runs: Sequence[ReportedRun],
    refused: Sequence[Refusal],
    context: ReportContext,
    predictions: Sequence[Prediction] = (),
) -> None:
    """Write a participant's page to ``path``, and figures to ``<participant>/figures/`` beside it.

    ``participant`` has its prefix, ``sub-01``; ``predictions`` are made from all runs together. The
    figures stand in the page as well, so that it can be mailed; where it would become too long for
    that, the last runs' figures are linked. The page tells no folder of this machine.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    output = path.parent
    folder = Path(participant) / "figures"
    drawings = {run.name: list(_draw_run(run, context, output, folder)) for run in runs}
    page = render_page(participant, runs, refused, context, _fit_in(drawings), predictions)
    write_text(path, page)


def render_page(
    participant: str,
    runs: Sequence[ReportedRun],
    refused: Sequence[Refusal],
    context: ReportContext,
    drawings: Mapping[str, Sequence[Drawing]],
    predictions: Sequence[Prediction] = (),
) -> str:
    """Return the page's HTML; ``drawings`` are by run name."""
    return (
        make_environment()
        .get_template("participant.html.jinja")
        .render(
            participant=participant,
            runs=runs,
            refused=group_by_code(refused),
            refusals=refused,
            context=context,
            command=shlex.join(context.command),
            settings=write_settings(context.settings),
            drawings=drawings,
            predictions=predictions,
            seen=any(notice.code == "seen-in-training" for run in runs for notice in run.notices),
            apart=_list_apart(participant, runs, predictions),
            units={head.outcome: head.units for head in context.model.heads},
            flags=FLAGS,
            top_parcels=TOP_PARCELS,
            reasons=REASONS,
            rungs=RUNGS,
            origins=ORIGINS,
        )
    )


def _list_apart(
    participant: str, runs: Sequence[ReportedRun], predictions: Sequence[Prediction]
) -> list[str]:
    """Return who, participant or run, is unlike the people that heads were fitted to."""
    told = {participant: predictions, **{run.name: run.predictions for run in runs}}
    return [
        name
        for name, several in told.items()
        if any("out-of-distribution" in prediction.flags for prediction in several)
    ]


@cache  # With what it has compiled, which takes longer than to fill it in.
def make_environment() -> Environment:
    """Return what renders the templates of this room: all is escaped, and no path is told."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("slimbrain_app", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=hide_paths,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def hide_paths(value: Any) -> Any:
    """Shorten absolute paths in a text to their last part; other values stay as they are.

    >>> hide_paths("no file /home/jane/data/sub-01_bold.nii.gz")
    'no file …/sub-01_bold.nii.gz'
    """
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _ABSOLUTE_PATH.sub(r"…/\1", value)


def _draw_run(
    run: ReportedRun, context: ReportContext, output: Path, folder: Path
) -> Iterator[Drawing]:
    for kind in KINDS:
        file = folder / f"{run.name}_desc-slimbrain_{kind}.svg"
        if kind == "attribution" and not run.explanations:
            continue
        if run.done_before and (output / file).exists():
            svg = (output / file).read_text(encoding="utf-8")
        else:
            svg = _draw(kind, run, context)
            if not svg:
                continue
            write_text(output / file, svg)
        yield Drawing(kind=kind, file=file.as_posix(), svg=svg)


def _draw(kind: str, run: ReportedRun, context: ReportContext) -> str:
    from slimbrain_app.report.figures import (
        draw_attribution,
        draw_coverage,
        draw_embedding,
        draw_windows,
    )

    if kind == "windows":
        return draw_windows(run, context.settings.rank.fd_threshold)
    if kind == "embedding":
        return draw_embedding(run)
    if run.mean_image is None or run.mask is None:
        return ""
    if kind == "attribution":
        return draw_attribution(run.name, run.explanations, run.mask, context.model.contract)
    return draw_coverage(run.name, run.mean_image, run.mask, context.model.contract)


def _fit_in(drawings: Mapping[str, Iterable[Drawing]]) -> dict[str, list[Drawing]]:
    room = INLINE_BYTES
    fitted = defaultdict(list)
    for name, several in drawings.items():
        for drawing in several:
            fits = len(drawing.svg) <= room
            room -= len(drawing.svg) if fits else 0
            fitted[name].append(drawing if fits else replace(drawing, svg=""))
    return fitted


def group_by_code(refused: Iterable[Refusal]) -> dict[str, list[Refusal]]:
    """Return refusals by their reason, in the order in which reasons come up."""
    groups = defaultdict(list)
    for refusal in refused:
        groups[refusal.code].append(refusal)
    return dict(groups)
