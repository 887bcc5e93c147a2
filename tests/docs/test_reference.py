"""The reference pages against the code, in both directions."""

from __future__ import annotations

import argparse
import json
import re
import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import slimbrain_app
from slimbrain_app.bids.sidecars import COLUMNS
from slimbrain_app.bids.tables import PERSON_COLUMNS, RUN_COLUMNS
from slimbrain_app.cli import parser as app
from slimbrain_app.cli import tools
from slimbrain_app.errors import REASONS, Exit, Scope
from slimbrain_app.settings import (
    EvaluateSettings,
    FinetuneSettings,
    ParticipantSettings,
    PretrainSettings,
    TabulateSettings,
    read_settings,
)
from slimbrain_app.simulation import CohortSettings, SimulationSettings

ROOT = Path(__file__).parents[2]
OPTIONS = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/options.py")))
SCOPES = {
    "## Runs refused": Scope.RUN,
    "## Warnings": Scope.WARNING,
    "## Calls refused": Scope.CALL,
}
VERBS = {
    "participant": ParticipantSettings,
    "pretrain": PretrainSettings,
    "evaluate": EvaluateSettings,
    "finetune": FinetuneSettings,
    "tabulate": TabulateSettings,
}
# The sections of the settings page, by verb.
SECTIONS = {
    "participant": ("Shared", "Embedding", "Participant level"),
    "pretrain": ("Shared", "Pretrain"),
    "evaluate": ("Shared", "Embedding", "Evaluate and finetune"),
    "finetune": ("Shared", "Embedding", "Evaluate and finetune", "Finetune"),
    "tabulate": ("Tabulate",),
}
# For each key another value than its default.
OTHERS = {
    "model": "base",
    "seed": 1,
    "select.participants": ["01"],
    "select.sessions": ["1"],
    "select.tasks": ["rest"],
    "select.runs": ["1"],
    "select.filters": {"acquisition": ["a"]},
    "prepare.space": "T1w",
    "prepare.tr": 2.0,
    "prepare.dummy_scans": 4,
    "rank.mode": "first",
    "rank.windows": "all",
    "rank.fd_threshold": 0.2,
    "encode.views": 3,
    "output.save_views": True,
    "output.save_prepared": True,
    "output.attribution": True,
    "output.overwrite": "always",
    "compute.device": "cpu",
    "compute.nprocs": 2,
    "compute.omp_nthreads": 2,
    "compute.mem_gb": 4.0,
    "compute.stop_on_first_crash": True,
    "predict.outcomes": ["age"],
    "predict.phenotype": "people.tsv",
    "predict.kinds": {"age": "class"},
    "predict.site": "place",
    "predict.family": "family",
    "predict.pooling": "mean",
    "predict.seen": "keep",
    "judge.folds": 10,
    "judge.repeats": 1,
    "judge.split": "split.tsv",
    "judge.permutations": 0,
    "judge.deconfound": ["site"],
    "baseline.atlas": "schaefer400",
    "baseline.connectivity": ["tangent"],
    "baseline.motion": 24,
    "baseline.covariates": ["age"],
    "tune.encoder": "lora",
    "tune.head": "attentive",
    "tune.validation": 0.2,
    "tune.test": 0.2,
    "tune.passes": 1,
    "tune.patience": 1,
    "tune.people": 2,
    "tune.windows": 1,
    "tune.rate": 0.1,
    "tune.head_rate": 0.1,
    "tune.last_rate": 0.1,
    "tune.decay": 1.0,
    "tune.rank": 2,
    "tune.warm_up": 0.1,
    "tune.weight_decay": 0.1,
    "tune.clip": 2.0,
    "tune.precision": "float32",
    "preset": "base",
    "package_name": "mine",
    "contract.frame_time": 2.0,
    "contract.channels": ["global"],
    "corpus.validation": 0.2,
    "extract.passes": 1,
    "extract.rate": 0.1,
    "hide.visible_times": 0.5,
    "hide.visible_places": 0.6,
    "hide.cuboids": 3,
    "hide.shortest_edge": 1,
    "hide.longest_edge": 3,
    "hide.targets": 100,
    "objective.name": "mae",
    "objective.weights": [1, 0, 0],
    "objective.momentum": 0.9,
    "objective.last_momentum": 0.9,
    "objective.decorrelation": 0.1,
    "train.passes": 1,
    "train.windows_per_run": 2,
    "train.batch": 2,
    "train.rate": 0.1,
    "train.last_rate": 0.1,
    "train.warm_up": 0.1,
    "train.weight_decay": 0.1,
    "train.clip": 2.0,
    "train.precision": "float32",
    "pace.at_once": 1,
    "pace.recompute": True,
    "pace.workers": 1,
    "pace.checkpoint_minutes": 1.0,
    "pace.probe_passes": 1,
    "pace.stop_on_collapse": True,
    "pace.tensorboard": True,
}


def spans(cell):
    """Return the code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_reason_code_stands_once_with_its_scope_exit_code_and_meaning(pages):
    page = pages["docs/reference/reason-codes.md"]
    rows = [(scope, row) for heading, scope in SCOPES.items() for row in page.rows(heading)]
    codes = [spans(row[0])[0] for _, row in rows]
    assert sorted(codes) == sorted(REASONS)
    for scope, (code, exit_code, meaning, *_) in rows:
        reason = REASONS[spans(code)[0]]
        assert (reason.scope, int(reason.exit_code)) == (scope, int(exit_code)), code
        assert meaning.startswith(reason.meaning), code


def test_every_exit_code_is_listed(pages):
    rows = pages["docs/reference/reason-codes.md"].rows("## Exit codes")
    assert [int(row[0]) for row in rows] == sorted(Exit)


def read_options(rows) -> list[str]:
    """Return the options named in the first cells."""
    named = [span.split()[0] for row in rows for span in spans(row[0])]
    return [option for option in named if option.startswith("-")]


def test_tables_of_options_are_those_of_the_parsers(pages):
    page = pages["docs/reference/command-line.md"]
    assert OPTIONS.refresh(page.text) == page.text, "run python docs/options.py"


def test_every_command_has_a_section_with_all_its_tables(pages):
    text, groups = pages["docs/reference/command-line.md"].text, OPTIONS.list_groups()
    commands = ["slimbrain", *dict(OPTIONS.list_commands(tools.make_parser(), "slimbrain-tools"))]
    sections = dict(re.findall(r"^## (slimbrain.*)\n((?:(?!## ).*\n)*)", text, re.MULTILINE))
    assert sorted(sections) == sorted(commands)
    for command, section in sections.items():
        marked = re.findall(r"^<!-- options: ([^,]+), (.+) -->$", section, re.MULTILINE)
        assert sorted(marked) == sorted(key for key in groups if key[0] == command)


def test_defaults_of_the_simulation_are_the_listed_ones(pages):
    rows = pages["docs/reference/command-line.md"].rows("## slimbrain-tools simulate")
    listed = {read_options([row])[0]: spans(row[1])[0] for row in rows if spans(row[1])}
    expected = {
        f"--{field.name.replace('_', '-')}": str(getattr(settings, field.name))
        for settings in (SimulationSettings(), CohortSettings())
        for field in fields(settings)
        if getattr(settings, field.name) is not None
    }
    assert listed == expected


def list_keys(settings, above="") -> dict[str, object]:
    """Return every key of the settings, with its table before it, and its default."""
    keys: dict[str, object] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            keys |= list_keys(value, f"{field.name}.")
        else:
            keys[f"{above}{field.name}"] = value
    return keys


def option_of(dest: str) -> str:
    (action,) = (
        action
        for action in app.make_parser()._actions
        if action.dest == dest and action.help != argparse.SUPPRESS
    )
    return next(option for option in action.option_strings if option.startswith("--"))


def list_settings(pages, verb: str) -> list[list[str]]:
    """Return the rows of the keys that a verb knows."""
    page = pages["docs/reference/settings.md"]
    return [row for section in SECTIONS[verb] for row in page.rows(f"## {section}")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_listed_with_its_default_and_option(pages, verb):
    options = {".".join(key): option_of(dest) for dest, key in app.SETTINGS[verb].items()}
    options["select.filters"] = "--bids-filter-file"
    listed = {
        spans(key)[0]: (default.strip("`"), "".join(spans(option)))
        for key, default, _, _, option in list_settings(pages, verb)
    }
    expected = {
        key: ("absent" if default is None else json.dumps(default), options.get(key, ""))
        for key, default in list_keys(VERBS[verb]()).items()
    }
    assert listed == expected


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_on_the_command_line_page_are_those_of_the_settings(pages, verb):
    rows = pages["docs/reference/command-line.md"].rows("## slimbrain")
    listed = {row[0].split()[0].strip("`,"): row[1].strip("`") for row in rows if len(row) == 3}
    defaults = list_keys(VERBS[verb]())
    for dest, key in app.SETTINGS[verb].items():
        default, option = defaults[".".join(key)], option_of(dest)
        option = "-w" if option == "--work-dir" else option
        if default is False:
            assert listed[option] == "off"
        elif isinstance(default, str | int | float):
            assert listed[option] == str(default)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "tabulate"])
def test_settings_page_says_which_keys_change_numbers(pages, verb):
    kind = VERBS[verb]
    for key, _, _, changes, _ in list_settings(pages, verb):
        *table, name = spans(key)[0].split(".")
        given = {name: OTHERS[spans(key)[0]]}
        settings = read_settings(kind, None, {table[0]: given} if table else given)
        changed = settings.fingerprint() != kind().fingerprint()
        # The package has a checksum of its own, beside the fingerprint.
        assert changes == ("yes" if changed or name == "model" else "no"), key


@pytest.mark.parametrize("verb", VERBS)
def test_bounds_of_settings_stand_in_their_rows(pages, verb):
    for row in list_settings(pages, verb):
        for bound in list_bounds(VERBS[verb], spans(row[0])[0]):
            assert re.search(rf"(?<![\w.]){re.escape(bound)}(?![\w.])", row[2]), (row[0], bound)


def list_bounds(kind: type, key: str) -> list[str]:
    """Return numbers and words that limit a setting, from its type."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(kind).json_schema()
    *tables, name = key.split(".")
    table = schema["properties"][tables[0]]["$ref"] if tables else ""
    owner = schema["$defs"][table.rpartition("/")[2]] if tables else schema
    one = owner["properties"][name]
    choices = [one, *one.get("anyOf", ())]
    numbers = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    bounds = [f"{choice[kind]:g}" for choice in choices for kind in numbers if kind in choice]
    words = [str(word) for choice in choices for word in choice.get("enum", ())]
    return bounds + words


def test_every_column_is_listed_with_its_units(pages):
    rows = pages["docs/reference/outputs.md"].rows("## Columns")
    listed = {spans(row[0])[0]: row[2] for row in rows}
    assert listed.pop("e0000") == "arbitrary"
    assert listed == {name: column.get("Units", "") for name, column in COLUMNS.items()}


def test_every_column_of_the_tables_over_a_cohort_is_listed_with_its_units(pages):
    rows = pages["docs/reference/outputs.md"].rows("## Tables over a cohort")
    listed = {(spans(row[0])[0], of): row[2] for row in rows for of in row[1].split(", ")}
    own = {name: column for name, column in PERSON_COLUMNS.items() if name != "participant_id"}
    assert listed == {
        (name, of): column.get("Units", "")
        for of, columns in (("runs", RUN_COLUMNS), ("people", own))
        for name, column in columns.items()
    }


def to_pattern(path: str) -> re.Pattern[str]:
    """Turn a documented path, with its <placeholders> and [optional parts], into a pattern."""
    text = re.escape(path).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub(r"<\w+>", r"[^/]+?", text))


def test_every_file_is_listed_and_every_listed_file_is_there(pages, demo):
    listed = [spans(row[0])[0] for row in pages["docs/reference/outputs.md"].rows("## Files")]
    output = demo / "demo/slimbrain"
    found = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    matches = {
        path: {name for name in found if to_pattern(path).fullmatch(name)} for path in listed
    }
    assert set(found) - set().union(*matches.values()) == set(), "written, but not listed"
    missing = {path for path, names in matches.items() if not names}
    assert missing == {"logs/<call>/crash-<run>-<step>.txt"}, "listed, but not written"


def test_every_part_of_a_prepared_run_is_listed(pages, demo):
    rows = pages["docs/reference/outputs.md"].rows("## The prepared run")
    folder = next(demo.rglob("*_prepared"))
    assert {spans(row[0])[0] for row in rows} == {file.name for file in folder.iterdir()}


def test_every_key_of_the_sidecars_is_listed(pages, demo):
    rows = pages["docs/reference/outputs.md"].rows("## Sidecars")
    listed = {key for row in rows for key in spans(row[0])}
    found: set[str] = set()
    for file in demo.glob("demo/slimbrain/sub-01/**/*_desc-slimbrain_*.json"):
        found |= json.loads(file.read_text()).keys()
    columns = {key for key in found if key in COLUMNS or re.fullmatch(r"e\d{4}", key)}
    assert found - columns == listed


def test_every_key_of_the_status_is_listed(pages, demo):
    rows = pages["docs/reference/outputs.md"].rows("## Status files")
    status = json.loads((demo / "demo/slimbrain/logs/sub-01_status.json").read_text())
    assert status.keys() == {"participant_id", "runs"}
    assert [spans(row[0])[0] for row in rows] == list(status["runs"][0])


def test_every_room_has_its_place_in_the_house_and_every_module_named_is_there(pages):
    root = Path(slimbrain_app.__file__).parent
    rooms, modules = set(), set()
    for room, _, inside in pages["docs/explanation/design.md"].rows("## The house"):
        rooms |= set(spans(room))
        modules |= {f"{spans(room)[0]}{module}.py" for module in spans(inside)}
    assert {module for module in modules if not (root / module).is_file()} == set()
    folders = {f"{init.parent.name}/" for init in root.glob("*/__init__.py")}
    assert rooms == folders | {file.stem for file in root.glob("[!_]*.py")}
