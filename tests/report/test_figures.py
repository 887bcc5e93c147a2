"""What the figures show, checked against what was planted."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from slimbrain_app.records import Contract
from slimbrain_app.report.contents import ReportedRun
from slimbrain_app.report.figures import (
    FOOT,
    TILES,
    cosine_similarity,
    cut_places,
    cut_plane,
    draw_coverage,
    draw_embedding,
    draw_windows,
)

MakeRun = Callable[..., ReportedRun]
CROSS = re.compile(r'<use xlink:href="#\w+" x="([\d.]+)"[^>]*style="fill: #d55e00')


def _image_of(svg: str) -> NDArray[np.uint8]:
    data = re.search(r'base64,([^"]*)"', svg)
    assert data
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L"))


def _texts_of(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Return the places of each text, in the figure's points, x to the right and y down."""
    places: dict[str, list[tuple[float, float]]] = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        style = element.get("style", "") + element.get("transform", "")
        x, y = element.get("x"), element.get("y")
        moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", style)
        place = (float(x), float(y)) if x and y else (float(moved[1]), float(moved[2]))  # type: ignore[index]
        places.setdefault("".join(element.itertext()), []).append(place)
    return places


def _blob_at(contract: Contract, millimetres: tuple[float, float, float]) -> NDArray[np.float32]:
    place = (np.array(millimetres) - contract.origin) / contract.voxel_size
    coordinates = np.indices(contract.shape).T - place[::1]
    distance = np.linalg.norm(coordinates, axis=-1).T
    return np.where(distance < 6, 900, 0).astype(np.float32)


@pytest.mark.parametrize(("millimetres", "side"), [(-30.5, "L"), (30.5, "R")])
def test_blob_is_drawn_under_the_label_of_its_side(
    template: NDArray[np.bool_], millimetres: float, side: str
) -> None:
    contract = Contract()
    blob = _blob_at(contract, (millimetres, -16.5, 23.5))
    svg = draw_coverage("blob", blob, template, contract)
    image, texts = _image_of(svg), _texts_of(svg)
    assert texts["L"][0][0] < texts["R"][0][0]
    size = contract.shape[0]
    for row, (_, height) in enumerate(texts["L"]):
        middle = round(height) // (size + FOOT)
        assert middle == row
        band = image[middle * (size + FOOT) :][:size]
        halves = band.reshape(size, TILES, 2, size // 2).sum(axis=(0, 1, 3), dtype=float)
        assert ("L", "R")[int(halves.argmax())] == side
        assert halves.min() == 0


def test_sagittal_slices_name_the_hemisphere(template: NDArray[np.bool_]) -> None:
    contract = Contract()
    blob = _blob_at(contract, (-36.5, -16.5, 3.5))
    svg = draw_coverage("blob", blob, template, contract)
    image, size = _image_of(svg), contract.shape[0]
    row = image[2 * (size + FOOT) :][:size].reshape(size, TILES, size)
    column = int(row.sum(axis=(0, 2), dtype=float).argmax())
    named = {
        round(place[0]) // size: text
        for text, places in _texts_of(svg).items()
        for place in places
        if text.startswith("x")
    }
    assert named[column] == "x = \N{MINUS SIGN}36.5 L"


def test_anterior_and_superior_are_drawn_where_they_are_labelled() -> None:
    contract = Contract()
    front_top = _blob_at(contract, (0.5, 40.5, 50.5))
    place = np.argwhere(front_top).mean(axis=0).round().astype(int)
    axial, sagittal = cut_plane(front_top, 2, place[2]), cut_plane(front_top, 0, place[0])
    assert np.argwhere(axial).mean(axis=0)[0] < 48  # anterior is up
    assert np.argwhere(sagittal).mean(axis=0)[0] < 48  # superior is up
    assert np.argwhere(sagittal).mean(axis=0)[1] > 48  # anterior is on the right


def test_cuts_lie_inside_the_brain(template: NDArray[np.bool_]) -> None:
    for axis in range(3):
        assert all(template.take(place, axis=axis).any() for place in cut_places(template, axis))


def test_empty_image_is_drawn_black(template: NDArray[np.bool_]) -> None:
    empty = np.zeros(template.shape, np.float32)
    svg = draw_coverage("empty", empty, np.zeros_like(template), Contract())
    assert _image_of(svg).max() == 0


def test_every_selected_window_shows_its_rank(make_run: MakeRun) -> None:
    run = make_run()
    texts = _texts_of(draw_windows(run, 0.5))
    centres = [texts[str(window.rank)][-1][0] for window in run.selected]
    onsets = [window.onset for window in run.selected]
    assert np.corrcoef(centres, onsets)[0, 1] == pytest.approx(1, abs=1e-3)


def test_motion_and_saliency_share_the_time_axis(make_run: MakeRun) -> None:
    """A jolt in the middle of a selected window is drawn in the middle of its shade."""
    run = make_run()
    chosen = run.selected[0]
    jolt = round((chosen.onset + chosen.duration / 2) / run.tr) - run.dummy_scans
    run = replace(
        run,
        windows=tuple(replace(window, selected=window.rank == 1) for window in run.windows),
        displacement=tuple(3.0 if place == jolt else 0.1 for place in range(run.volumes)),
    )
    svg = draw_windows(run, 0.5)
    shade = re.search(r'd="M ([\d.]+) [\d.]+ ([\d.]+)[^"]*"[^>]*fill: #0072b2; opacity: 0.14', svg)
    cross = CROSS.search(svg)
    assert shade and cross
    assert float(cross[1]) == pytest.approx((float(shade[1]) + float(shade[2])) / 2, abs=2)


def test_crosses_mark_exactly_the_volumes_above_the_threshold(make_run: MakeRun) -> None:
    run = make_run()
    assert len(CROSS.findall(draw_windows(run, 0.5))) == run.volumes_above(0.5) > 0


def test_unknown_motion_has_no_panel(make_run: MakeRun) -> None:
    texts = " ".join(_texts_of(draw_windows(replace(make_run(), displacement=None), 0.5)))
    assert "saliency" in texts
    assert "displacement" not in texts


def test_threshold_of_zero_marks_nothing(make_run: MakeRun) -> None:
    assert CROSS.search(draw_windows(make_run(), 0)) is None


def test_the_scale_of_similarity_is_readable_where_views_hardly_differ(make_run: MakeRun) -> None:
    views = np.ones((8, 192), np.float32)
    views[:, 0] += np.linspace(0, 1e-2, 8, dtype=np.float32)
    svg = draw_embedding(replace(make_run(), views=views))
    assert ">0.90<" in svg and ">1.00<" in svg and ">1e" not in svg


def test_similarity_is_the_cosine() -> None:
    views = np.array([[3, 4], [4, -3], [6, 8], [0, 0]], np.float32)
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert np.allclose(cosine_similarity(views), expected)


@pytest.mark.parametrize("views", [None, 1, 2, 40])
def test_embedding_is_drawn_with_any_number_of_views(views: int | None, make_run: MakeRun) -> None:
    rows = None if views is None else np.ones((views, 8), np.float32)
    svg = draw_embedding(replace(make_run(), embedding=np.ones(8, np.float32), views=rows))
    assert ("cosine" in svg) == (views is not None and views > 1)
