"""A small training, as a script that tests start, kill and start again.

``python drill.py FOLDER [key=value ...]`` goes on from the checkpoint in FOLDER, prints a line of
JSON for each step, and leaves its weights in FOLDER/weights.pt.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.batches import Batch, MaskedView, collate_views, find_places, measure_fill
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import Jepa, JepaSettings
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.objective import Loss
from slimbrain_app.model.predictor import PredictorSizes
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
from slimbrain_app.settings import Hide
from slimbrain_app.training.checkpoint import Identity, resume, write_checkpoint
from slimbrain_app.training.distributed import Processes, join_processes
from slimbrain_app.training.loop import train
from slimbrain_app.training.optimiser import (
    choose_precision,
    group_parameters,
    make_optimiser,
    make_scaler,
)
from slimbrain_app.training.schedule import make_schedule
from slimbrain_app.training.state import TrainingState
from slimbrain_app.training.step import Plan, Progress, Share

SIZES = EncoderSizes(
    shape=(4, 8, 8, 8),
    patch=(1, 2, 2, 2),
    width=16,
    heads=2,
    depths=(1, 1),
    strides=((1, 2, 2, 2),),
    mask_unit=(2, 2, 2, 2),
    unit_attention=(True, False),
    deletion="token",
)
# A pass of nine views in steps of four: the last one has a single view.
PASS, BATCH = 9, 4
IDENTITY = Identity(settings="these", corpus="those")


@dataclass(frozen=True, kw_only=True)
class Drill:
    """What tests vary."""

    passes: int = 4
    at_once: int = 4
    precision: str = "float32"
    seconds: float = 0.0  # To spend on each micro-batch.
    minutes: float = 0.0  # Between checkpoints: one after each step.
    nan_at: int = 0  # The step in which the first view of the last process has no finite voxel.
    fail_at: int = 0  # The step in which the last process can't read.
    dropout: bool = False
    device: str = "cpu"

    @property
    def steps(self) -> int:
        return self.passes * -(-PASS // BATCH)


class Counter:
    """An observer that counts what it sees."""

    def __init__(self) -> None:
        self.seen = 0
        self.passes: list[int] = []
        self.enough = False

    def see(self, loss: Loss) -> None:
        self.seen += loss.views

    def end_pass(self, number: int) -> None:
        self.passes.append(number)

    def wants_end(self) -> bool:
        return self.enough

    def state_dict(self) -> dict[str, object]:
        return {"seen": self.seen, "passes": self.passes, "enough": self.enough}

    def load_state_dict(self, state_dict) -> None:
        self.seen = state_dict["seen"]
        self.passes = state_dict["passes"]
        self.enough = state_dict["enough"]


class Noise(nn.Module):
    """Draws from torch's own generator, as dropout does."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.dropout(tokens, 0.1)


def draw_view(number: int) -> MaskedView:
    generator = torch.Generator().manual_seed(number)
    brain = torch.rand(SIZES.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.7
    voxels = brain.flatten().nonzero()[:, 0]
    kept = keep_brain(brain, SIZES)
    frames = torch.randn(SIZES.shape[0], len(voxels), generator=generator)
    hide = Hide(visible_times=0.5, shortest_edge=1, longest_edge=2)
    return MaskedView(
        patches=gather_patches(frames, voxels, build_table(kept, SIZES)),
        kept=kept,
        fill=measure_fill(brain, SIZES),
        mask=draw_mask(find_places(kept, SIZES), SIZES.final_grid[0], hide, (0, 0, number)),
    )


def make_state(drill: Drill) -> TrainingState:
    settings = JepaSettings(
        predictor=PredictorSizes(width=32, depth=1, heads=2), first_momentum=0.9
    )
    objective = Jepa(Encoder(SIZES, seed=1), settings, seed=2).to(drill.device)
    if drill.dropout:
        objective.predictor.embed = nn.Sequential(objective.predictor.embed, Noise())
    device = torch.device(drill.device)
    return TrainingState(
        objective=objective,
        optimiser=make_optimiser(group_parameters(objective, 0.05), rate=3e-3),
        scaler=make_scaler(choose_precision(drill.precision, device), device),
        observer=Counter(),
    )


def list_shares(drill: Drill, processes: Processes, done: int) -> Iterator[Share]:
    per_pass = -(-PASS // BATCH)
    for step in range(done + 1, drill.steps + 1):
        pass_, place = divmod(step - 1, per_pass)
        views = range(place * BATCH, min((place + 1) * BATCH, PASS))
        own = [pass_ * PASS + view for view in views][processes.rank :: processes.size]
        yield Share(
            pass_=pass_ + 1,
            ends_pass=place == per_pass - 1,
            views=len(views),
            batches=_read(drill, step, own, processes.rank == processes.size - 1),
            names=[f"view {number}" for number in own],
        )


def _read(drill: Drill, step: int, own: list[int], last: bool) -> Iterator[Batch]:
    if last and step == drill.fail_at:
        raise OSError("the disk is gone")
    for first in range(0, len(own), drill.at_once):
        time.sleep(drill.seconds)
        views = [draw_view(number) for number in own[first : first + drill.at_once]]
        if last and first == 0 and step == drill.nan_at:
            views[0].patches.fill_(float("nan"))
        yield collate_views(views, SIZES)


def make_plan(drill: Drill, device: torch.device) -> Plan:
    return Plan(
        schedule=make_schedule(drill.steps, warm_up=0.2, last=0.01),
        clip=1.0,
        precision=choose_precision(drill.precision, device),
        seed=3,
        checkpoint_minutes=drill.minutes,
    )


def run(folder: Path, drill: Drill, processes: Processes) -> list[Progress]:
    """Train from the checkpoint in a folder, or from the start; return what was told."""
    told: list[Progress] = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        if processes.first:
            sys.stdout.write(json.dumps(asdict(progress)) + "\n")
            sys.stdout.flush()

    checkpoint = folder / "training.pt"
    state = make_state(drill)
    resume(checkpoint, state, IDENTITY)
    train(
        state,
        list_shares(drill, processes, state.done),
        make_plan(drill, processes.device),
        processes,
        save=lambda: write_checkpoint(checkpoint, state, IDENTITY),
        watch=watch,
    )
    if processes.first:
        torch.save(state.objective.state_dict(), folder / "weights.pt")
    return told


def read_drill(words: list[str]) -> Drill:
    """Read ``key=value``, each value of the type of its default."""
    given = dict(word.split("=") for word in words)
    types = {field.name: type(field.default) for field in fields(Drill)}
    return Drill(**{key: types[key](value) for key, value in given.items()})


def main() -> int:
    torch.set_num_threads(1)
    drill = read_drill(sys.argv[2:])
    try:
        with join_processes(drill.device) as processes:
            run(Path(sys.argv[1]), drill, processes)
    except CallRefused as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
