"""What the pages tell to type: it parses, it runs, and it says what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.bids.discover import read_filter_file
from slimbrain_app.cli import tools
from slimbrain_app.cli.app import read_options
from slimbrain_app.settings import ParticipantSettings, read_settings

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "200",
}
# Progress, which a terminal takes back.
_PROGRESS = re.compile(r"\[\d+/\d+\] ")


def list_commands(pages):
    """Yield page and words of each call of ours in the blocks of shell."""
    for page in pages.values():
        for _, block in page.blocks("sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                # A variable may stand for a label or a number.
                words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line), comments=True)
                words = words[1:] if words[:1] == ["exec"] else words
                if words and words[0] in ("slimbrain", "slimbrain-tools"):
                    yield page.name, words


def test_every_command_is_understood(pages):
    commands = list(list_commands(pages))
    assert {words[0] for _, words in commands} == {"slimbrain", "slimbrain-tools"}
    for _, (program, *words) in commands:
        if program == "slimbrain":
            read_options(words)
        elif words != ["--version"]:
            tools.make_parser().parse_strictly(words)


def test_every_example_of_settings_and_filters_is_taken(pages, tmp_path):
    settings, filters = tmp_path / "settings.toml", tmp_path / "filter.json"
    ((_, text),) = pages["docs/reference/settings.md"].blocks("toml")
    settings.write_text(text)
    assert read_settings(ParticipantSettings, settings, {}).rank.windows == 12
    ((_, text),) = pages["docs/how-to/choose-runs.md"].blocks("json")
    filters.write_text(text)
    taken, notices = read_filter_file(filters)
    assert len(taken) == 3
    assert not notices


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tutorial.md",
        "docs/how-to/read-outputs.md",
        "docs/how-to/use-in-scikit-learn.md",
        "docs/reference/outputs.md",
    ],
)
def test_python_of_a_page_runs_from_top_to_bottom(pages, demo, page):
    blocks = [block for _, block in pages[page].blocks("python")]
    assert blocks
    run_python("".join(blocks), demo)


def run_python(code: str, folder: Path) -> str:
    return run([sys.executable, "-W", "error", "-c", code], folder)


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    # A refused run is part of the tutorial.
    assert result.returncode in (0, 65), result.stdout
    return result.stdout


def plain(text: str, folder: Path) -> list[str]:
    """Return lines without what differs between machines: figures, places, order of streams."""
    text = text.replace(str(folder), "/home/you")
    lines = [line for line in text.splitlines() if not _PROGRESS.match(line)]
    return sorted(re.sub(r"-?\d+(\.\d+)?", "#", " ".join(line.split())) for line in lines if line)


@pytest.mark.slow
def test_tutorial_runs_as_typed_and_says_what_it_says(pages, tmp_path):
    said = ""
    for kind, block in pages["docs/tutorial.md"].blocks("sh", "python", "text"):
        if kind == "text":
            assert plain(said, tmp_path) == plain(block, tmp_path)
        else:
            command = ["bash", "-ec", block]
            said = run_python(block, tmp_path) if kind == "python" else run(command, tmp_path)
