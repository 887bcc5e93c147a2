"""The version, the citation file, the changes and the terms, told alike wherever they are."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from slimbrain_app import __version__

ROOT = Path(__file__).parents[2]
# Files that tell of other versions: what was, what others are called, and how a model was made.
PAST = ("CHANGES.md", "requirements.", "slimbrain_app/data/", "tests/")


def test_every_image_and_archive_that_is_named_has_the_version(tracked):
    pattern = re.compile(r"slimbrain[:-](\d+[.-]\d+[.-]\d+)|^Version (\d+\.\d+\.\d+)", re.MULTILINE)
    found = {}
    for name in tracked:
        if name.endswith((".md", ".py", ".def", "Dockerfile")) and not name.startswith(PAST):
            for groups in pattern.findall((ROOT / name).read_text(encoding="utf-8")):
                found.setdefault("".join(groups).replace("-", "."), []).append(name)
    assert set(found) == {__version__}
    assert {"README.md", "Singularity.def", "docs/how-to/use-with-babs.md"} <= set(
        found[__version__]
    )


def test_changes_have_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - (unreleased|\d{4}-\d\d-\d\d)", one) for one in versions
    )
    assert not [one for one in versions[1:] if one.endswith("unreleased")]
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(kinds) <= {*known, "Known to be missing"}


def test_citation_names_software_and_paper_with_their_people():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (__version__, "Apache-2.0")
    (paper,) = cited["references"]
    assert [set(person) for person in paper["authors"]] == [{"family-names", "given-names"}] * 8
    assert paper["url"].endswith(paper["identifiers"][0]["value"].removeprefix("arXiv:"))


def test_notices_of_what_ships_are_the_same_in_both_places():
    def flatten(text: str) -> str:
        return " ".join(text.replace(">", " ").split())

    notices = (ROOT / "THIRD-PARTY.md").read_text(encoding="utf-8")
    beside = flatten((ROOT / "slimbrain_app/data/README.md").read_text(encoding="utf-8"))
    paragraphs = re.findall(
        r"^(?:Copyright|Permission|The above|THE SOFTWARE).*?\n\n",
        notices + "\n",
        re.MULTILINE | re.DOTALL,
    )
    assert len(paragraphs) == 5
    assert all(flatten(paragraph) in beside for paragraph in paragraphs)


def test_every_file_of_data_has_its_terms(tracked):
    notices = (ROOT / "THIRD-PARTY.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(slimbrain_app/data/.*?)`", notices, re.MULTILINE)
    data = {name for name in tracked if name.startswith("slimbrain_app/data/")}
    binary = {name for name in data if not name.endswith((".md", ".toml", ".json"))}
    assert all(any(name.startswith(one) for one in named) for name in binary)
    assert all((ROOT / one).exists() for one in named)
