"""What a simulation can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Ge, Le

from slimbrain_app.errors import CallRefused


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Size and seed of a simulated dataset. TR in s, voxel edges in mm."""

    participants: Annotated[int, Ge(1)] = 3
    runs: Annotated[int, Ge(1)] = 1
    volumes: Annotated[int, Ge(2)] = 100
    tr: Annotated[float, Ge(0.1), Le(10)] = 2.0
    voxel_size: Annotated[float, Ge(1), Le(6)] = 3.0
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """What is chosen about a dataset made of real people's series.

    ``participants`` are the first so many, else all; ``tsnr`` is the mean over the deviation in
    time of the median grey voxel at a usual site. Voxel edges in mm.
    """

    participants: Annotated[int, Ge(1)] | None = None
    voxel_size: Annotated[float, Ge(1), Le(6)] = 3.0
    tsnr: Annotated[float, Ge(10), Le(80)] = 60.0
    seed: Annotated[int, Ge(0)] = 0


def check_settings(settings: SimulationSettings | CohortSettings) -> None:
    """Refuse values out of their range.

    Raises
    ------
    CallRefused
        ``usage``, with all faults in one message.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(type(settings)).validate_python(asdict(settings))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise CallRefused(
            "usage",
            expected="simulation settings in their range",
            found="; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in faults),
            advice="correct them",
        ) from error
