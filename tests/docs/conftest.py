"""Markdown, taken apart: pages, tables, blocks of code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_MARKED = re.compile(rf"(?:^ *<!-- ([^\n]+) -->\n)?{_BLOCK.pattern}", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Block:
    """A block of code, and what is said of it on the line before, where only tests see it."""

    mark: str
    kind: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return _BLOCK.sub("", self.text)

    def blocks(self, *kinds: str) -> list[tuple[str, str]]:
        """Return kind and content of blocks, in order."""
        return [block for block in _BLOCK.findall(self.text) if block[0] in kinds]

    def marked_blocks(self, *kinds: str) -> list[Block]:
        """Return blocks of any kind, or of some, with their marks, in order."""
        found = (
            Block(mark, kind, textwrap.dedent(text))
            for mark, kind, text in _MARKED.findall(self.text)
        )
        return [block for block in found if not kinds or block.kind in kinds]

    def section(self, heading: str) -> str:
        """Return what stands below a heading, up to the next one of its level or above."""
        level = heading.split()[0]
        _, _, below = f"\n{self.prose}".partition(f"\n{heading}\n")
        return re.split(rf"^#{{1,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]

    def rows(self, heading: str) -> list[list[str]]:
        """Return the cells of all tables below a heading, without their heads."""
        lines = [line for line in self.section(heading).splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in _CELL.split(line)[1:-1]] for line in lines]
        rules = [number for number, row in enumerate(cells) if set(row[0]) == {"-"}]
        heads = {number - 1 for number in rules} | set(rules)
        return [row for number, row in enumerate(cells) if number not in heads]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for one ``page`` each one that its module has marks for, or none."""
    if "page" in metafunc.fixturenames:
        marked = [(page, metafunc.module.mark_page(page)) for page in map(Page, PAGES)]
        given = [pytest.param(page, id=page.name, marks=m) for page, m in marked if m is not None]
        metafunc.parametrize("page", given)


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """Every page by its path below the repository."""
    return {page.name: page for page in map(Page, PAGES)}


@pytest.fixture(scope="session")
def demo(simulated: Path, headed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``demo/fmriprep`` and its output in ``demo/slimbrain``, with all extras."""
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(simulated, folder / "demo/fmriprep")
    command = ["slimbrain", "demo/fmriprep", "demo/slimbrain", "participant", "--nprocs", "1"]
    subprocess.run(
        [BINARIES / command[0], *command[1:], "--save-views", "--save-prepared", "--model", headed],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    tables = [BINARIES / "slimbrain", "demo/fmriprep", "demo/slimbrain", "group"]
    subprocess.run(tables, cwd=folder, check=True, capture_output=True)
    return folder
