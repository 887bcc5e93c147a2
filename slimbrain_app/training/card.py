"""The card of a trained package: what its weights come from, and what they are not for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimbrain_app.model.monitors import Reading
from slimbrain_app.model.packages import Config
from slimbrain_app.settings import PretrainSettings, flatten_settings
from slimbrain_app.training.design import make_design
from slimbrain_app.training.log import Alarm, Event, Extract, Probe, Start, Step, Validation, pick

# What a reader looks for first, whether or not it is the default.
_IMPORTANT = (
    "objective.name",
    "rank.mode",
    "rank.windows",
    "train.passes",
    "train.rate",
    "hide.visible_times",
    "hide.visible_places",
)
# How the computer worked, which runs and under which name: no part of the recipe.
_SILENT = ("package_name", "select", "pace", "compute", "preset", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A dataset that was trained on. ``licence`` is as its description states it, if it does."""

    name: str
    people: int
    runs: int
    hours: float
    licence: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a card tells beside the package's configuration.

    Attributes
    ----------
    sources : sequence of Source
        Training and validation together.
    validation_people : int
        How many of the people were kept out of training, to watch it by.
    settings : PretrainSettings
    events : sequence of Event
        The training's log.
    licence : str
        Of the weights.
    software : mapping of str to str
        Package and version.
    """

    sources: Sequence[Source]
    validation_people: int
    settings: PretrainSettings
    events: Sequence[Event]
    licence: str
    software: Mapping[str, str]


def write_card(name: str, config: Config, facts: Facts) -> str:
    """Return the card of a trained package as Markdown."""
    parts = (
        f"# {name}\n\n{_introduce(config, facts)}",
        _describe_input(config, facts),
        f"## Data\n\n{_describe_data(facts)}",
        f"## Recipe\n\n{_describe_recipe(facts)}",
        f"## How the training went\n\n{_describe_course(facts.events)}",
        f"## What can be read from its embeddings\n\n{_describe_probes(facts.events)}",
        _LIMITS,
        f"## Made with\n\n{_list_software(facts.software)}",
    )
    return "\n\n".join(parts) + "\n"


_LIMITS = """## What it is for

Embeddings of fMRI runs, to be compared and modelled for research; the starting point of further
training.

## What it is not for

Decisions about anyone's health. Findings about the people it was trained on, as if it had never
seen them: `seen.json` tells their runs, and SlimBrain warns where it meets one. People unlike
those, scanners unlike those, and tasks that none of them did are untried. It may tell sites,
scanners and motion apart better than people: check that before you believe a result."""


def _introduce(config: Config, facts: Facts) -> str:
    ways = {"jepa": "latent prediction (JEPA)", "mae": "masked reconstruction (MAE)"}
    way = ways[facts.settings.objective.name]
    people = sum(source.people for source in facts.sources)
    hours = sum(source.hours for source in facts.sources)
    runs = sum(source.runs for source in facts.sources)
    return (
        f"Preset `{config.preset}`, pretrained by {way} on {_count(runs, 'run', 'runs')} of "
        f"{_count(people, 'person', 'people')}, {hours:.1f} hours. No label was used."
    )


def _describe_input(config: Config, facts: Facts) -> str:
    contract, encoder = config.contract, config.encoder
    extractor = "trained on the same runs" if config.extractor else "none: ranking without weights"
    voxels = " x ".join(map(str, contract.shape))
    return _table(
        ("", ""),
        (
            ("time", f"{contract.frames} frames of {contract.frame_time:g} s"),
            ("space", f"{contract.space}, {voxels} voxels of {contract.voxel_size:g} mm"),
            ("channels", ", ".join(contract.channels)),
            ("embedding", f"{encoder.embedding_width} values"),
            ("temporal extractor", extractor),
            ("seed", str(facts.settings.seed)),
            ("licence of the weights", facts.licence),
        ),
    )


def _describe_data(facts: Facts) -> str:
    table = _table(
        ("dataset", "people", "runs", "hours", "licence"),
        (
            (
                source.name,
                str(source.people),
                str(source.runs),
                f"{source.hours:.1f}",
                source.licence or "not stated",
            )
            for source in facts.sources
        ),
    )
    kept_out = _count(facts.validation_people, "of them was", "of them were")
    return f"{table}\n\n{kept_out} kept out of training, with all runs, to watch it by."


def _describe_recipe(facts: Facts) -> str:
    chosen = dict(flatten_settings(facts.settings))
    default = dict(flatten_settings(PretrainSettings()))
    told = {
        key: value
        for key, value in chosen.items()
        if key.split(".")[0] not in _SILENT and (key in _IMPORTANT or value != default.get(key))
    }
    design = make_design(facts.settings)
    told |= {"train.rate": design.rate, "objective.momentum": design.momentum}
    for start in pick(facts.events, Start):
        told |= {"train.batch": start.batch, "train.windows_per_run": start.windows_per_run}
    rows = ((f"`{key}`", _show(value)) for key, value in told.items())
    return f"{_table(('setting', 'value'), rows)}\n\nAll other settings have their defaults."


def _describe_course(events: Sequence[Event]) -> str:
    rows = [*_last_losses(events), *_last_monitors(events), *_last_extract(events)]
    alarms = [f"- after step {alarm.step}: {alarm.message}" for alarm in pick(events, Alarm)]
    table = _table(("at the end", ""), rows) if rows else "Nothing was logged."
    heading = "Alarms of the monitors:\n\n" if alarms else "No monitor raised an alarm."
    return f"{table}\n\n{heading}" + "\n".join(alarms)


def _last_losses(events: Sequence[Event]) -> list[tuple[str, str]]:
    rows = []
    if steps := pick(events, Step):
        rows += [("steps", str(steps[-1].step)), ("loss", f"{steps[-1].loss:.4g}")]
    if validations := pick(events, Validation):
        last = validations[-1]
        rows += [
            ("loss on people kept out", f"{last.loss:.4g}"),
            ("the same over a constant's", f"{last.over_constant:.3g}"),
            ("the same over that of position alone", f"{last.over_position:.3g}"),
        ]
    return rows


def _last_monitors(events: Sequence[Event]) -> list[tuple[str, str]]:
    readings = pick(events, Reading)
    if not readings:
        return []
    last = readings[-1]
    return [
        ("loss over a constant's", f"{last.over_constant:.3g}"),
        ("loss over that of position alone", f"{last.over_position:.3g}"),
        ("effective rank, cells and windows", f"{last.cell_rank:.1f}, {last.view_rank:.1f}"),
        ("median spread", f"{last.median_spread:.3g}"),
    ]


def _last_extract(events: Sequence[Event]) -> list[tuple[str, str]]:
    passes = pick(events, Extract)
    if not passes or not passes[-1].alone > 0:
        return []
    gain = 1 - passes[-1].validation / passes[-1].alone
    return [("temporal extractor: what a run tells of its hidden cells", f"{gain:.1%}")]


def _describe_probes(events: Sequence[Event]) -> str:
    # The last of each name.
    probes = {probe.name: probe for probe in pick(events, Probe)}
    if not probes:
        return "Nothing was tried."
    rows = (
        (
            probe.name,
            probe.metric,
            f"{probe.score:.3f}",
            f"{probe.lower:.3f} to {probe.upper:.3f}",
            f"{probe.chance:.3f}",
        )
        for probe in probes.values()
    )
    table = _table(("what", "score", "reached", "95 % interval", "chance"), rows)
    return f"By a linear model, during the training:\n\n{table}"


def _list_software(software: Mapping[str, str]) -> str:
    return "\n".join(f"- {name} {version}" for name, version in software.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_show, value)) if isinstance(value, tuple) else str(value)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
