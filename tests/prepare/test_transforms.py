"""Transforms against a plain reading of ITK's files, point by point."""

from __future__ import annotations

from itertools import product

import h5py
import numpy as np
import pytest

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare.transforms import map_points

FLIP = np.array([-1.0, -1, 1])  # RAS to LPS and back


class PlainAffine:
    """y = A (x - centre) + centre + shift, in LPS."""

    def __init__(self, parameters, centre):
        self.matrix = np.reshape(parameters[:9], (3, 3))
        self.shift = np.asarray(parameters[9:])
        self.centre = np.asarray(centre)

    def __call__(self, point):
        return self.matrix @ (point - self.centre) + self.centre + self.shift


class PlainField:
    """Trilinear displacements in LPS; x runs fastest, the vector faster still."""

    def __init__(self, parameters, fixed):
        self.size = np.asarray(fixed[:3], int)
        self.origin, self.spacing = np.asarray(fixed[3:6]), np.asarray(fixed[6:9])
        self.direction = np.reshape(fixed[9:], (3, 3))
        self.parameters = np.asarray(parameters)

    def vector(self, x, y, z):
        start = 3 * (x + self.size[0] * (y + self.size[1] * z))
        return self.parameters[start : start + 3]

    def __call__(self, point):
        index = np.linalg.solve(self.direction, point - self.origin) / self.spacing
        if (index < -0.5).any() or (index > self.size - 0.5).any():
            return point
        index = np.clip(index, 0, self.size - 1)
        base = np.minimum(np.floor(index).astype(int), self.size - 2)
        part = index - base
        moved = point.copy()
        for corner in product((0, 1), repeat=3):
            weight = np.prod(np.where(corner, part, 1 - part))
            moved += weight * self.vector(*(base + corner))
        return moved


def plain_parts(path):
    """A file's parts in the order in which points meet them."""
    if path.suffix == ".txt":
        lines = dict(line.split(": ") for line in path.read_text().splitlines() if ": " in line)
        numbers = [
            [float(word) for word in lines[key].split()]
            for key in ("Parameters", "FixedParameters")
        ]
        return [PlainAffine(*numbers)]
    with h5py.File(path) as file:
        group = file["TransformGroup"]
        parts = [group[str(number)] for number in range(1, len(group))]
        return [plain_part(part) for part in reversed(parts)]


def plain_part(part):
    kind = part["TransformType"][0].decode()
    numbers = part["TransformParameters"][:], part["TransformFixedParameters"][:]
    return PlainAffine(*numbers) if kind.startswith("Affine") else PlainField(*numbers)


def plain_map(points, paths):
    parts = [part for path in paths for part in plain_parts(path)]
    mapped = []
    for point in points:
        moved = point * FLIP
        for part in parts:
            moved = part(moved)
        mapped.append(moved * FLIP)
    return np.array(mapped)


AFFINE = (
    [1.02, 0.05, -0.01, -0.04, 0.97, 0.03, 0.02, -0.06, 1.05, 4.0, -7.0, 2.5],
    [11.0, -23.0, 37.0],
)


def field(seed=0):
    """A lattice of three different lengths and edges, turned, with no symmetry in its vectors."""
    size = [7, 9, 5]
    turn = [[0.9553365, -0.2955202, 0], [0.2955202, 0.9553365, 0], [0, 0, 1]]
    fixed = [*size, 40.0, 55.0, -30.0, 11.0, 13.0, 17.0, *np.ravel(turn @ np.diag([-1.0, -1, 1]))]
    return np.random.default_rng(seed).normal(0, 5, 3 * np.prod(size)), fixed


def write_affine(path, parameters=AFFINE[0], centre=AFFINE[1], blocks=1):
    lines = ["#Insight Transform File V1.0"]
    for number in range(blocks):
        lines += [
            f"#Transform {number}",
            "Transform: MatrixOffsetTransformBase_double_3_3",
            f"Parameters: {' '.join(map(str, parameters))}",
            f"FixedParameters: {' '.join(map(str, centre))}",
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_composite(path, parts):
    """Parts in the order of the file: what is last meets the points first."""
    kinds = {3: "AffineTransform_double_3_3", 18: "DisplacementFieldTransform_double_3_3"}
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        group["0/TransformType"] = [b"CompositeTransform_double_3_3"]
        for number, (parameters, fixed) in enumerate(parts, 1):
            group[f"{number}/TransformType"] = [kinds[len(fixed)].encode()]
            group[f"{number}/TransformParameters"] = np.asarray(parameters, float)
            group[f"{number}/TransformFixedParameters"] = np.asarray(fixed, float)
    return path


@pytest.fixture
def points():
    """Inside and outside of the field."""
    return np.random.default_rng(3).uniform(-120, 120, (400, 3))


def mapped(points, *paths):
    return map_points(points, paths, [path.name for path in paths])


def test_affine_turns_about_its_centre_in_lps(tmp_path, points):
    path = write_affine(tmp_path / "coreg.txt")
    np.testing.assert_allclose(mapped(points, path), plain_map(points, [path]), atol=1e-4)


def test_field_is_read_with_its_direction_edges_and_vectors(tmp_path, points):
    path = write_composite(tmp_path / "xfm.h5", [field()])
    expected = plain_map(points, [path])
    moves = np.linalg.norm(expected - points, axis=1)
    assert 10 < np.count_nonzero(moves) < len(points)
    np.testing.assert_allclose(mapped(points, path), expected, atol=1e-6)


def test_points_outside_the_field_still_meet_the_affine(tmp_path):
    far = np.array([[300.0, 300, 300]])
    path = write_composite(tmp_path / "xfm.h5", [AFFINE, field()])
    np.testing.assert_allclose(mapped(far, path), plain_map(far, [path]), atol=1e-4)
    assert np.abs(mapped(far, path) - far).max() > 1


@pytest.mark.parametrize("parts", [[AFFINE, field()], [field(), AFFINE]])
def test_last_part_of_a_file_meets_the_points_first(tmp_path, points, parts):
    path = write_composite(tmp_path / "xfm.h5", parts)
    turned = write_composite(tmp_path / "turned.h5", parts[::-1])
    np.testing.assert_allclose(mapped(points, path), plain_map(points, [path]), atol=1e-4)
    assert np.abs(mapped(points, path) - mapped(points, turned)).max() > 1


def test_parts_are_taken_by_number_beyond_the_ninth(tmp_path, points):
    random = np.random.default_rng(4)
    parts = [
        ([*np.ravel(np.eye(3) + random.normal(0, 0.03, (3, 3))), 1, 2, 3], [0, 0, 0])
        for _ in range(11)
    ]
    path = write_composite(tmp_path / "xfm.h5", parts)
    np.testing.assert_allclose(mapped(points, path), plain_map(points, [path]), atol=1e-4)


def test_order_of_chain_on_known_points(tmp_path):
    """By hand, in LPS: the field moves by (0, 0, 10), the affine doubles, the last turns x to y."""
    size = [3, 3, 3, -100, -100, -100, 100, 100, 100, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    lift = ([0, 0, 10] * 27, size)
    double = ([2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0], [0, 0, 0])
    warp = write_composite(tmp_path / "xfm.h5", [double, lift])
    coregistration = write_affine(
        tmp_path / "coreg.txt", [0, -1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0]
    )
    # RAS (3, 4, 5) is LPS (-3, -4, 5), (-3, -4, 15), (-6, -8, 30), (8 + 1, -6, 30).
    moved = mapped(np.array([[3.0, 4, 5], [0, 0, 0]]), warp, coregistration)
    np.testing.assert_allclose(moved, [[-9, 6, 30], [-1, 0, 20]], atol=1e-4)


def test_h5_chain_against_plain_evaluation(tmp_path, points):
    paths = [
        write_composite(tmp_path / "xfm.h5", [AFFINE, field()]),
        write_affine(tmp_path / "coreg.txt", [0, 1, 0, -1, 0, 0, 0, 0, 1, 5, 0, 0], [1, 2, 3]),
    ]
    np.testing.assert_allclose(mapped(points, *paths), plain_map(points, paths), atol=1e-4)


@pytest.mark.parametrize("participant", ["sub-03", "sub-04"])
def test_transforms_as_ants_writes_them(shared_data, participant):
    folder = shared_data / "native" / participant
    paths = [
        *folder.glob("anat/*from-T1w_to-MNI152NLin2009cAsym_*.h5"),
        *folder.glob("func/*from-boldref_to-T1w_*.txt"),
    ]
    brain = np.random.default_rng(0).uniform([-70, -100, -60], [70, 70, 80], (300, 3))
    expected = plain_map(brain, paths)
    assert len(paths) == 2
    assert np.linalg.norm(expected - brain, axis=1).min() > 1
    np.testing.assert_allclose(mapped(brain, *paths), expected, atol=1e-4)


def test_forward_and_inverse_of_a_registration_undo_one_another(shared_data):
    folder = shared_data / "native" / "sub-03" / "anat"
    there, back = folder.glob("*from-T1w_to-*.h5"), folder.glob("*to-T1w_*.h5")
    brain = np.random.default_rng(0).uniform([-60, -90, -40], [60, 60, 70], (300, 3))
    returned = mapped(brain, *there, *back)
    assert np.linalg.norm(returned - brain, axis=1).max() < 1


def refusal_of(path):
    with pytest.raises(RunRefused) as caught:
        mapped(np.zeros((1, 3)), path)
    assert caught.value.file == path.name
    return caught.value.reason


def test_motion_of_many_volumes_is_refused(tmp_path):
    assert refusal_of(write_affine(tmp_path / "hmc.txt", blocks=3)) == "transform-bad"


@pytest.mark.parametrize("name", ["xfm.txt", "xfm.h5"])
@pytest.mark.parametrize("content", [b"", b"no transform", bytes(range(256)) * 20])
def test_what_is_no_transform_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal_of(path) == "transform-bad"


def test_transform_with_other_parameters_is_refused(tmp_path):
    path = write_affine(tmp_path / "euler.txt", parameters=[0.1, 0.2, 0.3, 1, 2, 3])
    assert refusal_of(path) == "transform-bad"


def test_unknown_part_of_a_composite_is_refused(tmp_path):
    path = write_composite(tmp_path / "xfm.h5", [AFFINE])
    with h5py.File(path, "a") as file:
        file["TransformGroup/1/TransformType"][0] = b"BSplineTransform_double_3_3"
    assert refusal_of(path) == "transform-bad"


def test_file_of_another_kind_of_hdf5_is_refused(tmp_path):
    path = tmp_path / "xfm.h5"
    with h5py.File(path, "w") as file:
        file["something"] = 1
    assert refusal_of(path) == "transform-bad"


def test_transform_that_is_not_there_is_missing(tmp_path):
    path = tmp_path / "xfm.h5"
    path.symlink_to(tmp_path / "annex")
    assert refusal_of(path) == "transform-missing"
