"""Every public complaint that is answered has tests, and they are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = "docs/reference/complaints.md"


@pytest.fixture
def rows(pages):
    return pages[PAGE].rows("# Complaints and answers")


@cache
def list_tests(path: str) -> frozenset[str]:
    """Return the names of a file's tests, without running it."""
    file = ROOT / path
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return frozenset(name for name in functions if name.startswith("test_"))


def test_every_complaint_names_where_it_was_made_and_what_proves_the_answer(rows):
    assert len(rows) > 50
    for complaint, answer, tests in rows:
        assert re.search(r"\([\w.-]+/[\w.-]+#\d+(, [\w.-]+/[\w.-]+#\d+)*\)$", complaint), complaint
        assert answer
        assert re.fullmatch(r"`tests/[\w/]+\.py::\w+`(, `tests/[\w/]+\.py::\w+`)*", tests), tests


def test_every_test_named_is_there(rows):
    named = [name for _, _, tests in rows for name in re.findall(r"`(.+?)`", tests)]
    missing = [name for name in named if name.split("::")[1] not in list_tests(name.split("::")[0])]
    assert missing == []


def test_no_complaint_stands_twice(rows):
    named = [name for complaint, _, _ in rows for name in re.findall(r"[\w./-]+#\d+", complaint)]
    assert len(named) == len(set(named))
