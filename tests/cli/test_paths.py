"""No word on the command line, and no text in a file, leads to writing outside the output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLIMBRAIN = Path(sys.executable).with_name("slimbrain")
REFUSED = (64, 65, 66, 73, 78)
LONG = "a" * 5000


@pytest.fixture
def place(simulated, tmp_path):
    """A folder with derivatives, another to be spared, and two levels for an output."""
    (tmp_path / "fmriprep").symlink_to(simulated)
    (tmp_path / "spared").mkdir()
    (tmp_path / "spared/file").write_text("as it was")
    (tmp_path / "here/out").mkdir(parents=True)
    return tmp_path


def list_outside(place):
    inside = place / "here/out"
    listed = [path for path in place.rglob("*") if not path.is_relative_to(inside)]
    return {path: path.read_bytes() for path in listed if path.is_file()} | dict.fromkeys(listed)


def call(place, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the command, and hold it to writing nothing outside the output, and to no fault."""
    before = list_outside(place)
    level = words if words[0] in ("participant", "group") else ("participant", *words)
    command = [SLIMBRAIN, place / "fmriprep", place / "here/out", *level]
    done = subprocess.run(command, capture_output=True, cwd=place / "here")
    assert list_outside(place) == before
    assert b"Traceback" not in done.stderr and done.returncode != 70, done.stderr.decode()
    return done


@pytest.mark.parametrize(
    "words",
    [
        ("--participant-label", "../../spared"),
        ("--participant-label", "01", "/etc"),
        ("--session-id", "a\nb"),
        ("--participant-label=-x",),
        ("--participant-label", LONG),
        ("--participant-label", "é", "--task-id", "ü"),
        ("--participant-label", b"\xff"),
        ("--task-id", "../x"),
        pytest.param(("--model", "../../spared"), marks=pytest.mark.slow),
        pytest.param(("--model", ".."), marks=pytest.mark.slow),
        ("--model", LONG),
        pytest.param(("--model", "a\nb"), marks=pytest.mark.slow),
        ("--space", "../x"),
        ("group", "--action", "pretrain", "--package-name", "../../spared"),
        ("group", "--action", "pretrain", "--package-name", "a" * 300),
        ("group", "--participant-label", "../../spared"),
    ],
)
def test_no_word_leads_outside(place, words):
    assert call(place, *words).returncode in REFUSED
    assert list((place / "here/out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        ((), "x.toml", '[select]\nparticipants = ["../../spared"]'),
        pytest.param((), "x.toml", 'model = "a\\u0000b"', marks=pytest.mark.slow),
        (("group", "--action", "pretrain"), "x.toml", 'package_name = "../../spared"'),
        ((), "x.json", '{"bold": {"session": "../../spared"}}'),
        ((), "x.json", '{"bold": {"subject": ["../../spared", "/etc", "a\\u0000"]}}'),
        ((), "x.json", '{"../../spared": {}, "bold": {"../../spared": "x"}}'),
    ],
)
def test_no_file_of_settings_or_filters_leads_outside(place, words, name, text):
    (place / name).write_text(text)
    option = "--config" if name.endswith(".toml") else "--bids-filter-file"
    assert call(place, *words or ("participant",), option, place / name).returncode in REFUSED
    assert list((place / "here/out").iterdir()) == []


def test_no_label_in_a_table_or_a_status_leads_outside(place):
    logs = place / "here/out/logs"
    logs.mkdir()
    refusal = {"code": "flat", "file": "/etc/x", "expected": "a", "found": "b", "advice": "c"}
    names = ["sub-../../../spared/x", "/etc/x", "sub-01_ses-../../x_task-rest", "a\0b"]
    runs = [
        {"run": name, "state": "refused", "refusal": {"run": name, **refusal}, "warnings": []}
        | {"seconds": {}, "peak_mib": 0, "outputs": ["../../spared/file"]}
        for name in names
    ]
    for label in ("..", "01", "a\nb"):
        (logs / f"sub-{label}_status.json").write_text(json.dumps({"runs": runs}))
    (place / "fmriprep").unlink()
    (place / "fmriprep").mkdir()
    table = "participant_id\tsite\nsub-../../spared\tx\n/etc\tx\nsub-01\t../../spared\n"
    (place / "fmriprep/participants.tsv").write_text(table)
    done = call(place, "group")
    assert done.returncode == 0
    assert (place / "here/out/desc-slimbrain_runs.tsv").exists()


def test_no_name_in_a_dataset_leads_outside(place, simulated):
    dataset = place / "fmriprep"
    dataset.unlink()
    dataset.mkdir()
    description = "dataset_description.json"
    (dataset / description).write_bytes((simulated / description).read_bytes())
    for folder, stem in (
        ("sub-..", "sub-.._task-rest"),
        ("sub-01\n", "sub-01\n_task-rest"),
        ("sub-02/ses-..", "sub-02_ses-.._task-rest"),
        ("sub-03", f"sub-03_task-{'r' * 200}"),
        (b"sub-\xff".decode("utf-8", "surrogateescape"), "sub-04_task-rest"),
    ):
        (dataset / folder / "func").mkdir(parents=True)
        (dataset / folder / "func" / f"{stem}_desc-preproc_bold.nii.gz").write_bytes(b"x")
    assert call(place, "participant", "--nprocs", "1").returncode in REFUSED
    written = {file.name for file in (place / "here/out").iterdir()}
    assert not any(".." in name or "\n" in name for name in written)
