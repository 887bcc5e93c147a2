"""Settings, frozen: defaults, then a TOML file, then the command line.

Each verb has a group of its own. What stands here under `Select`, `Output`, `Compute` and `Pace`
never changes a number; everything else does and is part of a ``fingerprint``.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, Predicate

from slimbrain_app.errors import CallRefused

Ranking = Literal["mutual", "representative", "novelty", "random", "uniform", "first"]
Overwrite = Literal["never", "changed", "always"]
Preset = Literal["tiny", "base", "official"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Share = Annotated[float, Gt(0), Lt(1)]

_STRICT = {"extra": "forbid", "allow_inf_nan": False}


def _is_label(text: str) -> bool:
    """Whether a text can be a label of BIDS, with or without its key before it, and no path."""
    bare = re.sub("^(sub|ses|task|run)-", "", text)
    return bare.replace("+", "").isalnum() and len(bare) < 200


Label = Annotated[str, Predicate(_is_label)]


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which runs: every filter must hold; an empty one holds for all.

    ``filters`` maps a pybids entity name to the values allowed; no value means that the entity
    must be absent, ``"*"`` that it must be present.
    """

    __pydantic_config__ = _STRICT

    participants: tuple[Label, ...] = ()
    sessions: tuple[Label, ...] = ()
    tasks: tuple[Label, ...] = ()
    runs: tuple[Label, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """How a run comes onto the model grid. TR in s."""

    __pydantic_config__ = _STRICT

    space: str | None = None
    tr: Annotated[float, Ge(0.1), Le(10)] | None = None
    dummy_scans: Annotated[int, Ge(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Rank:
    """How windows are ordered and how many are selected. Framewise displacement in mm."""

    __pydantic_config__ = _STRICT

    mode: Ranking = "mutual"
    windows: Annotated[int, Gt(0)] | Literal["all"] = 8
    fd_threshold: Annotated[float, Ge(0)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Encode:
    """How selected windows become embeddings."""

    __pydantic_config__ = _STRICT

    views: Annotated[int, Gt(0)] = 1


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is written besides the run's embedding, and what is written anew."""

    __pydantic_config__ = _STRICT

    save_views: bool = False
    save_prepared: bool = False
    attribution: bool = False
    overwrite: Overwrite = "changed"


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and with how much. Memory in GB; absent limits come from the job's own."""

    __pydantic_config__ = _STRICT

    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps"] = "auto"
    nprocs: Annotated[int, Gt(0)] | None = None
    omp_nthreads: Annotated[int, Gt(0)] | None = None
    mem_gb: Annotated[float, Gt(0)] | None = None
    stop_on_first_crash: bool = False


@dataclass(frozen=True, kw_only=True)
class ParticipantSettings:
    """Everything that a participant-level call can be told."""

    __pydantic_config__ = _STRICT

    model: str = "tiny"
    seed: Annotated[int, Ge(0)] = 0
    select: Select = field(default_factory=Select)
    prepare: Prepare = field(default_factory=Prepare)
    rank: Rank = field(default_factory=Rank)
    encode: Encode = field(default_factory=Encode)
    output: Output = field(default_factory=Output)
    compute: Compute = field(default_factory=Compute)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the settings that change a result."""
        return _digest(
            {
                "seed": self.seed,
                "prepare": asdict(self.prepare),
                "rank": asdict(self.rank),
                "encode": asdict(self.encode),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the new package will want as input, where it isn't the preset's own. Time in s."""

    __pydantic_config__ = _STRICT

    frame_time: Annotated[float, Gt(0)] | None = None
    channels: tuple[Literal["voxel", "global"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """``validation`` is the share of people kept out of training, to watch it by."""

    __pydantic_config__ = _STRICT

    validation: Annotated[float, Ge(0), Lt(1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class Extract:
    """How the temporal extractor is trained; without a pass there will be none."""

    __pydantic_config__ = _STRICT

    passes: Annotated[int, Ge(0)] = 20
    rate: Annotated[float, Gt(0)] = 1e-3


@dataclass(frozen=True, kw_only=True)
class Hide:
    """How much of a window is hidden and in which form.

    Attributes
    ----------
    visible_times, visible_places : float
        Shares; rounded to whole times and whole places with brain, then met exactly.
    cuboids : int
        At most so many cuboids of places are hidden.
    shortest_edge, longest_edge : int
        Of a cuboid, in cells.
    targets : int
        Cells to predict, at most, of each kind in a view: they bound the predictor's cost.
    """

    __pydantic_config__ = _STRICT

    visible_times: Share = 0.6
    visible_places: Share = 0.5
    cuboids: Annotated[int, Gt(0)] = 4
    shortest_edge: Annotated[int, Gt(0)] = 2
    longest_edge: Annotated[int, Gt(0)] = 4
    targets: Annotated[int, Gt(0)] = 256


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the encoder learns by.

    Attributes
    ----------
    name : {"jepa", "mae"}
    weights : tuple of float
        Of the mean losses of cross-time, cross-location and double-cross targets.
    momentum, last_momentum : float
        How much of the target encoder stays at the first and at the last step (JEPA); the first
        is the preset's own if None.
    decorrelation : float
        Weight of correlations between features of visible cells, beside the losses (JEPA).
    """

    __pydantic_config__ = _STRICT

    name: Literal["jepa", "mae"] = "jepa"
    weights: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)], Annotated[float, Ge(0)]] = (
        1 / 3,
        1 / 3,
        1 / 3,
    )
    momentum: Annotated[float, Ge(0), Le(1)] | None = None
    last_momentum: Annotated[float, Ge(0), Le(1)] = 1.0
    decorrelation: Annotated[float, Ge(0)] = 0.0005


@dataclass(frozen=True, kw_only=True)
class Train:
    """How the encoder is trained.

    Attributes
    ----------
    passes : int
        Over all runs.
    windows_per_run : int or None
        Drawn from a run's selected windows in each pass; the preset's own number if None.
    batch : int or None
        Windows per step, over all processes; the preset's own number if None.
    rate, last_rate : float
        Highest learning rate at 64 windows per step, in proportion at others, the preset's own if
        None; and the last one.
    warm_up : float
        Share of all steps.
    weight_decay, clip : float
        Of the weights but biases, norms and positions; of the gradient's norm.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Of the encoder's products; weights stay in float32.
    """

    __pydantic_config__ = _STRICT

    passes: Annotated[int, Gt(0)] = 40
    windows_per_run: Annotated[int, Gt(0)] | None = None
    batch: Annotated[int, Gt(0)] | None = None
    rate: Annotated[float, Gt(0)] | None = None
    last_rate: Annotated[float, Ge(0)] = 1e-6
    warm_up: Annotated[float, Ge(0), Lt(1)] = 0.05
    weight_decay: Annotated[float, Ge(0)] = 0.05
    clip: Annotated[float, Gt(0)] = 1.0
    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a training costs on its way, not what comes of it but for rounding.

    Attributes
    ----------
    at_once : int or None
        Windows that a process holds at once; None for as many as memory allows.
    recompute : bool or None
        Compute activations again on the way back instead of keeping them; None for where memory
        asks for it.
    workers : int or None
        Processes that read windows, for each that trains; None for what the processors allow.
    checkpoint_minutes : float
        Between two checkpoints.
    tensorboard : bool
    """

    __pydantic_config__ = _STRICT

    at_once: Annotated[int, Gt(0)] | None = None
    recompute: bool | None = None
    workers: Annotated[int, Ge(0)] | None = None
    checkpoint_minutes: Annotated[float, Ge(0)] = 10.0
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainPace(Pace):
    """Likewise, and what a pretraining tells.

    Attributes
    ----------
    probe_passes : int
        A probe after so many passes; 0 for none.
    stop_on_collapse : bool
        End at the first alarm of the monitors.
    """

    __pydantic_config__ = _STRICT

    probe_passes: Annotated[int, Ge(0)] = 5
    stop_on_collapse: bool = False


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a folder, and of nothing else."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything that a pretraining can be told. ``package_name`` is the preset's if None."""

    __pydantic_config__ = _STRICT

    package_name: Annotated[str, Predicate(_is_plain)] | None = None
    preset: Preset = "tiny"
    seed: Annotated[int, Ge(0)] = 0
    select: Select = field(default_factory=Select)
    prepare: Prepare = field(default_factory=Prepare)
    rank: Rank = field(default_factory=Rank)
    contract: Contract = field(default_factory=Contract)
    corpus: Corpus = field(default_factory=Corpus)
    extract: Extract = field(default_factory=Extract)
    hide: Hide = field(default_factory=Hide)
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)
    pace: PretrainPace = field(default_factory=PretrainPace)
    compute: Compute = field(default_factory=Compute)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the settings that change a result."""
        silent = {"package_name", "select", "pace", "compute"}
        return _digest({k: value for k, value in asdict(self).items() if k not in silent})


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What is predicted of whom.

    Attributes
    ----------
    outcomes : tuple of str
        Columns of ``participants.tsv``, or of ``phenotype``.
    phenotype : str or None
        Another table of participants.
    kinds : mapping of str to {"class", "number"}
        Of outcomes, where the table is not to decide.
    site, family : str or None
        Columns. The site is found by its usual names if None; the people of one family are on the
        same side of each split.
    pooling : {"mean", "covariance"} or None
        What of a run tells: its mean embedding, or which places move together. None for the latter
        where package and number of windows can tell it, and nothing is trained by gradient.
    seen : {"refuse", "leave-out", "keep"}
        What becomes of people that the package's weights were trained on, or chosen by.
    """

    __pydantic_config__ = _STRICT

    outcomes: tuple[str, ...] = ()
    phenotype: str | None = None
    kinds: Mapping[str, Literal["class", "number"]] = field(default_factory=dict)
    site: str | None = None
    family: str | None = None
    pooling: Literal["mean", "covariance"] | None = None
    seen: Literal["refuse", "leave-out", "keep"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How people are left out.

    Attributes
    ----------
    folds, repeats : int
        Of the scheme by person; without use where there is a split.
    split : str or None
        A table of people that says who is left out, instead of schemes by person and by site.
    permutations : int
        Of each outcome, for the model; 0 for no p.
    deconfound : tuple of str
        Covariates that are taken out of all features, inside the folds.
    """

    __pydantic_config__ = _STRICT

    folds: Annotated[int, Ge(2)] = 5
    repeats: Annotated[int, Gt(0)] = 5
    split: str | None = None
    permutations: Annotated[int, Ge(0)] = 100
    deconfound: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the model is judged beside.

    Attributes
    ----------
    atlas : str
        ``schaefer200``, another Schaefer atlas that TemplateFlow has, or a file of labels.
    connectivity : tuple of {"correlation", "partial", "tangent"}
    motion : {6, 24}
        Parameters that are taken out of the parcels' series, beside CSF and white matter, where a
        confounds table is at hand. Short runs can't spare 24.
    covariates : tuple of str or None
        Columns; ``motion`` is the mean framewise displacement. None for age, sex, site and motion,
        as far as known.
    """

    __pydantic_config__ = _STRICT

    atlas: str = "schaefer200"
    connectivity: tuple[Literal["correlation", "partial", "tangent"], ...] = ("correlation",)
    motion: Literal[6, 24] = 6
    covariates: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Everything that an evaluation can be told."""

    __pydantic_config__ = _STRICT

    model: str = "tiny"
    seed: Annotated[int, Ge(0)] = 0
    select: Select = field(default_factory=Select)
    prepare: Prepare = field(default_factory=Prepare)
    rank: Rank = field(default_factory=Rank)
    encode: Encode = field(default_factory=Encode)
    predict: Predict = field(default_factory=Predict)
    judge: Judge = field(default_factory=Judge)
    baseline: Baseline = field(default_factory=Baseline)
    compute: Compute = field(default_factory=Compute)

    @property
    def embedding(self) -> ParticipantSettings:
        """The settings by which the participant level would make the same embeddings."""
        return ParticipantSettings(
            model=self.model,
            seed=self.seed,
            prepare=self.prepare,
            rank=self.rank,
            encode=self.encode,
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the settings that change a result."""
        silent = {"package_name", "select", "pace", "compute"}
        return _digest({k: value for k, value in asdict(self).items() if k not in silent})


@dataclass(frozen=True, kw_only=True)
class Tune:
    """How heads are fitted, and whether the encoder learns with them.

    A linear head on a frozen encoder is a penalised regression, judged by folds. All else is learnt
    by gradient, from such heads on; the weights that tell the people of ``validation`` best are
    kept, and those of ``test`` are told once, at the end. A split file names both instead.

    Attributes
    ----------
    encoder : {"frozen", "lora", "full"}
        Whether it stays as it is, learns a change of low rank to the maps of its attention, or
        learns altogether.
    head : {"linear", "attentive"}
        A map of the mean over a person's windows; or one that weighs windows first.
    validation, test : float
        Shares of people.
    passes, patience : int
        Over all people, at most; and how many may follow the best one.
    people, windows : int
        Per step, over all processes; and drawn of each in a pass.
    rate, head_rate, last_rate : float
        Highest learning rate of the encoder's last layer and of heads; last one of the former.
    decay : float
        Of the rate, from a layer to the one below it, where all of the encoder learns.
    rank : int
        Of the change of low rank.
    warm_up : float
        Share of all steps.
    weight_decay, clip : float
    precision : {"auto", "float32", "bfloat16", "float16"}
        As in a pretraining.
    """

    __pydantic_config__ = _STRICT

    encoder: Literal["frozen", "lora", "full"] = "frozen"
    head: Literal["linear", "attentive"] = "linear"
    validation: Share = 0.15
    test: Share = 0.15
    passes: Annotated[int, Gt(0)] = 30
    patience: Annotated[int, Gt(0)] = 5
    people: Annotated[int, Gt(0)] = 16
    windows: Annotated[int, Gt(0)] = 2
    rate: Annotated[float, Gt(0)] = 1e-4
    head_rate: Annotated[float, Gt(0)] = 5e-4
    last_rate: Annotated[float, Ge(0)] = 1e-6
    decay: Annotated[float, Gt(0), Le(1)] = 0.75
    rank: Annotated[int, Gt(0)] = 8
    warm_up: Annotated[float, Ge(0), Lt(1)] = 0.05
    weight_decay: Annotated[float, Ge(0)] = 0.05
    clip: Annotated[float, Gt(0)] = 1.0
    precision: Precision = "auto"

    @property
    def by_gradient(self) -> bool:
        return self.encoder != "frozen" or self.head != "linear"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(EvaluateSettings):
    """Everything that a fine-tuning can be told. ``package_name`` is ``<model>-tuned`` if None."""

    package_name: Annotated[str, Predicate(_is_plain)] | None = None
    tune: Tune = field(default_factory=Tune)
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, kw_only=True)
class TabulateSettings:
    """Everything that tables over a cohort can be told.

    ``model`` is a package's name, or the start of its checksum; the only one there is if None.
    """

    __pydantic_config__ = _STRICT

    model: str | None = None
    select: Select = field(default_factory=Select)


Settings = TypeVar(
    "Settings",
    ParticipantSettings,
    PretrainSettings,
    EvaluateSettings,
    FinetuneSettings,
    TabulateSettings,
)
AnySettings = (
    ParticipantSettings | PretrainSettings | EvaluateSettings | FinetuneSettings | TabulateSettings
)


def read_settings(
    kind: type[Settings], path: Path | None, overrides: Mapping[str, Any]
) -> Settings:
    """Merge a TOML file and a nested table of overrides, which win, over the defaults.

    Raises
    ------
    CallRefused
        ``settings-bad`` if the file isn't TOML, has an unknown key, or a value out of its range;
        ``usage`` if an override is. All faults are listed.
    """
    table = read_table(path) if path else {}
    if path:
        _validate(kind, table, "settings-bad", path)
    return _validate(kind, _merged(table, overrides), "usage", "command line")


def _digest(telling: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()


def _validate(
    kind: type[Settings], table: Mapping[str, Any], reason: str, place: object
) -> Settings:
    from pydantic import TypeAdapter, ValidationError

    try:
        # JSON mode is strict about types, yet takes lists for tuples and 2 for 2.0.
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        known = [key.name for key in fields(kind)]
        raise CallRefused(
            reason,
            file=place,
            expected="known keys with values in their range",
            found="; ".join(faults),
            advice=f"correct them; the top keys are {', '.join(known)}",
        ) from error


def write_settings(settings: AnySettings) -> str:
    """Return the settings as TOML that `read_settings` takes back."""
    import tomli_w

    return tomli_w.dumps(_without_none(asdict(settings)))


def flatten_settings(settings: AnySettings) -> Iterator[tuple[str, Any]]:
    """Yield each setting's key, its table before it as in ``train.rate``, and its value."""
    return _flatten(asdict(settings))


def _flatten(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}.{below}", item) for below, item in _flatten(value))
        else:
            yield key, value


def read_table(path: Path) -> dict[str, Any]:
    """Read a settings file as it is.

    Raises
    ------
    CallRefused
        ``settings-bad`` if it isn't TOML.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        json.dumps(table, default=str)  # Nothing that is nested too deeply goes further.
        return table
    except (OSError, ValueError, RecursionError) as error:
        raise CallRefused(
            "settings-bad",
            file=path,
            expected="a TOML file as written into logs/ by an earlier call",
            found=str(error),
            advice="correct the file or leave out --config",
        ) from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value
