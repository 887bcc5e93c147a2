"""The site: built without a warning, and every link in it leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Anchors(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and name == "id":
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = ["-q", "-W", "--keep-going", "-n", "-c", "docs", "-d", folder / "trees", ".", folder]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def anchors(site) -> dict[Path, Anchors]:
    # The theme's static files hold a template.
    built = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    return {file: Anchors(file.read_text(encoding="utf-8")) for file in built}


def test_every_link_leads_to_a_file_and_an_anchor(anchors):
    dead = []
    for page, found in anchors.items():
        for link in map(urlsplit, found.links):
            if link.scheme or link.netloc:
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            there = target.is_file()
            if there and link.fragment and target in anchors:
                there = unquote(link.fragment) in anchors[target].ids
            if not there:
                dead.append((page.name, link.geturl()))
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(anchors):
    for page in anchors:
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page
        assert 'rel="stylesheet" href="http' not in text, page


def test_every_page_and_every_public_name_is_there(site, anchors, pages):
    import slimbrain_app

    built = {file.relative_to(site).with_suffix("").as_posix() for file in anchors}
    assert {name.removesuffix(".md") for name in pages} <= built
    ids = anchors[site / "docs/reference/api.html"].ids
    assert {f"slimbrain_app.{name}" for name in slimbrain_app.__all__} <= ids
    text = (site / "docs/explanation/method.html").read_text(encoding="utf-8")
    assert text.count("<svg role=") == 3
