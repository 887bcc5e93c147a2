"""The workflows: pinned, bounded, and allowed no more than they need.

Their form is held by `make check-release`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXTS = {file.stem: file.read_text(encoding="utf-8") for file in WORKFLOWS}


def list_jobs():
    for name, text in TEXTS.items():
        for job, content in yaml.safe_load(text)["jobs"].items():
            yield pytest.param(content, id=f"{name}-{job}")


@pytest.mark.parametrize("job", list_jobs())
def test_every_action_is_pinned_by_commit_and_every_job_ends(job):
    assert job["timeout-minutes"] <= 180
    for step in job["steps"]:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", f"none/none@{'0' * 40}"))


@pytest.mark.parametrize("name", TEXTS)
def test_pins_tell_their_version(name):
    lines = [line for line in TEXTS[name].splitlines() if "uses:" in line]
    assert lines
    assert all(re.search(r" # v\d+\.\d+\.\d+$", line) for line in lines)


@pytest.mark.parametrize("name", TEXTS)
def test_no_registry_is_named(name):
    assert not re.search(r"https?://|\w+\.(org|com|io)\b", TEXTS[name])


def test_only_what_publishes_may_write():
    jobs = yaml.safe_load(TEXTS["release"])["jobs"]
    writing = {
        job: {key for key, value in content["permissions"].items() if value == "write"}
        for job, content in jobs.items()
        if "write" in content["permissions"].values()
    }
    assert writing == {
        "publish": {"id-token"},
        "images": {"packages"},
        "announce": {"contents"},
    }
    assert yaml.safe_load(TEXTS["test"])["permissions"] == {"contents": "read"}


def test_every_target_that_is_made_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    made = {word for text in TEXTS.values() for word in re.findall(r"make ([a-z-]+)", text)}
    for text in TEXTS.values():
        made |= set(re.findall(r"test-(?:all|containers)", text))
        made |= {f"test-{one}" for one in re.findall(r"- set: (\w+)", text)}
    assert {"test", "demo", "docs", "dist", "test-minimum", "test-newest"} <= made <= targets
