"""The wheel and the source archive: what is in them, and that what is in them works."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from slimbrain_app import __version__

PACKAGES = ("slimbrain_app/", "brainmarks/")
METADATA = f"slimbrain-{__version__}.dist-info"


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_sdist(path: Path) -> dict[str, bytes]:
    prefix = f"slimbrain-{__version__}/"
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        assert all(member.name.startswith(prefix) for member in members)
        return {
            member.name.removeprefix(prefix): archive.extractfile(member).read()
            for member in members
        }


def test_wheel_holds_every_tracked_file_of_its_packages_and_no_other(release):
    inside = {name for name in read_wheel(release.wheel) if not name.startswith(METADATA)}
    assert inside == {name for name in release.files if name.startswith(PACKAGES)}


def test_source_archive_holds_every_tracked_file_but_hidden_ones(release):
    inside = set(read_sdist(release.sdist)) - {"PKG-INFO", ".gitignore"}
    assert inside == {name for name in release.files if not name.startswith(".")}


def test_source_archive_builds_the_same_wheel(release, tmp_path):
    for name, content in read_sdist(release.sdist).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    again = tmp_path / "dist" / release.wheel.name
    assert again.read_bytes() == release.wheel.read_bytes()


def test_wheel_is_pure_python_of_under_10_megabytes(release):
    assert release.wheel.name == f"slimbrain-{__version__}-py3-none-any.whl"
    assert release.wheel.stat().st_size < 10e6


def test_terms_of_everything_that_ships_are_in_the_metadata(release):
    inside = read_wheel(release.wheel)
    metadata = Parser().parsestr(inside[f"{METADATA}/METADATA"].decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "THIRD-PARTY.md"]
    for name in metadata.get_all("License-File"):
        assert inside[f"{METADATA}/licenses/{name}"] == (release.tree / name).read_bytes()


@pytest.mark.slow
def test_wheel_alone_simulates_embeds_and_reports(release, tmp_path):
    """Dependencies are those of this environment: what is tried is the wheel, not the index."""
    python = install(release.wheel, tmp_path / "env")
    programs, data, out = python.parent, tmp_path / "data", tmp_path / "out"

    def call(*words: object) -> str:
        done = subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = call(python, "-c", "import slimbrain_app; print(slimbrain_app.__file__)")
    assert Path(where).is_relative_to(tmp_path / "env")
    assert __version__ in call(programs / "slimbrain", "--version")
    coarse = ("--participants", 1, "--volumes", 40, "--voxel-size", 6)
    call(programs / "slimbrain-tools", "simulate", data, *coarse)
    call(programs / "slimbrain", data, out, "participant", "--nprocs", 1)
    assert (out / "sub-01.html").stat().st_size > 10_000
    assert list(out.glob("sub-01/func/*_embeddings.tsv"))
    assert "tiny" in call(programs / "slimbrain-tools", "models", "list")


def install(wheel: Path, env: Path) -> Path:
    """Install a wheel into a new environment that borrows this one's libraries."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True, timeout=120)
    python = env / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install"]
    subprocess.run([*command, "--no-index", "--no-deps", wheel], check=True, timeout=120)
    (site,) = env.glob("lib/python*/site-packages")
    # Paths that a .pth of this environment's adds, as the one to this repository, aren't followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
