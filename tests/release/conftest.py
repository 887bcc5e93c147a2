"""What is released: the tracked files, and the archives that are built from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Release:
    """A tree of the tracked files alone, and the two archives that were built from it."""

    tree: Path
    files: frozenset[str]
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def tracked() -> frozenset[str]:
    """Files under version control, as they are in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no clone of the repository, so that nothing tells which files belong to it")
    return frozenset(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


@pytest.fixture(scope="session")
def release(tracked: frozenset[str], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Build both archives from the tracked files alone."""
    pytest.importorskip("hatchling", reason="hatchling builds the archives; it is in the dev extra")
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    built = build(tree, tree.with_name("built"))
    return Release(tree, tracked, next(built.glob("*.whl")), next(built.glob("*.tar.gz")))


def build(tree: Path, folder: Path) -> Path:
    """Build the wheel and the source archive of a tree into a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", folder]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=120)
    return folder
