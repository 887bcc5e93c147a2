"""Matplotlib figures as SVG that is small, reproducible and at home in a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, on light and dark paper.
BLUE = "#0072b2"
SKY = "#56b4e9"
ORANGE = "#e69f00"
VERMILLION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
GREY = "#8c8c8c"
# Stands for the page's text colour, black where there is no page.
INK = "#010203"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "path.simplify_threshold": 0.4,
    "svg.fonttype": "none",
    "text.color": INK,
    # Names of columns and sites may hold dollars.
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.major.width": 0.6,
}
_HEAD = re.compile(r"<\?xml.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.\d+")
_PATH = re.compile(r' d="[^"]*"')
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^)"]*)')


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure with its title and what to see in it; ``group`` is where in a page it stands."""

    group: str
    title: str
    caption: str
    svg: str


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure (inches) in the report's style, which holds inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def write_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as one ``<svg>`` element, for a file or for a page.

    The same figure and name give the same text. ``description`` is what a reader who can't see
    the figure is told. ``name`` tells its inner links from those of other figures in the page.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Letters that this machine's font lacks are drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = _without_unused_ids(_HEAD.sub("", stream.getvalue()))
    text = _PATH.sub(_shorten, text).replace(INK, "currentColor")
    label = escape(description, quote=True)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return text.strip() + "\n"


def _shorten(match: re.Match[str]) -> str:
    # A twentieth of a point can't be seen, yet six decimals make a page twice as long. After a
    # first pair of numbers, further ones are lines without being told so.
    rounded = _NUMBER.sub(lambda number: f"{float(number[0]):.1f}", match[0])
    return rounded.replace(" \nL ", " ").replace("\n", "")


def _without_unused_ids(text: str) -> str:
    # Matplotlib names every group figure_1, axes_1 ...: twice in a page with two figures.
    used = set(_REFERENCE.findall(text))
    return _ID.sub(lambda match: match[0] if match[1] in used else "", text)
