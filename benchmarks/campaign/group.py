"""Faults that strike the group level: its tables, and what is learnt."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence

from campaign.calls import EMBED, FINETUNE, PRETRAIN, TABULATE
from campaign.case import Case, copy_tree
from campaign.kinds import Expected, expect, kind
from campaign.processes import STOPPING, send, stop
from campaign.surroundings import call_at_once, damage_one, fill_output, list_products


@kind("tables-killed", 6, TABULATE)
def kill_tables(case: Case) -> Expected:
    """``group`` is killed or stopped."""
    return stop(case, send, (signal.SIGKILL, *STOPPING))


@kind("tables-at-once", 3, TABULATE)
def make_tables_at_once(case: Case) -> Expected:
    """``group`` is called three times at once."""
    return call_at_once(case, 3)


@kind("tables-of-damaged", 6, TABULATE)
def tabulate_damaged(case: Case) -> Expected:
    """``group`` finds damaged outputs of a run."""
    file = damage_one(case, list_products(case))
    kept = case.stage.clean[EMBED] / file.relative_to(case.output)
    case.undo.callback(shutil.copy2, kept, file)
    case.altered = True
    case.told |= {file, *file.parent.glob("*_stat-mean_*.json")}
    return expect("done", "output-bad", "no-runs")


@kind("tables-full-output", 5, TABULATE, root=True)
def fill_tables(case: Case) -> Expected:
    """The output's disk is full when ``group`` writes."""
    whole = case.stage.clean[EMBED]
    pages = sum(-(-file.stat().st_size // 4096) for file in whole.rglob("*"))
    case.mount(case.output, f"size={4096 * (pages + case.draw.randrange(12))}")
    copy_tree(whole, case.output)
    return expect("disk-full", "done")


@kind("training-killed", 6, PRETRAIN)
def kill_training(case: Case) -> Expected:
    """A training is killed or stopped."""
    return end_training(case, (signal.SIGKILL, *STOPPING))


def end_training(case: Case, numbers: Sequence[signal.Signals]) -> Expected:
    case.altered = True  # Until its end there are a checkpoint and a table without all columns.
    expected = stop(case, send, numbers)
    # In its last step there is nothing left to stop.
    return Expected(expected.reasons | {"done"}, expected.exits | {0})


@kind("training-full-output", 4, PRETRAIN, root=True)
def fill_training(case: Case) -> Expected:
    """The disk is full while a training writes."""
    case.altered = True
    return fill_output(case)


@kind("tuning-killed", 4, FINETUNE)
def kill_tuning(case: Case) -> Expected:
    """A fine-tuning of the encoder is killed or stopped."""
    return end_training(case, (signal.SIGKILL, signal.SIGTERM))
