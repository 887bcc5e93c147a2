"""What pyproject.toml demands: all that is imported, and floors that are tried."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imported by those who have asked for an extra, which brings it.
OPTIONAL = {"brainmarks", "datasets", "tensorboard"}
# Parts of a library with a name of their own: it demands them itself.
PARTS = {"contourpy": "matplotlib", "markupsafe": "jinja2"}
# Run by people and read by us, without being imported.
BESIDE = {"templateflow"}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_requirements(requirements: list[str]) -> dict[str, str]:
    """Return the lowest version that is allowed, by name."""
    found = [re.match(r"([\w.-]+?)>=([\d.]+)", one) for one in requirements]
    return {normalise(one[1]): one[2] for one in found}


def list_imports() -> set[str]:
    """Return the names of all modules that the package imports, without its own and Python's."""
    imported = set()
    for file in (ROOT / "slimbrain_app").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    return imported - set(sys.stdlib_module_names) - {"slimbrain_app"}


def test_what_is_imported_is_demanded_and_the_other_way_round():
    owners = packages_distributions()
    names = {PARTS.get(name, name) for name in list_imports() - OPTIONAL}
    imported = {normalise(owners[name][0]) for name in names}
    assert imported | BESIDE == set(name_requirements(PROJECT["dependencies"]))


def test_minimum_has_the_floor_of_every_dependency():
    lines = (ROOT / "requirements.minimum").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins == name_requirements(PROJECT["dependencies"])


def test_lock_has_what_the_makefile_installs():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {normalise(line.split("==")[0]) for line in lines}
    extras = PROJECT["optional-dependencies"]
    demanded = name_requirements([*PROJECT["dependencies"], *extras["dev"], *extras["docs"]])
    assert set(demanded) <= locked
