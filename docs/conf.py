"""How Sphinx makes the site out of the pages: `make docs`.

Its sources begin at the repository's root, so that links between README.md and the pages below
docs/ hold here as they do where the Markdown is read as it is. Two marks in the Markdown, which
nobody sees there, stand for what is made out of the code: `<!-- figure: NAME Caption. -->`, and
`<!-- api: MODULE NAME ... -->` or, without names, all public ones.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
FIGURES = HERE.parent / "build" / "figures"
sys.path.insert(0, str(HERE))

import figures  # noqa: E402

import slimbrain_app  # noqa: E402

project = "SlimBrain"
author = "The SlimBrain developers"
copyright = author
release = version = slimbrain_app.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "slimbrain_app/data/**.md"]
exclude_patterns = [".*", "build", "demo", "dist", "shared", "tests"]
templates_path = ["_templates"]

myst_heading_anchors = 4
# Nothing is fetched, so other libraries' types lead nowhere.
nitpick_ignore_regex = [("py:.*", "(?!slimbrain_app).*")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"SlimBrain {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("docs/tutorial", "docs/troubleshooting")}
html_additional_pages = {"index": "front.html"}
html_theme_options = {
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

_MARK = re.compile(r"^<!-- (figure|api): (\S+)\s*(.*?)\s*-->$", re.MULTILINE | re.DOTALL)


def show_figure(name: str, caption: str) -> str:
    return f"```{{raw}} html\n:file: {FIGURES / name}.svg\n```\n\n*{caption}*"


def describe_names(name: str, chosen: str) -> str:
    module = importlib.import_module(name)
    names = chosen.split() or module.__all__
    lines = [line for one in names for line in describe(f"{name}.{one}", getattr(module, one))]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def describe(path: str, thing: object) -> tuple[str, ...]:
    if not inspect.isclass(thing):
        return (f".. autofunction:: {path}",)
    kind = "exception" if issubclass(thing, BaseException) else "class"
    return (f".. auto{kind}:: {path}", "   :members:", "   :undoc-members:")


MAKERS = {"figure": show_figure, "api": describe_names}


def replace_marks(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = _MARK.sub(lambda mark: MAKERS[mark[1]](mark[2], mark[3]), source[0])


def setup(app: Sphinx) -> None:
    figures.draw_figures(FIGURES)
    app.connect("source-read", replace_marks)
