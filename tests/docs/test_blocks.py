"""Every block of shell and Python in a page runs, in order, as it stands there.

A page has one empty folder, which stands for `/data` as well, one home, and one interpreter. What
readers are told to have is there: see `lay_out`. Slurm is a stand-in that numbers jobs and runs
none; what jobs and images do is for the tests marked `containers`. Before a block may stand, where
nobody sees it:

- ``<!-- not run: needs REASON -->``, one of REASONS
- ``<!-- ends with CODE -->``, where that is not 0
- ``<!-- file: NAME -->``: a file that other blocks of the page read, there from the beginning
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from slimbrain_app.model.official import export_checkpoint
from slimbrain_app.model.packages import create_package

BINARIES = Path(sys.executable).parent
RUN = ("sh", "bash", "python")
REASONS = {
    "a container engine",
    "Slurm",
    "a GPU",
    "a network",
    "a cohort",
    "to be stopped",
}
MARK = re.compile(r"not run: needs (.+)|ends with (\d+)|file: (\S+)")
# Those that take seconds; the others are slow.
QUICK = {
    "docs/explanation/jepa.md",
    "docs/how-to/repeat-a-benchmark.md",
    "docs/how-to/run-in-a-container.md",
    "docs/how-to/train-on-a-cluster.md",
    "docs/how-to/use-a-laptop.md",
    "docs/how-to/watch-a-training.md",
}
# Their Python alone is quick, on what the tutorial leaves.
QUICK_IN_PYTHON = {
    "README.md",
    "docs/how-to/read-outputs.md",
    "docs/reference/outputs.md",
    "docs/tutorial.md",
}
STAND_INS = {
    "sbatch": """#!/bin/bash
echo job >> "$HOME/submitted"
number=$(wc -l < "$HOME/submitted")
[[ " $* " == *" --parsable "* ]] && echo "$number" || echo "Submitted batch job $number"
""",
    "squeue": "#!/bin/bash\n",
    "scontrol": "#!/bin/bash\n",
}
# Runs one block after another in one namespace; warnings that are not for users are errors.
INTERPRETER = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.simplefilter("default", UserWarning)
for line in sys.stdin:
    exec(compile(json.loads(line), "block", "exec"))
    print("--- done", flush=True)
"""
LOG = "".join(
    json.dumps({"event": "step", "step": step, "pass": 1, "loss": 1 / step}) + "\n"
    for step in range(1, 101)
)
# Progress, which a terminal takes back.
_PROGRESS = re.compile(r"\[\d+/\d+\] ")


def lay_out(page: str, text: str, folder: Path, demo: Path) -> None:
    """Put into an empty folder what the page's readers have."""
    (folder / "home").mkdir()
    (folder / "bin").mkdir()
    for name, script in STAND_INS.items():
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    if "simulate demo/fmriprep" not in text:
        shutil.copytree(demo / "demo", folder / "demo")
    derivatives = demo / "demo/fmriprep"
    (folder / "data").mkdir()
    (folder / "data/participants.txt").write_text("01\n02\n")
    for place in ("data/fmriprep", "home/demo/fmriprep", "BIDS_DIR", "fmriprep"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).symlink_to(derivatives)
    for block in MORE.get(page, ()):
        block(folder, demo)


def rename_runs(folder: Path, demo: Path) -> None:
    """Give the runs a session, an acquisition and a reconstruction."""
    dataset = folder / "data/fmriprep"
    dataset.unlink()
    shutil.copytree(demo / "demo/fmriprep", dataset)
    for file in list(dataset.glob("sub-*/func/*")):
        new = file.parents[1] / "ses-1/func"
        new.mkdir(parents=True, exist_ok=True)
        name = file.name.replace("_task-rest_", "_ses-1_task-rest_acq-a_rec-x_")
        file.rename(new / name)


def add_a_third_person(folder: Path, demo: Path) -> None:
    """Have three people, as the tutorial has."""
    new = folder / "demo/fmriprep/sub-03/func"
    new.mkdir(parents=True)
    for file in (folder / "demo/fmriprep/sub-02/func").iterdir():
        shutil.copy(file, new / file.name.replace("sub-02", "sub-03"))


def keep_an_earlier_call(folder: Path, demo: Path) -> None:
    shutil.copytree(demo / "demo/slimbrain", folder / "data/slimbrain")
    settings = next((folder / "data/slimbrain/logs").glob("*/slimbrain.toml"))
    settings.parent.rename(settings.parents[1] / "CALL")


def write_log(folder: Path, demo: Path) -> None:
    (folder / "models/tiny").mkdir(parents=True)
    (folder / "models/tiny/training.jsonl").write_text(LOG)


def release_weights(folder: Path, demo: Path) -> None:
    package = create_package(folder / "released", "official", seed=0)
    export_checkpoint(package, folder / "best_model.pth")


def name_people(folder: Path, demo: Path) -> None:
    (folder / "DERIVATIVES").symlink_to("demo/people")


MORE: dict[str, tuple[Callable[[Path, Path], None], ...]] = {
    "docs/how-to/choose-runs.md": (rename_runs,),
    "docs/how-to/resume-and-overwrite.md": (keep_an_earlier_call,),
    "docs/how-to/use-in-python.md": (add_a_third_person,),
    "docs/how-to/watch-a-training.md": (write_log,),
    "docs/how-to/make-a-model-package.md": (release_weights,),
    "docs/how-to/evaluate-and-predict.md": (name_people,),
    "docs/reference/command-line.md": (release_weights,),
}


class Reader:
    """Who types a page's blocks, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([f"{folder}/bin", str(BINARIES), os.environ["PATH"]]),
            "HOME": str(folder / "home"),
            "MPLBACKEND": "Agg",
            "COLUMNS": "200",
        }
        self._interpreter: subprocess.Popen[str] | None = None

    def run(self, block) -> str:
        """Return what a block prints."""
        text = re.sub(r"(?<![\w.])/data\b", str(self.folder / "data"), block.text)
        if block.kind == "python":
            return self._run_python(text)
        expected = re.match(r"ends with (\d+)", block.mark)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == int(expected[1] if expected else 0), text + result.stdout
        return result.stdout

    def _run_python(self, text: str) -> str:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, "-c", INTERPRETER],
                cwd=self.folder,
                env=self.environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._interpreter.stdin.write(json.dumps(text) + "\n")
        self._interpreter.stdin.flush()
        said = []
        for line in self._interpreter.stdout:
            if line == "--- done\n":
                return "".join(said)
            said.append(line)
        raise AssertionError(text + "".join(said))

    def leave(self) -> None:
        if self._interpreter is not None:
            self._interpreter.communicate()


def is_run(block) -> bool:
    return block.kind in RUN and not block.mark.startswith(("not run: ", "file: "))


def mark_page(page):
    """Return with which marks a page's test runs, None if the page has nothing to run."""
    if not any(map(is_run, page.marked_blocks())):
        return None
    return () if page.name in QUICK else pytest.mark.slow


@pytest.fixture
def read(demo, tmp_path):
    """Run a page's blocks of some kinds; return all blocks, each with what it printed."""
    reader = Reader(tmp_path)

    def read(page, *kinds: str):
        lay_out(page.name, page.text if "sh" in kinds else "", tmp_path, demo)
        for block in page.marked_blocks():
            if block.mark.startswith("file: "):
                (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
        return [
            (block, reader.run(block) if is_run(block) and block.kind in kinds else "")
            for block in page.marked_blocks()
        ]

    yield read
    reader.leave()


def test_every_block_of_a_page_runs(page, read, tmp_path):
    said = ""
    for block, output in read(page, *RUN):
        if block.kind == "text" and page.name == "docs/tutorial.md":
            assert plain(said, tmp_path) == plain(block.text, tmp_path)
        said = output


@pytest.mark.parametrize("name", sorted(QUICK_IN_PYTHON))
def test_python_of_a_page_runs_from_top_to_bottom(name, pages, read):
    assert any(block.kind == "python" for block, _ in read(pages[name], "python"))


def test_every_mark_is_known_and_every_reason_not_to_run_is_listed(pages):
    reasons: Counter[str] = Counter()
    for page in pages.values():
        for block in page.marked_blocks():
            known = MARK.fullmatch(block.mark)
            assert known or block.kind not in RUN or not block.mark, (page.name, block.mark)
            reasons.update(filter(None, [known and known[1]]))
    assert set(reasons) <= REASONS, reasons


def plain(text: str, folder: Path) -> list[str]:
    """Return lines without what differs between machines: figures, places, order of streams."""
    text = text.replace(str(folder), "/home/you")
    lines = [line for line in text.splitlines() if not _PROGRESS.match(line)]
    return sorted(re.sub(r"-?\d+(\.\d+)?", "#", " ".join(line.split())) for line in lines if line)
