"""The page for troubles and the program: each message is provoked, and printed as it stands there.

What provokes them is in the folder ``troubles``, a file for each group of the page or two.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from slimbrain_app.cli.app import main
from slimbrain_app.errors import REASONS, Scope

from .troubles import breaks, groups, oddities, runs, starts  # noqa: F401  They enter scenarios.
from .troubles.scenario import EMBED, SCENARIOS, Place, Scenario

PAGE = "docs/troubleshooting.md"
# What differs from one machine, call or release of the model to the next, and its stand-in. So does
# the temporary folder in which all happens: the page calls it /data.
VARYING = {
    r"\d{8}-\d{6}_[0-9a-f]{8}": "CALL",
    r"\b[0-9a-f]{64}\b": "CHECKSUM",
    r"\([0-9a-f]{12}\b": "(CHECKSUM",
    r"owner \d+:\d+": "owner OWNER",
    r"torch \S+ for (CPUs|CUDA [\d.]+)": "TORCH",
    r"process \d+ on \S+, last heard of \d+ s ago": "HOLDER",
    r"from \d\d:\d\d:\d\d on": "from TIME on",
}
# Reasons that the page leaves to the reference, and where they are met.
ELSEWHERE = {
    "collapsed": "in a training",
    "diverged": "in a training",
    "log-bad": "in a training whose log was changed",
    "extra-missing": "in a training that is to write for tensorboard",
    "loader-died": "in a training; a process has to be killed",
    "rendezvous": "in a training of several processes",
    "process-failed": "in a training of several processes",
    "process-killed": "in slimbrain-tools simulate",
    "cohort-bad": "in slimbrain-tools simulate",
    "jobs-bad": "in slimbrain-tools slurm",
    "slurm-missing": "in slimbrain-tools slurm",
    "atlas-bad": "in an evaluation with an atlas of one's own",
    "template-missing": "in slimbrain-tools export brainmarks",
}


@pytest.fixture(scope="module")
def finished(simulated, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "slimbrain"
    assert main([str(simulated), str(output), *EMBED, "--save-prepared"]) == 0
    return output


@pytest.fixture
def place(simulated, finished, tmp_path, capsys, monkeypatch) -> Place:
    place = Place(tmp_path, simulated, finished, capsys, monkeypatch)
    shutil.copytree(simulated, place.dataset)
    shutil.rmtree(place.dataset / "sub-02")
    return place


@pytest.fixture(scope="module")
def said() -> dict[Scenario, str]:
    """What scenarios have printed: one may be there for several messages."""
    return {}


@pytest.fixture(scope="module")
def messages(pages) -> dict[str, str]:
    """The page's messages by what they go by."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for _, block in pages[PAGE].blocks("text"):
        name = name_message(block)
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = block.strip()
    return found


def name_message(line: str) -> str:
    """Return the reason code in a line that is printed, or its first words."""
    bracketed = [code for code in re.findall(r"\[([a-z0-9-]+)\]", line) if code in REASONS]
    words = re.match(r"(?:slimbrain: )?([^;:(]*)", line)[1].split()
    leading = [word for word in words[:1] if word in REASONS]
    return next(iter(bracketed + leading), " ".join(words))


def settle(text: str) -> str:
    """Replace what varies."""
    for pattern, stand_in in VARYING.items():
        text = re.sub(pattern, stand_in, text)
    return text


@pytest.mark.parametrize("key", SCENARIOS)
def test_message_is_printed_as_it_stands_on_the_page(messages, place, said, key):
    scenario = SCENARIOS[key]
    if scenario not in said:
        said[scenario] = place.provoke(scenario).replace(str(place.folder), "/data")
    name = key.removesuffix(" 2")
    lines = [line for line in said[scenario].splitlines() if name_message(line) == name]
    assert lines, said[scenario]
    assert settle(lines[0]) == settle(messages[key])


def test_every_message_has_a_scenario_and_every_scenario_a_message(messages):
    assert set(messages) == set(SCENARIOS)


def test_every_reason_stands_on_the_page_or_is_left_to_another(messages):
    told = {code for code in REASONS if REASONS[code].scope is not Scope.WARNING}
    on_page = {key.removesuffix(" 2") for key in messages} & told
    assert on_page & set(ELSEWHERE) == set()
    assert on_page | set(ELSEWHERE) == told
