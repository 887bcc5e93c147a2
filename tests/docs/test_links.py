"""Links between pages: each leads somewhere, and every page can be reached."""

from __future__ import annotations

import re

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def list_links(page):
    """Yield path and anchor of each link that stays in the repository."""
    for target in _LINK.findall(page.prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.path.parent / path).resolve() if path else page.path, anchor


def list_anchors(text):
    """Return the anchors of headings, as GitHub and most site makers form them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading(pages):
    dead = [
        (page.name, path.name, anchor)
        for page in pages.values()
        for path, anchor in list_links(page)
        if not path.exists() or (anchor and anchor not in list_anchors(path.read_text()))
    ]
    assert dead == []


def test_every_page_is_reached_from_the_readme(pages):
    by_path = {page.path: page for page in pages.values()}
    reached, waiting = set(), [pages["README.md"]]
    while waiting:
        page = waiting.pop()
        reached.add(page.name)
        linked = {by_path[path] for path, _ in list_links(page) if path in by_path}
        waiting += [other for other in linked if other.name not in reached]
    assert reached == set(pages)
