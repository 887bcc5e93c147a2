from __future__ import annotations

import json

from slimbrain_app.bids.status import (
    has_status,
    join_status,
    read_status,
    remove_status,
    write_status,
)
from slimbrain_app.records import Notice, Refusal, RunStatus

DONE = RunStatus(
    run="sub-01_task-rest_run-01",
    state="done",
    outputs=("a", "b"),
    notices=(Notice(code="low-coverage", message="80 %"),),
    spent=(("prepare", 1.5), ("rank", 0.25)),
    peak_mib=300,
)
REFUSED = RunStatus(
    run="sub-01_task-rest_run-02",
    state="refused",
    refusal=Refusal(
        run="sub-01_task-rest_run-02",
        code="too-short",
        file="x.nii.gz",
        expected="28.8 s",
        found="24 s",
        advice="leave it out",
    ),
)


def test_what_is_written_is_read_back_in_the_order_of_names(tmp_path):
    write_status(tmp_path, "01", [REFUSED, DONE])
    assert read_status(tmp_path, "01") == (DONE, REFUSED)


def test_a_reader_finds_reason_and_message(tmp_path):
    write_status(tmp_path, "01", [REFUSED])
    (run,) = json.loads((tmp_path / "logs/sub-01_status.json").read_text())["runs"]
    assert run["reason"] == "too-short"
    assert all(part in run["message"] for part in ("x.nii.gz", "28.8 s", "24 s", "leave it out"))


def test_absent_and_torn_files_say_nothing(tmp_path):
    assert read_status(tmp_path, "01") == ()
    (tmp_path / "logs").mkdir()
    for text in ("", "[]", "{}", '{"runs": [{"run": 1}]}'):
        (tmp_path / "logs/sub-01_status.json").write_text(text)
        assert read_status(tmp_path, "01") == ()


def test_union_holds_every_participant(tmp_path):
    for label in ("01", "02"):
        write_status(tmp_path, label, [])
    join_status(tmp_path)
    content = json.loads((tmp_path / "logs/status.json").read_text())
    assert [entry["participant_id"] for entry in content] == ["sub-01", "sub-02"]


def test_removed_status_is_gone(tmp_path):
    remove_status(tmp_path, "01")
    write_status(tmp_path, "01", [])
    assert has_status(tmp_path, "01")
    remove_status(tmp_path, "01")
    assert not has_status(tmp_path, "01")
