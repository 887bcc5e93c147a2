"""What a training tells on its way: one line of JSON for each event, TensorBoard if asked for.

The log belongs to the checkpoints: where a training goes on from one, whatever was logged after it
is cut off and will come again, so that no step stands there twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import append_line, parse_json, write_text
from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.monitors import Reading

if TYPE_CHECKING:
    import pandas as pd

    from slimbrain_app.training.step import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A training begins: all its passes and steps, and what the settings left to the preset.

    ``batch`` counts windows per step over all processes, ``warm_up`` steps, ``frames`` model
    volumes per window; ``width`` is that of the embedding, ``kinds`` are the names of kinds of
    loss.
    """

    passes: int
    steps: int
    batch: int
    windows_per_run: int
    warm_up: int
    frames: int
    width: int
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """The temporal extractor has been through all runs once more. Losses are means over runs.

    ``validation`` and ``alone`` are of people kept out: errors of hidden cells given other parts of
    the run, and given nothing. What the first is below the second is what the run tells.
    """

    pass_: int
    loss: float
    validation: float = math.nan
    alone: float = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The optimiser has made a step.

    Attributes
    ----------
    step, pass_ : int
        Counted from 1.
    loss : float
    kinds : tuple of float
        Mean loss of each kind.
    rate, gradient_norm : float
        Learning rate; norm before clipping.
    momentum : float
        Of the target encoder; NaN where there is none.
    seconds, loader_seconds : float
        Of the whole step, and how many of them it waited for windows.
    windows_per_second : float
        Over all processes.
    """

    step: int
    pass_: int
    loss: float
    kinds: tuple[float, ...]
    rate: float
    gradient_norm: float
    momentum: float
    seconds: float
    loader_seconds: float
    windows_per_second: float

    @classmethod
    def of(cls, progress: Progress, *, windows: int = 1, momentum: float = math.nan) -> Step:
        """Return the event of a step whose samples have so many windows each."""
        return cls(
            step=progress.step,
            pass_=progress.pass_,
            loss=progress.loss,
            kinds=progress.kinds,
            rate=progress.rate,
            gradient_norm=progress.gradient_norm,
            momentum=momentum,
            seconds=progress.seconds,
            loader_seconds=progress.loader_seconds,
            windows_per_second=progress.views * windows / progress.seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Losses on people kept out of training; the last two over those of guesses, or NaN."""

    step: int
    pass_: int
    loss: float
    kinds: tuple[float, ...]
    over_constant: float
    over_position: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How well a linear model reads ``name`` from embeddings, with its 95 % interval.

    ``metric`` says what the score is; ``chance`` is what a guess that reads none would reach.
    """

    step: int
    pass_: int
    name: str
    metric: str
    score: float
    lower: float
    upper: float
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """A monitor has found something wrong; ``message`` is a sentence."""

    step: int
    pass_: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything up to this step is safe."""

    step: int
    pass_: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """A later call goes on after this step."""

    step: int
    pass_: int


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """A call ends in order; ``reason`` says why, where the training isn't through."""

    step: int
    pass_: int
    finished: bool
    reason: str = ""


Event = Start | Extract | Step | Reading | Validation | Probe | Alarm | Checkpoint | Resume | End
Kind = TypeVar("Kind", bound=Event)

_EVENTS: dict[str, type[Any]] = {
    "start": Start,
    "extract": Extract,
    "step": Step,
    "monitor": Reading,
    "validation": Validation,
    "probe": Probe,
    "alarm": Alarm,
    "checkpoint": Checkpoint,
    "resume": Resume,
    "end": End,
}
_NAMES = {kind: name for name, kind in _EVENTS.items()}


class Sink(Protocol):
    """Where events go."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One line of JSON per event, each on disk before the next."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Event) -> None:
        append_line(self.path, encode(event))

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoard:
    """The same numbers for TensorBoard, in ``folder``; older ones from step ``first`` are hidden.

    Raises
    ------
    CallRefused
        ``extra-missing``.
    """

    def __init__(self, folder: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CallRefused(
                "extra-missing",
                expected="the package tensorboard, since pace.tensorboard is on",
                found="no such package",
                advice="install it with pip install 'slimbrain[tensorboard]', or leave the "
                "setting off",
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=first)
        self._kinds: tuple[str, ...] = KINDS

    def write(self, event: Event) -> None:
        name = _NAMES[type(event)]
        if isinstance(event, Start):
            self._kinds = event.kinds
        place = event.pass_ if isinstance(event, Extract) else getattr(event, "step", 0)
        if isinstance(event, Alarm):
            self._writer.add_text(name, event.message, place)
        if isinstance(event, Probe):
            name = f"{name}_{event.name}"
        for key, value in _list_numbers(event, self._kinds):
            self._writer.add_scalar(f"{name}/{key}", value, place)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def open_log(path: Path, step: int | None, tensorboard: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that logs an event; what stands there after ``step`` is cut off first.

    Only for one of several processes. TensorBoard's files go to ``tensorboard/`` beside ``path``.

    Parameters
    ----------
    step : int or None
        That of the checkpoint from which the training goes on, 0 where only the temporal extractor
        is at hand, None where all begins anew.

    Raises
    ------
    CallRefused
        ``log-bad``, ``not-writable``, ``disk-full`` or ``extra-missing``.
    """
    if step is None:
        path.unlink(missing_ok=True)
    else:
        cut_log(path, step)
    sinks: list[Sink] = [JsonLines(path)]
    if tensorboard:
        sinks.append(
            TensorBoard(path.parent / "tensorboard", first=0 if step is None else step + 1)
        )

    def write(event: Event) -> None:
        for sink in sinks:
            sink.write(event)

    try:
        yield write
    finally:
        for sink in sinks:
            sink.close()


def cut_log(path: Path, step: int) -> None:
    """Leave of a log what happened up to ``step``, whole or not at all."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(
        f"{line}\n" for line, event in _list_lines(path, text) if getattr(event, "step", 0) <= step
    )
    if kept != text:
        write_text(path, kept)


def read_log(path: Path) -> tuple[Event, ...]:
    """Return all events of a log in order, without a last line that was torn.

    Raises
    ------
    CallRefused
        ``log-bad`` if another line can't be understood.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    return tuple(event for _, event in _list_lines(path, text))


def pick(events: Sequence[Event], kind: type[Kind] | tuple[type[Kind], ...]) -> list[Kind]:
    """Return the events of one kind or of several, in order."""
    return [event for event in events if isinstance(event, kind)]


def tabulate(events: Sequence[Event], kind: type[Kind]) -> pd.DataFrame:
    """Return the events of one kind as a table, a column for each field."""
    import pandas as pd

    return pd.DataFrame([_fields(event) for event in pick(events, kind)])


def encode(event: Event) -> str:
    """Return an event as a line of JSON; numbers that aren't finite become null."""
    line = {"event": _NAMES[type(event)], **_fields(event)}
    return json.dumps({key: _without_nan(value) for key, value in line.items()}, allow_nan=False)


def decode(line: str) -> Event:
    """Return the event of a line; null becomes NaN.

    Raises
    ------
    ValueError
        If it isn't a line of `encode`.
    """
    fields = parse_json(line)
    if not isinstance(fields, dict) or str(fields.get("event")) not in _EVENTS:
        raise ValueError("no event of a known name")
    kind = _EVENTS[fields.pop("event")]
    try:
        event: Event = kind(**{_attribute(key): _with_nan(value) for key, value in fields.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error
    return event


def _list_lines(path: Path, text: str) -> Iterator[tuple[str, Event]]:
    *whole, rest = text.split("\n")
    lines = [*whole, rest] if rest else whole
    for number, line in enumerate(lines, 1):
        try:
            event = decode(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise CallRefused(
                "log-bad",
                file=path,
                expected="an event of a training in each line",
                found=f"{error} in line {number}",
                advice="copy the file again, or use the release that wrote it",
            ) from error
        yield line, event


def _fields(event: Event) -> dict[str, Any]:
    # ``pass`` is a word of Python's own.
    return {key.rstrip("_"): value for key, value in asdict(event).items()}


def _attribute(key: str) -> str:
    return "pass_" if key == "pass" else key


def _without_nan(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_nan(item) for item in value)
    return math.nan if value is None else value


def _list_numbers(event: Event, kinds: Sequence[str]) -> Iterator[tuple[str, float]]:
    for key, value in _fields(event).items():
        if key == "kinds" and not isinstance(event, Start):
            yield from ((f"kinds/{kind}", loss) for kind, loss in zip(kinds, value, strict=True))
        elif isinstance(value, float) and not math.isnan(value):
            yield key, value
