"""Settings, frozen: defaults, then a TOML file, then the command line.

Each verb has a group of its own. What stands here under `Select`, `Output` and `Compute` never
changes a number; everything else does and is part of `ParticipantSettings.fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from slimbrain_app.errors import CallRefused

Ranking = Literal["mutual", "representative", "novelty", "random", "uniform", "first"]
Overwrite = Literal["never", "changed", "always"]
Label = str

_STRICT = {"extra": "forbid", "allow_inf_nan": False}


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
        telling = {
            "seed": self.seed,
            "prepare": asdict(self.prepare),
            "rank": asdict(self.rank),
            "encode": asdict(self.encode),
        }
        return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()


def read_settings(path: Path | None, overrides: Mapping[str, Any]) -> ParticipantSettings:
    """Merge a TOML file and a nested table of overrides, which win, over the defaults.

    Raises
    ------
    CallRefused
        ``settings-bad`` if the file isn't TOML, has an unknown key, or a value out of its range;
        ``usage`` if an override is. All faults are listed.
    """
    table = _read_table(path) if path else {}
    if path:
        _validate(table, "settings-bad", path)
    return _validate(_merged(table, overrides), "usage", "command line")


def _validate(table: Mapping[str, Any], reason: str, place: object) -> ParticipantSettings:
    from pydantic import TypeAdapter, ValidationError

    try:
        # JSON mode is strict about types, yet takes lists for tuples and 2 for 2.0.
        return TypeAdapter(ParticipantSettings).validate_json(
            json.dumps(table, default=str), strict=True
        )
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        known = [key.name for key in fields(ParticipantSettings)]
        raise CallRefused(
            reason,
            file=place,
            expected="known keys with values in their range",
            found="; ".join(faults),
            advice=f"correct them; the top keys are {', '.join(known)}",
        ) from error


def write_settings(settings: ParticipantSettings) -> str:
    """Return the settings as TOML that `read_settings` takes back."""
    import tomli_w

    return tomli_w.dumps(_without_none(asdict(settings)))


def _read_table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
