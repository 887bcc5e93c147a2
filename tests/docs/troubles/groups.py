"""Group level."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slimbrain_app.cli.terminal import Terminal
from slimbrain_app.errors import CallRefused
from slimbrain_app.records import Contract
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training.checkpoint import read_content, write_content
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.manifest import Manifest, write_manifest
from slimbrain_app.workflow.corpus import plan_corpus

from .scenario import EMBED, change_json, cut_short, provokes


@provokes("no-runs 2")
def tabulate_before_anything_is_embedded(place):
    return place.print("group")


@provokes("several-models")
def embed_two_people_differently(place):
    words = ("--participant-label", "02", "--windows", 2)
    place.print_of_all(*EMBED, *words)
    return place.print_of_all("group")


@provokes("output-bad")
def cut_a_table_short(place):
    (table,) = place.embedded.glob("sub-01/func/*stat-mean*.tsv")
    cut_short(table, -20)
    return place.print_of_all("group")


@provokes("no-outcome")
def misspell_an_outcome(place):
    return foresee(place, "evaluate", "IQ", "participant_id iq", "sub-01 101", "sub-02 97")


@provokes("outcome-constant")
def take_people_of_one_sex(place):
    return foresee(place, "evaluate", "sex", "participant_id sex", "sub-01 F", "sub-02 F")


@provokes("too-few")
def take_one_person_of_each_sex(place):
    return foresee(place, "evaluate", "sex", "participant_id sex", "sub-01 F", "sub-02 M")


@provokes("leak")
def put_somebody_on_both_sides(place):
    rows = ("participant_id part", "sub-01 train", "sub-01 test", "sub-02 test")
    split = place.write("split.tsv", tabulate(rows))
    place.write("mine.toml", f'[judge]\nsplit = "{split}"\n')
    return foresee(place, "finetune", "iq", "participant_id iq", "sub-01 101", "sub-02 97")


def foresee(place, action: str, outcome: str, *rows: str) -> str:
    """Return what a dry run of the group level says, given rows of people."""
    table, config = place.write("people.tsv", tabulate(rows)), place.write("mine.toml")
    words = ("--action", action, "--outcome", outcome, "--phenotype", table, "--config", config)
    return place.print_of_all("group", *words, "--dry-run")


def tabulate(rows) -> str:
    return "".join(row.replace(" ", "\t") + "\n" for row in rows)


@provokes("atlas-missing")
def name_an_atlas_that_is_not_at_hand(place):
    place.patch.setenv("TEMPLATEFLOW_HOME", str(place.folder / "templateflow"))
    config = place.write("mine.toml", '[baseline]\natlas = "schaefer400"\n')
    words = ("--action", "evaluate", "--outcome", "age", "--config", config)
    return place.print_of_all("group", *words)


@provokes("prepared-bad")
def cut_a_prepared_run_short(place):
    (signal,) = place.embedded.glob("sub-01/func/*_prepared/signal.npy")
    cut_short(signal, -100)
    return print_refusals(place)


@provokes("other-contract")
def take_a_run_prepared_by_another_release(place):
    (record,) = place.embedded.glob("sub-01/func/*_prepared/run.json")
    change_json(record, contract=99)
    return print_refusals(place)


def gather(place):
    """Return what a training finds."""
    return plan_corpus([place.embedded], place.folder / "trained", PretrainSettings(), Contract())


def print_refusals(place) -> str:
    """Return what is said at the end of a training on prepared runs of those that it left out."""
    found = gather(place)
    place.screen.readouterr()
    Terminal().show_refusals(one.refusal for one in found.refused)
    return place.screen.readouterr().err


@provokes("settings-changed")
def go_on_with_other_settings(place):
    return go_on(place, "0" * 64)


@provokes("corpus-changed")
def go_on_without_a_run(place):
    return go_on(place, PretrainSettings().fingerprint(), "sub-03_task-rest_run-01")


def go_on(place, settings: str, *runs: str) -> str:
    """Return what a training says that was begun with such settings, and with more runs."""
    found = gather(place)
    kept = [*found.recordings, *(replace(found.recordings[0], run=run) for run in runs)]
    corpus = Corpus(tuple(Item(one, (0,)) for one in kept), (), Contract())
    begun = place.folder / "trained/models/tiny/checkpoints/corpus.json"
    write_manifest(begun, Manifest.of(corpus, {}, settings))
    words = ("group", "--action", "pretrain", "--device", "cpu", "--nprocs", 1)
    return place.print_plainly(place.embedded, place.folder / "trained", *words)


@provokes("checkpoint-bad")
def cut_a_checkpoint_short(place):
    path = place.folder / "trained/models/tiny/checkpoints/state.pt"
    write_content(path, {"version": 1})
    cut_short(path, -100)
    with pytest.raises(CallRefused) as refused:
        read_content(path)
    return f"slimbrain: {refused.value}"
