"""SVG out of matplotlib."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from slimbrain_app.report.svg import INK, new_figure, write_svg


def _draw(name: str = "curve", description: str = "A curve") -> str:
    with new_figure(4, 2) as figure:
        axes = figure.subplots()
        axes.plot(np.linspace(0, 1, 50), np.sin(np.arange(50)), color=INK)
        return write_svg(figure, name, description)


def test_same_figure_gives_the_same_text() -> None:
    assert _draw() == _draw()


def test_two_figures_of_a_page_share_no_id() -> None:
    ids = [set(re.findall(r' id="([^"]*)"', _draw(name))) for name in ("first", "second")]
    assert ids[0] and ids[1]
    assert not ids[0] & ids[1]


def test_every_reference_inside_has_its_target() -> None:
    text = _draw()
    ids = set(re.findall(r' id="([^"]*)"', text))
    references = set(re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)", text))
    assert {first or second for first, second in references} == ids


def test_result_is_one_element_with_a_description_and_no_date() -> None:
    root = ElementTree.fromstring(_draw(description='1 < 2 & "three"'))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == '1 < 2 & "three"'
    assert root.find(".//{*}metadata") is None


def test_ink_takes_the_colour_of_the_page() -> None:
    text = _draw()
    assert INK not in text
    assert "currentColor" in text


def test_shortened_curve_stays_in_place() -> None:
    with new_figure(4, 2) as figure:
        axes = figure.subplots()
        figure.set_layout_engine("none")
        axes.set(position=(0, 0, 1, 1), xlim=(0, 3), ylim=(0, 1))
        axes.plot([0, 1, 2, 3], [0.123456, 0.9, 0.5, 0.7], color="#ff0000")
        text = write_svg(figure, "curve", "A curve")
    path = re.search(r'd="([^"]*)"[^>]*stroke: #ff0000', text)
    assert path
    places = [float(number) for number in re.findall(r"[\d.]+", path[1])]
    assert np.allclose(places, [0, 126.2, 96, 14.4, 192, 72, 288, 43.2], atol=0.06)
