"""Tables over a cohort, from outputs that are made in view."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.bids.status import write_status
from slimbrain_app.errors import CallRefused
from slimbrain_app.records import Refusal, RunStatus
from slimbrain_app.settings import Select, TabulateSettings, read_settings
from slimbrain_app.workflow.tabulating import TabulateCall, make_tables, write_tables

STEM = "desc-slimbrain"
RUNS = ("sub-01_task-rest_run-01", "sub-01_task-rest_run-02", "sub-02_task-rest_run-01")
HEADS = [
    {
        "Outcome": "age",
        "Kind": "number",
        "People": 30,
        "Units": "years",
        "Levels": {},
        "Performance": "r 0.50 for people left out",
    },
    {
        "Outcome": "sex",
        "Kind": "class",
        "People": 28,
        "Units": None,
        "Levels": {"F": "female", "M": "male"},
        "Performance": "AUROC 0.70 for people left out",
    },
]
COLUMNS = "outcome level value lower upper percentile calibrated flag"
PREDICTIONS = """
age n/a 31.25 27.5 35 40.5 yes n/a
sex F 0.125 n/a n/a n/a no out-of-distribution
sex M 0.875 n/a n/a n/a no out-of-distribution
"""


def place(output: Path, run: str) -> Path:
    person, *others = run.split("_")
    session = [part for part in others if part.startswith("ses-")]
    folder = output.joinpath(person, *session, "func")
    return folder / f"{run}_space-MNI152NLin2009cAsym_stat-mean_{STEM}_embeddings.tsv"


def describe(model="tiny", sha="a" * 64, windows=8, heads=()):
    return {
        "Model": {"Name": model, "SHA256": sha, "Trained": True, "Heads": list(heads)},
        "Settings": {"rank": {"mode": "mutual", "windows": windows}, "encode": {"views": 1}},
        "SettingsFingerprint": hashlib.sha256(f"{windows}".encode()).hexdigest(),
        "Seed": 0,
    }


def embed(output: Path, run: str, values=(0.5, -1.25, 3.0), facts=None, **making) -> Path:
    """Write what the participant level would of a run's embedding."""
    table = place(output, run)
    table.parent.mkdir(parents=True, exist_ok=True)
    names = "\t".join(f"e{number:04d}" for number in range(len(values)))
    table.write_text(names + "\n" + "\t".join(f"{value:.9g}" for value in values) + "\n")
    checksum = hashlib.sha256(table.read_bytes()).hexdigest()
    sidecar = {
        "e0000": {"Description": "Dimension 0"},
        **describe(**making),
        "RepetitionTime": 0.72,
        "Ladder": {"Rung": 1, "Space": "T1w", "Interpolations": 2},
        "Volumes": 200,
        "Coverage": 0.9,
        "MeanFramewiseDisplacement": None,
        "Warnings": [],
        "Outputs": {table.relative_to(output).as_posix(): checksum},
        **(facts or {}),
    }
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    return table


def predict(output: Path, label: str, runs, rows: str = PREDICTIONS, **making) -> Path:
    table = output / f"sub-{label}/sub-{label}_{STEM}_predictions.tsv"
    lines = [COLUMNS, *rows.strip().splitlines()]
    table.write_text("".join("\t".join(line.split(" ")) + "\n" for line in lines))
    table.with_suffix(".json").write_text(json.dumps({"Runs": list(runs), **describe(**making)}))
    return table


def refuse(run: str) -> RunStatus:
    parts = {"file": "x_bold.nii.gz", "expected": "28.8 s", "found": "20 s", "advice": "leave it"}
    return RunStatus.of_refusal(Refusal(run=run, code="too-short", **parts))


def tell(output: Path, *statuses: RunStatus | str) -> None:
    """Write status files; a run that is only named is done."""
    entries = [s if isinstance(s, RunStatus) else RunStatus(run=s, state="done") for s in statuses]
    for label in {entry.run.split("_")[0].removeprefix("sub-") for entry in entries}:
        own = [entry for entry in entries if entry.run.startswith(f"sub-{label}")]
        write_status(output, label, own)


def ask(output: Path, model: str | None = None, **select) -> TabulateCall:
    dataset = output.parent / "derivatives"
    dataset.mkdir(exist_ok=True)
    settings = TabulateSettings(model=model, select=Select(**select))
    return TabulateCall(dataset=dataset, output=output, settings=settings)


def collect(output: Path, model: str | None = None, **select):
    """Write all tables and return what was to be said of them."""
    call = ask(output, model, **select)
    tables = make_tables(call)
    write_tables(call, tables)
    return tables


def read(output: Path, name: str) -> list[dict[str, str]]:
    table = pd.read_csv(output / name, sep="\t", dtype=str, keep_default_na=False)
    return table.to_dict("records")


def test_a_call_leaves_what_it_started_from_and_what_it_said(tmp_path):
    output = tmp_path / "out"
    embed(output, RUNS[0])
    embed(output, RUNS[1]).write_text("")
    call = replace(ask(output, model="tiny", tasks=("rest",)), command=("slimbrain", "group"))
    write_tables(call, make_tables(call))
    (logs,) = (path for path in (output / "logs").iterdir() if path.is_dir())
    assert read_settings(TabulateSettings, logs / "slimbrain.toml", {}) == call.settings
    assert (logs / "command.txt").read_text() == "slimbrain group\n"
    assert RUNS[1] in (logs / "slimbrain.log").read_text()


def read_runs(output):
    return read(output, f"{STEM}_runs.tsv")


def read_people(output):
    return read(output, "phenotype/slimbrain.tsv")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Outputs of two people, of one of them two runs."""
    folder = tmp_path / "out"
    for number, run in enumerate(RUNS):
        embed(folder, run, (number, 0.1, -2.5))
    tell(folder, *RUNS)
    return folder


def test_group_keeps_tasks_apart(output):
    embed(output, "sub-01_task-movie")
    tell(output, *RUNS, "sub-01_task-movie")
    (note,) = collect(output).notes
    assert "movie, rest" in note and "--task-id" in note
    rows = [(row["participant_id"], row["task"], row["run"]) for row in read_runs(output)]
    assert rows == [
        ("sub-01", "movie", "n/a"),
        ("sub-01", "rest", "01"),
        ("sub-01", "rest", "02"),
        ("sub-02", "rest", "01"),
    ]
    assert collect(output, tasks=("rest",)).notes == ()
    assert [row["task"] for row in read_runs(output)] == ["rest"] * 3
    assert [row["runs"] for row in read_people(output)] == ["2", "1"]


def test_array_table_and_runs_are_in_one_order_with_every_digit(tmp_path):
    output, draw = tmp_path / "out", np.random.default_rng(0)
    given = {f"sub-{n:02d}_ses-b_task-x": draw.standard_normal(7) * 10.0**n for n in range(5)}
    vectors = {run: values.astype(np.float32) for run, values in given.items()}
    for run in reversed(vectors):
        embed(output, run, vectors[run])
    tell(output, *vectors, refuse("sub-03_ses-a_task-x"))
    collect(output)
    expected = np.stack(list(vectors.values()))
    np.testing.assert_array_equal(np.load(output / f"{STEM}_embeddings.npy"), expected)
    table = pd.read_csv(output / f"{STEM}_embeddings.tsv", sep="\t")
    np.testing.assert_array_equal(table.filter(regex=r"^e\d").to_numpy(np.float32), expected)
    done = [row for row in read_runs(output) if row["state"] == "done"]
    assert list(table["participant_id"]) == [row["participant_id"] for row in done]
    assert set(table["session_id"]) == {"ses-b"}


def test_a_run_is_listed_whether_status_file_or_sidecar_tells_of_it(output):
    tell(output, refuse("sub-01_task-rest_run-03"))  # As after a call for that run alone.
    tables = collect(output)
    rows = [(row["run"], row["state"], row["reason"]) for row in read_runs(output)]
    done = [(number, "done", "n/a") for number in ("01", "02")]
    assert rows == [*done, ("03", "refused", "too-short"), ("01", "done", "n/a")]
    assert (tables.refused, tables.damaged) == (1, ())
    people = read_people(output)
    assert [(row["runs"], row["refused_runs"]) for row in people] == [("2", "1"), ("1", "0")]


def test_quality_figures_come_from_the_sidecar(output):
    notice = {"code": "low-coverage", "message": "80 %", "file": None}
    facts = {"Coverage": 0.8, "MeanFramewiseDisplacement": 0.25, "Warnings": [notice, notice]}
    embed(output, RUNS[0], facts=facts)
    collect(output)
    first, second, _ = read_runs(output)
    assert (first["coverage"], first["mean_framewise_displacement"]) == ("0.8", "0.25")
    assert (first["warnings"], first["space"], first["rung"]) == ("low-coverage", "T1w", "1")
    assert (first["repetition_time"], first["model"]) == ("0.72", "tiny")
    assert (second["warnings"], second["mean_framewise_displacement"]) == ("n/a", "n/a")
    person, other = read_people(output)
    assert (person["coverage"], person["mean_framewise_displacement"]) == ("0.85", "0.25")
    assert other["mean_framewise_displacement"] == "n/a"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda table: table.unlink(), "No such file"),
        (lambda table: table.write_text("e0000\n1\n"), "not the one written"),
        (lambda table: table.with_suffix(".json").write_text('{"Model": '), "JSON"),
        (lambda table: table.with_suffix(".json").write_text("{}"), "Outputs"),
        (lambda table: table.with_suffix(".json").write_text("[]"), ""),
        (lambda table: table.with_suffix(".json").unlink(), "no file"),
    ],
)
def test_damaged_outputs_are_named_and_the_others_go_on(output, damage, found):
    damage(place(output, RUNS[1]))
    (refusal,) = collect(output).damaged
    assert (refusal.run, refusal.code) == (RUNS[1], "output-bad")
    assert RUNS[1] in refusal.file and found in refusal.found
    rows = [(row["state"], row["reason"]) for row in read_runs(output)]
    assert rows == [("done", "n/a"), ("refused", "output-bad"), ("done", "n/a")]
    assert len(np.load(output / f"{STEM}_embeddings.npy")) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{"run": 1}]}'])
def test_damaged_status_file_is_named_and_costs_no_run(output, text):
    (output / "logs/sub-01_status.json").write_text(text)
    (refusal,) = collect(output).damaged
    assert (refusal.run, refusal.file) == ("sub-01", "logs/sub-01_status.json")
    assert [row["state"] for row in read_runs(output)] == ["refused", "done", "done", "done"]


def test_status_files_are_joined_but_for_a_torn_one(output):
    (output / "logs/sub-01_status.json").write_text('{"runs"')
    collect(output)
    joined = json.loads((output / "logs/status.json").read_text())
    assert [person["participant_id"] for person in joined] == ["sub-02"]


def test_several_models_are_refused_and_listed(output):
    embed(output, RUNS[1], model="mine", sha="b" * 64)
    with pytest.raises(CallRefused, match=r"tiny \(a{12}\): 2; mine \(b{12}\): 1") as caught:
        make_tables(ask(output))
    assert caught.value.reason == "several-models"


@pytest.mark.parametrize("model", ["mine", "some/folder/mine", "bbbbbbbbbbbb"])
def test_a_model_is_chosen_by_name_folder_or_checksum(output, model):
    embed(output, RUNS[1], (9.0, 9.0, 9.0), model="mine", sha="b" * 64)
    (note,) = collect(output, model).notes
    assert "2 of 3 runs" in note
    states = [(row["model"], row["state"]) for row in read_runs(output)]
    assert states == [("tiny", "left-out"), ("mine", "done"), ("tiny", "left-out")]
    assert np.load(output / f"{STEM}_embeddings.npy").tolist() == [[9.0] * 3]
    assert [row["runs"] for row in read_people(output)] == ["1", "0"]


def test_several_settings_are_refused_with_what_differs(output):
    embed(output, RUNS[1], windows=4)
    for model in (None, "tiny"):
        with pytest.raises(CallRefused, match=r"rank.windows 8: 2; .*rank.windows 4: 1") as caught:
            make_tables(ask(output, model))
        assert "views" not in caught.value.found


def test_a_model_that_made_nothing_is_refused_with_those_that_did(output):
    with pytest.raises(CallRefused, match=r"by base; found runs by tiny") as caught:
        make_tables(ask(output, "base"))
    assert caught.value.reason == "no-runs"


@pytest.fixture
def predicted(output: Path) -> Path:
    for run in RUNS:
        embed(output, run, heads=HEADS)
    predict(output, "01", RUNS[:2], heads=HEADS)
    return output


def test_predictions_of_a_person_stand_in_one_row(predicted):
    (note,) = collect(predicted).notes
    assert "no predictions of sub-02 here" in note
    person, other = read_people(predicted)
    told = {
        "predicted_runs": "2",
        "flag": "out-of-distribution",
        "age": "31.25",
        "age_lower": "27.5",
        "age_upper": "35",
        "age_percentile": "40.5",
        "sex_F": "0.125",
        "sex_M": "0.875",
    }
    assert list(person)[-len(told) :] == list(told)
    assert {name: person[name] for name in told} == told
    assert {other[name] for name in told} == {"n/a"}
    sidecar = json.loads((predicted / "phenotype/slimbrain.json").read_text())
    assert sidecar["age_upper"]["Units"] == "years"
    assert "r 0.50" in sidecar["age"]["Description"]
    assert "female" in sidecar["sex_F"]["Description"]


def test_predictions_from_runs_or_models_that_were_not_chosen_are_not_shown(predicted):
    collect(predicted, runs=("1",))
    assert [row["age"] for row in read_people(predicted)] == ["n/a", "n/a"]
    predict(predicted, "01", RUNS[:2], heads=HEADS, sha="c" * 64)
    collect(predicted)
    assert [row["age"] for row in read_people(predicted)] == ["n/a", "n/a"]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ("age n/a many 1 2 3 yes n/a", "many"),
        ("\n".join(PREDICTIONS.splitlines()[:3]), "other outcomes"),
    ],
)
def test_damaged_predictions_are_named(predicted, rows, found):
    predict(predicted, "01", RUNS[:2], rows, heads=HEADS)
    (refusal,) = collect(predicted).damaged
    assert refusal.run == "sub-01" and found in refusal.found
    assert [row["runs"] for row in read_people(predicted)] == ["2", "1"]


def test_an_outcome_called_like_another_column_gets_a_column_of_its_own(output):
    heads = [{**HEADS[0], "Outcome": "runs"}]
    for run in RUNS:
        embed(output, run, heads=heads)
    predict(output, "01", RUNS[:1], "runs n/a 7.5 n/a n/a n/a yes n/a", heads=heads)
    collect(output)
    person = read_people(output)[0]
    assert (person["runs"], person["predicted_runs"]) == ("2", "1")
    assert person["predicted_predicted_runs"] == "7.5"


def test_without_heads_people_have_runs_and_quality_only(output):
    collect(output)
    names = "participant_id runs refused_runs coverage mean_framewise_displacement".split()
    assert list(read_people(output)[0]) == names


def test_people_are_in_the_order_of_the_datasets_table(output):
    call = ask(output)
    (call.dataset / "participants.tsv").write_text("participant_id\nsub-02\nsub-99\nsub-01\n")
    collect(output)
    people = [row["participant_id"] for row in read_people(output)]
    assert people == ["sub-02", "sub-01"]
    assert [row["participant_id"] for row in read_runs(output)] == ["sub-02", "sub-01", "sub-01"]


def test_a_second_call_for_runs_found_up_to_date_gives_the_same_bytes(predicted):
    def files():
        written = [*predicted.glob(f"{STEM}_*"), *predicted.glob("phenotype/*")]
        return {file.name: file.read_bytes() for file in written}

    collect(predicted)
    before = files()
    tell(predicted, *(RunStatus(run=run, state="current") for run in RUNS))
    collect(predicted)
    assert files() == before and len(before) == 7


def test_every_column_is_described(predicted):
    collect(predicted)
    for name in (f"{STEM}_runs", f"{STEM}_embeddings", "phenotype/slimbrain"):
        sidecar = json.loads((predicted / f"{name}.json").read_text())
        columns = list(read(predicted, f"{name}.tsv")[0])
        if "e0000" in columns:
            columns[columns.index("e0000") :] = ["e0000 to e0002"]
        assert all(sidecar[column]["Description"] for column in columns)
    sources = json.loads((predicted / f"{STEM}_embeddings.json").read_text())["Sources"]
    assert sources == [
        f"bids::{place(predicted, run).relative_to(predicted).as_posix()}" for run in RUNS
    ]


def test_embeddings_of_an_earlier_call_go_where_no_run_is_done(output):
    collect(output)
    for run in RUNS:
        place(output, run).unlink()
        place(output, run).with_suffix(".json").unlink()
    tell(output, *map(refuse, RUNS))
    tables = collect(output)
    assert (tables.embeddings, tables.refused) == (None, 3)
    assert list(output.glob(f"{STEM}_embeddings*")) == []
    assert {row["reason"] for row in read_runs(output)} == {"too-short"}


def test_filters_leave_what_concerns_a_person_as_a_whole(output):
    tell(output, refuse("sub-02"))
    collect(output, runs=("2",))
    rows = [(row["participant_id"], row["run"], row["state"]) for row in read_runs(output)]
    assert rows == [("sub-01", "02", "done"), ("sub-02", "n/a", "refused")]


def test_each_sidecar_is_read_once(output, monkeypatch):
    seen = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path.name) or whole(path))
    make_tables(ask(output))
    assert len(seen) == len(set(seen)) == 2 * len(RUNS)


@pytest.mark.parametrize(
    ("select", "reason", "words"),
    [
        ({"tasks": ("movie",)}, "no-runs", ["task movie", "task rest"]),
        ({"participants": ("3",)}, "no-participant", ["sub-3", "01"]),
    ],
)
def test_selection_that_leaves_nothing_says_what_there_is(output, select, reason, words):
    with pytest.raises(CallRefused) as caught:
        make_tables(ask(output, **select))
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("folder", [".", "sub-01/func", "logs"])
def test_folder_without_outputs_says_to_run_the_participant_level_first(tmp_path, folder):
    (tmp_path / "out" / folder).mkdir(parents=True)
    with pytest.raises(CallRefused, match=r"no-runs.*run the participant level"):
        make_tables(ask(tmp_path / "out"))


def test_dataset_that_is_not_there_is_refused(output):
    call = replace(ask(output), dataset=output / "gone")
    with pytest.raises(CallRefused, match="no-input"):
        make_tables(call)
